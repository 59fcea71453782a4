"""Mask head: predicts one mask per class for each RoI (He et al. 2017, figure 4)."""

from __future__ import annotations

from collections.abc import Callable

import chainer

from mask_rcnn.models.initializers import he_normal, normal
from mask_rcnn.models.layers import Convolution2D, Deconvolution2D, make_convolution
from mask_rcnn.models.roi_pooling import run_in_chunks, split_by_image
from mask_rcnn.ops.masks.class_masks import class_mask_probs


class MaskHead(chainer.Chain):
    """Convolutions, a deconvolution (2x2, stride 2), ReLU and a 1x1 convolution on the RoIs' features.

    Args:
        in_channels (int): Channels of the RoI features.
        n_conv (int): Number of 3x3 convolutions before the deconvolution: 0 in C4 networks, 4 in FPN networks.
        pool: RoI pooler, called with the feature maps, RoIs and image indices: a
            :class:`~mask_rcnn.models.roi_pooling.RoIPooling`, or the box head's ``roi_features``, which C4 networks
            share.
        shares_box_features (bool): Whether ``pool`` is the box head's ``roi_features``.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``mask_channels``, ``head_norm`` and the dialect.
    """

    #: Chunk size for CPU inference; usually all detections of an image are one chunk.
    cpu_chunk_size = 128

    def __init__(self, in_channels, *, n_conv=0, pool: Callable, shares_box_features=False, config):
        super().__init__()
        self.pool = pool
        self.shares_box_features = shares_box_features
        self.n_conv = n_conv
        self.config = config
        channels = config.mask_channels
        init = he_normal(fan_option='fan_out')
        # The standard deviation of the outputs does not depend on the number of classes.  With Detectron's fan-out
        # initialisation, made for COCO's 81 classes, a few classes would start with a mask loss near 10.
        with self.init_scope():
            for i in range(1, n_conv + 1):
                conv = make_convolution(in_channels, channels, 3, pad=1, norm=config.head_norm, initialW=init)
                setattr(self, f'conv{i}', conv)
                in_channels = channels
            self.deconv = Deconvolution2D(in_channels, channels, 2, stride=2, initialW=init)
            self.score = Convolution2D(channels, config.n_fg_class, 1, initialW=normal(0.001))

    def predict(self, features, boxes, labels, transforms):
        """Predict the masks of the detections of a batch.

        Args:
            features: The extractor's feature maps, ``(N, C, H, W)`` floats each.
            boxes: For each image, ``(R, 4)`` float32 from :meth:`mask_rcnn.models.box_head.BoxHead.detect`.
            labels: For each image, ``(R,)`` int32.
            transforms: For each image, its :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            list: For each image, the probabilities ``(R, M, M)`` float32 of each detection's class on a grid over its
            box.
        """
        rois = boxes
        if not self.config.dialect.detections.postprocess_in_input_space:
            rois = [
                transform.apply_boxes(image_boxes) for transform, image_boxes in zip(transforms, boxes, strict=True)
            ]
        (logits,) = run_in_chunks(self._predict_logits, features, rois, self.cpu_chunk_size)
        return split_by_image(class_mask_probs(logits, self.xp.concatenate(labels)), boxes)

    def _predict_logits(self, features, rois, roi_indices):
        return (self(self.roi_features(features, rois, roi_indices)).array,)

    def roi_features(self, features, rois, roi_indices, box_features=None):
        """Return the RoIs' features ``(R, C, h, w)``.

        Args:
            features: The feature maps.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32 index of each RoI's image in the batch.
            box_features: The box head's features of the same RoIs, if they have already been computed.  They are
                returned if ``shares_box_features`` is set.
        """
        if self.shares_box_features and box_features is not None:
            return box_features
        return self.pool(features, rois, roi_indices)

    def forward(self, roi_features):
        """Return mask logits ``(R, n_fg_class, 2 * h, 2 * w)`` for ``(R, C, h, w)``."""
        h = roi_features
        for i in range(1, self.n_conv + 1):
            h = self[f'conv{i}'](h, relu=True)
        return self.score(self.deconv(h, relu=True))
