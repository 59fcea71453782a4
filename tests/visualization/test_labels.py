"""Labels: their candidates, their placement and their appearance."""

import os
import shutil

import matplotlib
import numpy as np
import pytest

from mask_rcnn.visualization.labels import (
    PlacedLabel,
    Text,
    draw_label,
    font_size_for,
    label_candidates,
    load_font,
    measure,
    place_labels,
)

SIZE = 300, 400


def saliency_of(boxes, size=SIZE):
    values = np.zeros(size, np.float32)
    for top, left, bottom, right in boxes.astype(int):
        values[top:bottom, left:right] += 1 / ((bottom - top) * (right - left))
    return values


def candidates_of(count, size=SIZE, name='bicycle'):
    return [label_candidates(name, 0.87, size, None) for _ in range(count)]


def hidden(label, saliency):
    top, left, bottom, right = label.box
    return saliency[top:bottom, left:right].sum()


def assert_apart_and_inside(labels, size=SIZE):
    covered = np.zeros(size, int)
    for label in labels:
        top, left, bottom, right = label.box
        assert 0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]
        covered[top:bottom, left:right] += 1
    assert covered.max() <= 1


def test_a_single_label_is_above_the_left_corner_of_its_box():
    box = np.array([[100, 120, 200, 260]], float)
    candidates = candidates_of(1)
    (label,) = place_labels(candidates, box, saliency_of(box), SIZE)
    assert label.text == candidates[0][0][1]
    assert label.box[2] == 100 and label.box[1] == 120


@pytest.mark.parametrize(
    'box', [[0, 0, 40, 60], [0, 350, 300, 400], [260, 0, 300, 30], [280, 380, 300, 400], [0, 0, 300, 400]]
)
def test_labels_stay_in_the_picture(box):
    box = np.array([box], float)
    assert_apart_and_inside(place_labels(candidates_of(1), box, saliency_of(box), SIZE))


def test_labels_do_not_hide_each_other_or_small_objects(rng):
    low = rng.uniform(20, (230, 320), (14, 2))
    boxes = np.rint(np.concatenate([low, low + rng.uniform(8, 30, (14, 2))], axis=1))
    saliency = saliency_of(boxes)
    labels = place_labels(candidates_of(14), boxes, saliency, SIZE)
    assert None not in labels
    assert_apart_and_inside(labels)
    above = [
        PlacedLabel(candidates[0][1], max(0, int(box[0]) - candidates[0][1].height), min(int(box[1]), 300))
        for candidates, box in zip(candidates_of(14), boxes, strict=True)
    ]
    assert sum(hidden(label, saliency) for label in labels) < 0.25 * sum(hidden(label, saliency) for label in above)
    assert max(hidden(label, saliency) for label in labels) < 0.25


def test_a_label_avoids_a_small_object():
    boxes = np.array([[100, 100, 250, 300], [85, 105, 98, 125]], float)
    saliency = saliency_of(boxes)
    large, small = place_labels(candidates_of(2), boxes, saliency, SIZE)
    assert hidden(small, saliency) < 0.05
    top, left, bottom, right = large.box
    assert bottom <= 85 or top >= 98 or right <= 105 or left >= 125


def test_labels_without_a_free_place_are_left_out():
    boxes = np.tile(np.array([[20, 10, 40, 50]], float), (60, 1))
    size = 64, 64
    labels = place_labels(candidates_of(60, size), boxes, saliency_of(boxes, size) / 60, size)
    placed = [label for label in labels if label is not None]
    assert 0 < len(placed) < 60
    assert_apart_and_inside(placed, size)


def test_a_picture_smaller_than_a_label_has_no_label():
    box = np.array([[0, 0, 5, 5]], float)
    assert place_labels(candidates_of(1, (5, 5)), box, saliency_of(box, (5, 5)), (5, 5)) == [None]


def test_a_narrow_picture_gets_the_label_without_the_score():
    candidates = label_candidates('bicycle', 0.87, (64, 64), None)
    size = 64, candidates[2][1].width + 2
    box = np.array([[30, 2, 60, 30]], float)
    (label,) = place_labels([candidates], box, saliency_of(box, size), size)
    assert label.text.content == 'bicycle'


def test_candidates_are_ordered_from_full_to_short():
    candidates = label_candidates('  traffic\n light ', 0.876, (1000, 1000), None)
    full = 'traffic light 0.88'
    assert [text.content for _, text in candidates] == [full, full, 'traffic light']
    assert candidates[0][0] < candidates[1][0] < candidates[2][0]
    assert candidates[0][1].width > candidates[1][1].width > candidates[2][1].width
    assert label_candidates('cat', None, (100, 100), None)[0][1].content == 'cat'
    assert len(label_candidates('x' * 200, None, (100, 100), None)[0][1].content) == 32


def test_font_size_increases_with_the_picture():
    sizes = [font_size_for((side, side)) for side in (1, 64, 640, 1280, 8000)]
    assert sizes == sorted(sizes) and sizes[0] >= 9 and sizes[-1] > 100


@pytest.mark.parametrize('font_size', [9, 13, 60])
def test_letters_fit_on_their_plate(font_size):
    content = 'gÅqj|W 0.87'
    text = measure(content, None, font_size)
    canvas = np.zeros((text.height + 2, text.width + 2, 3), np.uint8)
    draw_label(canvas, PlacedLabel(text, 1, 1), np.array((255, 0, 0), np.uint8), (255, 255, 255), None)
    assert not canvas[0].any() and not canvas[-1].any() and not canvas[:, 0].any() and not canvas[:, -1].any()
    rows, columns = (np.flatnonzero((canvas[1:-1, 1:-1, 1] > 60).any(axis=axis)) for axis in (1, 0))
    _, top, _, bottom = load_font(None, font_size).getbbox(content)
    assert abs(np.ptp(rows) + 1 - (bottom - top)) <= 1  # no letter is clipped
    assert columns[0] >= 1 and columns[-1] <= text.width - 2


def test_an_unreadable_font_is_named(tmp_path):
    path = tmp_path / 'font.ttf'
    path.write_bytes(b'nothing')
    with pytest.raises(OSError, match='font.ttf: cannot be read as a font'):
        load_font(path, 12)


@pytest.mark.parametrize('name', [b'caf\xe9.ttf', b'a\nb.ttf', '\N{CAMERA}.ttf'.encode()])
def test_a_font_may_have_any_name(tmp_path, name):
    path = os.fsdecode(os.fsencode(tmp_path) + b'/' + name)
    with pytest.raises(OSError, match='cannot be read as a font'):
        load_font(path, 12)
    shutil.copy(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans-Bold.ttf'), path)
    assert load_font(path, 12).getname() == ('DejaVu Sans', 'Bold')


def test_text_is_compared_by_value():
    cat, dog = (measure(name, None, 12) for name in ('cat', 'dog'))
    assert cat == Text('cat', 12, cat.width, dog.height)
