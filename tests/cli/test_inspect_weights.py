"""``mask-rcnn inspect weights``: text, JSON, reports and errors."""

import dataclasses
import json

import numpy as np
import pytest

from mask_rcnn.cli import main
from mask_rcnn.config import Config
from mask_rcnn.inspect.weights import report as weight_report
from mask_rcnn.weights import ModelMeta, write_weights
from tests.support.wrong_files import IMAGES, REFUSALS, WEIGHTS

NAMES = ('cat', 'dog')
META = ModelMeta('model', Config(n_fg_class=2), NAMES, (1, 2))


def write(path, meta=META, **changes):
    """Write a network of few arrays, in which one channel is dead."""
    arrays = {
        'extractor/conv1/conv/W': np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2) - 10,
        'extractor/conv1/norm/scale': np.array([0, 2], np.float32),
        'rpn/conv/W': np.array([[[[1]], [[-3]]]], np.float32),
        'rpn/conv/b': np.array([0.5], np.float32),
    }
    arrays |= {name.replace('__', '/'): np.asarray(array, np.float32) for name, array in changes.items()}
    write_weights(path, arrays, meta)
    return path


def test_text_of_one_file(tmp_path, capsys):
    path = write(tmp_path / 'a.npz', rpn__conv__b=[np.nan])
    assert main(['inspect', 'weights', str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f'{path}: R-50-C4 Mask R-CNN, 4 arrays, 2.9e-05 million values, 6.90% of them zero',
        '  DOUBTFUL  NaN: 1 in 1 array',
        '    rpn/conv/b: 1 of 1',
        '  DOUBTFUL  dead channels: 1 in 1 layer',
        '    extractor/conv1/conv: zero scale in 1 of 2: 0',
    ]
    assert [line.split() for line in lines[5:]] == [
        ['part', 'arrays', 'values', 'std', 'min', 'max', 'zeros', 'dead'],
        ['backbone', 'conv1', '2', '26', '6.92', '-10', '13', '4.17%', '1'],
        ['RPN', '2', '3', '2', '-3', '1', '0.00%', '0'],
    ]


def test_nothing_doubtful(tmp_path, capsys):
    path = write(tmp_path / 'a.npz', extractor__conv1__norm__scale=[1, 2])
    assert main(['inspect', 'weights', str(path)]) == 0
    assert '  nothing doubtful: no NaN, no infinities, no dead channels' in capsys.readouterr().out.splitlines()


def test_text_of_two_files(tmp_path, capsys):
    first = write(tmp_path / 'a.npz', mask_head__x=[1], extractor__conv1__norm__scale=[1, 2])
    second = write(tmp_path / 'b.npz', rpn__conv__W=[[[[1]], [[1]]]], rpn__conv__b=[0.25])
    assert main(['inspect', 'weights', str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[5:7] == [
        'arrays in both: 4, of which equal in type and bits: 1',
        '  only in the first: 1 (mask_head/x)',
    ]
    assert [line.split() for line in lines[7:]] == [
        ['changed', 'array', 'relative', 'max', 'cosine'],
        ['rpn/conv/W', '1.26', '4', '-0.447214'],  # 4 / sqrt(10), -2 / sqrt(20)
        ['rpn/conv/b', '0.5', '0.25', '1.000000'],
        ['extractor/conv1/norm/scale', '0.447', '1', '0.894427'],  # 1 / sqrt(5), 4 / (sqrt(5) * 2)
    ]


def test_json(tmp_path, capsys):
    first = write(tmp_path / 'a.npz', rpn__conv__b=[np.inf])
    second = write(tmp_path / 'b.npz', rpn__conv__W=[[[[0]], [[0]]]])
    assert main(['inspect', 'weights', str(first), str(second), '--json']) == 0
    (line,) = capsys.readouterr().out.splitlines()
    data = json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert [file['network'] for file in data['files']] == ['R-50-C4 Mask R-CNN'] * 2
    bias = data['files'][0]['arrays'][-1]
    assert (bias['name'], bias['n_inf'], bias['mean'], bias['shape']) == ('rpn/conv/b', 1, None, [1])
    assert data['files'][0]['settings']['class_names'] == ['cat', 'dog']
    assert data['files'][1]['dead_channels'] == [
        {'layer': 'extractor/conv1/conv', 'reason': 'zero scale', 'channels': [0], 'n_channels': 2},
        {'layer': 'rpn/conv', 'reason': 'zero weights', 'channels': [0], 'n_channels': 1},
    ]
    changes = {change['name']: change for change in data['comparison']['changes']}
    assert changes['rpn/conv/b']['n_not_finite_changes'] == 1 and changes['rpn/conv/W']['cosine'] is None
    assert data['comparison']['n_identical'] == 2


def test_the_report_of_a_file(tmp_path, capsys):
    path, out = write(tmp_path / 'a.npz', rpn__conv__b=[np.nan]), tmp_path / 'report.html'
    assert main(['inspect', 'weights', str(path), '--out', str(out)]) == 0
    assert capsys.readouterr().err == f'wrote {out}\n'
    text = out.read_text()
    assert '<h3>backbone conv1</h3>' in text and '<h3>RPN</h3>' in text
    assert text.count('<img') == 3 + 2  # filters, ranges of weights and of scales; histograms of two parts
    assert '<td>rpn/conv/W</td><td>1x2x1x1</td><td>float32</td><td class="number">2</td>' in text
    assert '<td>extractor/conv1/conv</td><td>zero scale</td><td>1 of 2: 0</td>' in text
    assert '<td>rpn/conv/b</td><td class="number">1</td><td class="number">1</td><td class="number">0</td>' in text


def test_the_report_of_two_files(tmp_path, capsys):
    first, out = write(tmp_path / 'a.npz'), tmp_path / 'report.html'
    second = write(
        tmp_path / 'b.npz', dataclasses.replace(META, class_names=('<i>', 'dog')), rpn__conv__W=[[[[2]], [[-6]]]]
    )
    assert main(['inspect', 'weights', str(first), str(second), '--out', str(out)]) == 0
    text = out.read_text()
    assert '<td>rpn/conv/W</td><td>(1, 2, 1, 1)</td><td class="number">1</td><td class="number">3</td>' in text
    assert '&lt;i&gt;' in text and '<i>' not in text
    assert text.count('<img') == 4  # changes, histograms, two first layers


def test_the_report_of_different_networks(tmp_path, capsys):
    first, second, out = tmp_path / 'a.npz', tmp_path / 'b.npz', tmp_path / 'report.html'
    write_weights(first, {'rpn/conv/W': np.ones((1, 2, 1, 1), np.float32), 'x': np.ones(1, np.float32)}, META)
    write_weights(second, {'rpn/conv/W': np.ones((1, 3, 1, 1), np.float32)}, META)
    assert main(['inspect', 'weights', str(first), str(second), '--out', str(out)]) == 0
    text = out.read_text()
    assert '<td>rpn/conv/W</td><td>(1, 2, 1, 1)</td><td>(1, 3, 1, 1)</td>' in text
    assert 'Arrays that only the first has (1): x' in text and '<img' not in text


def test_strange_names_and_sizes_of_arrays(tmp_path, capsys, monkeypatch, recwarn):
    """More arrays than a figure has room for, names that no font has, a first layer without or with many filters."""
    monkeypatch.setattr(weight_report, '_MAX_PANELS', 7)
    monkeypatch.setattr(weight_report, '_MAX_RANGES', 8)
    arrays = {f'rpn/x{i}/W': np.zeros((1, 1), np.float32) for i in range(30)}
    arrays |= {'重み\x1b[31m$a$\n/W': np.ones((2, 2), np.float32), 'rpn/conv/b': np.ones(0, np.float32)}
    for n_filters in (0, 1000):
        arrays['extractor/conv1/conv/W'] = np.ones((n_filters, 3, 7, 7), np.float32)
        path, out = tmp_path / 'odd.npz', tmp_path / 'report.html'
        write_weights(path, arrays, META)
        assert main(['inspect', 'weights', str(path), '--out', str(out)]) == 0
        assert main(['inspect', 'weights', str(path), str(path), '--out', str(tmp_path / 'two.html')]) == 0
        printed = capsys.readouterr()
        assert '\x1b' not in printed.out and len(printed.out.splitlines()) < 60
        text = out.read_text()
        for count in ('7 of 30 layers', '8 of 3'):
            assert f'The first {count}' in text
        assert ('256 of 1000 filters' in text) == (n_filters == 1000)
    assert [str(warning.message) for warning in recwarn if 'lyph' in str(warning.message)] == []


@pytest.mark.parametrize('content', [WEIGHTS['npz'], IMAGES['PNG'], REFUSALS['github.com'], b'', b'\0' * 100])
def test_wrong_files_are_one_line(tmp_path, capsys, content):
    path = tmp_path / 'wrong.npz'
    path.write_bytes(content)
    out = tmp_path / 'report.html'
    for files in ([path], [write(tmp_path / 'good.npz'), path]):
        assert main(['inspect', 'weights', *map(str, files), '--out', str(out)]) == 1
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert line.startswith(f'error: {path}: ') and not printed.out
    assert not out.exists()


def test_outputs_are_checked_first(tmp_path, capsys):
    path = write(tmp_path / 'a.npz')
    before = path.read_bytes()
    assert main(['inspect', 'weights', str(path), '--out', str(path)]) == 2
    assert capsys.readouterr().err == f'error: --out {path} does not end with .html\n'
    link = tmp_path / 'link.html'
    link.symlink_to(path)
    assert main(['inspect', 'weights', str(path), '--out', str(link)]) == 2
    assert capsys.readouterr().err == f'error: --out {link} is the weight file\n'
    assert main(['inspect', 'weights', str(path), '--out', str(tmp_path / 'none' / 'x.html')]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and path.read_bytes() == before


def test_files_of_different_normalisations_are_compared_as_affine_channels(tmp_path, capsys):
    """Gamma / sqrt(var + eps) is the scale: 2 / sqrt(3.99999 + 1e-5) = 1."""
    norm = 'extractor/conv1/norm/'
    weight = {'extractor/conv1/conv/W': np.ones((1, 3, 1, 1), np.float32)}
    bn = {'gamma': [2], 'beta': [0.5], 'avg_mean': [0], 'avg_var': [3.99999], 'N': 0}
    affine = {'scale': [1], 'bias': [0.5]}
    for name, kind, arrays in (('bn', 'bn', bn), ('affine', 'affine', affine)):
        values = {norm + key: np.array(value, np.float32) for key, value in arrays.items()}
        meta = ModelMeta('model', Config(n_fg_class=2, norm=kind), NAMES, (1, 2))
        write_weights(tmp_path / f'{name}.npz', weight | values, meta)
    command = ['inspect', 'weights', str(tmp_path / 'bn.npz'), str(tmp_path / 'affine.npz')]
    assert main(command) == 0
    assert 'only in the first: 5 (' in capsys.readouterr().out
    assert main([*command, '--bn2affine', '--json']) == 0
    comparison = json.loads(capsys.readouterr().out)['comparison']
    assert comparison['only_first'] == comparison['only_second'] == [] and comparison['settings'] == {}
    assert max(change['max_difference'] for change in comparison['changes']) < 1e-6
