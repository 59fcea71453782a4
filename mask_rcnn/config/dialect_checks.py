"""The ranges of the conventions in :mod:`mask_rcnn.config.conventions`."""

from __future__ import annotations

import functools
import math
from typing import Any

from mask_rcnn.config import fields

_FRACTION = fields.number(0, 1, 'a number from 0 to 1')
_NON_NEGATIVE = fields.number(0, 1e6, 'a number of at least 0')
_POSITIVE = fields.number(1e-6, 1e6, 'a positive number')
_SMALL_INTEGER = fields.integer(0, 1024)

#: The range of each field that is narrower than its type.
_RANGES: dict[str, fields.Check] = {
    'pixel_std': fields.sequence(_POSITIVE, 'three positive numbers', min_length=3, max_length=3),
    'bn_eps': _FRACTION,
    'gn_groups': fields.integer(1, 1024),
    'gn_eps': _FRACTION,
    'stem_pool_pad': fields.integer(0, 1),
    'offset': _NON_NEGATIVE,
    'clip_offset': _NON_NEGATIVE,
    'max_log_scale': fields.number(1e-6, math.inf, 'a positive number or infinity'),
    'rpn_delta_weights': fields.sequence(_POSITIVE, 'four positive numbers', min_length=4, max_length=4),
    'box_delta_weights': fields.sequence(_POSITIVE, 'four positive numbers', min_length=4, max_length=4),
    'level_epsilon': _FRACTION,
    'level_bias': _FRACTION,
    'min_box_size': _NON_NEGATIVE,
    'visualize_nms_threshold': fields.optional(_FRACTION),
    'padding': _SMALL_INTEGER,
    'margin': fields.integer(0, 1),
    'box_offset': _SMALL_INTEGER,
    'threshold': _FRACTION,
    'rpn_smooth_l1_beta': _NON_NEGATIVE,
    'box_smooth_l1_beta': _NON_NEGATIVE,
    'frozen_stages': fields.integer(0, 5),
    'min_object_size': _NON_NEGATIVE,
    'keypoint_shift': _FRACTION,
    'fpn_proposals': fields.integer(1),
    'roi_batch': fields.integer(1),
}


class CheckedConventions(fields.CheckedUnpickling):
    """The base of a dialect and its groups; type hints and ranges determine the valid values of their fields.

    Raises:
        ValueError: A value is not allowed; the message names the field.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        fields.check_fields(self, _checks_of(cls))


@functools.cache
def _checks_of(cls: Any) -> dict[str, fields.Check]:
    return fields.checks_of_hints(cls, _RANGES)
