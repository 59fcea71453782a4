"""The measurement of new image sizes: what counts for which cause."""

import importlib
import json
import types

import pytest

from mask_rcnn.ops.runtime import training_graph
from mask_rcnn.targets.sampling import Sampling


@pytest.fixture
def new_sizes():
    return importlib.import_module('new_sizes')


@pytest.fixture
def clock(new_sizes, monkeypatch):
    """A clock of causes, and the time that it reads in ``now[0]``."""
    now = [0.0]
    monkeypatch.setattr(new_sizes, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))
    return new_sizes.CauseClock(), now


def test_nested_calls_count_for_the_inner_cause_only(clock):
    causes, now = clock

    def wait(seconds):
        now[0] += seconds

    plan, allocate = causes.timed('plans', wait), causes.timed('memory', wait)

    def capture():
        wait(1)
        plan(2)
        allocate(4)
        plan(8)

    causes.timed('graphs', capture)()
    expected = {'plans': 10, 'compilation': 0, 'graphs': 1, 'memory': 4}
    assert causes.take() == {
        'seconds': expected,
        'calls': {'plans': 2, 'compilation': 0, 'graphs': 1, 'memory': 1},
    }
    assert causes.take() == {'seconds': dict.fromkeys(expected, 0), 'calls': dict.fromkeys(expected, 0)}


def test_a_call_that_fails_ends_its_time(clock):
    causes, now = clock

    def fail():
        now[0] += 3
        raise ValueError('no engine')

    with pytest.raises(ValueError, match='no engine'):
        causes.timed('plans', fail)()
    causes.timed('memory', lambda: None)()
    assert causes.take()['seconds'] == {'plans': 3, 'compilation': 0, 'graphs': 0, 'memory': 0}


def test_the_causes_are_timed_within_the_block_only(new_sizes, clock):
    causes, _ = clock
    before = new_sizes.convolution._build, training_graph.CapturedGradient.__init__
    with new_sizes.timed_causes(causes, has_gpu=False):
        assert new_sizes.convolution._build is not before[0]
        with pytest.raises(TypeError):
            new_sizes.convolution._build()
    assert (new_sizes.convolution._build, training_graph.CapturedGradient.__init__) == before
    assert causes.take()['calls']['plans'] == 1


def test_the_sizes_are_different_and_padded(new_sizes):
    sizes = new_sizes.make_sizes(7, (800, 1216))
    assert len(set(sizes)) == 7 and all(height % 32 == width % 32 == 0 for height, width in sizes)


@pytest.mark.slow
def test_every_size_has_its_iterations(new_sizes, monkeypatch, tmp_path, capsys):
    small = Sampling(roi_batch=16, train_pre_nms=100, train_post_nms=30)
    monkeypatch.setattr(new_sizes, 'sampling_of', lambda config: small)
    path = tmp_path / 'sizes.json'
    words = ['--extractor', 'mobilenet_v1_fpn', '--sizes', '1', '--first', '64', '96', '--repeats', '2']
    assert new_sizes.main([*words, '--json', str(path)]) == 0
    content = json.loads(path.read_text())
    assert content['sizes'] == [[64, 64]]
    (iterations,) = content['iterations']
    assert len(iterations) == 2 and all(item['total'] > 0 for item in iterations)
    figure = importlib.import_module('gpu_figures').new_size_figure(capsys.readouterr().out)
    assert figure.endswith('ms; first: plans 0.0, compilation 0.0, graphs 0.0, memory 0.0')
