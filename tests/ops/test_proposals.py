"""Proposals and detections against Detectron's results and against formulas."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes.anchors import shift_anchors
from mask_rcnn.ops.boxes.nms import GroupShift
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections
from tests.support.arrays import SWAP_XY, swap_xy

MAX_LOG_SCALE = np.log(1000 / 16)
NMS = {'pre_nms': 100, 'post_nms': 100, 'nms_threshold': 0.7}


def swap_channels(deltas):
    """Convert deltas ``(4 * A, H, W)`` from Detectron's (dx, dy, dw, dh) to (dy, dx, dh, dw)."""
    return deltas.reshape(-1, 4, *deltas.shape[1:])[:, SWAP_XY].reshape(deltas.shape)


def proposals_of(anchors, size, scale, scores=None, **options):
    """Return the proposals of a feature map with one row and one anchor per location, whose deltas are 0."""
    anchors = np.asarray(anchors, np.float32)
    n = len(anchors)
    scores = np.linspace(0.9, 0.1, n) if scores is None else scores
    inputs = np.float32(scores).reshape(1, 1, n), np.zeros((4, 1, n), np.float32), anchors
    return generate_proposals(*([array] for array in inputs), size, scale, **{**NMS, **options})


@pytest.mark.parametrize('case', ['c4', 'c4_pre', 'c4_minsize', 'fpn3', 'fpn6'])
def test_proposals_equal_detectron(golden, case):
    arrays = np.load(golden / 'ops' / 'ops_proposals.npz')
    scores, deltas = arrays[f'{case}_scores'][0], swap_channels(arrays[f'{case}_deltas'][0])
    stride = int(arrays[f'{case}_stride'])
    anchors = shift_anchors(arrays[f'{case}_anchors'][:, SWAP_XY], stride, *scores.shape[1:])
    height, width, scale = arrays[f'{case}_im_info'][0]
    boxes, probs = generate_proposals(
        [scores],
        [deltas],
        [anchors],
        (height, width),
        scale,
        pre_nms=int(arrays[f'{case}_pre_nms']),
        post_nms=int(arrays[f'{case}_post_nms']),
        nms_threshold=0.7,
        min_size=float(arrays[f'{case}_min_size']),
        max_log_scale=MAX_LOG_SCALE,
    )
    assert boxes.dtype == probs.dtype == np.float32
    np.testing.assert_array_equal(probs, arrays[f'{case}_probs'][:, 0])
    np.testing.assert_allclose(boxes[:, SWAP_XY], arrays[f'{case}_rois'][:, 1:], rtol=0, atol=1e-4)


def test_proposals_of_an_empty_map():
    boxes, probs = generate_proposals(
        [np.zeros((3, 0, 5), np.float32)],
        [np.zeros((12, 0, 5), np.float32)],
        [np.zeros((0, 4), np.float32)],
        (0, 80),
        1.0,
        **NMS,
    )
    assert boxes.shape == (0, 4) and probs.shape == (0,)


def test_the_first_anchors_with_equal_scores_are_proposed():
    anchors = np.array([[0, 20 * i, 9, 20 * i + 9] for i in range(6)], np.float32)
    boxes, _ = proposals_of(anchors, (50, 200), 1.0, scores=np.zeros(6), pre_nms=4, post_nms=3)
    np.testing.assert_array_equal(boxes, anchors[:3])


def test_the_last_anchors_with_equal_scores_are_proposed_on_request():
    anchors = np.array([[0, 20 * i, 9, 20 * i + 9] for i in range(6)], np.float32)
    boxes, _ = proposals_of(anchors, (50, 200), 1.0, scores=np.zeros(6), pre_nms=4, post_nms=3, last_of_ties_first=True)
    np.testing.assert_array_equal(boxes, anchors[:2:-1])


@pytest.mark.parametrize('padded', [False, True])
def test_small_anchors_take_no_place_if_they_are_dropped_first(padded):
    """The two best anchors are too small: they leave no place before NMS, unless they are dropped earlier."""
    anchors = np.array([[0, 0, 3, 3], [0, 20, 3, 23], [0, 40, 9, 49], [0, 60, 9, 69]], np.float32)
    options = {'scores': np.float32([0.9, 0.8, 0.7, 0.6]), 'pre_nms': 2, 'min_size': 5.0, 'padded': padded}
    for drop_small_first, expected in ((False, anchors[:0]), (True, anchors[2:])):
        boxes, scores = proposals_of(anchors, (50, 200), 1.0, drop_small_first=drop_small_first, **options)
        np.testing.assert_array_equal(boxes[scores > 0], expected)


def test_centres_outside_the_image_are_dropped_on_request():
    """The corner of the image is the whole of a clipped box; its centre is the border itself without an offset."""
    anchors = np.array([[0, 200, 9, 209], [0, 20, 9, 29]], np.float32)
    options = {'offset': 0.0, 'clip_offset': 0.0, 'scores': np.float32([0.9, 0.8])}
    boxes, _ = proposals_of(anchors, (50, 200), 1.0, **options)
    np.testing.assert_array_equal(boxes, anchors[1:])
    boxes, _ = proposals_of(anchors, (50, 200), 1.0, require_centre_inside=False, **options)
    np.testing.assert_array_equal(boxes, [[0, 200, 9, 200], anchors[1]])


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('offset', [0.0, 1.0])
@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0])
def test_the_minimum_size_is_in_pixels_of_the_original_image(scale, offset, padded):
    """A side of ``s`` input pixels is ``s / scale + offset`` original pixels; it may equal the minimum."""
    sides, min_size = np.arange(2, 40), 8
    top = 50 * np.arange(len(sides))
    square = np.stack([top, 0 * top, top + sides, sides], axis=1)
    flat = np.stack([top, 0 * top + 100, top + sides, 0 * top + 140], axis=1)
    narrow = np.stack([top, 0 * top + 200, top + 40, 200 + sides], axis=1)
    anchors = np.concatenate([square, flat, narrow])
    size, options = (50 * len(sides), 300), {'min_size': min_size, 'offset': offset, 'clip_offset': offset}
    boxes, scores = proposals_of(anchors, size, scale, padded=padded, pre_nms=200, post_nms=200, **options)
    n = np.count_nonzero(scores > -np.inf)
    height, width = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    is_large = np.minimum(height, width) / scale + offset >= min_size
    assert 0 < np.count_nonzero(is_large) < len(anchors)
    np.testing.assert_allclose(boxes[:n], anchors[is_large], rtol=1e-6)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('clip_offset', [0.0, 1.0])
def test_proposals_are_clipped_to_the_size_and_not_to_the_map(clip_offset, padded):
    """The feature map extends beyond the size, as it does in a padded batch."""
    height, width = 70, 90
    cell, stride = np.array([[-20, -20, 35, 35]]), 16
    anchors = shift_anchors(cell, stride, 8, 8)  # 128 x 128 pixels
    options = {'nms_threshold': 1.1, 'clip_offset': clip_offset, 'padded': padded}  # no suppression
    boxes, scores = proposals_of(anchors, (height, width), 1.0, **options)
    n = np.count_nonzero(scores > -np.inf)
    limits = np.array([height, width] * 2) - clip_offset
    clipped = np.clip(anchors, 0, limits)
    centres = clipped[:, :2] + (clipped[:, 2:] - clipped[:, :2] + 1) / 2
    expected = clipped[(centres < [height, width]).all(axis=1)]
    # Clipped to [0, 69], every box has its centre inside; clipped to [0, 70], those beyond the size do not.
    assert (len(expected) == len(anchors)) == (clip_offset == 1)
    assert (expected[:, 2:].max(axis=0) == limits[:2]).all()
    np.testing.assert_allclose(np.sort(boxes[:n], axis=0), np.sort(expected, axis=0), rtol=1e-6)


def test_levels_are_selected_separately_or_together():
    """Selection and NMS run once for each level, or once for all levels."""
    box = np.float32([[10, 10, 49, 49]])
    anchors = [np.concatenate([box, box + 60]), box + 1]
    scores = [np.float32([0.9, 0.2]).reshape(1, 1, 2), np.float32([0.8]).reshape(1, 1, 1)]
    deltas = [np.zeros((4, 1, 2), np.float32), np.zeros((4, 1, 1), np.float32)]
    options = {**NMS, 'pre_nms': 2}
    _, found = generate_proposals(scores, deltas, anchors, (200, 200), 1.0, **options)
    np.testing.assert_array_equal(found, np.float32([0.9, 0.8, 0.2]))
    _, found = generate_proposals(scores, deltas, anchors, (200, 200), 1.0, per_level=False, **options)
    np.testing.assert_array_equal(found, np.float32([0.9]))  # 0.8 is suppressed, 0.2 is not among the best two


@pytest.mark.parametrize('per_level', [False, True])
def test_different_numbers_of_levels_are_an_error(per_level):
    scores, deltas, anchors = np.zeros((1, 1, 1), 'f'), np.zeros((4, 1, 1), 'f'), np.zeros((1, 4), 'f')
    with pytest.raises(ValueError, match='shorter'):
        generate_proposals([scores] * 2, [deltas] * 2, [anchors], (9, 9), 1.0, per_level=per_level, **NMS)


@pytest.mark.parametrize('case', ['few', 'limit'])
def test_detections_equal_detectron(data, case):
    golden = np.load(data / 'ops_boxes.npz')
    boxes, labels, scores = select_detections(
        golden[f'results_{case}_scores'],
        swap_xy(golden[f'results_{case}_boxes']),
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=int(golden[f'results_{case}_limit']),
    )
    assert labels.dtype == np.int32
    assert (np.diff(scores) <= 0).all()
    expected = golden[f'results_{case}_out'], golden[f'results_{case}_out_class']
    rows = np.column_stack([boxes[:, SWAP_XY], scores])
    order, golden_order = np.lexsort(rows.T), np.lexsort(expected[0].T)
    np.testing.assert_array_equal(rows[order], expected[0][golden_order])
    np.testing.assert_array_equal(labels[order] + 1, expected[1][golden_order])


def test_ties_with_the_last_detection_are_kept():
    probs = np.full((4, 2), 0.5, np.float32)
    boxes = np.array([[0, 0, 0, 0, 0, 40 * i, 9, 40 * i + 9] for i in range(4)], np.float32)
    selected = select_detections(probs, boxes, score_threshold=0.05, nms_threshold=0.5, max_detections=2)
    assert len(selected[0]) == 4


def test_the_last_of_two_equal_rois_is_detected_on_request():
    probs = np.float32([[0, 1], [0, 1], [0, 0.9]])
    boxes = np.float32([[0] * 4 + [0, 0, 9, 9], [0] * 4 + [0, 0, 9, 8], [0] * 4 + [0, 0, 9, 9]])
    options = {'score_threshold': 0.05, 'nms_threshold': 0.5, 'max_detections': 9}
    for last_of_ties_first, expected in ((False, boxes[0, 4:]), (True, boxes[1, 4:])):
        found, _, _ = select_detections(probs, boxes, last_of_ties_first=last_of_ties_first, **options)
        np.testing.assert_array_equal(found, [expected])


def test_no_limit_on_the_number_of_detections():
    probs = np.full((300, 2), 0.5, np.float32)
    boxes = np.array([[0, 0, 0, 0, 0, 40 * i, 9, 40 * i + 9] for i in range(300)], np.float32)
    found, _, _ = select_detections(probs, boxes, score_threshold=0.05, nms_threshold=0.5, max_detections=0)
    assert len(found) == 300


def test_boxes_without_area_do_not_suppress_each_other():
    """Without an offset their IoU is 0 / 0, as in ChainerCV's NMS."""
    probs = np.float32([[0, 0.9], [0, 0.8]])
    boxes = np.zeros((2, 8), np.float32)
    options = {'score_threshold': 0.05, 'nms_threshold': 0.5, 'max_detections': 0}
    assert len(select_detections(probs, boxes, offset=0.0, **options)[0]) == 2
    assert len(select_detections(probs, boxes, offset=1.0, **options)[0]) == 1


def test_background_is_never_detected():
    probs = np.array([[0.97, 0.02, 0.01]], np.float32)
    boxes, labels, scores = select_detections(
        probs, np.zeros((1, 12), np.float32), score_threshold=0.05, nms_threshold=0.5, max_detections=9
    )
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == (0,)


def test_only_the_best_class_of_a_roi_is_a_candidate():
    probs = np.float32([[0.1, 0.5, 0.4], [0.6, 0.4, 0.0]])
    boxes = np.tile(np.float32([[0, 0, 9, 9], [50, 50, 59, 59]]), (1, 3))
    options = {'score_threshold': 0.05, 'nms_threshold': 0.5, 'max_detections': 10}
    assert len(select_detections(probs, boxes, **options)[0]) == 3
    _, labels, scores = select_detections(probs, boxes, best_class_only=True, **options)
    np.testing.assert_array_equal(labels, [0])
    np.testing.assert_array_equal(scores, np.float32([0.5]))


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('inclusive', [False, True])
@pytest.mark.parametrize('suppress_equal', [False, True])
def test_scores_and_overlaps_equal_to_the_threshold(inclusive, suppress_equal, padded):
    probs = np.float32([[0.25, 0.75], [0.5, 0.5]])
    boxes = np.float32([[0, 0, 4, 8] * 2, [0, 0, 4, 4] * 2])  # an IoU of 1 / 2 with offset 0
    options = {
        'max_detections': 10,
        'offset': 0,
        'score_threshold_inclusive': inclusive,
        'suppress_equal': suppress_equal,
        'padded': padded,
    }
    above, below = (float(value) for value in np.nextafter(np.float32(0.5), np.float32([1, 0])))

    def count(score_threshold, nms_threshold):
        _, _, scores = select_detections(
            probs, boxes, score_threshold=score_threshold, nms_threshold=nms_threshold, **options
        )
        return np.count_nonzero(scores > -np.inf)

    assert count(0.5, 0.5) == (2 if inclusive and not suppress_equal else 1)
    assert count(0.5, above) == (2 if inclusive else 1)
    assert count(below, 0.5) == (1 if suppress_equal else 2)
    assert count(below, above) == 2
    assert count(above, above) == count(below, below) == 1


def test_ties_beyond_the_limit_are_dropped_without_keep_ties():
    probs = np.float32([[0.2, 0.8]] * 3)
    boxes = np.float32([[50 * i, 0, 50 * i + 9, 9] * 2 for i in range(3)])
    options = {'score_threshold': 0.5, 'nms_threshold': 0.5, 'max_detections': 2}
    assert len(select_detections(probs, boxes, **options)[0]) == 3
    assert len(select_detections(probs, boxes, keep_ties=False, **options)[0]) == 2


#: Two boxes with an IoU of 0.5002.  Shifted by 8109 pixels, where float32 has multiples of 1/2048, it is 0.5.
NEARLY_HALF = np.float32([[0, 0, 4, 1.9998], [0, 0, 4, 1.0002]])


@pytest.mark.parametrize('padded', [False, True])
def test_the_levels_of_an_image_are_shifted_together(padded):
    """Their number of boxes, and their largest coordinate, are those of all levels."""
    large = np.float32([[0, 0, 900, 900], [900, 900, 900, 900]])
    scores = [np.float32([[[0.9, 0.8]]]), np.float32([[[0.7, 0.6]]])]
    options = {'offset': 0.0, 'clip_offset': 0.0, 'min_size': 0.5, 'nms_threshold': 0.5, 'suppress_equal': False}
    deltas = [np.zeros((4, 1, 2), np.float32)] * 2
    for max_boxes, expected in ((0, [0.9, 0.7]), (2, [0.9, 0.7]), (3, [0.9, 0.8, 0.7])):
        _, found = generate_proposals(
            scores,
            deltas,
            [NEARLY_HALF, large],  # the last one is too small
            (900, 900),
            1.0,
            shift=GroupShift(max_boxes, 9),
            padded=padded,
            **{**NMS, **options, 'require_centre_inside': False},
        )
        np.testing.assert_array_equal(found[found > 0], np.float32(expected))


@pytest.mark.parametrize('padded', [False, True])
def test_small_candidates_are_neither_detected_nor_counted(padded):
    """The second class has a box that is too thin; without it, three candidates are shifted."""
    probs = np.float32([[0.1, 0.9, 0.8], [0.1, 0.7, 0.05], [0.1, 0.05, 0.6]])
    boxes = np.zeros((3, 3, 4), np.float32)
    boxes[:2, 1], boxes[2, 2] = NEARLY_HALF, [0, 0, 900, 900]
    boxes[0, 2] = [3, 3, 9, 3.0078125]
    options = {'score_threshold': 0.5, 'nms_threshold': 0.5, 'max_detections': 9, 'keep_ties': False}
    options |= {'offset': 0.0, 'suppress_equal': False, 'shift': GroupShift(3, 9), 'padded': padded}
    for min_box_size, expected in (
        (0.0, [0.9, 0.8, 0.6]),
        (0.0078125, [0.9, 0.8, 0.6]),
        (0.01, [0.9, 0.7, 0.6]),
        (5.0, [0.6]),
    ):
        _, _, scores = select_detections(probs, boxes.reshape(3, 12), min_box_size=min_box_size, **options)
        np.testing.assert_array_equal(scores[scores > 0], np.float32(expected))
