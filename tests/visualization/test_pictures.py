"""Resized pictures and masks, held against hand-computed pixels."""

import numpy as np
import pytest

from mask_rcnn.visualization.pictures import resize_mask, resize_picture


def test_smaller_pictures_are_means():
    picture = np.zeros((2, 4, 3), np.uint8)
    picture[:, :2] = np.array([[0, 40], [80, 120]])[:, :, None]
    assert resize_picture(picture, (1, 2)).tolist() == [[[60] * 3, [0] * 3]]


def test_pictures_of_other_sizes():
    picture = np.full((3, 5, 3), 7, np.uint8)
    assert resize_picture(picture, (3, 5)).tolist() == picture.tolist()
    larger = resize_picture(picture, (9, 4))
    assert larger.shape == (9, 4, 3) and (larger == 7).all()


@pytest.mark.parametrize(('n_inside', 'is_inside'), [(0, False), (1, False), (2, True), (4, True)])
def test_a_pixel_of_a_smaller_mask_is_inside_with_half_of_its_area(n_inside, is_inside):
    mask = (np.arange(4) < n_inside).astype(np.uint8).reshape(2, 2)
    assert resize_mask(mask, (1, 1)).tolist() == [[is_inside]]


def test_larger_masks():
    resized = resize_mask(np.array([[0, 1]], np.uint8), (2, 8))
    assert resized.dtype == bool and resized.tolist() == [[False] * 4 + [True] * 4] * 2
