"""Figures of steps: the artists are the given boxes, labels cover nothing, and every number of boxes is possible."""

import itertools

import numpy as np
import pytest

from mask_rcnn.visualization import anchor_figures, detection_figures, feature_figures, reason_figures
from mask_rcnn.visualization.box_artists import draw_boxes, draw_moves, label_boxes, settle_layout
from mask_rcnn.visualization.figures import encode_figure
from mask_rcnn.visualization.panels import (
    brighten,
    darken,
    draw_score_bars,
    margin_for,
    new_panels,
    score_colors,
    show_backdrop,
    zoom_region,
)

SIZES = [(100, 80), (800, 1333)]


def picture_of(size):
    return np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)


def random_boxes(n, size, seed=1):
    """Return ``(n, 4)`` float32 boxes in a picture."""
    rng = np.random.RandomState(seed)
    corners = rng.rand(n, 2) * size * np.float32(0.7)
    return np.concatenate([corners, corners + (0.05 + 0.25 * rng.rand(n, 2)) * size], axis=1).astype(np.float32)


def drawn_boxes(axes, sign=None):
    """Return the drawn boxes ``(y_min, x_min, y_max, x_max)`` of a sign, the first on top."""
    boxes = []
    for collection in axes.collections:
        if collection.get_gid() is not None and sign in (None, collection.get_gid()):
            boxes += [path.get_extents().extents[[1, 0, 3, 2]] for path in reversed(collection.get_paths())]
    return np.array(boxes).reshape(-1, 4)


def panel(size):
    figure, (axes,) = new_panels(1, size)
    show_backdrop(axes, picture_of(size))
    return figure, axes


def arrows(axes):
    return [patch for patch in axes.patches if patch.get_gid() == 'move']


def tip(arrow):
    """Return the point of an arrow's head, the vertex that is farthest from its start."""
    path = arrow.get_path()
    vertices = path.vertices[path.codes != path.CLOSEPOLY]
    return vertices[np.argmax(np.hypot(*(vertices - vertices[0]).T))]


def labels(axes):
    return [text for text in axes.texts if text.get_gid() == 'label']


@pytest.mark.parametrize('size', SIZES)
def test_boxes_have_their_coordinates_and_colours(size):
    _, axes = panel(size)
    boxes, scores = random_boxes(7, size), np.linspace(0, 1, 7)
    collection = draw_boxes(axes, boxes, score_colors(scores), 'dotted')
    np.testing.assert_allclose(drawn_boxes(axes, 'dotted'), boxes, rtol=1e-6)
    np.testing.assert_allclose(collection.get_edgecolor()[::-1], score_colors(scores))
    assert len(drawn_boxes(axes, 'solid')) == 0


def test_arrows_lead_from_the_old_to_the_new_centre():
    figure, axes = panel((100, 80))
    before = np.array([[10, 10, 30, 20], [50, 50, 60, 60]], np.float32)
    after = before + np.array([[20, 5, 20, 5], [0, 0, 0, 0]], np.float32)
    settle_layout(figure)
    draw_moves(axes, before, after, np.eye(3)[:2])
    (arrow,) = arrows(axes)  # the other box does not move
    np.testing.assert_allclose(arrow.get_path().vertices[0], (15, 20))
    np.testing.assert_allclose(tip(arrow), (20, 40), atol=0.3)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('n', [0, 1, pytest.param(100, marks=pytest.mark.slow)])
def test_labels_cover_neither_their_boxes_nor_each_other(size, n):
    figure, axes = panel(size)
    boxes = random_boxes(n, size)
    settle_layout(figure)
    n_left_out = label_boxes(axes, boxes, [f'object {i}' for i in range(n)], np.ones((n, 3)))
    assert len(labels(axes)) + n_left_out == n
    assert n != 1 or n_left_out == 0
    area = axes.get_window_extent()
    placed = [(int(text.get_text().split()[1]), text.get_window_extent()) for text in labels(axes)]
    for i, extent in placed:
        top, left, bottom, right = boxes[i].tolist()
        (x0, y0), (x1, y1) = axes.transData.transform([(left, bottom), (right, top)])
        assert extent.x1 <= x0 or extent.x0 >= x1 or extent.y1 <= y0 or extent.y0 >= y1
        assert area.x0 <= extent.x0 and extent.x1 <= area.x1 and area.y0 <= extent.y0 and extent.y1 <= area.y1
    for (_, a), (_, b) in itertools.combinations(placed, 2):
        assert not a.overlaps(b)


def test_the_label_of_a_box_that_fills_the_picture_is_left_out():
    figure, axes = panel((100, 80))
    settle_layout(figure)
    assert label_boxes(axes, np.array([[-9, -9, 120, 100]]), ['everything'], np.ones((1, 3))) == 1
    assert not labels(axes)


def test_values_of_bars_do_not_touch_the_line_of_the_threshold():
    figure, (axes,) = new_panels(1, (1, 2))
    draw_score_bars(
        axes, [('background', 0.9), ('cat', 0.049), ('a name that is far too long for a bar', 0)], threshold=0.05
    )
    settle_layout(figure)
    line = axes.transData.transform((0.05, 0))[0]
    for text, score in zip(axes.texts, (0.9, 0.049, 0), strict=True):
        extent, end = text.get_window_extent(), axes.transData.transform((score, 0))[0]
        assert extent.x0 > end and not extent.x0 <= line <= extent.x1
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.049, 0]
    assert axes.get_yticklabels()[2].get_text() == 'a name that is far too …'


@pytest.mark.parametrize('size', SIZES)
def test_close_ups_contain_their_boxes_and_stay_in_the_picture(size):
    boxes = random_boxes(3, size)
    top, left, bottom, right = zoom_region(boxes, size)
    assert top < boxes[:, 0].min() and left < boxes[:, 1].min()
    assert bottom > boxes[:, 2].max() and right > boxes[:, 3].max()
    assert min(top, left) >= 0 and bottom <= size[0] and right <= size[1]
    outside = np.array([[-20, 5, 30, 40]])
    assert zoom_region(outside, size)[0] == -20  # the box is visible although it leaves the picture
    assert margin_for(outside, size) == pytest.approx({100: 21 / 100, 1333: 0.03}[max(size)])  # 20 pixels; the minimum
    assert margin_for(np.array([[-9e9, 0, 9e9, 1]]), size) == 0.3
    assert margin_for(np.zeros((0, 4)), size) == margin_for(np.array([[1, 1, 2, 2]]), size)


@pytest.mark.parametrize('size', SIZES)
def test_boxes_in_the_padding_of_the_input_are_visible(size):
    """Detectron's proposals are clipped to the padded input, up to 31 of its pixels outside the image."""
    box, score = np.array([[5, 5, size[0] + 0.1 * max(size), size[1] + 0.05 * max(size)]], np.float32), np.ones(1)
    inside = np.array([[5, 5, 20, 20]], np.float32)
    for figure in (
        anchor_figures.draw_proposals(picture_of(size), box, score, ['kept'], ['P2']),
        anchor_figures.draw_roi_levels(picture_of(size), ['P2', 'P3'], box, np.zeros(1, int)),
        detection_figures.draw_refinement(picture_of(size), box, inside, ['cat']),
    ):
        panels = [axes for axes in figure.axes if len(drawn_boxes(axes))]
        assert panels
        for axes in panels:
            assert axes.get_xlim()[1] > box[0, 3] and axes.get_ylim()[0] > box[0, 2]


def test_backdrops_are_dark_and_show_dark_pictures():
    dark = np.random.RandomState(0).randint(0, 20, (50, 50, 3)).astype(np.uint8)
    for picture in (dark, picture_of((50, 50)), np.full((5, 5, 3), 255, np.uint8)):
        assert darken(picture).max() <= 140
    assert np.ptp(darken(dark)) > 40
    assert brighten(dark).max() > 150
    bright = picture_of((50, 50))
    assert brighten(bright) is bright


def step_figures(n, size):
    """Return every figure of the steps with ``n`` boxes, and its number of visible axes without colour bars."""
    picture, boxes, scores = picture_of(size), random_boxes(n, size), np.linspace(1, 0.01, n)
    names, other = ['P2', 'P3'], random_boxes(n, size, seed=2)
    texts = [f'cat {score:.2f}' for score in scores]
    outcomes = [('kept', 'suppressed', 'invalid', 'beyond the limit')[i % 4] for i in range(n)]
    classes = [(('cat', 0.7), ('background', 0.3))] * n
    return {
        'anchors': (
            anchor_figures.draw_anchors(picture, names, [boxes, other], [scores] * 2, [random_boxes(3, size)] * 2),
            3,
        ),
        'proposals': (
            anchor_figures.draw_proposals(picture, boxes, scores, outcomes, [names[i % 2] for i in range(n)]),
            4,
        ),
        'rois': (anchor_figures.draw_roi_levels(picture, names, boxes, np.arange(n) % 2), 3),
        'classes': (detection_figures.draw_class_scores(picture, boxes[:10], classes[:10], texts[:10]), 2 * min(n, 10)),
        'refinement': (detection_figures.draw_refinement(picture, boxes, other, texts, total=n + 5), 1),
        'suppression': (
            detection_figures.draw_suppression(picture, boxes, other, np.arange(n), texts, total=n),
            2,
        ),
    }


@pytest.mark.parametrize(
    ('n', 'size'), [(0, SIZES[0]), (1, SIZES[1]), pytest.param(100, SIZES[0], marks=pytest.mark.slow)]
)
def test_every_number_of_boxes_can_be_drawn(n, size):
    for name, (figure, n_panels) in step_figures(n, size).items():
        panels = [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != '<colorbar>']
        assert len(panels) == n_panels, name
        limits = {'anchors': 20, 'proposals': 40, 'rois': 40}
        for axes in panels if name in limits else []:
            assert len(drawn_boxes(axes)) <= limits[name]


def test_proposals_are_divided_by_their_outcomes():
    size = (100, 80)
    boxes = random_boxes(6, size)
    outcomes = ['kept', 'suppressed', 'kept', 'invalid', 'beyond the limit', 'kept']
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    figure = anchor_figures.draw_proposals(picture_of(size), boxes, scores, outcomes, ['P2'] * 5 + ['P3'], n=5)
    before, after, fates, bars = figure.axes[:4]
    np.testing.assert_allclose(drawn_boxes(before), boxes[[5, 4, 3, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(drawn_boxes(after), boxes[[5, 2, 0]], rtol=1e-6)
    np.testing.assert_allclose(drawn_boxes(fates, 'solid'), boxes[[5, 2]], rtol=1e-6)
    np.testing.assert_allclose(drawn_boxes(fates, 'dotted'), boxes[[3]], rtol=1e-6)
    assert [text.get_text() for text in bars.texts] == ['5', '1']
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        'kept: 3',
        'suppressed: 1',
        'beyond the limit: 1',
        'invalid: 1',
    ]


def test_refined_boxes_are_solid_and_have_arrows():
    size = (100, 80)
    before = random_boxes(4, size)
    after = before + np.float32([6, 4, 6, 4])
    figure = detection_figures.draw_refinement(picture_of(size), before, after, list('abcd'), total=9)
    (axes,) = figure.axes
    np.testing.assert_allclose(drawn_boxes(axes, 'dotted'), before, rtol=1e-6)
    np.testing.assert_allclose(drawn_boxes(axes, 'solid'), after, rtol=1e-6)
    ends = np.array([tip(arrow) for arrow in arrows(axes)])
    np.testing.assert_allclose(ends, ((after[:, :2] + after[:, 2:]) / 2)[:, ::-1], atol=0.5)
    assert '4 of 9' in axes.get_title()


def test_suppressed_boxes_have_the_colour_of_their_suppressor():
    size = (100, 80)
    kept, suppressed = random_boxes(2, size), random_boxes(3, size, seed=3)
    figure = detection_figures.draw_suppression(picture_of(size), kept, suppressed, np.array([1, 0, 1]), ['a', 'b'])
    first, second = figure.axes
    colors = second.collections[0].get_edgecolor()[::-1]
    np.testing.assert_allclose(first.collections[0].get_edgecolor()[::-1], colors[[1, 0, 1]])
    assert (colors[0] != colors[1]).any()
    np.testing.assert_allclose(drawn_boxes(second, 'solid'), kept, rtol=1e-6)
    assert len(drawn_boxes(first, 'thin')) == 5 and '5 boxes' in first.get_title()


def test_the_origin_of_a_detection_has_one_sign_for_each_box():
    size = (800, 1333)
    anchor, proposal, box = random_boxes(3, size)
    rivals = random_boxes(40, size, seed=5)
    classes = ('cat', 0.9), ('background', 0.1)
    figure = reason_figures.draw_origin(picture_of(size), anchor, proposal, box, rivals, classes, text='cat 0.90')
    _, axes, bars = figure.axes
    for sign, boxes in (('dashed', anchor), ('dotted', proposal), ('solid', box)):
        np.testing.assert_allclose(drawn_boxes(axes, sign), boxes[None], rtol=1e-5)
    np.testing.assert_allclose(drawn_boxes(axes, 'thin'), rivals[:30], rtol=1e-5)
    assert len(arrows(axes)) == 2 and [bar.get_width() for bar in bars.patches] == [0.9, 0.1]
    assert 'the best 30 of 40' in figure.legends[0].get_texts()[-1].get_text()


@pytest.mark.parametrize(('lost', 'best'), [(1, True), (2, False), (3, True)])
def test_the_step_that_loses_an_object_is_marked(lost, best):
    size = (100, 80)
    box, other = random_boxes(2, size)
    counts = [('anchors', 1000, 0.9), ('proposals', 3 * (lost > 1), 0.7), ('detections', lost > 2, 0.2)]
    figure = reason_figures.draw_rejection(
        picture_of(size), box, other if best else None, counts, lost, text='expected cat'
    )
    _, axes, bars = figure.axes
    np.testing.assert_allclose(drawn_boxes(axes, 'solid'), box[None], rtol=1e-5)
    assert len(drawn_boxes(axes, 'dashed')) == best and not len(drawn_boxes(axes, 'dotted'))
    is_bold = [label.get_fontweight() == 'bold' for label in bars.get_yticklabels()]
    assert is_bold == [row == lost for row in range(3)]
    lengths = [bar.get_width() for bar in bars.patches]
    assert lengths[0] == pytest.approx(np.log10(1001)) and (lengths[1] == 0) == (lost == 1)
    figure.draw_without_rendering()
    for text, bar in zip(bars.texts, bars.patches, strict=True):
        assert text.get_window_extent().x0 > bar.get_window_extent().x1


def test_the_input_has_a_frame_around_the_resized_image():
    figure = feature_figures.draw_input(picture_of((50, 100)), picture_of((128, 128)), np.array([32, 0, 96, 128]))
    left, right = figure.axes
    assert '100 x 50' in left.get_title() and '128 x 128' in right.get_title()
    np.testing.assert_allclose(drawn_boxes(right), [[32, 0, 96, 128]])


@pytest.mark.parametrize('turned', [False, True])
def test_the_titles_and_ticks_of_narrow_inputs_have_room(turned):
    sizes = [size[::-1] if turned else size for size in ((2000, 30), (384, 32))]
    figure = feature_figures.draw_input(*map(picture_of, sizes), np.array([0, 0, *sizes[1]]))
    figure.draw_without_rendering()
    extents = [axes.title.get_window_extent() for axes in figure.axes]
    assert extents[0].x0 >= 0 and extents[0].x1 < extents[1].x0 and extents[1].x1 <= figure.bbox.x1
    for axes in figure.axes:
        short, long = (axes.yaxis, axes.xaxis) if turned else (axes.xaxis, axes.yaxis)
        assert len(long.get_ticklabels()) >= 2 and not len(short.get_ticklabels())


def test_the_channels_with_the_highest_variance_are_drawn():
    array = np.random.RandomState(0).rand(30, 6, 8).astype(np.float32)
    array *= 0.1
    array[[3, 17, 29]] *= 10
    figure = feature_figures.draw_channels(array, n=3)
    assert [axes.get_title() for axes in figure.axes] == ['3', '17', '29']
    for axes, channel in zip(figure.axes, (3, 17, 29), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), array[channel])
    bars = feature_figures.draw_channels(np.arange(5.0)).axes[0].patches
    assert [bar.get_height() for bar in bars] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('n_levels', [1, 5])
def test_the_mean_and_the_maximum_of_each_feature_map_are_drawn(n_levels):
    features = [np.random.RandomState(i).rand(4, 6, 8).astype(np.float32) for i in range(n_levels)]
    figure = feature_figures.draw_feature_maps([f'P{i}' for i in range(n_levels)], features)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [array.mean(axis=0) for array in features] + [array.max(axis=0) for array in features]
    assert len(shown) == 2 * n_levels
    for values in expected:
        assert any(np.allclose(values, other) for other in shown)


def test_masks_have_the_contour_of_the_threshold():
    size, probs = (100, 80), np.zeros((2, 4, 4), np.float32)
    probs[0, :2] = 0.9
    mask = np.zeros(size, bool)
    mask[20:40, 30:50] = True
    boxes = np.array([[20, 30, 40, 50], [50, 50, 60, 60]], np.float32)
    figure = feature_figures.draw_masks(
        picture_of(size), boxes, probs, [mask, np.zeros(size, bool)], ['a', 'b'], threshold=0.45
    )
    grid, pasted, empty = figure.axes[:3]
    np.testing.assert_array_equal(grid.images[0].get_array(), probs[0])
    (contour,) = [c for c in grid.collections if c.get_gid() is None]
    # linear between the centres of rows 1 and 2, where the probability falls from 0.9 to 0
    np.testing.assert_allclose(contour.get_paths()[0].vertices[:, 1], 2.0)
    (contour,) = [c for c in pasted.collections if c.get_gid() is None]
    np.testing.assert_allclose(contour.get_paths()[0].get_extents().extents, [30, 20, 50, 40])
    assert not empty.collections
    assert encode_figure(figure)[:4] == b'\x89PNG'


def test_keypoints_are_marked_on_their_heat_maps():
    size, box = (100, 80), np.array([10, 20, 50, 60], np.float32)
    heatmaps = np.random.RandomState(0).rand(3, 8, 8).astype(np.float32)
    points = np.array([[12, 22], [30, 40], [49, 59]], np.float32)
    figure = feature_figures.draw_heatmaps(
        picture_of(size), box, heatmaps, points, ['nose', 'eye', 'ear'], np.array([True, False, True]), text='person'
    )
    panels = figure.axes[1:4]
    assert [axes.get_title() for axes in panels] == ['nose', '(eye)', 'ear']
    for axes, heatmap, point in zip(panels, heatmaps, points, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), heatmap)
        assert axes.images[0].get_extent() == [20, 60, 50, 10]
        np.testing.assert_allclose(np.ravel(axes.lines[0].get_data()), point[::-1])
