"""Tests of resampled and cropped run lengths against computations on whole masks."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.ops.masks.resample_rle import resample_rle
from mask_rcnn.ops.masks.rle_crops import decode_crop, encode_crop

#: Coverages so close to 1/2 are rounded differently by different formulas.
TIE = 1e-9


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def coverage(mask, box, size):
    """Return the covered fraction of each bin of a box as a product of three matrices."""
    factors = []
    for low, high, n_pixels in ((box[0], box[2], mask.shape[0]), (box[1], box[3], mask.shape[1])):
        edges = float(low) + max(float(high) - float(low), 1.0) * np.arange(size + 1) / size
        pixels = np.arange(n_pixels)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        factors.append(np.maximum(overlap, 0) / (edges[1] - edges[0]))
    return factors[0] @ mask @ factors[1].T


def random_masks(rng, n):
    for _ in range(n):
        size = rng.randint(1, 60, 2)
        yield rng.rand(*size) < rng.choice([0, 0.05, 0.5, 0.95, 1])


def test_bins_are_set_where_the_mask_covers_half_of_them(rng):
    """Boxes inside, across and outside of masks, above and below the size of the result."""
    n_set = n_unset = 0
    for i, mask in enumerate(random_masks(rng, 150)):
        boxes = rng.uniform(-10, 60, (5, 4)).astype(np.float32)
        boxes[:, 2:] = boxes[:, :2] + rng.uniform(-1, 40, (5, 2))
        boxes = np.round(boxes) if i % 3 == 0 else boxes
        found = resample_rle(encode(mask), boxes, 14)
        assert found.dtype == np.int32
        for box, result in zip(boxes, found, strict=True):
            fractions = coverage(mask, box, 14)
            decided = abs(fractions - 0.5) > TIE
            np.testing.assert_array_equal(result[decided], (fractions >= 0.5)[decided])
            n_set, n_unset = n_set + result.sum(), n_unset + (1 - result).sum()
    assert n_set > 5_000 and n_unset > 5_000


def test_integer_boxes_are_resized_by_area(rng):
    mask = rng.rand(40, 40) > 0.4
    expected = mask[4:32, 8:36].reshape(14, 2, 14, 2).mean(axis=(1, 3)) >= 0.5
    (found,) = resample_rle(encode(mask), np.float32([[4, 8, 32, 36]]), 14)
    np.testing.assert_array_equal(found, expected)


def test_a_box_outside_the_mask_is_empty():
    boxes = np.float32([[20, 20, 30, 30], [-9, -9, -1, -1], [0, 20, 8, 30]])
    assert not resample_rle(encode(np.ones((8, 8))), boxes, 14).any()


def test_malformed_run_lengths_are_refused():
    malformed = {'size': [5, 5], 'counts': encode(np.ones((4, 5)))['counts']}
    with pytest.raises(ValueError, match='the sum of the run lengths'):
        resample_rle(malformed, np.float32([[0, 0, 4, 4]]), 7)
    with pytest.raises(ValueError, match='the sum of the run lengths'):
        decode_crop(malformed)


def test_crops_are_the_bounding_boxes_of_masks(rng):
    """Also of empty and full masks, and of runs that continue in the next column."""
    for mask in random_masks(rng, 100):
        crop, top, left = decode_crop(encode(mask))
        framed = np.zeros(mask.shape, np.uint8)
        framed[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        np.testing.assert_array_equal(framed, mask)
        if mask.any():
            assert all(crop.any(axis=axis)[[0, -1]].all() for axis in (0, 1))
        else:
            assert crop.shape == (0, 0)
        assert encode_crop(crop, top, left, mask.shape) == encode(mask)


def test_a_crop_with_empty_borders_is_encoded():
    mask = np.zeros((9, 12), bool)
    mask[4:6, 5:7] = True
    assert encode_crop(mask[2:8, 3:12], 2, 3, mask.shape) == encode(mask)
