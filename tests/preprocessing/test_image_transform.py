"""Where images lie in the network's input: Detectron's corner and Matterport's square."""

import numpy as np
import pytest

from mask_rcnn.config import MATTERPORT, PRESETS
from mask_rcnn.preprocessing.image_transform import ImageTransform, rounded_sides
from mask_rcnn.preprocessing.prepare import input_scale, prepare_image

CONFIG = PRESETS['resnet50_fpn'].replace(dialect=MATTERPORT, min_size=96, max_size=128)


def test_scaled_boxes_are_multiplied():
    transform = ImageTransform.top_left((100, 201), 1.5)
    boxes = np.float32([[0, 10, 20, 30]])
    np.testing.assert_array_equal(transform.apply_boxes(boxes), boxes * 1.5)
    np.testing.assert_array_equal(transform.invert_boxes(boxes * np.float32(1.5)), boxes)
    assert transform.input_size == (150, 302) and transform.window == (0, 0, 149, 301)


def test_the_inverse_rounds_otherwise():
    """Detectron's training multiplies; both are its bits."""
    transform = ImageTransform.top_left((100, 100), 1.3)
    boxes = np.random.RandomState(0).uniform(0, 100, (500, 4)).astype(np.float32)
    np.testing.assert_array_equal(transform.invert_boxes(boxes), boxes / np.float32(1.3))
    inverse = np.float32(1 / float(np.float32(1.3)))
    np.testing.assert_array_equal(transform.invert_boxes(boxes, reciprocal=True), boxes * inverse)
    assert (boxes * inverse != boxes / np.float32(1.3)).any()


@pytest.mark.parametrize(('size', 'scale', 'side'), [((60, 110), 2.0, 256), ((300, 200), 0.61, 192), ((7, 1), 1.0, 64)])
def test_centred_images_put_their_corners_on_the_windows(size, scale, side):
    transform = ImageTransform.letterbox(size, scale, side)
    corners = np.float32([[0, 0, size[0] - 1, size[1] - 1]])
    if min(size) > 1:
        np.testing.assert_allclose(transform.apply_boxes(corners)[0], transform.window, rtol=1e-6)
    np.testing.assert_allclose(transform.invert_boxes(transform.apply_boxes(corners)), corners, atol=1e-4)
    height, width = rounded_sides(size, scale)
    top, left, bottom, right = transform.window
    assert (bottom - top + 1, right - left + 1) == (height, width) and transform.input_size == (side, side)
    assert (top, left) == ((side - height) // 2, (side - width) // 2)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [((48, 60), 2.0), ((100, 120), 1.0), ((96, 100), 1.0), ((60, 110), 128 / 110), ((200, 100), 0.64)],
)
def test_images_are_only_enlarged(size, expected):
    """To a short side of 96; made smaller only for a long side of 128."""
    assert input_scale(size, CONFIG) == pytest.approx(expected, rel=1e-12)


def test_centred_input():
    image = np.full((3, 40, 60), 200, np.float32)
    x, transform = prepare_image(image, CONFIG)
    assert x.shape == (3, 128, 128) and x.dtype == np.float32
    top, left, bottom, right = map(int, transform.window)
    assert (top, left, bottom, right) == (21, 0, 105, 127)  # 85 rows of 128
    mean = np.array(MATTERPORT.input.pixel_mean)
    inside = x[:, top : bottom + 1, left : right + 1]
    np.testing.assert_array_equal(inside.max(axis=(1, 2)), (200 - mean).astype(np.float32))
    outside = x.copy()
    outside[:, top : bottom + 1, left : right + 1] = -mean[:, None, None]
    np.testing.assert_array_equal(outside, np.broadcast_to(np.float32(-mean)[:, None, None], x.shape))


def test_the_square_is_a_multiple_of_the_coarsest_stride():
    with pytest.raises(ValueError, match='multiple of 64, not 1000'):
        CONFIG.replace(max_size=1000)
