"""Datasets in COCO's format: one JSON file with all annotations, and a folder of images."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import chainer

from mask_rcnn.datasets.coco_annotations import (
    AnnotationError,
    AnnotationFileError,
    COCOObject,
    check_annotations,
    check_keypoint_names,
    clean_object,
    read_coco_json,
    select_categories,
    to_ground_truth,
)
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.packed_annotations import PackedAnnotations
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_sizes

_logger = logging.getLogger(__name__)


class COCODataset(chainer.dataset.DatasetMixin):
    """Images and objects of a COCO annotation file.

    The constructor reads the header of every image file, so that a run does not fail on a missing file after hours.
    Objects are stored in a few flat arrays, which are fast to send to worker processes.

    Args:
        annotation_file: JSON file with ``images``, ``annotations`` and ``categories``.  Segmentations are polygons or
            run lengths (COCO's compressed or uncompressed form).  ``width`` and ``height`` of images, and ``area``,
            ``iscrowd`` and ``id`` of annotations are optional.
        image_folder: Folder to which each image's ``file_name`` is relative.
        skip_broken: Whether to skip missing or broken images and annotations, with a warning in the log.  Otherwise,
            the first one raises an error.
        only_annotated: Whether to drop images without an object for training (crowds do not count), as Detectron does
            for training.  Evaluation needs all images: ``False``.
        keypoints: Whether to read COCO's 17 keypoints of each object (none labelled if an annotation has no keypoints).
            Objects then need no segmentation, and only objects with a labelled keypoint are used for training.
        class_names: Names of the selected classes, in the order of their labels.  By default, all classes sorted by
            category id.

    Attributes:
        class_names (tuple): Names of the labels.
        category_ids (tuple): Category ids of the labels in the file.
        image_ids (tuple): Ids of the images in the file, in the order of the dataset.
        n_skipped (int): Number of skipped images and annotations.

    Raises:
        AnnotationFileError: The file is missing, is not JSON, or is not in COCO's format; an annotation is malformed or
            refers to an unknown image or category; no image remains; a selected class is missing; or ``keypoints`` is
            set, but no class has COCO's keypoints.
        ImageFileError: An image is missing, is broken, or does not have the size that the file declares.
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
        apply_orientation: bool = True,
    ):
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.n_skipped = 0
        self._skip_broken = skip_broken
        self._keypoints = keypoints
        self._apply_orientation = apply_orientation
        content = read_coco_json(self.annotation_file)
        categories = content['categories']
        self.category_ids, self.class_names = select_categories(self.annotation_file, categories, class_names)
        if keypoints:
            check_keypoint_names(self.annotation_file, categories)
        images = self._scan_images(content['images'])
        objects = self._read_objects(content, images)
        if only_annotated:
            images = [image for image in images if any(obj.is_trainable for obj in objects[image.image_id])]
        if not images:
            part = 'labelled keypoint' if keypoints else 'mask'
            reason = f'no image has an object for training (with a class, a box and a {part}, and not a crowd)'
            raise AnnotationFileError(self.annotation_file, reason if only_annotated else 'no images')
        self._images = tuple(images)
        self.image_ids = tuple(image.image_id for image in images)
        self._objects = PackedAnnotations.pack([objects[image_id] for image_id in self.image_ids])

    def __len__(self) -> int:
        return len(self._images)

    def image_size(self, i: int) -> tuple[int, int]:
        """Return the height and width of image ``i``."""
        return self._images[i].size

    def image_name(self, i: int) -> str:
        """Return the path of image ``i``."""
        return str(self.image_folder / self._images[i].file_name)

    def get_annotations(self, i: int) -> Annotations:
        """Return the annotations of image ``i`` without reading the image."""
        return self._objects.get_annotations(i)

    def get_example(self, i: int) -> Example:
        """Return an :class:`~mask_rcnn.datasets.example.Example`; ``dataset[i]`` calls it.

        Raises:
            ImageFileError: The image cannot be read, or its size has changed.
        """
        name = self.image_name(i)
        image = read_image(name, apply_orientation=self._apply_orientation)
        error = _size_error(name, (image.shape[1], image.shape[2]), self.image_size(i))
        if error:
            raise error
        return Example(image=image, annotations=self.get_annotations(i), name=name, image_id=self.image_ids[i])

    def ground_truth(self) -> dict:
        """Return the content of the annotation file for :class:`mask_rcnn.evaluation.COCOEvaluator`.

        Annotations are not cleaned.  Malformed annotations are dropped.  Annotations without a segmentation are also
        dropped, unless keypoints are read: then every annotation gets keypoints and ``num_keypoints``.  The file is
        read again, because its Python objects would occupy memory during training.
        """
        content = read_coco_json(self.annotation_file)
        sizes = {image.image_id: image.size for image in self._images}
        images = [
            {'height': sizes[image['id']][0], 'width': sizes[image['id']][1], **image}
            for image in content['images']
            if image['id'] in sizes
        ]
        annotations = []
        for annotation, problem in check_annotations(content):
            if problem is None and annotation['image_id'] in sizes:
                truth = to_ground_truth(annotation, sizes[annotation['image_id']], keypoints=self._keypoints)
                if truth is not None:
                    annotations.append(truth)
        if len({annotation.get('id') for annotation in annotations} - {None}) < len(annotations):
            annotations = [{**annotation, 'id': i} for i, annotation in enumerate(annotations, 1)]
        return {'images': images, 'annotations': annotations, 'categories': content['categories']}

    def _scan_images(self, records: list[dict]) -> list[_Image]:
        """Return the images whose file exists and has the declared size."""
        names = [os.path.join(self.image_folder, record['file_name']) for record in records]
        images, errors = [], []
        sizes = read_image_sizes(names, apply_orientation=self._apply_orientation)
        for name, record, size in zip(names, records, sizes, strict=True):
            if isinstance(size, ImageFileError):
                errors.append(size)
            elif error := _size_error(name, size, (record.get('height', size[0]), record.get('width', size[1]))):
                errors.append(error)
            else:
                images.append(_Image(record['id'], record['file_name'], size))
        if errors and not self._skip_broken:
            total = f' ({len(errors)} unusable images in total)' if len(errors) > 1 else ''
            raise ImageFileError(errors[0].path, errors[0].reason + total) from errors[0]
        for error in errors:
            self._skip(error)
        return images

    def _read_objects(self, content: dict, images: list[_Image]) -> dict[int | str, list[COCOObject]]:
        """Return the cleaned objects of each image by its id."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        sizes = {image.image_id: image.size for image in images}
        objects: dict[int | str, list[COCOObject]] = defaultdict(list)
        n_dropped = 0
        for annotation, problem in check_annotations(content):
            if problem is not None:
                self._reject(problem)
                continue
            label, size = label_of.get(annotation['category_id']), sizes.get(annotation['image_id'])
            if label is None or size is None:  # a class that is not selected, or an image that was skipped
                continue
            try:
                cleaned = clean_object(annotation, label, size, keypoints=self._keypoints)
            except AnnotationError as error:
                self._reject(str(error))
                continue
            if cleaned is None:
                n_dropped += 1
            else:
                objects[annotation['image_id']].append(cleaned)
        if n_dropped:
            _logger.info('%s: dropped %d objects without area or segmentation', self.annotation_file, n_dropped)
        return objects

    def _reject(self, problem: str) -> None:
        """Raise an error for a malformed annotation, or skip the annotation."""
        error = AnnotationFileError(self.annotation_file, problem)
        if not self._skip_broken:
            raise error
        self._skip(error)

    def _skip(self, error: ValueError) -> None:
        _logger.warning('skipped %s', error)
        self.n_skipped += 1


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
        f'the image has {size[0]} x {size[1]} pixels (height x width), but the annotation file declares '
        f'{expected[0]} x {expected[1]}',
    )
