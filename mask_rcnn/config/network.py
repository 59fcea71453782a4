"""The configuration of one network, and the named presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mask_rcnn.config.dialects import DETECTRON, DIALECTS, MOBILENET, Dialect


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
