"""The GPU check: its runner with small commands, its parts and its figures."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from mask_rcnn.cli.train_arguments import TrainArguments
from tests.support.contracts import parser_of


@pytest.fixture
def runner():
    return importlib.import_module('part_runner')


@pytest.fixture
def check():
    return importlib.import_module('gpu_check')


@pytest.fixture
def gpu_parts():
    return importlib.import_module('gpu_parts')


@pytest.fixture
def figures():
    return importlib.import_module('gpu_figures')


def python(code):
    return [sys.executable, '-c', code]


#: Starts a child that sleeps, and prints its number; a shell starts faster than Python.
SLEEPING_CHILD = 'sleep 600 & echo $!'


def is_running(pid):
    """Return whether a process exists that is not a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.fixture
def parts(runner):
    return [
        runner.Part('speed', python('print("total 3 ms")'), 120, is_timed=True, figure=lambda log: log.split()[1]),
        runner.Part('tests/good', python('print("12 passed")'), 120),
        runner.Part('tests/bad', python('print("one", flush=True); raise SystemExit("broken")'), 120),
        runner.Part('tests/hanging', ['sh', '-c', f'{SLEEPING_CHILD}; wait'], 2),
        runner.Part('absent', ['no-such-program-x'], 120, needs=['no-such-program-x']),
        runner.Part('cannot-start', ['no-such-program-x'], 120),
        runner.Part('none', python('raise SystemExit(5)'), 120, is_skipped=lambda status, log: status == 5),
    ]


EXPECTED = {
    'speed': ('ok', '3'),
    'tests/good': ('ok', '12 passed'),
    'tests/bad': ('failed', 'broken'),
    'tests/hanging': ('timed out', None),
    'absent': ('skipped', 'no-such-program-x does not exist'),
    'cannot-start': ('failed', 'no-such-program-x: No such file or directory'),
    'none': ('skipped', ''),
}


needs_proc = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='reads the states of processes from /proc')


@needs_proc
@pytest.mark.parametrize('jobs', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_parts_end_independently(jobs, runner, parts, tmp_path):
    reported = []
    results = runner.PartRunner(tmp_path / 'logs', tmp_path, reported.append, jobs=jobs).run(parts)
    assert [result.name for result in results] == list(EXPECTED)
    assert sorted(results, key=lambda result: result.name) == sorted(reported, key=lambda result: result.name)
    assert reported[-1].name == 'speed'  # alone, after the others
    for result in results:
        status, figure = EXPECTED[result.name]
        assert result.status == status, result
        assert figure is None or result.figure == figure
        assert (result.log is None) == (result.name == 'absent')
    hanging = next(result for result in results if result.name == 'tests/hanging')
    assert 2 <= hanging.seconds < 600
    assert_ends(int(Path(hanging.log).read_text()))  # the child was killed as well


def assert_ends(pid):
    deadline = time.monotonic() + 120
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_proc
def test_children_of_a_finished_part_are_killed(runner, tmp_path):
    part = runner.Part('a', ['sh', '-c', SLEEPING_CHILD], 120)  # ends at once
    (result,) = runner.PartRunner(tmp_path, tmp_path, lambda result: None).run([part])
    assert result.status == 'ok'
    assert_ends(int(Path(result.log).read_text()))


def test_the_total_limit_cuts_and_skips(runner, tmp_path, monkeypatch):
    times = iter([0, 0, 1, 1])  # of the runner, the start and the end of the first part, and the start of the second
    monkeypatch.setattr(runner, 'time', types.SimpleNamespace(monotonic=times.__next__))
    monkeypatch.setattr(runner, 'MIN_SECONDS', 0.5)
    slow = [runner.Part(f'slow/{i}', ['sleep', '600'], 600) for i in range(2)]
    first, second = runner.PartRunner(tmp_path, tmp_path, lambda result: None, limit=1).run(slow)
    assert first.status == 'timed out'
    assert (second.status, second.figure, second.log) == ('skipped', 'no time is left', None)


def test_an_interrupt_kills_what_runs(runner, tmp_path):
    def interrupt(result):
        raise KeyboardInterrupt

    parts = [runner.Part('a', ['true'], 120), runner.Part('b', ['sleep', '600'], 600)]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner.PartRunner(tmp_path, tmp_path, interrupt, jobs=2).run(parts)
    assert time.monotonic() - started < 300


def test_a_part_that_starts_during_an_interrupt_is_killed(runner, tmp_path, monkeypatch):
    def interrupt(result):
        raise KeyboardInterrupt

    processes, starting = [], threading.Event()
    part_runner = runner.PartRunner(tmp_path, tmp_path, interrupt, jobs=2)

    class Process(subprocess.Popen):
        def __init__(self, command, **options):
            if command[0] == 'sleep':
                processes.append(self)
                starting.set()
                while not part_runner._is_stopped:
                    time.sleep(0.01)
            else:  # the part whose result is interrupted
                starting.wait()
            super().__init__(command, **options)

    monkeypatch.setattr(runner.subprocess, 'Popen', Process)
    with pytest.raises(KeyboardInterrupt):
        part_runner.run([runner.Part('a', ['true'], 120), runner.Part('b', ['sleep', '20'], 600)])
    assert [process.returncode for process in processes] == [-signal.SIGKILL]


def test_table(runner):
    results = [
        runner.Result('tests/a', 'ok', 1.25, '3 passed', ['x']),
        runner.Result('b', 'timed out', 20, '', ['y']),
        runner.Result('c', 'ok', 2, 'figure', ['z']),
    ]
    lines = runner.table(results).splitlines()
    assert lines[0].split() == ['part', 'result', 'time', 'figure']
    assert lines[1].split() == ['tests/a', 'ok', '1.2', 's', '3', 'passed']
    assert lines[2].split() == ['b', 'timed', 'out', '20.0', 's']
    assert lines[-1] == '2 ok, 1 timed out'


@pytest.mark.parametrize(('bad', 'status'), [(False, 0), (True, 1)])
def test_json_and_exit_status(bad, status, check, parts, monkeypatch, tmp_path, capsys):
    chosen = [part for part in parts if part.name in ('tests/good', 'absent') or (bad and part.name == 'tests/bad')]
    monkeypatch.setattr(check, 'make_parts', lambda args: chosen)
    monkeypatch.setattr(check, 'gpu_error', lambda gpu: None)
    path = tmp_path / 'results.json'
    assert check.main(['--out', str(tmp_path / 'logs'), '--json', str(path)]) == status
    content = json.loads(path.read_text())
    assert [part['name'] for part in content['parts']] == [part.name for part in chosen]
    assert content['parts'][0] | {'seconds': 0} == {
        'name': 'tests/good',
        'status': 'ok',
        'seconds': 0,
        'figure': '12 passed',
        'command': list(chosen[0].command),
        'log': str(tmp_path / 'logs' / 'tests-good.log'),
    }
    assert 'tests/good' in capsys.readouterr().out


#: Content of a module cupy -> the reason in the line.
BROKEN_CUPY = {
    "raise ModuleNotFoundError('No module named cupy', name='cupy')": 'CuPy is not installed',
    "raise ImportError('libcudart.so.12: cannot open\\nshared object file')": (
        'CuPy cannot be imported (libcudart.so.12: cannot open shared object file)'
    ),
    "try:\n    import no_such_module\nexcept ImportError as error:\n    raise ImportError('=' * 99) from error": (
        "CuPy cannot be imported (No module named 'no_such_module')"
    ),
    'import types; cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: 0))': (
        'there is no CUDA device'
    ),
}


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in ('absent', 'wrapped') else [])
        for name, case in zip(('absent', 'broken', 'wrapped', 'no device'), BROKEN_CUPY.items(), strict=True)
    ],
)
def test_without_a_gpu_one_line_states_why_and_nothing_runs(source, reason, check, monkeypatch, tmp_path, capsys):
    (tmp_path / 'cupy.py').write_text(source)
    monkeypatch.setitem(check.ENVIRONMENT, 'PYTHONPATH', f'{tmp_path}{os.pathsep}{check.ROOT}')
    monkeypatch.setattr(check, 'PartRunner', None)
    out = tmp_path / 'logs'
    assert check.main(['--out', str(out), '--json', str(tmp_path / 'results.json')]) == 1
    line = capsys.readouterr().err
    assert (
        line.startswith(f'gpu_check.py: --gpu 0: {reason}; "mask-rcnn doctor" states what is missing; run this on ')
        and line.count('\n') == 1
    )
    assert '--gpu -1' in line and not out.exists() and not (tmp_path / 'results.json').exists()


#: A site with CuPy's stand-in, which has one device, and which writes to the standard output when it is imported.
WORKING_CUPY = """
print('a message of a library')
from tests.support.cupy_stand_in.modules import install
install()
"""


def test_a_gpu_that_works_is_accepted(check, monkeypatch, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(WORKING_CUPY)
    monkeypatch.setitem(check.ENVIRONMENT, 'PYTHONPATH', f'{tmp_path}{os.pathsep}{check.ROOT}')
    assert check.gpu_error(0) is None
    assert check.gpu_error(1) == 'there is only 1 CUDA device'


def names(check, *words):
    return [part.name for part in check.make_parts(check.parse_arguments(list(words)))]


def test_groups_and_quick_select_parts(check, gpu_parts, monkeypatch):
    monkeypatch.setattr(gpu_parts, 'has_package', lambda python, name: True)
    everything = names(check)
    assert len(set(everything)) == len(everything)
    groups = [name.split('/')[0] for name in everything]
    quick = ['doctor', 'tests', 'golden', 'detect', 'update', 'precision-ap', 'sanitizer']
    others = ['new-sizes', 'server', 'training-speed', 'predict-speed', 'kernels', 'training']
    assert list(dict.fromkeys(groups)) == [*quick, *others]
    assert set(groups) - {name.split('/')[0] for name in names(check, '--quick')} == set(groups) - set(quick)
    assert names(check, '--parts', 'training', 'doctor') == ['doctor', 'training/fp32', 'training/fp16']
    assert names(check, '--parts', 'detect/bundled') == ['detect/bundled']
    assert [name for name in names(check, '--profile') if name.startswith('profile')]


#: Scripts that a part may start, with a function that parses their arguments.
PARSERS = ('benchmark', 'compare_devices', 'kernels', 'new_sizes', 'precision_ap', 'profile_detect', 'training')


@pytest.mark.parametrize('gpu', ['0', '-1'])
def test_the_scripts_accept_the_arguments_of_the_parts(gpu, check, gpu_parts, monkeypatch):
    monkeypatch.setattr(gpu_parts, 'has_package', lambda python, name: True)
    for part in check.make_parts(check.parse_arguments(['--gpu', gpu, '--profile'])):
        files = [Path(word) for word in part.command if word.endswith('.py')]
        assert all((check.ROOT / path).exists() for path in files if str(path) not in part.needs), part.name
        if files and files[0].stem in PARSERS and files[0].exists():
            importlib.import_module(files[0].stem).parse_arguments(
                part.command[part.command.index(str(files[0])) + 1 :]
            )


@pytest.mark.parametrize('gpu', ['0', '-1'])
def test_train_accepts_the_arguments_of_the_parts(gpu, check):
    words = ['--gpu', gpu, '--parts', 'training', 'photos', '--photos', 'photos', '--weights', 'weights.npz']
    parts = check.make_parts(check.parse_arguments(words))
    assert parts[0].name == 'photos'
    for part in parts:
        arguments = TrainArguments.from_namespace(parser_of('train').parse_args(part.command[2:]))
        if part.name == 'photos':
            assert arguments.pretrained == str(Path('weights.npz').resolve())
            assert arguments.data.files['train'] == arguments.data.files['val']
            assert set(part.needs) == {str(Path('weights.npz').resolve()), *map(str, arguments.data.files['train'])}


def test_parts_that_run_first(check):
    assert names(check, '--first', 'golden', 'tests/ops/nms')[:2] == ['tests/ops/nms', 'golden/command_line']
    assert sorted(names(check, '--first', 'golden')) == sorted(names(check))


def test_the_server_is_skipped_without_its_packages(check):
    (part,) = check.make_parts(check.parse_arguments(['--parts', 'server']))
    log = 'error: the server needs starlette, which cannot be imported\nerror: the server did not start\n'
    assert part.is_skipped(1, log) and not part.is_skipped(1, 'error: the server did not start')


@pytest.mark.slow
def test_the_files_with_gpu_tests_are_those_that_pytest_selects(check, gpu_parts):
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider', 'tests']
    listed = subprocess.run(command, cwd=check.ROOT, capture_output=True, text=True, timeout=1800).stdout
    selected = {line.split('::')[0] for line in listed.splitlines() if '::' in line}
    assert selected and selected <= {str(path.relative_to(check.ROOT)) for path in gpu_parts.gpu_test_files()}


GPU_CONFTEST = """
@pytest.fixture(scope='session', params=[-1, pytest.param(0, marks=pytest.mark.gpu)])
def gpu(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def load_model(folder, gpu):
    return gpu
"""


def test_files_with_gpu_tests(gpu_parts, monkeypatch, tmp_path):
    files = {
        'golden/conftest.py': GPU_CONFTEST,
        'golden/test_a.py': 'def test_a(load_model): pass',
        'golden/test_b.py': 'def test_b(folder): pass',
        'ops/test_c.py': '@pytest.mark.gpu',
        'ops/test_d.py': 'def test_d(gpu): pass',  # a fixture of another folder
        'scripts/test_e.py': '@pytest.mark.gpu',
    }
    for name, content in files.items():
        path = tmp_path / 'tests' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(gpu_parts, 'ROOT', tmp_path)
    found = [str(path.relative_to(tmp_path / 'tests')) for path in gpu_parts.gpu_test_files()]
    assert found == ['ops/test_c.py', 'golden/test_a.py']


def test_unknown_parts_are_an_error(check, capsys):
    assert check.main(['--parts', 'nothing']) == 2
    assert '--list' in capsys.readouterr().err


def test_list_starts_nothing(check, capsys, tmp_path):
    assert check.main(['--list', '--gpu', '-1', '--out', str(tmp_path / 'logs')]) == 0
    assert 'detect/bundled' in capsys.readouterr().out
    assert not (tmp_path / 'logs').exists()


FIGURES = [
    ('pytest_figure', 'x\n=== 3 passed, 1 skipped in 2.10s ===\n', '3 passed, 1 skipped in 2.10s'),
    (
        'detect_figure',
        'bundled on GPU 0, tf32: failed, ValueError: x\nbundled on GPU 0, bf16: not supported, it needs more\n'
        'bundled, fp32 compared with the CPU: 10/11 found, box 0.02 px, score 1.2e-05, mask IoU 0.998\n',
        'fp32 10/11 (0.02 px, 1.2e-05), tf32 failed, bf16 not supported',
    ),
    (
        'update_figure',
        'bundled, fp16 compared with the CPU: losses within 0.01, parameters within 0.2 (relative)\n',
        'fp16 0.01',
    ),
    (
        'precision_figure',
        'mobilenet_v1_fpn, 200 images\n'
        'precision        bbox AP   change  as fp32       segm AP   change  as fp32  detections\n'
        'fp32               66.30        -        -         66.00        -        -        1581\n'
        'fp16               66.31    +0.01    99.41         65.98    -0.02    99.53        1582\n',
        'fp32 66.00, fp16 65.98',
    ),
    ('sanitizer_figure', '1 passed\n========= ERROR SUMMARY: 0 errors\n', 'ERROR SUMMARY: 0 errors'),
    (
        'benchmark_figure',
        'RPN  1\ntotal  0.0123  0.01  0.02 0.01 100.0%\n\nthe peer takes 2.50 times as long (2 to 3)\n',
        '12.3 ms, peer x 2.50',
    ),
    ('benchmark_figure', 'total  0.0123  0.01  0.02 0.01 100.0%\n', '12.3 ms'),
    (
        'training_speed_figure',
        '1       this              0.0341    0.03\n1       torch 2.11        0.06\n'
        'the peer takes 1.90 times as long (1 to 2)\n2       this              0.0500    0.05\n',
        '1: 34 ms, peer x 1.90; 2: 50 ms',
    ),
    (
        'training_figure',
        'iteration   epoch       rate     loss\n        1       0   1.00e-04    2.752    0.587\n'
        '      100       0   1.00e-03    1.173    0.596\ndone after 100 iterations\n',
        'loss 2.752 to 1.173 after 100 iterations',
    ),
    (
        'photo_figure',
        'iteration  epoch       rate     loss    box AP   mask AP\n        1       0   1.00e-04    5.752\n'
        '      150       6   1.00e-03    1.173     0.120     0.098\ndone after 150 iterations\n',
        'loss 5.752 to 1.173 after 150 iterations, mask AP 0.098',
    ),
    (
        'new_size_figure',
        'iteration     total     plans (calls)compilation (calls)    graphs (calls)    memory (calls)     rest\n'
        '1             812.5         510.0 (180)          0.0 (0)           1.0 (2)        33.1 (41)     99.9\n'
        '2             300.0           0.0 (0)            0.0 (0)         250.0 (2)         0.0 (0)      50.0\n',
        '812.5 300.0 ms; first: plans 510.0, compilation 0.0, graphs 1.0, memory 33.1',
    ),
    (
        'server_figure',
        '                      images/s  p50, ms  p95, ms  CPU ms / image\n'
        'detect                   10.52       95      101             180\n'
        'server, 1 client         10.11       98      111             185\n'
        'server, 8 clients        30.00      260      300             150\n',
        'detect 10.52, server, 1 client 10.11, server, 8 clients 30.00 images/s',
    ),
    (
        'doctor_figure',
        'packages   NumPy 2.5.2\nGPU        NVIDIA H200\nCUDA       CuPy 14.2.0 for CUDA 13.0\ncuDNN      cuDNN 9.19\n',
        'NVIDIA H200; CuPy 14.2.0 for CUDA 13.0; cuDNN 9.19',
    ),
    ('doctor_figure', 'GPU        none\n\nerror:   Chainer fails (x): do this\n', 'Chainer fails (x): do this'),
    (
        'kernels_figure',
        'RoIAlign forward, C4, float32  0.1 2.0 3.0 61.5%\nRoIAlign backward, C4, float32  0.1 2.0 3.0 50.1%\n'
        'NMS, 6000 boxes  0.1 2.0 3.0 7.0%\n',
        'RoIAlign 61.5/50.1 %, NMS 7.0 %',
    ),
]


@pytest.mark.parametrize(('function', 'log', 'figure'), FIGURES)
def test_figures(function, log, figure, figures):
    assert getattr(figures, function)(log) == figure


@pytest.mark.parametrize(
    ('status', 'log', 'skipped'),
    [
        (5, 'no tests ran', True),
        (0, '3 skipped in 1s', True),
        (0, '1 passed, 3 skipped', False),
        (1, '1 failed', False),
    ],
)
def test_pytest_without_tests_is_skipped(status, log, skipped, figures):
    assert figures.pytest_skipped(status, log) is skipped


def test_an_incomplete_log_gives_its_last_line(runner, figures, tmp_path):
    part = runner.Part('a', python('print("starting"); raise SystemExit(1)'), 120, figure=figures.benchmark_figure)
    (result,) = runner.PartRunner(tmp_path, tmp_path, lambda result: None).run([part])
    assert (result.status, result.figure) == ('failed', 'starting')
