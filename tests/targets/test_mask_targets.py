"""Shapes drawn in RoIs: polygons as Detectron does, run lengths by area."""

import numpy as np
import pycocotools.mask
import pytest

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.targets import IGNORED, mask_targets
from mask_rcnn.targets.masks import draw_in_boxes, resample_mask, segmentation_box

XY = [1, 0, 3, 2]
SQUARE = (np.array([10, 20, 50, 20, 50, 60, 10, 60], np.float32),)


def annotations(*segmentations, crowd=None):
    boxes = [segmentation_box(s, [0, 0, 5, 5]) for s in segmentations]
    return Annotations(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(boxes), np.int32),
        np.array(crowd or [False] * len(boxes)),
        segmentations,
    )


def encode(mask):
    return pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.mark.parametrize('size', [14, 28])
def test_polygons_are_drawn_as_detectron_does(shared, size):
    golden = np.load(shared / 'golden' / 'ops' / 'ops_masks.npz')
    polygons = []
    for i in range(len(golden['polys_to_boxes'])):
        names = sorted(key for key in golden.files if key.startswith(f'poly{i}_part'))
        polygons.append(tuple(golden[name] for name in names))
    boxes = np.array([segmentation_box(p, None) for p in polygons])
    np.testing.assert_array_equal(boxes[:, XY], golden['polys_to_boxes'])
    for k in range(int(golden[f'target{size}_count'])):
        key = f'target{size}_{k:02d}'
        (mask,) = draw_in_boxes(polygons[int(golden[f'{key}_poly'])], golden[f'{key}_box'][None, XY], size)
        np.testing.assert_array_equal(mask, golden[f'{key}_mask'], err_msg=key)


def test_run_lengths_at_their_own_size_are_the_mask(rng):
    mask = rng.rand(20, 30) > 0.5
    (found,) = draw_in_boxes(encode(mask), np.array([[3, 5, 17, 19]], np.float32), 14)
    np.testing.assert_array_equal(found, mask[3:17, 5:19])


def test_run_lengths_are_resized_by_area(rng):
    mask = rng.rand(40, 40) > 0.4
    expected = mask[4:32, 8:36].reshape(14, 2, 14, 2).mean(axis=(1, 3)) >= 0.5
    np.testing.assert_array_equal(resample_mask(mask, np.array([4, 8, 32, 36], np.float32), 14), expected)


def test_run_lengths_and_polygons_of_one_shape_agree():
    mask = pycocotools.mask.decode(pycocotools.mask.frPyObjects([p.tolist() for p in SQUARE], 80, 80))[..., 0]
    boxes = np.array([[20, 10, 60, 50], [0, 0, 79, 79], [35.5, 30.2, 70.1, 66.6]], np.float32)
    drawn = draw_in_boxes(SQUARE, boxes, 28)
    resized = draw_in_boxes(encode(mask), boxes, 28)
    assert drawn[0].all() and resized[0].all()
    assert np.mean(drawn != resized) < 0.01
    np.testing.assert_array_equal(segmentation_box(encode(mask), None), segmentation_box(SQUARE, None))


def test_a_box_outside_of_the_mask_is_empty():
    assert not resample_mask(np.ones((8, 8)), np.array([20, 20, 30, 30], np.float32), 14).any()


def test_a_roi_takes_the_object_that_it_overlaps_most_and_no_crowd():
    other = (SQUARE[0] + 100,)
    gt = annotations(SQUARE, SQUARE, other, crowd=[True, False, False])
    boxes = np.array([[118, 108, 162, 152], [20, 10, 60, 50]], np.float32)
    masks = mask_targets(boxes, gt, 14, offset=1)
    np.testing.assert_array_equal(masks[0], draw_in_boxes(other, boxes[:1], 14)[0])
    assert masks[1].all() and 0 < masks[0].mean() < 1


def test_an_object_without_a_shape_is_ignored():
    masks = mask_targets(np.array([[0, 0, 5, 5]], np.float32), annotations(()), 14, offset=1)
    assert masks.shape == (1, 14, 14) and (masks == IGNORED).all()


def test_no_rois_no_masks():
    assert mask_targets(np.zeros((0, 4), np.float32), annotations(), 14, offset=1).shape == (0, 14, 14)
