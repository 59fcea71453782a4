"""``mask-rcnn inspect data``: the report, the chosen images, and errors as one line."""

import json
import re

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import main
from mask_rcnn.cli.inspect import training_data
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inspect.training import report as training_report
from mask_rcnn.training.iterator import ExampleIterator
from tests.support.small_dataset import annotation, write_dataset

NETWORK = [
    *('--extractor', 'mobilenet_v1_fpn', '--set', 'width=0.25', 'fpn_channels=16', 'head_channels=32'),
    *('mask_channels=16', '--min-size', '64', '--max-size', '64', '--roi-batch', '16', '--train-proposals', '50'),
    *('--gpu', '-1'),
]
SHAPES = ['--dataset', 'shapes', *NETWORK]


def inspect(*words):
    return main(['inspect', 'data', *map(str, words)])


@pytest.fixture
def traced(monkeypatch):
    """The examples of all training passes, without their figures."""
    examples = []
    trace = training_data.trace_training

    def recorded(model, images, **options):
        for result in trace(model, images, **options):
            examples.append((result, options))
            yield result

    monkeypatch.setattr(training_data, 'trace_training', recorded)
    monkeypatch.setattr(training_report, 'MAX_IMAGES', 0)
    return examples


@pytest.fixture
def dataset(tmp_path):
    """Three images of 60 x 90 with a cat each; the first also has an object of 4 pixels."""
    objects = [annotation(i, i, (10, 10, 40, 30)) for i in range(3)]
    objects.append(annotation(3, 0, (60, 40, 4, 4), 2))
    return [str(write_dataset(tmp_path / 'in', [(60, 90)] * 3, objects)), str(tmp_path / 'in')]


def test_the_report_contains_figures_and_tables(dataset, tmp_path, capsys):
    out = tmp_path / 'report.html'
    assert inspect(*dataset, '--out', out, *NETWORK, '--image', '0.png') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f'wrote {out}' and len(lines) == 5
    assert re.match(r'\d of 2 objects ha(s|ve) no positive anchor', lines[0])
    assert re.match('1 of 2 objects has no anchor with IoU >= 0.3, size 3 pixels .*: dog 1 of 1;', lines[1])
    assert re.match(r'\d of 2 objects ha(s|ve) no proposal with IoU >= 0.5', lines[2])
    assert lines[3].startswith('mean loss ')
    document = out.read_text(encoding='utf-8')
    for title in ('Summary', 'Network inputs', '0.png', 'Anchors', 'RoIs', 'Mask targets', 'Losses'):
        assert f'>{title}</h' in document, title
    assert document.count('<img src="data:image/') == 7  # overlaps, inputs, anchors, RoIs, masks, two bars
    assert '<td>dog</td>' in document and 'random weights' in document
    assert document.count('<h2') == 4 and len(document) < 2e6


def test_images_and_seeds_are_those_of_the_first_epoch(traced, tmp_path):
    """They equal the first batch of a training run with the same options."""
    options = ['--seed', '5', '--limit', '2', '--color-jitter', '0.3', '--crop', '48', '--vertical-flip']
    assert inspect(*SHAPES, *options, '--out', tmp_path / 'a.html') == 0
    config = mask_rcnn.PRESETS['mobilenet_v1_fpn'].replace(min_size=64, max_size=64)
    augmentation = Augmentation(vertical_flip=True, crop=48, color_jitter=0.3)
    images = ShapesDataset(1000, size=64, seed=5)
    batch = ExampleIterator(images, TrainingTransform(config, augmentation), 2, seed=5).next()
    assert len(traced) == 2
    for (trace, passed), expected in zip(traced, batch, strict=True):
        assert (trace.example.image_id, trace.example.seed) == (expected.image_id, expected.seed)
        np.testing.assert_array_equal(trace.example.x, expected.x)
        assert passed['frozen_stages'] == 0  # as in a training run from random weights
        assert passed['sampling'].roi_batch == 16 and passed['sampling'].train_post_nms == 50


def test_selected_images_have_the_seeds_of_the_first_epoch(dataset, traced, tmp_path):
    assert inspect(*dataset, *NETWORK, '--out', tmp_path / 'a.html') == 0
    seeds = {trace.example.image_id: trace.example.seed for trace, _ in traced}
    assert len(seeds) == 3
    traced.clear()
    assert inspect(*dataset, *NETWORK, '--out', tmp_path / 'a.html', '--image', '2', '0.png', '1') == 0
    assert [trace.example.image_id for trace, _ in traced] == [2, 0, 1]
    assert all(trace.example.seed == seeds[trace.example.image_id] for trace, _ in traced)


def test_a_model_file_determines_the_network(traced, tmp_path, capsys, root):
    """The bundled model, whose losses are small."""
    model = root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
    words = ['--dataset', 'shapes-rich', '--limit', '1', '--min-size', '96', '--max-size', '96', '--roi-batch', '16']
    assert inspect(*words, '--modelfile', model, '--out', tmp_path / 'a.html', '--gpu', '-1') == 0
    loss = float(re.search(r'mean loss ([\d.]+)', capsys.readouterr().out)[1])
    assert loss == pytest.approx(traced[0][0].losses['loss'], rel=1e-2) and loss < 3
    assert str(model) in (tmp_path / 'a.html').read_text(encoding='utf-8')


def test_losses_and_images_equal_those_of_a_training_run(traced, tmp_path):
    """The first iteration of a run, without a model file; its snapshot then determines network and seed."""
    run = ['--dataset', 'shapes', '--seed', '3', *NETWORK]
    options = ['--pretrained', 'none', '--batchsize', '1', '--iteration', '1', '--snapshot', '1', '--validation', '0']
    assert main(['train', *run, *options, '--workers', '0', '--out', str(tmp_path / 'run')]) == 0
    (entry,) = json.loads((tmp_path / 'run' / 'log').read_text())
    assert inspect(*run, '--limit', '1', '--out', tmp_path / 'a.html') == 0
    trace, _ = traced.pop()
    for name, value in trace.losses.items():
        assert value == pytest.approx(entry[f'main/{name}'], rel=1e-6), name
    snapshot = ['--dataset', 'shapes', '--modelfile', tmp_path / 'run' / 'snapshot_iter_1.npz', '--limit', '1']
    assert inspect(*snapshot, '--min-size', '64', '--max-size', '64', '--gpu', '-1', '--out', tmp_path / 'a.html') == 0
    np.testing.assert_array_equal(traced[0][0].example.x, trace.example.x)
    assert 0 < abs(traced[0][0].losses['loss'] - trace.losses['loss']) < 1  # of the updated weights


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ([], 'error: no data; give ANNOTATIONS and IMAGES, or --dataset shapes or shapes-rich'),
        (['a.json'], 'error: IMAGES is missing; give ANNOTATIONS and IMAGES, or --dataset shapes or shapes-rich'),
        (['a.json', 'b', '--dataset', 'shapes'], 'error: ANNOTATIONS and --dataset contradict each other'),
        (
            ['--dataset', 'shapes', '--modelfile', 'm.npz', '--keypoints'],
            'error: --keypoints and --modelfile contradict',
        ),
        (
            ['--dataset', 'shapes', '--modelfile', 'm.npz', '--set', 'width=1.0'],
            'error: --set and --modelfile contradict',
        ),
        (['--dataset', 'shapes', '--modelfile', '.'], 'error: --modelfile . is a folder; name a model or a snapshot'),
        (['--dataset', 'shapes', '--keypoints'], 'error: --dataset shapes has no keypoints'),
        ([*SHAPES, '--image', 'x'], 'error: --image x: no image with an object has this name or id'),
        ([*SHAPES, '--scale-jitter', '2', '1'], 'error: --scale-jitter: '),
    ],
)
def test_bad_arguments_are_one_line(words, message, tmp_path, capsys):
    assert inspect(*words, '--out', tmp_path / 'a.html') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not list(tmp_path.iterdir())


def test_the_report_replaces_no_input(dataset, tmp_path, capsys):
    assert inspect(*dataset, '--out', dataset[0]) == 2
    assert 'does not end with .html' in capsys.readouterr().err
    page = tmp_path / 'data.html'
    page.write_text('{}')
    assert inspect(page, tmp_path, '--out', page) == 2
    assert capsys.readouterr().err == f'error: --out {page} is the annotation file\n'
    assert inspect(*SHAPES, '--out', tmp_path / 'no' / 'a.html') == 1
    assert capsys.readouterr().err.startswith(f'error: {tmp_path}/no')


def test_broken_files_are_one_line(dataset, tmp_path, capsys):
    bad = tmp_path / 'bad.json'
    bad.write_text('[')
    assert inspect(bad, tmp_path, '--out', tmp_path / 'a.html') == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {bad}: ')
    assert inspect(*dataset, '--out', tmp_path / 'a.html', '--modelfile', bad) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: {bad}: ')
    assert not (tmp_path / 'a.html').exists()


def test_a_model_of_other_classes_is_refused(dataset, tmp_path, capsys, root):
    model = root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
    assert inspect(*dataset, '--out', tmp_path / 'a.html', '--modelfile', model, '--gpu', '-1') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f'error: {dataset[0]} has 2 classes (cat, dog), but the model has 8 (square, circle ... crescent)'


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize('value', [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_a_network_that_overflows(dataset, tmp_path, capsys, monkeypatch, value):
    """Its losses are NaN: they have no bars, and nothing is converted to integers."""
    make = training_data.make_model

    def make_bad(*args, **options):
        model, *rest = make(*args, **options)
        model.extractor.body.conv0.conv.W.array[...] = value
        return model, *rest

    monkeypatch.setattr(training_data, 'make_model', make_bad)
    out = tmp_path / 'report.html'
    assert inspect(*dataset, '--out', out, *NETWORK, '--limit', 1) == 0
    captured = capsys.readouterr()
    assert 'mean loss nan' in captured.out and 'Warning' not in captured.err
    assert out.read_text(encoding='utf-8').count('<img src="data:image/') == 7


@pytest.mark.filterwarnings('error::UserWarning')
def test_class_names_that_figures_cannot_contain(tmp_path, capsys):
    """A long name would leave no room for the plot, and Matplotlib would read a formula."""
    objects = [annotation(0, 0, (10, 10, 40, 30)), annotation(1, 0, (30, 30, 40, 20), 2)]
    names = ('x' * 300 + '\u202eabc', '\U0001f600 $x^{\n\x07<b>')
    file = write_dataset(tmp_path / 'in', [(60, 90)], objects, names=names)
    out = tmp_path / 'report.html'
    assert inspect(file, file.parent, '--out', out, *NETWORK) == 0
    capsys.readouterr()
    assert '<b>' not in out.read_text(encoding='utf-8')


def test_a_missing_folder_of_images(dataset, tmp_path, capsys):
    assert inspect(dataset[0], tmp_path / 'none', '--out', tmp_path / 'x.html', *NETWORK) == 2
    assert capsys.readouterr().err == f'error: IMAGES {tmp_path / "none"} is not a folder\n'


def test_an_image_that_is_named_twice(dataset, tmp_path, traced):
    assert inspect(*dataset, '--out', tmp_path / 'x.html', *NETWORK, '--image', '1.png', '0.png', '1', '1.png') == 0
    assert [trace.example.image_id for trace, _ in traced] == [1, 0]
