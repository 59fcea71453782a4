import functools
import importlib
import importlib.util
import json
import types

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.inference.predictor import Predictor
from tests.support.small_resnet import use_narrow_resnet


def machine_ceiling():
    return importlib.import_module('machine_ceiling')


@pytest.fixture
def benchmark(root, monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark', root / 'scripts' / 'benchmarks' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(machine_ceiling(), '_COPIED', 1 << 20)
    monkeypatch.setattr(machine_ceiling(), '_CPU_SIDE', 16)
    build = mask_rcnn.build
    monkeypatch.setattr(
        mask_rcnn,
        'build',
        lambda preset, **changes: build(preset, min_size=64, max_size=96, rpn_pre_nms=200, **changes),
    )
    return module


def test_stages_and_the_whole_are_timed_and_written(benchmark, tmp_path, monkeypatch, capsys):
    use_narrow_resnet(monkeypatch)
    monkeypatch.setattr(mask_rcnn, 'build', functools.partial(mask_rcnn.build, rpn_channels=32, mask_channels=16))
    path = tmp_path / 'figures.json'
    options = ['--runs', '2', '--warmup', '0', '--proposals', '20']
    assert benchmark.main([*options, '--size', '40', '60', '--json', str(path)]) == 0
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    assert tuple(result['stages']) == benchmark.STAGES
    assert result['proposals'] == 20 and result['image'] == {'height': 40, 'width': 60}
    for row in (*result['stages'].values(), result['total']):
        assert 0 <= row['min'] <= row['median'] <= row['max']
    assert result['total']['min'] > 0 and result['detections'] > 0
    assert result['memory']['host_peak'] > 50e6 and result['machine']['numpy'] in text
    assert all(stage in text for stage in benchmark.STAGES)
    assert [p.name for p in tmp_path.iterdir()] == ['figures.json']


def test_the_total_is_one_call_of_detect(benchmark, monkeypatch):
    """The total is timed without synchronisation between stages, in other calls than the stages."""
    calls, detect, by_stages = [], benchmark.detect_at_once, benchmark.detect_by_stages
    monkeypatch.setattr(benchmark, 'detect_at_once', lambda *a: calls.append('whole') or detect(*a))
    monkeypatch.setattr(benchmark, 'detect_by_stages', lambda *a: calls.append('stages') or by_stages(*a))
    monkeypatch.setattr(benchmark, 'matmul_flops', lambda xp: None)
    monkeypatch.setattr(benchmark, 'copy_bandwidth', lambda xp: 1e9)
    result = benchmark.benchmark(
        benchmark.random_model('mobilenet_v1_fpn', rpn_post_nms=10), np.zeros((40, 60, 3), np.uint8), runs=2, warmup=1
    )
    assert calls == ['stages', 'whole', 'whole', 'stages', 'whole', 'stages']
    # The ceiling of the machine is not known for every precision.
    assert result['stages']['RPN']['of_ceiling'] is None
    text = benchmark.table(result)
    assert 'matrix product n/a' in text and len(text.splitlines()) > 10


class GPU:
    """The memory queries of CuPy: a GPU whose memory is used by this and by other processes."""

    def __init__(self):
        self.free = 1000
        gpu = self

        class runtime:
            memGetInfo = staticmethod(lambda: (gpu.free, 4000))
            runtimeGetVersion = staticmethod(lambda: 12080)
            driverGetVersion = staticmethod(lambda: 13000)
            getDeviceProperties = staticmethod(lambda number: {'name': b'GPU number %d' % number})

        class pool:
            total_bytes = staticmethod(lambda: 300)

        self.xp = types.SimpleNamespace(
            cuda=types.SimpleNamespace(runtime=runtime), __version__='14.2.0', get_default_memory_pool=lambda: pool
        )
        self.device = types.SimpleNamespace(id=3)


def test_memory_of_a_gpu_is_all_that_went(benchmark):
    gpu = GPU()
    before = benchmark.free_memory(gpu)
    gpu.free = 200
    taken = benchmark.memory(gpu, before)
    assert (taken['gpu_pool'], taken['gpu_used']) == (300, 800)
    cpu = chainer.get_device('@numpy')
    assert benchmark.free_memory(cpu) is None and set(benchmark.memory(cpu, None)) == {'host_peak'}


def test_versions_of_all_that_a_gpu_needs(benchmark, monkeypatch, tmp_path):
    frontend = types.SimpleNamespace(backend_version=lambda: 91002, __version__='1.14.0')
    monkeypatch.setattr(benchmark.frontend, 'load_frontend', lambda: frontend)
    monkeypatch.setattr(benchmark, 'driver_version', lambda: '570.124.06')
    facts = benchmark.machine(GPU())
    assert facts['gpu'] == 'GPU number 3' and facts['cuda'] == 12080 and facts['cuda_of_driver'] == 13000
    (line,) = benchmark.gpu_lines(facts)
    assert line == 'driver 570.124.06, CUDA 12080, CuPy 14.2.0, cuDNN 91002, cuDNN Frontend 1.14.0'
    monkeypatch.setattr(benchmark.frontend, 'load_frontend', lambda: None)
    assert benchmark.machine(GPU())['cudnn'] is None
    assert benchmark.gpu_lines(benchmark.machine(chainer.get_device('@numpy'))) == []


def test_version_of_the_driver(benchmark, tmp_path):
    path = tmp_path / 'version'
    path.write_text(
        'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\n'
        'GCC version:  gcc version 12.3.0\n'
    )
    assert benchmark.driver_version() is None or '.' in benchmark.driver_version()
    assert benchmark.driver_version(path) == '570.124.06'
    assert benchmark.driver_version(tmp_path / 'missing') is None


def test_random_weights_give_as_many_proposals_as_asked_for(benchmark, rng):
    model = benchmark.random_model('resnet50', rpn_post_nms=50)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        x, transform = Predictor(model).prepare(rng.uniform(0, 255, (3, 64, 96)).astype(np.float32))
        features = model.extractor(x)
        assert len(model.rpn.propose(features, x.shape[2:], [transform])[0]) == 50
    assert 0.1 < features[0].array.std() < 100


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
