"""Colours of instances and of text."""

import numpy as np
import pytest

from mask_rcnn.visualization.colors import PALETTE, instance_colors, rgb_of, text_color

SIZE = 400, 600


def luminance(color):
    """Return the relative luminance (WCAG 2.1)."""
    value = np.asarray(color, float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colors_are_deterministic_and_from_the_palette(rng):
    low = rng.uniform(0, 300, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 100, (40, 2))], axis=1)
    colors = instance_colors(boxes, SIZE)
    assert colors.dtype == np.uint8 and colors.shape == (40, 3)
    assert {tuple(color) for color in colors} <= {tuple(color) for color in PALETTE}
    np.testing.assert_array_equal(colors, instance_colors(boxes.copy(), SIZE))


def test_overlapping_instances_have_different_colors():
    boxes = np.array([[0, 0, 100, 100]] * len(PALETTE), float) + np.arange(len(PALETTE))[:, None]
    assert len({tuple(color) for color in instance_colors(boxes, SIZE)}) == len(PALETTE)


def test_neighbours_in_a_row_have_different_colors():
    left = np.arange(50) * 12.0
    boxes = np.stack([np.zeros(50), left, np.full(50, 30), left + 10], axis=1)
    colors = instance_colors(boxes, SIZE).astype(int)
    for distance in (1, 2, 3):
        assert np.abs(colors[distance:] - colors[:-distance]).sum(axis=1).min() > 60


def test_neighbours_differ_for_red_green_colour_blindness():
    # Without M cones, red and green look alike; lightness and the blue-yellow difference remain.
    first, second = instance_colors(np.array([[0, 0, 9, 9], [0, 5, 9, 14]], float), SIZE).astype(float)
    yellow_blue = [color[:2].mean() - color[2] for color in (first, second)]
    lightness = [np.cbrt(luminance(color)) for color in (first, second)]
    assert abs(yellow_blue[0] - yellow_blue[1]) > 100 or abs(lightness[0] - lightness[1]) > 0.3


def test_no_instances():
    assert instance_colors(np.zeros((0, 4)), SIZE).shape == (0, 3)


@pytest.mark.parametrize('plate', [tuple(color) for color in PALETTE.tolist()] + [(0, 0, 0), (255, 255, 255)])
def test_text_has_enough_contrast_to_its_plate(plate):
    low, high = sorted((luminance(text_color(np.array(plate))), luminance(plate)))
    assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.1, level AA


def test_the_values_of_a_colour():
    values = rgb_of('#0a80ff')
    assert values.tolist() == [10, 128, 255] and values.dtype == np.uint8
