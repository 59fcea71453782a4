"""Mask R-CNN (He et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import chainer

from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import Predictor, RawDetections
from mask_rcnn.io.wording import counted


class MaskRCNN(chainer.Chain):
    """Mask R-CNN: extractor, RPN, box head, mask head and keypoint head.

    Args:
        extractor: Link from images ``(N, 3, H, W)`` to a tuple of feature maps ``(N, C, h, w)``: a
            :class:`~mask_rcnn.models.backbones.resnet.ResNet` or an :class:`~mask_rcnn.models.backbones.fpn.FPN`.
        rpn: Link like :class:`~mask_rcnn.models.rpn.RPN`.
        box_head: Link like :class:`~mask_rcnn.models.box_head.BoxHead`.
        mask_head: Link like :class:`~mask_rcnn.models.mask_head.MaskHead`, or ``None`` for a network without masks.
        keypoint_head: Link like :class:`~mask_rcnn.models.keypoint_head.KeypointHead`, or ``None`` for a network
            without keypoints.
        config (mask_rcnn.config.Config): Sizes, thresholds and the dialect.
        class_names: Names of the ``n_fg_class`` classes, or ``None``.
        category_ids: COCO category ids of the classes, or ``None`` for 1, 2 ...
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
                raise ValueError(f'{len(values)} {name} for {counted(config.n_fg_class, "class", "classes")}')
        with self.init_scope():
            self.extractor = extractor
            self.rpn = rpn
            self.box_head = box_head
            if mask_head is not None:
                self.mask_head = mask_head
            if keypoint_head is not None:
                self.keypoint_head = keypoint_head
        self.config = self._loaded_config = config
        self.class_names = None if class_names is None else tuple(class_names)
        self.category_ids = None if category_ids is None else tuple(category_ids)

    def forward(self, x, transforms) -> RawDetections:
        """Detect objects in a batch of network inputs.

        This is inference; :class:`mask_rcnn.training.train_chain.MaskRCNNTrainChain` calls the parts for training.

        Args:
            x: ``(N, 3, H, W)`` floats.
            transforms: For each image, its :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            RawDetections: Lists with an array for each image.
        """
        features = self.extractor(x)
        proposals = self.rpn.propose(features, x.shape[2:], transforms)
        boxes, labels, scores = self.box_head.detect(features, proposals, transforms)
        masks = keypoints = None
        if self.config.masks:
            masks = self.mask_head.predict(features, boxes, labels, transforms)
        if self.config.n_keypoint:
            keypoints = self.keypoint_head.predict(features, boxes, transforms)
        return RawDetections(boxes, labels, scores, masks, keypoints)

    def use_preset(self, preset: str) -> None:
        """Set the thresholds of a purpose, with the interface of ChainerCV's links.

        :func:`mask_rcnn.save` stores the thresholds in force.

        Args:
            preset: ``'evaluate'`` for the thresholds with which the model was loaded, or ``'visualize'`` for those of
                pictures: a score above 0.7, and NMS with ``dialect.detections.visualize_nms_threshold``.

        Raises:
            ValueError: The preset is unknown.
        """
        config = self._loaded_config.for_preset(preset)
        self.set_thresholds(score=config.score_threshold, nms=config.nms_threshold)

    def set_thresholds(self, *, score: float | None = None, nms: float | None = None) -> None:
        """Set the thresholds of the detections.

        Args:
            score: Minimum score; ``None`` leaves it as it is.
            nms: IoU threshold of NMS; ``None`` leaves it as it is.

        Raises:
            ValueError: A threshold is not a number from 0 to 1.
        """
        thresholds = {'score_threshold': score, 'nms_threshold': nms}
        changes: dict[str, Any] = {name: value for name, value in thresholds.items() if value is not None}
        self.config = self.config.replace(**changes)
        self.box_head.config = self.box_head.config.replace(**changes)

    def detect(self, images: Iterable, *, batch_size: int | None = None) -> list[Detections]:
        """Detect objects in images; see :meth:`mask_rcnn.inference.predictor.Predictor.detect`."""
        return Predictor(self).detect(images, batch_size=batch_size)

    def iter_detections(self, images: Iterable, *, batch_size: int | None = None) -> Iterator[Detections]:
        """Detect objects in a stream of images; see :meth:`mask_rcnn.inference.predictor.Predictor.iter_detections`."""
        return Predictor(self).iter_detections(images, batch_size=batch_size)

    def predict(self, imgs: Iterable, *, batch_size: int | None = None) -> tuple[list, list, list]:
        """Detect objects in images with the interface of ChainerCV's instance segmentation links.

        A network without a mask head has the interface of ChainerCV's detection links: it returns boxes instead of
        masks.

        Args:
            imgs: Images; see :meth:`mask_rcnn.inference.predictor.Predictor.detect`.
            batch_size: See :meth:`mask_rcnn.inference.predictor.Predictor.iter_detections`.

        Returns:
            tuple: Three lists with an array for each image: ``(R, H, W)`` bool masks (or ``(R, 4)`` float32 boxes),
            ``(R,)`` int32 labels (0 is the first foreground class) and ``(R,)`` float32 scores.
        """
        detections = self.detect(imgs, batch_size=batch_size)
        return (
            [image.masks if image.has_masks else image.boxes for image in detections],
            [image.labels for image in detections],
            [image.scores for image in detections],
        )
