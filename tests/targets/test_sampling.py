"""Checks of the sampling sizes and thresholds."""

import pytest

from mask_rcnn.targets import Sampling


@pytest.mark.parametrize(
    'changes',
    [
        {'rpn_batch': 0},
        {'roi_batch': 0},
        {'train_post_nms': 0},
        {'rpn_positive_iou': 1.5},
        {'roi_foreground_fraction': -0.1},
        {'roi_background_iou': (0.3, 0.2)},
        {'roi_background_iou': (0.1, 0.6)},
        {'roi_background_iou': (0.1,)},
        {'roi_background_iou': None},
        {'roi_background_iou': (float('nan'), 0.5)},
        {'rpn_batch': 1.5},
        {'rpn_batch': True},
        {'train_pre_nms': '2000'},
        {'train_pre_nms': 10**10},
        {'rpn_negative_iou': float('nan')},
        {'rpn_straddle': float('nan')},
        {'roi_foreground_iou': None},
    ],
)
def test_values_out_of_range_are_rejected(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Sampling(**changes)
