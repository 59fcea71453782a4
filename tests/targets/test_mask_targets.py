"""Training targets of the mask head: polygons rasterised as in Detectron, RLE resized by area, bitmaps as in DeNA."""

import dataclasses

import numpy as np
import pycocotools.mask
import pytest

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import IGNORED, bitmap_targets, mask_targets, masks
from mask_rcnn.targets.input_masks import crop_bitmap, input_bitmap
from mask_rcnn.targets.masks import segmentation_boxes

XY = [1, 0, 3, 2]
SQUARE = (np.array([10, 20, 50, 20, 50, 60, 10, 60], np.float32),)


def annotations(*segmentations, crowd=None):
    boxes = segmentation_boxes(segmentations, np.float32([[0, 0, 5, 5]] * len(segmentations)).reshape(-1, 4))
    return Annotations(
        boxes,
        np.zeros(len(boxes), np.int32),
        np.array(crowd or [False] * len(boxes)),
        segmentations,
    )


def encode(mask):
    return pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def rasterize_in_boxes(segmentation, boxes, size):
    """Return the masks of one object in several boxes."""
    return masks.rasterize_in_boxes([segmentation], np.zeros(len(boxes), int), boxes, size)


@pytest.mark.parametrize('size', [14, 28])
def test_polygons_are_rasterised_as_in_detectron(golden, size):
    arrays = np.load(golden / 'ops' / 'ops_masks.npz')
    polygons = []
    for i in range(len(arrays['polys_to_boxes'])):
        names = sorted(key for key in arrays.files if key.startswith(f'poly{i}_part'))
        polygons.append(tuple(arrays[name] for name in names))
    boxes = segmentation_boxes(polygons, np.zeros((len(polygons), 4), np.float32))
    np.testing.assert_array_equal(boxes[:, XY], arrays['polys_to_boxes'])
    for k in range(int(arrays[f'target{size}_count'])):
        key = f'target{size}_{k:02d}'
        (mask,) = rasterize_in_boxes(polygons[int(arrays[f'{key}_poly'])], arrays[f'{key}_box'][None, XY], size)
        np.testing.assert_array_equal(mask, arrays[f'{key}_mask'], err_msg=key)


def test_boxes_are_rasterised_independently(rng):
    """An object of a triangle and a pentagon, against the union that pycocotools merges in each box."""
    polygons = tuple((rng.rand(2 * n) * 40).astype('f') for n in (3, 5))
    corners = rng.uniform(0, 30, (20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 20, (20, 2))], axis=1).astype('f')
    found = rasterize_in_boxes(polygons, boxes, 28)
    assert found.dtype == np.int32 and found.any() and not found.all()
    for mask, (y1, x1, y2, x2) in zip(found, boxes, strict=True):
        size = np.maximum(np.array([x2 - x1, y2 - y1]), np.float32(1))
        scaled = [((p.reshape(-1, 2) - [x1, y1]).astype('f') * np.float32(28) / size).ravel() for p in polygons]
        merged = pycocotools.mask.merge(pycocotools.mask.frPyObjects(scaled, 28, 28))
        np.testing.assert_array_equal(mask, pycocotools.mask.decode(merged))


def test_objects_of_all_kinds_are_rasterised_together(rng):
    """Boxes of objects with one and two polygons, with RLE, and without a segmentation."""
    two = SQUARE[0], np.float32([0, 0, 9, 5, 4, 30])
    objects = [SQUARE, encode(rng.rand(40, 40) > 0.5), (), two]
    corners, matched = rng.uniform(0, 30, (30, 2)), rng.randint(4, size=30)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 30, (30, 2))], axis=1).astype('f')
    found = masks.rasterize_in_boxes(objects, matched, boxes, 14)
    assert found.dtype == np.int32 and set(matched) == {0, 1, 2, 3} and (found[matched == 2] == IGNORED).all()
    for mask, i, box in zip(found, matched, boxes, strict=True):
        np.testing.assert_array_equal(mask, rasterize_in_boxes(objects[i], box[None], 14)[0])


@pytest.mark.parametrize('value', [np.nan, 3e7])
def test_one_refused_polygon_among_several_boxes(value):
    """The second box has 1 pixel, so that the polygon is scaled by 28."""
    polygon = np.array([0, 0, value, 0, 5, 5], np.float32)
    boxes = np.array([[0, 0, 1e9, 1e9], [0, 0, 1, 1], [0, 0, 1e9, 1e9]], np.float32)
    with pytest.raises(ValueError, match='a polygon has an outline of .* pixels or lies far outside the mask'):
        rasterize_in_boxes((polygon,), boxes, 28)


def test_rle_at_its_original_size_is_the_mask(rng):
    mask = rng.rand(20, 30) > 0.5
    (found,) = rasterize_in_boxes(encode(mask), np.array([[3, 5, 17, 19]], np.float32), 14)
    np.testing.assert_array_equal(found, mask[3:17, 5:19])


def test_rle_and_polygons_of_one_object_agree():
    mask = pycocotools.mask.decode(pycocotools.mask.frPyObjects([p.tolist() for p in SQUARE], 80, 80))[..., 0]
    boxes = np.array([[20, 10, 60, 50], [0, 0, 79, 79], [35.5, 30.2, 70.1, 66.6]], np.float32)
    rasterised = rasterize_in_boxes(SQUARE, boxes, 28)
    resized = rasterize_in_boxes(encode(mask), boxes, 28)
    assert rasterised[0].all() and resized[0].all()
    assert np.mean(rasterised != resized) < 0.01


def test_bounding_boxes_of_segmentations():
    """RLE, one polygon, no segmentation and two polygons."""
    mask = np.zeros((80, 80))
    mask[20:60, 10:50] = 1
    two = np.float32([10, 20, 12, 30, 8, 25]), np.array([1.5, 40, 60, 21, 30, 50])
    found = segmentation_boxes([encode(mask), SQUARE, (), two], np.full((4, 4), 7.5))
    expected = [[20, 10, 60, 50], [20, 10, 60, 50], [7.5, 7.5, 7.5, 7.5], [20, 1.5, 50, 60]]
    np.testing.assert_array_equal(found, np.float32(expected))
    assert found.dtype == np.float32 and segmentation_boxes([], np.zeros((0, 4))).shape == (0, 4)


def rectangle(x1, y1, x2, y2):
    return (np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32),)


def test_the_target_is_the_object_with_the_best_iou():
    """Both objects overlap the RoI; 28 of its 56 columns show the better one."""
    near, far = rectangle(0, 0, 28, 56), rectangle(42, 0, 98, 56)
    roi = np.array([[0, 0, 56, 56]], np.float32)
    expected = np.zeros((56, 56), np.int32)
    expected[:, :28] = 1
    for objects in ((near, far), (far, near)):
        (mask,) = mask_targets(roi, annotations(*objects), 56, offset=1)
        np.testing.assert_array_equal(mask, expected)


def test_the_overlap_is_that_of_the_segmentation():
    """The annotated boxes of the objects are exchanged."""
    objects = annotations(rectangle(0, 0, 28, 56), rectangle(42, 0, 98, 56))
    exchanged = dataclasses.replace(objects, boxes=objects.boxes[::-1])
    (mask,) = mask_targets(np.array([[0, 0, 56, 56]], np.float32), exchanged, 56, offset=1)
    np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(56) < 28, (56, 56)))


def test_a_crowd_region_is_not_a_target():
    """The crowd region is the whole RoI, but the target is the object, which fills its upper half."""
    crowd, single = rectangle(0, 0, 28, 28), rectangle(0, 0, 28, 14)
    roi = np.array([[0, 0, 28, 28]], np.float32)
    (mask,) = mask_targets(roi, annotations(crowd, single, crowd=[True, False]), 28, offset=1)
    expected = np.zeros((28, 28), np.int32)
    expected[:14] = 1
    np.testing.assert_array_equal(mask, expected)


def test_an_object_without_segmentation_is_ignored():
    masks = mask_targets(np.array([[0, 0, 5, 5]], np.float32), annotations(()), 14, offset=1)
    assert masks.shape == (1, 14, 14) and (masks == IGNORED).all()


def test_without_rois_there_are_no_masks():
    assert mask_targets(np.zeros((0, 4), np.float32), annotations(), 14, offset=1).shape == (0, 14, 14)


def resized(bitmap, size):
    """Resize a bitmap in the integers of OpenCV's bilinear resize of uint8 images.

    Weights have 11 bits.  The products of the rows are truncated to quarters, and their sum is rounded.
    """
    (top, bottom, below), (left, right, beyond) = map(positions, bitmap.shape, size)
    bitmap = bitmap.astype(int)
    rows = bitmap[:, left] * (2048 - beyond) + bitmap[:, right] * beyond
    products = [
        rows[index] // 16 * weight[:, None] // 2**16 for index, weight in ((top, 2048 - below), (bottom, below))
    ]
    return (sum(products) + 2) // 4


def positions(n_in, n_out):
    """Return the two pixels between which each output pixel lies, and 2048 times the distance from the first one."""
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    first = np.floor(position).astype(int)
    return first, np.minimum(first + 1, n_in - 1), np.rint((position - first) * 2048).astype(int)


def test_a_bitmap_is_cropped_at_truncated_corners(rng):
    bitmap = (rng.rand(40, 50) > 0.5).astype(np.uint8)
    found = crop_bitmap(bitmap, np.float32([3.9, 5.99, 17.2, 19.5]), 14)
    np.testing.assert_array_equal(found, bitmap[3:17, 5:19])


def test_a_crop_of_a_bitmap_is_resized_bilinearly_and_rounded(rng):
    bitmap = (rng.rand(40, 50) > 0.5).astype(np.uint8)
    found = crop_bitmap(bitmap, np.float32([3.5, 5.5, 30.5, 14.5]), 14)
    np.testing.assert_array_equal(found, resized(bitmap[3:30, 5:14], (14, 14)))


@pytest.mark.parametrize(
    ('box', 'pixel'),
    [((3.1, 5.1, 3.9, 5.9), (3, 5)), ((40, 50, 40, 50), (39, 49)), ((2, 50, 3, 50), (2, 49)), ((0, 0, 0, 0), (0, 0))],
)
def test_a_roi_that_encloses_no_pixel_gets_that_of_its_corner(box, pixel):
    for value in (0, 1):
        bitmap = np.full((40, 50), 1 - value, np.uint8)
        bitmap[pixel] = value
        np.testing.assert_array_equal(crop_bitmap(bitmap, np.float32(box), 14), np.full((14, 14), value))


def test_the_bitmap_of_the_input_is_resized_from_that_of_the_image():
    """Polygons and run lengths have one bitmap; it is resized to the whole pixels of the input."""
    transform = ImageTransform.top_left((80, 90), 1.5)
    mask = np.zeros((80, 90), np.uint8)
    mask[20:60, 10:50] = 1
    for segmentation in (SQUARE, encode(mask)):
        np.testing.assert_array_equal(input_bitmap(segmentation, transform), resized(mask, (120, 135)))


def test_the_parts_of_an_object_are_one_bitmap():
    parts = rectangle(0, 0, 10, 10) + rectangle(5, 5, 20, 20)
    expected = np.zeros((30, 30), int)
    expected[:10, :10] = expected[5:20, 5:20] = 1
    np.testing.assert_array_equal(input_bitmap(parts, ImageTransform.top_left((30, 30), 1.0)), expected)


def test_the_bitmap_in_a_letterbox():
    transform = ImageTransform.letterbox((20, 40), 1.0, 64)
    bitmap = input_bitmap(encode(np.ones((20, 40))), transform)
    expected = np.zeros((64, 64), int)
    expected[22:42, 12:52] = 1
    np.testing.assert_array_equal(bitmap, expected)


def test_the_bitmap_target_is_the_object_whose_box_overlaps_most():
    """RoIs are in the network input, which is twice as large as the image."""
    transform = ImageTransform.top_left((60, 80), 2.0)
    crowd, near, far = rectangle(0, 0, 28, 28), rectangle(0, 0, 14, 28), rectangle(30, 0, 58, 28)
    rois = np.array([[0, 0, 56, 56], [0, 60, 56, 116]], np.float32)
    masks = bitmap_targets(rois, annotations(crowd, near, far, crowd=[True, False, False]), transform, 28, offset=0)
    assert masks.dtype == np.int32 and masks[0, :, :14].all() and not masks[0, :, 14:].any() and masks[1].all()


def test_bitmap_targets_of_nothing():
    transform = ImageTransform.top_left((20, 20), 1.0)
    roi = np.array([[0, 0, 5, 5]], np.float32)
    assert (bitmap_targets(roi, annotations(()), transform, 14, offset=0) == IGNORED).all()
    assert bitmap_targets(roi[:0], annotations(), transform, 14, offset=0).shape == (0, 14, 14)
