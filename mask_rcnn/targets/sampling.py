"""Sampling sizes and IoU thresholds for training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mask_rcnn.config import Config, fields

#: Label of anchors, RoIs, mask pixels and keypoints that do not contribute to a loss.
IGNORED = -1


#: Number of highest-scoring anchors of each level of an FPN that enter NMS in training.
_FPN_PRE_NMS = 2000

_COUNT = fields.integer(1)
_FRACTION = fields.number(0, 1, 'a number from 0 to 1')

#: The type and the range of each field.
_CHECKS: dict[str, fields.Check] = {
    'rpn_batch': _COUNT,
    'rpn_positive_fraction': _FRACTION,
    'rpn_positive_iou': _FRACTION,
    'rpn_negative_iou': _FRACTION,
    'rpn_straddle': fields.number(-math.inf, math.inf, 'a number of pixels'),
    'roi_batch': _COUNT,
    'roi_foreground_fraction': _FRACTION,
    'roi_foreground_iou': _FRACTION,
    'roi_background_iou': fields.sequence(_FRACTION, 'two numbers from 0 to 1', min_length=2, max_length=2),
    'train_pre_nms': _COUNT,
    'train_post_nms': _COUNT,
}


@dataclass(frozen=True)
class Sampling:
    """Sampling sizes and IoU thresholds of Detectron's ``TRAIN`` section (``detectron/core/config.py``).

    Args:
        rpn_batch: Number of anchors sampled per image.
        rpn_positive_fraction: Maximum fraction of positive anchors among them.
        rpn_positive_iou: Anchors with IoU >= this value are positive, as are the best anchors of each object.
        rpn_negative_iou: Anchors whose best IoU is below this value are negative.
        rpn_straddle: Only anchors that extend at most ``rpn_straddle`` pixels beyond the image are sampled; a negative
            value, or a dialect without ``training.anchors_inside_only``, admits all anchors.
        roi_batch: Number of RoIs sampled per image.
        roi_foreground_fraction: Maximum fraction of foreground RoIs among them.
        roi_foreground_iou: RoIs with IoU >= this value are foreground.
        roi_background_iou: RoIs whose best IoU is in ``[low, high)`` are background.
        train_pre_nms: Number of highest-scoring anchors that enter NMS in training, per level or in total
            (``dialect.rpn.proposals_per_level``).
        train_post_nms: Maximum number of proposals after NMS in training.

    Raises:
        ValueError: A value is not allowed; the message names the field.
    """

    rpn_batch: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_straddle: float = 0
    roi_batch: int = 512
    roi_foreground_fraction: float = 0.25
    roi_foreground_iou: float = 0.5
    roi_background_iou: tuple[float, float] = (0.0, 0.5)
    train_pre_nms: int = 12000
    train_post_nms: int = 2000

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)
        low, high = self.roi_background_iou
        if not low < high <= self.roi_foreground_iou:
            raise ValueError(
                'roi_background_iou must be two increasing numbers from 0 to roi_foreground_iou, '
                f'not {self.roi_background_iou!r}'
            )


def network_sampling(config: Config, *, roi_batch: int | None = None, proposals: int | None = None) -> Sampling:
    """Return the sampling of a network's dialect.

    Detectron's FPN configurations keep 2000 anchors per level before NMS (``RPN_PRE_NMS_TOP_N``), C4 12000.

    Args:
        config: The network.
        roi_batch: RoIs sampled per image; ``None`` for the number of the dialect.
        proposals: Maximum number of proposals after NMS, ``None`` for that of the dialect; the number before NMS is
            scaled with it.
    """
    training = config.dialect.training
    pre_nms, post_nms = Sampling.train_pre_nms, Sampling.train_post_nms
    if config.has_fpn:
        pre_nms, post_nms = _FPN_PRE_NMS, training.fpn_proposals
    return Sampling(
        roi_batch=roi_batch or training.roi_batch,
        train_pre_nms=math.ceil(pre_nms * (proposals or post_nms) / post_nms),
        train_post_nms=proposals or post_nms,
    )
