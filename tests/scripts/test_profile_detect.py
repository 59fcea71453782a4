"""The profile of a prediction: the host's on the CPU, and the output of Nsight Compute."""

import importlib
import subprocess
from types import SimpleNamespace

import pytest

CSV = """==PROF== Connected to process 1
done
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","slow_kernel","gpu__time_duration.sum","nsecond","3,000"
"1","1","fast_kernel","gpu__time_duration.sum","nsecond","500"
"2","1","slow_kernel","gpu__time_duration.sum","nsecond","1000"
"""


@pytest.fixture
def profile():
    return importlib.import_module('profile_detect')


def test_launches_are_read(profile):
    assert profile.read_launches(CSV) == {'slow_kernel': [3000, 1000], 'fast_kernel': [500]}
    assert profile.read_launches('==ERROR== nothing\n') == {}


def test_the_slowest_kernels_are_examined(profile, monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout=CSV if '--csv' in command else 'details', stderr='')

    monkeypatch.setattr(subprocess, 'run', run)
    text = profile.profile_kernels(profile.parse_arguments(['kernels', '--precision', 'fp16']))
    assert text == '3 launches, 0.00 ms in kernels'
    assert [word for command in commands for word in command if word.startswith('regex:')] == [
        'regex:^slow_kernel$',
        'regex:^fast_kernel$',
    ]
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == ['4.0', 'us', '2', 'launches', '88.9%', 'slow_kernel']
    for command in commands:
        words = command[command.index(profile.__file__) + 1 :]
        assert profile.parse_arguments(words).precision == 'fp16'


def test_an_error_of_the_profiler_is_one_line(profile, monkeypatch):
    result = SimpleNamespace(returncode=1, stdout='a\n==ERROR== ERR_NVGPUCTRPERM\nb\n', stderr='')
    monkeypatch.setattr(subprocess, 'run', lambda command, **_: result)
    with pytest.raises(OSError, match='ncu ended with status 1: ==ERROR== ERR_NVGPUCTRPERM'):
        profile.run_ncu(profile.parse_arguments(['kernels']), [])


def test_the_host_profile_lists_functions(profile, root, capsys):
    model = root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
    words = ['--gpu', '-1', '--modelfile', str(model), '--size', '64', '96', '--runs', '1', '--warmup', '0']
    assert profile.main(['host', *words]) == 0
    out = capsys.readouterr().out
    assert 'tottime' in out and 'per prediction without the profiler, 1 run\n' in out


def test_kernels_need_a_gpu(profile, capsys):
    with pytest.raises(SystemExit):
        profile.parse_arguments(['kernels', '--gpu', '-1'])
    assert 'kernels needs a GPU' in capsys.readouterr().err
