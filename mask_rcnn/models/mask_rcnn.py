"""Mask R-CNN (He et al. 2017) put together: image, extractor, RPN, box head, mask head, detections."""

from __future__ import annotations

from collections.abc import Iterable

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.datasets.image_io import to_image_array
from mask_rcnn.datasets.transforms import prepare_image
from mask_rcnn.detections import Detections
from mask_rcnn.ops.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.proposals import select_detections


class MaskRCNN(chainer.Chain):
    """Mask R-CNN, composed from parts that are handed in.

    Args:
        extractor: Link from images ``(N, 3, H, W)`` to a tuple of feature maps ``(N, C, h, w)``.
        rpn: Link with ``forward`` and ``propose`` like :class:`~mask_rcnn.models.rpn.RPN`.
        box_head: Link with ``features`` and ``forward`` like
            :class:`~mask_rcnn.models.box_head.Res5BoxHead`.
        mask_head: Link like :class:`~mask_rcnn.models.mask_head.MaskHead`, or ``None`` for a network that draws
            no masks.
        config (mask_rcnn.config.Config): Sizes, thresholds and the dialect.
        class_names: Names of the ``n_fg_class`` classes, or ``None``.
        category_ids: Numbers of the classes in COCO files, or ``None`` for 1, 2 ...
    """

    def __init__(self, extractor, rpn, box_head, mask_head, *, config, class_names=None,
                 category_ids=None):
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
        self.config = config
        self.class_names = None if class_names is None else tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(category_ids)

    def detect(self, images: Iterable) -> list[Detections]:
        """Find the objects in images.

        Args:
            images: File names, ``(3, H, W)`` float arrays (RGB, 0 to 255) or ``(H, W, 3)`` uint8
                arrays (RGB); see :func:`mask_rcnn.datasets.image_io.to_image_array`.

        Returns:
            list of mask_rcnn.Detections: One for each image, best detection first.
        """
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return [self._detect_one(to_image_array(image)) for image in images]

    def predict(self, imgs):
        """Find the objects in images: the interface of ChainerCV's instance segmentation links.

        Args:
            imgs: Iterable of what :meth:`detect` takes.

        Returns:
            tuple of three lists: For each image, masks ``(R, H, W)`` bool, labels ``(R,)`` int32 (0 is
            the first foreground class) and scores ``(R,)`` float32.
        """
        detections = self.detect(imgs)
        return ([d.masks for d in detections], [d.labels for d in detections],
                [d.scores for d in detections])

    def _detect_one(self, image: np.ndarray) -> Detections:
        size = image.shape[1:]
        x, scale = self.prepare(image)
        maps = self.extract(x)
        rois = self.propose(maps, x.shape[2:], scale)
        boxes, labels, scores = self.classify(maps, rois, size, scale)
        mask_probs = self.segment(maps, boxes, labels, scale) if self.config.masks else None
        return self.assemble(boxes, labels, scores, mask_probs, size)

    # The stages of _detect_one; scripts/benchmark.py times them one by one.

    def prepare(self, image: np.ndarray):
        """Make the network's input of an image.

        Args:
            image: ``(3, H, W)`` float32, RGB, 0 to 255.

        Returns:
            tuple: ``(1, 3, h, w)`` float32 array on the model's device, and the scale ``h / H``; see
            :func:`mask_rcnn.datasets.transforms.prepare_image`.
        """
        x, scale = prepare_image(image, self.config)
        return self.xp.asarray(x[None]), scale

    def extract(self, x):
        """Return the feature maps, a tuple of arrays, of an input ``(1, 3, h, w)``."""
        return tuple(features.array for features in self.extractor(x))

    def propose(self, maps, size, scale: float):
        """Return the proposals ``(K, 4)`` float32 of an image, in the network input.

        Args:
            maps: What :meth:`extract` returned.
            size: Height and width of the network input.
            scale: The scale that :meth:`prepare` returned.
        """
        logits, deltas = ([own.array[0] for own in outputs] for outputs in self.rpn(maps))
        return self.rpn.propose(logits, deltas, size, scale)[0]

    def classify(self, maps, rois, size, scale: float):
        """Return the detections among proposals.

        Args:
            maps: What :meth:`extract` returned.
            rois: ``(K, 4)`` float32 boxes in the network input.
            size: Height and width of the original image.
            scale: The scale that :meth:`prepare` returned.

        Returns:
            tuple: Boxes ``(R, 4)`` float32 in the original image, labels ``(R,)`` int32 and scores
            ``(R,)`` float32, best first.
        """
        config, dialect = self.config, self.config.dialect
        probs, deltas = self._in_parts(self._name_rois, maps, rois, self.box_head.rois_at_once)
        boxes = decode_boxes(rois / rois.dtype.type(scale), deltas, weights=dialect.box_delta_weights,
                             extent=dialect.box_extent, clip=dialect.delta_clip)
        boxes = clip_boxes(boxes, size, extent=dialect.box_extent)
        return select_detections(
            probs, boxes, score_threshold=config.score_threshold, nms_threshold=config.nms_threshold,
            max_detections=config.max_detections, extent=dialect.box_extent)

    def segment(self, maps, boxes, labels, scale: float):
        """Return the mask probabilities ``(R, M, M)`` float32 of detections, each for its class.

        Args:
            maps: What :meth:`extract` returned.
            boxes: ``(R, 4)`` float32 in the original image.
            labels: ``(R,)`` int32.
            scale: The scale that :meth:`prepare` returned.
        """
        rois = boxes * boxes.dtype.type(scale)
        logits, = self._in_parts(self._draw_rois, maps, rois, self.mask_head.rois_at_once)
        chosen = logits[self.xp.arange(len(labels)), labels]
        return F.sigmoid(chosen).array

    def assemble(self, boxes, labels, scores, mask_probs, size) -> Detections:
        """Return detections on the host; their masks are pasted when somebody asks for them."""
        def to_cpu(array):
            return None if array is None else chainer.backends.cuda.to_cpu(array)

        return Detections(
            boxes=to_cpu(boxes), labels=to_cpu(labels), scores=to_cpu(scores),
            mask_probs=to_cpu(mask_probs), size=tuple(size), class_names=self.class_names,
            category_ids=self.category_ids, dialect=self.config.dialect)

    def mask_features(self, maps, rois, indices, box_features=None):
        """Return the RoI features at which the mask head looks.

        Args:
            maps: The feature maps.
            rois: ``(R, 4)`` float32 boxes in the network input.
            indices: ``(R,)`` int32: the image of each RoI.
            box_features: Those of the box head for the same RoIs, where somebody has them already.
        """
        if self.mask_head.pool is not None:
            return self.mask_head.pool(maps, rois, indices)
        return self.box_head.features(maps, rois, indices) if box_features is None else box_features

    def _name_rois(self, maps, rois, indices):
        scores, deltas = self.box_head(self.box_head.features(maps, rois, indices))
        return F.softmax(scores).array, deltas.array

    def _draw_rois(self, maps, rois, indices):
        return self.mask_head(self.mask_features(maps, rois, indices)).array,

    def _in_parts(self, head, maps, rois, at_once):
        """Run a head on some RoIs at a time and join its outputs."""
        starts = range(0, max(len(rois), 1), at_once)
        parts = [rois[start:start + at_once] for start in starts]
        outputs = [head(maps, part, self.xp.zeros(len(part), np.int32)) for part in parts]
        return [self.xp.concatenate(output) for output in zip(*outputs)]
