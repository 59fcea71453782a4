"""Checks of a dataset: everything that is missing, broken or doubtful, by kind."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.datasets.annotation_records import AnnotationRecord, read_records
from mask_rcnn.datasets.annotation_values import AnnotationError
from mask_rcnn.datasets.coco_annotations import clean_object, explain_doubt
from mask_rcnn.datasets.coco_json import COCOFile, read_coco_json
from mask_rcnn.datasets.image_files import explain_size
from mask_rcnn.datasets.inspection.image_scan import ScannedImage, group_equal_images, scan_images
from mask_rcnn.datasets.inspection.split import classes_of_images
from mask_rcnn.io.progress import Progress, no_progress
from mask_rcnn.preprocessing.image_transform import input_scale

#: Kind of a finding -> its title, the end of a phrase that begins with a number.
KINDS = {
    'empty': 'annotation files without images or without classes',
    'unreadable': 'images that cannot be read',
    'size': 'images of another size than the annotation file declares',
    'orientation': 'images with an orientation in EXIF or XMP (annotations must fit the upright image)',
    'malformed': 'malformed annotations',
    'left-out': 'objects that training leaves out',
    'doubtful': 'objects that are probably annotated wrongly',
    'outside': 'objects with an outline outside their image',
    'tiny': 'objects that are tiny in the network input',
    'crowd': 'crowds, which are not trained',
    'repeated': 'annotations with the class and the box of another one in their image',
    'empty-class': 'classes without objects',
    'no-objects': 'images without objects, which are not trained',
    'same-image': 'groups of equal images',
    'train-val': 'images that are in the training and in the validation data',
    'classes': 'classes that the training or the validation data lack',
}

#: Objects with a smaller size (square root of the box area) in pixels of the network input are reported.
MIN_INPUT_SIZE = 4.0
#: Vertices up to this number of pixels outside of the image are usual: tools round coordinates and draw over the edge.
_OUTSIDE_TOLERANCE = 1.0
#: Number of names of a group of images that are listed.
_N_NAMES = 4


@dataclass(frozen=True)
class Finding:
    """Something missing, broken or doubtful.

    Args:
        kind: A key of :data:`KINDS`.
        file: The image file, or the annotation file.
        place: The annotation or class in it, or an empty string.
        reason: The details, or an empty string.
    """

    kind: str
    file: str
    place: str = ''
    reason: str = ''

    def __str__(self) -> str:
        return ': '.join(part for part in (self.file, self.place, self.reason) if part)


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset with its findings.

    Args:
        annotation_file: The annotation file.
        content: Its content.
        images: The file of each image of ``content.images``.
        n_annotations: Number of annotations.
        findings: The findings, in the order of the file.
    """

    annotation_file: Path
    content: COCOFile
    images: tuple[ScannedImage, ...]
    n_annotations: int
    findings: tuple[Finding, ...]


def check_dataset(
    annotation_file: Path, image_folder: Path, config: Config, *, decode: bool = True, progress: Progress = no_progress
) -> CheckedDataset:
    """Check the images and annotations of a dataset.

    Args:
        annotation_file: The annotations in COCO's format.
        image_folder: The folder of the images.
        config: ``min_size`` and ``max_size``, which determine the objects' size in the network input.
        decode: Whether to decode the images, or to read their headers only.
        progress: Shows the progress.

    Raises:
        mask_rcnn.datasets.coco_json.AnnotationFileError: The annotation file cannot be read or is not in COCO's format.
    """
    content = read_coco_json(annotation_file)
    images = scan_images(content.images, image_folder, decode=decode, progress=progress)
    findings = [
        Finding('empty', str(annotation_file), reason=f'the file contains no {what}')
        for what, entries in (('images', content.images), ('classes', content.categories))
        if not entries
    ]
    findings += [*_check_images(content, images), *_check_equal_images(images)]
    findings += _check_annotations(annotation_file, content, images, config, progress)
    return CheckedDataset(annotation_file, content, tuple(images), len(content.annotations), tuple(findings))


def check_pair(train: CheckedDataset, val: CheckedDataset) -> list[Finding]:
    """Return the findings about training and validation data: common images, and classes that one of them lacks."""
    n_train = len(train.images)
    findings = []
    for group in group_equal_images([*train.images, *val.images]):
        in_train, in_val = ([i for i in group if (i < n_train) == is_train] for is_train in (True, False))
        if in_train and in_val:
            names = _list_names([train.images[i].path for i in in_train])
            findings += [
                Finding('train-val', val.images[i - n_train].path, reason=f'the same image as {names}') for i in in_val
            ]
    train_names, val_names = ({category.name for category in data.content.categories} for data in (train, val))
    for data, missing in ((train, val_names - train_names), (val, train_names - val_names)):
        findings += [
            Finding('classes', str(data.annotation_file), f'class {name!r}', 'is missing') for name in sorted(missing)
        ]
    return findings


def _check_images(content: COCOFile, images: Sequence[ScannedImage]) -> Iterator[Finding]:
    for record, image in zip(content.images, images, strict=True):
        if image.size is None:
            yield Finding('unreadable', image.path, reason=image.error)
            continue
        if not image.is_upright:
            yield Finding('orientation', image.path)
        declared = record.height or image.size[0], record.width or image.size[1]
        if error := explain_size(image.path, image.size, declared):
            yield Finding('size', image.path, reason=error.reason)


def _check_equal_images(images: Sequence[ScannedImage]) -> Iterator[Finding]:
    for group in group_equal_images(images):
        first, *others = (images[i].path for i in group)
        yield Finding('same-image', first, reason=f'equals {_list_names(others)}')


def _check_annotations(
    path: Path, content: COCOFile, images: Sequence[ScannedImage], config: Config, progress: Progress
) -> Iterator[Finding]:
    image_of = {record.image_id: image for record, image in zip(content.images, images, strict=True)}
    sizes = {image_id: image.size for image_id, image in image_of.items()}
    category_ids = [category.category_id for category in content.categories]
    records = read_records(content.annotations, sizes, category_ids, keypoints=False)
    trained_images: set[int | str] = set()
    first_of: dict[tuple, str] = {}
    for record in progress(records, len(content.annotations), 'object'):
        if isinstance(record, AnnotationError):
            yield Finding('malformed', str(path), reason=str(record))
            continue
        image = image_of[record.image_id]
        findings = _check_object(record, image, config)
        if not {'left-out', 'crowd'} & {finding.kind for finding in findings}:
            trained_images.add(record.image_id)
        yield from findings
        if record.bbox is not None and not record.is_crowd:
            key = (record.image_id, record.category_id, *record.bbox)
            if key in first_of:
                yield Finding('repeated', image.path, record.name, f'has the class and the box of {first_of[key]}')
            else:
                first_of[key] = record.name
    # Annotations that are malformed, or in images that cannot be read, are annotations of their classes as well.
    annotated_classes = set().union(*classes_of_images(content))
    for category in content.categories:
        if category.category_id not in annotated_classes:
            yield Finding('empty-class', str(path), f'class {category.name!r}')
    for record in content.images:
        if record.image_id not in trained_images and image_of[record.image_id].size is not None:
            yield Finding('no-objects', image_of[record.image_id].path)


def _check_object(record: AnnotationRecord, image: ScannedImage, config: Config) -> list[Finding]:
    """Return the findings about one object of a readable image."""
    size = image.size or (0, 0)
    reasons: list[tuple[str, str]] = []
    if record.is_crowd:
        reasons.append(('crowd', ''))
    cleaned = clean_object(record, 0, size, masks=True, keypoints=False)
    if isinstance(cleaned, str):
        reasons.append(('left-out', cleaned))
    elif doubt := explain_doubt(record, size, masks=True, evaluated=True):
        reasons.append(('doubtful', doubt))
    if outside := _explain_outside(record, size):
        reasons.append(('outside', outside))
    if record.bbox is not None and min(record.bbox[2:]) > 0:
        input_size = math.sqrt(record.bbox[2] * record.bbox[3]) * input_scale(size, config)
        if input_size < MIN_INPUT_SIZE:
            reasons.append(('tiny', f'{input_size:.1f} pixels in the network input'))
    return [Finding(kind, image.path, record.name, reason) for kind, reason in reasons]


def _explain_outside(record: AnnotationRecord, size: tuple[int, int]) -> str:
    """Return the vertex that is farthest outside of the image, or an empty string."""
    if not record.segmentation or isinstance(record.segmentation, dict):
        return ''
    coordinates = np.concatenate(record.segmentation) if len(record.segmentation) > 1 else record.segmentation[0]
    if coordinates.min() >= 0 and coordinates.max() <= min(size):  # the usual case
        return ''
    points = coordinates.reshape(-1, 2)
    distances = np.maximum(-points, points - np.array(size[::-1])).max(axis=1)
    worst = int(distances.argmax())
    if distances[worst] <= _OUTSIDE_TOLERANCE:
        return ''
    x, y = points[worst]
    return f'a vertex at x = {x:g}, y = {y:g} in an image of {size[0]} x {size[1]} pixels (height x width)'


def _list_names(paths: Collection[str]) -> str:
    listed = list(paths)[:_N_NAMES]
    n_others = len(paths) - len(listed)
    return ', '.join(listed) + (f' and {n_others} more' if n_others else '')
