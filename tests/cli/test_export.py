"""``mask-rcnn export``: the file, the options, and errors as one line."""

import json
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

import onnx

from mask_rcnn.cli import export, main
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.onnx_export import export as onnx_export
from tests.inspect.networks import bundled_model
from tests.support.onnx_detections import compare_detections, run_detections
from tests.support.onnx_graphs import session


@pytest.fixture
def model_file(root, tmp_path, monkeypatch):
    """The bundled model in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz', 'model.npz')
    return 'model.npz'


@pytest.fixture
def without_export(monkeypatch, model_file):
    """Fail if the weights are read."""
    monkeypatch.setattr(export, 'load_network', lambda args: pytest.fail('the weights are read'))


def config_of(path):
    """Return the configuration in the metadata of a file."""
    return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}['config'])


def test_the_bundled_model(root, model_file, capsys):
    assert main(['export', model_file, '--onnx', 'model.onnx']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:2] == ['  outputs  boxes, labels, scores, masks; at most 100 detections with scores from 0.05']
    assert lines[2].startswith('wrote model.onnx (')
    model = bundled_model(root)
    runtime = session(onnx.load('model.onnx'))
    (example,) = RichShapesDataset(1, size=192, seed=3)
    image = np.ascontiguousarray(example.image.transpose(1, 2, 0).astype(np.uint8))
    (expected,) = model.detect([image])
    assert len(expected) >= 3
    compare_detections(run_detections(runtime, image, model), expected)


def test_thresholds(model_file):
    options = ['--preset', 'visualize', '--max-detections', '7']
    assert main(['export', model_file, '--onnx', 'model.onnx', *options]) == 0
    assert config_of('model.onnx')['score_threshold'] == 0.7 and config_of('model.onnx')['max_detections'] == 7
    assert main(['export', model_file, '--onnx', 'model.onnx', *options, '--score-thresh', '0.4']) == 0
    assert config_of('model.onnx')['score_threshold'] == 0.4


def fails(capsys, status, *words):
    assert main(['export', *words]) == status
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.count('\n') == 1
    return captured.err


@pytest.mark.usefixtures('without_export')
@pytest.mark.parametrize(
    ('output', 'message'),
    [
        ('model.npz', '--onnx model.npz is the model'),
        ('link.onnx', '--onnx link.onnx is the model'),
        ('other.npz', '--onnx other.npz does not end with .onnx'),
        ('none/model.onnx', 'none/model.onnx: cannot be written: No such file or directory'),
    ],
)
def test_outputs_that_are_refused(tmp_path, capsys, output, message):
    (tmp_path / 'link.onnx').symlink_to('model.npz')
    before = sorted(tmp_path.iterdir())
    assert message in fails(capsys, 1 if 'none' in output else 2, 'model.npz', '--onnx', output)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures('without_export')
def test_without_onnx(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    for name in [name for name in sys.modules if name.startswith('mask_rcnn.onnx_export')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr('mask_rcnn.onnx_export', raising=False)
    error = fails(capsys, 2, 'model.npz', '--onnx', 'model.onnx')
    assert 'needs onnx' in error and error.endswith('pip install onnx\n')


def test_models_that_are_refused(tmp_path, monkeypatch, model_file, capsys):
    (tmp_path / 'bad.npz').write_bytes(b'weights')
    assert 'bad.npz: ' in fails(capsys, 1, 'bad.npz', '--onnx', 'model.onnx')
    assert 'none.npz: no such file' in fails(capsys, 1, 'none.npz', '--onnx', 'model.onnx')
    assert 'model.npz: ' in fails(capsys, 2, model_file, '--onnx', 'model.onnx', '--dialect', 'dena')
    monkeypatch.setattr(onnx_export, '_MAX_SIZE', 1000)
    assert 'model.npz: an ONNX file contains at most 2 GB' in fails(capsys, 1, model_file, '--onnx', 'model.onnx')
    assert not (tmp_path / 'model.onnx').exists()


def test_an_interrupted_export_leaves_the_earlier_file(tmp_path, monkeypatch, model_file):
    (tmp_path / 'model.onnx').write_bytes(b'earlier')

    def interrupt(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_export, 'export_model', interrupt)
    assert main(['export', model_file, '--onnx', 'model.onnx']) == 130
    assert (tmp_path / 'model.onnx').read_bytes() == b'earlier'


def test_standard_output(model_file, capfdbinary):
    assert main(['export', model_file, '--onnx', '-']) == 0
    captured = capfdbinary.readouterr()
    assert onnx.load_from_string(captured.out).producer_name == 'mask-rcnn-chainer'
    assert b'wrote /dev/stdout' in captured.err
