"""The report and the command itself: layout, JSON, exit status, and libraries that fail in every way."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

import mask_rcnn
from mask_rcnn import cli
from mask_rcnn.cli import doctor
from mask_rcnn.cli.doctor import children
from mask_rcnn.cli.doctor.report import Advice, Section, exit_status, format_json, format_report, shorten
from tests.support.machines import complete_machine, machine_without_gpu, missing, with_probes

SECTIONS = [
    Section('CPU', 'a fast one, /home/ann/x', [Advice('note', 'add a: pip install a')]),
    Section('BLAS', 'none', [Advice('warning', 'slow: go'), Advice('error', 'broken in /home/ann: repair')], {'a': 1}),
]


def test_layout(tmp_path):
    assert format_report(SECTIONS, '/home/ann').split('\n') == [
        'CPU   a fast one, ~/x',
        'BLAS  none',
        '',
        'error:   broken in ~: repair',
        'warning: slow: go',
        'note:    add a: pip install a',
        '',
        'Commands do not work: 1 error.',
    ]
    assert exit_status(SECTIONS) == 1 and exit_status(SECTIONS[:1]) == 0
    assert format_report(SECTIONS[:1], '/home/ann').endswith('\n\nCommands work on the CPU.')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('/home/ann', '~'),
        ('in /home/ann/a:/home/ann/b', 'in ~/a:~/b'),
        ('/home/anna/x', '/home/anna/x'),
        ('/mnt/home/ann', '/mnt/home/ann'),
    ],
)
def test_the_folder_of_the_user_is_hidden(text, expected):
    assert doctor.report.hide_home(text, '/home/ann') == expected
    assert doctor.report.hide_home(text, '/') == text


def test_json():
    sections = [*SECTIONS, Section('weights', 'x', [], {'folders': {'/home/ann/w': ['/home/ann/f', None, 2]}})]
    line = format_json(sections, '0.2.0', '/home/ann')
    assert '\n' not in line
    assert json.loads(line) == {
        'version': '0.2.0',
        'ok': False,
        'sections': {
            'CPU': {'text': 'a fast one, ~/x'},
            'BLAS': {'text': 'none', 'a': 1},
            'weights': {'text': 'x', 'folders': {'~/w': ['~/f', None, 2]}},
        },
        'advice': [
            {'level': 'error', 'text': 'broken in ~: repair'},
            {'level': 'warning', 'text': 'slow: go'},
            {'level': 'note', 'text': 'add a: pip install a'},
        ],
    }


def test_a_reason_is_short():
    assert shorten('a\n  b') == 'a b'
    assert len(shorten('x' * 1000)) == 120 and shorten('x' * 1000).endswith('...')


def run_on(machine, monkeypatch, capsys, *arguments):
    """Run the command on a simulated machine; return the exit status and the standard output."""
    monkeypatch.setattr(doctor, 'gather', lambda: machine)
    status = cli.main(['doctor', *arguments])
    out, err = capsys.readouterr()
    assert err == ''
    return status, out


def test_the_report_has_a_line_for_each_section(monkeypatch, capsys):
    status, out = run_on(complete_machine(), monkeypatch, capsys)
    lines = out.splitlines()
    assert status == 0 and out.isascii()
    assert [line.split()[0] for line in lines[:11]] == list(doctor.SECTIONS)
    assert {line[9:11] for line in lines[:11]} == {'  '} and not any(line[11].isspace() for line in lines[:11])
    assert lines[11:] == ['', 'Commands work on the CPU and on the GPU.']


def test_a_machine_without_a_gpu_works(monkeypatch, capsys):
    status, out = run_on(machine_without_gpu(), monkeypatch, capsys)
    assert status == 0 and out.endswith('\n\nCommands work on the CPU.\n')


def test_a_missing_package_is_an_error(monkeypatch, capsys):
    machine = with_probes(complete_machine(), numba=missing('numba'))
    status, out = run_on(machine, monkeypatch, capsys)
    assert status == 1 and '\nerror: Numba is not installed: pip install ' in out
    status, out = run_on(machine, monkeypatch, capsys, '--json')
    assert status == 1 and out.count('\n') == 1 and json.loads(out)['ok'] is False


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder for modules and programs that replace installed ones."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    return tmp_path


def program(folder, name, text):
    """Write a shell script."""
    (folder / name).write_text(f'#!/bin/sh\n{text}\n')
    (folder / name).chmod(0o755)


#: Contents of a module -> the reason that the report contains.
BROKEN_MODULES = {
    "raise ImportError('libopenblas.so.0: cannot open\\nshared object file')": (
        'libopenblas.so.0: cannot open shared object file'
    ),
    'import no_such_module': "No module named 'no_such_module'",
    "raise ValueError('numpy.dtype size changed')": 'ValueError: numpy.dtype size changed',
    'raise SystemExit(3)': 'SystemExit: 3',
    'import os; os.abort()': 'the process crashed: SIGABRT',
    'import os, signal; os.kill(os.getpid(), signal.SIGILL)': (
        'the process crashed: SIGILL, an instruction that this processor does not have'
    ),
    "import os; os.write(2, b'first\\nMPI_Init failed\\n'); os._exit(7)": (
        'the process ended with status 7: MPI_Init failed'
    ),
}


@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
def test_a_library_that_fails_ends_its_probe_only(path):
    names = ['starlette', 'uvicorn', 'python_multipart', 'prometheus_client', 'tensorboardX', 'onnx', 'h5py']
    for name, source in zip(names, BROKEN_MODULES, strict=True):
        (path / f'{name}.py').write_text(source)
    results = children.run_probes(['yaml', *names, 'filelock'], 60)
    assert {name: results[name]['error'] for name in names} == dict(zip(names, BROKEN_MODULES.values(), strict=True))
    assert results['uvicorn']['missing'] == 'no_such_module'
    assert all(re.match(r'\d', results[name]['version']) for name in ('yaml', 'filelock'))


def test_a_library_that_does_not_end(path):
    (path / 'packaging.py').write_text("import os, time\nos.write(1, b'text')\ntime.sleep(60)")
    started = time.monotonic()
    results = children.run_probes(['yaml', 'packaging', 'filelock'], 1.5)
    assert time.monotonic() - started < 20
    assert 'version' in results['yaml']
    assert results['packaging'] == {'error': 'no answer in 2 s'}
    assert results['filelock'] == {'error': 'not checked, because an earlier check did not end'}


@pytest.mark.skipif(os.name == 'nt', reason='shell scripts')
def test_programs(path):
    program(path, 'good', 'echo "$LC_ALL"; echo two >&2')
    program(path, 'bad', 'echo wrong; exit 3')
    program(path, 'endless', 'sleep 60 & wait')
    assert children.run_program(['good'], 20) == (0, 'C\ntwo')
    assert children.run_program(['bad'], 20) == (3, 'wrong')
    assert children.run_program(['endless'], 0.6) == (None, 'no answer in 1 s')
    assert children.run_program([str(path / 'absent')], 1)[0] is None
    (path / 'no_program').write_text('')
    assert children.run_program([str(path / 'no_program')], 1) == (None, 'Permission denied')


def test_tasks_run_together_and_keep_their_errors():
    results = children.run_together({'a': lambda: 1, 'b': lambda: 1 / 0})
    assert results['a'] == 1 and isinstance(results['b'], ZeroDivisionError)


#: The outputs of nvidia-smi: the query, and the table.
SMI = """case "$1" in
--query*) echo "NVIDIA H200, 143771, 550.54.14";;
*) echo "| NVIDIA-SMI 550.54.14   Driver Version: 550.54.14   CUDA Version: 12.4 |";;
esac"""


def run_command(folder, *arguments, **variables):
    """Run the console command in a process with modules and programs in ``folder``."""
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(folder), *sys.path]),
        'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
        **variables,
    }
    command = [sys.executable, '-m', 'mask_rcnn.cli', *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == 'nt', reason='shell scripts')
def test_the_command_with_a_tool_and_without_numba(tmp_path):
    """The locale C and a closed terminal change nothing."""
    program(tmp_path, 'nvidia-smi', SMI)
    (tmp_path / 'numba.py').write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    (tmp_path / 'cupy.py').write_text("raise ImportError('libcudart.so.12: cannot open')")
    result = run_command(tmp_path, 'doctor', LC_ALL='C', PYTHONUTF8='0')
    assert (result.returncode, result.stderr) == (1, '')
    assert 'Numba fails (Numba needs NumPy 1.0 or less): ' in result.stdout
    assert re.search(r'^GPU +NVIDIA H200, 140 GiB, driver 550\.54\.14 \(CUDA 12\.4\)$', result.stdout, re.MULTILINE)
    assert "nvidia-smi works, but the driver's library fails" in result.stdout
    assert result.stdout.endswith('Commands do not work: 1 error.\n') and 'Traceback' not in result.stdout
    other = run_command(tmp_path, 'info', 'a.npz')
    assert other.returncode == 1 and other.stderr == (
        'error: a package cannot be imported (Numba needs NumPy 1.0 or less); "mask-rcnn doctor" states what to '
        'install\n'
    )


def test_the_command_here(tmp_path):
    """A broken NumPy breaks all other libraries, and is the only one that the report blames."""
    (tmp_path / 'numpy').mkdir()
    (tmp_path / 'numpy' / '__init__.py').write_text("raise ImportError('broken')")
    result = run_command(tmp_path, 'doctor', '--json')
    content = json.loads(result.stdout)
    assert result.returncode == 1 and content['version'] == mask_rcnn.__version__
    assert [item['text'].split(':')[0] for item in content['advice'] if item['level'] == 'error'] == [
        'NumPy fails (broken)'
    ]


def test_the_command_imports_no_library():
    """So it also runs if none of them works."""
    code = 'import sys, mask_rcnn.cli.doctor; print([n for n in sys.modules if n in sys.argv[1:]])'
    names = ['numpy', 'numba', 'chainer', 'cv2', 'h5py', 'PIL', 'cupy', 'matplotlib', 'packaging', 'yaml']
    result = subprocess.run([sys.executable, '-c', code, *names], capture_output=True, text=True, check=True)
    assert result.stdout == '[]\n'
