"""The detections of one image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import chainer
import numpy as np

from mask_rcnn.config import DETECTRON, Dialect
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.masks.crop import crop_mask
from mask_rcnn.ops.masks.paste_masks import mask_runs, paste_masks
from mask_rcnn.ops.masks.polygons import trace_crop
from mask_rcnn.ops.masks.rle import encode_mask, encode_runs
from mask_rcnn.ops.runtime.gpu_errors import memory_errors
from mask_rcnn.ops.runtime.transfer import side_stream

#: Approximate size in bytes of the masks that :meth:`Detections.iter_masks` pastes at a time.
_CHUNK_BYTES = 2**26
#: Maximum number of instances listed by ``repr``.
_MAX_IN_REPR = 5


class Detections:
    """The detected instances of one image: boxes, classes, scores, masks and keypoints.

    An immutable sequence of instances.  Iteration and indexing give :class:`Detections`; an index is an integer, a
    slice, a boolean array or an array of integers.

    Args:
        boxes: ``(R, 4)`` float32, ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        labels: ``(R,)`` int32, 0 is the first foreground class.
        scores: ``(R,)`` float32.
        size: ``(H, W)`` of the image.
        masks: ``(R, H, W)`` bool.
        mask_probs: Instead of ``masks``: ``(R, M, M)`` float32, the probability of each instance's class on a grid
            over its box.  They are pasted into the image when :attr:`masks` is first read.  ``None``, like ``masks``,
            for a model without masks.
        keypoints: ``(R, K, 4)`` float32, ``(y, x, logit, probability)`` of each keypoint, ``y`` and ``x`` in pixels of
            the image.  The logit measures the confidence that the keypoint is visible; the probability is that of its
            position among all pixels of the box, or relative to the predicted heat map
            (``dialect.keypoints.softmax_grid``).  COCO's 17 keypoints are listed in
            :data:`mask_rcnn.datasets.coco_keypoints.COCO_KEYPOINT_NAMES`.  ``None`` for a model without keypoints.
        class_names: Name of each label.
        category_ids: Category id of each label in the dataset (COCO's 80 classes have ids up to 90); by default
            ``label + 1``.
        dialect: Conventions for the widths of boxes and the pasting of masks.
        paste_device: The GPU that computes the run lengths of ``mask_probs``, or ``None`` for the CPU; the result is
            the same.  Copies and pickles, which may be used on another machine, use the CPU.

    Raises:
        ValueError: Shapes or dtypes are inconsistent, both ``masks`` and ``mask_probs`` are given, ``size`` is not
            positive, or a label is negative or has no name or category id.
    """

    def __init__(
        self,
        *,
        boxes: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        size: tuple[int, int],
        masks: np.ndarray | None = None,
        mask_probs: np.ndarray | None = None,
        keypoints: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        dialect: Dialect = DETECTRON,
        paste_device: chainer.backend.Device | None = None,
    ):
        count = len(boxes)
        self.size = _check_size(size)
        self.boxes = _check_array('boxes', boxes, np.float32, (count, 4))
        self.labels = _check_array('labels', labels, np.int32, (count,))
        self.scores = _check_array('scores', scores, np.float32, (count,))
        if masks is not None and mask_probs is not None:
            raise ValueError('give masks or mask_probs, not both')
        if masks is not None:
            masks = _check_array('masks', masks, bool, (count, *self.size))
        if mask_probs is not None:
            side: int | str = np.shape(mask_probs)[-1] if np.ndim(mask_probs) == 3 else 'M'
            mask_probs = _check_array('mask_probs', mask_probs, np.float32, (count, side, side))
        self.mask_probs: Any = mask_probs
        if keypoints is not None:
            n_keypoints: int | str = np.shape(keypoints)[1] if np.ndim(keypoints) == 3 else 'K'
            keypoints = _check_array('keypoints', keypoints, np.float32, (count, n_keypoints, 4))
        self.keypoints = keypoints
        self.class_names = None if class_names is None else tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(int(i) for i in category_ids)
        self._check_labels()
        self.dialect = dialect
        self.paste_device = paste_device
        self._masks = masks

    def _check_labels(self) -> None:
        if self.labels.size and self.labels.min() < 0:
            raise ValueError(f'labels must not be negative, got {self.labels.min()}')
        for name, table in (('class_names', self.class_names), ('category_ids', self.category_ids)):
            if table is not None and self.labels.size and self.labels.max() >= len(table):
                raise ValueError(f'label {self.labels.max()} is out of range for {len(table)} {name}')

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | np.ndarray | Sequence) -> Detections:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f'index {index} is out of range for {counted(len(self), "detection")}')
            index = [index]
        elif not isinstance(index, slice):
            index = np.asarray(index)
            if index.size == 0 and index.dtype != bool:
                index = index.astype(np.intp)  # NumPy makes a float array of an empty list
        masks = self._masks  # another thread may paste them at any time
        return Detections(
            boxes=self.boxes[index],
            labels=self.labels[index],
            scores=self.scores[index],
            size=self.size,
            masks=None if masks is None else masks[index],
            mask_probs=None if masks is not None or self.mask_probs is None else self.mask_probs[index],
            keypoints=None if self.keypoints is None else self.keypoints[index],
            class_names=self.class_names,
            category_ids=self.category_ids,
            dialect=self.dialect,
            paste_device=self.paste_device,
        )

    def __getstate__(self) -> dict:
        masks = self._masks if self.mask_probs is None else None  # pasted again when they are used
        return {**vars(self), '_masks': masks, 'paste_device': None}

    def __repr__(self) -> str:
        best = self.sorted_by_score()[:_MAX_IN_REPR]
        items = [f'{name} {score:.2f}' for name, score in zip(best.names, best.scores, strict=True)]
        if len(self) > len(items):
            items.append('...')
        height, width = self.size
        listed = ': ' + ', '.join(items) if items else ''
        return f'Detections({len(self)} in {height} x {width} pixels{listed})'

    @property
    def has_masks(self) -> bool:
        """True if the instances have masks."""
        return self._masks is not None or self.mask_probs is not None

    @property
    def masks(self) -> np.ndarray | None:
        """The masks ``(R, H, W)`` bool, pasted on first access; ``None`` for a model without masks.

        They occupy ``R x H x W`` bytes; :meth:`iter_masks` needs less memory.  The memory of masks that are deleted is
        kept for the masks of other images, up to 512 MB (:mod:`mask_rcnn.ops.runtime.host_memory`).
        """
        if self._masks is None and self.mask_probs is not None:
            self._masks = self._paste(slice(None))
        return self._masks

    def iter_masks(self) -> Iterator[np.ndarray]:
        """Yield the masks, ``(H, W)`` bool each, keeping only a few of them in memory at a time."""
        if self._masks is not None or self.mask_probs is None:
            yield from () if self._masks is None else self._masks
            return
        step = max(1, _CHUNK_BYTES // (self.size[0] * self.size[1]))
        for start in range(0, len(self), step):
            yield from self._paste(slice(start, start + step))

    def _paste(self, part: slice) -> np.ndarray:
        # The CPU writes only the pixels in the boxes.  A GPU would have to copy whole masks, eight pixels in a byte,
        # and the CPU to write each of them: for 100 masks of 800 x 1333 pixels, 65 instead of 15 ms of one CPU.
        return paste_masks(self.mask_probs[part], self.boxes[part], self.size, **self._paste_options())

    def _runs(self) -> list[np.ndarray]:
        """Return the runs of all masks (:func:`mask_rcnn.ops.masks.paste_masks.mask_runs`), from the GPU if set."""
        if self.paste_device is not None:
            # If the memory of the GPU is short, the CPU computes the same runs.
            with contextlib.suppress(MemoryError), side_stream(self.paste_device), memory_errors():
                probs, boxes = map(self.paste_device.send, (self.mask_probs, self.boxes))
                return mask_runs(probs, boxes, self.size, **self._paste_options())
        return mask_runs(self.mask_probs, self.boxes, self.size, **self._paste_options())

    def _paste_options(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`mask_rcnn.ops.masks.paste_masks.paste_masks`."""
        conventions = self.dialect.masks
        return {
            'offset': conventions.box_offset,
            'padding': conventions.padding,
            'margin': conventions.margin,
            'continuous_box': conventions.continuous_box,
            'squeeze_at_border': conventions.squeeze_at_border,
            'threshold': conventions.threshold,
            'threshold_inclusive': conventions.threshold_inclusive,
        }

    @property
    def names(self) -> list[str]:
        """The class name of each instance; ``class 3`` if label 3 has no name."""
        if self.class_names is None:
            return [f'class {label}' for label in self.labels]
        return [self.class_names[label] for label in self.labels]

    def above(self, score: float) -> Detections:
        """Return the instances whose score is greater than ``score``."""
        return self[self.scores > score]

    def select_class(self, label: int | str) -> Detections:
        """Return the instances of one class, given by its label or its name.

        Raises:
            ValueError: No class has that name.
        """
        if isinstance(label, str):
            names = self.class_names or ()
            if label not in names:
                raise ValueError(f'unknown class {label!r}; the classes are {", ".join(names)}')
            label = names.index(label)
        return self[self.labels == label]

    def sorted_by_score(self) -> Detections:
        """Return the instances in descending order of score; equal scores keep their order."""
        return self[np.argsort(-self.scores, kind='stable')]

    def encode_masks(self) -> list[dict]:
        """Return each mask as COCO's compressed run lengths, ``{'size': [H, W], 'counts': str}``.

        Raises:
            ValueError: There are no masks.
        """
        if not self.has_masks:
            raise ValueError('these detections have no masks')
        if self._masks is not None:
            return [encode_mask(mask) for mask in self._masks]
        return [encode_runs(runs, self.size) for runs in self._runs()]

    def to_coco(self, image_id: int | str, *, masks: bool = True) -> list[dict]:
        """Return the instances in COCO's result format, as plain Python data for :mod:`json`.

        ``bbox`` is ``[x, y, width, height]`` with the dialect's ``boxes.offset`` in width and height, as in
        Detectron's ``boxes.xyxy_to_xywh``.  ``segmentation`` is absent without masks.  ``keypoints``, absent without
        keypoints, is ``[x, y, 1, x, y, 1, ...]``: COCO ignores the third value of each keypoint; Detectron writes 1.

        Args:
            image_id: The image's id in the results.
            masks: Whether to compute and include the masks.
        """
        height, width = (self.boxes[:, 2:] - self.boxes[:, :2] + np.float32(self.dialect.boxes.offset)).T
        boxes = np.stack([self.boxes[:, 1], self.boxes[:, 0], width, height], axis=1).tolist()
        results = [
            {'image_id': image_id, 'category_id': category, 'bbox': box, 'score': score}
            for category, box, score in zip(self._categories(), boxes, self.scores.tolist(), strict=True)
        ]
        if masks and self.has_masks:
            for result, rle in zip(results, self.encode_masks(), strict=True):
                result['segmentation'] = rle
        if self.keypoints is not None:
            ones = np.ones((*self.keypoints.shape[:2], 1))
            triples = np.concatenate([self.keypoints[:, :, 1::-1], ones], axis=2)
            for result, instance_triples in zip(results, triples, strict=True):
                result['keypoints'] = instance_triples.ravel().tolist()
        return results

    def to_annotations(self, image_id: int, *, first_id: int = 1) -> list[dict]:
        """Return the instances as annotations of a COCO dataset, which annotation tools open and correct.

        In contrast to :meth:`to_coco`, ``segmentation`` is a list of polygons, and ``bbox`` encloses them.  Holes are
        joined to the polygons around them (:func:`mask_rcnn.ops.masks.polygons.trace_polygons`).  An instance without
        mask pixels has only its box, clipped to the image.  ``score`` is an additional field, which tools ignore.

        Args:
            image_id: The image's id in the dataset.
            first_id: The id of the first annotation; the others follow.
        """
        masks = self.iter_masks() if self.has_masks else [None] * len(self)
        annotations = []
        for i, (category, score, mask) in enumerate(zip(self._categories(), self.scores.tolist(), masks, strict=True)):
            annotation = {'id': first_id + i, 'image_id': image_id, 'category_id': category, 'iscrowd': 0}
            annotation |= self._describe_box(i) if mask is None else _describe_mask(mask) or self._describe_box(i)
            if self.keypoints is not None:
                annotation |= _describe_keypoints(self.keypoints[i])
            annotations.append({**annotation, 'score': round(score, 4)})
        return annotations

    def _describe_box(self, i: int) -> dict[str, Any]:
        """Return the fields of an annotation for the box of an instance."""
        corners = self.boxes[i].astype(np.float64) + np.array([0, 0, 1, 1]) * self.dialect.boxes.offset
        top, left, bottom, right = np.clip(corners, 0, np.tile(self.size, 2)).round(2).tolist()
        box = [left, top, right - left, bottom - top]
        return {'bbox': box, 'area': box[2] * box[3], 'segmentation': []}

    @property
    def categories(self) -> list[dict]:
        """The categories of a COCO dataset: all classes of the model, or the found ones if it has no class names."""
        # Imported late: the datasets would slow down the import of the package.
        from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_SKELETON

        if self.class_names is None:
            found = sorted(set(zip(self._categories(), self.names, strict=True)))
        else:
            ids = self.category_ids or range(1, len(self.class_names) + 1)
            found = list(zip(ids, self.class_names, strict=True))
        fields: dict[str, Any] = {'supercategory': ''}
        if self.keypoints is not None and self.keypoints.shape[1] == len(COCO_KEYPOINT_NAMES):
            skeleton = [[a + 1, b + 1] for a, b in COCO_SKELETON]
            fields |= {'keypoints': list(COCO_KEYPOINT_NAMES), 'skeleton': skeleton}
        return [{'id': category, 'name': name, **fields} for category, name in found]

    def _categories(self) -> list[int]:
        if self.category_ids is None:
            return [label + 1 for label in self.labels.tolist()]
        return [self.category_ids[label] for label in self.labels.tolist()]

    def draw(self, image: np.ndarray | str | os.PathLike, **options) -> np.ndarray:
        """Draw the instances on their image.

        Args:
            image: The image's file, or an array for :func:`mask_rcnn.visualization.draw_detections`.
            options: See :func:`mask_rcnn.visualization.draw_detections`.

        Returns:
            A uint8 array of shape ``(H, W, 3)``, RGB.
        """
        # Imported late: the drawing libraries would slow down the import of the package.
        from mask_rcnn.preprocessing.image_io import read_image
        from mask_rcnn.visualization import draw_detections

        if isinstance(image, (str, os.PathLike)):
            image = read_image(image, apply_orientation=self.dialect.input.apply_orientation)
        return draw_detections(image, self, **options)


def _describe_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return the fields of an annotation for a mask, none for a mask without pixels."""
    crop = crop_mask(mask)
    if crop is None:
        return {}
    height, width = crop.mask.shape
    return {
        'bbox': [crop.left, crop.top, width, height],
        'area': crop.area,
        'segmentation': [polygon.tolist() for polygon in trace_crop(crop, simplify=True)],
    }


def _describe_keypoints(keypoints: np.ndarray) -> dict[str, Any]:
    """Return the fields of an annotation for the keypoints ``(K, 4)`` of an instance; 2 marks visible ones."""
    from mask_rcnn.datasets.coco_keypoints import MIN_KEYPOINT_LOGIT  # imported late, as above

    is_visible = keypoints[:, 2] > MIN_KEYPOINT_LOGIT
    triples = np.concatenate([keypoints[:, 1::-1], np.full((len(keypoints), 1), 2)], axis=1)
    triples[~is_visible] = 0
    return {'keypoints': triples.ravel().round(2).tolist(), 'num_keypoints': int(is_visible.sum())}


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple) -> np.ndarray:
    """Convert an array to a dtype of the same kind and check its shape; an empty list has every shape without rows."""
    array = np.asarray(array)
    if array.shape == (0,) and shape[0] == 0 and all(isinstance(n, int) for n in shape):
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f'{name} must have the shape {shape}, not {array.shape}')
    if array.size and not np.can_cast(array.dtype, dtype, 'same_kind'):
        raise ValueError(f'{name} must be {np.dtype(dtype)}, not {array.dtype}')
    return array.astype(dtype, copy=False)


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ValueError(f'size must be (height, width), both at least 1, not {size}')
    return height, width
