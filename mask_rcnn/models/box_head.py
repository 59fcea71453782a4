"""Box heads: classify RoIs and regress their boxes."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.models.backbones.resnet import PoolAfterConv, ResNetStage, grouped_width
from mask_rcnn.models.initializers import glorot_uniform, he_normal, normal
from mask_rcnn.models.layers import Linear, as_float32, make_convolution, output_layers
from mask_rcnn.models.roi_pooling import RoIPooling, run_in_chunks, split_by_image
from mask_rcnn.ops.boxes import padded_selection
from mask_rcnn.ops.boxes.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.boxes.nms import GroupShift
from mask_rcnn.ops.boxes.proposals import select_detections
from mask_rcnn.ops.conv.average_pooling import global_average_pooling_2d
from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.ops.runtime.device import uses_padding


class BoxHead(chainer.Chain):
    """Base class of the box heads.

    A subclass has ``roi_features`` and ``forward`` like :class:`LinearBoxHead`.

    Args:
        config (mask_rcnn.config.Config): Thresholds and the dialect.

    Attributes:
        cpu_chunk_size (int): Number of RoIs that :meth:`detect` passes through the head at a time on the CPU.
    """

    cpu_chunk_size: int

    def __init__(self, config):
        super().__init__()
        self.config = config

    def detect(self, features, proposals, transforms):
        """Detect objects among the proposals of a batch.

        Args:
            features: The extractor's feature maps, ``(N, C, H, W)`` floats each.
            proposals: For each image, ``(K, 4)`` float32 boxes in the network input.
            transforms: For each image, its :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            tuple: Three lists with an array for each image: boxes ``(R, 4)`` float32, labels ``(R,)`` int32 (0 is the
            first foreground class) and scores ``(R,)`` float32, in descending order of score.  The boxes are in pixels
            of the network input if the dialect has ``detections.postprocess_in_input_space``, otherwise in pixels of
            the original image.
        """
        probs, deltas = run_in_chunks(self._classify, features, proposals, self.cpu_chunk_size)
        detections = [
            self.decode(*image)
            for image in zip(
                proposals, split_by_image(probs, proposals), split_by_image(deltas, proposals), transforms, strict=True
            )
        ]
        if uses_padding(self.device) and not self.config.max_detections:
            detections = _with_equal_rows(detections)
        boxes, labels, scores = map(list, zip(*detections, strict=True))
        return boxes, labels, scores

    def _classify(self, features, rois, roi_indices):
        """Return class probabilities ``(R, 1 + C)`` and deltas ``(R, 4 * (1 + C))`` as float32 arrays."""
        scores, deltas = self(self.roi_features(features, rois, roi_indices))
        scores, deltas = as_float32(scores), as_float32(deltas).array
        if padded_selection.is_supported(deltas):
            return padded_selection.softmax_gpu(scores.array), deltas
        return F.softmax(scores).array, deltas

    def decode(self, rois, probs, deltas, transform):
        """Decode the outputs of the head into the detections of one image.

        Args:
            rois: ``(K, 4)`` float32 boxes in the network input.
            probs: ``(K, 1 + C)`` float32 class probabilities.
            deltas: ``(K, 4 * (1 + C))`` float32.
            transform: The image's :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            tuple: Boxes, labels and scores; see :meth:`detect`.
        """
        dialect, padded = self.config.dialect, uses_padding(self.device)
        if padded and padded_selection.is_supported(probs):
            return padded_selection.detect_gpu(
                rois, probs, deltas, _box_decoding(transform, dialect), **self.selection_options()
            )
        if padded:  # padding RoIs get score 0
            probs = self.xp.where(self.xp.isnan(rois[:, :1]), np.float32(0), probs)
        boxes = self.class_boxes(rois, deltas, transform)
        return select_detections(probs, boxes, offset=dialect.boxes.offset, padded=padded, **self.selection_options())

    def class_boxes(self, rois, deltas, transform):
        """Decode the deltas of one image and clip the boxes.

        Args:
            rois: ``(K, 4)`` float32 boxes in the network input.
            deltas: ``(K, 4 * (1 + C))`` float32.
            transform: The image's :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            array: ``(K, 4 * (1 + C))`` float32 boxes of every class, in the coordinates of :meth:`detect`.
        """
        dialect = self.config.dialect
        if not dialect.detections.postprocess_in_input_space:
            rois = transform.invert_boxes(rois)
        boxes = decode_boxes(
            rois,
            deltas,
            weights=dialect.boxes.box_delta_weights,
            offset=dialect.boxes.offset,
            max_log_scale=dialect.boxes.max_log_scale,
        )
        return clip_to_image(boxes, transform, dialect)

    def selection_options(self):
        """Return the options of :func:`~mask_rcnn.ops.boxes.proposals.select_detections` except the offset."""
        config, dialect = self.config, self.config.dialect
        return {
            'score_threshold': config.score_threshold,
            'nms_threshold': config.nms_threshold,
            'max_detections': config.max_detections,
            'suppress_equal': dialect.boxes.nms_suppress_equal,
            'shift': GroupShift(dialect.boxes.nms_shift_limit, int(dialect.detections.shift_counts_background)),
            'min_box_size': dialect.detections.min_box_size,
            'best_class_only': dialect.detections.best_class_only,
            'score_threshold_inclusive': dialect.detections.score_threshold_inclusive,
            'keep_ties': dialect.detections.keep_ties,
            'last_of_ties_first': dialect.boxes.last_of_ties_first,
        }


def _with_equal_rows(detections):
    """Return padded detections with one number of rows: the largest number of detections of an image, at least 1.

    Without a limit, the rows of an image are its candidates, most of which NMS suppresses.

    Args:
        detections: For each image, boxes ``(R, 4)``, labels ``(R,)`` and scores ``(R,)``; padding rows come last.
    """
    n_rows = max(1, *(int((scores > -np.inf).sum()) for _, _, scores in detections))
    paddings = np.nan, 0, -np.inf
    return [tuple(map(_with_rows, image, [n_rows] * 3, paddings)) for image in detections]


def _with_rows(array, n_rows, padding):
    """Return the first rows of an array, with padding after its last one."""
    xp, n_missing = get_array_module(array), n_rows - len(array)
    if n_missing <= 0:
        return array[:n_rows]
    return xp.concatenate([array, xp.full((n_missing, *array.shape[1:]), padding, array.dtype)])


def _box_decoding(transform, dialect) -> padded_selection.BoxDecoding:
    """Return the decoding of RoIs, which includes :func:`clip_to_image`."""
    boxes, origin = dialect.boxes, transform.window[:2]
    options = boxes.box_delta_weights, boxes.offset, boxes.max_log_scale
    if dialect.detections.postprocess_in_input_space:
        return padded_selection.BoxDecoding(*options, _window_size(transform), boxes.clip_offset, origin=origin)
    return padded_selection.BoxDecoding(
        *options, transform.size, boxes.clip_offset, factors=transform.factors, shift=origin
    )


def _window_size(transform):
    """Return height and width of the resized image, which lies in a window of the network input."""
    top, left, bottom, right = transform.window
    return bottom - top + 1, right - left + 1


def clip_to_image(boxes, transform, dialect):
    """Clip boxes to an image, which lies in a window of the network input.

    Args:
        boxes: ``(R, 4 * K)`` floats, in the network input if the dialect has
            ``detections.postprocess_in_input_space``, otherwise in the image.
        transform: The image's :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.
        dialect (mask_rcnn.config.Dialect): Provides ``boxes.clip_offset``.

    Returns:
        array: ``(R, 4 * K)`` of the same dtype.
    """
    offset = dialect.boxes.clip_offset
    if not dialect.detections.postprocess_in_input_space:
        return clip_boxes(boxes, transform.size, offset=offset)
    return clip_boxes(boxes, _window_size(transform), offset=offset, origin=transform.window[:2])


class Res5BoxHead(BoxHead):
    """RoI pooling, res5 and two linear layers: the head of the C4 networks.

    Two optimisations change neither outputs nor gradients.  In a 14 x 14 RoI grid, res5's first convolutions (1x1,
    stride 2) read every second bin of every second row: only these bins are computed, and res5 runs on the resulting
    7 x 7 grid with stride 1.  If the RoIs have more bins than the feature map has locations, RoIAlign runs after
    these convolutions (:class:`~mask_rcnn.models.backbones.resnet.PoolAfterConv`): 1000 RoIs on a map of 50 x 84 take
    22 instead of 257 GFLOP.  Neither applies to a dialect with ``backbone.stride_in_3x3``, where res5's first 3x3
    convolution reads all bins.

    Args:
        in_channels (int): Channels of the feature map.
        strides: Input pixels per location of the feature map, a sequence of one value.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``norm``, ``roi_*``, ``sampling_ratio``, thresholds and the
            dialect.

    Attributes:
        average_size (int): Height and width of the window of bins that :meth:`forward` averages.
    """

    out_channels = 2048
    #: Larger chunks amortise the Winograd filter transform; activations need up to 0.8 MB per RoI.
    cpu_chunk_size = 500

    def __init__(self, in_channels, *, strides, config):
        super().__init__(config)
        stride, self._stride_in_3x3 = config.roi_size // 7, config.dialect.backbone.stride_in_3x3
        bin_step = 1 if self._stride_in_3x3 else stride
        self.pool = RoIPooling(strides, config.roi_size, config=config, bin_step=bin_step)
        n_class = config.n_fg_class + 1
        self.average_size = config.roi_size // 2 if config.dialect.rois.average_half_window else 7
        with self.init_scope():
            width = grouped_width(config.backbone, self.out_channels)
            self.res5 = ResNetStage(
                RESNET_BLOCKS[config.backbone][3],
                in_channels,
                **width,
                stride=stride // bin_step,
                norm=config.norm,
                stride_in_3x3=self._stride_in_3x3,
            )
            self.score = L.Linear(self.out_channels, n_class, initialW=normal(0.01))
            self.delta = L.Linear(self.out_channels, 4 * n_class, initialW=normal(0.001))

    def roi_features(self, features, rois, roi_indices):
        """Return the RoIs' features after res5.

        Args:
            features: The feature map ``(N, C, H, W)`` floats, in a tuple.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32 index of each RoI's image in the batch.

        Returns:
            chainer.Variable: ``(R, 2048, 7, 7)``.
        """
        (feature_map,) = features
        n_bins, n_locations = len(rois) * 7 * 7, feature_map.size // feature_map.shape[1]
        if self._stride_in_3x3 or not self.pool.config.roi_align or n_bins < n_locations:
            return self.res5(self.pool(features, rois, roi_indices))
        return self.res5(feature_map, PoolAfterConv(self.pool, rois, roi_indices))

    def forward(self, roi_features):
        """Classify RoIs and regress their boxes.

        Args:
            roi_features: ``(R, 2048, 7, 7)`` from :meth:`roi_features`.

        Returns:
            tuple: Logits ``(R, 1 + C)`` and deltas ``(R, 4 * (1 + C))``, both :class:`chainer.Variable`.  Class 0 is
            the background; each class has ``(dy, dx, dh, dw)``.
        """
        if self.average_size < 7:
            roi_features = roi_features[:, :, : self.average_size, : self.average_size]
        return output_layers(global_average_pooling_2d(roi_features), self.score, self.delta)


class LinearBoxHead(BoxHead):
    """RoI pooling, 3x3 convolutions, hidden linear layers and two output layers: the head of the FPN networks.

    Without convolutions and with two hidden layers: Lin et al. 2017, section 4.2, and ``add_roi_2mlp_head`` of
    ``detectron/modeling/fast_rcnn_heads.py``.  With four convolutions and one hidden layer: Wu and He 2018, section
    4.2, and ``add_roi_Xconv1fc_gn_head``.

    Args:
        in_channels (int): Channels of the feature maps.
        strides: Input pixels per location of each feature map.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``head_channels``, ``head_norm``, ``box_*``, ``roi_*``,
            ``sampling_ratio``, thresholds and the dialect.
    """

    def __init__(self, in_channels, *, strides, config):
        super().__init__(config)
        self.pool = RoIPooling(strides, config.roi_size, config=config)
        # The weights of the linear layers are read once per chunk; the activations of a convolution need 50 kB per RoI.
        self.cpu_chunk_size = 256 if config.box_convs else 1024
        n_class, channels = config.n_fg_class + 1, config.head_channels
        conv_options = {'norm': config.head_norm, 'initialW': he_normal(fan_option='fan_out')}
        with self.init_scope():
            for i in range(1, config.box_convs + 1):
                setattr(self, f'conv{i}', make_convolution(in_channels, in_channels, 3, pad=1, **conv_options))
            n_inputs = in_channels * config.roi_size**2
            for i in range(6, 6 + config.box_fcs):
                setattr(self, f'fc{i}', Linear(n_inputs, channels, initialW=glorot_uniform()))
                n_inputs = channels
            self.score = L.Linear(channels, n_class, initialW=normal(0.01))
            self.delta = L.Linear(channels, 4 * n_class, initialW=normal(0.001))

    def roi_features(self, features, rois, roi_indices):
        """Return the RoIs' features ``(R, C, roi_size, roi_size)``; see :class:`~.roi_pooling.RoIPooling`."""
        return self.pool(features, rois, roi_indices)

    def forward(self, roi_features):
        """Classify RoIs and regress their boxes; see :meth:`Res5BoxHead.forward`."""
        h = roi_features
        for i in range(1, self.config.box_convs + 1):
            h = self[f'conv{i}'](h, relu=True)
        for i in range(6, 6 + self.config.box_fcs):
            h = self[f'fc{i}'](h, relu=True)
        return output_layers(as_float32(h), self.score, self.delta)
