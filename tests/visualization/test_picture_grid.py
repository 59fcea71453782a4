"""Grids of pictures: rows and columns, titles, sizes and pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.visualization.figures import encode_figure, picture_grid


def colour(*rgb, size=(20, 30)):
    return np.full((*size, 3), rgb, np.uint8)


@pytest.mark.parametrize(('n_pictures', 'shape'), [(1, (1, 1)), (3, (1, 3)), (4, (2, 3))])
def test_pictures_fill_rows(n_pictures, shape):
    figure = picture_grid([colour(0, 0, 0)] * n_pictures, [f'picture {i}' for i in range(n_pictures)], n_columns=3)
    assert len(figure.axes) == np.prod(shape)
    assert [axes.get_title() for axes in figure.axes[:n_pictures]] == [f'picture {i}' for i in range(n_pictures)]
    assert [len(axes.images) for axes in figure.axes] == [1] * n_pictures + [0] * (np.prod(shape) - n_pictures)
    assert not any(axes.axison for axes in figure.axes)


def test_the_first_picture_determines_the_height_of_the_rows():
    """Two columns of 5 inches: a picture of 20 x 30 pixels is 5 * 20 / 30 inches high, and its title 0.3."""
    figure = picture_grid([colour(0, 0, 0), colour(0, 0, 0, size=(90, 10))] * 2, ['title'] * 4, n_columns=2, width=10)
    assert figure.get_size_inches().tolist() == pytest.approx([10, 2 * (10 / 3 + 0.3)])


def test_the_figure_shows_the_pixels_side_by_side():
    file = encode_figure(picture_grid([colour(255, 0, 0), colour(0, 0, 255)], width=4))
    drawn = np.asarray(Image.open(io.BytesIO(file)).convert('RGB'))
    middle, width = drawn.shape[0] // 2, drawn.shape[1]
    assert drawn[middle, width // 4].tolist() == [255, 0, 0] and drawn[middle, 3 * width // 4].tolist() == [0, 0, 255]


def test_options_choose_the_colour_map_of_masks():
    figure = picture_grid([np.eye(4, dtype=bool)], cmap='gray')
    assert figure.axes[0].images[0].get_cmap().name == 'gray'


@pytest.mark.parametrize('pictures', [[], [colour(0, 0, 0)] * 3])
def test_the_number_of_titles_is_that_of_the_pictures(pictures):
    with pytest.raises(ValueError, match=f'a title for each, got {len(pictures)} and 2$'):
        picture_grid(pictures, ['a', 'b'])
