"""Datasets in COCO's format: one JSON file with all annotations, and a folder of images."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import chainer

from mask_rcnn.datasets.annotation_records import AnnotationRecord, read_records
from mask_rcnn.datasets.annotation_values import AnnotationError
from mask_rcnn.datasets.coco_annotations import (
    COCOObject,
    check_keypoint_names,
    clean_object,
    explain_doubt,
    select_categories,
)
from mask_rcnn.datasets.coco_json import AnnotationFileError, COCOFile, ImageRecord, read_coco_json
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.image_files import explain_size, find_image_file
from mask_rcnn.datasets.packed_annotations import PackedAnnotations
from mask_rcnn.io.console import escape
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.io.progress import Progress, no_progress
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_sizes

_logger = logging.getLogger(__name__)

#: Crowds are reported as left out if they are more than this fraction of the objects.  They are 1 % of COCO's objects;
#: labelling tools mark every object that was painted with a brush.
_MAX_CROWD_FRACTION = 0.1


class COCODataset(chainer.dataset.DatasetMixin):
    """Images and objects of a COCO annotation file.

    The constructor reads the header of every image file, so that a run does not fail on a missing file after hours.
    Objects are stored in a few flat arrays, which are fast to send to worker processes.

    Ids, numbers and flags may be written as text (``"12"``) or with a fractional part of zero (``12.0``).  Boxes and
    areas that are missing or empty are computed from the outlines.

    Args:
        annotation_file: JSON file with ``images``, ``annotations`` and ``categories``.  Segmentations are polygons or
            run lengths (COCO's compressed or uncompressed form).  ``width`` and ``height`` of images, and ``bbox``,
            ``area``, ``iscrowd`` and ``id`` of annotations are optional.
        image_folder: Folder to which each image's ``file_name`` is relative.
        skip_broken: Whether to skip missing or broken images and annotations.  Otherwise, the first one raises an
            error.
        only_annotated: Whether to drop images without an object for training (crowds do not count), as Detectron does
            for training.  Evaluation needs all images: ``False``.
        keypoints: Whether to read COCO's 17 keypoints of each object (none labelled if an annotation has no keypoints).
            Only objects with a labelled keypoint are used for training.
        class_names: Names of the selected classes, in the order of their labels.  By default, all classes sorted by
            category id, without a root class of a Roboflow export that has no objects.
        apply_orientation: See :func:`mask_rcnn.preprocessing.image_io.read_image`.
        masks: Whether objects need an outline, except with ``keypoints``.  Networks without a mask head are trained
            with ``False``.
        kept_classes: Names of root classes that are not left out, because a model already has them.
        log_warnings: Whether to log :attr:`warnings`.
        progress: Shows the progress of reading the annotations.

    Attributes:
        class_names (tuple): Names of the labels.
        category_ids (tuple): Category ids of the labels in the file.
        image_ids (tuple): Ids of the images in the file, in the order of the dataset.
        omissions (mask_rcnn.io.omissions.Omissions): The parts of the data that are left out.
        doubts (mask_rcnn.io.omissions.Omissions): The objects that are used, but are probably annotated wrongly.
        n_skipped (int): Number of skipped images and annotations.
        n_without_objects (int): Number of images that ``only_annotated`` drops.
        n_objects (int): Number of objects in the file that belong to the classes and images of the dataset.
        n_without_outline (int): Number of those that have a box but no outline: their masks are not evaluated.

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
        masks: bool = True,
        kept_classes: Sequence[str] = (),
        log_warnings: bool = True,
        progress: Progress = no_progress,
    ):
        self.annotation_file = Path(annotation_file)
        self.image_folder = Path(image_folder)
        self.omissions = Omissions('items')
        self.doubts = Omissions('doubtful objects', action='kept')
        self.n_skipped = self.n_objects = self.n_without_outline = 0
        self._skip_broken = skip_broken
        self._keypoints = keypoints
        self._masks = masks and not keypoints
        self._only_annotated = only_annotated
        self._apply_orientation = apply_orientation
        content = read_coco_json(self.annotation_file, needs_annotations=only_annotated)
        categories = select_categories(self.annotation_file, content.categories, class_names, kept_classes)
        self.category_ids = tuple(category.category_id for category in categories)
        self.class_names = tuple(category.name for category in categories)
        if class_names is None:
            for category in content.categories:
                if category not in categories:
                    self.omissions.add('empty root class of Roboflow', repr(category.name))
        if keypoints:
            check_keypoint_names(self.annotation_file, content.categories)
        images = self._scan_images(content.images)
        objects = self._read_objects(content, images, progress)
        n_images = len(images)
        if only_annotated:
            images = [image for image in images if any(obj.is_trainable for obj in objects[image.image_id])]
        if not images:
            raise AnnotationFileError(self.annotation_file, self._explain_no_images())
        self.n_without_objects = n_images - len(images)
        self._images = tuple(images)
        self.image_ids = tuple(image.image_id for image in images)
        self._objects = PackedAnnotations.pack(
            [objects[image_id] for image_id in self.image_ids],
            n_keypoints=len(COCO_KEYPOINT_NAMES) if keypoints else 0,
        )
        for line in self.warnings if log_warnings else ():
            _logger.warning('%s: %s', escape(annotation_file), line)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user, one line each: what is left out or doubtful, and which metrics are impossible."""
        lines = [str(items) for items in (self.omissions, self.doubts) if items]
        if not self._only_annotated and not self.n_objects:
            lines.append('no objects: every metric is "-"')
        elif not self._only_annotated and self._masks and self.n_without_outline == self.n_objects:
            lines.append('no object has an outline: boxes are evaluated, masks are not')
        return lines

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
        error = explain_size(name, (image.shape[1], image.shape[2]), self.image_size(i))
        if error:
            raise error
        return Example(image=image, annotations=self.get_annotations(i), name=name, image_id=self.image_ids[i])

    def ground_truth(self) -> dict:
        """Return the content of the annotation file for :class:`mask_rcnn.evaluation.COCOEvaluator`.

        Annotations are not cleaned, except that those without a box are dropped, as are malformed ones.  They are
        numbered from 1.  If keypoints are read, every annotation gets keypoints and ``num_keypoints``.  The file is
        read again, because its Python objects would occupy memory during training.
        """
        content = read_coco_json(self.annotation_file, needs_annotations=False)
        sizes = {image.image_id: image.size for image in self._images}
        images = [
            {**image.fields, 'id': image.image_id, **dict(zip(('height', 'width'), sizes[image.image_id], strict=True))}
            for image in content.images
            if image.image_id in sizes
        ]
        annotations: list[dict] = []
        for record in self._records(content, sizes):
            if isinstance(record, AnnotationRecord) and record.bbox is not None:
                annotations.append(record.ground_truth(len(annotations) + 1, keypoints=self._keypoints))
        categories = [{**category.fields, 'id': category.category_id} for category in content.categories]
        return {'images': images, 'annotations': annotations, 'categories': categories}

    def _scan_images(self, records: Sequence[ImageRecord]) -> list[_Image]:
        """Return the images whose file exists and has the declared size."""
        file_names = [find_image_file(self.image_folder, record.file_name) for record in records]
        paths = [os.path.join(self.image_folder, name) for name in file_names]
        images, errors = [], []
        sizes = read_image_sizes(paths, apply_orientation=self._apply_orientation)
        for path, name, record, size in zip(paths, file_names, records, sizes, strict=True):
            if isinstance(size, ImageFileError):
                errors.append(size)
            elif error := explain_size(path, size, (record.height or size[0], record.width or size[1])):
                errors.append(error)
            else:
                images.append(_Image(record.image_id, name, size))
        if errors and not self._skip_broken:
            total = f' ({counted(len(errors), "unusable image")} in total)' if len(errors) > 1 else ''
            raise ImageFileError(errors[0].path, errors[0].reason + total) from errors[0]
        for error in errors:
            self._skip(error, 'unusable images', ' '.join(str(error.path).split()), one='unusable image')
        return images

    def _records(
        self, content: COCOFile, sizes: dict[int | str, tuple[int, int]]
    ) -> Iterator[AnnotationRecord | AnnotationError]:
        """Yield the records of the annotations that belong to images with a size."""
        all_sizes = {image.image_id: sizes.get(image.image_id) for image in content.images}
        category_ids = [category.category_id for category in content.categories]
        return read_records(content.annotations, all_sizes, category_ids, keypoints=self._keypoints)

    def _read_objects(
        self, content: COCOFile, images: list[_Image], progress: Progress
    ) -> dict[int | str, list[COCOObject]]:
        """Return the cleaned objects of each image by its id."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        sizes = {image.image_id: image.size for image in images}
        objects: dict[int | str, list[COCOObject]] = defaultdict(list)
        crowds: dict[int, list[str]] = defaultdict(list)  # names of the annotations by label
        without_outline: list[str] = []
        n_of_label: Counter[int] = Counter()
        for record in progress(self._records(content, sizes), len(content.annotations), 'object'):
            if isinstance(record, AnnotationError):
                self._reject(record)
                continue
            label = label_of.get(record.category_id)
            if label is None:  # a class that is not selected
                continue
            n_of_label[label] += 1
            if not record.segmentation and record.bbox is not None:
                without_outline.append(record.name)
            if record.is_crowd:
                crowds[label].append(record.name)
            size = sizes[record.image_id]
            cleaned = clean_object(record, label, size, masks=self._masks, keypoints=self._keypoints)
            if isinstance(cleaned, COCOObject):
                objects[record.image_id].append(cleaned)
            elif self._only_annotated or record.bbox is None:  # evaluation uses what training leaves out
                self.omissions.add(cleaned, record.name)
                continue
            if doubt := explain_doubt(record, size, masks=self._masks, evaluated=not self._only_annotated):
                self.doubts.add(doubt, record.name)
        self.n_objects, self.n_without_outline = n_of_label.total(), len(without_outline)
        if self._masks and not self._only_annotated and len(without_outline) < self.n_objects:
            for name in without_outline:
                self.omissions.add('without an outline, whose masks are not evaluated', name)
        self._report_crowds(crowds, n_of_label)
        return objects

    def _report_crowds(self, crowds: dict[int, list[str]], n_of_label: Counter[int]) -> None:
        """Report crowds that are probably single objects: all objects of a class, or many of the dataset's."""
        has_many = sum(map(len, crowds.values())) > _MAX_CROWD_FRACTION * self.n_objects
        for label, names in crowds.items():
            if has_many or len(names) == n_of_label[label]:
                use = 'trained' if self._only_annotated else 'evaluated'
                for name in names:
                    self.omissions.add(f'marked as crowds and not {use} ("iscrowd": 0 marks single objects)', name)

    def _explain_no_images(self) -> str:
        if not self._only_annotated:
            return f'no image remains; {self.omissions}' if self.omissions else 'no images'
        part = 'labelled keypoint' if self._keypoints else 'mask' if self._masks else ''
        parts = f'a class, a box and a {part}' if part else 'a class and a box'
        reason = f'no image has an object for training (with {parts}, and not a crowd)'
        if self._masks and self.n_objects and self.n_without_outline == self.n_objects:
            reason = 'no object has an outline, which a mask head needs (--set masks=false trains boxes only)'
        return f'{reason}; {self.omissions}' if self.omissions else reason

    def _reject(self, problem: AnnotationError) -> None:
        """Raise an error for a malformed annotation, or skip the annotation."""
        error = AnnotationFileError(self.annotation_file, str(problem))
        if not self._skip_broken:
            raise error
        self._skip(error, 'malformed', str(problem))

    def _skip(self, error: ValueError, reason: str, name: str, *, one: str | None = None) -> None:
        _logger.info('skipped %s', error)
        self.omissions.add(reason, name, one=one)
        self.n_skipped += 1


@dataclass(frozen=True)
class _Image:
    image_id: int | str
    file_name: str
    size: tuple[int, int]
