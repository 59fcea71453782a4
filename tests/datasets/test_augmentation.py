"""Tests of the random choices of augmentation, and of colour jitter against the formulas of torchvision."""

import colorsys
import dataclasses

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.config import MATTERPORT, PRESETS
from mask_rcnn.datasets.augmentation import Augmentation, draw_window, jitter_colors
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.geometry import Symmetry, crop_example
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.preprocessing.image_transform import prepare_image

CONFIG = PRESETS['resnet50'].replace(min_size=40, max_size=80)
SIZE = (40, 60)


@pytest.fixture
def example(rng):
    """An image of 40 x 60 pixels with one object of 4 x 5 pixels."""
    mask = np.zeros(SIZE, np.uint8, order='F')
    mask[10:14, 20:25] = 1
    annotations = Annotations(
        np.float32([[10, 20, 13, 24]]), np.int32([0]), np.array([False]), (coco_mask.encode(mask),)
    )
    return Example(rng.uniform(0, 255, (3, *SIZE)).astype(np.float32), annotations, 'a.jpg', 3)


def transformed(example, n=60, config=CONFIG, **options):
    transform = TrainingTransform(config, Augmentation(flip=False, **options))
    return [transform(example, seed) for seed in range(n)]


def test_nothing_but_the_flip_changes_by_default(example):
    x, _ = prepare_image(example.image, CONFIG)
    for found in transformed(example, 5):
        np.testing.assert_array_equal(found.x, x)
        assert found.annotations is example.annotations


def test_half_of_the_images_are_flipped_vertically(example):
    plain, _ = prepare_image(example.image, CONFIG)
    flipped, _ = prepare_image(np.ascontiguousarray(example.image[:, ::-1]), CONFIG)
    found = [result.x for result in transformed(example, 200, vertical_flip=True)]
    n_flipped = sum(np.array_equal(x, flipped) for x in found)
    assert n_flipped + sum(np.array_equal(x, plain) for x in found) == 200
    assert 75 <= n_flipped <= 125  # 3.5 standard deviations


def test_quarter_turns_are_equally_frequent(example):
    turned = [prepare_image(np.ascontiguousarray(np.rot90(example.image, n, (1, 2))), CONFIG)[0] for n in range(4)]
    found = [result.x for result in transformed(example, 200, quarter_turns=True)]
    counts = [sum(np.array_equal(x, other) for x in found) for other in turned]
    assert sum(counts) == 200 and min(counts) >= 29  # 3.5 standard deviations below 50


def test_a_vertical_flip_after_turns_gives_all_eight_symmetries():
    augmentation = Augmentation(vertical_flip=True, quarter_turns=True)
    drawn = {augmentation.draw_symmetry(seed) for seed in range(200)}
    assert len(drawn) == 8
    assert {Augmentation(vertical_flip=True).draw_symmetry(seed) for seed in range(50)} == {
        Symmetry(),
        Symmetry(flip_y=True),
    }


def test_scale_jitter_is_uniform_in_the_logarithm():
    scales = np.log2([Augmentation(scale_jitter=(0.5, 2)).draw_scale(seed) for seed in range(400)])
    assert scales.min() >= -1 and scales.max() <= 1
    counts = np.histogram(scales, bins=4, range=(-1, 1))[0]
    assert counts.min() >= 70  # 3.5 standard deviations below 100


def test_scale_jitter_resizes_the_image(example):
    """A factor of 2 only: the longer side becomes 120 pixels, although max_size is 80."""
    found = transformed(example, 1, scale_jitter=(2, 2))[0]
    assert found.x.shape == (3, 80, 120) and found.image_transform.scale == 2
    expected, _ = prepare_image(example.image, CONFIG.replace(min_size=80, max_size=160))
    np.testing.assert_array_equal(found.x, expected)


def test_scale_jitter_enlarges_the_square_of_a_letterbox(example):
    config = PRESETS['resnet50_fpn'].replace(dialect=MATTERPORT, min_size=64, max_size=128)
    shapes = {result.x.shape for result in transformed(example, 30, config, scale_jitter=(0.5, 2))}
    assert {shape[1] for shape in shapes} >= {128, 160, 192}
    assert all(shape[1] == shape[2] and shape[1] % 32 == 0 for shape in shapes)


def test_a_crop_has_the_size_in_pixels_of_the_network_input(example):
    """At a scale of 1.5, a window of 30 pixels is 20 pixels of the image."""
    found = transformed(example, 20, CONFIG.replace(min_size=60, max_size=90), crop=30)
    assert {result.x.shape for result in found} == {(3, 30, 30)}
    assert {result.image_transform.size for result in found} == {(20, 20)}


def test_a_crop_larger_than_the_image_changes_nothing(example):
    assert all(result.annotations is example.annotations for result in transformed(example, 5, crop=60))


def test_a_crop_of_one_side_keeps_the_other(example):
    """At a scale of 1, the image is 40 pixels high."""
    assert {result.image_transform.size for result in transformed(example, 10, crop=50)} == {(40, 50)}


def test_every_crop_contains_an_object(example):
    """Windows of 8 x 8 pixels, of which 1 in 15 contains a part of the object."""
    found = transformed(example, 100, crop=8)
    assert all(len(result.annotations) == 1 for result in found)
    assert len({result.annotations.boxes.tobytes() for result in found}) > 20


def test_a_crop_of_an_image_without_objects_is_uniform(example):
    empty = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), ())
    example = dataclasses.replace(example, annotations=empty)
    corners = [draw_window(example, 10, np.random.RandomState(seed)) for seed in range(300)]
    tops, lefts = [window.top for window in corners], [window.left for window in corners]
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 30, 0, 50)


def test_crowds_do_not_make_a_window_useful(example):
    """Every random window contains the crowd region, but only few contain the object."""
    everywhere = coco_mask.encode(np.ones(SIZE, np.uint8, order='F'))
    annotations = Annotations(
        np.float32([[10, 20, 13, 24], [0, 0, 39, 59]]),
        np.int32([0, 0]),
        np.array([False, True]),
        (*example.annotations.segmentations, everywhere),
    )
    crowded = dataclasses.replace(example, annotations=annotations)
    for seed in range(30):
        window = draw_window(crowded, 8, np.random.RandomState(seed))
        assert window.top < 14 and window.top + 8 > 10 and window.left < 25 and window.left + 8 > 20


def test_the_same_seed_gives_the_same_example(example):
    options = {'vertical_flip': True, 'quarter_turns': True, 'scale_jitter': (0.5, 2), 'crop': 20, 'color_jitter': 0.5}
    first, second = transformed(example, 8, **options), transformed(example, 8, **options)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.annotations.boxes, other.annotations.boxes)
    assert len({one.x.tobytes() for one in first}) == 8


def reference_jitter(pixel, mean, brightness, contrast, saturation, hue):
    """Return a pixel after torchvision's adjust_brightness, adjust_contrast, adjust_saturation and adjust_hue."""
    luma = np.array([0.299, 0.587, 0.114])
    bright = np.clip(np.array(pixel) * brightness, 0, 255)
    contrasted = np.clip(contrast * bright + (1 - contrast) * mean, 0, 255)
    saturated = np.clip(saturation * contrasted + (1 - saturation) * (luma @ contrasted), 0, 255)
    h, s, v = colorsys.rgb_to_hsv(*saturated / 255)
    return np.array(colorsys.hsv_to_rgb((h + hue) % 1, s, v)) * 255


@pytest.mark.parametrize(
    'factors', [(1, 1, 1, 0.1), (1.3, 1, 1, 0), (1, 0.6, 1, 0), (1, 1, 1.7, 0), (0.8, 1.4, 0.5, -0.2)]
)
def test_colour_jitter_has_the_formulas_of_torchvision(rng, factors):
    image = rng.uniform(0, 255, (3, 6, 7)).astype(np.float32)
    bright = np.clip(image * factors[0], 0, 255).astype(np.float64)
    mean = np.tensordot([0.299, 0.587, 0.114], bright, 1).mean()
    expected = [[reference_jitter(pixel, mean, *factors) for pixel in row] for row in image.transpose(1, 2, 0)]
    found = jitter_colors(image, *factors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, atol=2e-3)


def test_colour_jitter_keeps_grey_images_grey(rng):
    image = np.repeat(rng.uniform(0, 255, (1, 5, 5)).astype(np.float32), 3, axis=0)
    found = jitter_colors(image, 1.2, 0.9, 1.5, 0.2)
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)


def test_the_strength_of_the_colour_jitter_bounds_the_factors(example):
    """A white image, whose brightness factor is below 1 in half of the examples."""
    white = dataclasses.replace(example, image=np.full((3, *SIZE), 200, np.float32))
    mean = np.array(CONFIG.dialect.input.pixel_mean)[:, None, None]
    values = [float((result.x + mean).mean()) for result in transformed(white, 100, color_jitter=0.2)]
    assert 160 - 0.01 <= min(values) < 170 and 230 < max(values) <= 240.01


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'scale_jitter': (2, 0.5)}, r'scale_jitter must be two factors LOW <= HIGH, not \[2, 0.5\]'),
        ({'scale_jitter': (0, 1)}, 'scale_jitter must be'),
        ({'scale_jitter': (1, 1e30)}, 'scale_jitter must be two factors LOW <= HIGH, each a number from 0.01 to 100'),
        ({'crop': 0}, 'crop must be an integer of at least 1 or None, not 0'),
        ({'color_jitter': 1.5}, 'color_jitter must be a number from 0 to 1'),
        ({'flip': 2}, 'flip must be'),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize('is_polygon', [False, True])
def test_a_crop_contains_a_pixel_of_an_object_without_pixels_in_its_middle(example, is_polygon):
    """A mask of two pixels in opposite corners, and a triangle beside the diagonal of its box."""
    mask = np.zeros((60, 60), np.uint8)
    mask[5, 5] = mask[55, 55] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    outline = (np.array([5, 5, 56, 56, 5, 6.5]),) if is_polygon else rle
    annotations = Annotations(
        np.array([[5, 5, 55, 55]], np.float32), np.zeros(1, np.int32), np.zeros(1, bool), (outline,)
    )
    corners = dataclasses.replace(example, image=np.zeros((3, 60, 60), np.float32), annotations=annotations)
    for seed in range(100):
        window = draw_window(corners, 4, np.random.RandomState(seed))
        assert len(crop_example(corners, window).annotations) == 1
