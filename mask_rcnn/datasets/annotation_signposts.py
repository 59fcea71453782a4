"""Descriptions of annotation files that are not in COCO's format, with the remedy for each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mask_rcnn.io.file_kinds import ARCHIVE, DOWNLOAD_HINTS, IMAGE, REFUSAL, WEIGHTS, describe_kind

_IMPORT = 'convert it with "mask-rcnn data import"'
_IMPORT_FOLDER = 'convert the folder of its dataset with "mask-rcnn data import"'
_CONVERT = "convert the whole dataset to COCO's JSON first, for example with Datumaro or CVAT"

#: The continuation of the description of each kind.
_HINTS = DOWNLOAD_HINTS | {
    WEIGHTS: ', which belongs to --modelfile, --pretrained or --resume',
    IMAGE: ', which belongs to a folder of images',
    ARCHIVE: '; unpack it and name the JSON file in it',
    'an XML file of annotations': (
        f", such as LabelMe's, Pascal VOC's or CVAT's; {_IMPORT} if LabelMe wrote it; otherwise {_CONVERT}"
    ),
}

#: Beginnings of texts that labelling tools write in the place of JSON.
_TEXTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb'\s*\d+(?:[ \t]+-?\d*\.?\d+){4,}\s*(?:\n|$)'), f"a text of YOLO's labels; {_IMPORT_FOLDER}"),
    (re.compile(rb'\s*\{[^\n]*\}[ \t\r]*\n\s*\{'), 'JSON lines, one object in each; the file must be one object'),
    (re.compile(rb'[^\n{\[]*,[^\n]*,[^\n]*\n'), f'a table (CSV); {_IMPORT} if VIA wrote it; otherwise {_CONVERT}'),
    (
        re.compile(rb'(?:\s*#[^\n]*\n|\s*---|\s)*[A-Za-z_][\w ]*:(?:\s|$)'),
        f"a YAML file; name COCO's JSON instead; if it declares a YOLO dataset, {_IMPORT}",
    ),
)


def describe_bytes(start: bytes) -> str:
    """Return the description of a file that is not JSON; empty if its kind is unknown.

    Args:
        start: The first :data:`~mask_rcnn.io.file_kinds.N_KIND_BYTES` bytes.
    """
    if not start.strip():
        return 'empty'
    kind = describe_kind(start)
    if kind and kind != 'a JSON file':
        return kind + _HINTS.get(kind, '')
    return next((description for beginning, description in _TEXTS if beginning.match(start)), '')


def describe_json(content: Any) -> str:
    """Return the description of JSON of another program or purpose; empty if it may be in COCO's format.

    Args:
        content: The parsed JSON.
    """
    if isinstance(content, list):
        return _describe_list(content)
    if not isinstance(content, dict):
        return ''
    if isinstance(content.get('images'), list):
        return _describe_coco(content.get('annotations'))
    for applies, description in _OBJECTS:
        if applies(content):
            return description
    return ''


def _describe_list(content: list) -> str:
    first = content[0] if content else None
    if not isinstance(first, dict):
        return ''
    if 'image_id' in first and 'score' in first:
        return (
            'a list of detections (COCO results), not annotations; name the file of the annotations that it was '
            'computed for'
        )
    if 'image_id' in first:
        return "the list of annotations alone; the file must be an object of 'images', 'annotations' and 'categories'"
    if 'annotations' in first and 'data' in first:
        return "a project of Label Studio; export it in COCO's format instead"
    if 'annotations' in first and 'image' in first:
        return f'a file of Create ML; {_CONVERT}'
    if 'Labeled Data' in first or 'data_row' in first:
        return f'an export of Labelbox; {_CONVERT}'
    return ''


def _describe_coco(annotations: Any) -> str:
    """Return the description of a file with COCO's images and without its objects."""
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict) or 'category_id' in first:
        return ''
    if 'segments_info' in first:
        return "COCO's panoptic annotations; name the file of instances instead (instances_*.json)"
    if 'caption' in first:
        return "COCO's captions; name the file of instances instead (instances_*.json)"
    return ''


def _is_via(content: dict) -> bool:
    first = next(iter(content.values()), None)
    return '_via_img_metadata' in content or (isinstance(first, dict) and 'regions' in first and 'filename' in first)


#: Objects of other programs: a function that recognises them, and their descriptions.
_OBJECTS: tuple[tuple[Callable[[dict], bool], str], ...] = (
    (_is_via, f'a project of the VGG Image Annotator (VIA); {_IMPORT}'),
    (
        lambda content: 'shapes' in content and 'imagePath' in content,
        f'a file of labelme, which has one file for each image; {_IMPORT}',
    ),
    (lambda content: content.get('type') == 'FeatureCollection', f'a GeoJSON map; {_CONVERT}'),
    (lambda content: 'objects' in content and 'size' in content, f'a file of Supervisely; {_CONVERT}'),
    (
        lambda content: any(isinstance(content.get(key), str) for key in ('error', 'message', 'detail')),
        REFUSAL + DOWNLOAD_HINTS[REFUSAL],
    ),
)
