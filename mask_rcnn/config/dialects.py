"""The dialects: every convention in which one original program differs from another."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """The conventions of one original program.

    Args:
        name: The name under which weight files refer to the dialect.
        channel_order: Order of the network input's colour channels, ``'RGB'`` or ``'BGR'``.
        pixel_mean: Subtracted from the input, in ``channel_order``.
        pixel_std: The input is divided by it, in ``channel_order``.
        resize: How an image is resized: ``'float'``, without its mean, as OpenCV resizes floats; or
            ``'uint8'``, before the mean is subtracted, as scikit-image does it, cut off to whole numbers.
        enlarge_only: Whether no image is made smaller to bring its shorter side to ``Config.min_size``.
        centred: Whether the image lies in the middle of a square of zeros (before the mean is subtracted), of
            ``Config.max_size`` pixels a side; else in the upper left corner of what its own size needs.
        bn_eps: Added to the variance in batch normalisation.
        stem_pool_pad: Rows and columns that the pooling behind conv1 adds on all sides; with 0 it adds them
            below and to the right, where they are needed (TensorFlow's ``SAME``).
        stride_in_3x3: Whether the stages of a feature pyramid's ResNet have their stride in the first 3x3
            convolution, or in the 1x1 before it, as C4 networks always have it.
        box_extent: A box from ``x1`` to ``x2`` is ``x2 - x1 + box_extent`` wide: 1 where corners are
            pixels that belong to the box, 0 where they are coordinates.
        clip_extent: Corners are clipped to ``[0, side - clip_extent]``; detections with ``detect_in_input`` to the
            centres of the image's corner pixels.
        anchors_rounded: Whether anchors have whole sides (:func:`mask_rcnn.ops.anchors.cell_anchors`) or not
            (:func:`mask_rcnn.ops.anchors.corner_anchors`).
        delta_clip: Upper limit of the predicted ``dh`` and ``dw`` (the logarithm of a growth factor).
        rpn_delta_weights: Factors of ``(dy, dx, dh, dw)`` in the RPN's regression targets.
        box_delta_weights: The same for the box head.
        proposals_by_map: Whether each feature map has its own limit and NMS of proposals, or all together.
        nms_inclusive: Whether a box is suppressed at an IoU of just the threshold, too.
        roi_grid: Where the bins of a RoI read the feature map: ``'bins'`` for samples inside each (RoIAlign),
            ``'corners'`` for one on each point of a grid from border to border (TensorFlow's
            ``crop_and_resize``), whatever ``Config.roi_align`` and ``sampling_ratio`` say.
        level_rounding: Of the number of a RoI's feature map: ``'floor'`` or ``'nearest'`` (halves to even).
        level_epsilon: Added to the RoI's relative size, of which that number is the logarithm.
        detect_in_input: Whether detections are decoded, clipped and compared in the network's input, or in
            the original image.
        integer_boxes: Whether the detections' corners are rounded to pixels, the second ones to those behind
            the box, and empty boxes dropped.
        best_class_only: Whether a RoI can only become a detection of its best class, or of several.
        score_inclusive: Whether a detection may score just the threshold.
        limit_ties: Whether detections that score as much as the last one within the limit are kept, too.
        mask_padding: Pixels of zeros around a predicted mask before it is resized into its box.
        mask_margin: Pixels of zeros beyond the box (:func:`mask_rcnn.ops.paste_masks.paste_masks`).
        mask_threshold: A pixel belongs to the mask if its probability is above this value ...
        mask_inclusive: ... or equal to it.
        rpn_loss_beta: Where the smooth L1 loss of the RPN turns from quadratic to linear.
        box_loss_beta: The same for the box head.
        loc_loss_over: What these two losses are divided by: ``'sampled'``, all anchors or RoIs that are
            looked at; or ``'positive'``, the numbers (four each) of those that are objects.
        fpn_loss_over_batch: Whether a feature pyramid's RPN divides its loss of objectness by the number of
            anchors that it asked for, which may be more than there are.
    """

    name: str
    channel_order: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    resize: str
    enlarge_only: bool
    centred: bool
    bn_eps: float
    stem_pool_pad: int
    stride_in_3x3: bool
    box_extent: float
    clip_extent: float
    anchors_rounded: bool
    delta_clip: float
    rpn_delta_weights: tuple[float, float, float, float]
    box_delta_weights: tuple[float, float, float, float]
    proposals_by_map: bool
    nms_inclusive: bool
    roi_grid: str
    level_rounding: str
    level_epsilon: float
    detect_in_input: bool
    integer_boxes: bool
    best_class_only: bool
    score_inclusive: bool
    limit_ties: bool
    mask_padding: int
    mask_margin: int
    mask_threshold: float
    mask_inclusive: bool
    rpn_loss_beta: float
    box_loss_beta: float
    loc_loss_over: str
    fpn_loss_over_batch: bool


#: Detectron (Caffe2), ``detectron/core/config.py`` and ``detectron/utils/boxes.py``.
DETECTRON = Dialect(
    name='detectron',
    channel_order='BGR',
    pixel_mean=(102.9801, 115.9465, 122.7717),
    pixel_std=(1.0, 1.0, 1.0),
    resize='float',
    enlarge_only=False,
    centred=False,
    bn_eps=1e-5,
    stem_pool_pad=1,
    stride_in_3x3=False,
    box_extent=1.0,
    clip_extent=1.0,
    anchors_rounded=True,
    delta_clip=math.log(1000.0 / 16.0),
    rpn_delta_weights=(1.0, 1.0, 1.0, 1.0),
    box_delta_weights=(10.0, 10.0, 5.0, 5.0),
    proposals_by_map=True,
    nms_inclusive=True,
    roi_grid='bins',
    level_rounding='floor',
    level_epsilon=1e-6,
    detect_in_input=False,
    integer_boxes=False,
    best_class_only=False,
    score_inclusive=False,
    limit_ties=True,
    mask_padding=1,
    mask_margin=0,
    mask_threshold=0.5,
    mask_inclusive=False,
    rpn_loss_beta=1 / 9,
    box_loss_beta=1.0,
    loc_loss_over='sampled',
    fpn_loss_over_batch=True,
)

#: Matterport's Mask R-CNN (TensorFlow 1, Keras), ``mrcnn/model.py`` and ``mrcnn/utils.py``.  It divides boxes
#: by the size of its square input, less one.  Ours stay pixels, ``(y_min, x_min, y_max - 1, x_max - 1)`` of its
#: boxes in pixels, which is what it divides.
MATTERPORT = Dialect(
    name='matterport',
    channel_order='RGB',
    pixel_mean=(123.7, 116.8, 103.9),
    pixel_std=(1.0, 1.0, 1.0),
    resize='uint8',
    enlarge_only=True,
    centred=True,
    bn_eps=1e-3,
    stem_pool_pad=0,
    stride_in_3x3=False,
    box_extent=0.0,
    clip_extent=1.0,
    anchors_rounded=False,
    delta_clip=math.inf,
    rpn_delta_weights=(10.0, 10.0, 5.0, 5.0),
    box_delta_weights=(10.0, 10.0, 5.0, 5.0),
    proposals_by_map=False,
    nms_inclusive=False,
    roi_grid='corners',
    level_rounding='nearest',
    level_epsilon=0.0,
    detect_in_input=True,
    integer_boxes=True,
    best_class_only=True,
    score_inclusive=True,
    limit_ties=False,
    mask_padding=0,
    mask_margin=1,
    mask_threshold=0.5,
    mask_inclusive=True,
    rpn_loss_beta=1.0,
    box_loss_beta=1.0,
    loc_loss_over='positive',
    fpn_loss_over_batch=False,
)

#: Detectron's with the input of TensorFlow's MobileNets (``slim/preprocessing``) and their epsilon.
MOBILENET = dataclasses.replace(
    DETECTRON,
    name='mobilenet',
    channel_order='RGB',
    pixel_mean=(128.0, 128.0, 128.0),
    pixel_std=(128.0, 128.0, 128.0),
    bn_eps=1e-3,
)

#: MindSpore's model zoo, ``maskrcnn`` and ``maskrcnn_mobilenetv1``: boxes as Detectron's, other pixels.
MINDSPORE = dataclasses.replace(
    DETECTRON,
    name='mindspore',
    channel_order='RGB',
    pixel_mean=(123.675, 116.28, 103.53),
    pixel_std=(58.395, 57.12, 57.375),
    stem_pool_pad=0,
    stride_in_3x3=True,
)

DIALECTS = {dialect.name: dialect for dialect in (DETECTRON, MATTERPORT, MINDSPORE, MOBILENET)}
