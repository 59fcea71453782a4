"""Mask R-CNN (He et al. 2017) put together: image, extractor, RPN, the heads, detections."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.layers.convolution import as_float32
from mask_rcnn.ops.boxes.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.boxes.proposals import select_detections
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.ops.runtime.cache import cache_features, cache_weights
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy
from mask_rcnn.preprocessing.image_io import to_image_array
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.preprocessing.prepare import prepare_image

#: Images that a GPU looks at together unless somebody says otherwise.  1000 RoIs of a C4 network take about
#: 2 GB in float32.
GPU_BATCH_SIZE = 4


def _for_images(stage: Callable) -> Callable:
    """Let a stage, whose arguments besides the maps are lists with an entry for each image, and whose results
    are such lists, take and return the entries themselves where there is one image.
    """

    @functools.wraps(stage)
    def wrapper(self, features, *entries):
        if isinstance(entries[-1], list):
            return stage(self, features, *entries)
        results = stage(self, features, *([entry] for entry in entries))
        return tuple(own for (own,) in results) if isinstance(results, tuple) else results[0]

    return wrapper


class MaskRCNN(chainer.Chain):
    """Mask R-CNN, composed from parts that are handed in.

    Args:
        extractor: Link from images ``(N, 3, H, W)`` to a tuple of feature maps ``(N, C, h, w)``.
        rpn: Link with ``forward`` and ``propose`` like :class:`~mask_rcnn.models.rpn.RPN`.
        box_head: Link with ``roi_features`` and ``forward`` like
            :class:`~mask_rcnn.models.box_head.Res5BoxHead`.
        mask_head: Link like :class:`~mask_rcnn.models.mask_head.MaskHead`, or ``None`` for a network that draws
            no masks.
        keypoint_head: Link like :class:`~mask_rcnn.models.keypoint_head.KeypointHead`, or ``None`` for a
            network that finds no keypoints.
        config (mask_rcnn.config.Config): Sizes, thresholds and the dialect.
        class_names: Names of the ``n_fg_class`` classes, or ``None``.
        category_ids: Numbers of the classes in COCO files, or ``None`` for 1, 2 ...
    """

    def __init__(
        self,
        extractor,
        rpn,
        box_head,
        mask_head=None,
        keypoint_head=None,
        *,
        config,
        class_names=None,
        category_ids=None,
    ):
        super().__init__()
        for name, values in (('class_names', class_names), ('category_ids', category_ids)):
            if values is not None and len(values) != config.n_fg_class:
                raise ValueError(f'{len(values)} {name} for {config.n_fg_class} classes')
        with self.init_scope():
            self.extractor = extractor
            self.rpn = rpn
            self.box_head = box_head
            if mask_head is not None:
                self.mask_head = mask_head
            if keypoint_head is not None:
                self.keypoint_head = keypoint_head
        self.config = config
        self.class_names = None if class_names is None else tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(category_ids)

    def detect(self, images: Iterable, *, batch_size: int | None = None) -> list:
        """Find the objects in images.

        Args:
            images: File names, ``(3, H, W)`` float arrays (RGB, 0 to 255) or ``(H, W, 3)`` uint8
                arrays (RGB); see :func:`mask_rcnn.preprocessing.image_io.to_image_array`.
            batch_size: See :meth:`iter_detections`.

        Returns:
            list of mask_rcnn.Detections: One for each image, best detection first.

        Raises:
            ValueError: ``batch_size`` is below 1, or an image is none; see
                :func:`~mask_rcnn.preprocessing.image_io.to_image_array` for the types.
        """
        with cache_weights():
            return list(self.iter_detections(images, batch_size=batch_size))

    def iter_detections(self, images: Iterable, *, batch_size: int | None = None) -> Iterator:
        """Find the objects in images, as they come.

        Images that follow one another and give network inputs of one size go through the network together.
        They are taken from ``images`` as they are needed: while a GPU looks at a batch, the next one is
        prepared, and then what was found in the first is returned.  A batch for which there is no memory is halved.

        Around a loop over many images, open :func:`~mask_rcnn.ops.runtime.cache.cache_weights`.

        Args:
            images: See :meth:`detect`.
            batch_size: Images to look at together, at most.  By default 1 on the CPU, where more are no faster
                and take more memory, and :data:`GPU_BATCH_SIZE` on a GPU.

        Returns:
            iterator of mask_rcnn.Detections: In the order of the images.

        Raises:
            ValueError: As for :meth:`detect`; that of an image when it is its turn to be prepared, before the
                detections of the images that wait with it.
        """
        if batch_size is None:
            batch_size = GPU_BATCH_SIZE if self._padded else 1
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, not {batch_size}')
        return self._iter_detections(images, batch_size)

    def _iter_detections(self, images: Iterable, batch_size: int) -> Iterator:
        begun = deque()
        for xs, transforms in self._batches(images, batch_size):
            begun.extend(self._begin(xs, transforms))  # a GPU is still busy with it ...
            while len(begun) > self._padded:
                yield from self._collect(*begun.popleft())  # ... while the batch before is waited for
        while begun:
            yield from self._collect(*begun.popleft())

    def _begin(self, xs: list, transforms: list[ImageTransform]) -> list[tuple]:
        """Return what :meth:`_collect` takes, of a batch at once or, where there is no memory for it, of its
        halves.
        """
        try:
            return [(self._find(xs, transforms), transforms)]
        except MemoryError:
            if len(xs) == 1:
                raise
        half = len(xs) // 2
        return [*self._begin(xs[:half], transforms[:half]), *self._begin(xs[half:], transforms[half:])]

    def _batches(self, images: Iterable, batch_size: int) -> Iterator[tuple]:
        """Yield lists of network inputs of one size and of their transforms; images are asked for one by
        one.
        """
        xs, transforms = [], []
        for image in images:
            x, transform = self.prepare(to_image_array(image))
            del image
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

    def predict(self, imgs, *, batch_size: int | None = None):
        """Find the objects in images: the interface of ChainerCV's instance segmentation links.

        A network without a mask head is one of ChainerCV's detection links: it returns boxes instead of
        masks.

        Args:
            imgs: Iterable of what :meth:`detect` takes.
            batch_size: See :meth:`iter_detections`.

        Returns:
            tuple of three lists: For each image, ``(R, H, W)`` bool masks (or ``(R, 4)`` float32 boxes),
            ``(R,)`` int32 labels (0 is the first foreground class) and ``(R,)`` float32 scores.
        """
        detections = self.detect(imgs, batch_size=batch_size)
        return (
            [d.masks if d.has_masks else d.boxes for d in detections],
            [d.labels for d in detections],
            [d.scores for d in detections],
        )

    def _find(self, xs: list, transforms: list[ImageTransform]):
        """Look at a batch.

        Args:
            xs: The network inputs, of one size.
            transforms: Where the images lie in them.

        Returns:
            What :meth:`postprocess` takes, for each argument a list with an entry for each image; of a GPU a
            :class:`~mask_rcnn.ops.runtime.transfer.AsyncHostCopy` of it.
        """
        # Not around what yields, lest the caller's own work goes on in it.
        with chainer.using_config('train', False), chainer.no_backprop_mode(), cache_weights(), cache_features():
            x = xs[0] if len(xs) == 1 else self.xp.concatenate(xs)
            features = self.extract(x)
            rois = self.propose(features, [x.shape[2:]] * len(xs), [transform.scale for transform in transforms])
            boxes, labels, scores = self.detect_boxes(features, rois, transforms)
            nothing = [None] * len(xs)
            mask_probs = self.predict_masks(features, boxes, labels, transforms) if self.config.masks else nothing
            keypoints = self.predict_keypoints(features, boxes, transforms) if self.config.n_keypoint else nothing
        found = [boxes, labels, scores, mask_probs, keypoints]
        if not self._padded:
            return found
        return AsyncHostCopy([None if parts is nothing else self.xp.stack(parts) for parts in found])

    def _collect(self, found, transforms: list[ImageTransform]) -> Iterator:
        """Yield the detections of a batch's images, from what :meth:`_find` returned."""
        if isinstance(found, AsyncHostCopy):
            found = [[None] * len(transforms) if parts is None else parts for parts in found.wait()]
        for boxes, labels, scores, mask_probs, keypoints, transform in zip(*found, transforms):
            yield self.postprocess(boxes, labels, scores, mask_probs, transform, keypoints)

    # The stages of detect; scripts/benchmarks/benchmark.py times them one by one.  prepare and postprocess are for one image.
    # The others are for a batch: of all but the maps, arguments and results are lists with an entry for each
    # image; or for one image, whose entries may be given, and come back, without lists.

    def prepare(self, image: np.ndarray):
        """Make the network's input of an image.

        Args:
            image: ``(3, H, W)`` float32, RGB, 0 to 255.

        Returns:
            tuple: ``(1, 3, h, w)`` float32 array on the model's device, and the image's
            :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform` in it; see
            :func:`mask_rcnn.preprocessing.prepare.prepare_image`.
        """
        x, transform = prepare_image(image, self.config)
        return self.xp.asarray(x[None]), transform

    def extract(self, x):
        """Return the feature maps, a tuple of arrays, of inputs ``(N, 3, h, w)``."""
        return tuple(level.array for level in self.extractor(x))

    @_for_images
    def propose(self, features, sizes, scales):
        """Return the proposals of each image, ``(K, 4)`` float32 in the network input.

        Args:
            features: What :meth:`extract` returned.
            sizes: Height and width of each network input.
            scales: Network input pixels per pixel of each original image.
        """
        logits, deltas = ([own.array for own in outputs] for outputs in self.rpn(features))
        return [
            self.rpn.propose([own[i] for own in logits], [own[i] for own in deltas], size, scale, padded=self._padded)[
                0
            ]
            for i, (size, scale) in enumerate(zip(sizes, scales))
        ]

    @_for_images
    def detect_boxes(self, features, rois, transforms):
        """Return the detections among the proposals of each image.

        Args:
            features: What :meth:`extract` returned.
            rois: ``(K, 4)`` float32 boxes in the network input.
            transforms: Where each image lies in it; see :meth:`prepare`.

        Returns:
            tuple: Boxes ``(R, 4)`` float32, labels ``(R,)`` int32 and scores ``(R,)`` float32, best first.  The boxes
            are in pixels of the network input if the dialect has ``detections.postprocess_in_input_space``, otherwise
            in pixels of the original image.
        """
        probs, deltas = self._in_parts(self._name_rois, features, rois, self.box_head.cpu_chunk_size)
        found = [self._select(*own) for own in zip(rois, _split(probs, rois), _split(deltas, rois), transforms)]
        return tuple(map(list, zip(*found)))

    def _select(self, rois, probs, deltas, transform: ImageTransform):
        """Return the detections of one image."""
        config, dialect = self.config, self.config.dialect
        if not dialect.detections.postprocess_in_input_space:
            rois = transform.invert_boxes(rois)
        boxes = decode_boxes(
            rois,
            deltas,
            weights=dialect.boxes.box_delta_weights,
            offset=dialect.boxes.offset,
            max_log_scale=dialect.boxes.max_log_scale,
        )
        boxes = self._clip(boxes, transform)
        if self._padded:  # padding RoIs get score 0
            probs = self.xp.where(self.xp.isnan(rois[:, :1]), np.float32(0), probs)
        return select_detections(
            probs,
            boxes,
            score_threshold=config.score_threshold,
            nms_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            offset=dialect.boxes.offset,
            suppress_equal=dialect.boxes.nms_suppress_equal,
            best_class_only=dialect.detections.best_class_only,
            score_threshold_inclusive=dialect.detections.score_threshold_inclusive,
            keep_ties=dialect.detections.keep_ties,
            padded=self._padded,
        )

    @property
    def _padded(self) -> bool:
        """Whether arrays between the stages are padded (:mod:`mask_rcnn.ops.boxes.proposals`).

        On a GPU: until the results arrive on the host, it waits for nothing, and every image of a size runs the
        same kernels on the same shapes.
        """
        return self.xp is not np

    def _clip(self, boxes, transform: ImageTransform):
        """Clip boxes to the image, wherever it lies."""
        if not self.config.dialect.detections.postprocess_in_input_space:
            return clip_boxes(boxes, transform.size, offset=self.config.dialect.boxes.clip_offset)
        low, high = transform.window[:2], transform.window[2:]
        return clip_boxes(boxes, [end - start for start, end in zip(low, high)], offset=0.0, origin=low)

    @_for_images
    def predict_masks(self, features, boxes, labels, transforms):
        """Return the mask probabilities ``(R, M, M)`` float32 of each image's detections, each for its class.

        Args:
            features: What :meth:`extract` returned.
            boxes: ``(R, 4)`` float32, as :meth:`detect_boxes` returned them.
            labels: ``(R,)`` int32.
            transforms: Where each image lies in the network input.
        """
        in_input = self.config.dialect.detections.postprocess_in_input_space
        rois = boxes if in_input else [transform.apply_boxes(own) for transform, own in zip(transforms, boxes)]
        (logits,) = self._in_parts(self._draw_rois, features, rois, self.mask_head.cpu_chunk_size)
        chosen = chainer.as_variable(logits[self.xp.arange(len(logits)), self.xp.concatenate(labels)])
        return _split(F.sigmoid(as_float32(chosen)).array, boxes)

    @_for_images
    def predict_keypoints(self, features, boxes, transforms):
        """Return the keypoints ``(R, K, 4)`` of each image's detections; see
        :func:`~mask_rcnn.ops.masks.keypoints.decode_heatmaps`.

        Args:
            features: What :meth:`extract` returned.
            boxes: ``(R, 4)`` float32, as :meth:`detect_boxes` returned them.
            transforms: Where each image lies in the network input.
        """
        if self.config.dialect.detections.postprocess_in_input_space:
            rois, boxes = boxes, [transform.invert_boxes(own) for transform, own in zip(transforms, boxes)]
        else:
            rois = [transform.apply_boxes(own) for transform, own in zip(transforms, boxes)]
        (heatmaps,) = self._in_parts(self._locate_in_rois, features, rois, self.keypoint_head.cpu_chunk_size)
        joined = self.xp.concatenate(boxes)
        return _split(decode_heatmaps(heatmaps, self.xp.nan_to_num(joined) if self._padded else joined), boxes)

    def postprocess(self, boxes, labels, scores, mask_probs, transform: ImageTransform, keypoints=None):
        """Put together what was found in one image; its masks are pasted when somebody asks for them.

        Args:
            boxes, labels, scores: What :meth:`detect_boxes` returned for it.
            mask_probs: What :meth:`predict_masks` returned, or ``None`` where the network draws no masks.
            transform: Where the image lies in the network input.
            keypoints: What :meth:`predict_keypoints` returned, or ``None`` where the network finds no keypoints.

        Returns:
            mask_rcnn.Detections: On the host, in pixels of the image, without padding.  A model on a
            GPU pastes the masks there.
        """
        to_cpu = chainer.backends.cuda.to_cpu
        results = {'boxes': boxes, 'labels': labels, 'scores': scores, 'mask_probs': mask_probs, 'keypoints': keypoints}
        results = {name: to_cpu(array) for name, array in results.items() if array is not None}
        if self._padded:
            found = np.isfinite(results['scores'])
            results = {name: array[found] for name, array in results.items()}
        dialect = self.config.dialect
        boxes = results['boxes']
        if dialect.detections.postprocess_in_input_space:
            boxes = transform.invert_boxes(boxes)
        if dialect.detections.integer_boxes:
            boxes = np.rint(boxes + np.float32([0, 0, 1, 1]))
        from mask_rcnn.inference.detections import Detections

        detections = Detections(
            **{**results, 'boxes': boxes},
            size=transform.size,
            class_names=self.class_names,
            category_ids=self.category_ids,
            dialect=dialect,
            paste_device=self.device if self._padded else None,
        )
        if dialect.detections.integer_boxes:
            detections = detections[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        return detections

    def pool_mask_features(self, features, rois, indices, box_features=None):
        """Return the RoI features at which the mask head looks.

        Args:
            features: The feature maps.
            rois: ``(R, 4)`` float32 boxes in the network input.
            indices: ``(R,)`` int32: the image of each RoI.
            box_features: Those of the box head for the same RoIs, where somebody has them already.
        """
        if self.mask_head.pool is not None:
            return self.mask_head.pool(features, rois, indices)
        return self.box_head.roi_features(features, rois, indices) if box_features is None else box_features

    def _name_rois(self, features, rois, indices):
        scores, deltas = self.box_head(self.box_head.roi_features(features, rois, indices))
        return F.softmax(as_float32(scores)).array, as_float32(deltas).array

    def _draw_rois(self, features, rois, indices):
        return (self.mask_head(self.pool_mask_features(features, rois, indices)).array,)

    def _locate_in_rois(self, features, rois, indices):
        return (as_float32(self.keypoint_head(self.keypoint_head.pool(features, rois, indices))).array,)

    def _in_parts(self, head, features, rois, at_once):
        """Run a head on the RoIs of all images.

        Args:
            head: Takes maps, RoIs and the image of each RoI, and returns arrays.
            features: The feature maps.
            rois: ``(R, 4)`` for each image.
            at_once: How many RoIs to look at at a time; a GPU looks at all of them.

        Returns:
            list: The head's outputs for the RoIs of all images, one after the other.
        """
        xp = self.xp
        indices = xp.concatenate([xp.full((len(own),), i, np.int32) for i, own in enumerate(rois)])
        rois = xp.concatenate(rois)
        at_once = at_once if xp is np else max(len(rois), 1)
        parts = [slice(start, start + at_once) for start in range(0, max(len(rois), 1), at_once)]
        outputs = [head(features, rois[part], indices[part]) for part in parts]
        return [output[0] if len(output) == 1 else xp.concatenate(output) for output in zip(*outputs)]


def _split(joined, parts: Sequence) -> list:
    """Return the rows of an array for each of the parts that were joined."""
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [joined[start:end] for start, end in zip([0, *ends], ends)]
