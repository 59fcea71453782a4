"""The run-length codec against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.ops.masks.rle import (
    decode_counts,
    decode_rle,
    encode_labels,
    encode_mask,
    encode_polygons,
    encode_runs,
    find_runs,
)

SHAPES = [(1, 1), (1, 9), (9, 1), (7, 5), (40, 33), (120, 90)]


def masks_of(rng, shape):
    """Yield empty, sparse, dense and full masks, and masks with a run over two whole columns."""
    for density in (0, 0.02, 0.5, 0.98, 1):
        yield rng.uniform(size=shape) < density
    columns = np.zeros(shape, bool)
    columns[:, 1:3] = True
    yield columns
    yield ~columns


def encode_with_pycocotools(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(mask.shape), 'counts': rle['counts'].decode('ascii')}


@pytest.mark.parametrize('shape', SHAPES)
def test_encode_mask_equals_pycocotools(rng, shape):
    for mask in masks_of(rng, shape):
        assert encode_mask(mask) == encode_with_pycocotools(mask)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
def test_encode_labels_equals_pycocotools_for_each_instance(rng, shape, dtype):
    for n_values in (1, 2, 3, 200):
        coarse = rng.randint(n_values, size=(shape[0] // 3 + 1, shape[1] // 3 + 1))
        labels = np.kron(coarse, np.ones((3, 3), int))[: shape[0], : shape[1]].astype(dtype)
        values = np.unique(labels[labels > 0]).tolist()
        encoded = encode_labels(labels)
        assert list(encoded) == values
        for value in values:
            assert encoded[value] == coco_mask.encode(np.asfortranarray(labels == value, np.uint8))


def test_encode_labels_of_an_empty_array():
    assert encode_labels(np.zeros((0, 5), np.uint8)) == {}


@pytest.mark.parametrize('shape', SHAPES)
def test_pycocotools_decodes_an_encoded_mask(rng, shape):
    for mask in masks_of(rng, shape):
        np.testing.assert_array_equal(coco_mask.decode(encode_mask(mask)), mask)


@pytest.mark.parametrize('shape', SHAPES)
def test_runs_do_not_cross_columns(rng, shape):
    for mask in masks_of(rng, shape):
        runs, pixels = find_runs(mask), np.zeros(mask.size, bool)
        for start, end in runs:
            assert start < end and start // shape[0] == (end - 1) // shape[0]
            pixels[start:end] = True
        assert (np.diff(runs.ravel()) >= 0).all()
        np.testing.assert_array_equal(pixels.reshape(shape[::-1]).T, mask)


def test_encode_runs_joins_runs_of_adjacent_columns():
    encoded = encode_runs(np.int32([[2, 3], [3, 6], [7, 8]]), (3, 4))
    assert decode_counts(encoded['counts']).tolist() == [2, 4, 1, 1, 4]
    assert encoded['size'] == [3, 4]


@pytest.mark.parametrize('shape', SHAPES)
def test_decode_counts_inverts_pycocotools(rng, shape):
    for mask in masks_of(rng, shape):
        lengths = decode_counts(encode_with_pycocotools(mask)['counts'])
        values = np.arange(len(lengths)) % 2 == 1
        np.testing.assert_array_equal(np.repeat(values, lengths).reshape(shape[::-1]).T, mask)


def test_decode_counts_of_large_and_falling_lengths():
    lengths = [0, 2**20, 3, 5, 2**24, 1, 2**20 + 7]
    height, width = sum(lengths), 1
    counts = coco_mask.frPyObjects({'size': [height, width], 'counts': lengths}, height, width)['counts']
    assert decode_counts(counts).tolist() == decode_counts(counts.decode('ascii')).tolist() == lengths


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        ('', 'truncated'),
        ('P', 'truncated'),  # bit 5: another character must follow
        ('0 0', 'invalid characters'),
        (b'\xff', 'invalid characters'),
        ('o' * 7 + '0', 'too large'),
    ],
)
def test_invalid_counts_are_an_error(counts, message):
    with pytest.raises(ValueError, match=message):
        decode_counts(counts)


@pytest.mark.parametrize(
    'polygon',
    [
        [0, 0, 1e8, 0, 1e8, 1e8],
        [1e8, 0, 1e8, 1, 1e8 + 5, 1],
        [0, 1e8, 1, 1e8, 1, 1e8 + 5],
        [0, 0, np.nan, 0, 5, 5],
        [0, 0, np.inf, 0, 5, 5],
        [0, 0, 10_000, 10_000] * 1000,
    ],
)
def test_polygons_that_would_crash_pycocotools_are_refused(polygon):
    with pytest.raises(ValueError, match='a polygon has an outline of .* pixels or lies far outside the mask'):
        encode_polygons([np.float64([0, 0, 5, 0, 5, 5]), np.float64(polygon)], (30, 40))


def test_a_long_outline_is_rasterised():
    """Many vertices in a large extent, but a short outline."""
    angles = np.linspace(0, 2 * np.pi, 20_000)
    polygon = np.stack([1000 + 900 * np.cos(angles), 1000 + 900 * np.sin(angles)], axis=1).ravel()
    area = coco_mask.area(encode_polygons([polygon], (2000, 2000)))
    assert area == pytest.approx(np.pi * 900**2, rel=1e-3)


def test_decoded_run_lengths_are_checked(rng):
    mask = rng.rand(30, 40) < 0.5
    np.testing.assert_array_equal(decode_rle(encode_mask(mask)), mask)
    for counts in (b'', b'o', b'zzz', b'PPPPPPPPPPPPPPPP0', b'1' * 50):
        with pytest.raises(ValueError, match='truncated|too large|the number of pixels of a mask of 30 x 40'):
            decode_rle({'size': [30, 40], 'counts': counts})
