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
        pixel_mean: Subtracted from the input before it is resized, in ``channel_order``.
        box_extent: A box from ``x1`` to ``x2`` is ``x2 - x1 + box_extent`` wide: 1 where corners are
            pixels that belong to the box, 0 where they are coordinates.
        delta_clip: Upper limit of the predicted ``dh`` and ``dw`` (the logarithm of a growth factor).
        rpn_delta_weights: Factors of ``(dy, dx, dh, dw)`` in the RPN's regression targets.
        box_delta_weights: The same for the box head.
        mask_padding: Pixels of zeros around a predicted mask before it is resized into its box.
        mask_threshold: A pixel belongs to the mask if its probability is above this value.
    """

    name: str
    channel_order: str
    pixel_mean: tuple[float, float, float]
    box_extent: float
    delta_clip: float
    rpn_delta_weights: tuple[float, float, float, float]
    box_delta_weights: tuple[float, float, float, float]
    mask_padding: int
    mask_threshold: float


#: Detectron (Caffe2), ``detectron/core/config.py`` and ``detectron/utils/boxes.py``.
DETECTRON = Dialect(
    name='detectron',
    channel_order='BGR',
    pixel_mean=(102.9801, 115.9465, 122.7717),
    box_extent=1.0,
    delta_clip=math.log(1000.0 / 16.0),
    rpn_delta_weights=(1.0, 1.0, 1.0, 1.0),
    box_delta_weights=(10.0, 10.0, 5.0, 5.0),
    mask_padding=1,
    mask_threshold=0.5,
)

DIALECTS = {dialect.name: dialect for dialect in (DETECTRON,)}


@dataclass(frozen=True)
class Config:
    """One network: its parts, its sizes and the dialect it speaks.

    Args:
        extractor: ``'resnet50'`` or ``'resnet101'``: the C4 network of that depth.
        n_fg_class: Number of classes without the background.
        dialect: The conventions of the program whose weights the network takes.
        norm: ``'affine'`` for frozen per-channel scale and bias, ``'bn'`` for batch normalisation.
        roi_size: Side of the RoI grid in bins, 14 or 7; the res5 head sees 7 x 7 bins either way.
        roi_align: RoIAlign if true, RoI max pooling otherwise.
        sampling_ratio: RoIAlign's samples per bin and axis; 0 takes as many as the bin has pixels.
        min_size: The image's shorter side is resized to this many pixels ...
        max_size: ... unless the longer side would exceed this many.
        anchor_sizes: Side of the anchors in input pixels (square root of their area).
        anchor_ratios: Height / width of the anchors.
        rpn_pre_nms: Best anchors that enter the proposals' NMS.
        rpn_post_nms: Proposals that leave it.
        rpn_nms_threshold: IoU from which on a proposal suppresses a worse one.
        rpn_min_size: Proposals with a side below it (pixels of the original image) are dropped.
        score_threshold: Detections must score above it.
        nms_threshold: IoU from which on a detection suppresses a worse one of its class.
        max_detections: Detections kept per image (ties with the last one are kept, too).
    """

    extractor: str = 'resnet50'
    n_fg_class: int = 80
    dialect: Dialect = DETECTRON
    norm: str = 'affine'
    roi_size: int = 14
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
        if not 0 < self.min_size <= self.max_size:
            raise ValueError(f'need 0 < min_size <= max_size, got {self.min_size} and {self.max_size}')

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
EXTRACTORS = {
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
}

#: What :func:`mask_rcnn.build` knows by name.
PRESETS = {name: Config(extractor=name) for name in EXTRACTORS}
