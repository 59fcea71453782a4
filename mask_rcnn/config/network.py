"""The configuration of one network, and the named presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mask_rcnn.config import fields
from mask_rcnn.config.dialects import DENA, DETECTRON, MOBILENET, Dialect

#: Minimum score of the detections in a picture.
VISUALIZE_SCORE_THRESHOLD = 0.7

#: Number of bottleneck blocks in the stages res2 to res5 of each ResNet and ResNeXt.
RESNET_BLOCKS = {
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
    'resnext50_32x4d': (3, 4, 6, 3),
    'resnext101_32x8d': (3, 4, 23, 3),
    'resnext101_64x4d': (3, 4, 23, 3),
    'resnext152_32x8d': (3, 8, 36, 3),
}

#: Number of groups of the 3x3 convolutions, and channels of each group in res2; each stage doubles them
#: (Xie et al. 2017, section 4.1).
RESNET_GROUPS = {
    'resnet50': (1, 64),
    'resnet101': (1, 64),
    'resnet152': (1, 64),
    'resnext50_32x4d': (32, 4),
    'resnext101_32x8d': (32, 8),
    'resnext101_64x4d': (64, 4),
    'resnext152_32x8d': (32, 8),
}

#: Names of the extractors: a backbone alone (C4 network), or with a feature pyramid (``_fpn``).
#: :func:`register_extractor` adds names.
EXTRACTORS = [*RESNET_BLOCKS, *(f'{name}_fpn' for name in RESNET_BLOCKS), 'mobilenet_v1_fpn']

#: Strides of the feature pyramid's levels P2 to P6.
FPN_STRIDES = (4, 8, 16, 32, 64)

#: The dialects of C4 networks, and the fields of such a network whose values differ between their programs.
_C4_SETTINGS: dict[str, dict[str, Any]] = {
    DETECTRON.name: {'sampling_ratio': 0, 'rpn_min_size': 0.0, 'max_detections': 100},
    DENA.name: {'sampling_ratio': 2, 'rpn_min_size': 4.0, 'max_detections': 0},
}

#: Names of the dialects whose programs have C4 networks.
C4_DIALECTS = tuple(_C4_SETTINGS)

#: Maximum number of channels, of classes, of pixels along a side of an image, and of bins along a side of a RoI.  No
#: network comes near them; beyond them the arrays do not fit into memory.
_MAX_CHANNELS, _MAX_CLASSES, _MAX_SIDE, _MAX_BINS = 1 << 14, 1 << 16, 1 << 16, 112

#: Range of sizes and ratios whose products neither overflow nor vanish in float32.
_MIN_SIZE, _MAX_SIZE = 1e-6, 1e6


def _extractor(value: Any) -> str:
    if not isinstance(value, str) or value not in EXTRACTORS:
        others = (name for name in EXTRACTORS if name.removesuffix('_fpn') not in RESNET_BLOCKS)
        raise ValueError(f'one of {", ".join(RESNET_BLOCKS)} (each also with _fpn), {", ".join(others)}')
    return str(value)


def _roi_size(value: Any) -> int:
    try:
        return {7: 7, 14: 14}[fields.integer(1)(value)]
    except (KeyError, ValueError):
        raise ValueError('7 or 14') from None


_FRACTION = fields.number(0, 1, 'a number from 0 to 1')
_POSITIVE = fields.number(_MIN_SIZE, _MAX_SIZE, 'a positive number')
_SIZES = fields.sequence(_POSITIVE, 'one or more positive numbers', max_length=64)

#: The type and the range of each field.
_CHECKS: dict[str, fields.Check] = {
    'extractor': _extractor,
    'n_fg_class': fields.integer(1, _MAX_CLASSES),
    'dialect': fields.instance_of(Dialect, 'a Dialect such as mask_rcnn.config.DETECTRON'),
    'norm': fields.choice(('affine', 'bn', 'gn'), "'affine', 'bn' or 'gn'"),
    'head_norm': fields.choice(('none', 'affine', 'bn', 'gn'), "'none', 'affine', 'bn' or 'gn'"),
    'masks': fields.boolean,
    'n_keypoint': fields.integer(0, 1024),
    'width': fields.number(1e-3, 16, 'a positive number'),
    'fpn_channels': fields.integer(1, _MAX_CHANNELS),
    'rpn_channels': fields.integer(0, _MAX_CHANNELS),
    'rpn_convs': fields.integer(1, 64),
    'head_channels': fields.integer(1, _MAX_CHANNELS),
    'box_convs': fields.integer(0, 64),
    'box_fcs': fields.integer(1, 64),
    'mask_channels': fields.integer(1, _MAX_CHANNELS),
    'mask_convs': fields.integer(0, 64),
    'roi_size': _roi_size,
    'mask_roi_size': fields.integer(1, _MAX_BINS),
    'roi_canonical_size': _POSITIVE,
    'roi_align': fields.boolean,
    'sampling_ratio': fields.integer(0, 64),
    'min_size': fields.integer(1, _MAX_SIDE),
    'max_size': fields.integer(1, _MAX_SIDE),
    'anchor_sizes': _SIZES,
    'anchor_ratios': _SIZES,
    'rpn_pre_nms': fields.integer(1),
    'rpn_post_nms': fields.integer(1),
    'rpn_nms_threshold': _FRACTION,
    'rpn_min_size': fields.number(0, _MAX_SIZE, 'a number of at least 0'),
    'score_threshold': _FRACTION,
    'nms_threshold': _FRACTION,
    'max_detections': fields.integer(0),
}


@dataclass(frozen=True)
class Config(fields.CheckedUnpickling):
    """Architecture, sizes and dialect of one network.

    The names of the fields are part of the format of weight files and snapshots.

    Args:
        extractor: One of :data:`EXTRACTORS`: a backbone (``'resnet50'``) for a C4 network, or a backbone with a feature
            pyramid (``'resnet50_fpn'``).
        n_fg_class: Number of classes without the background.
        dialect: Conventions of the program that trained the weights.
        norm: Normalisation layers of the backbone: ``'affine'`` for a frozen scale and bias per channel, ``'bn'`` for
            batch normalisation, ``'gn'`` for group normalisation (Wu and He 2018).
        head_norm: Normalisation layers after the convolutions of an FPN, its box head and its mask head, which then
            have no bias; ``'none'`` for none.
        masks: Whether the network has a mask head.
        n_keypoint: Number of keypoints per instance; 0 for a network without a keypoint head.
        width: Width multiplier of a MobileNet, which scales all channel counts (Howard et al. 2017, section 3.3).
        fpn_channels: Number of channels of each level of the feature pyramid.
        rpn_channels: Number of output channels of the RPN's 3x3 convolution; 0 for the number of its input channels.
        rpn_convs: Number of the RPN's 3x3 convolutions.
        head_channels: Number of units in each of the fully connected layers of an FPN's box head.
        box_convs: Number of 3x3 convolutions, with ``fpn_channels`` channels, in an FPN's box head before the fully
            connected layers.
        box_fcs: Number of fully connected layers in an FPN's box head.
        mask_channels: Number of channels of the mask head.
        mask_convs: Number of 3x3 convolutions in an FPN's mask head.
        roi_size: Height and width of pooled RoI features in bins: 14 or 7.  The box head of a C4 network processes
            7 x 7 bins in both cases.
        mask_roi_size: Height and width of pooled RoI features in an FPN's mask and keypoint heads, in bins.
        roi_canonical_size: Size (square root of the area, in pixels) of the RoIs that are pooled from the level of
            stride 16.  RoIs of half that size are pooled from the level of stride 8 (Lin et al. 2017, section 4.2).
        roi_align: True for RoIAlign, False for RoI max pooling.  Applies to dialects with ``rois.op='roi_align'``.
        sampling_ratio: Number of RoIAlign's samples per bin and axis; 0 for one sample per pixel of the bin.
        min_size: Target length of the image's shorter side in pixels.
        max_size: Maximum length of the image's longer side in pixels; also the side of a letterbox.
        anchor_sizes: Sizes (square root of the area, in pixels of the network input) of the anchors.  A C4 network has
            all sizes on its single level, a feature pyramid has one size on each level.
        anchor_ratios: Aspect ratios of the anchors, height / width.
        rpn_pre_nms: Number of highest-scoring anchors that enter NMS, per level or in total
            (``dialect.rpn.proposals_per_level``).
        rpn_post_nms: Maximum number of proposals after NMS, in total and per level.
        rpn_nms_threshold: IoU threshold of NMS on proposals (``dialect.boxes.nms_suppress_equal``).
        rpn_min_size: Minimum height and width of a proposal in pixels of the original image; smaller proposals are
            dropped.
        score_threshold: Minimum score of a detection (``dialect.detections.score_threshold_inclusive``).
        nms_threshold: IoU threshold of NMS on the detections of a class (``dialect.boxes.nms_suppress_equal``).
        max_detections: Maximum number of detections per image (``dialect.detections.keep_ties``); 0 for no limit.

    Raises:
        ValueError: A value is not allowed, or two values contradict each other.
    """

    extractor: str = 'resnet50'
    n_fg_class: int = 80
    dialect: Dialect = DETECTRON
    norm: str = 'affine'
    head_norm: str = 'none'
    masks: bool = True
    n_keypoint: int = 0
    width: float = 1.0
    fpn_channels: int = 256
    rpn_channels: int = 0
    rpn_convs: int = 1
    head_channels: int = 1024
    box_convs: int = 0
    box_fcs: int = 2
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

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)
        if self.has_fpn and len(self.anchor_sizes) != len(FPN_STRIDES):
            raise ValueError(
                f'{self.extractor} has {len(FPN_STRIDES)} levels and needs one anchor size for each, '
                f'not {len(self.anchor_sizes)}'
            )
        if self.n_keypoint and not self.has_fpn:
            raise ValueError(f'keypoint networks need an FPN extractor, not {self.extractor!r}')
        if self.min_size > self.max_size:
            raise ValueError(f'need 0 < min_size <= max_size, got {self.min_size} and {self.max_size}')
        if self.dialect.input.letterbox and self.max_size % FPN_STRIDES[-1]:
            raise ValueError(
                f"max_size, the side of the {self.dialect.name} dialect's square input, must be "
                f'a multiple of {FPN_STRIDES[-1]}, not {self.max_size}'
            )

    @property
    def backbone(self) -> str:
        """Name of the backbone: ``'resnet50'`` for the extractor ``'resnet50_fpn'``."""
        return self.extractor.removesuffix('_fpn')

    @property
    def has_fpn(self) -> bool:
        """True if the extractor has a feature pyramid."""
        return self.extractor.endswith('_fpn')

    @property
    def size_divisor(self) -> int:
        """Divisor of the padded height and width of the network input (Detectron's ``FPN.COARSEST_STRIDE``)."""
        return 32 if self.has_fpn else 1

    @property
    def unused_fields(self) -> frozenset[str]:
        """Names of the fields whose values do not affect the network: those of layers that it does not have."""
        unused: set[str] = set()
        if self.backbone in RESNET_BLOCKS:
            unused |= {'width'}
        if not self.has_fpn:
            unused |= {'fpn_channels', 'head_channels', 'head_norm', 'box_convs', 'box_fcs'}
            unused |= {'mask_convs', 'mask_roi_size', 'roi_canonical_size'}
        if not self.masks:
            unused |= {'mask_channels', 'mask_convs'} | (set() if self.n_keypoint else {'mask_roi_size'})
        return frozenset(unused)

    def replace(self, **changes: Any) -> Config:
        """Return a copy with changed fields.

        Args:
            **changes: New values by field name.

        Returns:
            Config: The changed copy.

        Raises:
            TypeError: A field does not exist; the message names similar ones.
            ValueError: A value is not allowed.
        """
        unknown = next((name for name in changes if name not in _CHECKS), None)
        if unknown is not None:
            raise TypeError(f'Config has no field {fields.unknown_name(unknown, _CHECKS)}')
        return dataclasses.replace(self, **changes)

    def in_dialect(self, dialect: Dialect) -> Config:
        """Return the configuration with which another program runs the same network.

        Args:
            dialect: A dialect of :data:`C4_DIALECTS`.

        Returns:
            Config: A copy with the dialect, and with the sampling ratio, the minimum size of proposals and the maximum
            number of detections of its program; the same configuration if it already has the dialect.

        Raises:
            ValueError: The network is not a C4 network, or no program with the dialect has such networks.
        """
        if dialect == self.dialect:
            return self
        if self.has_fpn or not {dialect.name, self.dialect.name} <= set(C4_DIALECTS):
            raise ValueError(
                f'{self.extractor} of the dialect {self.dialect.name!r} cannot run in the dialect {dialect.name!r}: '
                f'only C4 networks can change between {" and ".join(C4_DIALECTS)}'
            )
        return self.replace(dialect=dialect, **_C4_SETTINGS[dialect.name])

    def for_preset(self, preset: str) -> Config:
        """Return the configuration with the thresholds of a purpose.

        Args:
            preset: ``'evaluate'``, the thresholds of this configuration, or ``'visualize'``, those of pictures: scores
                above 0.7, and NMS with ``dialect.detections.visualize_nms_threshold``.

        Raises:
            ValueError: The preset is unknown.
        """
        if preset not in ('evaluate', 'visualize'):
            raise ValueError(f"preset must be 'visualize' or 'evaluate', not {preset!r}")
        if preset == 'evaluate':
            return self
        nms_threshold = self.dialect.detections.visualize_nms_threshold
        return self.replace(
            score_threshold=VISUALIZE_SCORE_THRESHOLD,
            nms_threshold=self.nms_threshold if nms_threshold is None else nms_threshold,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values; see :meth:`Dialect.to_plain` for that of the dialect.

        Raises:
            ValueError: The dialect does not have the name of one of :data:`~mask_rcnn.config.DIALECTS`.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values['dialect'] = self.dialect.to_plain()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """Return the configuration with the given fields: the inverse of :meth:`to_dict`.

        Args:
            data: Values by field name; missing fields have their defaults.

        Returns:
            Config: The configuration.

        Raises:
            ValueError: The data is not a dictionary, a field or a dialect is unknown, or a value is not allowed.
        """
        if not isinstance(data, dict):
            raise ValueError(f'must be values by field name, not {fields.describe_value(data)}')
        unknown = sorted(map(fields.describe_value, set(data) - set(_CHECKS)))
        if unknown:
            raise ValueError(f'unknown configuration fields: {", ".join(unknown)}')
        return cls(**{**data, 'dialect': Dialect.from_plain(data.get('dialect', DETECTRON.name))})


#: Detectron's ``e2e_mask_rcnn_R-50-FPN_*.yaml``; the defaults of the fields are those of C4 networks.
_RESNET50_FPN = Config(extractor='resnet50_fpn', rpn_channels=256, roi_size=7, sampling_ratio=2, rpn_pre_nms=1000)
#: Detectron's ``e2e_mask_rcnn_X-101-*.yaml`` and ``..._gn.yaml``: ``RESNETS.STRIDE_1X1`` is false.
_RESNEXT_FPN = _RESNET50_FPN.replace(dialect=DETECTRON.replace(backbone={'stride_in_3x3': True}))
_RESNET50_FPN_GN = _RESNEXT_FPN.replace(norm='gn', head_norm='gn', box_convs=4, box_fcs=1)
_KEYPOINT_RESNET50_FPN = _RESNET50_FPN.replace(n_fg_class=1, masks=False, n_keypoint=17)

#: Configurations that :func:`mask_rcnn.build` accepts by name.
PRESETS = {
    **{name: Config(extractor=name) for name in RESNET_BLOCKS},
    **{
        f'{name}_fpn': (_RESNET50_FPN if groups == 1 else _RESNEXT_FPN).replace(extractor=f'{name}_fpn')
        for name, (groups, _) in RESNET_GROUPS.items()
    },
    'resnet50_fpn_gn': _RESNET50_FPN_GN,
    'resnet101_fpn_gn': _RESNET50_FPN_GN.replace(extractor='resnet101_fpn'),
    'mobilenet_v1_fpn': _RESNET50_FPN.replace(extractor='mobilenet_v1_fpn', dialect=MOBILENET, norm='bn'),
    'keypoint_resnet50_fpn': _KEYPOINT_RESNET50_FPN,
    'keypoint_resnet101_fpn': _KEYPOINT_RESNET50_FPN.replace(extractor='resnet101_fpn'),
}


#: Names of the extractors and presets of this package, which cannot be registered again.
_BUILT_IN = frozenset([*EXTRACTORS, *PRESETS])


def register_extractor(extractor: str) -> None:
    """Add an extractor with a feature pyramid, and a preset of its name with Detectron's settings.

    :func:`mask_rcnn.models.register_backbone` calls this function.

    Args:
        extractor: The name, such as ``'plain_fpn'``.

    Raises:
        ValueError: The name is that of an extractor or a preset of this package.
    """
    if extractor in _BUILT_IN:
        raise ValueError(f'the preset {extractor!r} is part of this package; choose another name')
    if extractor not in EXTRACTORS:
        EXTRACTORS.append(extractor)
    PRESETS[extractor] = _RESNET50_FPN.replace(extractor=extractor)


def registered_extractors() -> list[str]:
    """Return the names that :func:`register_extractor` has added, for another process."""
    return [name for name in EXTRACTORS if name not in _BUILT_IN]
