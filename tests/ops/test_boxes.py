"""Box arithmetic against Detectron's results and against definitions."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes import boxes as boxes_module
from mask_rcnn.ops.boxes import proposals
from mask_rcnn.ops.boxes.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, outer_corners
from mask_rcnn.preprocessing import image_transform
from mask_rcnn.preprocessing.image_transform import ImageTransform
from tests.support.arrays import random_boxes, swap_xy

MAX_LOG_SCALE = np.log(1000 / 16)


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_boxes.npz')


@pytest.mark.parametrize(('name', 'weights'), [('w1', (1, 1, 1, 1)), ('w10', (10, 10, 5, 5))])
def test_decode_boxes_equals_detectron(golden, name, weights):
    decoded = decode_boxes(
        swap_xy(golden['box_boxes']),
        swap_xy(golden[f'box_deltas_{name}']),
        weights=weights,
        max_log_scale=MAX_LOG_SCALE,
    )
    assert decoded.dtype == np.float32
    # exp differs by one unit in the last place between math libraries: 2 ** -15 for sides of 256 or more.
    np.testing.assert_allclose(swap_xy(decoded), golden[f'box_decode_{name}'], rtol=3e-7, atol=4e-5)


@pytest.mark.parametrize(('name', 'weights'), [('w1', (1, 1, 1, 1)), ('w10', (10, 10, 5, 5))])
def test_encode_boxes_equals_detectron(golden, name, weights):
    encoded = encode_boxes(swap_xy(golden['box_boxes']), swap_xy(golden['box_gt']), weights=weights)
    np.testing.assert_allclose(swap_xy(encoded), golden[f'box_encode_{name}'], rtol=1e-5, atol=2e-6)


def test_decode_boxes_inverts_encode_boxes(rng):
    boxes, targets = (random_boxes(rng, 40, max_side=60).astype(np.float64) for _ in range(2))
    for offset in (0.0, 1.0):
        deltas = encode_boxes(boxes, targets, weights=(10, 10, 5, 5), offset=offset)
        decoded = decode_boxes(boxes, deltas, weights=(10, 10, 5, 5), offset=offset)
        np.testing.assert_allclose(decoded, targets, rtol=1e-12, atol=1e-11)


def test_max_log_scale_limits_the_size():
    box = np.array([[10, 10, 19, 19]], np.float32)
    decoded = decode_boxes(box, np.array([[0, 0, 100, 0]], np.float32), max_log_scale=MAX_LOG_SCALE)
    np.testing.assert_allclose(decoded[0, 2] - decoded[0, 0] + 1, 10 * 1000 / 16, rtol=1e-6)


def test_weights_may_differ_along_the_axes(rng):
    """The order is (dy, dx, dh, dw)."""
    boxes, deltas = np.float32([[10, 20, 29, 59]]), rng.normal(0, 1, (1, 4)).astype('f')
    weights = np.float32([10, 5, 4, 2])
    np.testing.assert_array_equal(
        decode_boxes(boxes, deltas, weights=tuple(weights)), decode_boxes(boxes, deltas / weights)
    )


def test_clip_boxes_equals_detectron(golden):
    clipped = clip_boxes(swap_xy(golden['box_clip_in']), golden['box_clip_shape'])
    np.testing.assert_array_equal(swap_xy(clipped), golden['box_clip_out'])


def test_clip_boxes_of_every_class():
    boxes = np.array([[-5, -5, 200, 300, 1, 2, 3, 4]], np.float32)
    np.testing.assert_array_equal(clip_boxes(boxes, (100, 150)), [[0, 0, 99, 149, 1, 2, 3, 4]])
    np.testing.assert_array_equal(clip_boxes(boxes, (100, 150), offset=0), [[0, 0, 100, 150, 1, 2, 3, 4]])


def test_clip_boxes_to_a_part_of_an_image():
    boxes = np.float32([[-5, 3, 99, 99], [20, 20, 25, 25]])
    clipped = clip_boxes(boxes, (30, 40), offset=0, origin=(10, 5))
    np.testing.assert_array_equal(clipped, [[10, 5, 40, 45], [20, 20, 25, 25]])


def test_box_iou_equals_detectron(golden):
    iou = box_iou(swap_xy(golden['box_boxes']), swap_xy(golden['box_gt']))
    np.testing.assert_array_equal(iou, golden['box_iou'])


def test_box_iou_by_counting_pixels(rng):
    low = rng.randint(0, 12, (20, 2))
    boxes = np.concatenate([low, low + rng.randint(0, 8, (20, 2))], axis=1).astype(np.float32)
    covered = np.zeros((20, 20, 20), bool)
    for mask, (y0, x0, y1, x1) in zip(covered, boxes.astype(int), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    intersection = (covered[:, None] & covered[None]).sum(axis=(2, 3))
    union = (covered[:, None] | covered[None]).sum(axis=(2, 3))
    np.testing.assert_allclose(box_iou(boxes, boxes), intersection / union, rtol=1e-6)


def test_box_iou_of_empty_boxes_is_zero():
    empty = np.array([[3, 3, 3, 3]], np.float32)
    assert box_iou(empty, empty, offset=0.0)[0, 0] == 0


def test_no_constant_is_copied_to_the_gpu(rng, monkeypatch):
    """Scalars are passed to the kernels; an array of constants would be a copy to the device."""

    class Device:
        """NumPy without the functions that copy to a device."""

        def __getattr__(self, name):
            assert name not in ('asarray', 'array', 'ascontiguousarray'), name
            return getattr(np, name)

    rois = random_boxes(rng, 6)
    deltas = rng.normal(0, 0.3, (6, 8)).astype('f')
    transforms = ImageTransform.top_left((80, 90), 1.3), ImageTransform.letterbox((80, 90), 1.3, 128)

    def results():
        decoded = decode_boxes(rois, deltas, weights=(10, 10, 5, 5), max_log_scale=MAX_LOG_SCALE)
        yield clip_boxes(decoded, (50, 60), origin=(3, 4))
        yield proposals._is_valid_proposal(rois, 8, 1.5, 1.0, (50, 60))
        for transform in transforms:
            yield transform.apply_boxes(rois)
            yield transform.invert_boxes(rois)
            yield transform.invert_boxes(rois, reciprocal=True)

    expected = list(results())
    for module in (boxes_module, image_transform, proposals):
        monkeypatch.setattr(module, 'get_array_module', lambda *_: Device())
    for result, expected_result in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(result, expected_result)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_outer_corners_enclose_the_last_pixels(dtype):
    boxes = np.array([[[2, 1, 2, 5]]], dtype)  # one row of five pixels
    corners = outer_corners(boxes, 1.0)
    assert corners.dtype == dtype and corners.tolist() == [[[2, 1, 3, 6]]] and boxes.tolist() == [[[2, 1, 2, 5]]]
    np.testing.assert_array_equal(outer_corners(boxes, 0.0), boxes)
