"""The network input as a picture has the colours of the image."""

import numpy as np
import pytest

from mask_rcnn.config import DIALECTS, Config
from mask_rcnn.inspect.network_input import viewable_input
from mask_rcnn.preprocessing.image_transform import prepare_image


@pytest.mark.parametrize('name', DIALECTS)
def test_the_picture_of_an_image_that_is_not_resized_is_the_image(name):
    """A multiple of every stride and a square: no dialect pads it."""
    image = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    config = Config(dialect=DIALECTS[name], min_size=64, max_size=64)
    x, _ = prepare_image(image.transpose(2, 0, 1).astype(np.float32), config)
    picture = viewable_input(x, config)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, image)


def test_values_outside_of_colours_are_clipped():
    picture = viewable_input(np.array([-1000, 1000, 0], np.float16).reshape(3, 1, 1), Config())
    np.testing.assert_array_equal(picture, [[[123, 255, 0]]])  # BGR input; the mean of red is 122.77


@pytest.mark.filterwarnings('error')
def test_values_that_are_not_finite_are_clipped():
    picture = viewable_input(np.array([np.nan, np.inf, -np.inf], np.float32).reshape(3, 1, 1), Config())
    np.testing.assert_array_equal(picture, [[[0, 255, 0]]])


@pytest.mark.parametrize('shape', [(1, 3, 8, 8), (8, 8), (1, 8, 8), (8, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r'must have the shape \(3, h, w\), not \('):
        viewable_input(np.zeros(shape), Config())
