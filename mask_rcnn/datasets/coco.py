"""Data sets in COCO's format: one JSON file with everything about the images, and a folder of them.

Objects are cleaned as Detectron's ``datasets/json_dataset.py`` does before it trains: boxes clipped to the
image, objects without area left out, polygons of fewer than three points left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import chainer
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Annotations, Example, Segmentation
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_sizes
import itertools

_logger = logging.getLogger(__name__)

_MIN_POLYGON_NUMBERS = 6  # three points


class AnnotationFileError(ValueError):
    """An annotation file that cannot be used; the message is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f'{os.fspath(path)}: {reason}')
        self.path = Path(path)
        self.reason = reason


class COCODataset(chainer.dataset.DatasetMixin):
    """Images and objects of a COCO annotation file.

    Every image file's header is read at once when the data set is made, so that a run does not meet a
    missing file after hours.  What the data set keeps of the objects are a few flat arrays, which worker
    processes receive in a moment.

    Args:
        annotation_file: JSON with ``images``, ``annotations`` and ``categories``.  Polygons and run
            lengths (COCO's compressed and uncompressed form) are read.  ``width`` and ``height`` of
            images, ``area``, ``iscrowd`` and ``id`` of annotations may be absent.
        image_folder: Where the images' ``file_name`` are.
        skip_broken: Leave out missing and broken images and annotations; each is logged, and
            ``n_skipped`` counts them.  Otherwise the first is an error.
        only_annotated: Leave out images without any object to learn from (crowds do not count), as
            Detectron does for training.  For evaluation all images must take part: give ``False``.
        keypoints: Read COCO's 17 keypoints of each object (none of them visible where the file has none).
            Then objects need no outline, and there is something to learn from only where a keypoint is visible.
        class_names: Take only these classes, in this order.  By default all, sorted by their number.

    Attributes:
        class_names (tuple): Names of the labels.
        category_ids (tuple): Their numbers in the file.
        image_ids (tuple): The file's number of each image, in its order.
        n_skipped (int): Broken images and annotations that were left out.

    Raises:
        AnnotationFileError: The file is missing, no JSON, or not COCO's format; an annotation belongs to
            no image or no category, or is not well formed; no image is left; there is no class of a name;
            keypoints are wanted, and no class has COCO's.
        ImageFileError: An image is missing, broken, or of another size than the file says.
    """

    def __init__(
        self,
        annotation_file: str | os.PathLike,
        image_folder: str | os.PathLike,
        *,
        skip_broken: bool = False,
        only_annotated: bool = True,
        keypoints: bool = False,
        class_names: Sequence[str] | None = None,
    ):
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.n_skipped = 0
        self._skip_broken = skip_broken
        self._keypoints = keypoints
        content = read_coco_json(self.annotation_file)
        self.category_ids, self.class_names = _choose_categories(self.annotation_file, content, class_names)
        if keypoints:
            _check_keypoint_names(self.annotation_file, content['categories'])
        images = self._scan(content['images'])
        objects = self._read_objects(content, images)
        if only_annotated:
            images = [image for image in images if any(map(_is_trainable, objects[image.image_id]))]
        if not images:
            what = (
                ' with an object to learn from (with a class, a box and a '
                f'{"visible keypoint" if keypoints else "mask"}, and no crowd)'
            )
            raise AnnotationFileError(self.annotation_file, 'no image' + only_annotated * what)
        self._images = tuple(images)
        self.image_ids = tuple(image.image_id for image in images)
        self._objects = _PackedAnnotations.pack([objects[image_id] for image_id in self.image_ids])

    def __len__(self) -> int:
        return len(self._images)

    def image_size(self, i: int) -> tuple[int, int]:
        """Return the height and width of image ``i``."""
        return self._images[i].size

    def image_name(self, i: int) -> str:
        """Return the file name of image ``i``."""
        return str(self.image_folder / self._images[i].file_name)

    def get_example(self, i: int) -> Example:
        """Return an :class:`~mask_rcnn.datasets.example.Example`; ``dataset[i]`` calls it.

        Raises:
            ImageFileError: The image cannot be read or has changed its size.
        """
        name = self.image_name(i)
        image = read_image(name)
        error = _size_error(name, image.shape[1:], self.image_size(i))
        if error:
            raise error
        return Example(image=image, annotations=self._objects.annotations_of(i), name=name, image_id=self.image_ids[i])

    def ground_truth(self) -> dict:
        """Return what :class:`mask_rcnn.evaluation.COCOEvaluator` compares with: the file's content.

        The objects are as the file has them, not cleaned; only those are left out that cannot be compared:
        without an outline, unless keypoints are wanted.  Then each has its keypoints, zeros where they are not
        visible, and ``num_keypoints`` counts the visible ones.  The file is read again: during a training the
        memory that its Python objects take is better used otherwise.
        """
        content = read_coco_json(self.annotation_file)
        sizes = {image.image_id: image.size for image in self._images}
        images = [
            {'height': sizes[image['id']][0], 'width': sizes[image['id']][1], **image}
            for image in content['images']
            if image['id'] in sizes
        ]
        annotations = [
            truth
            for annotation, problem in _checked_annotations(content)
            if problem is None
            and annotation['image_id'] in sizes
            and (truth := self._as_ground_truth(annotation, sizes[annotation['image_id']])) is not None
        ]
        if len({annotation.get('id') for annotation in annotations} - {None}) < len(annotations):
            annotations = [{**annotation, 'id': i} for i, annotation in enumerate(annotations, 1)]
        return {'images': images, 'annotations': annotations, 'categories': content['categories']}

    def _as_ground_truth(self, annotation: dict, size: tuple[int, int]) -> dict | None:
        """Return an annotation with all that pycocotools looks at; ``None`` if it cannot be compared."""
        truth = {key: value for key, value in _with_defaults(annotation).items() if key != 'segmentation'}
        try:
            if _read_segmentation(annotation, size):
                truth['segmentation'] = _drop_short_polygons(annotation['segmentation'])
            elif not self._keypoints:
                return None
            if self._keypoints:
                points = _read_keypoints(annotation)
                truth |= {
                    'keypoints': points[:, [1, 0, 2]].ravel().tolist(),
                    'num_keypoints': int(np.count_nonzero(points[:, 2])),
                }
        except _BadAnnotation:
            return None
        return truth

    def _scan(self, records: list[dict]) -> list[_Image]:
        """Look for every image and at its header."""
        names = [os.path.join(self.image_folder, record['file_name']) for record in records]
        images, errors = [], []
        for name, record, size in zip(names, records, read_image_sizes(names)):
            if not isinstance(size, ImageFileError):
                expected = record.get('height', size[0]), record.get('width', size[1])
                size = _size_error(name, size, expected) or size
            if isinstance(size, ImageFileError):
                errors.append(size)
            else:
                images.append(_Image(record['id'], record['file_name'], size))
        if errors and not self._skip_broken:
            others = f' ({len(errors) - 1} more images cannot be used either)' if len(errors) > 1 else ''
            raise ImageFileError(errors[0].path, errors[0].reason + others) from errors[0]
        for error in errors:
            _logger.warning('skipped %s', error)
        self.n_skipped += len(errors)
        return images

    def _read_objects(self, content: dict, images: list[_Image]) -> dict[int | str, list[tuple]]:
        """Return, for each image, its cleaned objects."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        sizes = {image.image_id: image.size for image in images}
        objects, n_empty = defaultdict(list), 0
        for annotation, problem in _checked_annotations(content):
            if problem is not None:
                self._report(problem)
                continue
            label, size = label_of.get(annotation['category_id']), sizes.get(annotation['image_id'])
            if label is None or size is None:  # another class, or an image that was skipped
                continue
            try:
                cleaned = _clean_object(annotation, label, size, keypoints=self._keypoints)
            except _BadAnnotation as error:
                self._report(str(error))
                continue
            if cleaned is None:
                n_empty += 1
            else:
                objects[annotation['image_id']].append(cleaned)
        if n_empty:
            _logger.info('%s: left out %d objects without area or outline', self.annotation_file, n_empty)
        return objects

    def _report(self, problem: str) -> None:
        error = AnnotationFileError(self.annotation_file, problem)
        if not self._skip_broken:
            raise error
        _logger.warning('skipped %s', error)
        self.n_skipped += 1


def read_coco_json(path: str | os.PathLike) -> dict:
    """Read an annotation file and check that its three lists are there and well formed.

    Args:
        path: The JSON file.

    Returns:
        dict: With the lists ``images``, ``annotations`` and ``categories``; each image has an ``id`` and
        a ``file_name``, each category an ``id`` and a ``name``, all ids differ.

    Raises:
        AnnotationFileError: It cannot be read or is not in COCO's format.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except OSError as error:
        raise AnnotationFileError(path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:  # broken JSON or UTF-8, or too deep
        raise AnnotationFileError(path, f'not a JSON file ({error})') from error
    for key in ('images', 'annotations', 'categories'):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise AnnotationFileError(path, f"not COCO's format: there is no list {key!r}")
    for key, text in (('images', 'file_name'), ('categories', 'name')):
        _check_entries(path, key, content[key], text)
    return content


def _check_entries(path: str | os.PathLike, key: str, entries: list[dict], text: str) -> None:
    for entry in entries:
        if not _is_id(entry.get('id')) or not isinstance(entry.get(text), str):
            raise AnnotationFileError(path, f"not COCO's format: an entry of {key!r} has no 'id' or no {text!r}")
        if not all(_is_number(entry.get(side, 0)) for side in ('height', 'width')):
            raise AnnotationFileError(path, f'the size of image {entry["id"]} is not a number')
    if len({isinstance(entry['id'], str) for entry in entries}) > 1:  # nobody could sort them
        raise AnnotationFileError(path, f'the ids of {key!r} are partly numbers, partly texts')
    if len({entry['id'] for entry in entries}) < len(entries):
        raise AnnotationFileError(path, f"two entries of {key!r} have the same 'id'")


def _choose_categories(path: Path, content: dict, names: Sequence[str] | None):
    """Return the numbers and names of the classes in the order of their labels."""
    categories = sorted(content['categories'], key=lambda category: category['id'])
    if names is not None:
        by_name = {category['name']: category for category in categories}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise AnnotationFileError(path, f'there is no class {missing[0]!r}')
        categories = [by_name[name] for name in names]
    if not categories:
        raise AnnotationFileError(path, 'there is no category')
    return (tuple(category['id'] for category in categories), tuple(category['name'] for category in categories))


def _check_keypoint_names(path: Path, categories: list[dict]) -> None:
    names = [category['keypoints'] for category in categories if 'keypoints' in category]
    if not names:
        raise AnnotationFileError(path, "no category has 'keypoints' (COCO's are in person_keypoints_*.json)")
    if any(own != list(COCO_KEYPOINT_NAMES) for own in names):
        raise AnnotationFileError(path, "the keypoints of a category are not COCO's 17")


@dataclass(frozen=True)
class _Object:
    """A cleaned annotation; ``keypoints`` is ``(17, 3)`` or ``(0, 3)``, float64 as in the file."""

    box: np.ndarray
    label: int
    crowd: bool
    segmentation: Segmentation
    keypoints: np.ndarray


def _is_trainable(obj: _Object) -> bool:
    """Whether an image is worth looking at in a training because of an object."""
    keypoints = obj.keypoints
    return not obj.crowd and (len(keypoints) == 0 or bool((keypoints[:, 2] > 0).any()))


@dataclass(frozen=True)
class _Image:
    image_id: int | str
    file_name: str
    size: tuple[int, int]


def _size_error(name: str, size: tuple[int, int], expected: tuple[int, int]) -> ImageFileError | None:
    if tuple(size) == tuple(expected):
        return None
    return ImageFileError(
        name,
        f'the image has {size[0]} x {size[1]} pixels (height x width), but the '
        f'annotation file says {expected[0]} x {expected[1]}',
    )


class _BadAnnotation(Exception):
    """An annotation that is not well formed; the message says why."""


def _checked_annotations(content: dict) -> Iterator[tuple[dict, str | None]]:
    """Yield each annotation and what is wrong with what it refers to or its box, or ``None``."""
    images = {image['id'] for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for i, annotation in enumerate(content['annotations']):
        name = f'annotation {annotation.get("id", f"number {i}")}'
        box = annotation.get('bbox')
        problem = None
        if not _is_id(annotation.get('image_id')) or annotation['image_id'] not in images:
            problem = f'{name} belongs to the image {annotation.get("image_id")!r}, which is not in the file'
        elif not _is_id(annotation.get('category_id')) or annotation['category_id'] not in categories:
            problem = f'{name} has the category {annotation.get("category_id")!r}, which is not in the file'
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            problem = f"the 'bbox' of {name} is not a list of four numbers"
        elif not _is_number(annotation.get('area', 0)):
            problem = f"the 'area' of {name} is not a number"
        elif annotation.get('iscrowd', 0) not in (0, 1):
            problem = f"the 'iscrowd' of {name} is neither 0 nor 1"
        yield annotation, problem


def _is_id(value) -> bool:
    return isinstance(value, (int, str))


def _is_number(value) -> bool:
    """Finite, and no integer beyond all floats."""
    return isinstance(value, (int, float)) and abs(value) < 1e30


def _with_defaults(annotation: dict) -> dict:
    """Add what pycocotools' evaluation needs and what data sets of one's own often leave out."""
    _, _, width, height = annotation['bbox']
    return {'iscrowd': 0, 'area': width * height, **annotation}


def _clean_object(annotation: dict, label: int, size: tuple[int, int], *, keypoints: bool) -> _Object | None:
    """Return an object; ``None`` for what Detectron leaves out.

    ``detectron/datasets/json_dataset.py`` ``_add_gt_annotations``.  An object none of whose polygons has
    three points goes as well, unless it is its keypoints that are wanted; Detectron would stop at it.
    """
    annotation = _with_defaults(annotation)
    box = _clean_box(annotation['bbox'], size)
    if annotation['area'] <= 0 or annotation.get('ignore') == 1 or not (box[2:] > box[:2]).all():
        return None
    segmentation = _read_segmentation(annotation, size)
    if not segmentation and not keypoints:
        return None
    points = _read_keypoints(annotation) if keypoints else np.zeros((0, 3))
    return _Object(box, label, bool(annotation['iscrowd']), segmentation, points)


def _read_keypoints(annotation: dict) -> np.ndarray:
    """Return ``(17, 3)`` float64 ``(y, x, visibility)``; zeros where an annotation has no keypoints."""
    count = len(COCO_KEYPOINT_NAMES)
    numbers = annotation.get('keypoints')
    if numbers is None:
        return np.zeros((count, 3))
    if not isinstance(numbers, list) or len(numbers) != 3 * count or not all(map(_is_number, numbers)):
        name = annotation.get('id', 'without id')
        raise _BadAnnotation(f"the 'keypoints' of annotation {name} are not a list of {3 * count} numbers")
    points = np.array(numbers, np.float64).reshape(count, 3)[:, [1, 0, 2]]
    points[points[:, 2] <= 0] = 0
    return points


def _clean_box(bbox: list[float], size: tuple[int, int]) -> np.ndarray:
    """From COCO's ``x, y, width, height`` to inclusive corners in the image."""
    x, y, width, height = bbox
    corners = np.array([y, x, y + max(0.0, height - 1.0), x + max(0.0, width - 1.0)])
    limits = np.array([*size, *size]) - 1
    return np.clip(corners, 0, limits).astype(np.float32)


def _read_segmentation(annotation: dict, size: tuple[int, int]) -> Segmentation:
    """Return polygons, none where none has three points, or compressed run lengths."""
    segmentation = annotation.get('segmentation') or []
    name = f"the 'segmentation' of annotation {annotation.get('id', 'without id')}"
    if isinstance(segmentation, dict):
        return _read_run_lengths(segmentation, size, name)
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise _BadAnnotation(f'{name} is neither a list of polygons nor run lengths')
    try:
        polygons = tuple(np.array(polygon, np.float64) for polygon in _drop_short_polygons(segmentation))
    except (TypeError, ValueError, OverflowError) as error:
        raise _BadAnnotation(f'{name} has a polygon that is not a list of numbers') from error
    for polygon in polygons:
        if polygon.ndim != 1 or polygon.size % 2 or not np.isfinite(polygon).all():
            raise _BadAnnotation(f'{name} has a polygon that is not a list x, y, x, y, ...')
    return polygons


def _drop_short_polygons(segmentation: list | dict) -> list | dict:
    """Leave out polygons that pycocotools cannot read, or takes for boxes."""
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= _MIN_POLYGON_NUMBERS]


def _read_run_lengths(rle: dict, size: tuple[int, int], name: str) -> dict:
    if rle.get('size') != list(size):
        raise _BadAnnotation(f'{name} is for an image of {rle.get("size")} pixels, not {list(size)}')
    try:
        counts = rle['counts']
        runs = np.array(counts if isinstance(counts, list) else _decode_counts(counts))
        if not np.issubdtype(runs.dtype, np.integer) or runs.min() < 0 or runs.sum() != size[0] * size[1]:
            raise ValueError('they do not add up to the image')
        if isinstance(counts, list):
            counts = coco_mask.frPyObjects(rle, *size)['counts']
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _BadAnnotation(f'{name} has run lengths that are not well formed ({error})') from error
    return {'size': list(size), 'counts': counts.encode('ascii') if isinstance(counts, str) else counts}


def _decode_counts(counts: str | bytes) -> np.ndarray:
    """Return the run lengths in COCO's compressed counts (``rleFrString`` of COCO's ``maskApi.c``).

    Each number is a few characters of 5 bits, low ones first; bit 5 says that more follow, bit 4 of the
    last one is the sign.  From the fourth on, numbers are differences from the second to last one.  They
    are decoded here to be checked: pycocotools reads beyond the end of counts that are too short.
    """
    characters = np.frombuffer(counts.encode('ascii') if isinstance(counts, str) else counts, np.uint8)
    values = characters.astype(np.int64) - 48
    ends = np.flatnonzero(values & 0x20 == 0)
    if not values.size or values.min() < 0 or values.max() > 63 or ends[-1:] != values.size - 1:
        raise ValueError('they are cut off or have unknown characters')
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError('a number is too large')
    shifts = 5 * (np.arange(values.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((values & 0x1F) << shifts, starts)
    numbers -= (values[ends] & 0x10 != 0) * (1 << 5 * lengths)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


@dataclass(frozen=True)
class _PackedAnnotations:
    """The objects of all images in flat arrays; ``*_start[i]:*_start[i + 1]`` are the parts of ``i``.

    Python lists of a million polygons would take gigabytes and minutes to hand to worker processes.

    Args:
        start: ``(N + 1,)`` int64, objects of each image.
        boxes: ``(M, 4)`` float32.
        labels: ``(M,)`` int32.
        crowd: ``(M,)`` bool.
        polygon_start: ``(M + 1,)`` int64, polygons of each object.
        number_start: ``(P + 1,)`` int64, coordinates of each polygon.
        numbers: All coordinates, float64.
        run_lengths: The objects that have run lengths instead of polygons.
        keypoints: ``(M, 17, 3)`` float32, or ``(M, 0, 3)`` where there are none.
    """

    start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    polygon_start: np.ndarray
    number_start: np.ndarray
    numbers: np.ndarray
    run_lengths: dict[int, dict]
    keypoints: np.ndarray

    @classmethod
    def pack(cls, images: list[list[_Object]]) -> _PackedAnnotations:
        objects = [obj for image in images for obj in image]
        segmentations = [obj.segmentation for obj in objects]
        shapes = [() if isinstance(shape, dict) else shape for shape in segmentations]
        polygons = [polygon for shape in shapes for polygon in shape]
        return cls(
            start=_starts(images),
            boxes=np.array([obj.box for obj in objects], np.float32).reshape(-1, 4),
            labels=np.array([obj.label for obj in objects], np.int32),
            crowd=np.array([obj.crowd for obj in objects], bool),
            polygon_start=_starts(shapes),
            number_start=_starts(polygons),
            numbers=np.concatenate(polygons) if polygons else np.zeros(0),
            run_lengths={i: shape for i, shape in enumerate(segmentations) if isinstance(shape, dict)},
            keypoints=np.array([obj.keypoints for obj in objects], np.float32).reshape(len(objects), -1, 3),
        )

    def annotations_of(self, i: int) -> Annotations:
        part = slice(*self.start[i : i + 2])
        return Annotations(
            boxes=self.boxes[part].copy(),
            labels=self.labels[part].copy(),
            crowd=self.crowd[part].copy(),
            segmentations=tuple(map(self._segmentation, range(part.start, part.stop))),
            keypoints=self.keypoints[part].copy() if self.keypoints.shape[1] else None,
        )

    def _segmentation(self, i: int) -> Segmentation:
        if i in self.run_lengths:
            return dict(self.run_lengths[i])
        starts = self.number_start[self.polygon_start[i] : self.polygon_start[i + 1] + 1]
        return tuple(self.numbers[a:b].copy() for a, b in itertools.pairwise(starts))


def _starts(parts: Sequence[Sequence]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
