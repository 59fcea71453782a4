"""Training targets for anchors, against those of Detectron."""

import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON
from mask_rcnn.ops.boxes.anchors import detectron_cell_anchors, shift_anchors
from mask_rcnn.targets import IGNORED, Sampling, rpn_targets
from mask_rcnn.targets.rpn import match_anchors, sample_anchors
from tests.support.anchors import dense_targets, label_map

XY = [1, 0, 3, 2]

#: Levels of the golden arrays: stride, anchor sizes, height and width of the features.
C4 = [(16, (32, 64, 128, 256, 512), 32)]
FPN = [(2**level, (2**level * 8,), 512 >> level) for level in range(2, 7)]

#: A batch that is large enough to sample all anchors.
ALL = {'rpn_batch': 10**6}

CASES = [
    ('rpn_c4_all', C4, ALL),
    ('rpn_c4_all_noborder', C4, {**ALL, 'rpn_straddle': -1}),
    ('rpn_c4_sampled', C4, {}),
    ('rpn_fpn_all', FPN, ALL),
    ('rpn_fpn_all_noborder', FPN, {**ALL, 'rpn_straddle': -1}),
    ('rpn_fpn_sampled', FPN, {}),
]


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_targets.npz')


def as_map(values, side):
    """Reshape the values of all anchors to the layout of the RPN's outputs."""
    return values.reshape(side, side, -1).transpose(2, 0, 1)


def anchors_inside(anchors, size, straddle):
    """Return the indices of the anchors that are matched."""
    no_objects = np.zeros((0, 4), np.float32)
    return np.flatnonzero(match_anchors(anchors, no_objects, size, straddle=straddle, offset=1)[0] == 0)


def label_anchors(best_iou, *arguments, **options):
    """Return the labels of all anchors."""
    return label_map(len(best_iou), *sample_anchors(best_iou, *arguments, **options))


def targets_of(golden, levels, changes, seed=3):
    """Return the labels and deltas of each level in the layout of the RPN's outputs."""
    anchors = [
        shift_anchors(detectron_cell_anchors(stride, sizes, (0.5, 1, 2)), stride, side, side)
        for stride, sizes, side in levels
    ]
    joined = np.concatenate(anchors)
    targets = rpn_targets(
        joined,
        golden['rpn_gt_boxes'][:, XY],
        golden['rpn_image_size'],
        sampling=Sampling(**changes),
        dialect=DETECTRON,
        rng=np.random.RandomState(seed),
    )
    bounds = np.cumsum([0] + [len(a) for a in anchors])
    labels, deltas = dense_targets(targets, len(joined))
    return [
        (as_map(labels[a:b], side), as_map(deltas[a:b], side))
        for a, b, (_, _, side) in zip(bounds[:-1], bounds[1:], levels, strict=True)
    ]


@pytest.mark.parametrize(('name', 'levels', 'changes'), CASES)
def test_targets_equal_detectron(golden, name, levels, changes):
    maps = targets_of(golden, levels, changes)
    counted = sum(np.count_nonzero(labels != IGNORED) for labels, _ in maps)
    for i, (labels, deltas) in enumerate(maps):
        key = name if levels is C4 else f'{name}_level{i + 2}'
        np.testing.assert_array_equal(labels, golden[f'{key}_labels'], err_msg=key)
        a, y, x = golden[f'{key}_positive'].T
        np.testing.assert_array_equal(np.argwhere(labels == 1), golden[f'{key}_positive'])
        found = deltas.reshape(-1, 4, *labels.shape[1:])[a, :, y, x]
        np.testing.assert_allclose(found[:, XY], golden[f'{key}_positive_targets'], rtol=0, atol=2e-7)
        assert np.count_nonzero(deltas) == np.count_nonzero(found)
        weight = 1 / counted if (labels != IGNORED).any() else 0
        np.testing.assert_allclose(weight, golden[f'{key}_outside_weight'], rtol=1e-6)


def test_at_most_one_batch_is_sampled():
    best_iou = np.linspace(0, 1, 5000, dtype=np.float32)
    labels = label_anchors(best_iou, np.zeros(5000, bool), Sampling(), np.random.RandomState(0))
    assert np.count_nonzero(labels == 1) == 128
    assert 120 < np.count_nonzero(labels == 0) <= 128  # sampled with replacement
    assert (best_iou[labels == 1] >= 0.7).all() and (best_iou[labels == 0] < 0.3).all()


def test_anchors_at_the_thresholds():
    """Anchors are positive at IoU >= 0.75, negative at IoU < 0.25 and otherwise ignored."""
    thresholds = dict(rpn_positive_iou=0.75, rpn_negative_iou=0.25)  # exact in float32
    best_iou = np.float32([0.75, 0.7499999, 0.5, 0.25, 0.2499999, 0])
    labels = label_anchors(best_iou, np.zeros(6, bool), Sampling(**thresholds), np.random.RandomState(0))
    np.testing.assert_array_equal(labels, [1, IGNORED, IGNORED, IGNORED, 0, 0])


def test_an_anchor_with_exactly_the_negative_iou_is_ignored():
    """Anchors and the object have 4 by 4 pixels: an overlap of 2 columns is IoU 8 / 24, one of 1 column is 4 / 28."""
    gt = np.float32([[0, 0, 3, 3]])
    anchors = np.float32([[0, 0, 3, 3], [0, 2, 3, 5], [0, 3, 3, 6], [8, 8, 11, 11]])
    for negative_iou, expected in (
        (8 / 24, [1, IGNORED, 0, 0]),
        (0.34, [1, 0, 0, 0]),
        (4 / 28, [1, IGNORED, IGNORED, 0]),
    ):
        targets = rpn_targets(
            anchors,
            gt,
            (16, 16),
            sampling=Sampling(rpn_negative_iou=float(np.float32(negative_iou))),
            dialect=DETECTRON,
            rng=np.random.RandomState(0),
        )
        np.testing.assert_array_equal(dense_targets(targets, 4)[0], expected)


def test_sampling_depends_only_on_the_random_numbers(golden):
    first, again, other = (targets_of(golden, C4, {}, seed)[0][0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_an_object_that_overlaps_no_anchor_has_no_positive_anchors():
    anchors = np.float32([[0, 0, 3, 3], [0, 2, 3, 5], [0, 8, 3, 11]])
    gt_boxes = np.float32([[0, 0, 3, 3], [12, 12, 15, 15]])
    best_iou, best_gt, is_best = match_anchors(anchors, gt_boxes, (16, 16), straddle=0, offset=1)
    np.testing.assert_array_equal(is_best, [True, False, False])
    np.testing.assert_array_equal(best_gt, [0, 0, 0])
    np.testing.assert_array_equal(best_iou, np.float32([1, 8 / 24, 0]))


def test_tied_anchors_are_all_the_best():
    anchors = np.float32([[0, 0, 3, 3], [0, 2, 3, 5], [0, 3, 3, 6]])
    is_best = match_anchors(anchors, np.float32([[0, 1, 3, 4]]), (16, 16), straddle=0, offset=1)[2]
    np.testing.assert_array_equal(is_best, [True, True, False])


@pytest.mark.parametrize('size', [(100, 160), (10, 10)])
def test_without_objects_all_anchors_are_background(size):
    anchors = shift_anchors(detectron_cell_anchors(16, (32, 64), (0.5, 1, 2)), 16, 7, 10)
    targets = rpn_targets(
        anchors,
        np.zeros((0, 4), np.float32),
        size,
        sampling=Sampling(),
        dialect=DETECTRON,
        rng=np.random.RandomState(0),
    )
    inside = anchors_inside(anchors, size, 0)
    assert (len(inside) == 0) == (size == (10, 10))
    assert set(targets.indices) <= set(inside) and len(targets.indices) == min(len(inside), 256)
    assert not targets.labels.any() and not targets.deltas.any()


def test_anchors_inside_counts_pixels_of_the_image():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 10, 9], [-1, 0, 9, 9], [0, -0.5, 9, 9]], np.float32)
    np.testing.assert_array_equal(anchors_inside(boxes, (10, 10), 0), [0])
    np.testing.assert_array_equal(anchors_inside(boxes, (10, 10), 1), [0, 1, 2, 3])
    np.testing.assert_array_equal(anchors_inside(boxes, (10, 10), -1), [0, 1, 2, 3])


def test_an_anchor_outside_is_not_matched():
    anchors = np.float32([[0, -1, 3, 3], [0, 2, 3, 5]])
    gt_boxes = np.float32([[0, 0, 3, 3]])
    best_iou, _, is_best = match_anchors(anchors, gt_boxes, (16, 16), straddle=0, offset=1)
    np.testing.assert_array_equal(best_iou, np.float32([-1, 8 / 24]))
    np.testing.assert_array_equal(is_best, [False, True])
    np.testing.assert_array_equal(label_anchors(best_iou, is_best, Sampling(), np.random.RandomState(0)), [IGNORED, 1])


def test_negatives_without_redrawing_are_distinct():
    best_iou = np.linspace(0, 1, 5000, dtype=np.float32)
    labels = label_anchors(best_iou, np.zeros(5000, bool), Sampling(), np.random.RandomState(0), redraw_negatives=False)
    assert np.count_nonzero(labels == 1) == np.count_nonzero(labels == 0) == 128
    assert (best_iou[labels == 0] < 0.3).all()


@pytest.mark.parametrize('redraw_negatives', [False, True])
def test_sampled_indices_ascend(redraw_negatives):
    best_iou, is_best = np.linspace(1, 0, 5000, dtype=np.float32), np.zeros(5000, bool)
    for indices in sample_anchors(
        best_iou, is_best, Sampling(), np.random.RandomState(0), redraw_negatives=redraw_negatives
    ):
        assert len(indices) > 100 and (np.diff(indices) > 0).all()


@pytest.mark.parametrize(('redraw_negatives', 'label'), [(True, 0), (False, 1)])
def test_a_best_anchor_with_a_small_iou(redraw_negatives, label):
    """All negatives are sampled."""
    best_iou, is_best = np.float32([0.2, 0.1, 0]), np.array([True, False, False])
    labels = label_anchors(best_iou, is_best, Sampling(), np.random.RandomState(0), redraw_negatives=redraw_negatives)
    np.testing.assert_array_equal(labels, [label, 0, 0])


def test_surplus_best_anchors_are_ignored_without_redrawing():
    """Of 300 best anchors with a small IoU 128 are positive; none becomes negative."""
    best_iou, is_best = np.full(1000, 0.1, np.float32), np.arange(1000) < 300
    labels = label_anchors(best_iou, is_best, Sampling(), np.random.RandomState(0), redraw_negatives=False)
    counts = [np.count_nonzero(labels[is_best] == value) for value in (1, 0, IGNORED)]
    assert counts == [128, 0, 172] and np.count_nonzero(labels[300:] == 0) == 128


@pytest.mark.parametrize(('dialect', 'labels'), [(DETECTRON, [0, IGNORED, IGNORED]), (DENA, [0, 0, IGNORED])])
def test_an_anchor_at_the_border(dialect, labels):
    """Corners that are coordinates may lie on the border of 16 x 16 pixels; corners that are pixels may not."""
    anchors = np.float32([[0, 0, 15, 15], [0, 0, 16, 16], [0, 0, 16, 16.001]])
    targets = rpn_targets(
        anchors,
        np.zeros((0, 4), np.float32),
        (16, 16),
        sampling=Sampling(),
        dialect=dialect,
        rng=np.random.RandomState(0),
    )
    np.testing.assert_array_equal(dense_targets(targets, 3)[0], labels)


def test_the_dialect_selects_how_negatives_are_drawn():
    """The best anchor of the object overlaps it by 4 of 28 pixels."""
    anchors, gt_boxes = np.float32([[0, 3, 4, 7], [8, 8, 11, 11]]), np.float32([[0, 0, 4, 4]])
    for dialect, label in ((DETECTRON, 0), (DENA, 1)):
        targets = rpn_targets(
            anchors, gt_boxes, (16, 16), sampling=Sampling(), dialect=dialect, rng=np.random.RandomState(0)
        )
        np.testing.assert_array_equal(dense_targets(targets, 2)[0], [label, 0])
