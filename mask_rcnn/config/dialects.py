"""Dialects: the conventions in which the original programs differ.

A converted weight file reproduces the detections of its original program only under the conventions of that program.  A
:class:`Dialect` holds the conventions of one program in groups, one group for each part of the network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mask_rcnn.config.dialect_checks import CheckedConventions


@dataclass(frozen=True)
class InputConventions(CheckedConventions):
    """Conversion of an image into the network input (:func:`mask_rcnn.preprocessing.image_transform.prepare_image`).

    Args:
        channel_order: Order of the colour channels: ``'BGR'`` (Detectron, DeNA) or ``'RGB'`` (all other programs).
        pixel_mean: Mean of each channel, subtracted from the pixels; in ``channel_order``.
        pixel_std: Standard deviation of each channel, by which pixels are divided; in ``channel_order``.
        resize: Resampling of the image.  ``'opencv_float32'`` resizes float32 pixels like OpenCV (Detectron).
            ``'skimage_uint8'`` resizes like scikit-image and truncates the result to integers (Matterport).
        subtract_mean_first: Whether the mean is subtracted before the resize (Detectron), or after it.
        round_long_side: Whether the length of the resized image's longer side is rounded before it is compared with
            ``Config.max_size`` (Detectron), or not (DeNA): an image of 600 x 1000 pixels, whose sides become 800 and
            1333.3, is resized by a smaller factor if it is not.
        upscale_only: Whether images are only upscaled to ``Config.min_size`` (Matterport), or also downscaled
            (Detectron).  ``Config.max_size`` limits the size in both cases.
        letterbox: Whether the image is centred in a zero-padded square of ``Config.max_size`` pixels (Matterport), or
            placed in the upper left corner of an input of its size (Detectron).
        use_width_ratio: Whether the factor of box coordinates is the ratio of the widths of the resized image and the
            image, both in whole pixels (DeNA), or the factor of the resize (Detectron).  In a letterbox, the factors
            are ratios of distances between corner pixels in any case.
        apply_orientation: Whether the orientation of image files is applied (Detectron, where OpenCV reads that of EXIF
            only), or ignored (DeNA, with Pillow).
    """

    channel_order: Literal['RGB', 'BGR']
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    resize: Literal['opencv_float32', 'skimage_uint8']
    subtract_mean_first: bool
    round_long_side: bool
    upscale_only: bool
    letterbox: bool
    use_width_ratio: bool
    apply_orientation: bool


@dataclass(frozen=True)
class BackboneConventions(CheckedConventions):
    """Layers of the backbone.

    Args:
        bn_eps: Epsilon of batch normalisation, added to the variance: 1e-5 (Detectron, MindSpore), 2e-5 (Chainer) or
            1e-3 (Keras, TensorFlow).
        stem_pool_pad: Padding of the max pooling after conv1.  1 pads every border by one pixel (Detectron).  0 pads
            only the bottom and the right border, if the last window needs it (TensorFlow's ``SAME``).
        stride_in_3x3: Whether the stride of a bottleneck block is in its 3x3 convolution (MindSpore, torchvision), or
            in its first 1x1 convolution (Detectron, Matterport).  C4 networks always have it in the 1x1 convolution.
    """

    bn_eps: float
    stem_pool_pad: int
    stride_in_3x3: bool


@dataclass(frozen=True)
class BoxConventions(CheckedConventions):
    """Box arithmetic (:mod:`mask_rcnn.ops.boxes.boxes`, :mod:`mask_rcnn.ops.boxes.nms`).

    Args:
        offset: Value added to ``x2 - x1`` to get the width of a box: 1 if both corners are pixels of the box
            (Detectron), 0 if the corners are coordinates (Matterport, DeNA).
        clip_offset: Boxes are clipped to ``[0, height - clip_offset]`` and ``[0, width - clip_offset]``: 0 (DeNA) or
            1.  With ``detections.postprocess_in_input_space``, detections are clipped to the centres of the
            image's corner pixels instead.
        max_log_scale: Upper limit of the predicted ``dh`` and ``dw``, the logarithms of the scale factors:
            Detectron's ``BBOX_XFORM_CLIP``, or infinity (Matterport, DeNA).
        rpn_delta_weights: Weights of ``(dy, dx, dh, dw)`` in the RPN's regression targets.  Matterport calls the
            reciprocals ``RPN_BBOX_STD_DEV``.
        box_delta_weights: Weights of ``(dy, dx, dh, dw)`` in the box head's regression targets: Detectron's
            ``MODEL.BBOX_REG_WEIGHTS``.  Matterport calls the reciprocals ``BBOX_STD_DEV``.
        nms_suppress_equal: Whether NMS suppresses boxes with IoU >= threshold (Detectron) or IoU > threshold
            (Matterport).
        last_of_ties_first: Which of several boxes with equal scores takes precedence in top-k selection and NMS: the
            last anchor or RoI (DeNA, which reverses an ascending sort), or the first one (Detectron).
    """

    offset: float
    clip_offset: float
    max_log_scale: float
    rpn_delta_weights: tuple[float, float, float, float]
    box_delta_weights: tuple[float, float, float, float]
    nms_suppress_equal: bool
    last_of_ties_first: bool


@dataclass(frozen=True)
class RPNConventions(CheckedConventions):
    """Anchors and proposals.

    Args:
        anchors: Shape and position of the anchors: ``'detectron'``, ``'matterport'`` or ``'dena'``; see
            :func:`mask_rcnn.ops.boxes.anchors.cell_anchors`.
        rank_by_logits: Whether anchors are ranked by their logits (DeNA) or by their probabilities (Detectron), which
            are equal where the sigmoid saturates.
        drop_small_first: Whether proposals smaller than ``Config.rpn_min_size`` are dropped before the top-k selection
            (DeNA) or after it (Detectron).
        require_centre_inside: Whether proposals whose centre is outside the image are dropped (Detectron).
        proposals_per_level: Whether top-k selection and NMS are applied to each level of the feature pyramid
            (Detectron), or to all levels together (Matterport).
    """

    anchors: Literal['detectron', 'matterport', 'dena']
    rank_by_logits: bool
    drop_small_first: bool
    require_centre_inside: bool
    proposals_per_level: bool


@dataclass(frozen=True)
class RoIConventions(CheckedConventions):
    """Pooling of RoI features (:mod:`mask_rcnn.models.roi_pooling`).

    Args:
        op: Pooling operator.  ``'roi_align'`` averages the samples in each bin (Detectron); ``Config.roi_align`` can
            replace it with RoI max pooling.  ``'crop_and_resize'`` samples the points of a grid that extends from
            border to border (Matterport, with TensorFlow's operator); it ignores ``Config.roi_align`` and
            ``Config.sampling_ratio``.
        level_rounding: Rounding of the pyramid level of a RoI: ``'floor'`` (Detectron), or ``'nearest'`` with halves
            to even (Matterport).
        level_epsilon: Value added to the relative size of a RoI before the logarithm of the level: 1e-6 (Detectron)
            or 0 (Matterport).
        average_half_window: Whether the box head of a C4 network averages only the upper left ``roi_size // 2`` x
            ``roi_size // 2`` bins of the 7 x 7 that res5 returns (DeNA), or all of them (Detectron).  Both are the same
            for ``Config.roi_size`` 14.
    """

    op: Literal['roi_align', 'crop_and_resize']
    level_rounding: Literal['floor', 'nearest']
    level_epsilon: float
    average_half_window: bool


@dataclass(frozen=True)
class DetectionConventions(CheckedConventions):
    """Postprocessing of the box head's output (:func:`mask_rcnn.ops.boxes.proposals.select_detections`).

    Args:
        postprocess_in_input_space: Whether boxes are decoded, clipped and suppressed in pixels of the network input
            (Matterport), or in pixels of the original image (Detectron).
        integer_boxes: Whether the corners of detections are rounded to whole pixels and empty boxes are dropped
            (Matterport).  The second corner is then the first pixel after the box.
        best_class_only: Whether a RoI can be a detection of its highest-scoring class only (Matterport), or of every
            class (Detectron).
        score_threshold_inclusive: Whether detections need a score >= threshold (Matterport) or > threshold
            (Detectron).
        keep_ties: Whether detections beyond the limit are kept if their score equals that of the last detection within
            the limit (Detectron), or dropped (Matterport).
        visualize_nms_threshold: IoU threshold of NMS in the program's demo; ``None`` for ``Config.nms_threshold``.  See
            :meth:`mask_rcnn.models.mask_rcnn.MaskRCNN.use_preset`.
    """

    postprocess_in_input_space: bool
    integer_boxes: bool
    best_class_only: bool
    score_threshold_inclusive: bool
    keep_ties: bool
    visualize_nms_threshold: float | None


@dataclass(frozen=True)
class MaskConventions(CheckedConventions):
    """Pasting of predicted masks into the image (:func:`mask_rcnn.ops.masks.paste_masks.paste_masks`).

    Args:
        padding: Width of the zero padding of a predicted mask in mask pixels: 1 (Detectron) or 0 (Matterport).  The
            box is extended in proportion before the mask is resized to it.
        margin: Border handling of the resize.  1 interpolates between the mask and zeros outside the box (Matterport,
            with scikit-image); 0 repeats the border of the mask (Detectron, with OpenCV).
        box_offset: Value added to the difference of a box's truncated corners to get the number of pixels that the mask
            is resized to: 1 (Detectron, DeNA) or 0 (Matterport).
        squeeze_at_border: Whether the extended box is clipped to the image before the mask is resized to it, which
            distorts masks at the border (DeNA), or the resized mask is cropped (Detectron).
        threshold: Probability threshold of mask pixels; see ``threshold_inclusive``.
        threshold_inclusive: Whether pixels of a mask need a probability >= threshold (Matterport) or > threshold
            (Detectron).
    """

    padding: int
    margin: int
    box_offset: int
    squeeze_at_border: bool
    threshold: float
    threshold_inclusive: bool


@dataclass(frozen=True)
class LossConventions(CheckedConventions):
    """Losses of training (:mod:`mask_rcnn.training.train_chain`).

    Args:
        rpn_smooth_l1_beta: Error at which the smooth L1 loss of the RPN changes from quadratic to linear: 1/9
            (Detectron) or 1 (Matterport).
        box_smooth_l1_beta: Error at which the smooth L1 loss of the box head changes from quadratic to linear: 1.
        box_loss_normalizer: Divisor of both smooth L1 losses.  ``'sampled'`` is the number of sampled anchors or RoIs
            (Detectron).  ``'positive'`` is the number of coordinates of the positive anchors or RoIs, four for each
            (Matterport).
        rpn_loss_divides_by_batch_size: Whether the objectness loss of an FPN is divided by the requested number of
            anchors, which may exceed the number of sampled anchors (Detectron), or by the number of sampled anchors
            (Matterport).
    """

    rpn_smooth_l1_beta: float
    box_smooth_l1_beta: float
    box_loss_normalizer: Literal['sampled', 'positive']
    rpn_loss_divides_by_batch_size: bool


@dataclass(frozen=True)
class TrainingConventions(CheckedConventions):
    """Data, frozen layers, sampling and optimisation of training (:mod:`mask_rcnn.training`, :mod:`mask_rcnn.targets`).

    Args:
        frozen_stages: Number of frozen backbone stages (conv1, res2, ...): 2 (Detectron) or 0 (DeNA).
        fix_statistics: Whether batch normalisation uses its running statistics, which stay constant, while its scale
            and offset, and those of affine channels, are trained (DeNA).
        min_object_size: Objects whose box has a side of at most this many pixels are not used: 10 (DeNA) or 0.
        use_crowds: Whether crowd regions are matched with RoIs (Detectron), or dropped (DeNA).
        redraw_negatives: Whether negative anchors are drawn with replacement and overwrite the best anchors of objects
            (Detectron), or are drawn without replacement and spare them (DeNA).
        roi_batch: Number of RoIs sampled per image, by default: 512 (Detectron) or 128 (DeNA).
        mask_targets: ``'polygons'`` rasterises the object's polygons in the grid of the RoI (Detectron).  ``'bitmap'``
            crops the object's bitmap in the network input at the RoI's truncated corners and resizes it (DeNA).
        decay_all: Whether all parameters have the same learning rate and weight decay (DeNA), or biases have twice the
            learning rate and neither biases nor normalisations have weight decay (Detectron).
        correct_momentum: Whether the momentum is scaled with the learning rate when that jumps (Detectron), or not
            (DeNA).
        sum_images: Whether the gradients of the images of a batch are added (DeNA) or averaged (Detectron).
    """

    frozen_stages: int
    fix_statistics: bool
    min_object_size: float
    use_crowds: bool
    redraw_negatives: bool
    roi_batch: int
    mask_targets: Literal['polygons', 'bitmap']
    decay_all: bool
    correct_momentum: bool
    sum_images: bool


@dataclass(frozen=True)
class Dialect(CheckedConventions):
    """The conventions of one original program.

    Args:
        name: Name of the dialect in weight files; a key of :data:`DIALECTS`.
        input: Conversion of an image into the network input.
        backbone: Layers of the backbone.
        boxes: Box arithmetic.
        rpn: Anchors and proposals.
        rois: Pooling of RoI features.
        detections: Postprocessing of the box head's output.
        masks: Pasting of predicted masks into the image.
        losses: Losses of training.
        training: Data, frozen layers, sampling and optimisation of training.
    """

    name: str
    input: InputConventions
    backbone: BackboneConventions
    boxes: BoxConventions
    rpn: RPNConventions
    rois: RoIConventions
    detections: DetectionConventions
    masks: MaskConventions
    losses: LossConventions
    training: TrainingConventions

    def replace(self, **changes: Any) -> Dialect:
        """Return a copy with changed conventions.

        ``DETECTRON.replace(name='other', boxes={'offset': 0.0})`` changes the name and one field of a group.

        Args:
            **changes: New values of fields.  A mapping changes only some fields of a group.

        Returns:
            Dialect: The changed copy.

        Raises:
            TypeError: A field of the dialect or of a group does not exist.
        """
        groups = {
            name: dataclasses.replace(getattr(self, name), **change)
            for name, change in changes.items()
            if isinstance(change, Mapping) and hasattr(self, name)
        }
        return dataclasses.replace(self, **{**changes, **groups})


#: Detectron (Caffe2): ``detectron/core/config.py`` and ``detectron/utils/boxes.py``.
DETECTRON = Dialect(
    name='detectron',
    input=InputConventions(
        channel_order='BGR',
        pixel_mean=(102.9801, 115.9465, 122.7717),
        pixel_std=(1.0, 1.0, 1.0),
        resize='opencv_float32',
        subtract_mean_first=True,
        round_long_side=True,
        upscale_only=False,
        letterbox=False,
        use_width_ratio=False,
        apply_orientation=True,
    ),
    backbone=BackboneConventions(bn_eps=1e-5, stem_pool_pad=1, stride_in_3x3=False),
    boxes=BoxConventions(
        offset=1.0,
        clip_offset=1.0,
        max_log_scale=math.log(1000.0 / 16.0),
        rpn_delta_weights=(1.0, 1.0, 1.0, 1.0),
        box_delta_weights=(10.0, 10.0, 5.0, 5.0),
        nms_suppress_equal=True,
        last_of_ties_first=False,
    ),
    rpn=RPNConventions(
        anchors='detectron',
        rank_by_logits=False,
        drop_small_first=False,
        require_centre_inside=True,
        proposals_per_level=True,
    ),
    rois=RoIConventions(op='roi_align', level_rounding='floor', level_epsilon=1e-6, average_half_window=False),
    detections=DetectionConventions(
        postprocess_in_input_space=False,
        integer_boxes=False,
        best_class_only=False,
        score_threshold_inclusive=False,
        keep_ties=True,
        visualize_nms_threshold=None,
    ),
    masks=MaskConventions(
        padding=1, margin=0, box_offset=1, squeeze_at_border=False, threshold=0.5, threshold_inclusive=False
    ),
    losses=LossConventions(
        rpn_smooth_l1_beta=1 / 9,
        box_smooth_l1_beta=1.0,
        box_loss_normalizer='sampled',
        rpn_loss_divides_by_batch_size=True,
    ),
    training=TrainingConventions(
        frozen_stages=2,
        fix_statistics=False,
        min_object_size=0.0,
        use_crowds=True,
        redraw_negatives=True,
        roi_batch=512,
        mask_targets='polygons',
        decay_all=False,
        correct_momentum=True,
        sum_images=False,
    ),
)

#: Matterport's Mask R-CNN (TensorFlow 1, Keras): ``mrcnn/model.py`` and ``mrcnn/utils.py``.  Matterport normalises a
#: box to ``(y_min, x_min, y_max - 1, x_max - 1) / (side - 1)``.  This library uses the numerators, which are in pixels.
MATTERPORT = Dialect(
    name='matterport',
    input=InputConventions(
        channel_order='RGB',
        pixel_mean=(123.7, 116.8, 103.9),
        pixel_std=(1.0, 1.0, 1.0),
        resize='skimage_uint8',
        subtract_mean_first=False,
        round_long_side=True,
        upscale_only=True,
        letterbox=True,
        use_width_ratio=False,
        apply_orientation=True,
    ),
    backbone=BackboneConventions(bn_eps=1e-3, stem_pool_pad=0, stride_in_3x3=False),
    boxes=BoxConventions(
        offset=0.0,
        clip_offset=1.0,
        max_log_scale=math.inf,
        rpn_delta_weights=(10.0, 10.0, 5.0, 5.0),
        box_delta_weights=(10.0, 10.0, 5.0, 5.0),
        nms_suppress_equal=False,
        last_of_ties_first=False,
    ),
    rpn=RPNConventions(
        anchors='matterport',
        rank_by_logits=False,
        drop_small_first=False,
        require_centre_inside=True,
        proposals_per_level=False,
    ),
    rois=RoIConventions(op='crop_and_resize', level_rounding='nearest', level_epsilon=0.0, average_half_window=False),
    detections=DetectionConventions(
        postprocess_in_input_space=True,
        integer_boxes=True,
        best_class_only=True,
        score_threshold_inclusive=True,
        keep_ties=False,
        visualize_nms_threshold=None,
    ),
    masks=MaskConventions(
        padding=0, margin=1, box_offset=0, squeeze_at_border=False, threshold=0.5, threshold_inclusive=True
    ),
    losses=LossConventions(
        rpn_smooth_l1_beta=1.0,
        box_smooth_l1_beta=1.0,
        box_loss_normalizer='positive',
        rpn_loss_divides_by_batch_size=False,
    ),
    training=DETECTRON.training,  # fine-tuning follows Detectron
)

#: DeNA's ``Chainer_Mask_R-CNN``, the predecessor of this library, at its last commit (2018): Detectron's network with
#: the box arithmetic, anchors and targets of ChainerCV's Faster R-CNN.
DENA = DETECTRON.replace(
    name='dena',
    input={
        'subtract_mean_first': False,
        'round_long_side': False,
        'use_width_ratio': True,
        'apply_orientation': False,
    },
    backbone={'bn_eps': 2e-5},
    boxes={'offset': 0.0, 'clip_offset': 0.0, 'max_log_scale': math.inf, 'last_of_ties_first': True},
    rpn={'anchors': 'dena', 'rank_by_logits': True, 'drop_small_first': True, 'require_centre_inside': False},
    rois={'average_half_window': True},
    detections={'visualize_nms_threshold': 0.3},
    masks={'squeeze_at_border': True},
    training={
        'frozen_stages': 0,
        'fix_statistics': True,
        'min_object_size': 10.0,
        'use_crowds': False,
        'redraw_negatives': False,
        'roi_batch': 128,
        'mask_targets': 'bitmap',
        'decay_all': True,
        'correct_momentum': False,
        'sum_images': True,
    },
)

#: Detectron's conventions with the input (``slim/preprocessing``) and the ``bn_eps`` of TensorFlow's MobileNets.
MOBILENET = DETECTRON.replace(
    name='mobilenet',
    input={'channel_order': 'RGB', 'pixel_mean': (128.0, 128.0, 128.0), 'pixel_std': (128.0, 128.0, 128.0)},
    backbone={'bn_eps': 1e-3},
)

#: MindSpore's model zoo, ``maskrcnn`` and ``maskrcnn_mobilenetv1``: Detectron's conventions with another input, stem
#: padding and stride.
MINDSPORE = DETECTRON.replace(
    name='mindspore',
    input={'channel_order': 'RGB', 'pixel_mean': (123.675, 116.28, 103.53), 'pixel_std': (58.395, 57.12, 57.375)},
    backbone={'stem_pool_pad': 0, 'stride_in_3x3': True},
)

#: All dialects by name.
DIALECTS = {dialect.name: dialect for dialect in (DETECTRON, DENA, MATTERPORT, MINDSPORE, MOBILENET)}
