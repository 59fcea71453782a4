"""Which network, which dialect, which sizes: frozen dataclasses and the named presets.

A :class:`Dialect` names every number in which one original program differs from another; a
:class:`Config` is a dialect together with one architecture and its sizes.  Both hold plain data, so a
weight file can carry them (see :mod:`mask_rcnn.weights.npz`).
"""

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


@dataclass(frozen=True)
class Config:
    """One network: its parts, its sizes and the dialect it speaks.

    Args:
        extractor: One of :data:`EXTRACTORS`: a body (``'resnet50'``), which makes a C4 network, or a body
            with a feature pyramid (``'resnet50_fpn'``).
        n_fg_class: Number of classes without the background.
        dialect: The conventions of the program whose weights the network takes.
        norm: ``'affine'`` for frozen per-channel scale and bias, ``'bn'`` for batch normalisation.
        masks: Whether the network draws masks.
        n_keypoint: How many keypoints the network finds on an instance; 0 for a network without.
        width: Multiplies a MobileNet's numbers of channels.
        fpn_channels: Channels of the feature pyramid's maps.
        rpn_channels: Channels of the RPN's 3x3 convolution; 0 takes as many as its input has.
        head_channels: Channels of the two linear layers of the feature pyramid's box head.
        mask_channels: Channels of the mask head.
        mask_convs: 3x3 convolutions of the feature pyramid's mask head.
        roi_size: Side of the RoI grid in bins, 14 or 7; the head of a C4 network sees 7 x 7 bins either way.
        mask_roi_size: Side of the RoI grid of the feature pyramid's mask and keypoint heads.
        roi_canonical_size: A RoI of this size (square root of the area, pixels) is pooled from the map of stride
            16, one of half the size from that of stride 8 (Lin et al. 2017, section 4.2).
        roi_align: RoIAlign if true, RoI max pooling otherwise; where the dialect's ``roi_grid`` is ``'bins'``.
        sampling_ratio: RoIAlign's samples per bin and axis; 0 takes as many as the bin has pixels.
        min_size: The image's shorter side is resized (in some dialects: enlarged) to this many pixels ...
        max_size: ... unless the longer side would exceed this many; and the side of the square in which some
            dialects put the image.
        anchor_sizes: Side of the anchors in input pixels (square root of their area): all on the one map of
            a C4 network, one on each map of a pyramid.
        anchor_ratios: Height / width of the anchors.
        rpn_pre_nms: Best anchors of each feature map (in some dialects: of all) that enter the proposals'
            NMS.
        rpn_post_nms: Proposals that leave it, of each map and of all.
        rpn_nms_threshold: IoU from which on (in some dialects: above which) a proposal suppresses a worse one.
        rpn_min_size: Proposals with a side below it (pixels of the original image) are dropped.
        score_threshold: Detections must score above it (in some dialects: or just as much).
        nms_threshold: IoU from which on (in some dialects: above which) a detection suppresses a worse one of
            its class.
        max_detections: Detections kept per image (in some dialects: ties with the last one, too).
    """

    extractor: str = 'resnet50'
    n_fg_class: int = 80
    dialect: Dialect = DETECTRON
    norm: str = 'affine'
    masks: bool = True
    n_keypoint: int = 0
    width: float = 1.0
    fpn_channels: int = 256
    rpn_channels: int = 0
    head_channels: int = 1024
    mask_channels: int = 256
    mask_convs: int = 4
    roi_size: int = 14
    mask_roi_size: int = 14
    roi_canonical_size: float = 224
    roi_align: bool = True
    sampling_ratio: int = 0
    min_size: int = 800
    max_size: int = 1333
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1, 2)
    rpn_pre_nms: int = 6000
    rpn_post_nms: int = 1000
    rpn_nms_threshold: float = 0.7
    rpn_min_size: float = 0.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self):
        if self.extractor not in EXTRACTORS:
            raise ValueError(f'extractor must be one of {", ".join(EXTRACTORS)}, not {self.extractor!r}')
        if self.norm not in ('affine', 'bn'):
            raise ValueError(f"norm must be 'affine' or 'bn', not {self.norm!r}")
        if self.roi_size not in (7, 14):
            raise ValueError(f'roi_size must be 7 or 14, not {self.roi_size!r}')
        if self.n_fg_class < 1:
            raise ValueError(f'n_fg_class must be at least 1, not {self.n_fg_class!r}')
        if self.has_fpn and len(self.anchor_sizes) != len(FPN_STRIDES):
            raise ValueError(f'{self.extractor} has {len(FPN_STRIDES)} maps and needs an anchor size for each, '
                             f'not {len(self.anchor_sizes)}')
        if self.n_keypoint and not self.has_fpn:
            raise ValueError(f'keypoints need a feature pyramid, which {self.extractor} has not')
        if not 0 < self.min_size <= self.max_size:
            raise ValueError(f'need 0 < min_size <= max_size, got {self.min_size} and {self.max_size}')
        if self.dialect.centred and self.max_size % FPN_STRIDES[-1]:
            raise ValueError(f"max_size, the {self.dialect.name} dialect's square, must be a multiple of "
                             f'{FPN_STRIDES[-1]}, not {self.max_size}')

    @property
    def body(self) -> str:
        """The extractor without its feature pyramid: ``'resnet50'`` of ``'resnet50_fpn'``."""
        return self.extractor.removesuffix('_fpn')

    @property
    def has_fpn(self) -> bool:
        """Whether the network has a feature pyramid."""
        return self.extractor.endswith('_fpn')

    @property
    def size_divisor(self) -> int:
        """The network's input is padded to a multiple of it (Detectron's ``FPN.COARSEST_STRIDE``)."""
        return 32 if self.has_fpn else 1

    def replace(self, **changes) -> Config:
        """Return a copy with some fields changed (unknown names raise ``TypeError``)."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Return plain data (numbers, strings, lists) for JSON; the dialect goes by its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields['dialect'] = self.dialect.name
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, data: dict) -> Config:
        """Inverse of :meth:`to_dict`; raises ``ValueError`` for unknown fields, dialects and values."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(f'unknown configuration fields: {", ".join(unknown)}')
        if data.get('dialect', DETECTRON.name) not in DIALECTS:
            raise ValueError(f'unknown dialect {data["dialect"]!r}')
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        fields['dialect'] = DIALECTS[data.get('dialect', DETECTRON.name)]
        return cls(**fields)


#: Depth of each ResNet: bottleneck blocks in res2 ... res5.
RESNET_BLOCKS = {
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
}

#: Strides of a feature pyramid's maps, P2 ... P6.
FPN_STRIDES = (4, 8, 16, 32, 64)

EXTRACTORS = ('resnet50', 'resnet101', 'resnet50_fpn', 'resnet101_fpn', 'mobilenet_v1_fpn')

#: What Detectron's ``e2e_mask_rcnn_*-FPN_*.yaml`` say otherwise than the C4 networks' files.
_FPN = {'rpn_channels': 256, 'roi_size': 7, 'sampling_ratio': 2, 'rpn_pre_nms': 1000}

#: What :func:`mask_rcnn.build` knows by name.
PRESETS = {
    'resnet50': Config(),
    'resnet101': Config(extractor='resnet101'),
    'resnet50_fpn': Config(extractor='resnet50_fpn', **_FPN),
    'resnet101_fpn': Config(extractor='resnet101_fpn', **_FPN),
    'mobilenet_v1_fpn': Config(extractor='mobilenet_v1_fpn', dialect=MOBILENET, norm='bn', **_FPN),
    'keypoint_resnet50_fpn': Config(extractor='resnet50_fpn', n_fg_class=1, masks=False, n_keypoint=17, **_FPN),
    'keypoint_resnet101_fpn': Config(extractor='resnet101_fpn', n_fg_class=1, masks=False, n_keypoint=17,
                                     **_FPN),
}
