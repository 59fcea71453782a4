"""Tests of crops, flips and quarter turns: outlines, boxes and keypoints follow the pixels exactly."""

import dataclasses
import itertools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.geometry import (
    Symmetry,
    Window,
    clip_polygon,
    crop_annotations,
    crop_example,
    transform_example,
    transform_segmentation,
)

SYMMETRIES = [Symmetry(*flags) for flags in itertools.product((False, True), repeat=3)]
SIZE = (20, 31)


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def rasterize(polygons, size):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], *size)))


def pixel_box(mask):
    """Return the first and the last row and column of a mask: both corners are pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [rows[0], columns[0], rows[-1], columns[-1]]


def rectangle(top, left, bottom, right):
    """Return the polygon around the pixels of a range of rows and columns."""
    return np.array([left, top, right, top, right, bottom, left, bottom], np.float64)


@pytest.fixture
def masks(rng):
    """Three masks: blobs, an object that touches all borders, and a single pixel."""
    blobs = np.zeros((3, *SIZE), bool)
    blobs[0, 3:9, 4:17] = rng.rand(6, 13) < 0.6
    blobs[1] = rng.rand(*SIZE) < 0.5
    blobs[1, [0, -1], [0, -1]] = True
    blobs[2, 19, 7] = True
    return blobs


@pytest.fixture
def example(rng, masks):
    """An image with the three masks in run lengths."""
    annotations = Annotations(
        boxes=np.float32([pixel_box(mask) for mask in masks]),
        labels=np.int32([4, 5, 6]),
        crowd=np.array([False, True, False]),
        segmentations=tuple(map(encode, masks)),
    )
    image = rng.uniform(0, 255, (3, *SIZE)).astype(np.float32)
    return Example(image=image, annotations=annotations, name='a.png', image_id=1)


@pytest.mark.parametrize('n', range(-1, 5))
def test_quarter_turns_are_those_of_numpy(rng, n):
    array = rng.rand(3, 4, 5)
    np.testing.assert_array_equal(Symmetry.quarter_turns(n).apply(array), np.rot90(array, n, axes=(1, 2)))


def test_rotations_are_no_reflections():
    rotations = [Symmetry.quarter_turns(n) for n in range(4)]
    assert [symmetry for symmetry in SYMMETRIES if not symmetry.is_reflection] == sorted(
        rotations, key=SYMMETRIES.index
    )


@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_masks_and_boxes_follow_the_pixels(example, masks, symmetry):
    changed = transform_example(example, symmetry)
    np.testing.assert_array_equal(changed.image, symmetry.apply(example.image))
    assert changed.image.flags.c_contiguous
    for mask, box, segmentation in zip(
        masks, changed.annotations.boxes, changed.annotations.segmentations, strict=True
    ):
        expected = symmetry.apply(mask)
        assert segmentation == encode(expected)
        np.testing.assert_array_equal(box, pixel_box(expected))
    np.testing.assert_array_equal(changed.annotations.labels, [4, 5, 6])
    np.testing.assert_array_equal(changed.annotations.crowd, [False, True, False])


@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_polygons_are_rasterised_to_the_changed_mask(symmetry):
    """Rectangles and a staircase at pixel edges, whose rasterisation is exact."""
    stairs = np.array([2, 1, 9, 1, 9, 4, 20, 4, 20, 17, 2, 17], np.float64)
    polygons = (rectangle(18, 25, 20, 31), stairs)
    size = SIZE[::-1] if symmetry.transpose else SIZE
    changed = transform_segmentation(polygons, symmetry, SIZE)
    np.testing.assert_array_equal(rasterize(changed, size), symmetry.apply(rasterize(polygons, SIZE)))


def test_the_empty_mask_stays_empty():
    changed = transform_segmentation(encode(np.zeros(SIZE)), Symmetry.quarter_turns(1), SIZE)
    assert changed == encode(np.zeros(SIZE[::-1]))


@pytest.mark.parametrize('symmetry', SYMMETRIES)
def test_keypoints_follow_their_pixels(example, symmetry):
    """A reflection exchanges left and right; an unlabelled keypoint stays at 0."""
    names = list(COCO_KEYPOINT_NAMES)
    keypoints = np.zeros((3, 17, 3), np.float32)
    keypoints[0, names.index('left_ear')] = 3, 8, 2
    keypoints[2, names.index('nose')] = 19, 0, 1
    annotations = dataclasses.replace(example.annotations, keypoints=keypoints)
    found = transform_example(dataclasses.replace(example, annotations=annotations), symmetry).annotations.keypoints
    expected = np.zeros_like(keypoints)
    for i, (row, column, visibility), name in ((0, (3, 8, 2), 'left_ear'), (2, (19, 0, 1), 'nose')):
        marker = np.zeros(SIZE)
        marker[row, column] = 1
        name = name.replace('left', 'right') if symmetry.is_reflection else name
        expected[i, names.index(name)] = *np.argwhere(symmetry.apply(marker))[0], visibility
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    'window', [Window(2, 5, 12, 9), Window(0, 0, 20, 31), Window(19, 6, 1, 25), Window(8, 3, 5, 1)]
)
def test_a_crop_cuts_masks_and_boxes_to_the_window(example, masks, window):
    cropped = crop_example(example, window)
    part = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
    np.testing.assert_array_equal(cropped.image, example.image[:, part[0], part[1]])
    expected = [mask[part] for mask in masks if mask[part].any()]
    assert list(cropped.annotations.segmentations) == list(map(encode, expected))
    np.testing.assert_array_equal(cropped.annotations.boxes, [pixel_box(mask) for mask in expected])
    np.testing.assert_array_equal(cropped.annotations.labels, [4 + i for i in range(3) if masks[i][part].any()])


def test_a_crop_keeps_the_annotated_box_of_an_object_that_it_does_not_cut(example):
    """Annotated boxes need not be those of the outlines."""
    loose = dataclasses.replace(example.annotations, boxes=np.float32([[2, 3, 10, 18], [0, 0, 19, 30], [19, 7, 19, 7]]))
    found = crop_annotations(loose, Window(1, 2, 19, 29))
    np.testing.assert_array_equal(found.boxes[0], [1, 1, 9, 16])


def test_a_crop_of_objects_without_an_outline_cuts_their_boxes():
    annotations = Annotations(
        np.float32([[2, 3, 10, 18], [0, 0, 3, 3]]), np.zeros(2, np.int32), np.zeros(2, bool), ((), ())
    )
    found = crop_annotations(annotations, Window(5, 4, 8, 8))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 5, 7]])
    assert found.segmentations == ((),)


def test_a_crop_drops_an_object_whose_box_but_not_its_outline_is_in_the_window():
    """A triangle, whose box has an empty corner."""
    triangle = (np.array([0, 0, 20, 0, 0, 20], np.float64),)
    annotations = Annotations(np.float32([[0, 0, 19, 19]]), np.zeros(1, np.int32), np.zeros(1, bool), (triangle,))
    assert len(crop_annotations(annotations, Window(12, 12, 6, 6))) == 0
    assert len(crop_annotations(annotations, Window(9, 9, 6, 6))) == 1


def test_a_crop_clips_polygons_and_their_boxes():
    """Two parts, of which one is outside the window."""
    parts = rectangle(2, 3, 12, 15), rectangle(15, 20, 18, 25)
    box = np.float32([[2, 3, 17, 24]])
    annotations = Annotations(box, np.zeros(1, np.int32), np.zeros(1, bool), (parts,))
    found = crop_annotations(annotations, Window(4, 5, 10, 8))
    (polygons,) = found.segmentations
    expected = rasterize(parts, SIZE)[4:14, 5:13]
    np.testing.assert_array_equal(rasterize(polygons, (10, 8)), expected)
    assert len(polygons) == 1
    np.testing.assert_array_equal(found.boxes, [pixel_box(expected)])


def shoelace(polygon):
    x, y = polygon.reshape(-1, 2).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def test_a_clipped_triangle_has_the_area_of_the_integral():
    """The part of the triangle (0, 0), (8, 0), (0, 8) with x and y above 2 and below 7 is a triangle of side 4."""
    clipped = clip_polygon(np.array([0, 0, 8, 0, 0, 8], np.float64), Window(2, 2, 5, 5))
    assert shoelace(clipped) == pytest.approx(8)
    assert clipped.min() >= 0 and clipped.max() <= 5


def test_a_clipped_concave_polygon_keeps_its_area():
    """A U of three bars of width 2: the window contains the lower ends of its two arms."""
    u = np.array([0, 0, 2, 0, 2, 8, 6, 8, 6, 0, 8, 0, 8, 10, 0, 10], np.float64)
    assert shoelace(clip_polygon(u, Window(0, 0, 5, 8))) == pytest.approx(20)
    assert shoelace(clip_polygon(u, Window(7, 1, 2, 6))) == pytest.approx(6 + 2)


@pytest.mark.parametrize('polygon', [[20, 20, 25, 20, 20, 25], [8, 0, 12, 0, 12, 5, 8, 5], [0, 3, 9, 3, 4, 3]])
def test_a_polygon_without_area_in_the_window_is_empty(polygon):
    """Outside, touching the border, and a line."""
    assert clip_polygon(np.array(polygon, np.float64), Window(0, 0, 8, 8)).size == 0


def test_a_polygon_inside_the_window_is_moved_only():
    polygon = np.array([3.25, 4, 7.5, 4, 5, 8], np.float32)
    np.testing.assert_array_equal(clip_polygon(polygon, Window(1, 2, 8, 8)), [1.25, 3, 5.5, 3, 3, 7])


def test_a_crop_removes_keypoints_outside_the_window(example):
    keypoints = np.zeros((3, 17, 3), np.float32)
    keypoints[1, 0] = 4, 5, 2
    keypoints[1, 1] = 3, 5, 2
    keypoints[1, 2] = 13, 14, 1
    annotations = dataclasses.replace(example.annotations, keypoints=keypoints)
    found = crop_annotations(annotations, Window(4, 5, 10, 10)).keypoints[-1]
    expected = np.zeros((17, 3), np.float32)
    expected[0] = 0, 0, 2
    expected[2] = 9, 9, 1
    np.testing.assert_array_equal(found, expected)


def test_a_clipped_polygon_that_crosses_itself_keeps_its_parts():
    clipped = clip_polygon(np.array([10, 10, 30, 30, 30, 10, 10, 30.0]), Window(12, 0, 16, 50))
    assert len(clipped) and clipped[1::2].max() == 16
