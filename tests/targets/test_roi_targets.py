"""Sampled RoIs and their targets, against those of Detectron."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, Sampling, mask_targets, sample_rois
from mask_rcnn.targets.matching import match_rois
from mask_rcnn.targets.rois import box_targets

XY = [1, 0, 3, 2]


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_targets.npz')


@pytest.fixture(scope='module')
def annotations(golden):
    polygons = [
        tuple(golden[f'frcn_poly{i}_part{j}'] for j in range(2) if f'frcn_poly{i}_part{j}' in golden) for i in range(5)
    ]
    return Annotations(
        golden['frcn_gt_boxes'][:, XY], golden['frcn_gt_classes'] - 1, golden['frcn_is_crowd'], tuple(polygons)
    )


def sample(proposals, annotations, scale=1.0, seed=0, **changes):
    return sample_rois(
        np.asarray(proposals, np.float32),
        annotations,
        ImageTransform.top_left((100, 100), scale),
        sampling=Sampling(**changes),
        dialect=DETECTRON,
        rng=np.random.RandomState(seed),
    )


def objects(boxes, labels, crowd, polygons=None):
    return Annotations(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(labels, np.int32),
        np.asarray(crowd, bool),
        tuple(polygons or [()] * len(labels)),
    )


def test_candidates_equal_detectron(golden, annotations):
    inverse = np.float32(1 / golden['frcn_scale'])
    candidates = match_rois(golden['frcn_proposals'][:, 1:][:, XY] * inverse, annotations, offset=1)
    np.testing.assert_array_equal(candidates.boxes[:, XY], golden['frcn_all_boxes'])
    np.testing.assert_array_equal(candidates.iou, golden['frcn_all_max_overlaps'])
    np.testing.assert_array_equal(candidates.labels, golden['frcn_all_max_classes'])
    np.testing.assert_array_equal(candidates.gt_index, golden['frcn_all_gt_index'])
    foreground = candidates.iou >= 0.5
    expected = golden['frcn_all_bbox_targets']
    np.testing.assert_array_equal(expected[:, 0] > 0, foreground)
    gt_boxes = annotations.boxes[~annotations.crowd]
    deltas = box_targets(candidates.boxes[foreground], gt_boxes, dialect=DETECTRON)
    np.testing.assert_allclose(deltas[:, XY], expected[foreground, 1:], rtol=0, atol=2e-6)


def test_sampled_rois_equal_detectron(golden, annotations):
    rois = sample(golden['frcn_proposals'][:, 1:][:, XY], annotations, golden['frcn_scale'], seed=4, roi_batch=64)
    np.testing.assert_array_equal(rois.labels, golden['frcn_sampled_labels'])
    np.testing.assert_array_equal(rois.rois[:, XY], golden['frcn_sampled_rois'][:, 1:])
    deltas = np.zeros((64, 4), np.float32)
    deltas[: rois.n_foreground] = rois.deltas
    np.testing.assert_allclose(deltas[:, XY], golden['frcn_sampled_bbox_targets'], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(golden['frcn_roi_has_mask'] == 1, rois.labels > 0)


@pytest.mark.parametrize('size', [14, 28])
def test_masks_of_the_sampled_rois_equal_detectron(golden, annotations, size):
    rois = sample(golden['frcn_proposals'][:, 1:][:, XY], annotations, golden['frcn_scale'], seed=4, roi_batch=64)
    boxes = rois.boxes[: rois.n_foreground]
    np.testing.assert_array_equal(rois.rois[: rois.n_foreground, XY], golden[f'frcn_mask_rois_{size}'][:, 1:])
    masks = mask_targets(boxes, annotations, size, offset=1)
    np.testing.assert_array_equal(masks, golden[f'frcn_mask_targets_{size}'])


def test_at_most_a_quarter_is_foreground(rng):
    low = rng.uniform(0, 60, (3000, 2))
    proposals = np.concatenate([low, low + 40], axis=1)
    rois = sample(proposals, objects([[20, 20, 70, 70]], [2], [False]), roi_foreground_iou=0.5)
    assert len(rois.rois) == 512 and rois.n_foreground == 128
    assert (rois.labels[:128] == 3).all() and (rois.labels[128:] == 0).all()


def test_a_roi_on_a_crowd_has_its_class_and_the_box_of_an_object():
    gt = objects([[0, 0, 99, 99], [0, 150, 99, 249]], [4, 6], [False, True])
    rois = sample([[0, 151, 99, 249]], gt)
    assert sorted(rois.labels) == [5, 7]
    on_crowd = int(np.flatnonzero(rois.labels == 7)[0])
    expected = box_targets(np.array([[0, 151, 99, 249]], np.float32), gt.boxes[:1], dialect=DETECTRON)
    np.testing.assert_array_equal(rois.deltas[on_crowd], expected[0])


def test_an_image_with_only_crowds_has_only_background():
    gt = objects([[0, 150, 99, 249]], [6], [True])
    rois = sample([[0, 151, 99, 249], [0, 0, 50, 50]], gt)
    np.testing.assert_array_equal(rois.rois, [[0, 0, 50, 50]])
    np.testing.assert_array_equal(rois.labels, [0])
    assert rois.n_foreground == 0


def test_an_image_without_objects_has_only_background():
    rois = sample([[0, 0, 50, 50], [3, 3, 40, 40]], objects([], [], []), scale=2.0)
    np.testing.assert_array_equal(rois.labels, [0, 0])
    np.testing.assert_array_equal(rois.boxes * 2, rois.rois)


@pytest.mark.parametrize('proposals', [[[0, 151, 99, 249]], np.zeros((0, 4))])
def test_an_image_without_candidates_has_one_ignored_roi(proposals):
    rois = sample(proposals, objects([[0, 150, 99, 249]], [6], [True]))
    np.testing.assert_array_equal(rois.labels, [IGNORED])
    assert rois.rois.shape == (1, 4) and rois.deltas.shape == (0, 4)


def test_a_roi_at_the_upper_bound_of_the_background_is_sampled_once():
    """The interval is half-open: a RoI with IoU 0.5 is foreground and not background as well."""
    gt = objects([[0, 0, 99, 99]], [3], [False])
    at_bound, below = [0, 0, 99, 49], [0, 0, 99, 48]
    candidates = match_rois(np.float32([at_bound, below]), gt, offset=1)
    np.testing.assert_allclose(candidates.iou, [1, 0.5, 0.49], rtol=1e-6)
    assert candidates.iou[1] == np.float32(0.5)  # 5000 of 10000 pixels, exactly
    rois = sample([at_bound, below], gt)
    assert sorted(map(tuple, rois.rois)) == sorted(map(tuple, np.float32([[0, 0, 99, 99], at_bound, below])))
    assert rois.n_foreground == 2
    np.testing.assert_array_equal(rois.labels, [4, 4, 0])


def test_a_roi_at_the_lower_bound_of_the_background_is_sampled():
    gt = objects([[0, 0, 99, 99]], [3], [False])
    at_bound, below = [0, 0, 99, 24], [0, 0, 99, 23]
    rois = sample([at_bound, below], gt, roi_background_iou=(0.25, 0.5))
    np.testing.assert_array_equal(rois.rois, np.float32([[0, 0, 99, 99], at_bound]))
    np.testing.assert_array_equal(rois.labels, [4, 0])


def test_objects_without_proposals_use_their_own_boxes():
    rois = sample(np.zeros((0, 4)), objects([[2, 3, 40, 50]], [0], [False]), scale=2.0)
    np.testing.assert_array_equal(rois.labels, [1])
    np.testing.assert_array_equal(rois.rois, [[4, 6, 80, 100]])
    np.testing.assert_array_equal(rois.deltas, [[0, 0, 0, 0]])
