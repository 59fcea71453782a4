"""Pictures of errors: objects and detections next to each other, marked by kind."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.visualization.error_pictures import MARKS, MarkedShapes, draw_errors, mark_title

NONE = MarkedShapes(np.zeros((0, 4)), (), (), ())
TITLES = ('objects', 'detections')


def shapes(*items, masks=()):
    """Return shapes from ``(kind, box, text)``."""
    kinds, boxes, names = zip(*items, strict=True) if items else ((), (), ())
    return MarkedShapes(np.array(boxes, float).reshape(-1, 4), masks, kinds, names)


def has_color(region, kind):
    return (np.abs(region.astype(int) - MARKS[kind].rgb).sum(axis=-1) < 30).any()


def halves(picture):
    """Return the panels of a square image, without titles and legend."""
    return picture[25:630, :620], picture[25:630, 632:]


def test_marks_are_distinct():
    styles = {(mark.color, mark.dashes) for kind, mark in MARKS.items() if kind not in ('crowd', 'ignored')}
    assert len(styles) == len(MARKS) - 2
    assert mark_title('missed') == 'missed' and mark_title('false positives') == 'false positives'


def test_objects_are_left_and_detections_right():
    image = np.full((100, 100, 3), 128, np.uint8)
    box = (20, 30, 60, 70)
    picture = draw_errors(image, shapes(('missed', box, 'cat')), shapes(('background', box, 'dog 0.90')), TITLES)
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * 620 + 12
    left, right = halves(picture)
    assert has_color(left, 'missed') and not has_color(left, 'background')
    assert has_color(right, 'background') and not has_color(right, 'missed')
    legend = picture[-22:]
    assert has_color(legend, 'missed') and has_color(legend, 'background') and not has_color(legend, 'duplicate')


@pytest.mark.parametrize(('size', 'is_stacked'), [((100, 100), False), ((50, 200), True), ((300, 100), False)])
def test_panels_of_wide_images_are_stacked(size, is_stacked):
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    picture = draw_errors(image, NONE, NONE, TITLES)
    scale = 620 / max(size)
    columns = 1 if is_stacked else 2
    assert picture.shape[1] >= columns * width * scale and (picture.shape[1] > 1.5 * width * scale) != is_stacked
    assert picture.shape[0] >= (2 if is_stacked else 1) * height * scale


def test_outlines_are_at_their_places():
    """A solid line around rows 20 to 60 and columns 30 to 70 of an image that is enlarged 6.2 times."""
    image = np.full((100, 100, 3), 128, np.uint8)
    picture = draw_errors(image, shapes(('correct', (20, 30, 60, 70), '')), NONE, TITLES)
    top = next(row for row in range(60) if (picture[row, 300] == 128).all())  # the image begins below the title
    green = np.abs(picture[:, :620].astype(int) - MARKS['correct'].rgb).sum(axis=-1) < 40
    rows, columns = np.nonzero(green[: top + 620])
    limits = np.array([rows.min() - top, rows.max() - top, columns.min(), columns.max()])
    np.testing.assert_allclose(limits, 6.2 * np.array([20, 60, 30, 70]), atol=3)


def test_masks_have_outlines_instead_of_boxes():
    image = np.full((100, 100, 3), 128, np.uint8)
    mask = np.zeros((100, 100), np.uint8)
    cv2.circle(mask, (50, 50), 30, 1, -1)
    rle = coco_mask.encode(np.asfortranarray(mask))
    box = (20, 20, 81, 81)
    of_mask = draw_errors(image, shapes(('correct', box, ''), masks=[rle]), NONE, TITLES)
    of_box = draw_errors(image, shapes(('correct', box, '')), NONE, TITLES)
    corner = slice(130, 180), slice(110, 160)  # of the box, outside the circle
    assert has_color(of_box[corner], 'correct') and not has_color(of_mask[corner], 'correct')
    assert has_color(of_mask[150:], 'correct')
    empty = coco_mask.encode(np.zeros((100, 100), np.uint8, order='F'))
    of_empty = draw_errors(image, shapes(('correct', box, ''), masks=[empty]), NONE, TITLES)
    np.testing.assert_array_equal(of_empty, of_box)


@pytest.mark.parametrize('n_errors', [0, 1, 20, 21, 100])
def test_many_errors_have_no_labels(n_errors, rng):
    image = np.full((80, 80, 3), 128, np.uint8)
    corners = rng.randint(0, 60, (n_errors, 2))
    items = [('background', (y, x, y + 12, x + 12), '0.50') for y, x in corners.tolist()]
    plain = [(kind, box, '') for kind, box, _ in items]
    with_text = draw_errors(image, NONE, shapes(*items), TITLES)
    without = draw_errors(image, NONE, shapes(*plain), TITLES)
    assert (with_text != without).any() == (1 <= n_errors <= 20)


@pytest.mark.parametrize('size', [(1, 1), (3, 400), (900, 1333)])
def test_any_size(size):
    image = np.zeros((*size, 3), np.uint8)
    box = (0, 0, *size)
    objects = shapes(('crowd', box, ''), ('missed', box, 'a name that is longer than its object'))
    picture = draw_errors(image, objects, shapes(*((kind, box, kind) for kind in MARKS)), TITLES)
    assert 620 <= max(picture.shape) <= 1300


def test_the_image_stays_unchanged():
    image = np.full((620, 620, 3), 128, np.uint8)
    draw_errors(image, shapes(('missed', (20, 30, 60, 70), 'cat')), NONE, TITLES)
    assert (image == 128).all()
