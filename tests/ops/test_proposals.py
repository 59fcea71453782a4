import numpy as np
import pytest

from mask_rcnn.ops.anchors import shift_anchors
from mask_rcnn.ops.proposals import generate_proposals, select_detections

CLIP = np.log(1000 / 16)
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
        [scores], [deltas], [anchors], (height, width), scale, pre_nms=int(golden[f'{case}_pre_nms']),
        post_nms=int(golden[f'{case}_post_nms']), nms_threshold=0.7,
        min_size=float(golden[f'{case}_min_size']), clip=CLIP)
    assert boxes.dtype == probs.dtype == np.float32
    np.testing.assert_array_equal(probs, golden[f'{case}_probs'][:, 0])
    np.testing.assert_allclose(boxes[:, XY], golden[f'{case}_rois'][:, 1:], rtol=0, atol=1e-4)


def test_proposals_of_an_empty_map():
    boxes, probs = generate_proposals(
        [np.zeros((3, 0, 5), np.float32)], [np.zeros((12, 0, 5), np.float32)], [np.zeros((0, 4), np.float32)],
        (0, 80), 1.0, pre_nms=10, post_nms=5, nms_threshold=0.7)
    assert boxes.shape == (0, 4) and probs.shape == (0,)


def test_equal_scores_keep_the_first_anchors():
    anchors = np.array([[0, 20 * i, 9, 20 * i + 9] for i in range(6)], np.float32)
    boxes, _ = generate_proposals(
        [np.zeros((1, 1, 6), np.float32)], [np.zeros((4, 1, 6), np.float32)], [anchors], (50, 200), 1.0,
        pre_nms=4, post_nms=3, nms_threshold=0.7)
    np.testing.assert_array_equal(boxes, anchors[:3])


@pytest.mark.parametrize('case', ['few', 'limit'])
def test_detections_equal_detectron(data, case):
    golden = np.load(data / 'ops_boxes.npz')
    boxes = golden[f'results_{case}_boxes']
    ours = boxes.reshape(len(boxes), -1, 4)[..., XY].reshape(boxes.shape)
    boxes, labels, scores = select_detections(
        golden[f'results_{case}_scores'], ours, score_threshold=0.05, nms_threshold=0.5,
        max_detections=int(golden[f'results_{case}_limit']))
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
        probs, np.zeros((1, 12), np.float32), score_threshold=0.05, nms_threshold=0.5, max_detections=9)
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == (0,)
