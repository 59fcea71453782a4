"""Tests of image resizing against OpenCV, exact rational arithmetic and the original network inputs."""

import zlib
from fractions import Fraction
from math import floor

import cv2
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.preprocessing.resize import resize_opencv, resize_uint8_skimage


@pytest.mark.parametrize('scale', [0.37, 0.75, 1.0, 1.19, 2.6])
def test_resize_opencv_agrees_with_opencv_up_to_its_rounding(rng, scale):
    image = rng.uniform(0, 255, (3, 37, 53)).astype(np.float32)
    mean = (100.5, 110.25, 120.0)
    expected = cv2.resize(image.transpose(1, 2, 0) - np.float32(mean), None, fx=scale, fy=scale)
    np.testing.assert_allclose(resize_opencv(image, mean, scale), expected.transpose(2, 0, 1), rtol=0, atol=0.02)


def test_resize_opencv_interpolates_linearly():
    """On a ramp, each output value is the position of its centre, clipped at the border."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (1, 5, 40))
    out = resize_opencv(ramp, (0,), 1.5)
    centres = (np.arange(60) + 0.5) / 1.5 - 0.5
    np.testing.assert_allclose(out[0], np.broadcast_to(np.clip(centres, 0, 39), (8, 60)), atol=1e-5)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_resize_opencv_accepts_tiny_images(shape):
    out = resize_opencv(np.full((3, *shape), 7, np.float32), (1, 2, 3), 3.0)
    assert out.shape == (3, 3 * shape[0], 3 * shape[1])
    np.testing.assert_array_equal(out, np.broadcast_to(np.float32([6, 5, 4])[:, None, None], out.shape))


def test_height_and_width_stay_at_least_one_pixel():
    assert resize_opencv(np.zeros((3, 1, 900), np.float32), (0, 0, 0), 0.4).shape == (3, 1, 360)


@pytest.mark.parametrize('case', ['R-50-C4_seed0', 'R-50-C4_seed0_scale300'])
def test_network_input_has_the_bits_of_detectron(golden, case):
    arrays = np.load(golden / 'detectron' / f'case_{case}.npz')
    photo = golden / 'photos' / '17790319373_bd19b24cfc_k.jpg'
    image = cv2.imread(str(photo)).transpose(2, 0, 1)
    x = resize_opencv(image, DETECTRON.input.pixel_mean, float(arrays['im_scale']))
    assert zlib.crc32(x.tobytes()) == int(arrays['data_crc32'])


def exact_resize(plane, size):
    """Resize ``(H, W)`` integers bilinearly in rational arithmetic, with zeros outside of the image."""

    def weights(n_in, n_out):
        """For each output pixel: input pixels and their weights, from the distances between pixel centres."""
        positions = [(i + Fraction(1, 2)) * n_in / n_out - Fraction(1, 2) for i in range(n_out)]
        neighbours = [(p, k) for p in positions for k in (floor(p), floor(p) + 1)]
        pairs = [(k, 1 - abs(p - k)) if 0 <= k < n_in else (0, Fraction(0)) for p, k in neighbours]
        return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]

    rows, columns = weights(plane.shape[0], size[0]), weights(plane.shape[1], size[1])
    pixels, low, high = plane.astype(int).tolist(), int(plane.min()), int(plane.max())
    return [
        [min(max(sum(a * b * pixels[i][j] for i, a in row for j, b in column), low), high) for column in columns]
        for row in rows
    ]


@pytest.mark.parametrize(
    ('size_in', 'size_out'),
    [
        ((12, 17), (7, 20)),
        ((12, 17), (30, 10)),
        ((12, 17), (12, 40)),
        ((12, 17), (24, 34)),
        ((9, 8), (3, 4)),
        ((8, 4), (1, 1)),
        ((1, 6), (5, 9)),
        ((6, 1), (3, 7)),
    ],
)
def test_resize_uint8_skimage_truncates_the_exact_values(rng, size_in, size_out):
    """Values that are integers in exact arithmetic may be one lower: double precision may fall just below them."""
    image = rng.randint(0, 256, (1, *size_in)).astype(np.float32)
    out = resize_uint8_skimage(image, size_out)
    assert out.dtype == np.float32 and out.shape == (1, *size_out)
    exact = exact_resize(image[0], size_out)
    for row, exact_row in zip(out[0].tolist(), exact, strict=True):
        for value, exact_value in zip(row, exact_row, strict=True):
            assert value == floor(exact_value) or (exact_value.denominator == 1 and value == exact_value - 1)


def float64_resize(image, size):
    """Resize ``(C, H, W)`` bilinearly with zeros outside of the image, as two matrix products in float64."""

    def matrix(n_out, n_in):
        positions = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        return np.maximum(1 - np.abs(positions[:, None] - np.arange(n_in)), 0)

    resized = matrix(size[0], image.shape[1]) @ image.astype(np.float64) @ matrix(size[1], image.shape[2]).T
    return np.clip(resized, image.min(), image.max())


@pytest.mark.parametrize('size', [(20, 61), (90, 31), (37, 53), (100, 120), (551, 1024)])
def test_resize_uint8_skimage_agrees_with_matrix_products(rng, size):
    image = rng.randint(0, 256, (3, 37, 53)).astype(np.float32)
    out = resize_uint8_skimage(image, size)
    expected = float64_resize(image, size)
    away_from_integers = np.abs(expected - np.rint(expected)) > 1e-9  # elsewhere the rounding decides
    np.testing.assert_array_equal(out[away_from_integers], np.floor(expected)[away_from_integers])
    assert np.abs(out - expected).max() < 1 + 1e-9


def test_upscaled_borders_fade_to_zero_but_not_below_the_minimum_of_the_image():
    image = np.full((1, 4, 4), 200, np.float32)
    np.testing.assert_array_equal(resize_uint8_skimage(image, (8, 8)), np.full((1, 8, 8), 200))
    image[0, 2, 2] = 0
    out = resize_uint8_skimage(image, (8, 8))
    np.testing.assert_array_equal(out[0, [0, 0, 1], [0, 3, 1]], [floor(200 * 0.75**2), 200 * 0.75, 200])


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (9, 1)])
def test_resize_uint8_skimage_accepts_tiny_images(shape):
    image = np.full((3, *shape), 7, np.float32)
    out = resize_uint8_skimage(image, (3 * shape[0], 3 * shape[1]))
    np.testing.assert_array_equal(out, np.full((3, 3 * shape[0], 3 * shape[1]), 7))


def test_at_most_1_in_10000_values_differs_from_matterport_by_one_grey_level(matterport_golden):
    expected = np.load(matterport_golden / 'matterport' / 'case_coco_resnet50.npz')['molded_uint8']
    photo = matterport_golden / 'photos' / '17790319373_bd19b24cfc_k.jpg'
    image = cv2.imread(str(photo))[:, :, ::-1].transpose(2, 0, 1)
    resized = resize_uint8_skimage(image, expected.shape[:2])
    difference = np.abs(resized.transpose(1, 2, 0) - expected)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= difference.size / 10000


def test_an_image_of_the_requested_size_is_not_resized(rng):
    image = rng.randint(0, 256, (3, 20, 31)).astype(np.uint8)
    np.testing.assert_array_equal(resize_uint8_skimage(image, (20, 31)), image)
