"""Region proposal network (Ren et al. 2015, section 3)."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.layers.convolution import Convolution2D
from mask_rcnn.ops.boxes.anchors import detectron_cell_anchors, matterport_cell_anchors, shift_anchors
from mask_rcnn.ops.boxes.proposals import generate_proposals


class RPN(chainer.Chain):
    """Objectness and deltas for the anchors of every location, and proposals from them.

    One set of weights looks at all feature maps (Lin et al. 2017, section 4.1).

    Args:
        in_channels (int): Channels of the feature maps.
        strides: Input pixels per location of each map.
        config (mask_rcnn.config.Config): Anchors, limits and thresholds (``anchor_*``, ``rpn_*``).
    """

    def __init__(self, in_channels, *, strides, config):
        super().__init__()
        self.strides = tuple(strides)
        self.config = config
        sizes = [config.anchor_sizes] if len(strides) == 1 else [(size,) for size in config.anchor_sizes]
        self.cell_anchors = [
            detectron_cell_anchors(stride, level_sizes, config.anchor_ratios)
            if config.dialect.rpn.round_anchors
            else matterport_cell_anchors(level_sizes, config.anchor_ratios)
            for stride, level_sizes in zip(self.strides, sizes)
        ]
        self._anchors = {}
        n_anchor = len(self.cell_anchors[0])
        channels = config.rpn_channels or in_channels
        init = chainer.initializers.Normal(0.01)
        with self.init_scope():
            self.conv = Convolution2D(in_channels, channels, 3, pad=1, initialW=init)
            self.objectness = Convolution2D(channels, n_anchor, 1, initialW=init)
            self.delta = Convolution2D(channels, 4 * n_anchor, 1, initialW=init)

    def forward(self, features):
        """Look at feature maps.

        Args:
            features: ``(N, C, H, W)`` float32 each.

        Returns:
            tuple: For each map, the logits ``(N, A, H, W)``; and the deltas ``(N, 4 * A, H, W)``, whose
            channels ``4 * a`` ... are anchor ``a``'s ``(dy, dx, dh, dw)``: two lists of
            :class:`chainer.Variable`.
        """
        hidden = [self.conv(x, relu=True) for x in features]
        return [self.objectness(h) for h in hidden], [self.delta(h) for h in hidden]

    def anchors(self, sizes):
        """Return the anchors of each map, ``(H * W * A, 4)`` float32, on the link's device.

        Args:
            sizes: Height and width of each map.
        """
        key = tuple(map(tuple, sizes)), self.device
        if key not in self._anchors:
            anchors = [
                self.xp.asarray(shift_anchors(cell, stride, *size))
                for cell, stride, size in zip(self.cell_anchors, self.strides, sizes)
            ]
            self._anchors = {key: anchors}  # of the last size only
        return self._anchors[key]

    def propose(self, logits, deltas, size, scale, *, pre_nms=None, post_nms=None, padded=False):
        """Return the proposals of one image.

        Args:
            logits: For each map, ``(A, H, W)`` array of floats.
            deltas: For each map, ``(4 * A, H, W)`` array of floats.
            size: Height and width of the network input.
            scale: Network input pixels per pixel of the original image.
            pre_nms: Best anchors of a map to look at, instead of the configuration's.
            post_nms: Proposals to return, instead of the configuration's.
            padded: See :mod:`mask_rcnn.ops.boxes.proposals`.

        Returns:
            tuple: Boxes ``(K, 4)`` float32 in the network input and objectness ``(K,)``, falling.
        """
        config, dialect = self.config, self.config.dialect
        scores = [F.sigmoid(own.astype(np.float32, copy=False)).array for own in logits]
        deltas = [own.astype(np.float32, copy=False) for own in deltas]
        return generate_proposals(
            scores,
            deltas,
            self.anchors([own.shape[1:] for own in logits]),
            size,
            scale,
            pre_nms=pre_nms or config.rpn_pre_nms,
            post_nms=post_nms or config.rpn_post_nms,
            nms_threshold=config.rpn_nms_threshold,
            min_size=config.rpn_min_size,
            weights=dialect.boxes.rpn_delta_weights,
            offset=dialect.boxes.offset,
            clip_offset=dialect.boxes.clip_offset,
            max_log_scale=dialect.boxes.max_log_scale,
            suppress_equal=dialect.boxes.nms_suppress_equal,
            per_level=dialect.rpn.proposals_per_level,
            padded=padded,
        )
