"""The conventions in which the original programs differ, in groups: one for each part of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
            ``'torch_float32'`` resizes normalised float32 pixels like ``torch.nn.functional.interpolate``
            (torchvision).  ``'pillow_uint8'`` resizes bytes like Pillow, with antialiasing (detectron2).
        subtract_mean_first: Whether the mean is subtracted before the resize (Detectron, torchvision), or after it.
        side_rounding: Rounding of the resized image's height and width: ``'half_even'`` (Detectron, Matterport),
            ``'half_up'`` (detectron2) or ``'down'`` (torchvision).
        round_long_side: Whether the length of the resized image's longer side is rounded before it is compared with
            ``Config.max_size`` (Detectron), or not (DeNA): an image of 600 x 1000 pixels, whose sides become 800 and
            1333.3, is resized by a smaller factor if it is not.
        upscale_only: Whether images are only upscaled to ``Config.min_size`` (Matterport), or also downscaled
            (Detectron).  ``Config.max_size`` limits the size in both cases.
        letterbox: Whether the image is centred in a zero-padded square of ``Config.max_size`` pixels (Matterport), or
            placed in the upper left corner of an input of its size (Detectron).
        box_factors: Factors of box coordinates: ``'scale'``, the factor of the resize (Detectron); ``'width_ratio'``,
            the ratio of the widths of the resized image and the image, both in whole pixels, for both axes (DeNA); or
            ``'side_ratios'``, the ratio of the heights and that of the widths (torchvision, detectron2).  In a
            letterbox, the factors are ratios of distances between corner pixels in any case.
        apply_orientation: Whether the orientation of image files is applied (Detectron, where OpenCV reads that of EXIF
            only), or ignored (DeNA, with Pillow; torchvision).
    """

    channel_order: Literal['RGB', 'BGR']
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    resize: Literal['opencv_float32', 'skimage_uint8', 'torch_float32', 'pillow_uint8']
    subtract_mean_first: bool
    side_rounding: Literal['half_even', 'half_up', 'down']
    round_long_side: bool
    upscale_only: bool
    letterbox: bool
    box_factors: Literal['scale', 'width_ratio', 'side_ratios']
    apply_orientation: bool


@dataclass(frozen=True)
class BackboneConventions(CheckedConventions):
    """Layers of the backbone.

    Args:
        bn_eps: Epsilon of batch normalisation, added to the variance: 1e-5 (Detectron, MindSpore, PyTorch), 2e-5
            (Chainer), 1e-3 (Keras, TensorFlow) or 0 (torchvision's published models).
        gn_groups: Number of channel groups of group normalisation (Detectron's ``GROUP_NORM.NUM_GROUPS``).
        gn_eps: Epsilon of group normalisation, added to the variance (``GROUP_NORM.EPSILON``).
        stem_pool_pad: Padding of the max pooling after conv1.  1 pads every border by one pixel (Detectron).  0 pads
            only the bottom and the right border, if the last window needs it (TensorFlow's ``SAME``).
        stride_in_3x3: Whether the stride of a bottleneck block is in its 3x3 convolution (MindSpore, torchvision), or
            in its first 1x1 convolution (Detectron, Matterport).
    """

    bn_eps: float
    gn_groups: int
    gn_eps: float
    stem_pool_pad: int
    stride_in_3x3: bool


@dataclass(frozen=True)
class BoxConventions(CheckedConventions):
    """Box arithmetic (:mod:`mask_rcnn.ops.boxes.boxes`, :mod:`mask_rcnn.ops.boxes.nms`).

    Args:
        offset: Value added to ``x2 - x1`` to get the width of a box: 1 if both corners are pixels of the box
            (Detectron), 0 if the corners are coordinates (Matterport, DeNA).
        clip_offset: Boxes are clipped to ``[0, height - clip_offset]`` and ``[0, width - clip_offset]``: 0 (DeNA,
            torchvision) or 1.  With ``detections.postprocess_in_input_space``, height and width of detections are those
            of the resized image, and 0 is its first row or column.
        max_log_scale: Upper limit of the predicted ``dh`` and ``dw``, the logarithms of the scale factors:
            Detectron's ``BBOX_XFORM_CLIP``, or infinity (Matterport, DeNA).
        rpn_delta_weights: Weights of ``(dy, dx, dh, dw)`` in the RPN's regression targets.  Matterport calls the
            reciprocals ``RPN_BBOX_STD_DEV``.
        box_delta_weights: Weights of ``(dy, dx, dh, dw)`` in the box head's regression targets: Detectron's
            ``MODEL.BBOX_REG_WEIGHTS``.  Matterport calls the reciprocals ``BBOX_STD_DEV``.
        nms_suppress_equal: Whether NMS suppresses boxes with IoU >= threshold (Detectron) or IoU > threshold
            (Matterport).
        nms_shift_limit: Maximum number of boxes for which NMS per class (or per level) is one NMS of boxes that are
            shifted apart by ``class * (largest coordinate + 1)`` in float32, whose rounding changes their overlaps
            (torchvision's ``batched_nms``: 1000); more boxes have one NMS for each class.  0 for no shift.
        last_of_ties_first: Which of several boxes with equal scores takes precedence in top-k selection and NMS: the
            last anchor or RoI (DeNA, which reverses an ascending sort), or the first one (Detectron).
    """

    offset: float
    clip_offset: float
    max_log_scale: float
    rpn_delta_weights: tuple[float, float, float, float]
    box_delta_weights: tuple[float, float, float, float]
    nms_suppress_equal: bool
    nms_shift_limit: int
    last_of_ties_first: bool


@dataclass(frozen=True)
class RPNConventions(CheckedConventions):
    """Anchors and proposals.

    Args:
        anchors: Shape, position and order of the anchors: ``'detectron'``, ``'matterport'``, ``'dena'``,
            ``'torchvision'`` or ``'detectron2'``; see :func:`mask_rcnn.ops.boxes.anchors.cell_anchors`.
        strides_from_sizes: Whether the distance of anchors is the size of the padded input divided by that of the
            feature map, in whole pixels, for each axis (torchvision), or the stride of the level (Detectron).
        rank_by_logits: Whether anchors are ranked by their logits (DeNA) or by their probabilities (Detectron), which
            are equal where the sigmoid saturates.
        clip_to_image: Whether proposals are clipped to the image inside the padded input (torchvision, detectron2), or
            to the padded input (Detectron).
        min_size_in_input: Whether ``Config.rpn_min_size`` is in pixels of the network input (torchvision, detectron2),
            or in pixels of the original image (Detectron).
        min_size_inclusive: Whether proposals whose sides equal ``Config.rpn_min_size`` are kept (Detectron), or dropped
            (detectron2, which drops only empty boxes).
        drop_small_first: Whether proposals smaller than ``Config.rpn_min_size`` are dropped before the top-k selection
            (DeNA) or after it (Detectron).
        require_centre_inside: Whether proposals whose centre is outside the image are dropped (Detectron).
        proposals_per_level: Whether top-k selection and NMS are applied to each level of the feature pyramid
            (Detectron), or to all levels together (Matterport).
    """

    anchors: Literal['detectron', 'matterport', 'dena', 'torchvision', 'detectron2']
    strides_from_sizes: bool
    rank_by_logits: bool
    clip_to_image: bool
    min_size_in_input: bool
    min_size_inclusive: bool
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
        aligned: Whether the continuous coordinates of RoIAlign's samples are shifted by half a pixel, and sides of less
            than one pixel of the feature map are not extended to one (detectron2's ``ROIAlignV2``), or not (Detectron).
        level_rounding: Rounding of the pyramid level of a RoI: ``'floor'`` (Detectron), or ``'nearest'`` with halves
            to even (Matterport).
        level_epsilon: Value added to the relative size of a RoI before the logarithm of the level: 1e-6 (Detectron),
            1e-8 (detectron2) or 0 (Matterport, torchvision).
        level_bias: Value added to the level after the logarithm: 1e-6 (torchvision) or 0.
        average_half_window: Whether the box head of a C4 network averages only the upper left ``roi_size // 2`` x
            ``roi_size // 2`` bins of the 7 x 7 that res5 returns (DeNA), or all of them (Detectron).  Both are the same
            for ``Config.roi_size`` 14.
    """

    op: Literal['roi_align', 'crop_and_resize']
    aligned: bool
    level_rounding: Literal['floor', 'nearest']
    level_epsilon: float
    level_bias: float
    average_half_window: bool


@dataclass(frozen=True)
class DetectionConventions(CheckedConventions):
    """Postprocessing of the box head's output (:func:`mask_rcnn.ops.boxes.proposals.select_detections`).

    Args:
        postprocess_in_input_space: Whether boxes are decoded, clipped and suppressed in pixels of the network input
            (Matterport), or in pixels of the original image (Detectron).
        shift_counts_background: Whether the class by which a box is shifted in NMS (``boxes.nms_shift_limit``) counts
            from the background, so that boxes of the first foreground class are shifted (torchvision), or from the
            first foreground class (detectron2).
        min_box_size: Minimum height and width of a candidate in the coordinates of its NMS; smaller ones are dropped
            before it: 0.01 (torchvision) or 0.
        clip_to_original: Whether boxes that were mapped to the original image are clipped to ``[0, height]`` and
            ``[0, width]``, and empty ones are dropped (detectron2).
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
    shift_counts_background: bool
    min_box_size: float
    clip_to_original: bool
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
        continuous_box: Whether the probability of a pixel is interpolated at the position of its centre in the box,
            whose corners are not truncated (detectron2's ``grid_sample``), or the mask is resized to whole pixels
            (Detectron).
        squeeze_at_border: Whether the extended box is clipped to the image before the mask is resized to it, which
            distorts masks at the border (DeNA), or the resized mask is cropped (Detectron).
        threshold: Probability threshold of mask pixels; see ``threshold_inclusive``.
        threshold_inclusive: Whether pixels of a mask need a probability >= threshold (Matterport) or > threshold
            (Detectron).
    """

    padding: int
    margin: int
    box_offset: int
    continuous_box: bool
    squeeze_at_border: bool
    threshold: float
    threshold_inclusive: bool


@dataclass(frozen=True)
class KeypointConventions(CheckedConventions):
    """Heat maps of keypoints and their decoding (:mod:`mask_rcnn.ops.masks.keypoints`).

    Args:
        decode_in_input: Whether heat maps are resized to the size of the box in the network input, and the keypoints
            are then mapped to the original image (torchvision, detectron2), or to its size in the original image
            (Detectron).
        upsample_border: Values beyond the border in the bilinear 2x upsampling of the heat maps: ``'zero'`` (Detectron,
            a deconvolution) or ``'repeat'``, the border itself (torchvision, detectron2).
        softmax_grid: Heat map over which the probability of a keypoint is normalised: ``'resized'`` to the box
            (Detectron), or as ``'predicted'`` (detectron2).
    """

    decode_in_input: bool
    upsample_border: Literal['zero', 'repeat']
    softmax_grid: Literal['resized', 'predicted']


@dataclass(frozen=True)
class LossConventions(CheckedConventions):
    """Losses of training (:mod:`mask_rcnn.training.train_chain`).

    Args:
        rpn_smooth_l1_beta: Error at which the smooth L1 loss of the RPN changes from quadratic to linear: 1/9
            (Detectron, torchvision), 1 (Matterport) or 0, the L1 loss (detectron2).
        box_smooth_l1_beta: Error at which the smooth L1 loss of the box head changes from quadratic to linear: 1
            (Detectron), 1/9 (torchvision) or 0 (detectron2).
        box_loss_normalizer: Divisor of both smooth L1 losses.  ``'sampled'`` is the number of sampled anchors or RoIs
            (Detectron).  ``'positive'`` is the number of coordinates of the positive anchors or RoIs, four for each
            (Matterport).
        rpn_loss_divides_by_batch_size: Whether the objectness loss of an FPN is divided by the requested number of
            anchors, which may exceed the number of sampled anchors (Detectron), or by the number of sampled anchors
            (Matterport).
        rpn_box_loss_divides_by_batch_size: Whether both losses of the RPN, of a C4 network as well, are divided by the
            requested number of anchors (detectron2), or the smooth L1 loss by ``box_loss_normalizer``.
    """

    rpn_smooth_l1_beta: float
    box_smooth_l1_beta: float
    box_loss_normalizer: Literal['sampled', 'positive']
    rpn_loss_divides_by_batch_size: bool
    rpn_box_loss_divides_by_batch_size: bool


@dataclass(frozen=True)
class TrainingConventions(CheckedConventions):
    """Data, frozen layers, sampling and optimisation of training (:mod:`mask_rcnn.training`, :mod:`mask_rcnn.targets`).

    Args:
        frozen_stages: Number of frozen backbone stages (conv1, res2, ...): 2 (Detectron) or 0 (DeNA).
        freeze_norms: Whether all batch normalisations are frozen: they use their running statistics, and neither these
            nor scale and offset change (``FrozenBatchNorm2d`` of torchvision's first models and of detectron2).
        fix_statistics: Whether batch normalisation uses its running statistics, which stay constant, while its scale
            and offset, and those of affine channels, are trained (DeNA).
        min_object_size: Objects whose box has a side of at most this many pixels are not used: 10 (DeNA) or 0.
        use_crowds: Whether crowd regions are matched with RoIs (Detectron), or dropped (DeNA).
        exclusive_corners: Whether the second corner of an object's box is the end of its last pixel (torchvision,
            detectron2), or that pixel itself (Detectron).
        keypoint_shift: Value added to the coordinates of annotated keypoints, which are whole pixels in COCO's files:
            0.5, the centre of the pixel (detectron2), or 0.
        match_in_float32: Whether the overlaps of anchors and objects are computed in float32 (torchvision, detectron2),
            or with areas in float64 (Detectron).  It decides which anchors have the same IoU with an object.
        anchors_inside_only: Whether only anchors inside of the image are sampled (Detectron), or all (torchvision).
        redraw_negatives: Whether negative anchors are drawn with replacement and overwrite the best anchors of objects
            (Detectron), or are drawn without replacement and spare them (DeNA).
        fpn_proposals: Maximum number of an FPN's proposals in training, by default: 2000 (Detectron), 1000 (detectron2)
            or 1500 (its keypoint networks).
        match_in_input: Whether RoIs are matched with objects in coordinates of the network input (torchvision,
            detectron2), or in pixels of the original image (Detectron).
        roi_batch: Number of RoIs sampled per image, by default: 512 (Detectron) or 128 (DeNA).
        share_keypoint_rois: Whether the keypoint head is trained on the foreground RoIs of the box head (torchvision,
            detectron2), or on RoIs that are sampled for it (Detectron).
        mask_targets: ``'polygons'`` rasterises the object's polygons in the grid of the RoI (Detectron).
            ``'polygons_in_input'`` does so in coordinates of the network input (detectron2).  ``'bitmap'`` crops the
            object's bitmap in the network input at the RoI's truncated corners and resizes it (DeNA).
            ``'roi_align'`` averages the object's bitmap in the network input with RoIAlign (torchvision).
        decay_all: Whether biases have the learning rate and the weight decay of the other parameters (DeNA), or twice
            the learning rate and no weight decay (Detectron).
        decay_norms: Whether scale and shift of normalisations have weight decay (DeNA, torchvision), or not.
        correct_momentum: Whether the momentum is scaled with the learning rate when that jumps (Detectron), or not
            (DeNA).
        sum_images: Whether the gradients of the images of a batch are added (DeNA) or averaged (Detectron).
    """

    frozen_stages: int
    freeze_norms: bool
    fix_statistics: bool
    min_object_size: float
    use_crowds: bool
    exclusive_corners: bool
    keypoint_shift: float
    match_in_float32: bool
    anchors_inside_only: bool
    redraw_negatives: bool
    fpn_proposals: int
    match_in_input: bool
    roi_batch: int
    share_keypoint_rois: bool
    mask_targets: Literal['polygons', 'polygons_in_input', 'bitmap', 'roi_align']
    decay_all: bool
    decay_norms: bool
    correct_momentum: bool
    sum_images: bool
