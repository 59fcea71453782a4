import numpy as np
import pytest

from mask_rcnn.ops.boxes.anchors import shift_anchors
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections

MAX_LOG_SCALE = np.log(1000 / 16)
XY = [1, 0, 3, 2]


def swap_channels(deltas):
    """(4 * A, H, W): Detectron's (dx, dy, dw, dh) to (dy, dx, dh, dw)."""
    return deltas.reshape(-1, 4, *deltas.shape[1:])[:, XY].reshape(deltas.shape)


@pytest.mark.parametrize('case', ['c4', 'c4_pre', 'c4_minsize', 'fpn3', 'fpn6'])
def test_proposals_equal_detectron(shared, case):
    golden = np.load(shared / 'golden' / 'ops' / 'ops_proposals.npz')
    scores, deltas = golden[f'{case}_scores'][0], swap_channels(golden[f'{case}_deltas'][0])
    stride = int(golden[f'{case}_stride'])
    anchors = shift_anchors(golden[f'{case}_anchors'][:, XY], stride, *scores.shape[1:])
    height, width, scale = golden[f'{case}_im_info'][0]
    boxes, probs = generate_proposals(
        [scores],
        [deltas],
        [anchors],
        (height, width),
        scale,
        pre_nms=int(golden[f'{case}_pre_nms']),
        post_nms=int(golden[f'{case}_post_nms']),
        nms_threshold=0.7,
        min_size=float(golden[f'{case}_min_size']),
        max_log_scale=MAX_LOG_SCALE,
    )
    assert boxes.dtype == probs.dtype == np.float32
    np.testing.assert_array_equal(probs, golden[f'{case}_probs'][:, 0])
    np.testing.assert_allclose(boxes[:, XY], golden[f'{case}_rois'][:, 1:], rtol=0, atol=1e-4)


def test_proposals_of_an_empty_map():
    boxes, probs = generate_proposals(
        [np.zeros((3, 0, 5), np.float32)],
        [np.zeros((12, 0, 5), np.float32)],
        [np.zeros((0, 4), np.float32)],
        (0, 80),
        1.0,
        pre_nms=10,
        post_nms=5,
        nms_threshold=0.7,
    )
    assert boxes.shape == (0, 4) and probs.shape == (0,)


def test_equal_scores_keep_the_first_anchors():
    anchors = np.array([[0, 20 * i, 9, 20 * i + 9] for i in range(6)], np.float32)
    boxes, _ = generate_proposals(
        [np.zeros((1, 1, 6), np.float32)],
        [np.zeros((4, 1, 6), np.float32)],
        [anchors],
        (50, 200),
        1.0,
        pre_nms=4,
        post_nms=3,
        nms_threshold=0.7,
    )
    np.testing.assert_array_equal(boxes, anchors[:3])


@pytest.mark.parametrize('case', ['few', 'limit'])
def test_detections_equal_detectron(data, case):
    golden = np.load(data / 'ops_boxes.npz')
    boxes = golden[f'results_{case}_boxes']
    ours = boxes.reshape(len(boxes), -1, 4)[..., XY].reshape(boxes.shape)
    boxes, labels, scores = select_detections(
        golden[f'results_{case}_scores'],
        ours,
        score_threshold=0.05,
        nms_threshold=0.5,
        max_detections=int(golden[f'results_{case}_limit']),
    )
    assert labels.dtype == np.int32
    assert (np.diff(scores) <= 0).all()
    expected = golden[f'results_{case}_out'], golden[f'results_{case}_out_class']
    rows = np.column_stack([boxes[:, XY], scores])
    order, golden_order = np.lexsort(rows.T), np.lexsort(expected[0].T)
    np.testing.assert_array_equal(rows[order], expected[0][golden_order])
    np.testing.assert_array_equal(labels[order] + 1, expected[1][golden_order])


def test_detections_tied_with_the_last_are_kept():
    probs = np.full((4, 2), 0.5, np.float32)
    boxes = np.array([[0, 0, 0, 0, 0, 40 * i, 9, 40 * i + 9] for i in range(4)], np.float32)
    selected = select_detections(probs, boxes, score_threshold=0.05, nms_threshold=0.5, max_detections=2)
    assert len(selected[0]) == 4


def test_background_is_never_detected():
    probs = np.array([[0.97, 0.02, 0.01]], np.float32)
    boxes, labels, scores = select_detections(
        probs, np.zeros((1, 12), np.float32), score_threshold=0.05, nms_threshold=0.5, max_detections=9
    )
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == (0,)


def test_proposals_of_all_maps_together():
    """The best of all anchors, one NMS; else the best of each map, and an NMS for each."""
    box = np.float32([[10, 10, 49, 49]])
    anchors = [np.concatenate([box, box + 60]), box + 1]
    scores = [np.float32([0.9, 0.2]).reshape(1, 1, 2), np.float32([0.8]).reshape(1, 1, 1)]
    deltas = [np.zeros((4, 1, 2), np.float32), np.zeros((4, 1, 1), np.float32)]
    options = {'pre_nms': 2, 'post_nms': 10, 'nms_threshold': 0.7}
    _, found = generate_proposals(scores, deltas, anchors, (200, 200), 1.0, **options)
    np.testing.assert_array_equal(found, np.float32([0.9, 0.8, 0.2]))
    _, found = generate_proposals(scores, deltas, anchors, (200, 200), 1.0, per_level=False, **options)
    np.testing.assert_array_equal(found, np.float32([0.9]))  # 0.8 is suppressed, 0.2 is not among the best two


def test_the_best_class_only():
    probs = np.float32([[0.1, 0.5, 0.4], [0.6, 0.4, 0.0]])
    boxes = np.tile(np.float32([[0, 0, 9, 9], [50, 50, 59, 59]]), (1, 3))
    options = {'score_threshold': 0.05, 'nms_threshold': 0.5, 'max_detections': 10}
    assert len(select_detections(probs, boxes, **options)[0]) == 3
    _, labels, scores = select_detections(probs, boxes, best_class_only=True, **options)
    np.testing.assert_array_equal(labels, [0])
    np.testing.assert_array_equal(scores, np.float32([0.5]))


def test_scores_and_overlaps_of_just_the_threshold():
    probs = np.float32([[0.25, 0.75], [0.5, 0.5]])
    boxes = np.float32([[0, 0, 4, 8] * 2, [0, 0, 4, 4] * 2])  # an IoU of 1 / 2 where corners are coordinates
    options = {'nms_threshold': 0.5, 'max_detections': 10, 'offset': 0}
    for inclusive in (False, True):
        for suppress_equal in (False, True):
            found = select_detections(
                probs,
                boxes,
                score_threshold=0.5,
                score_threshold_inclusive=inclusive,
                suppress_equal=suppress_equal,
                **options,
            )
            assert len(found[0]) == (2 if inclusive and not suppress_equal else 1)


def test_ties_at_the_limit_may_be_cut_off():
    probs = np.float32([[0.2, 0.8]] * 3)
    boxes = np.float32([[50 * i, 0, 50 * i + 9, 9] * 2 for i in range(3)])
    options = {'score_threshold': 0.5, 'nms_threshold': 0.5, 'max_detections': 2}
    assert len(select_detections(probs, boxes, **options)[0]) == 3
    assert len(select_detections(probs, boxes, keep_ties=False, **options)[0]) == 2
