"""The report of an analysis contains its sections and its numbers."""

import re

import numpy as np
import pytest

from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.evaluation import COCOEvaluator
from mask_rcnn.evaluation.analysis import analyse
from mask_rcnn.evaluation.analysis.report import make_report
from mask_rcnn.evaluation.analysis.report_images import add_worst_images
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.visualization import html_report
from mask_rcnn.visualization.html_report import Report
from tests.evaluation.test_coco_metrics import noisy
from tests.support.box_evaluation import SIZE, box_evaluator
from tests.visualization.test_html_report import Elements

SECTIONS = [
    'Summary',
    'Precision and recall',
    'Object sizes',
    'Classes',
    'Confused classes',
    'Kinds of errors',
    'Worst images',
]


def read_image(image_id):
    return np.zeros((64, 64, 3), np.uint8), f'{image_id}.png'


def headings(document):
    return re.findall(r'<h2[^>]*>([^<]*)</h2>', document)


def rows(document):
    """Return the cells of all rows of all tables."""
    found = re.findall(r'<tr>(.*?)</tr>', document)
    return [re.findall(r'<t[hd][^>]*>([^<]*)</t[hd]>', row) for row in found]


def describe_images(evaluator, read=read_image):
    """Return the section of the worst images."""
    report = Report('title')
    add_worst_images(report, analyse(evaluator), read)
    return report.to_html()


@pytest.fixture(scope='module')
def shapes_evaluator():
    rng, shapes = np.random.RandomState(0), ShapesDataset(4, size=64)
    evaluator = COCOEvaluator(shapes.ground_truth(), class_names=shapes.class_names, category_ids=shapes.category_ids)
    for example in shapes:
        detections = noisy(example.annotations, (64, 64), rng)
        detections.labels %= 3
        evaluator.add(example.image_id, detections)
    return evaluator


def test_sections_and_numbers(shapes_evaluator, tmp_path):
    """The tables contain what ``mask-rcnn evaluate`` prints."""
    analysis = analyse(shapes_evaluator, n_worst=2)
    report = make_report(analysis, read_image, title='Evaluation of <m>', details=[('model', 'm & n.npz')])
    report.write(tmp_path / 'report.html')
    document = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert headings(document) == SECTIONS
    assert '<h1>Evaluation of &lt;m&gt;</h1>' in document and '<td>m &amp; n.npz</td>' in document
    cells = rows(document)
    printed = [re.split(r'\s{2,}', line.strip()) for line in analysis.metrics.table().splitlines()]
    header, boxes, masks = printed[:3]
    assert ['', *header] in cells
    for line in (boxes, masks):
        assert line in cells
    # Name, objects, box AP, mask AP.
    by_name = {
        row[0]: row[2:]
        for row in cells
        if row[0] in ('square', 'circle', 'triangle') and len(row) == 4 and row[1].isdigit()
    }
    assert by_name == {row[0]: row[1:] for row in printed[5:]}
    for kind in analysis.kinds:
        for item in (*kind.costs.kinds, *kind.costs.totals):
            assert any(str(item.count) in row and f'+{100 * item.cost:.1f}' in row for row in cells)
    # Curves, curves of classes, sizes, recall, classes, confusions, errors, two images; each has its explanation.
    captions = re.findall(r'<figcaption>([^<]*)</figcaption>', document)
    assert len(captions) == 9 and all(len(caption.split()) >= 8 for caption in captions)
    worst = analysis.worst_images[0]
    assert captions[7].startswith(f'1. {worst.image_id}.png: costs {100 * worst.loss:.2f} points of AP50')
    assert f'{worst.n_detected} of {counted(worst.n_objects, "object")} detected' in captions[7]


def test_hidden_false_positives_are_counted():
    box, first, second = (0, 0, 100, 100), (300, 200, 50, 50), (300, 0, 50, 50)
    detections = [(1, 0, first, 0.9), (1, 0, second, 0.4), (1, 0, box, 0.3)]
    document = describe_images(box_evaluator([(1, 0, box)], detections))
    assert '1 of 1 object detected; false positives: 2 background (1 of them with a score of at most 0.5)' in document
    # Before the last true positive there is none.
    assert 'No image has an error that lowers AP50.' in describe_images(
        box_evaluator([(1, 0, box)], [(1, 0, box, 0.9), *detections[1:2]])
    )


def test_objects_that_were_not_found_are_listed_with_their_boxes():
    """One is found, one is detected with a wrong class, one is missed, and a crowd does not count."""
    found, confused, missed, crowd = (0, 0, 50, 50), (100, 0, 40, 30), (300, 200, 50, 25), (0, 300, 60, 60)
    objects = [(1, 0, found), (1, 0, confused), (1, 1, missed), (1, 1, crowd, 'crowd')]
    document = describe_images(box_evaluator(objects, [(1, 0, found, 0.9), (1, 1, confused, 0.8)], n_classes=2))
    header, *lost = rows(document)
    assert header == ['class', 'box x0,y0,x1,y1', 'error']
    names = box_evaluator([], [], n_classes=2).class_names
    assert lost == [[names[0], '100,0,140,30', 'wrong class'], [names[1], '300,200,350,225', 'missed']]


def test_the_list_of_lost_objects_is_limited():
    objects = [(1, 0, (10 * i, 0, 8, 8)) for i in range(13)]
    document = describe_images(box_evaluator(objects, []))
    assert len(rows(document)) == 1 + 10 and '3 other objects are not listed.' in document


@pytest.mark.parametrize('error', [ImageFileError('1.png', 'is gone'), FileNotFoundError(2, 'is gone', '1.png')])
def test_an_image_that_cannot_be_read_is_named(error):
    def fail(image_id):
        raise error

    document = describe_images(box_evaluator([(1, 0, (0, 0, 100, 100))], []), fail)
    assert '1.png' in document and 'is gone' in document and headings(document) == SECTIONS[-1:]


@pytest.mark.parametrize(('objects', 'detections'), [([], []), ([], [0]), ([0], [])])
def test_reports_without_objects_or_detections(objects, detections):
    box = (0, 0, 100, 100)
    evaluator = box_evaluator([(1, 0, box) for _ in objects], [(1, 0, box, 0.9) for _ in detections])
    document = make_report(analyse(evaluator), read_image, title='t').to_html()
    assert headings(document) == (SECTIONS if objects else SECTIONS[:1]) and 'nan' not in Elements(document).texts
    assert ('The ground truth has no objects' in document) != bool(objects)


def test_many_classes_are_limited(monkeypatch):
    """40 classes: the worst and the best ones are in the figures and the table, and the text states it."""
    monkeypatch.setattr(html_report, 'encode_figure', lambda figure: b'')  # which takes seconds
    objects = [(1, k, (20 * k, 0, 10, 10)) for k in range(40)]
    detections = [(1, k, (20 * k, 0, 10, 10 if k < 35 else 6), 0.9) for k in range(40)]
    evaluator = box_evaluator(objects, detections, n_classes=40)
    document = make_report(
        analyse(evaluator), lambda i: (np.zeros((SIZE, SIZE, 3), np.uint8), 'a'), title='t'
    ).to_html()
    assert 'Of 40 classes with objects, the 15 with the lowest and the 15 with the highest AP.' in document
    assert 'Of 40 classes with objects, the 12 with the lowest and the 12 with the highest AP.' in document
    assert 'The 24 classes that are confused most.' in document
    names = [row[0] for row in rows(document) if row[0].startswith('class ')]
    assert len(names) == 30 and names[:5] == [f'class {k}' for k in range(35, 40)]


def test_odd_class_names_are_written(recwarn):
    """Names that are formulas of Matplotlib, HTML, or in a script that its font lacks."""
    evaluator = box_evaluator([(1, 0, (0, 0, 100, 100)), (1, 1, (200, 0, 100, 100))], [], n_classes=2)
    evaluator.class_names = ('$\\broken{ <b>', '魚')
    document = make_report(analyse(evaluator), read_image, title='t').to_html()
    assert '$\\broken{ &lt;b&gt;' in document and '<b>' not in document
    assert not [warning for warning in recwarn if 'Glyph' in str(warning.message)]
