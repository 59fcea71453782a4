import importlib.util
import json

import chainer
import numpy as np
import pytest

import mask_rcnn


@pytest.fixture
def benchmark(root, monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark', root / 'scripts' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = mask_rcnn.build
    monkeypatch.setattr(mask_rcnn, 'build', lambda preset, **changes: build(
        preset, min_size=64, max_size=96, rpn_pre_nms=200, **changes))
    return module


def test_stages_add_up_and_are_written(benchmark, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert benchmark.main(['--size', '40', '60', '--runs', '2', '--warmup', '0', '--proposals', '20',
                           '--json', str(path)]) == 0
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    assert tuple(result['stages']) == benchmark.STAGES
    assert result['proposals'] == 20 and result['image'] == {'height': 40, 'width': 60}
    longest = sum(stage['max'] for stage in result['stages'].values())
    assert 0 < result['total']['min'] <= result['total']['median'] <= result['total']['max'] <= longest
    assert result['memory']['host_peak'] > 50e6 and result['machine']['numpy'] in text
    assert all(stage in text for stage in benchmark.STAGES)
    assert [p.name for p in tmp_path.iterdir()] == ['figures.json']


def test_random_weights_give_as_many_proposals_as_asked_for(benchmark, rng):
    model = benchmark.random_model('resnet50', rpn_post_nms=50)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        x, placement = model.prepare(rng.uniform(0, 255, (3, 64, 96)).astype(np.float32))
        maps = model.extract(x)
        assert len(model.propose(maps, x.shape[2:], placement.scale)) == 50
    assert 0.1 < maps[0].std() < 100


@pytest.mark.parametrize('arguments', [['--runs', '0'], ['--warmup', '-1'], ['--size', '0', '5']])
def test_bad_arguments(benchmark, arguments):
    with pytest.raises(SystemExit) as error:
        benchmark.main(arguments)
    assert error.value.code == 2


def test_missing_files_are_named(benchmark, tmp_path, capsys):
    for flag in ('--modelfile', '--image'):
        assert benchmark.main([flag, str(tmp_path / 'missing')]) == 1
        message = capsys.readouterr().err
        assert 'missing' in message and message.count('\n') == 1
