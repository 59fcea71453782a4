"""Polygons around masks, held against pycocotools' rasterisation and against outlines written by hand."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.ops.masks.crop import crop_mask
from mask_rcnn.ops.masks.polygons import trace_polygons


def rasterise(polygons, shape):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


def mask_of(*rows):
    """Make a mask from rows of text; ``#`` is a pixel."""
    return np.array([[letter == '#' for letter in row] for row in rows])


def points(polygon):
    return set(map(tuple, polygon.reshape(-1, 2).tolist()))


def signed_area(polygon):
    """The shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_vertices_are_corners_of_pixels():
    mask = mask_of('......', '.##...', '.####.', '......')
    (polygon,) = trace_polygons(mask)
    assert points(polygon) == {(1, 1), (3, 1), (3, 2), (5, 2), (5, 3), (1, 3)}
    assert len(polygon) == 12  # none is repeated


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (3, 5)])
def test_a_mask_that_fills_the_image(shape):
    (polygon,) = trace_polygons(np.ones(shape, bool))
    assert points(polygon) == {(0, 0), (shape[1], 0), (shape[1], shape[0]), (0, shape[0])}
    assert rasterise([polygon], shape).all()


def test_a_mask_without_pixels_has_no_polygons():
    assert trace_polygons(np.zeros((5, 4), bool)) == [] and crop_mask(np.zeros((5, 4), bool)) is None


def test_separate_parts_are_separate_polygons():
    mask = mask_of('##..', '##..', '...#')
    first, second = sorted(trace_polygons(mask), key=lambda polygon: polygon.min())
    assert points(first) == {(0, 0), (2, 0), (2, 2), (0, 2)}
    assert points(second) == {(3, 2), (4, 2), (4, 3), (3, 3)}


def test_a_hole_is_joined_by_a_line():
    mask = mask_of('#####', '#...#', '#...#', '#####')
    (polygon,) = trace_polygons(mask)
    assert abs(signed_area(polygon)) == mask.sum() == 14  # the hole is excluded also by tools with winding numbers
    assert points(polygon) == {(0, 0), (5, 0), (5, 4), (0, 4), (1, 1), (4, 1), (4, 3), (1, 3), (0, 1)}
    np.testing.assert_array_equal(rasterise([polygon], mask.shape), mask)


def random_masks(rng, count):
    """Yield noise, coarse noise, and discs with holes of discs."""
    for i in range(count):
        height, width = rng.randint(1, 25, 2)
        mask = rng.uniform(size=(height, width)) < rng.uniform(0.1, 0.95)
        if i % 3 == 1:
            mask = mask.repeat(2, axis=0).repeat(3, axis=1)
        if i % 3 == 2:
            disc = np.zeros((60, 70), np.uint8)
            for color in (1, 1, 0, 0, 0):
                center, radius = rng.randint(0, 60, 2).tolist(), int(rng.randint(1, 30 if color else 8))
                cv2.circle(disc, center, radius, color, -1)
            mask = disc.astype(bool)
        yield mask


def test_exact_polygons_give_the_mask_back(rng):
    n_holes = 0
    for mask in random_masks(rng, 300):
        polygons = trace_polygons(mask)
        n_parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        assert len(polygons) == n_parts
        if n_parts:
            np.testing.assert_array_equal(rasterise(polygons, mask.shape), mask)
            assert sum(abs(signed_area(polygon)) for polygon in polygons) == mask.sum()
            n_holes += cv2.connectedComponents(1 - mask.astype(np.uint8), connectivity=4)[0] > 2
    assert n_holes > 30


def test_simplified_polygons_nearly_give_the_mask_back(rng):
    for mask in random_masks(rng, 300):
        if mask.any():
            found = rasterise(trace_polygons(mask, simplify=True), mask.shape)
            assert (found & mask).sum() >= 0.99 * (found | mask).sum()


def test_simplified_polygons_have_few_vertices():
    ellipse = np.zeros((200, 200), np.uint8)
    cv2.ellipse(ellipse, (100, 100), (75, 50), 30, 0, 360, 1, -1)
    exact, simple = (trace_polygons(ellipse.astype(bool), simplify=on)[0] for on in (False, True))
    assert len(simple) < len(exact) / 4


def test_a_rectangle_keeps_its_corners():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    (polygon,) = trace_polygons(mask, simplify=True)
    assert points(polygon) == {(20, 10), (70, 10), (70, 50), (20, 50)}


def test_the_memory_order_of_the_mask_is_irrelevant():
    mask = np.asfortranarray(mask_of('.##', '.#.'))
    assert points(trace_polygons(mask)[0]) == {(1, 0), (3, 0), (3, 1), (2, 1), (2, 2), (1, 2)}
