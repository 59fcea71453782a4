"""Prediction: batching of images, asynchronous execution on a GPU, and postprocessing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import chainer
import numpy as np

from mask_rcnn.config import Config, Dialect
from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.image_lists import check_images, load_listed_image
from mask_rcnn.ops.boxes.boxes import clip_boxes
from mask_rcnn.ops.runtime.array_pool import reuse_arrays
from mask_rcnn.ops.runtime.cache import cache_features, cache_weights
from mask_rcnn.ops.runtime.cuda_graph import graph_settings, run_as_graph
from mask_rcnn.ops.runtime.device import uses_padding
from mask_rcnn.ops.runtime.gpu_errors import memory_errors
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy, PackedArrays, pack_arrays
from mask_rcnn.ops.runtime.weight_cache import keep_weight_cache
from mask_rcnn.preprocessing.image_io import to_chw
from mask_rcnn.preprocessing.image_transform import ImageTransform, prepare_image, prepare_image_gpu

#: Default batch size on a GPU.  1000 RoIs of a C4 network take about 2 GB in float32.
GPU_BATCH_SIZE = 4

#: Maximum batch size of CUDA graphs.  To join more arrays, CuPy copies their addresses to the GPU, which cannot be
#: captured; and the time of larger batches is that of their kernels.
_MAX_GRAPH_BATCH = 8


class RawDetections(NamedTuple):
    """The outputs of a network for a batch: lists with an array for each image, on the network's device.

    On a GPU all images have the same number of rows; padding rows have the score minus infinity
    (:mod:`mask_rcnn.ops.boxes.proposals`).

    Attributes:
        boxes: ``(R, 4)`` float32, in pixels of the network input if the dialect has
            ``detections.postprocess_in_input_space``, otherwise in pixels of the original image.
        labels: ``(R,)`` int32; 0 is the first foreground class.
        scores: ``(R,)`` float32, in descending order.
        masks: ``(R, M, M)`` float32 probabilities on a grid over each box, or ``None`` for a network without masks.
        keypoints: ``(R, K, 4)`` float32 ``(y, x, logit, probability)``, or ``None`` for a network without keypoints.
    """

    boxes: list
    labels: list
    scores: list
    masks: list | None
    keypoints: list | None


class Network(Protocol):
    """The interface that :class:`Predictor` requires of a network."""

    config: Config
    class_names: Sequence[str] | None
    category_ids: Sequence[int] | None
    device: chainer.backend.Device
    xp: Any

    def __call__(self, x: Any, transforms: Sequence[ImageTransform]) -> RawDetections:
        """Detect objects in a batch ``(N, 3, H, W)`` of network inputs."""
        ...

    def children(self) -> Iterator[Any]:
        """Return the parts, as :meth:`chainer.Link.children` does."""
        ...

    def links(self) -> Iterator[Any]:
        """Return all links, as :meth:`chainer.Link.links` does."""
        ...


class Predictor:
    """Runs a network on images.

    Args:
        network: A network such as :class:`mask_rcnn.models.MaskRCNN`, on the CPU or a GPU.
    """

    def __init__(self, network: Network):
        self.network = network

    def detect(self, images: Iterable, *, batch_size: int | None = None) -> list[Detections]:
        """Detect objects in images.

        On a GPU, values derived from the weights and CUDA graphs are kept until the weights change or the network is
        deleted (:mod:`mask_rcnn.ops.runtime.weight_cache`); each thread has its own.

        Several threads may call this method, :meth:`iter_detections` and :meth:`MaskRCNN.predict
        <mask_rcnn.models.MaskRCNN.predict>` of one network at the same time.  The detections are those of one thread,
        to the bit with ``OPENBLAS_NUM_THREADS=1`` and otherwise up to the rounding of float32: the number of OpenBLAS's
        threads, and with it the order of its sums, depends on the computations of the other threads.
        Meanwhile no thread may change the network: its thresholds, its device or its parameters.  Settings in
        ``chainer.config`` hold for one thread; those of all threads are in ``chainer.global_config``.

        Args:
            images: File names, ``(3, H, W)`` float32 arrays (RGB, 0 to 255) or ``(H, W, 3)`` uint8 arrays (RGB); see
                :func:`mask_rcnn.preprocessing.image_io.to_image_array`.
            batch_size: See :meth:`iter_detections`.

        Returns:
            list of mask_rcnn.Detections: One for each image, in descending order of score.

        Raises:
            ValueError: ``batch_size`` is below 1, an image file cannot be read, or an array has the wrong shape or
                dtype; see :func:`~mask_rcnn.preprocessing.image_io.to_image_array`.
            TypeError: ``images`` is a single image, or an image is neither a file name nor an array.
        """
        with keep_weight_cache(self.network):
            return list(self.iter_detections(images, batch_size=batch_size))

    def iter_detections(self, images: Iterable, *, batch_size: int | None = None) -> Iterator[Detections]:
        """Detect objects in a stream of images.

        Consecutive images whose network inputs have the same size form a batch.  ``images`` is consumed lazily: while a
        GPU computes one batch, the next batch is prepared, and then the detections of the first are returned.  If a
        batch does not fit in memory, it is split in half and retried.

        Wrap a loop over many images in :func:`~mask_rcnn.ops.runtime.cache.cache_weights`.  On a GPU, batches of a size
        that recurs in it run as CUDA graphs (:mod:`mask_rcnn.ops.runtime.cuda_graph`), unless
        ``chainer.config.cuda_graphs`` is ``False``.

        Args:
            images: See :meth:`detect`.
            batch_size: Maximum number of images in a batch.  The default is :data:`GPU_BATCH_SIZE` on a GPU and 1 on
                the CPU, where larger batches are not faster and take more memory.

        Returns:
            iterator of mask_rcnn.Detections: In the order of the images.

        Raises:
            ValueError, TypeError: As for :meth:`detect`.  The error of an image is raised when the image is prepared,
                before the detections of earlier images of its batch are returned.
        """
        if batch_size is None:
            batch_size = default_batch_size(self.network.device)
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, not {batch_size}')
        check_images(images)
        return self._iter_detections(images, batch_size)

    def _iter_detections(self, images: Iterable, batch_size: int) -> Iterator[Detections]:
        # A GPU computes one batch while the next one is prepared.
        max_in_flight = 1 if uses_padding(self.network.device) else 0
        in_flight: deque = deque()
        for xs, transforms in self._iter_batches(images, batch_size):
            in_flight.extend(self._submit_batch(xs, transforms))
            while len(in_flight) > max_in_flight:
                yield from self._finish_batch(*in_flight.popleft())
        while in_flight:
            yield from self._finish_batch(*in_flight.popleft())

    def prepare(self, image: np.ndarray) -> tuple[Any, ImageTransform]:
        """Make the network input of an image on the network's device.

        Args:
            image: ``(3, H, W)`` float32 or ``(H, W, 3)`` uint8, RGB, 0 to 255.

        Returns:
            tuple: ``(1, 3, h, w)`` float32 array on the network's device, and the image's transform; see
            :func:`mask_rcnn.preprocessing.image_transform.prepare_image`.
        """
        if uses_padding(self.network.device):
            # A new thread has the first GPU as its current one.
            with chainer.using_device(self.network.device), memory_errors():
                return prepare_image_gpu(image, self.network.config, self.network.xp)
        x, transform = prepare_image(to_chw(image), self.network.config)
        return x[None], transform

    def _iter_batches(self, images: Iterable, batch_size: int) -> Iterator[tuple[list, list[ImageTransform]]]:
        """Yield batches of network inputs of one size and their transforms, without reading ahead."""
        xs: list = []
        transforms: list[ImageTransform] = []
        options = {
            'check_finite': not uses_padding(self.network.device),  # a GPU's upload checks the values
            'apply_orientation': self.network.config.dialect.input.apply_orientation,
        }
        for image in images:
            x, transform = self.prepare(load_listed_image(image, **options))
            del image  # free large arrays early, here and below
            if xs and x.shape != xs[0].shape:
                yield xs, transforms
                xs, transforms = [], []
            xs.append(x)
            transforms.append(transform)
            del x
            if len(xs) == batch_size:
                yield xs, transforms
                xs, transforms = [], []
        if xs:
            yield xs, transforms

    def _submit_batch(self, xs: list, transforms: list[ImageTransform]) -> list[tuple]:
        """Run the network on a batch, or on its halves if it does not fit in memory.

        Returns:
            list: The arguments of :meth:`_finish_batch` for each part of the batch.  A GPU may still be computing them.
        """
        network = self.network
        try:
            # These contexts must not be open across a `yield`: the caller's code would run inside them.
            with (
                chainer.using_device(network.device),
                memory_errors(),
                chainer.using_config('train', False),
                chainer.no_backprop_mode(),
                cache_weights(),
                reuse_arrays(),
                np.errstate(all='ignore'),  # whatever the caller's settings, also for weights of damaged files
            ):
                x = xs[0] if len(xs) == 1 else network.xp.concatenate(xs)
                if not uses_padding(network.device):
                    return [(self._compute(x, transforms), transforms)]
                return [(AsyncHostCopy(self._compute_packed(x, transforms)), transforms)]
        except MemoryError:
            if len(xs) == 1:
                raise
        half = len(xs) // 2
        return [*self._submit_batch(xs[:half], transforms[:half]), *self._submit_batch(xs[half:], transforms[half:])]

    def _compute(self, x: Any, transforms: list[ImageTransform]) -> RawDetections:
        with cache_features():
            return self.network(x, transforms)

    def _compute_packed(self, x: Any, transforms: list[ImageTransform]) -> PackedArrays:
        """Run the network on a batch on a GPU and pack its outputs, if possible as a CUDA graph."""
        network = self.network

        def compute(x):
            raw = self._compute(x, transforms)
            return pack_arrays([None if arrays is None else network.xp.stack(arrays) for arrays in raw])

        # Without a limit, the host reads the number of detections.
        if len(transforms) > _MAX_GRAPH_BATCH or not network.config.max_detections:
            return compute(x)
        return run_as_graph(compute, x, (*transforms, *graph_settings(network)), network)

    def _finish_batch(self, raw: RawDetections | AsyncHostCopy, transforms: list) -> Iterator[Detections]:
        """Yield the detections of the images of a batch; waits for a GPU."""
        fields: Iterable = raw.wait() if isinstance(raw, AsyncHostCopy) else raw
        fields = [[None] * len(transforms) if arrays is None else arrays for arrays in fields]
        for boxes, labels, scores, masks, keypoints, transform in zip(*fields, transforms, strict=True):
            yield self.postprocess(boxes, labels, scores, masks, keypoints, transform)

    def postprocess(self, boxes, labels, scores, mask_probs, keypoints, transform: ImageTransform) -> Detections:
        """Convert the outputs of the network for one image into detections.

        Args:
            boxes: ``(R, 4)`` float32; see :class:`RawDetections`.
            labels: ``(R,)`` int32.
            scores: ``(R,)`` float32.
            mask_probs: ``(R, M, M)`` float32, or ``None``.
            keypoints: ``(R, K, 4)`` float32, or ``None``.
            transform: The image's transform.

        Returns:
            mask_rcnn.Detections: On the host, in pixels of the image, without padding rows.  Masks are pasted on first
            access, by the CPU; their run lengths are computed on the network's device.
        """
        network, padded = self.network, uses_padding(self.network.device)
        arrays = {'boxes': boxes, 'labels': labels, 'scores': scores, 'mask_probs': mask_probs, 'keypoints': keypoints}
        arrays = {name: chainer.backends.cuda.to_cpu(array) for name, array in arrays.items() if array is not None}
        if padded:
            is_detection = np.isfinite(arrays['scores'])
            arrays = {name: array[is_detection] for name, array in arrays.items()}
        dialect = network.config.dialect
        boxes = finish_boxes(map_to_image(arrays.pop('boxes'), transform, dialect), dialect)
        detections = Detections(
            boxes=boxes,
            **arrays,
            size=transform.size,
            class_names=network.class_names,
            category_ids=network.category_ids,
            dialect=dialect,
            paste_device=network.device if padded else None,
        )
        return detections[has_area(boxes)] if drops_empty_boxes(dialect) else detections


def default_batch_size(device: chainer.backend.Device) -> int:
    """Return the batch size of :meth:`Predictor.iter_detections` on a device."""
    return GPU_BATCH_SIZE if uses_padding(device) else 1


def map_to_image(boxes: np.ndarray, transform: ImageTransform, dialect: Dialect) -> np.ndarray:
    """Return the boxes of a network's detections in pixels of the image, clipped to it if the dialect does so.

    Sources: ``resize_boxes`` of ``torchvision/models/detection/transform.py``; detectron2's
    ``modeling/postprocessing.py``.

    Args:
        boxes: ``(R, 4)`` float32; see :class:`RawDetections`.
        transform: The image's transform.
        dialect: Provides ``detections.postprocess_in_input_space``, ``detections.clip_to_original`` and
            ``input.box_factors``.
    """
    if dialect.detections.postprocess_in_input_space:
        if dialect.input.box_factors == 'side_ratios':
            # Both programs multiply by the inverse ratio, which is rounded differently from a division.
            inverse = np.array([1 / factor for factor in transform.factors * 2], np.float32)
            boxes = (boxes - np.array(transform.window[:2] * 2, np.float32)) * inverse
        else:
            boxes = transform.invert_boxes(boxes)
    return clip_boxes(boxes, transform.size, offset=0.0) if dialect.detections.clip_to_original else boxes


def finish_boxes(boxes: np.ndarray, dialect: Dialect) -> np.ndarray:
    """Return boxes of detections with integer corners if the dialect has ``detections.integer_boxes``.

    The corners of ``boxes`` are pixels of the box; the second corner of the result is the first pixel after the box.
    Source: Matterport's ``utils.denorm_boxes``.

    Args:
        boxes: ``(R, 4)`` float32 in pixels of the image.
        dialect: Provides ``detections.integer_boxes``.
    """
    if not dialect.detections.integer_boxes:
        return boxes
    return np.rint(boxes + np.array([0, 0, 1, 1], np.float32))


def drops_empty_boxes(dialect: Dialect) -> bool:
    """Return whether detections are dropped whose boxes are empty after :func:`finish_boxes`."""
    return dialect.detections.integer_boxes or dialect.detections.clip_to_original


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Return a mask ``(R,)`` of the boxes ``(R, 4)`` whose height and width are positive."""
    return np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
