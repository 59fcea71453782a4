"""Keypoint decoding against OpenCV and against Detectron's results."""

import cv2
import numpy as np
import pytest

from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from tests.support.arrays import SWAP_XY


def decode(backend, heatmaps, boxes):
    return backend.numpy(decode_heatmaps(backend.array(heatmaps), backend.array(boxes)))


def decode_with_opencv(heatmap, box):
    """Decode a heat map as Detectron does, with OpenCV and NumPy."""
    sides = np.maximum(box[2:] - box[:2], np.float32(1))
    height, width = np.ceil(sides).astype(int)
    resized = cv2.resize(heatmap, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    row, column = np.unravel_index(resized.argmax(), resized.shape)
    exponentials = np.exp(resized.astype(np.float64) - resized.max())
    return (
        *((np.array([row, column]) + 0.5) * sides / (height, width) + box[:2]),
        resized.max(),
        1 / exponentials.sum(),
    )


def test_keypoints_equal_detectron(data, backend):
    golden = np.load(data / 'ops_keypoints.npz')
    found = decode(backend, golden['heatmaps_f16'].astype(np.float32), golden['rois'][:, SWAP_XY])
    expected = golden['keypoints'][:, [1, 0, 2, 3]].transpose(0, 2, 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :, :2], expected[:, :, :2])
    np.testing.assert_allclose(found[:, :, 2:], expected[:, :, 2:], rtol=2e-6)


@pytest.mark.parametrize('side', [56, 28, 7])
def test_keypoints_are_the_maxima_after_opencvs_resize(backend, rng, side):
    """Boxes are smaller than a pixel, smaller or larger than the heat map, with integer and fractional sizes."""
    sizes = np.float32([[0.25, 3.5], [1, 1], [20, 31.25], [56, 56], [112, 112.5], [90.75, 13]])
    origins = rng.randint(-20, 200, (len(sizes), 2)).astype(np.float32) / 4
    boxes = np.concatenate([origins, origins + sizes], axis=1)
    heatmaps = rng.normal(0, 3, (len(boxes), 2, side, side)).astype(np.float32)
    found = decode(backend, heatmaps, boxes)
    for r, box in enumerate(boxes):
        for k in range(2):
            expected = decode_with_opencv(heatmaps[r, k], box)
            np.testing.assert_allclose(found[r, k, :2], expected[:2], rtol=0, atol=1e-5)
            np.testing.assert_allclose(found[r, k, 2:], expected[2:], rtol=5e-6)


def test_the_first_of_equal_pixels_is_the_keypoint(backend):
    heatmaps = np.zeros((1, 2, 4, 4), np.float32)
    heatmaps[0, 1, 2, [1, 3]] = heatmaps[0, 1, 3, 0] = 8
    found = decode(backend, heatmaps, np.float32([[10, 20, 14, 24]]))
    np.testing.assert_array_equal(found[0, 0], np.float32([10.5, 20.5, 0, 1 / 16]))
    np.testing.assert_array_equal(found[0, 1, :3], [12.5, 21.5, 8])


def test_no_heatmaps(backend):
    found = decode(backend, np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32))
    assert found.shape == (0, 17, 4)


def test_wrong_shapes_are_an_error():
    heatmaps = np.zeros((2, 17, 56, 56), np.float32)
    with pytest.raises(ValueError, match=r'heatmaps must have the shape \(R, K, M, M\), not \(17, 56, 56\)'):
        decode_heatmaps(heatmaps[0], np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r'boxes must have the shape \(2, 4\), not \(3, 4\)'):
        decode_heatmaps(heatmaps, np.zeros((3, 4), np.float32))
