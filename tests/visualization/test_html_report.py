"""Reports contain their pictures, request nothing and escape all texts."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.visualization.figures import encode_figure, new_figure
from mask_rcnn.visualization.html_report import Report

HOSTILE = '<script src="http://example.org/x.js"></script>&"\''


class Elements(HTMLParser):
    """The elements of a document: (tag, attributes), and its texts."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def picture_of(document):
    """Return the first picture of a document, BGR."""
    data = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', document)[1]
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


def test_texts_are_escaped_and_nothing_is_requested():
    report = Report(HOSTILE)
    report.add_heading(HOSTILE)
    report.add_heading(HOSTILE, level=3)
    report.add_text(HOSTILE)
    report.add_table([HOSTILE], [[HOSTILE]])
    report.add_figure(np.zeros((4, 5, 3), np.uint8), HOSTILE)
    elements = Elements(report.to_html())
    assert elements.texts.count(HOSTILE) == 9  # title, h1, contents, h2, h3, p, th, td, caption
    assert not [tag for tag, _ in elements.tags if tag in ('script', 'link', 'iframe', 'object')]
    for _, attributes in elements.tags:
        for name in ('src', 'href'):
            assert attributes.get(name, '#').startswith(('#', 'data:image/'))
    policy = next(a['content'] for tag, a in elements.tags if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and 'script' not in policy


def test_links_of_the_contents_lead_to_the_headings():
    report = Report('title')
    for text in ('first', 'second'):
        report.add_heading(text)
    elements = Elements(report.to_html())
    links = [a['href'][1:] for tag, a in elements.tags if tag == 'a']
    assert links == [a['id'] for tag, a in elements.tags if tag == 'h2'] and len(set(links)) == 2


def test_numbers_are_aligned_and_rounded():
    report = Report('title')
    report.add_table(['name', 'value', 'mixed'], [['a', 1.23456, 1], ['b', np.float32(1e-7), '-']])
    elements = Elements(report.to_html())
    cells = [a.get('class') for tag, a in elements.tags if tag == 'td']
    assert cells == [None, 'number', None] * 2
    assert {'1.235', '1e-07', '1', '-'} <= set(elements.texts)


def test_numbers_as_texts_are_aligned():
    report = Report('title')
    report.add_table(['a', 'b', 'c'], [['12.0', '+0.3', '1.5 %'], ['-1', '7', '2.5']])
    cells = [a.get('class') for tag, a in Elements(report.to_html()).tags if tag == 'td']
    assert cells == ['number', 'number', None] * 2


def test_pictures_and_figures_are_embedded():
    picture = np.zeros((90, 3200, 3), np.uint8)
    picture[..., 0] = 200  # red
    report = Report('title')
    report.add_figure(picture, 'a wide picture')
    decoded = picture_of(report.to_html())
    assert decoded.shape == (45, 1600, 3)
    np.testing.assert_allclose(decoded.mean((0, 1)), [0, 0, 200], atol=3)
    report = Report('title')
    report.add_figure(new_figure(2, 1)[0], 'a figure')
    assert picture_of(report.to_html()).shape == (120, 240, 3)


def test_figures_that_contain_photos_are_stored_as_jpeg():
    figure, axes = new_figure(8, 6)
    axes[0, 0].imshow(np.random.RandomState(0).randint(0, 256, (600, 800, 3)).astype(np.uint8))
    report = Report('title')
    report.add_figure(figure, 'noise')
    document = report.to_html()
    assert 'data:image/jpeg' in document and 'data:image/png' not in document
    assert picture_of(document).shape == (720, 960, 3)
    assert len(document) < 1.5 * len(encode_figure(figure))


def test_a_report_is_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / 'report.html'
    report = Report('title')
    report.add_text('lone surrogate \udc80')
    report.write(path)
    assert path.read_text(encoding='utf-8').endswith('</html>\n')
    with pytest.raises(FileError):
        report.write(tmp_path / 'no' / 'such' / 'folder.html')
    assert list(tmp_path.iterdir()) == [path]
