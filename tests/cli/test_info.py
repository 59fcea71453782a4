"""``mask-rcnn info``: text, JSON and errors."""

import json

import numpy as np
import pytest

from mask_rcnn.cli import info, main
from mask_rcnn.config import DENA, PRESETS, Config
from mask_rcnn.weights import ModelMeta, Source, formats, write_weights
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights


@pytest.fixture
def model(tmp_path):
    path = tmp_path / 'model.npz'
    arrays = {'a/W': np.ones((1000, 1500), np.float32), 'a/b': np.ones(1000, np.float32)}
    meta = ModelMeta(
        'model',
        Config(n_fg_class=2, min_size=300),
        ('cat', 'dog'),
        (17, 18),
        Source('x.pkl', '0' * 64, 'detectron-pickle'),
        {'momentum': 3},
        ('adapted\x1b[1m',),
    )
    write_weights(path, arrays, meta)
    return path


def test_text(model, capsys):
    assert main(['info', str(model)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == f'{model}: R-50-C4 Mask R-CNN, 2 classes (cat, dog)'
    for part in (
        "format   this program's .npz",
        'dialect  detectron',
        'size     1.5 million parameters, 6.0 MB',
        'input    shorter side 300 pixels, longer at most 1333',
        'used     2 arrays',
        'note     converted from x.pkl (detectron-pickle)',
        r'note     adapted\x1b[1m',
    ):
        assert part in printed


def test_json(model, capsys):
    assert info.main([str(model), str(model), '--json']) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first['class_names'] == ['cat', 'dog'] and first['n_parameter'] == 1_501_000
    assert first['format'] == 'mask-rcnn-npz' and first['file_size'] == model.stat().st_size
    assert Config.from_dict(first['config']) == Config(n_fg_class=2, min_size=300)
    conventions = first['conventions']
    assert conventions['boxes']['offset'] == 1.0 and conventions['input']['channel_order'] == 'BGR'
    assert 'name' not in conventions


def test_json_has_no_infinity(tmp_path, capsys):
    path = tmp_path / 'model.npz'
    write_weights(path, {'a/W': np.ones(1, np.float32)}, ModelMeta('backbone', Config(dialect=DENA)))
    assert info.main([str(path), '--json']) == 0
    text = capsys.readouterr().out
    assert 'Infinity' not in text and json.loads(text)['conventions']['boxes']['max_log_scale'] is None


def test_other_formats(model, monkeypatch, capsys):
    report = ConversionReport(('a', 'b'), {'momentum': tuple('abcdef'), 'unknown': tuple('uvwxyz')}, (), ('careful',))
    file = ConvertedWeights(
        'model', 'detectron-pickle', PRESETS['keypoint_resnet50_fpn'], {}, report, '0' * 64, ('person',), (1,)
    )
    monkeypatch.setattr(formats, 'read', lambda path: file)
    assert info.main([str(model)]) == 0
    printed = capsys.readouterr().out
    for part in (
        'R-50-FPN Keypoint R-CNN, 1 class (person)',
        "format   Detectron's .pkl",
        'used     2 arrays',
        'skipped  6 of momentum\n',
        'skipped  6 of unknown: u, v, w, x, y, z',
        'WARNING  careful',
    ):
        assert part in printed


def test_bad_files_get_one_error_line_each(model, tmp_path, capsys):
    (tmp_path / 'bad.pth').write_bytes(b'\x00' * 100)
    assert info.main([str(tmp_path / 'bad.pth'), str(model), str(tmp_path / 'missing')]) == 1
    printed = capsys.readouterr()
    assert 'R-50-C4' in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == 2 and all(line.startswith('error: ') for line in lines)


def test_ctrl_c_stops_all_files(model, monkeypatch, capsys):
    seen = []

    def read(path):
        seen.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, 'read', read)
    assert info.main([str(model)] * 3) == 130
    assert len(seen) == 1 and capsys.readouterr().err == 'error: interrupted\n'


def test_a_single_numpy_array_is_not_read_as_a_pickle(tmp_path, capsys):
    np.save(tmp_path / 'a.npy', np.zeros(3))
    assert info.main([str(tmp_path / 'a.npy')]) == 1
    assert capsys.readouterr().err == (
        f'error: {tmp_path / "a.npy"}: is a single NumPy array (.npy), not the weights of a network\n'
    )


def test_imagenet_weights(shared, capsys):
    assert info.main([str(shared / 'weights' / 'resnet50_imagenet.npz')]) == 0
    printed = capsys.readouterr().out
    assert 'R-50 backbone (ImageNet weights)' in printed and "a Caffe ResNet's .npz" in printed
    assert 'input' not in printed
