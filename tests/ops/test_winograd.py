"""Winograd convolution on the CPU against direct sums, in particular at the borders of images, vectors and panels."""

import itertools

import numpy as np
import pytest

from mask_rcnn.ops.conv import winograd
from mask_rcnn.ops.conv.matmul_tiles import panel_width
from mask_rcnn.ops.conv.tuning import ConvTuning, using_tuning
from mask_rcnn.ops.conv.winograd import TilePlan
from mask_rcnn.ops.runtime.vectors import lanes

#: Threads share the channels and the points of one block, or each block is a single vector of tiles.
SHARED = ConvTuning(winograd_block_bytes=1 << 30, min_winograd_work=0)
SMALL_BLOCKS = ConvTuning(winograd_block_bytes=1, min_winograd_block_tiles=1, min_winograd_correlated_tiles=1)

SHAPES = {  # images, height, width, pad
    'one pixel': (1, 1, 1, 1),
    'one output pixel': (2, 3, 3, 0),
    'rows of two tiles': (17, 7, 7, 1),
    'rows of four tiles': (3, 14, 14, 1),
    'a row of more than a panel': (2, 3, 230, 1),
    'rows that end a panel': (1, 17, 192, 1),
    'a row that ends one tile later': (1, 5, 193, 1),
    'last pixel column in a tile of its own': (2, 9, 65, 1),
    'no padding': (2, 13, 19, 0),
    'two zeros around the image': (2, 6, 10, 2),
    'a tile row of zeros': (1, 2, 2, 5),
}


def random_arrays(rng, name, channels=3, out_channels=5, dtype=np.float64):
    n_images, height, width, pad = SHAPES[name]
    images = rng.standard_normal((channels, n_images, height, width)).astype(dtype)
    return images, rng.standard_normal((out_channels, channels, 3, 3)).astype(dtype), pad


def windows(images, pad):
    """Return ``(9, C, N, oh, ow)``: the pixels that each of the nine weights multiplies."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return np.stack([padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)])


def convolve_directly(images, W, pad):
    return np.einsum('ock,kcnhw->onhw', W.astype(np.float64).reshape(*W.shape[:2], 9), windows(images, pad))


@pytest.mark.parametrize('tuning', [SHARED, SMALL_BLOCKS], ids=['one block', 'small blocks'])
@pytest.mark.parametrize('name', SHAPES)
def test_equals_direct_sums(rng, name, tuning):
    images, W, pad = random_arrays(rng, name)
    expected = convolve_directly(images, W, pad)
    with using_tuning(tuning):
        actual = winograd.convolve(images, W, pad, None, None, False)
        gradient = winograd.correlate(images, expected, pad)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    expected_gradient = np.einsum('onhw,kcnhw->ock', expected, windows(images, pad)).reshape(W.shape)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-11 * np.abs(expected_gradient).max())


@pytest.mark.parametrize('channels', [(1, 1), (4, 8), (8, 17), (33, 4)])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_numbers_of_channels(rng, channels, dtype, tolerance):
    """Blocks of weights are filled up with zeros, and chunks of input channels end anywhere."""
    images, W, pad = random_arrays(rng, 'rows of four tiles', *channels, dtype)
    actual = winograd.convolve(images, W, pad, None, None, False)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, convolve_directly(images, W, pad), rtol=0, atol=tolerance)


@pytest.mark.parametrize('name', ['rows of two tiles', 'last pixel column in a tile of its own', 'one output pixel'])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
def test_epilogue(rng, name, relu, with_residual):
    images, W, pad = random_arrays(rng, name)
    bias, sums = rng.standard_normal(len(W)), convolve_directly(images, W, pad)
    residual = rng.standard_normal(sums.shape) if with_residual else None
    expected = sums + bias[:, None, None, None] + (0 if residual is None else residual)
    actual = winograd.convolve(images, W, pad, bias, residual, relu)
    np.testing.assert_allclose(actual, np.maximum(expected, 0) if relu else expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', ['rows of two tiles', 'a row of more than a panel'])
@pytest.mark.parametrize('relu', [False, True])
def test_a_nan_reaches_its_tiles_only(rng, name, relu):
    images, W, pad = random_arrays(rng, name)
    images[1, 1, 1, 5] = np.nan
    actual = winograd.convolve(images, W, pad, None, None, relu)
    assert np.isnan(actual[:, 1, :3, 4:7]).all()
    actual[:, 1, :4, :8] = 0  # the two tiles whose 6x6 pixels contain it
    assert np.isfinite(actual).all()


def test_nothing_outside_of_the_arrays_is_read_or_written(rng):
    """Vectors reach past the ends of rows, but not past the arrays, and NaN around the images has no effect."""
    images, W, pad = random_arrays(rng, 'rows of four tiles', dtype=np.float32)
    memory = np.full(images.size + 512, np.nan, np.float32)
    for offset in (0, 1, 7, 255):
        copy = memory[offset : offset + images.size].reshape(images.shape)
        copy[...] = images
        np.testing.assert_array_equal(
            winograd.convolve(copy, W, pad, None, None, False), winograd.convolve(images, W, pad, None, None, False)
        )
        memory[:] = np.nan


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('name', ['rows of two tiles', 'a row of more than a panel', 'no padding'])
def test_threads_and_blocks_do_not_change_the_result(rng, monkeypatch, name, dtype):
    images, W, pad = random_arrays(rng, name, dtype=dtype)
    bias = rng.standard_normal(len(W)).astype(dtype)
    results = []
    for tuning in (SHARED, SMALL_BLOCKS, ConvTuning()):
        for n_threads in (1, 2, 5):
            monkeypatch.setattr(winograd, 'cpu_count', lambda n_threads=n_threads: n_threads)
            with using_tuning(tuning):
                results.append(winograd.convolve(images, W, pad, bias, None, True))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_threads_get_equal_numbers_of_tiles(monkeypatch):
    """The RPN of a C4 network, 273 tiles, becomes as many blocks for one thread as for the other."""
    monkeypatch.setattr(winograd, 'cpu_count', lambda: 2)
    vector, panel = lanes(np.float32), panel_width(np.float32)
    plan = TilePlan((1024, 1, 50, 84), 1024, 1, np.float32, panel)
    ranges = plan.blocks(0, plan.n_blocks)
    assert plan.n_blocks % 2 == 0 and ranges[0] == (0, panel) and ranges[-1][1] == 13 * 21
    assert all(start % vector == 0 for start, _ in ranges)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))


def test_threads_share_the_only_block(monkeypatch):
    monkeypatch.setattr(winograd, 'cpu_count', lambda: 2)
    calls = []
    monkeypatch.setattr(winograd, 'parallel_for', lambda function, n, uses_blas: calls.append(n))
    plan = TilePlan((512, 1, 23, 42), 512, 1, np.float32, 256)
    assert plan.blocks(0, plan.n_blocks) == [(0, 66)]
    plan.inner_loop(lambda start, stop: None, 36)
    assert calls == [36]
