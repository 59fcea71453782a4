"""Tests of the horizontal flip, of training examples, and of the shapes that annotations accept."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.config import DENA, DETECTRON, DETECTRON2, PRESETS, TORCHVISION
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_MIRRORED_KEYPOINTS
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.transforms import TrainingTransform, flip_horizontal, select_objects
from mask_rcnn.preprocessing.image_transform import prepare_image

CONFIG = PRESETS['resnet50'].replace(min_size=40, max_size=60)


@pytest.fixture
def example(rng):
    """An image of 20 x 31 pixels with a polygon and a crowd region in run lengths."""
    mask = np.zeros((20, 31), np.uint8, order='F')
    mask[3:9, 2:6] = 1
    mask[5, 6] = 1
    annotations = Annotations(
        boxes=np.float32([[2, 3, 10, 12], [3, 2, 8, 6]]),
        labels=np.int32([1, 0]),
        crowd=np.array([False, True]),
        segmentations=((np.array([3.0, 2, 12.5, 2, 3, 10]),), coco_mask.encode(mask)),
    )
    return Example(
        image=rng.uniform(0, 255, (3, 20, 31)).astype(np.float32), annotations=annotations, name='a.jpg', image_id=3
    )


def with_keypoints(example, keypoints):
    annotations = dataclasses.replace(example.annotations, keypoints=keypoints)
    return dataclasses.replace(example, annotations=annotations)


def without_crowds(example):
    """Return the example with the crowd region as an object, which all dialects use."""
    annotations = dataclasses.replace(example.annotations, crowd=np.zeros(2, bool))
    return dataclasses.replace(example, annotations=annotations)


def test_flip_of_boxes_and_polygons(example):
    """Detectron's formula, x' = W - x - 1, evaluated by hand."""
    flipped = flip_horizontal(example)
    np.testing.assert_array_equal(flipped.image, example.image[:, :, ::-1])
    assert flipped.image.flags.c_contiguous
    np.testing.assert_array_equal(flipped.annotations.boxes, np.float32([[2, 18, 10, 27], [3, 24, 8, 28]]))
    np.testing.assert_array_equal(flipped.annotations.segmentations[0][0], [27.0, 2, 17.5, 2, 27, 10])
    assert flipped.annotations.labels is example.annotations.labels


def test_flip_of_run_lengths(example):
    before, after = (coco_mask.decode(e.annotations.segmentations[1]) for e in (example, flip_horizontal(example)))
    np.testing.assert_array_equal(after, before[:, ::-1])


def test_flip_keeps_boxes_around_their_masks(example):
    flipped = flip_horizontal(example).annotations
    columns = np.flatnonzero(coco_mask.decode(flipped.segmentations[1]).any(axis=0))
    assert (columns[0], columns[-1]) == (flipped.boxes[1, 1], flipped.boxes[1, 3])


def test_two_flips_restore_the_example_and_leave_the_original_unchanged(example):
    boxes, polygon = example.annotations.boxes.copy(), example.annotations.segmentations[0][0].copy()
    once = flip_horizontal(example)  # a second flip in place would restore the original
    np.testing.assert_array_equal(example.annotations.boxes, boxes)
    np.testing.assert_array_equal(example.annotations.segmentations[0][0], polygon)
    twice = flip_horizontal(once)
    np.testing.assert_array_equal(twice.image, example.image)
    np.testing.assert_array_equal(twice.annotations.boxes, boxes)
    np.testing.assert_allclose(twice.annotations.segmentations[0][0], polygon, rtol=1e-12)
    assert twice.annotations.segmentations[1] == example.annotations.segmentations[1]


def test_flip_of_an_image_without_objects(example):
    empty = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), ())
    flipped = flip_horizontal(dataclasses.replace(example, annotations=empty))
    assert len(flipped.annotations) == 0 and flipped.annotations.boxes.shape == (0, 4)


def test_flip_of_keypoints(example):
    """Left and right are exchanged; x' = W - x - 1 for labelled keypoints, 0 for others."""
    names = list(COCO_KEYPOINT_NAMES)
    nose, left_ear, right_ear, left_ankle = map(names.index, ('nose', 'left_ear', 'right_ear', 'left_ankle'))
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[0, nose] = 4, 10, 2
    keypoints[0, left_ear] = 3, 0, 1
    keypoints[1, left_ankle] = 19, 30, 2
    example = with_keypoints(example, keypoints)
    flipped = flip_horizontal(example).annotations.keypoints
    expected = np.zeros((2, 17, 3), np.float32)
    expected[0, nose] = 4, 20, 2
    expected[0, right_ear] = 3, 30, 1
    expected[1, names.index('right_ankle')] = 19, 0, 2
    np.testing.assert_array_equal(flipped, expected)
    np.testing.assert_array_equal(flip_horizontal(flip_horizontal(example)).annotations.keypoints, keypoints)


def test_mirrored_keypoints_exchange_left_and_right():
    opposite = {'left': 'right', 'right': 'left'}
    for name, mirrored in zip(COCO_KEYPOINT_NAMES, COCO_MIRRORED_KEYPOINTS, strict=True):
        side, _, part = name.partition('_')
        assert COCO_KEYPOINT_NAMES[mirrored] == (f'{opposite[side]}_{part}' if side in opposite else name)


def test_a_training_example_depends_on_the_seed_only(example):
    transform = TrainingTransform(CONFIG)
    first, second = transform(example, 5), transform(example, 5)
    np.testing.assert_array_equal(first.x, second.x)
    assert (first.seed, first.image_transform.size, first.name, first.image_id) == (5, (20, 31), 'a.jpg', 3)
    assert first.x.shape == (3, 39, 60) and first.image_transform.scale == pytest.approx(60 / 31)


def test_half_of_the_training_examples_are_flipped(example):
    transform = TrainingTransform(CONFIG)
    plain, mirrored = example.annotations, flip_horizontal(example).annotations
    boxes = [transform(example, seed).annotations.boxes for seed in range(200)]
    n_flipped = sum(np.array_equal(b, mirrored.boxes) for b in boxes)
    assert n_flipped + sum(np.array_equal(b, plain.boxes) for b in boxes) == 200
    assert 75 <= n_flipped <= 125  # 3.5 standard deviations


def test_the_flip_does_not_share_random_numbers_with_the_sampling(example):
    transform = TrainingTransform(CONFIG)
    is_flipped = [transform(example, seed).annotations is not example.annotations for seed in range(50)]
    assert is_flipped != [np.random.RandomState(seed).rand() < 0.5 for seed in range(50)]


def test_flipped_annotations_come_with_the_flipped_network_input(example):
    transform = TrainingTransform(CONFIG)
    seed = next(s for s in range(50) if transform(example, s).annotations.boxes[0, 1] == 18)
    x, _ = prepare_image(np.ascontiguousarray(example.image[:, :, ::-1]), CONFIG)
    np.testing.assert_array_equal(transform(example, seed).x, x)


def test_the_flip_can_be_disabled(example):
    transform = TrainingTransform(CONFIG, Augmentation(flip=False))
    assert all(transform(example, seed).annotations is example.annotations for seed in range(20))


def test_annotations_must_have_equal_lengths():
    with pytest.raises(ValueError, match='1 segmentation,'):
        Annotations(np.zeros((2, 4), np.float32), np.zeros(1, np.int32), np.zeros(1, bool), ((),))


@pytest.mark.parametrize('shape', [(3, 17, 3), (2, 17, 2), (2, 51)])
def test_keypoints_must_fit_the_objects(example, shape):
    with pytest.raises(ValueError, match='2 segmentations, but keypoints of shape'):
        with_keypoints(example, np.zeros(shape, np.float32))


def objects(boxes, crowd):
    """Return annotations with keypoints, numbered by their labels."""
    n = len(boxes)
    keypoints = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, 17, 3), np.float32)
    return Annotations(
        np.float32(boxes).reshape(-1, 4), np.arange(n, dtype=np.int32), np.array(crowd), ((),) * n, keypoints
    )


#: Boxes of 11 x 11, 10 x 40 and 40 x 10 pixels, and a crowd region.
MIXED = objects([(0, 0, 10, 10), (0, 0, 9, 39), (0, 0, 39, 9), (0, 0, 50, 50)], [False, False, False, True])


def test_crowds_and_small_objects_are_dropped():
    assert select_objects(MIXED, DETECTRON.training) is MIXED
    found = select_objects(MIXED, DENA.training)
    np.testing.assert_array_equal(found.labels, [0])
    np.testing.assert_array_equal(found.boxes, MIXED.boxes[:1])
    np.testing.assert_array_equal(found.keypoints, MIXED.keypoints[:1])
    with_crowds = DENA.replace(training={'use_crowds': True}).training
    np.testing.assert_array_equal(select_objects(MIXED, with_crowds).labels, [0, 3])
    with_small = DENA.replace(training={'min_object_size': 0.0}).training
    np.testing.assert_array_equal(select_objects(MIXED, with_small).labels, [0, 1, 2])


def test_a_training_example_may_lose_all_objects(example):
    """The object has 9 x 10 pixels, and the other annotation is a crowd region."""
    config = CONFIG.replace(dialect=DENA)
    assert len(TrainingTransform(config)(example, seed=0).annotations) == 0
    small = dataclasses.replace(config, dialect=DENA.replace(training={'min_object_size': 8.0}))
    assert TrainingTransform(small)(example, seed=0).annotations.labels.tolist() == [1]


def test_a_flipped_polygon_has_the_flipped_bitmap(example):
    """The bitmap of a flipped polygon is that of the polygon, mirrored, without a shift by one pixel."""
    dialect = DENA.replace(training={'min_object_size': 0.0, 'use_crowds': True})
    transform = TrainingTransform(CONFIG.replace(dialect=dialect))
    bitmaps = {}
    for seed in range(20):
        found = transform(example, seed)
        is_flipped = found.annotations.boxes[0, 1] != 3
        bitmaps[is_flipped] = [coco_mask.decode(rle) for rle in found.annotations.segmentations]
    polygon = coco_mask.frPyObjects([example.annotations.segmentations[0][0].tolist()], 20, 31)
    np.testing.assert_array_equal(bitmaps[False][0], coco_mask.decode(polygon)[..., 0])
    for plain, flipped in zip(bitmaps[False], bitmaps[True], strict=True):
        assert plain.any()
        np.testing.assert_array_equal(flipped, plain[:, ::-1])


@pytest.mark.parametrize('dialect', [TORCHVISION, DETECTRON2], ids=['torchvision', 'detectron2'])
def test_coordinates_of_objects_in_other_dialects(example, dialect):
    """Boxes end after their last pixel, and detectron2's keypoints are the centres of pixels."""
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[1, 4] = 3, 0, 1
    example = without_crowds(with_keypoints(example, keypoints))
    transform = TrainingTransform(dataclasses.replace(CONFIG, dialect=dialect), Augmentation(flip=False))
    found, expected = transform(example, 0).annotations, keypoints.copy()
    np.testing.assert_array_equal(found.boxes, example.annotations.boxes + np.float32([0, 0, 1, 1]))
    expected[1, 4, :2] += 0.5 if dialect is DETECTRON2 else 0
    np.testing.assert_array_equal(found.keypoints, expected)
    assert (transform(example, 0).annotations.keypoints == found.keypoints).all()  # the dataset's do not change


def test_flips_of_objects_in_other_dialects(example):
    """Polygons and boxes are mirrored at the middle of the image: x' = W - x; torchvision's masks are bitmaps."""
    example = without_crowds(example)
    for dialect, kinds in ((DETECTRON2, (tuple, dict)), (TORCHVISION, (dict, dict))):
        transform = TrainingTransform(dataclasses.replace(CONFIG, dialect=dialect))
        plain, flipped = (
            next(
                result.annotations
                for seed in range(50)
                if np.array_equal((result := transform(example, seed)).annotations.boxes[0, 1::2], columns)
            )
            for columns in ([3, 13], [18, 28])
        )
        np.testing.assert_array_equal(flipped.boxes[:, 1::2], 31 - plain.boxes[:, :0:-2])
        assert tuple(map(type, flipped.segmentations)) == kinds
        if dialect is DETECTRON2:
            np.testing.assert_array_equal(flipped.segmentations[0][0][::2], 31 - plain.segmentations[0][0][::2])
