"""Tests of the network input and of the mapping of boxes: Detectron's corner and Matterport's letterbox."""

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import MATTERPORT, MINDSPORE, PRESETS
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.preprocessing.image_transform import ImageTransform, input_scale, prepare_image, resized_size

DETECTRON_CONFIG = PRESETS['resnet50'].replace(min_size=40, max_size=60)
MATTERPORT_CONFIG = PRESETS['resnet50_fpn'].replace(dialect=MATTERPORT, min_size=96, max_size=128)


def test_top_left_multiplies_boxes_by_the_scale():
    transform = ImageTransform.top_left((100, 201), 1.5)
    boxes = np.float32([[0, 10, 20, 30]])
    np.testing.assert_array_equal(transform.apply_boxes(boxes), boxes * 1.5)
    np.testing.assert_array_equal(transform.invert_boxes(boxes * np.float32(1.5)), boxes)
    assert transform.input_size == (150, 302) and transform.window == (0, 0, 149, 301)


def test_multiplication_by_the_reciprocal_rounds_differently_from_division():
    """Detectron divides in inference and multiplies by the reciprocal in training."""
    transform = ImageTransform.top_left((100, 100), 1.3)
    boxes = np.random.RandomState(0).uniform(0, 100, (500, 4)).astype(np.float32)
    np.testing.assert_array_equal(transform.invert_boxes(boxes), boxes / np.float32(1.3))
    inverse = np.float32(1 / float(np.float32(1.3)))
    np.testing.assert_array_equal(transform.invert_boxes(boxes, reciprocal=True), boxes * inverse)
    assert (boxes * inverse != boxes / np.float32(1.3)).any()


@pytest.mark.parametrize(('size', 'scale', 'side'), [((60, 110), 2.0, 256), ((300, 200), 0.61, 192), ((7, 1), 1.0, 64)])
def test_letterbox_maps_the_corners_of_the_image_to_the_corners_of_the_window(size, scale, side):
    transform = ImageTransform.letterbox(size, scale, side)
    corners = np.float32([[0, 0, size[0] - 1, size[1] - 1]])
    if min(size) > 1:
        np.testing.assert_allclose(transform.apply_boxes(corners)[0], transform.window, rtol=1e-6)
    np.testing.assert_allclose(transform.invert_boxes(transform.apply_boxes(corners)), corners, atol=1e-4)
    height, width = resized_size(size, scale)
    top, left, bottom, right = transform.window
    assert (bottom - top + 1, right - left + 1) == (height, width) and transform.input_size == (side, side)
    assert (top, left) == ((side - height) // 2, (side - width) // 2)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((480, 640), 800 / 480),
        ((640, 480), 800 / 480),
        ((300, 500), 800 / 300),
        ((300, 501), 1333 / 501),
        ((100, 1000), 1.333),
        ((1000, 3000), 1333 / 3000),
    ],
)
def test_input_scale(size, expected):
    assert input_scale(size, PRESETS['resnet50']) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [((48, 60), 2.0), ((100, 120), 1.0), ((96, 100), 1.0), ((60, 110), 128 / 110), ((200, 100), 0.64)],
)
def test_input_scale_of_an_upscale_only_dialect(size, expected):
    """Upscale to a shorter side of 96; downscale only to a longer side of 128."""
    assert input_scale(size, MATTERPORT_CONFIG) == pytest.approx(expected, rel=1e-12)


def test_a_model_prepares_images_with_prepare_image(rng):
    image = rng.uniform(0, 255, (3, 20, 31)).astype(np.float32)
    model = mask_rcnn.build('resnet50', n_fg_class=1, min_size=40, max_size=60)
    x, image_transform = prepare_image(image, DETECTRON_CONFIG)
    model_x, model_transform = Predictor(model).prepare(image)
    assert x.dtype == np.float32 and x.shape == (3, 39, 60) and image_transform == model_transform
    np.testing.assert_array_equal(x, model_x[0])
    pixels = rng.randint(0, 256, (20, 31, 3)).astype(np.uint8)
    x, _ = prepare_image(pixels.transpose(2, 0, 1).astype(np.float32), DETECTRON_CONFIG)
    np.testing.assert_array_equal(Predictor(model).prepare(pixels)[0][0], x)


def test_prepare_image_reverses_the_channels_and_subtracts_the_mean():
    image = np.empty((3, 20, 30), np.float32)
    image[:] = np.float32([10, 20, 30])[:, None, None]  # R, G, B
    x, _ = prepare_image(image, DETECTRON_CONFIG)
    b, g, r = DETECTRON_CONFIG.dialect.input.pixel_mean
    np.testing.assert_allclose(x.mean(axis=(1, 2)), [30 - b, 20 - g, 10 - r], rtol=1e-5)


def test_prepare_image_divides_by_the_standard_deviation():
    image = np.empty((3, 20, 30), np.float32)
    image[:] = np.float32([10, 20, 30])[:, None, None]
    x, _ = prepare_image(image, DETECTRON_CONFIG.replace(dialect=MINDSPORE))
    mean, std = MINDSPORE.input.pixel_mean, MINDSPORE.input.pixel_std
    np.testing.assert_allclose(x.mean(axis=(1, 2)), (np.array([10, 20, 30]) - mean) / std, rtol=1e-5)


def test_prepare_image_pads_the_input_of_an_fpn_to_multiples_of_32():
    config = PRESETS['resnet50_fpn'].replace(min_size=40, max_size=60)
    x, transform = prepare_image(np.full((3, 20, 40), 200, np.float32), config)
    assert x.shape == (3, 32, 64) and transform.input_size == (30, 60)
    assert x[:, :30, :60].all() and not x[:, 30:].any() and not x[:, :, 60:].any()


def test_prepare_image_letterboxes():
    image = np.full((3, 40, 60), 200, np.float32)
    x, transform = prepare_image(image, MATTERPORT_CONFIG)
    assert x.shape == (3, 128, 128) and x.dtype == np.float32
    top, left, bottom, right = map(int, transform.window)
    assert (top, left, bottom, right) == (21, 0, 105, 127)  # 85 rows of 128
    mean = np.array(MATTERPORT.input.pixel_mean)
    inside = x[:, top : bottom + 1, left : right + 1]
    np.testing.assert_array_equal(inside.max(axis=(1, 2)), (200 - mean).astype(np.float32))
    outside = x.copy()
    outside[:, top : bottom + 1, left : right + 1] = -mean[:, None, None]
    np.testing.assert_array_equal(outside, np.broadcast_to(np.float32(-mean)[:, None, None], x.shape))


def test_a_letterbox_must_be_a_multiple_of_the_coarsest_stride():
    with pytest.raises(ValueError, match='multiple of 64, not 1000'):
        MATTERPORT_CONFIG.replace(max_size=1000)
