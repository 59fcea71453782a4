"""Region proposal network (Ren et al. 2015, section 3)."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.initializers import normal
from mask_rcnn.models.layers import Convolution2D
from mask_rcnn.ops.boxes import padded_selection
from mask_rcnn.ops.boxes.anchors import cell_anchors, shift_anchors, strides_of_size
from mask_rcnn.ops.boxes.nms import GroupShift
from mask_rcnn.ops.boxes.proposals import generate_proposals
from mask_rcnn.ops.runtime.cache import LastValue, retain
from mask_rcnn.ops.runtime.device import uses_padding


def level_cell_anchors(strides, config):
    """Return the anchors of the first location of each feature map, ``(A, 4)`` each.

    Args:
        strides: Input pixels per location of each feature map.
        config (mask_rcnn.config.Config): Sizes and ratios, and the dialect.
    """
    sizes = [config.anchor_sizes] if len(strides) == 1 else [(size,) for size in config.anchor_sizes]
    return [
        cell_anchors(config.dialect.rpn.anchors, stride, level_sizes, config.anchor_ratios)
        for stride, level_sizes in zip(strides, sizes, strict=True)
    ]


class RPN(chainer.Chain):
    """The region proposal network: objectness and deltas of the anchors at every location, decoded into proposals.

    All feature maps share one set of weights (Lin et al. 2017, section 4.1).

    Args:
        in_channels (int): Channels of the feature maps.
        strides: Input pixels per location of each feature map.
        config (mask_rcnn.config.Config): Anchors, limits and thresholds (``anchor_*``, ``rpn_*``).
    """

    def __init__(self, in_channels, *, strides, config):
        super().__init__()
        self.strides = tuple(strides)
        self.config = config
        self.cell_anchors = level_cell_anchors(self.strides, config)
        self._anchors, self._host_anchors = LastValue(), None
        n_anchors = len(self.cell_anchors[0])
        channels = config.rpn_channels or in_channels
        init = normal(0.01)
        with self.init_scope():
            self.conv = Convolution2D(in_channels, channels, 3, pad=1, initialW=init)
            for i in range(2, config.rpn_convs + 1):
                setattr(self, f'conv{i}', Convolution2D(channels, channels, 3, pad=1, initialW=init))
            self.objectness = Convolution2D(channels, n_anchors, 1, initialW=init)
            self.delta = Convolution2D(channels, 4 * n_anchors, 1, initialW=init)

    def propose(self, features, input_size, transforms):
        """Propose boxes for a batch.

        Args:
            features: The extractor's feature maps, ``(N, C, H, W)`` floats each.
            input_size: Height and width of the network input, with its padding.
            transforms: For each image, its :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            list: For each image, ``(K, 4)`` float32 boxes in the network input, in descending order of objectness.
        """
        logits, deltas = self(features)
        return [
            self.decode(
                [level_logits.array[i] for level_logits in logits],
                [level_deltas.array[i] for level_deltas in deltas],
                input_size,
                transform,
                padded=uses_padding(self.device),
            )[0]
            for i, transform in enumerate(transforms)
        ]

    def forward(self, features):
        """Predict objectness and deltas of all anchors.

        Args:
            features: ``(N, C, H, W)`` floats each.

        Returns:
            tuple: Two lists of :class:`chainer.Variable` with an entry for each feature map: logits ``(N, A, H, W)``
            and deltas ``(N, 4 * A, H, W)``, whose channels ``4 * a`` to ``4 * a + 3`` are the ``(dy, dx, dh, dw)`` of
            anchor ``a``.
        """
        hidden = [self._convolve(x) for x in features]
        return [self.objectness(h) for h in hidden], [self.delta(h) for h in hidden]

    def _convolve(self, x):
        h = self.conv(x, relu=True)
        for i in range(2, self.config.rpn_convs + 1):
            h = self[f'conv{i}'](h, relu=True)
        return h

    def anchors(self, sizes, input_size):
        """Return the anchors of each feature map, ``(H * W * A, 4)`` float32, on the link's device.

        Args:
            sizes: Height and width of each feature map.
            input_size: Height and width of the network input, with its padding.
        """

        def make():
            anchors = self.xp.asarray(self.host_anchors(sizes, input_size))
            counts = [height * width * len(self.cell_anchors[0]) for height, width in sizes]
            return self.xp.split(anchors, np.cumsum(counts)[:-1].tolist())

        return retain(self._anchors.get((self._distances(sizes, input_size), self.device), make))

    def host_anchors(self, sizes, input_size):
        """Return the anchors of all feature maps, ``(K, 4)`` float32, as a NumPy array.

        Copying them from a GPU would wait for the work that is queued there.

        Args:
            sizes: Height and width of each feature map.
            input_size: Height and width of the network input, with its padding.
        """
        key = self._distances(sizes, input_size)
        entry = self._host_anchors  # another thread may replace it at any time
        if entry is None or entry[0] != key:
            anchors = [
                shift_anchors(cell, distance, *size)
                for cell, (size, distance) in zip(self.cell_anchors, key, strict=True)
            ]
            entry = self._host_anchors = key, np.concatenate(anchors)  # keep only the last input size
        return entry[1]

    def _distances(self, sizes, input_size):
        """Return the size of each feature map, and the distances of its anchors along ``y`` and ``x``."""
        sizes = tuple((int(height), int(width)) for height, width in sizes)
        if self.config.dialect.rpn.strides_from_sizes:
            return tuple((size, strides_of_size(input_size, size)) for size in sizes)
        return tuple((size, (stride, stride)) for size, stride in zip(sizes, self.strides, strict=True))

    def decode(
        self,
        logits,
        deltas,
        input_size,
        transform,
        *,
        clip_to_image=None,
        pre_nms=None,
        post_nms=None,
        padded=False,
    ):
        """Decode the outputs of the network into the proposals of one image.

        Args:
            logits: For each feature map, an ``(A, H, W)`` array of floats.
            deltas: For each feature map, a ``(4 * A, H, W)`` array of floats.
            input_size: Height and width of the network input, with its padding.
            transform: The image's :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.
            clip_to_image: Whether the boxes are clipped to the image inside of the padded input, or to the padded
                input; by default ``dialect.rpn.clip_to_image``.
            pre_nms: Maximum number of anchors before NMS, per level or in total (``dialect.rpn.proposals_per_level``);
                by default ``config.rpn_pre_nms``.
            post_nms: Maximum number of proposals; by default ``config.rpn_post_nms``.
            padded: Whether the result is padded; see :mod:`mask_rcnn.ops.boxes.proposals`.

        Returns:
            tuple: Boxes ``(K, 4)`` float32 in the network input and objectness ``(K,)`` float32, in descending order of
            objectness, which is a logit if the dialect has ``rpn.rank_by_logits`` and a probability otherwise.
        """
        limits = {'pre_nms': pre_nms, 'post_nms': post_nms}
        inputs = self.selection_inputs(logits, deltas, input_size, transform, clip_to_image=clip_to_image, **limits)
        return generate_proposals(**inputs, padded=padded)

    def selection_inputs(
        self, logits, deltas, input_size, transform, *, clip_to_image=None, pre_nms=None, post_nms=None
    ):
        """Return the arguments of :func:`~mask_rcnn.ops.boxes.proposals.generate_proposals` for one image.

        Args:
            logits: See :meth:`decode`, as for the other arguments.
            deltas: For each feature map, a ``(4 * A, H, W)`` array of floats.
            input_size: Height and width of the network input.
            transform: The image's transform.
            clip_to_image: Whether the boxes are clipped to the image or to the padded input.
            pre_nms: Maximum number of anchors before NMS.
            post_nms: Maximum number of proposals.
        """
        config, dialect = self.config, self.config.dialect
        clip_to_image = dialect.rpn.clip_to_image if clip_to_image is None else clip_to_image
        min_size = np.float32(config.rpn_min_size)
        return {
            'scores': [self._scores(level_logits) for level_logits in logits],
            'deltas': deltas,
            'anchors': self.anchors([level_logits.shape[1:] for level_logits in logits], input_size),
            'size': transform.input_size if clip_to_image else input_size,
            'scale': 1.0 if dialect.rpn.min_size_in_input else transform.factors[0],
            'pre_nms': pre_nms or config.rpn_pre_nms,
            'post_nms': post_nms or config.rpn_post_nms,
            'nms_threshold': config.rpn_nms_threshold,
            'min_size': min_size if dialect.rpn.min_size_inclusive else np.nextafter(min_size, np.float32(np.inf)),
            'weights': dialect.boxes.rpn_delta_weights,
            'offset': dialect.boxes.offset,
            'clip_offset': dialect.boxes.clip_offset,
            'max_log_scale': dialect.boxes.max_log_scale,
            'suppress_equal': dialect.boxes.nms_suppress_equal,
            'shift': GroupShift(dialect.boxes.nms_shift_limit),
            'per_level': dialect.rpn.proposals_per_level,
            'last_of_ties_first': dialect.boxes.last_of_ties_first,
            'drop_small_first': dialect.rpn.drop_small_first,
            'require_centre_inside': dialect.rpn.require_centre_inside,
        }

    def _scores(self, logits):
        """Return the objectness of one level, ``(A, H, W)`` float32."""
        if self.config.dialect.rpn.rank_by_logits:
            return logits.astype(np.float32, copy=False)
        return _sigmoid(logits)


def _sigmoid(logits):
    if padded_selection.is_supported(logits):
        return padded_selection.sigmoid_gpu(logits)
    return F.sigmoid(logits.astype(np.float32, copy=False)).array
