"""Figures and reports of traces: they show the rows of the tables, for every kind of network."""

import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inspect import Fate, figures, report, trace, why, why_not
from mask_rcnn.inspect.reasons import Step
from mask_rcnn.visualization import html_report
from tests.inspect.networks import bundled_model, make_network, scripted_network
from tests.visualization.test_html_report import Elements
from tests.visualization.test_step_figures import drawn_boxes

SECTIONS = [
    'Overview',
    'Input',
    'Backbone and feature maps',
    'Anchors',
    'Proposals',
    'Regions of interest',
    'Classification',
    'Box refinement',
    'Detections',
    'Masks',
    'Origins of the best detections',
]


@pytest.fixture(scope='module')
def scene():
    (example,) = RichShapesDataset(1, size=512, seed=2_000_016)
    return example.image.transpose(1, 2, 0).astype(np.uint8)


@pytest.fixture(scope='module')
def steps(root, scene):
    return trace(bundled_model(root), scene, layers=['extractor/body/conv0', 'box_head/fc6', 'mask_head/deconv'])


@pytest.fixture(scope='module')
def keypoint_model():
    return make_network('keypoints')


@pytest.fixture
def without_rendering(monkeypatch):
    """Leave out the pictures of reports, which take most of the time."""
    monkeypatch.setattr(html_report, '_encode', lambda picture: ('png', b''))
    monkeypatch.setattr(Figure, 'draw_without_rendering', lambda figure: None)
    monkeypatch.setattr(report, 'MAX_REASONS', 2)


def test_the_modules_are_imported_on_first_use():
    code = """import sys, mask_rcnn
assert not {'mask_rcnn.inspect.figures', 'mask_rcnn.inspect.tables'} & {*sys.modules}
assert {'figures', 'tables'} < {*dir(mask_rcnn.inspect)}
mask_rcnn.inspect.figures.draw_why, mask_rcnn.inspect.tables.Anchors"""
    subprocess.run([sys.executable, '-c', code], check=True)


def sections(document):
    """Return the titles of the sections of a report."""
    return re.findall('<h2[^>]*>([^<]*)</h2>', document)


def boxes_in(axes, sign=None):
    """Return the drawn boxes from first to last pixel; they are drawn to the outer corners of the last one."""
    return drawn_boxes(axes, sign) - (0, 0, 1, 1)


def corners_in_image(boxes):
    """Return boxes of the network input of 192 x 192 pixels in the image of 512 x 512."""
    return (boxes + (0, 0, 1, 1)) * (512 / 192)


def test_anchors_of_each_level_are_the_best(steps):
    panels = figures.draw_anchors(steps, n=3).axes[1:]
    for level, axes in zip(range(5), panels, strict=False):
        rows = np.flatnonzero(steps.anchors.levels == level)
        best = rows[np.argsort(-steps.anchors.scores[rows], kind='stable')[:3]]
        np.testing.assert_allclose(drawn_boxes(axes), corners_in_image(steps.anchors.boxes[best]), rtol=1e-5, atol=1e-4)


def test_objectness_maps_lie_over_the_anchors(steps):
    figure = figures.draw_objectness(steps)
    scores = steps.probabilities(steps.anchors.scores)
    factor = 512 / 192  # pixels of the image per pixel of the network input
    for level, stride in enumerate(steps.strides):
        colors, (left, right, bottom, top) = (
            figure.axes[1 + level].images[1].get_array(),
            figure.axes[1 + level].images[1].get_extent(),
        )
        side = 192 // stride
        assert colors.shape[:2] == (side, side)
        np.testing.assert_allclose([left, top, right, bottom], [0, 0, factor * 192, factor * 192])
        best = scores[steps.anchors.levels == level].reshape(side, side, 3).max(axis=2)
        np.testing.assert_allclose(colors[..., 3], 0.1 + 0.75 * best, rtol=1e-6)


def test_proposals_and_rois_are_those_of_the_trace(steps):
    before, after, _, bars = figures.draw_proposals(steps, n=10).axes[:4]
    order = np.argsort(-steps.proposals.scores, kind='stable')
    kept = order[steps.proposals.fates[order] == Fate.KEPT]
    for axes, rows in ((before, order[:10]), (after, kept[:10])):
        np.testing.assert_allclose(
            drawn_boxes(axes), corners_in_image(steps.proposals.boxes[rows]), rtol=1e-5, atol=1e-4
        )
    assert [int(text.get_text()) for text in bars.texts] == np.bincount(steps.proposals.levels).tolist()
    panels = [axes for axes in figures.draw_roi_levels(steps, n=5).axes if axes.get_visible()]
    assert [axes.get_title().split(':')[0] for axes in panels[1:]] == ['P2', 'P3', 'P4', 'P5']
    rows = np.flatnonzero(steps.rois.levels == 1)[:5]
    np.testing.assert_allclose(drawn_boxes(panels[2]), corners_in_image(steps.rois.boxes[rows]), rtol=1e-5, atol=1e-4)
    assert sum(int(bar.get_height()) for bars in panels[0].containers for bar in bars) == len(steps.rois)


def test_bars_are_the_probabilities_of_the_roi(steps):
    panels = figures.draw_class_scores(steps, n=2, n_rejected=1).axes[1::2]
    rois = steps.candidates.rois[steps.candidate_of_detection[:2]]
    for axes, roi in zip(panels, rois.tolist(), strict=False):
        best = np.sort(steps.rois.probs[roi])[::-1][:5]
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], best)
    rejected = steps.rois.probs[int(panels[2].get_title(loc='left').split()[1].rstrip(':'))]
    assert 0 < rejected[1:].max() <= steps.config.score_threshold


def test_refinement_nms_and_origins_are_those_of_the_trace(steps):
    (axes,) = figures.draw_refinement(steps, n=4).axes
    kept = steps.candidate_of_detection[:4]
    rois = corners_in_image(steps.rois.boxes[steps.candidates.rois[kept]])
    np.testing.assert_allclose(drawn_boxes(axes, 'dotted'), rois, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(boxes_in(axes, 'solid'), steps.detections.boxes[:4], rtol=1e-5)
    before, after = figures.draw_detection_nms(steps, n=4).axes
    involved = [*kept, *np.flatnonzero(np.isin(steps.candidates.suppressed_by, kept))]
    for axes, rows in ((before, involved), (after, kept)):
        boxes = steps.candidates.boxes[rows]
        np.testing.assert_allclose(np.sort(boxes_in(axes), axis=0), np.sort(boxes, axis=0), rtol=1e-5, atol=1e-4)
    origin = why(steps, 1)
    axes = figures.draw_why(steps, 1).axes[1]
    assert len(origin.suppressed)
    np.testing.assert_allclose(boxes_in(axes, 'thin')[0], steps.candidates.boxes[origin.suppressed[0]], rtol=1e-5)
    for sign, box in (('dashed', steps.anchors.boxes[origin.anchor]), ('dotted', steps.rois.boxes[origin.roi])):
        np.testing.assert_allclose(drawn_boxes(axes, sign), corners_in_image(box[None]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(boxes_in(axes, 'solid'), origin.box[None], rtol=1e-4, atol=1e-4)


def test_boxes_of_coordinates_end_where_they_are_drawn():
    """Only the boxes of a dialect in which corners are pixels are drawn to the outer corners of the last pixels."""
    steps = trace(make_network('dena'), np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8))
    (axes,) = figures.draw_refinement(steps, n=4).axes
    np.testing.assert_allclose(drawn_boxes(axes, 'solid'), steps.detections.boxes[:4], rtol=1e-5, atol=1e-4)


def test_masks_and_activations_are_those_of_the_trace(steps):
    panels = figures.draw_masks(steps, n=2).axes
    for i in range(2):
        np.testing.assert_array_equal(panels[2 * i].images[0].get_array(), steps.detections.mask_probs[i])
        np.testing.assert_allclose(boxes_in(panels[2 * i + 1]), steps.detections.boxes[[i]], rtol=1e-5)
    axes = figures.draw_activations(steps, 'extractor/body/conv0', n=32).axes
    for channel in range(32):
        values = steps.activations['extractor/body/conv0'][0][0, channel]
        np.testing.assert_array_equal(axes[channel].images[0].get_array(), values)
    (axes,) = figures.draw_activations(steps, 'box_head/fc6', index=7).axes
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes.patches], steps.activations['box_head/fc6'][0][7], rtol=1e-6
    )
    assert 'detection 2 of' in figures.draw_activations(steps, 'mask_head/deconv', index=2)._suptitle.get_text()
    with pytest.raises(ValueError, match='does not contain the layer'):
        figures.draw_activations(steps, 'rpn')


#: Arguments of a scripted network, and the step that loses its object.
LOSSES = {
    Step.ANCHORS: {'logits': {(4, 4): 5}, 'deltas': {(r, c): (0, 0, 2, 2) for r in range(8) for c in range(8)}},
    Step.CLASSIFICATION: {'logits': {(4, 4): 5}},
    Step.DETECTED: {'logits': {(4, 4): 5}, 'scores': {0: (0.1, 0.9, 0)}},
    Step.PROPOSAL_LIMIT: {'logits': {(4, 4): 1, (0, 0): 5}, 'rpn_post_nms': 1},
    Step.OBJECTNESS: {'logits': {(4, 4): 1, (0, 0): 5}, 'rpn_pre_nms': 1},
}


@pytest.mark.parametrize('step', LOSSES)
def test_the_best_box_of_the_step_is_drawn(step):
    model = scripted_network(**LOSSES[step])
    steps = trace(model, np.zeros((128, 128, 3), np.uint8))
    box = steps.in_image(steps.anchors.boxes[[36]])[0]  # row 4, column 4
    assert why_not(steps, box, 'cat').step is step
    _, axes, bars = figures.draw_why_not(steps, box, 'cat').axes
    np.testing.assert_allclose(boxes_in(axes, 'solid'), box[None], rtol=1e-5)
    (best,) = boxes_in(axes, 'dashed')
    if step is not Step.ANCHORS:
        np.testing.assert_allclose(best, box, atol=1.01)
    is_bold = [label.get_fontweight() == 'bold' for label in bars.get_yticklabels()]
    counts = [text.get_text() for text in bars.texts]
    assert sum(is_bold) == (step is not Step.DETECTED)
    assert step is Step.DETECTED or counts[is_bold.index(True)].startswith('0,')


@pytest.mark.parametrize(('step', 'shift'), [(Step.PROPOSAL_NMS, 4.6), (Step.DETECTION_NMS, 8.0)])
def test_the_suppressing_box_is_drawn(step, shift):
    """It is the proposal of the next column, moved until it differs from the anchor by ``shift`` rows."""
    cat, other = (0.1, 0.8, 0.1), (0.05, 0.9, 0.05)
    scores = {0: cat} if step is Step.PROPOSAL_NMS else {0: other, 1: cat}
    model = scripted_network(
        {(4, 4): 4, (4, 5): 5}, deltas={(4, 5): (shift / 32, -0.5, 0, 0)}, scores=scores, nms_threshold=0.5
    )
    steps = trace(model, np.zeros((128, 128, 3), np.uint8))
    box = steps.in_image(steps.anchors.boxes[[36]])[0]
    rejection = why_not(steps, box, 'cat', min_iou=0.9)
    assert rejection.step is step
    axes = figures.draw_rejection(steps, rejection).axes[1]
    np.testing.assert_allclose(boxes_in(axes, 'dotted'), [box + (shift, 0, shift, 0)], atol=0.5)


def test_keypoints_are_drawn_at_their_places(keypoint_model):
    steps = trace(keypoint_model, np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8))
    panels = figures.draw_keypoints(steps, 1).axes[1:18]
    points = steps.detections.keypoints[1, :, 1::-1]
    np.testing.assert_allclose([np.ravel(axes.lines[0].get_data()) for axes in panels], points)
    with pytest.raises(IndexError, match='there are'):
        figures.draw_keypoints(steps, 99)
    with pytest.raises(ValueError, match=r'^the network has no mask head$'):
        figures.draw_masks(steps)


def test_there_are_no_masks_without_detections():
    steps = trace(scripted_network(logits={}), np.zeros((128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match=r'^the network detects nothing in this image$'):
        figures.draw_masks(steps)


def test_pictures_of_detections_are_large_enough(keypoint_model):
    image = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    steps = trace(keypoint_model, image)
    assert figures.draw_detections(steps).shape == (420, 560, 3)
    empty = figures.draw_detections(steps, min_score=1.0)
    np.testing.assert_array_equal(empty[3::7, 3::7], image)


def test_the_report_has_every_section(steps, without_rendering):
    document = report.make_report(steps, 'scene').to_html()
    elements, titles = Elements(document), sections(document)
    layers = [f'Layer {name}' for name in ('extractor/body/conv0', 'box_head/fc6', 'mask_head/deconv')]
    assert titles == [*SECTIONS[:-1], *layers, SECTIONS[-1]]
    text = ' '.join(elements.texts)
    for value in (len(steps.anchors), len(steps.proposals), len(steps.rois), len(steps.candidates)):
        assert f' {value} ' in ' '.join(text.split())
    assert sum(tag == 'h3' for tag, _ in elements.tags) == 2
    assert f'{len(steps.detections) - 2} other detections are not shown.' in text
    assert 'A map that differs only at its border contains little information' in text


@pytest.mark.slow
@pytest.mark.parametrize('name', ['c4', 'matterport', 'keypoints'])
@pytest.mark.parametrize('detects', [False, True])
def test_reports_of_all_networks(name, detects, keypoint_model, without_rendering):
    model = keypoint_model if name == 'keypoints' else make_network(name)
    threshold = model.config.score_threshold
    model.set_thresholds(score=threshold if detects else 1.0)
    image = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    steps = trace(model, image)
    model.set_thresholds(score=threshold)
    assert (len(steps.detections) > 0) == detects
    document = report.make_report(steps, name).to_html()
    assert sections(document) == [
        title if name != 'keypoints' or title != 'Masks' else 'Keypoints' for title in SECTIONS
    ]
    assert ('There are no detections.' in document) != detects
    assert (f'{len(steps.detections)} detections: ' in document) == detects
    n_classes = model.config.n_fg_class
    assert f', {n_classes} {"class" if n_classes == 1 else "classes"}<' in document


@pytest.mark.slow
def test_the_file_of_a_report(steps, tmp_path):
    path = tmp_path / 'report.html'
    report.make_report(steps, 'scene').write(path)
    assert 5e5 < path.stat().st_size < 1e7
    elements = Elements(path.read_text(encoding='utf-8'))
    sources = [attributes['src'] for tag, attributes in elements.tags if tag == 'img']
    assert len(sources) > 20 and all(source.startswith('data:image/') for source in sources)


@pytest.mark.parametrize(
    'name',
    [
        r'$\frac$',
        pytest.param('a name that is much too long for the labels of a figure', marks=pytest.mark.slow),
    ],
)
def test_class_names_are_no_formulas_and_not_too_long(name):
    model = scripted_network(logits={(4, 4): 5}, scores={0: (0.1, 0.9, 0)})
    model.class_names = (name, 'dog')
    steps = trace(model, np.zeros((128, 128, 3), np.uint8))
    drawn = [figures.draw_why(steps, 0), figures.draw_why_not(steps, (1, 1, 9, 9), name)]
    drawn += [figures.draw_class_scores(steps), figures.draw_refinement(steps), figures.draw_masks(steps)]
    for figure in drawn:
        figure.draw_without_rendering()
        assert all(len(text.get_text()) < 60 for text in figure.findobj(Text))
