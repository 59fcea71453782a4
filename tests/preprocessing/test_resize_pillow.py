"""Tests of the resize of bytes against Pillow, and of the conversions before and after it."""

import numpy as np
import pytest

from mask_rcnn.ops.images.triangle_filter import WEIGHT_BITS, triangle_filter
from mask_rcnn.preprocessing.resize_pillow import normalize_pixels, resize_pillow, to_bytes
from tests.support.pillow_passes import resize_axes


def random_pixels(rng, size):
    """Noise with areas of the extreme values, whose sums may exceed a byte."""
    pixels = rng.randint(0, 256, (*size, 3)).astype(np.uint8)
    pixels[rng.uniform(size=size) < 0.2] = 255
    return pixels


@pytest.mark.parametrize(
    ('size_in', 'size_out'),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (40, 7)),
        ((1, 300), (1, 7)),
        ((300, 1), (5, 1)),
        ((300, 2), (1, 3)),
        ((2, 1000), (900, 3)),
        ((64, 48), (64, 31)),
        ((64, 48), (97, 48)),
        ((64, 48), (64, 48)),
        ((41, 67), (82, 134)),
        ((82, 134), (41, 67)),
    ],
)
def test_bytes_are_those_of_pillow(rng, size_in, size_out):
    """One pixel, extreme ratios, equal sides and integer factors."""
    pixels = random_pixels(rng, size_in)
    out = resize_pillow(pixels, size_out)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, resize_axes(pixels, size_out))


def test_bytes_of_random_sizes_are_those_of_pillow(rng):
    for _ in range(150):
        size_in, size_out = (tuple(rng.randint(1, 200, 2).tolist()) for _ in range(2))
        pixels = random_pixels(rng, size_in)
        np.testing.assert_array_equal(
            resize_pillow(pixels, size_out), resize_axes(pixels, size_out), f'{size_in} {size_out}'
        )


@pytest.mark.parametrize('size', [(480, 640), (1080, 1920)])
def test_photo_sizes(rng, size):
    pixels = random_pixels(rng, size)
    np.testing.assert_array_equal(resize_pillow(pixels, (750, 1333)), resize_axes(pixels, (750, 1333)))


def test_views_are_resized(rng):
    pixels = random_pixels(rng, (40, 50))
    for view in (pixels[::-1], pixels[:, :, ::-1], pixels.transpose(1, 0, 2), pixels[3:30, ::2]):
        np.testing.assert_array_equal(resize_pillow(view, (33, 20)), resize_axes(np.ascontiguousarray(view), (33, 20)))


def test_a_constant_picture_stays_constant():
    for value in (0, 1, 127, 255):
        pixels = np.full((37, 53, 3), value, np.uint8)
        assert (resize_pillow(pixels, (90, 11)) == value).all()


@pytest.mark.parametrize(('n_in', 'n_out'), [(7, 3), (3, 7), (100, 1), (1, 100), (1333, 800), (12, 12)])
def test_weights_are_a_normalised_triangle(n_in, n_out):
    """The weights of all input pixels, from the distances between pixel centres."""
    step = n_in / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * step
    distances = np.abs(np.arange(n_in) + 0.5 - centres) / max(step, 1)
    expected = np.maximum(1 - distances, 0)
    expected /= expected.sum(axis=1, keepdims=True)
    dense = np.zeros((n_out, n_in))
    first, n_taps, weights = triangle_filter(n_in, n_out)
    for i in range(n_out):
        assert not weights[i, n_taps[i] :].any()
        dense[i, first[i] : first[i] + n_taps[i]] = weights[i, : n_taps[i]]
    np.testing.assert_allclose(dense / 2**WEIGHT_BITS, expected, rtol=0, atol=0.51 / 2**WEIGHT_BITS)


def test_integers_from_0_to_255_are_bytes(rng):
    pixels = rng.randint(0, 256, (20, 31, 3)).astype(np.uint8)
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    assert to_bytes(pixels) is pixels
    for view, expected in ((image, pixels), (image[:, ::-1, 2:], pixels[::-1, 2:])):
        converted = to_bytes(view)
        assert converted.dtype == np.uint8 and converted.flags.c_contiguous
        np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize('value', [0.5, 254.99998, -1, 256, 1e30, -1e-30, np.nan, np.inf, -np.inf])
def test_other_values_are_no_bytes(value):
    image = np.zeros((3, 20, 31), np.float32)
    image[2, 19, 30] = value
    assert to_bytes(image) is None


@pytest.mark.parametrize('reverse', [False, True])
def test_normalisation(rng, reverse):
    pixels = rng.randint(0, 256, (20, 31, 3)).astype(np.uint8)
    mean, std = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
    out = normalize_pixels(pixels, mean, std, reverse=reverse)
    for c in range(3):
        channel = pixels[:, :, 2 - c if reverse else c].astype(np.float32)
        np.testing.assert_array_equal(out[c], (channel - np.float32(mean[c])) / np.float32(std[c]))
    assert out.dtype == np.float32 and out.flags.c_contiguous
