"""The annotations that ``mask-rcnn demo`` writes for annotation tools: a COCO dataset, or files of labelme."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mask_rcnn.cli.command import UsageError
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.paths import deepest_folder, relative_name
from mask_rcnn.media.pending_file import PendingFile

#: labelme compares the major version with its own and reads all fields of older files.
_LABELME_VERSION = '5.0.0'


class AnnotationWriter(Protocol):
    """A writer of annotations; ``paths`` are its files."""

    paths: list[Path]

    def add(self, image: Path, detections: Detections) -> None:
        """Add the detections of an image."""

    def write(self) -> None:
        """Write the annotations that :meth:`add` has collected."""


def is_folder(value: str) -> bool:
    """Return whether ``--annotations`` names a folder: an existing one, or a name that ends with a slash."""
    return value.endswith(('/', os.sep)) or os.path.isdir(value)


class COCOWriter:
    """Writes one COCO dataset for all images, whose annotations are written to the disk as they come.

    Args:
        path: The file, which appears when it is complete.
        images: All images of the command; names in the dataset are relative to their common folder, or absolute if they
            are on several drives.
    """

    def __init__(self, path: Path, images: Sequence[Path]):
        self.paths = [path]
        self._file = PendingFile(path)
        self._folder = deepest_folder([image.parent for image in images]) if images else None
        self._images: list[bytes] = []
        self._n_annotations = 0
        self._categories: dict[int, dict[str, Any]] = {}

    def add(self, image: Path, detections: Detections) -> None:
        """Add the detections of an image."""
        number, name = len(self._images) + 1, self._name(image)
        height, width = detections.size
        annotations = detections.to_annotations(number, first_id=self._n_annotations + 1)
        if annotations:
            self._file.write((b', ' if self._n_annotations else self._start()) + _encode(annotations)[1:-1])
        self._images.append(_encode({'id': number, 'file_name': name, 'width': width, 'height': height}))
        self._n_annotations += len(annotations)
        self._categories |= {category['id']: category for category in detections.categories}

    def _name(self, image: Path) -> str:
        return image.absolute().as_posix() if self._folder is None else relative_name(image, self._folder)

    def write(self) -> None:
        """Complete the dataset."""
        start = b'' if self._n_annotations else self._start()
        images, categories = b', '.join(self._images), [item for _, item in sorted(self._categories.items())]
        self._file.write(start + b'], "images": [' + images + b'], "categories": ' + _encode(categories) + b'}')
        self._file.complete()

    def _start(self) -> bytes:
        fields = {'info': {'description': 'detections of a model, to be corrected'}, 'licenses': []}
        return _encode(fields)[:-1] + b', "annotations": ['


class LabelmeWriter:
    """Writes a file of labelme for each image.

    Args:
        images: All images of the command.
        paths: The file of each image.
    """

    def __init__(self, images: Sequence[Path], paths: Sequence[Path]):
        self.paths = list(paths)
        self._path_of = dict(zip(images, paths, strict=True))

    def check(self) -> None:
        """Refuse files that exist, because people correct them in place.

        Raises:
            UsageError: A file exists.
        """
        for path in self.paths:
            if os.path.lexists(path):
                raise UsageError(f'--annotations {path.parent}{os.sep}: {path} exists and may have been corrected')

    def add(self, image: Path, detections: Detections) -> None:
        """Write the file of an image."""
        path = self._path_of[image]
        height, width = detections.size
        content: dict[str, Any] = {
            'version': _LABELME_VERSION,
            'flags': {},
            'shapes': labelme_shapes(detections),
            'imagePath': relative_name(image, path.parent),
            'imageData': None,
            'imageHeight': height,
            'imageWidth': width,
        }
        write_json(path, content)

    def write(self) -> None:
        """Do nothing: the files are written."""


def labelme_shapes(detections: Detections) -> list[dict[str, Any]]:
    """Return instances as shapes of labelme; those of one instance have the same ``group_id``.

    An instance is a polygon for each of its parts, or a rectangle if it has no mask, and a point for each visible
    keypoint.
    """
    shapes = []
    point_names = _keypoint_names(detections)
    for annotation, name in zip(detections.to_annotations(1), detections.names, strict=True):
        parts = [('polygon', polygon, name) for polygon in annotation['segmentation']]
        if not parts:
            left, top, width, height = annotation['bbox']
            parts = [('rectangle', [left, top, left + width, top + height], name)]
        parts += [('point', point, point_name) for point, point_name in _visible_keypoints(annotation, point_names)]
        common = {'group_id': annotation['id'] if len(parts) > 1 else None, 'flags': {}, 'score': annotation['score']}
        for shape_type, numbers, label in parts:
            points = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
            shapes.append({'label': label, 'points': points, 'shape_type': shape_type, **common})
    return shapes


def _keypoint_names(detections: Detections) -> Sequence[str]:
    n_keypoints = 0 if detections.keypoints is None else detections.keypoints.shape[1]
    if n_keypoints == len(COCO_KEYPOINT_NAMES):
        return COCO_KEYPOINT_NAMES
    return [f'keypoint {i}' for i in range(1, n_keypoints + 1)]


def _visible_keypoints(annotation: dict[str, Any], names: Sequence[str]) -> list[tuple[list[float], str]]:
    """Return the coordinates ``[x, y]`` and the name of each visible keypoint of an annotation."""
    numbers = annotation.get('keypoints', [])
    triples = [numbers[i : i + 3] for i in range(0, len(numbers), 3)]
    return [(triple[:2], name) for triple, name in zip(triples, names, strict=True) if triple[2]]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, which appears when it is complete."""
    with open_for_writing(path) as file:
        file.write(_encode(content))


def _encode(content: Any) -> bytes:
    return json.dumps(content).encode('ascii')
