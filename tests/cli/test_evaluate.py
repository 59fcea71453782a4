"""``mask-rcnn evaluate``: outputs that cannot be written, with a fake evaluation."""

import errno
import json
import os
import shutil
from types import SimpleNamespace
from unittest import mock

import pytest

from mask_rcnn import cli
from mask_rcnn.cli import evaluate, train
from mask_rcnn.evaluation import coco
from mask_rcnn.evaluation.coco import Metrics
from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.io.folder_lock import lock_folder
from mask_rcnn.weights import WeightFileError

METRICS = Metrics(
    boxes=(0.5,) * 12,
    masks=(),
    class_names=('cat\n', '魚'),
    box_ap_per_class=(0.25, 0.75),
    mask_ap_per_class=(),
)
MODEL = SimpleNamespace(class_names=METRICS.class_names, config=SimpleNamespace(n_fg_class=2))
DATASET = [None, None]


class Evaluator:
    """A finished evaluation, whose detections are written to one file."""

    def evaluate(self):
        return METRICS

    def write_results(self, path):
        with coco.open_for_writing(path) as file:
            file.write(b'[]')


@pytest.fixture
def evaluation(monkeypatch):
    """Evaluate ``MODEL`` without detecting."""
    monkeypatch.setattr(
        evaluate,
        'evaluate_model',
        lambda *_, results_file, **options: coco._finish(Evaluator(), results_file, Evaluator.evaluate),
    )
    monkeypatch.setattr(evaluate, 'check_classes', lambda *arguments: None)


def fail(path):
    raise FileError(errno.ENOSPC, 'cannot be written: No space left on device', str(path))


@pytest.mark.parametrize('modules', [(coco,), (evaluate,), (coco, evaluate)])
def test_figures_are_printed_if_a_file_cannot_be_written(evaluation, monkeypatch, tmp_path, capsys, modules):
    for module in modules:
        monkeypatch.setattr(module, 'open_for_writing', fail)
    name = 'results.json' if coco in modules else 'metrics.json'
    with pytest.raises(FileError) as caught:
        evaluate.evaluate_to_folder(MODEL, DATASET, tmp_path / 'out', name='pets')
    assert str(caught.value) == f'{tmp_path / "out" / name}: cannot be written: No space left on device'
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'pets, 2 images'
    assert [line.split()[-1] for line in lines if line.startswith((r'cat\n', '魚'))] == ['25.0', '75.0']
    assert (tmp_path / 'out' / 'metrics.json').exists() == (evaluate not in modules)


def test_odd_class_names_are_written(evaluation, tmp_path, capsys):
    assert evaluate.evaluate_to_folder(MODEL, DATASET, tmp_path, name='pets') is METRICS
    assert set(json.loads((tmp_path / 'metrics.json').read_text())['classes']) == set(METRICS.class_names)
    assert 'wrote results.bbox.json and metrics.json' in capsys.readouterr().out


def test_outputs_are_checked_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate.mask_rcnn, 'load', pytest.fail)
    (tmp_path / 'model.npz').write_bytes(b'weights')
    (tmp_path / 'file').touch()
    os.mkdir('out')
    (tmp_path / 'out' / 'results.segm.json').symlink_to('../model.npz')
    (tmp_path / 'out2' / 'metrics.json').mkdir(parents=True)
    os.mkdir('out3')
    (tmp_path / 'out3' / 'results.bbox.json').symlink_to('gone/x')
    for folder, status, message in (
        ('/proc/out', 1, '/proc/out: cannot be written: '),
        ('file', 1, 'file: cannot be written: is a file, not a folder'),
        ('out', 2, '--out out/results.segm.json is the file of --modelfile'),
        ('out2', 1, 'out2/metrics.json: is a folder, not a file'),
        ('out3', 1, 'out3/results.bbox.json: cannot be written: No such file or directory'),
    ):
        command = ['--dataset', 'shapes', '--modelfile', 'model.npz', '--gpu', '-1', '--out', folder]
        assert evaluate.main(command) == status
        line = capsys.readouterr().err
        assert message in line and line.count('\n') == 1
    assert (tmp_path / 'model.npz').read_bytes() == b'weights'


EVALUATE = 'evaluate --dataset shapes --gpu -1 --modelfile'
TRAIN = 'train --dataset shapes --gpu -1 --lr 0 --resume'


@pytest.mark.parametrize('command', [EVALUATE, TRAIN])
def test_the_second_evaluation_in_a_folder_is_refused_before_its_work(monkeypatch, tmp_path, capsys, command):
    """``train --lr 0`` evaluates as well.  A training may use the folder at the same time."""
    loaded = WeightFileError('model.npz', 'is loaded')
    monkeypatch.setattr(evaluate.mask_rcnn, 'load', mock.Mock(side_effect=loaded))
    monkeypatch.setattr(train, 'load_model', mock.Mock(side_effect=loaded))
    words = [*command.split(), str(tmp_path / 'model.npz'), '--out', str(tmp_path / 'out')]
    assert cli.main(words) == 1
    assert capsys.readouterr().err == 'error: model.npz: is loaded\n'
    with lock_folder(tmp_path / 'out', user='evaluation', warn=pytest.fail):
        assert cli.main(words) == 1
    line = capsys.readouterr().err
    assert line.startswith(f'error: {tmp_path}/out is in use by another evaluation (pid {os.getpid()} on ')
    assert line.count('\n') == 1
    with lock_folder(tmp_path / 'out', user='training', warn=pytest.fail):
        assert cli.main(words) == 1
    assert capsys.readouterr().err == 'error: model.npz: is loaded\n' and os.listdir(tmp_path / 'out') == []


@pytest.mark.parametrize('command', [EVALUATE, TRAIN])
def test_inputs_are_not_replaced_by_the_files_of_an_evaluation(tmp_path, capsys, root, command):
    """A person may have moved them into the output folder, or linked them."""
    shutil.copyfile(root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz', tmp_path / 'metrics.json')
    assert cli.main([*command.split(), str(tmp_path / 'metrics.json'), '--out', str(tmp_path)]) == 2
    option = '--' + command.rpartition('--')[2]
    message = f'error: --out {tmp_path}/metrics.json is the file of {option}\n'
    assert capsys.readouterr().err == message
    (tmp_path / 'photo.png').touch()
    (tmp_path / 'results.bbox.json').write_text('{}')
    (tmp_path / 'val.json').symlink_to('results.bbox.json')
    data = ['--val-annotations', str(tmp_path / 'val.json'), '--val-images', str(tmp_path)]
    words = [word for word in command.split() if word not in ('--dataset', 'shapes')]
    assert cli.main([*words, 'model.npz', '--out', str(tmp_path), *data]) == 2
    assert capsys.readouterr().err == f'error: --out {tmp_path}/results.bbox.json is the annotation file\n'
    assert (tmp_path / 'results.bbox.json').read_text() == '{}'


@pytest.mark.parametrize('number', [errno.EROFS, errno.ENOSPC])
def test_figures_are_printed_on_a_disk_that_cannot_be_written(evaluation, monkeypatch, tmp_path, capsys, number):
    """A warning precedes the work; an error line and the status follow the figures."""
    folder = tmp_path / 'out'

    def refuse(path):
        raise FileError(number, f'cannot be written: {os.strerror(number)}', str(path))

    monkeypatch.setattr(evaluate, 'check_writable_folder', refuse)
    monkeypatch.setattr(evaluate, 'open_for_writing', fail)
    with evaluate.reserved_folder(folder, []):
        assert capsys.readouterr().err == (
            f'warning: {folder}: cannot be written: {os.strerror(number)}; the figures are only printed\n'
        )
        with pytest.raises(FileError, match='cannot be written'):
            evaluate.evaluate_to_folder(MODEL, DATASET, folder, name='pets')
    assert '25.0' in capsys.readouterr().out
