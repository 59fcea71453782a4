"""Datasets that a user defines as a class with three methods, for :func:`mask_rcnn.train`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import chainer
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.annotation_records import AnnotationRecord, read_records
from mask_rcnn.datasets.annotation_values import AnnotationError, shorten
from mask_rcnn.datasets.coco_annotations import COCOObject, clean_object
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.packed_annotations import PackedAnnotations
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import load_image, read_image_size, to_chw

_logger = logging.getLogger(__name__)


class ObjectData(Protocol):
    """The images and objects of a user: the class that :class:`UserDataset` adapts.

    Attributes:
        class_names: Names of the classes; label 0 is the first one.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """Return the names; a tuple or list as an attribute of the class or of the object will do."""

    def __len__(self) -> int:
        """Return the number of images."""

    def image(self, i: int) -> str | os.PathLike | np.ndarray:
        """Return image ``i``: a file name, ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32 from 0 to 255; RGB."""

    def objects(self, i: int) -> tuple[np.ndarray | Sequence, Sequence[int] | np.ndarray]:
        """Return the outlines and the labels of the objects in image ``i``.

        The outlines are masks, ``(G, H, W)`` bool, or a list of ``G`` outlines: each a mask ``(H, W)`` bool, or in
        COCO's format a list of polygons ``[x, y, x, y, ...]`` or run lengths.  Polygons may be arrays, also ``(N, 2)``.
        The labels are ``G`` integers.
        """


class UserDataset(chainer.dataset.DatasetMixin):
    """The examples and the ground truth of a :class:`ObjectData`.

    The constructor calls ``image`` and ``objects`` once for each image and checks the results.  Masks are stored as run
    lengths.

    Args:
        data: The user's object.
        only_annotated: Whether to drop images without an object, as for training.  Evaluation needs all images.
        masks: Whether objects need an outline with an area.
        apply_orientation: See :func:`mask_rcnn.preprocessing.image_io.read_image`.

    Attributes:
        class_names (tuple): Names of the labels.
        category_ids (tuple): 1, 2, ...
        image_ids (tuple): The index of each image in ``data``, plus 1.
        omissions (mask_rcnn.io.omissions.Omissions): The objects that are left out.

    Raises:
        ValueError: An image, an outline or a label has a wrong shape, type or value; the message names its index.
        mask_rcnn.preprocessing.image_io.ImageFileError: An image file cannot be read.
    """

    def __init__(
        self, data: ObjectData, *, only_annotated: bool = True, masks: bool = True, apply_orientation: bool = True
    ):
        self._data, self._masks, self._apply_orientation = data, masks, apply_orientation
        self.class_names = _check_class_names(data.class_names)
        self.category_ids = tuple(range(1, len(self.class_names) + 1))
        self.omissions = Omissions('objects')
        self._has_range_of_255 = False
        images: list[tuple[int, tuple[int, int], list[COCOObject]]] = []
        for i in range(len(data)):
            size = self._read_size(i)
            objects = self._clean_objects(i, size)
            if objects or not only_annotated:
                images.append((i, size, objects))
        if len(data) and not self._has_range_of_255:
            raise ValueError('the values of all images are at most 1, but float32 images have values from 0 to 255')
        if not images:
            reason = 'the dataset has no image' + ' with an object' * only_annotated
            raise ValueError(f'{reason}; {self.omissions}' if self.omissions else reason)
        self._indices, self._sizes, all_objects = zip(*images, strict=True)
        self.image_ids = tuple(i + 1 for i in self._indices)
        self._objects = PackedAnnotations.pack(all_objects, n_keypoints=0)
        if self.omissions:
            _logger.warning('%s', self.omissions)

    def __len__(self) -> int:
        return len(self._indices)

    def image_size(self, i: int) -> tuple[int, int]:
        """Return the height and width of image ``i``."""
        return self._sizes[i]

    def get_annotations(self, i: int) -> Annotations:
        """Return the annotations of image ``i`` without reading the image."""
        return self._objects.get_annotations(i)

    def get_example(self, i: int) -> Example:
        """Return an :class:`~mask_rcnn.datasets.example.Example`; ``dataset[i]`` calls it.

        Raises:
            ValueError: The image has another size than before.
            mask_rcnn.preprocessing.image_io.ImageFileError: The image file cannot be read.
        """
        index = self._indices[i]
        source = self._data.image(index)
        image = to_chw(load_image(source, apply_orientation=self._apply_orientation))
        if image.shape[1:] != self._sizes[i]:
            raise ValueError(f'image {index}: the size was {self._sizes[i]}, and is now {image.shape[1:]}')
        name = f'image {index}' if isinstance(source, np.ndarray) else os.fspath(source)
        return Example(image=image, annotations=self.get_annotations(i), name=name, image_id=self.image_ids[i])

    def ground_truth(self) -> dict:
        """Return the images and objects in COCO's format for :class:`mask_rcnn.evaluation.COCOEvaluator`."""
        annotations: list[dict] = []
        for index, size in zip(self._indices, self._sizes, strict=True):
            for record in self._records(index, size):
                if record.bbox is not None:
                    annotations.append(record.ground_truth(len(annotations) + 1, keypoints=False))
        return {
            'images': [
                {'id': image_id, 'height': size[0], 'width': size[1]}
                for image_id, size in zip(self.image_ids, self._sizes, strict=True)
            ],
            'annotations': annotations,
            'categories': [
                {'id': category_id, 'name': name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def _read_size(self, i: int) -> tuple[int, int]:
        image = self._data.image(i)
        if isinstance(image, (str, os.PathLike)):
            self._has_range_of_255 = True
            return read_image_size(image, apply_orientation=self._apply_orientation)
        try:
            pixels = load_image(image)
            height, width = to_chw(pixels).shape[1:]
        except (TypeError, ValueError) as error:
            raise ValueError(f'image {i}: {error}') from error
        # An image may be black, but not all of them.
        self._has_range_of_255 |= pixels.dtype != np.float32 or pixels.max() > 1
        return height, width

    def _clean_objects(self, i: int, size: tuple[int, int]) -> list[COCOObject]:
        """Return the objects of an image for training, as those of a COCO file."""
        objects = []
        for k, record in enumerate(self._records(i, size)):
            label = int(record.category_id) - 1
            cleaned = clean_object(record, label, size, masks=self._masks, keypoints=False)
            if isinstance(cleaned, COCOObject):
                objects.append(cleaned)
            else:
                self.omissions.add(cleaned, f'object {k} of image {i}')
        return objects

    def _records(self, i: int, size: tuple[int, int]) -> Iterator[AnnotationRecord]:
        """Yield the objects of an image as annotations of a COCO file."""
        outlines, labels = self._read_objects(i, size)
        annotations = [
            {'id': k, 'image_id': i + 1, 'category_id': int(label) + 1, 'segmentation': outline}
            for k, (outline, label) in enumerate(zip(outlines, labels, strict=True))
        ]
        for k, record in enumerate(read_records(annotations, {i + 1: size}, self.category_ids, keypoints=False)):
            if isinstance(record, AnnotationError):
                reason = str(record).replace(f'annotation {k}', f'object {k}')
                raise ValueError(f'image {i}: {reason}')
            yield record

    def _read_objects(self, i: int, size: tuple[int, int]) -> tuple[Sequence, np.ndarray]:
        """Return the outlines of an image's objects as polygons or run lengths, and their labels."""
        objects = self._data.objects(i)
        if not isinstance(objects, (tuple, list)) or len(objects) != 2:
            raise ValueError(f'image {i}: objects() must return outlines and labels, not {shorten(objects)}')
        outlines, labels = objects
        labels = self._check_labels(i, labels)
        if isinstance(outlines, np.ndarray):
            outlines = _encode_masks(i, outlines, size)
        elif not isinstance(outlines, (list, tuple)):
            raise ValueError(f'image {i}: outlines must be an array of masks or a list, not {shorten(outlines)}')
        if len(outlines) != len(labels):
            raise ValueError(
                f'image {i}: objects() returned {counted(len(outlines), "outline")}, but '
                f'{counted(len(labels), "label")}'
            )
        return [_to_outline(i, outline, size) for outline in outlines], labels

    def _check_labels(self, i: int, labels: Any) -> np.ndarray:
        try:
            array, n_classes = np.asarray(labels), len(self.class_names)
        except ValueError as error:  # lists of different lengths
            raise ValueError(f'image {i}: labels must be a list of integers, not {shorten(labels)}') from error
        if array.ndim != 1 or (array.size and array.dtype.kind not in 'iu'):
            raise ValueError(f'image {i}: labels must be a list of integers, not {array.dtype} of shape {array.shape}')
        for label in array.tolist():
            if not 0 <= label < n_classes:
                raise ValueError(
                    f'image {i}: label {label} is not from 0 to {n_classes - 1} (0 is the class '
                    f'{self.class_names[0]!r}, not the background)'
                )
        return array


def _check_class_names(names: Any) -> tuple[str, ...]:
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'class_names must be one or more names, not {shorten(names)}')
    if len(set(names)) < len(names):
        raise ValueError(f'class_names contains {next(n for n in names if list(names).count(n) > 1)!r} several times')
    return tuple(names)


def _encode_masks(i: int, masks: np.ndarray, size: tuple[int, int]) -> list[dict]:
    """Return the run lengths of masks, after a check of their shape and type."""
    if masks.shape == (0,):  # numpy.array([]) of an image without objects
        return []
    if masks.shape[1:] != size or masks.ndim != 3:
        is_last = masks.ndim == 3 and masks.shape[:2] == size
        advice = '; numpy.moveaxis(masks, -1, 0) puts the objects first' if is_last else ''
        raise ValueError(f'image {i}: masks must have the shape (G, {size[0]}, {size[1]}), not {masks.shape}{advice}')
    if masks.dtype != bool:
        raise ValueError(f'image {i}: masks must be bool, not {masks.dtype}; convert them with masks.astype(bool)')
    if not len(masks):
        return []
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def _to_outline(i: int, outline: Any, size: tuple[int, int]) -> Any:
    """Return an outline in COCO's format of plain numbers: masks become run lengths, and arrays become lists."""
    if isinstance(outline, np.ndarray):
        is_polygon = outline.ndim == 1 or outline.shape[1:] == (2,)
        return [_to_plain(outline)] if is_polygon else _encode_masks(i, outline[None], size)[0]
    return [_to_plain(polygon) for polygon in outline] if isinstance(outline, (list, tuple)) else outline


def _to_plain(polygon: Any) -> Any:
    """Return the numbers of a polygon, or a number of one, without the types of NumPy."""
    if isinstance(polygon, (list, tuple)):
        return [number.item() if isinstance(number, np.generic) else number for number in polygon]
    if isinstance(polygon, np.ndarray):
        return polygon.ravel().tolist()
    return polygon.item() if isinstance(polygon, np.generic) else polygon
