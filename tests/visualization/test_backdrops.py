"""Backdrops of objects in their original colours: splash, blur and cutout; masks without filling."""

import numpy as np
import pytest

from mask_rcnn.visualization import draw_detections
from mask_rcnn.visualization.backdrops import make_transparent, show_objects
from mask_rcnn.visualization.colors import PALETTE
from tests.visualization.test_drawing import SIZE, picture, rectangles

BOX = [30, 40, 90, 120]
BARE = {'labels': False}
INSIDE = np.zeros(SIZE, bool)
INSIDE[30:90, 40:120] = True


@pytest.mark.parametrize('backdrop', ['splash', 'blur', 'cutout'])
def test_objects_have_their_original_colours(rng, backdrop):
    image = picture(rng)
    before = image.copy()
    drawn = draw_detections(image, rectangles([BOX]), backdrop=backdrop, **BARE)
    np.testing.assert_array_equal(drawn[INSIDE], image[INSIDE])
    assert (drawn[~INSIDE] != image[~INSIDE]).any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('backdrop', ['splash', 'blur', 'cutout'])
def test_objects_without_masks_are_shown_by_their_boxes(rng, backdrop):
    image = picture(rng)
    drawn = draw_detections(image, rectangles([BOX], masks=None), backdrop=backdrop, boxes=False, **BARE)
    np.testing.assert_array_equal(drawn[INSIDE], image[INSIDE])


def test_the_background_is_blurred(rng):
    """Noise becomes nearly its mean, and a slow change of brightness remains."""
    noise = picture(rng)
    drawn = draw_detections(noise, rectangles([BOX]), backdrop='blur', **BARE)
    assert np.abs(drawn[~INSIDE].astype(float) - noise[~INSIDE].mean(axis=0)).mean() < 10
    size = 600, 800
    ramp = np.repeat(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], 600, axis=0).repeat(3, axis=2)
    drawn = draw_detections(ramp, rectangles([BOX], size), backdrop='blur', **BARE)
    assert np.abs(drawn[:, 100:700].astype(int) - ramp[:, 100:700]).max() <= 4


def test_the_blurred_background_has_no_colours_of_the_objects():
    """A red object before a grey wall has no red fringe."""
    image = np.full((*SIZE, 3), 128, np.uint8)
    image[INSIDE] = 255, 0, 0
    drawn = draw_detections(image, rectangles([BOX]), backdrop='blur', **BARE)
    assert np.abs(drawn[~INSIDE].astype(int) - 128).max() <= 1


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (50, 1), (3, 3), (1500, 40)])
@pytest.mark.parametrize('covers_all', [False, True])
def test_a_blur_of_any_size(rng, size, covers_all):
    image = picture(rng, size)
    drawn = show_objects(image, np.full(size, covers_all, np.uint8), 'blur')
    assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8
    assert not covers_all or (drawn == image).all()


def test_a_cutout_is_white_or_transparent_around_the_objects(rng):
    image = picture(rng)
    white = draw_detections(image, rectangles([BOX]), backdrop='cutout', **BARE)
    assert white.shape == (*SIZE, 3) and (white[~INSIDE] == 255).all()
    clear = draw_detections(image, rectangles([BOX]), backdrop='cutout', transparent=True, **BARE)
    assert clear.shape == (*SIZE, 4) and clear.dtype == np.uint8
    np.testing.assert_array_equal(clear[INSIDE][:, :3], image[INSIDE])
    assert (clear[INSIDE][:, 3] == 255).all() and not clear[~INSIDE].any()


def test_other_backdrops_are_never_transparent(rng):
    for backdrop in ('image', 'black', 'blur'):
        drawn = draw_detections(picture(rng), rectangles([BOX]), backdrop=backdrop, transparent=True)
        assert drawn.shape == (*SIZE, 3)


def test_a_cutout_with_labels_and_outlines_looks_alike_on_white(rng):
    """The transparent picture, laid on white, is the white one."""
    image = picture(rng)
    options = {'backdrop': 'cutout', 'contour': True, 'labels': 'all'}
    found = rectangles([BOX, [10, 10, 25, 30]])
    white = draw_detections(image, found, **options)
    clear = draw_detections(image, found, transparent=True, **options).astype(float)
    alpha = clear[:, :, 3:] / 255
    assert 0 < (alpha[:, :, 0] * (1 - alpha[:, :, 0]) > 0).mean() < 0.3
    np.testing.assert_allclose(alpha * clear[:, :, :3] + (1 - alpha) * 255, white, atol=5)


def test_opacity_from_two_canvases():
    """Red at an opacity of 0.6 is (153, 0, 0) on black and (255, 102, 102) on white."""
    on_black = np.array([[[153, 0, 0], [0, 0, 0], [9, 8, 7]]], np.uint8)
    on_white = np.array([[[255, 102, 102], [255, 255, 255], [9, 8, 7]]], np.uint8)
    expected = [[[255, 0, 0, 153], [0, 0, 0, 0], [9, 8, 7, 255]]]
    np.testing.assert_array_equal(make_transparent(on_black, on_white), expected)


def test_masks_without_filling(rng):
    image = picture(rng)
    found = rectangles([BOX])
    np.testing.assert_array_equal(draw_detections(image, found, masks=False, boxes=False, **BARE), image)
    boxed = draw_detections(image, found, masks=False, **BARE)
    np.testing.assert_array_equal(boxed, draw_detections(image, rectangles([BOX], masks=None), **BARE))
    outlined = draw_detections(np.zeros_like(image), found, masks=False, boxes=False, contour=True, **BARE)
    assert not outlined[60, 80].any()
    assert (np.abs(outlined[30, 80] / PALETTE[0] - 0.85) < 0.15).all()
    shown = draw_detections(image, found, masks=False, backdrop='splash', **BARE)
    np.testing.assert_array_equal(shown[INSIDE], image[INSIDE])
