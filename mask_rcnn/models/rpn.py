"""Region proposal network (Ren et al. 2015, section 3)."""

from __future__ import annotations

import chainer
import chainer.functions as F

from mask_rcnn.models.convolution import Convolution2D
from mask_rcnn.ops.anchors import cell_anchors, shift_anchors
from mask_rcnn.ops.proposals import generate_proposals


class RPN(chainer.Chain):
    """Objectness and deltas for the anchors of every location, and proposals from them.

    Args:
        in_channels (int): Channels of the feature map.
        stride (int): Input pixels per location.
        config (mask_rcnn.config.Config): Anchors, limits and thresholds (``anchor_*``, ``rpn_*``).
    """

    def __init__(self, in_channels, *, stride, config):
        super().__init__()
        self.stride = stride
        self.config = config
        self.cell_anchors = cell_anchors(stride, config.anchor_sizes, config.anchor_ratios)
        self._anchors = {}
        n_anchor = len(self.cell_anchors)
        init = chainer.initializers.Normal(0.01)
        with self.init_scope():
            self.conv = Convolution2D(in_channels, in_channels, 3, pad=1, initialW=init)
            self.objectness = Convolution2D(in_channels, n_anchor, 1, initialW=init)
            self.delta = Convolution2D(in_channels, 4 * n_anchor, 1, initialW=init)

    def forward(self, features):
        """Look at a feature map.

        Args:
            features: ``(N, C, H, W)`` float32.

        Returns:
            tuple: Logits ``(N, A, H, W)`` and deltas ``(N, 4 * A, H, W)``, both
            :class:`chainer.Variable`; channels ``4 * a`` ... are anchor ``a``'s ``(dy, dx, dh, dw)``.
        """
        h = self.conv(features, relu=True)
        return self.objectness(h), self.delta(h)

    def anchors(self, height: int, width: int):
        """Return the anchors ``(height * width * A, 4)`` float32 of a map, on the link's device."""
        key = height, width, self.device
        if key not in self._anchors:
            anchors = shift_anchors(self.cell_anchors, self.stride, height, width)
            self._anchors = {key: self.xp.asarray(anchors)}  # of the last size only
        return self._anchors[key]

    def propose(self, logits, deltas, size, scale):
        """Return the proposals of one image.

        Args:
            logits: ``(A, H, W)`` float32 array.
            deltas: ``(4 * A, H, W)`` float32 array.
            size: Height and width of the network input.
            scale: Network input pixels per pixel of the original image.

        Returns:
            tuple: Boxes ``(K, 4)`` float32 in the network input and objectness ``(K,)``, falling.
        """
        config = self.config
        return generate_proposals(
            F.sigmoid(logits).array, deltas, self.anchors(*logits.shape[1:]), size, scale,
            pre_nms=config.rpn_pre_nms, post_nms=config.rpn_post_nms,
            nms_threshold=config.rpn_nms_threshold, min_size=config.rpn_min_size,
            weights=config.dialect.rpn_delta_weights, extent=config.dialect.box_extent,
            clip=config.dialect.delta_clip)
