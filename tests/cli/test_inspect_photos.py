"""``mask-rcnn inspect image`` and ``inspect why``: their outputs, and errors as one line."""

import re

import cv2
import numpy as np
import pytest

from mask_rcnn.cli import main
from mask_rcnn.cli.inspect import image, photos
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inspect import Step, trace, why, why_not
from mask_rcnn.visualization import html_report
from tests.inspect.networks import bundled_model


@pytest.fixture(scope='module')
def model(root):
    return bundled_model(root)


@pytest.fixture(scope='module')
def scene():
    (example,) = RichShapesDataset(1, size=192, seed=2_000_016)
    return example.image.transpose(1, 2, 0).astype(np.uint8)


@pytest.fixture(scope='module')
def steps(model, scene):
    return trace(model, scene)


@pytest.fixture
def photo(tmp_path, monkeypatch, scene):
    """A photo in the current folder, beside files that stand for the weights, one without an extension."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('scene.png', scene[..., ::-1])
    for name in ('model.npz', 'weights'):
        (tmp_path / name).write_bytes(b'weights')
    return 'scene.png'


@pytest.fixture
def inspect(monkeypatch, model, steps, photo):
    """Run a subcommand with the model that is loaded already, and with reports without figures."""
    monkeypatch.setattr(photos, 'load_network', lambda args, **changes: model)
    monkeypatch.setattr(image, 'make_report', short_report)
    monkeypatch.setattr(html_report, '_encode', lambda picture: ('png', b''))
    return lambda *words: main(['inspect', *map(str, words), '--modelfile', 'model.npz'])


def short_report(steps, title):
    """Return the report that stands for the whole one, which ``tests/inspect/test_figures.py`` checks."""
    short = html_report.Report(title)
    short.add_text(f'{len(steps.detections)} detections; layers: {list(steps.activations)}')
    return short


def corners(box):
    top, left, bottom, right = box.tolist()
    return f'{max(left, 0):.2f},{max(top, 0):.2f},{min(right, 192):.2f},{min(bottom, 192):.2f}'


@pytest.mark.parametrize(
    ('out', 'expected'),
    [
        ([], 'scene.html'),
        (['--out', 'reports/'], 'reports/scene.html'),
        (['--out', 'new'], 'new/scene.html'),
        (['--out', 'folder.d/'], 'folder.d/scene.html'),
        (['--out', 'a.html'], 'a.html'),
    ],
)
def test_the_report_of_a_photo(inspect, steps, out, expected, tmp_path, capsys):
    assert inspect('image', 'scene.png', *out) == 0
    text = (tmp_path / expected).read_text(encoding='utf-8')
    assert '<h1>Detection in scene.png</h1>' in text and f'<p>{len(steps.detections)} detections' in text
    printed = capsys.readouterr().out
    assert printed.startswith('scene.png: ') and printed.endswith(f' -> {expected}\n')


def test_several_photos_and_layers(inspect, tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'scene.png').write_bytes((tmp_path / 'scene.png').read_bytes())
    words = ['scene.png', 'broken.png', 'other/scene.png', '--out', 'reports/', '--layers', 'rpn/conv']
    assert inspect('image', *words) == 1
    captured = capsys.readouterr()
    lines = re.split('[\r\n]', captured.err)
    errors = [line for line in lines if line.strip() and not re.search('photo/s|s/photo', line)]  # without the progress
    assert len(errors) == 1 and errors[0].startswith('error: broken.png: ')
    assert sorted(path.name for path in (tmp_path / 'reports').iterdir()) == ['scene.html', 'scene_2.html']
    assert 'rpn/conv' in (tmp_path / 'reports' / 'scene.html').read_text(encoding='utf-8')


def test_the_list_of_layers(inspect, capsys, tmp_path):
    assert inspect('image', 'scene.png', '--list-layers') == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines['rpn/conv'] == '1x64x48x48, 1x64x24x24, 1x64x12x12, 1x64x6x6, 1x64x3x3'
    assert lines['rpn'].endswith(', and 4 more')
    assert not list(tmp_path.glob('*.html'))


@pytest.mark.parametrize(
    ('words', 'status', 'line'),
    [
        ('image scene.png --out a.png', 2, '--out a.png is neither a folder nor a file .html'),
        ('image scene.png --out weights', 1, 'weights: cannot be written: is a file, not a folder'),
        ('image none.png', 1, 'none.png: no such file'),
        (
            'image scene.png --layers rpn/conw',
            2,
            "--layers: the network has no layer 'rpn/conw'; ",
        ),
        ('image scene.png --layers box_head/score/nothing', 2, '--layers: the network has no layer'),
        ('why none.png --detection 0', 1, 'none.png: no such file'),
        ('why scene.png', 2, 'give --box and --class, or --detection'),
        ('why scene.png --box 1,2,3,4', 2, 'give --box and --class, or --detection'),
        ('why scene.png --detection 0 --class star', 2, '--detection names a detection, --box and --class an expected'),
        ('why scene.png --detection 999', 2, '--detection 999 does not exist: there are '),
        ('why scene.png --box 0,0,193,10 --class star', 2, '--box 0,0,193,10 is not inside the image of 192 x 192'),
        ('why scene.png --box 0,0,9,10 --class stair', 2, "--class 'stair' is not a class of the network: square, "),
        ('why scene.png --detection 0 --out a.gif', 2, '--out a.gif does not end with .png or .html'),
        ('why scene.png --detection 0 --out scene.png', 2, '--out scene.png is the photo'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(inspect, words, status, line, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert inspect(*words.split()) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(f'error: {line}') and captured.err.count('\n') == 1 and not captured.out
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ('option', 'line'),
    [
        ('--box=-1,0,5,5', "argument --box: '-1,0,5,5' is not a box: x0 < x1 and y0 < y1, none below 0"),
        ('--box=5,0,5,9', "argument --box: '5,0,5,9' is not a box"),
        ('--box=1,2,3', "argument --box: '1,2,3' is not four numbers x0,y0,x1,y1"),
        ('--box=1,2,nan,9', "argument --box: '1,2,nan,9' is not four numbers"),
        ('--iou=0', "argument --iou: '0' is not a number above 0 and at most 1"),
        ('--detection=-1', "argument --detection: '-1' is not a non-negative integer"),
    ],
)
def test_wrong_numbers_are_named(inspect, option, line, capsys):
    with pytest.raises(SystemExit) as stop:
        inspect('why', 'scene.png', option)
    assert stop.value.code == 2 and line in capsys.readouterr().err.splitlines()[-1]


def test_the_step_that_lost_an_object(inspect, steps, capsys):
    box = (2.0, 2.0, 30.0, 30.0)
    assert why_not(steps, box, 'ring').step is not Step.DETECTED
    assert inspect('why', 'scene.png', '--box', '2,2,30,30', '--class', 'ring') == 0
    assert capsys.readouterr().out == f'{why_not(steps, box, "ring")}\n'
    assert inspect('why', 'scene.png', '--box', '2,2,30,30', '--class', 'ring', '--iou', '0.9') == 0
    assert capsys.readouterr().out == f'{why_not(steps, box, "ring", min_iou=0.9)}\n'


@pytest.mark.parametrize('is_sure', [True, False])
def test_an_object_that_is_detected(inspect, steps, is_sure, capsys):
    scores = steps.detections.scores
    i = 0 if is_sure else int(np.argmax(scores < 0.7))
    box, name = steps.detections.boxes[i], steps.detections.names[i]
    assert inspect('why', 'scene.png', '--box', corners(box), '--class', name, '--iou', '0.9') == 0
    captured = capsys.readouterr()
    assert 'is detected' in captured.out.splitlines()[0] and f'\n{why(steps, i)}\n' in captured.out
    assert ('does not draw detection' in captured.err) != is_sure


def test_a_detection_and_its_figures(inspect, steps, tmp_path, capsys):
    assert inspect('why', 'scene.png', '--detection', '1', '--out', 'why.html') == 0
    assert capsys.readouterr().out == f'{why(steps, 1)}\n'
    text = (tmp_path / 'why.html').read_text(encoding='utf-8')
    assert '<h1>Detection 1 in scene.png</h1>' in text and f'<p>{why(steps, 1).title}</p>' in text
    assert all(f'<td>{name}</td><td>{result}</td>' in text for name, result in why(steps, 1).steps.items())
    assert inspect('why', 'scene.png', '--box', '5,120,60,180', '--class', 'heart', '--out', 'not.html') == 0
    text = (tmp_path / 'not.html').read_text(encoding='utf-8')
    rejection = why_not(steps, (120, 5, 180, 60), 'heart')
    for title, count, best in rejection.counts:
        assert re.search(rf'<td>{re.escape(title)}</td><td[^>]*>{count}</td><td[^>]*>{best:.2f}</td>', text)
    assert inspect('why', 'scene.png', '--box', '5,120,60,180', '--class', 'heart', '--out', 'not.png') == 0
    assert cv2.imread(str(tmp_path / 'not.png')).shape[1] == 1200


def test_missing_weights_are_one_line(photo, capsys):
    for words in (['image', photo], ['why', photo, '--detection', '0']):
        assert main(['inspect', *words, '--modelfile', 'none.npz']) == 1
        assert capsys.readouterr().err.startswith('error: none.npz: no such file')


def test_the_options_reach_the_network(monkeypatch, photo, capsys):
    seen = []

    def load(path, **options):
        seen.append(options)
        raise ValueError('a wrong value')

    monkeypatch.setattr('mask_rcnn.cli.network_options.load', load)
    words = ['--max-detections', '7', '--score-thresh', '0.2', '--roi-size', '7', '--dialect', 'dena', '--bn2affine']
    assert main(['inspect', 'image', photo, '--modelfile', 'model.npz', *words]) == 2
    assert capsys.readouterr().err == 'error: a wrong value\n'
    expected = {'max_detections': 7, 'score_threshold': 0.2, 'roi_size': 7}
    assert seen == [{'gpu': -1, 'bn2affine': True, 'dialect': 'dena', **expected}]
