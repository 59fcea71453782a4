"""Training targets of the mask head from shapes in the network input: those of torchvision and of detectron2."""

import dataclasses

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, input_polygon_targets, roi_align_targets
from mask_rcnn.targets.input_masks import (
    average_bitmap,
    input_bitmap,
    resize_nearest_pillow,
    resize_nearest_torch,
    scale_in_float64,
)
from mask_rcnn.targets.masks import rasterize_polygons, segmentation_boxes
from tests.support.golden import XY


def stretched(size, input_size):
    """Return the transform of an image whose axes have different factors."""
    return dataclasses.replace(
        ImageTransform.top_left(size, 1.0),
        factors=(input_size[0] / size[0], input_size[1] / size[1]),
        window=(0.0, 0.0, input_size[0] - 1.0, input_size[1] - 1.0),
        input_size=input_size,
    )


def annotations(*segmentations, crowd=None):
    boxes = segmentation_boxes(segmentations, np.float32([[0, 0, 5, 5]] * len(segmentations)).reshape(-1, 4))
    crowd = np.array(crowd or [False] * len(boxes))
    return Annotations(boxes, np.zeros(len(boxes), np.int32), crowd, segmentations)


def rectangle(x1, y1, x2, y2):
    return (np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32),)


def encode(mask):
    return pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_boxes(rng, n, limit):
    corners = rng.uniform(-3, limit, (n, 2))
    return np.concatenate([corners, corners + rng.uniform(0.05, limit / 2, (n, 2))], axis=1).astype('f')


def test_averages_equal_those_of_torchvision(golden):
    arrays = np.load(golden / 'torchvision' / 'ops_torchvision.npz')
    for box, i, expected in zip(arrays['target_boxes'], arrays['target_objects'], arrays['target_out'], strict=True):
        (found,) = average_bitmap(arrays['target_masks'][i], box[None, XY], 28, aligned=False)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_polygons_are_rasterised_as_in_detectron2(golden):
    arrays = np.load(golden / 'detectron2' / 'ops_detectron2.npz')
    expected = np.unpackbits(arrays['target_polygon_out_packed'], axis=-1)[..., :28]
    polygons = [(arrays[f'target_polygon{i}'],) for i in range(len(expected))]
    found = rasterize_polygons(polygons, arrays['target_boxes'][:, XY], 28, scale=scale_in_float64)
    np.testing.assert_array_equal(found, expected)


def test_bitmaps_are_cropped_as_in_detectron2(golden):
    arrays = np.load(golden / 'detectron2' / 'ops_detectron2.npz')
    expected = np.unpackbits(arrays['target_bitmask_out_packed'], axis=-1)[..., :28]
    for bitmap, box, mask in zip(arrays['target_bitmasks'], arrays['target_boxes'], expected, strict=True):
        (found,) = average_bitmap(bitmap, box[None, XY], 28, aligned=True) >= 0.5
        np.testing.assert_array_equal(found, mask)


def bilinear(bitmap, y, x):
    """Return the value at a point; 0 more than a pixel outside, else that of the nearest point inside."""
    height, width = bitmap.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = bitmap[top, left] * (left + 1 - x) + bitmap[top, right] * (x - left)
    below = bitmap[bottom, left] * (left + 1 - x) + bitmap[bottom, right] * (x - left)
    return above * (top + 1 - y) + below * (y - top)


@pytest.mark.parametrize('aligned', [False, True])
def test_averages_of_samples(rng, aligned):
    """The definition in double precision: ceil(side of a bin) samples per axis at the centres of equal parts."""
    bitmap, size = (rng.rand(20, 30) > 0.5).astype(np.uint8), 4
    boxes = np.float32([[2.3, 4.1, 17.2, 9.9], [-3, 20, 6.5, 33], [7.2, 8.1, 7.5, 8.2]])
    for box in boxes:
        (found,) = average_bitmap(bitmap, box[None], size, aligned=aligned)
        low, high = box.astype('f8').reshape(2, 2) - 0.5 * aligned
        sides = high - low if aligned else np.maximum(high - low, 1)
        n = np.ceil(sides / size).astype(int)
        ys, xs = (low[a] + (np.arange(size * n[a]) + 0.5) * sides[a] / size / n[a] for a in (0, 1))
        samples = np.array([[bilinear(bitmap, y, x) for x in xs] for y in ys])
        expected = samples.reshape(size, n[0], size, n[1]).mean(axis=(1, 3))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('n_in', 'n_out'), [(600, 268), (1116, 500), (7, 7), (3, 8), (640, 1066), (10, 3), (1, 4)])
def test_nearest_pixels(n_in, n_out):
    """PyTorch reads at the upper corner of a pixel, Pillow at its centre."""
    row = np.arange(n_in, dtype=np.int32)[None]
    (found,) = resize_nearest_torch(row, (1, n_out))
    np.testing.assert_array_equal(found, [i * n_in // n_out for i in range(n_out)])
    (found,) = resize_nearest_pillow(row, (1, n_out))
    np.testing.assert_array_equal(
        found, np.asarray(Image.fromarray(row).resize((n_out, 1), Image.Resampling.NEAREST))[0]
    )


def test_the_axes_of_a_bitmap_have_their_own_factors(rng):
    mask = rng.rand(20, 30) > 0.5
    transform = stretched((20, 30), (30, 90))
    expected = np.repeat(mask, 3, axis=1)[np.arange(30) * 2 // 3]
    np.testing.assert_array_equal(input_bitmap(encode(mask), transform, resize=resize_nearest_torch), expected)


def test_soft_targets_of_a_rectangle():
    """Its left border is at 2.5 pixels of the image or 10 of the input, two bins before the RoI's middle at 12."""
    transform = stretched((20, 20), (40, 80))
    objects = annotations(rectangle(0, 0, 2.5, 20), rectangle(2.5, 0, 20, 20))
    (mask,) = roi_align_targets(np.float32([[8, 4, 20, 76]]), objects, transform, 12, offset=0)
    assert mask.dtype == np.float32 and mask.min() >= 0 and mask.max() <= 1
    column = input_bitmap(objects.segmentations[1], transform, resize=resize_nearest_torch)[10]
    first = column.argmax()  # the pixels from here on are inside
    border = (first - 0.5 - 4) / 6  # in bins; samples left of the pixels' middle are fractions
    assert (mask[:, : int(border)] == 0).all() and (mask[:, int(border) + 1 :] == 1).all()
    assert 0 < mask[5, int(border)] < 1


def test_a_polygon_of_the_input_is_rasterised(rng):
    """Against pycocotools with one RoI of one polygon, in double precision; a thin RoI has sides of 0.1."""
    transform = stretched((40, 40), (60, 90))
    polygons = tuple((rng.rand(2 * n) * 40).astype('f') for n in (3, 5))
    boxes = np.concatenate([random_boxes(rng, 20, 50), np.float32([[30, 40, 30.05, 60]])])
    found = input_polygon_targets(boxes, annotations(polygons), transform, 28, offset=0)
    assert found.dtype == np.int32 and found.any() and not found.all()
    for mask, (y1, x1, y2, x2) in zip(found, boxes, strict=True):
        scale = np.float32(28) / np.maximum(np.array([x2 - x1, y2 - y1]), np.float32(0.1))
        moved = [p.reshape(-1, 2).astype('f8') * [90 / 40, 60 / 40] - np.float64([x1, y1]) for p in polygons]
        scaled = [(points * scale.astype('f8')).ravel() for points in moved]
        merged = pycocotools.mask.merge(pycocotools.mask.frPyObjects(scaled, 28, 28))
        np.testing.assert_array_equal(mask, pycocotools.mask.decode(merged))


def test_run_lengths_of_the_input_are_averaged(rng):
    """An enlarged mask of one solid half: half of the RoI is inside."""
    mask = np.zeros((20, 20))
    mask[:, :10] = 1
    transform = stretched((20, 20), (40, 60))
    (found,) = input_polygon_targets(np.float32([[4, 16, 32, 44]]), annotations(encode(mask)), transform, 28, offset=0)
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(28) < 14, (28, 28)))


@pytest.mark.parametrize('make_targets', [roi_align_targets, input_polygon_targets])
def test_the_target_is_the_object_whose_box_overlaps_most(make_targets):
    """RoIs are in the network input, which is twice as large as the image; crowd regions are not matched."""
    transform = ImageTransform.top_left((60, 80), 2.0)
    crowd, near, far = rectangle(0, 0, 28, 28), rectangle(0, 0, 14, 28), rectangle(30, 0, 58, 28)
    rois = np.array([[0, 0, 56, 56], [0, 60, 56, 116]], np.float32)
    masks = make_targets(rois, annotations(crowd, near, far, crowd=[True, False, False]), transform, 28, offset=0)
    assert masks[0, :, :13].all() and not masks[0, :, 15:].any() and masks[1, 1:-1, 1:-1].all()


@pytest.mark.parametrize('make_targets', [roi_align_targets, input_polygon_targets])
def test_targets_of_nothing(make_targets):
    transform = ImageTransform.top_left((20, 20), 1.0)
    roi = np.array([[0, 0, 5, 5]], np.float32)
    assert (make_targets(roi, annotations(()), transform, 14, offset=0) == IGNORED).all()
    assert make_targets(roi[:0], annotations(), transform, 14, offset=0).shape == (0, 14, 14)
