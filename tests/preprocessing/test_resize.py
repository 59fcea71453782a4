import zlib

import cv2
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.preprocessing._fitted_zoom import skimage_affine
from mask_rcnn.preprocessing.resize import resize_uint8_skimage, subtract_mean_and_resize


@pytest.mark.parametrize('scale', [0.37, 0.75, 1.0, 1.19, 2.6])
def test_resize_is_opencvs_but_for_its_rounding(rng, scale):
    image = rng.uniform(0, 255, (3, 37, 53)).astype(np.float32)
    mean = (100.5, 110.25, 120.0)
    expected = cv2.resize(image.transpose(1, 2, 0) - np.float32(mean), None, fx=scale, fy=scale)
    np.testing.assert_allclose(
        subtract_mean_and_resize(image, mean, scale), expected.transpose(2, 0, 1), rtol=0, atol=0.02
    )


def test_resize_interpolates_linearly():
    """Along a ramp, a pixel is the value at its centre, except where the border cuts the ramp off."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (1, 5, 40))
    out = subtract_mean_and_resize(ramp, (0,), 1.5)
    centres = (np.arange(60) + 0.5) / 1.5 - 0.5
    np.testing.assert_allclose(out[0], np.broadcast_to(np.clip(centres, 0, 39), (8, 60)), atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_resize_of_tiny_images(shape):
    out = subtract_mean_and_resize(np.full((3, *shape), 7, np.float32), (1, 2, 3), 3.0)
    assert out.shape == (3, 3 * shape[0], 3 * shape[1])
    np.testing.assert_array_equal(out, np.broadcast_to(np.float32([6, 5, 4])[:, None, None], out.shape))


def test_resize_never_loses_a_side():
    assert subtract_mean_and_resize(np.zeros((3, 1, 900), np.float32), (0, 0, 0), 0.4).shape == (3, 1, 360)


@pytest.mark.parametrize('case', ['R-50-C4_seed0', 'R-50-C4_seed0_scale300'])
def test_input_is_detectrons_to_the_bit(shared, case):
    golden = np.load(shared / 'golden' / 'detectron' / f'case_{case}.npz')
    photo = shared / 'golden' / 'photos' / '17790319373_bd19b24cfc_k.jpg'
    image = cv2.imread(str(photo)).transpose(2, 0, 1)
    x = subtract_mean_and_resize(image, DETECTRON.input.pixel_mean, float(golden['im_scale']))
    assert zlib.crc32(x.tobytes()) == int(golden['data_crc32'])


def reference_zoom(image, size):
    """Bilinear between the pixels' centres, zeros beyond the image, as two matrix products in float64."""

    def matrix(n_out, n_in):
        positions = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        return np.maximum(1 - np.abs(positions[:, None] - np.arange(n_in)), 0)

    zoomed = matrix(size[0], image.shape[1]) @ image.astype(np.float64) @ matrix(size[1], image.shape[2]).T
    return np.clip(zoomed, image.min(), image.max())


@pytest.mark.parametrize('size', [(20, 61), (90, 31), (37, 53), (100, 120)])
def test_truncated_resize(rng, size):
    image = rng.randint(0, 256, (3, 37, 53)).astype(np.float32)
    out = resize_uint8_skimage(image, size)
    expected = reference_zoom(image, size)
    assert out.dtype == np.float32
    behind_the_point = np.abs(expected - np.rint(expected)) > 1e-9  # else rounding decides what is cut off
    np.testing.assert_array_equal(out[behind_the_point], np.floor(expected)[behind_the_point])
    assert np.abs(out - expected).max() < 1 + 1e-9


def test_truncated_resize_fades_into_zeros_but_not_below_the_least_number():
    image = np.full((1, 4, 4), 200, np.float32)
    np.testing.assert_array_equal(resize_uint8_skimage(image, (8, 8)), np.full((1, 8, 8), 200))
    image[0, 2, 2] = 0
    out = resize_uint8_skimage(image, (8, 8))
    expected = [200 * 0.75**2, 200 * 0.75, 200]
    assert np.abs(out[0, [0, 0, 1], [0, 3, 1]] - expected).max() <= 1  # which may be cut off


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_truncated_resize_of_tiny_images(shape):
    image = np.full((3, *shape), 7, np.float32)
    out = resize_uint8_skimage(image, (3 * shape[0], 3 * shape[1]))
    np.testing.assert_array_equal(out, np.full((3, 3 * shape[0], 3 * shape[1]), 7))


def test_truncated_resize_is_matterports_to_the_bit(shared):
    golden = np.load(shared / 'golden' / 'matterport' / 'case_coco_resnet50.npz')['molded_uint8']
    photo = shared / 'golden' / 'photos' / '17790319373_bd19b24cfc_k.jpg'
    image = cv2.imread(str(photo))[:, :, ::-1].transpose(2, 0, 1)
    resized = resize_uint8_skimage(image, golden.shape[:2])
    np.testing.assert_array_equal(resized.transpose(1, 2, 0), golden)


def test_an_image_of_the_same_size_stays(rng):
    image = rng.randint(0, 256, (3, 20, 31)).astype(np.uint8)
    np.testing.assert_array_equal(resize_uint8_skimage(image, (20, 31)), image)


@pytest.mark.parametrize(
    ('size_in', 'size_out'),
    [((600, 1116), (551, 1024)), ((20, 30), (40, 60)), ((333, 77), (100, 900)), ((5, 9), (1, 7)), ((8, 4), (1, 1))],
)
def test_fitted_positions_are_those_of_the_centres(size_in, size_out):
    """But for what the fit rounds."""
    for (factor, offset), n_in, n_out in zip(skimage_affine(size_in, size_out), size_in, size_out):
        places = np.arange(n_out)
        np.testing.assert_allclose(factor * places + offset, n_in / n_out * (places + 0.5) - 0.5, rtol=0, atol=1e-11)
