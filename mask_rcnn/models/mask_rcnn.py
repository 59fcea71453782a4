"""Mask R-CNN (He et al. 2017) put together: image, extractor, RPN, the heads, detections."""

from __future__ import annotations

from collections.abc import Iterable

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.datasets.image_io import to_image_array
from mask_rcnn.datasets.placement import Placement
from mask_rcnn.datasets.transforms import prepare_image
from mask_rcnn.detections import Detections
from mask_rcnn.models.convolution import as_float32
from mask_rcnn.ops.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.derived import constant_parameters, one_image
from mask_rcnn.ops.keypoints import decode_heatmaps
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
        keypoint_head: Link like :class:`~mask_rcnn.models.keypoint_head.KeypointHead`, or ``None`` for a
            network that finds no keypoints.
        config (mask_rcnn.config.Config): Sizes, thresholds and the dialect.
        class_names: Names of the ``n_fg_class`` classes, or ``None``.
        category_ids: Numbers of the classes in COCO files, or ``None`` for 1, 2 ...
    """

    def __init__(self, extractor, rpn, box_head, mask_head=None, keypoint_head=None, *, config,
                 class_names=None, category_ids=None):
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

    def detect(self, images: Iterable) -> list[Detections]:
        """Find the objects in images.

        Args:
            images: File names, ``(3, H, W)`` float arrays (RGB, 0 to 255) or ``(H, W, 3)`` uint8
                arrays (RGB); see :func:`mask_rcnn.datasets.image_io.to_image_array`.

        Returns:
            list of mask_rcnn.Detections: One for each image, best detection first.
        """
        detections, last = [], None
        with chainer.using_config('train', False), chainer.no_backprop_mode(), constant_parameters():
            for image in images:
                found = self._find(to_image_array(image))  # a GPU is still busy with it ...
                if last is not None:
                    detections.append(self.assemble(*last))  # ... while the image before is waited for
                last = found
            return detections if last is None else [*detections, self.assemble(*last)]

    def predict(self, imgs):
        """Find the objects in images: the interface of ChainerCV's instance segmentation links.

        A network without a mask head is one of ChainerCV's detection links: it returns boxes instead of
        masks.

        Args:
            imgs: Iterable of what :meth:`detect` takes.

        Returns:
            tuple of three lists: For each image, masks ``(R, H, W)`` bool (or boxes ``(R, 4)`` float32),
            labels ``(R,)`` int32 (0 is the first foreground class) and scores ``(R,)`` float32.
        """
        detections = self.detect(imgs)
        return ([d.masks if d.has_masks else d.boxes for d in detections], [d.labels for d in detections],
                [d.scores for d in detections])

    def _find(self, image: np.ndarray) -> tuple:
        """Return what :meth:`assemble` takes."""
        with one_image():
            x, placement = self.prepare(image)
            maps = self.extract(x)
            rois = self.propose(maps, x.shape[2:], placement.scale)
            boxes, labels, scores = self.classify(maps, rois, placement)
            mask_probs = self.segment(maps, boxes, labels, placement) if self.config.masks else None
            keypoints = self.locate(maps, boxes, placement) if self.config.n_keypoint else None
        return boxes, labels, scores, mask_probs, placement, keypoints

    # The stages of detect; scripts/benchmark.py times them one by one.

    def prepare(self, image: np.ndarray):
        """Make the network's input of an image.

        Args:
            image: ``(3, H, W)`` float32, RGB, 0 to 255.

        Returns:
            tuple: ``(1, 3, h, w)`` float32 array on the model's device, and the image's
            :class:`~mask_rcnn.datasets.placement.Placement` in it; see
            :func:`mask_rcnn.datasets.transforms.prepare_image`.
        """
        x, placement = prepare_image(image, self.config)
        return self.xp.asarray(x[None]), placement

    def extract(self, x):
        """Return the feature maps, a tuple of arrays, of an input ``(1, 3, h, w)``."""
        return tuple(features.array for features in self.extractor(x))

    def propose(self, maps, size, scale: float):
        """Return the proposals ``(K, 4)`` float32 of an image, in the network input.

        Args:
            maps: What :meth:`extract` returned.
            size: Height and width of the network input.
            scale: Network input pixels per pixel of the original image.
        """
        logits, deltas = ([own.array[0] for own in outputs] for outputs in self.rpn(maps))
        return self.rpn.propose(logits, deltas, size, scale, padded=self._padded)[0]

    def classify(self, maps, rois, placement: Placement):
        """Return the detections among proposals.

        Args:
            maps: What :meth:`extract` returned.
            rois: ``(K, 4)`` float32 boxes in the network input.
            placement: What :meth:`prepare` returned.

        Returns:
            tuple: Boxes ``(R, 4)`` float32, in the original image or in the network input as the dialect has it
            (``detect_in_input``), labels ``(R,)`` int32 and scores ``(R,)`` float32, best first.
        """
        config, dialect = self.config, self.config.dialect
        probs, deltas = self._in_parts(self._name_rois, maps, rois, self.box_head.rois_at_once)
        boxes = decode_boxes(rois if dialect.detect_in_input else placement.to_image(rois), deltas,
                             weights=dialect.box_delta_weights, extent=dialect.box_extent,
                             clip=dialect.delta_clip)
        boxes = self._clip(boxes, placement)
        if self._padded:  # RoIs of nothing are nothing
            probs = self.xp.where(self.xp.isnan(rois[:, :1]), np.float32(0), probs)
        return select_detections(
            probs, boxes, score_threshold=config.score_threshold, nms_threshold=config.nms_threshold,
            max_detections=config.max_detections, extent=dialect.box_extent, inclusive=dialect.nms_inclusive,
            best_class_only=dialect.best_class_only, score_inclusive=dialect.score_inclusive,
            limit_ties=dialect.limit_ties, padded=self._padded)

    @property
    def _padded(self) -> bool:
        """Whether arrays between the stages are padded (:mod:`mask_rcnn.ops.proposals`).

        On a GPU: until the results arrive on the host, it waits for nothing, and every image of a size runs the
        same kernels on the same shapes.
        """
        return self.xp is not np

    def _clip(self, boxes, placement: Placement):
        """Clip boxes to the image, wherever it lies."""
        if not self.config.dialect.detect_in_input:
            return clip_boxes(boxes, placement.size, extent=self.config.dialect.clip_extent)
        low, high = placement.window[:2], placement.window[2:]
        return clip_boxes(boxes, [end - start for start, end in zip(low, high)], extent=0.0, origin=low)

    def segment(self, maps, boxes, labels, placement: Placement):
        """Return the mask probabilities ``(R, M, M)`` float32 of detections, each for its class.

        Args:
            maps: What :meth:`extract` returned.
            boxes: ``(R, 4)`` float32, as :meth:`classify` returned them.
            labels: ``(R,)`` int32.
            placement: What :meth:`prepare` returned.
        """
        rois = boxes if self.config.dialect.detect_in_input else placement.to_input(boxes)
        logits, = self._in_parts(self._draw_rois, maps, rois, self.mask_head.rois_at_once)
        chosen = chainer.as_variable(logits[self.xp.arange(len(labels)), labels])
        return F.sigmoid(as_float32(chosen)).array

    def locate(self, maps, boxes, placement: Placement):
        """Return the keypoints ``(R, K, 4)`` of detections: :func:`~mask_rcnn.ops.keypoints.decode_heatmaps`.

        Args:
            maps: What :meth:`extract` returned.
            boxes: ``(R, 4)`` float32, as :meth:`classify` returned them.
            placement: What :meth:`prepare` returned.
        """
        in_input = self.config.dialect.detect_in_input
        rois, boxes = (boxes, placement.to_image(boxes)) if in_input else (placement.to_input(boxes), boxes)
        heatmaps, = self._in_parts(self._locate_in_rois, maps, rois, self.keypoint_head.rois_at_once)
        if self._padded:
            boxes = self.xp.nan_to_num(boxes)
        return decode_heatmaps(heatmaps, boxes)

    def assemble(self, boxes, labels, scores, mask_probs, placement: Placement, keypoints=None) -> Detections:
        """Return detections on the host; their masks are pasted when somebody asks for them."""
        to_cpu = chainer.backends.cuda.to_cpu
        results = {'boxes': boxes, 'labels': labels, 'scores': scores, 'mask_probs': mask_probs,
                   'keypoints': keypoints}
        results = {name: to_cpu(array) for name, array in results.items() if array is not None}
        if self._padded:
            found = np.isfinite(results['scores'])
            results = {name: array[found] for name, array in results.items()}
        dialect = self.config.dialect
        boxes = results['boxes']
        if dialect.detect_in_input:
            boxes = placement.to_image(boxes)
        if dialect.integer_boxes:
            boxes = np.rint(boxes + np.float32([0, 0, 1, 1]))
        detections = Detections(**{**results, 'boxes': boxes}, size=placement.size,
                                class_names=self.class_names, category_ids=self.category_ids, dialect=dialect)
        if dialect.integer_boxes:
            detections = detections[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        return detections

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
        return F.softmax(as_float32(scores)).array, as_float32(deltas).array

    def _draw_rois(self, maps, rois, indices):
        return self.mask_head(self.mask_features(maps, rois, indices)).array,

    def _locate_in_rois(self, maps, rois, indices):
        return as_float32(self.keypoint_head(self.keypoint_head.pool(maps, rois, indices))).array,

    def _in_parts(self, head, maps, rois, at_once):
        """Run a head on some RoIs at a time, on a GPU on all of them, and join its outputs."""
        at_once = at_once if self.xp is np else max(len(rois), 1)
        starts = range(0, max(len(rois), 1), at_once)
        parts = [rois[start:start + at_once] for start in starts]
        outputs = [head(maps, part, self.xp.zeros(len(part), np.int32)) for part in parts]
        return [self.xp.concatenate(output) for output in zip(*outputs)]
