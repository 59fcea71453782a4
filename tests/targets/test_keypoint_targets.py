"""Training targets of the keypoint head, against those of Detectron."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, Sampling, sample_keypoint_rois
from mask_rcnn.targets.keypoints import keypoint_locations, visible_inside
from mask_rcnn.targets.matching import match_rois

XY = [1, 0, 3, 2]


def from_detectron(keypoints):
    """Convert Detectron's (G, 3, K) rows x, y, visibility to (G, K, 3)."""
    return keypoints.transpose(0, 2, 1)[:, :, [1, 0, 2]].astype(np.float32)


def to_detectron(locations):
    """Return Detectron's locations and weights."""
    return np.where(locations == IGNORED, 0, locations), (locations != IGNORED).astype(np.float32)


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_targets.npz')


@pytest.fixture(scope='module')
def annotations(golden):
    boxes = golden['kp_gt_boxes'][:, XY]
    return Annotations(
        boxes,
        np.zeros(len(boxes), np.int32),
        np.zeros(len(boxes), bool),
        ((),) * len(boxes),
        from_detectron(golden['kp_gt_keypoints']),
    )


def sample(proposals, annotations, scale=1.0, seed=0, size=56, **changes):
    return sample_keypoint_rois(
        np.asarray(proposals, np.float32).reshape(-1, 4),
        annotations,
        ImageTransform.top_left((400, 400), scale),
        size,
        sampling=Sampling(**changes),
        dialect=DETECTRON,
        rng=np.random.RandomState(seed),
    )


def person(box, *points):
    """Return one object, with its first keypoints given as (y, x, visibility)."""
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, : len(points)] = points
    return Annotations(np.float32([box]), np.int32([0]), np.array([False]), ((),), keypoints)


def test_locations_equal_detectron(data):
    golden = np.load(data / 'ops_keypoints.npz')
    found = keypoint_locations(from_detectron(golden['target_keypoints']), golden['target_rois'][:, XY], 56)
    locations, weights = to_detectron(found)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(locations, golden['target_locations'])
    np.testing.assert_array_equal(weights, golden['target_weights'])


def test_rois_and_locations_equal_detectron(golden, annotations):
    """All candidates are sampled, in Detectron's order."""
    scale = golden['kp_rois'][0, 1] / golden['kp_gt_boxes'][0, 0]
    proposals = golden['kp_all_boxes'][4:, XY] * scale
    found = sample(proposals, annotations, scale, roi_batch=10**4)
    np.testing.assert_allclose(found.rois[:, XY], golden['kp_rois'][:, 1:], rtol=0, atol=1e-4)
    locations, weights = to_detectron(found.locations)
    np.testing.assert_array_equal(locations.ravel(), golden['kp_locations'].ravel())
    np.testing.assert_array_equal(weights.ravel(), golden['kp_weights'].ravel())


def test_candidates_equal_those_of_the_box_head(golden, annotations):
    found = match_rois(golden['kp_all_boxes'][4:, XY], annotations, offset=1)
    np.testing.assert_allclose(found.iou, golden['kp_all_max_overlaps'], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.gt_index, golden['kp_all_gt_index'])


def test_at_most_the_number_of_foreground_rois_is_sampled(rng):
    low = rng.uniform(0, 5, (300, 2))
    gt = person([0, 0, 60, 60], (30, 30, 2))
    found = sample(np.concatenate([low, low + 58], axis=1), gt, roi_batch=512)
    assert found.rois.shape == (128, 4) and found.locations.shape == (128, 17)
    assert len(np.unique(found.rois, axis=0)) == 128
    other = sample(np.concatenate([low, low + 58], axis=1), gt, roi_batch=512, seed=1)
    assert not np.array_equal(found.rois, other.rois)


def test_rois_without_a_visible_keypoint_are_not_sampled():
    proposals = [[0, 0, 59, 59], [0, 0, 100, 100]]  # the IoU of the second one is too small
    assert len(sample(proposals, person([0, 0, 60, 60], (30, 30, 1))).rois) == 2
    for point in ((30, 30, 0), (90, 90, 2)):
        found = sample(proposals, person([0, 0, 60, 60], point))
        assert found.rois.shape == (0, 4) and found.locations.shape == (0, 17)
    found = sample(proposals, person([0, 0, 60, 60], (60, 60, 2)))
    np.testing.assert_array_equal(found.rois, [[0, 0, 60, 60]])  # the box of the object itself: the border counts
    assert found.locations[0, 0] == 56 * 56 - 1


def test_an_image_without_objects_has_no_rois():
    no_objects = Annotations(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), (), np.zeros((0, 17, 3), np.float32)
    )
    assert len(sample([[0, 0, 59, 59]], no_objects).rois) == 0


def test_keypoints_on_the_border_of_a_box_without_width():
    keypoints = np.float32([[[5, 7, 2], [5, 8, 2]]])
    np.testing.assert_array_equal(keypoint_locations(keypoints, np.float32([[0, 7, 10, 7]]), 4), [[11, -1]])


def test_keypoints_on_the_border_of_their_box_are_inside():
    keypoints = np.float32([[[5, 5, 2], [10, 20, 1], [10.5, 5, 2], [5, 5, 0]]])
    np.testing.assert_array_equal(visible_inside(keypoints, np.float32([[5, 5, 10, 20]])), [[True, True, False, False]])
