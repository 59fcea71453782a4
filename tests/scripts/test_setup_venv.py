"""``make setup`` without the installation itself, which every run of the tests proves."""

import importlib.util
import os
import subprocess
import sys

import pytest


@pytest.fixture
def setup_venv(root):
    spec = importlib.util.spec_from_file_location('setup_venv', root / 'scripts' / 'setup_venv.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def created(setup_venv, monkeypatch):
    """What would have been done: the extras of new environments, and the later purposes."""
    created = []

    def create_environment(folder, extras):
        created.append(extras)
        os.makedirs(folder, exist_ok=True)

    monkeypatch.setattr(setup_venv, 'create_environment', create_environment)
    monkeypatch.setattr(setup_venv, 'install_tools', lambda folder: created.append('develop'))
    monkeypatch.setattr(setup_venv, 'compile_kernels', lambda folder: created.append('test'))
    return created


@pytest.fixture
def commands(setup_venv, monkeypatch):
    """The commands that would have been run."""
    commands = []
    monkeypatch.setattr(setup_venv, 'run', lambda command, advice: commands.append(command))
    return commands


def main(setup_venv, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['setup_venv.py', *map(str, arguments)])
    setup_venv.main()


def test_an_environment_is_created_once_per_set_of_extras(setup_venv, created, monkeypatch, tmp_path):
    for extras in ('none', 'none', 'cuda12', 'cuda12', 'none'):
        main(setup_venv, monkeypatch, '--venv', tmp_path / 'env', '--extras', extras)
    assert created == [step for extras in ('none', 'cuda12', 'none') for step in (extras, 'develop', 'test')]


@pytest.mark.parametrize(
    ('purposes', 'steps'),
    [
        (['run', 'run'], ['none']),
        (['run', 'develop', 'develop', 'run'], ['none', 'develop']),
        (['develop', 'run'], ['none', 'develop']),
        (['run', 'test', 'develop'], ['none', 'develop', 'test']),
        (['develop', 'test'], ['none', 'develop', 'test']),
    ],
)
def test_the_environment_of_the_demo_becomes_that_of_the_tests(
    setup_venv, created, monkeypatch, tmp_path, purposes, steps
):
    for purpose in purposes:
        main(setup_venv, monkeypatch, '--venv', tmp_path / 'env', '--extras', 'none', '--purpose', purpose)
    assert created == steps


def test_an_activated_environment_is_up_to_date(setup_venv, created, monkeypatch, tmp_path):
    main(setup_venv, monkeypatch, '--venv', tmp_path / 'env', '--extras', 'none')
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'env'))
    main(setup_venv, monkeypatch, '--venv', tmp_path / 'env', '--extras', 'none')
    assert created == ['none', 'develop', 'test']


@pytest.mark.skipif(os.name == 'nt', reason='the command of POSIX shells')
@pytest.mark.parametrize(
    ('folder', 'command'), [('.venv', 'source .venv/bin/activate'), ('my env', "source 'my env/bin/activate'")]
)
def test_the_last_line_states_how_to_activate_a_created_environment(
    setup_venv, created, monkeypatch, tmp_path, capsys, folder, command
):
    """An environment that is up to date adds no line to the output of ``make test``."""
    monkeypatch.chdir(tmp_path)
    for extras, is_new in (('none', True), ('none', False), ('cuda12', True)):
        main(setup_venv, monkeypatch, '--venv', folder, '--extras', extras)
        line = f'ready; activate the environment with: {command}\n'
        assert capsys.readouterr().out == (line if is_new else '')


def test_a_failed_attempt_is_repeated(setup_venv, monkeypatch, tmp_path, capsys):
    def fail(folder, extras):
        raise setup_venv.SetupError('no network')

    monkeypatch.setattr(setup_venv, 'create_environment', fail)
    for _ in range(2):
        with pytest.raises(SystemExit, match='^setup: no network$'):
            main(setup_venv, monkeypatch, '--venv', tmp_path / 'env', '--extras', 'none')
    assert capsys.readouterr().out == ''


def test_each_long_step_is_announced(setup_venv, commands, tmp_path, capsys):
    setup_venv.create_environment(str(tmp_path / 'env'), 'none')
    setup_venv.install_tools(str(tmp_path / 'env'))
    setup_venv.compile_kernels(str(tmp_path / 'env'))
    first, *steps = capsys.readouterr().out.splitlines()
    assert first.startswith('Setting up ')
    assert [step.split(';')[0].rstrip('.') for step in steps] == [
        'Installing the packages of the tests',
        'Compiling the CPU kernels',
    ]


@pytest.mark.parametrize(('extras', 'names'), [('none', ['demo']), ('cuda12', ['demo', 'cuda12'])])
def test_the_demo_needs_neither_tests_nor_compiled_kernels(setup_venv, commands, tmp_path, extras, names):
    setup_venv.create_environment(str(tmp_path / 'env'), extras)
    make_environment, install = commands
    assert make_environment[1:3] == ['-m', 'venv']
    assert install[-1] == f'{setup_venv.ROOT}[{",".join(names)}]' and '--no-build-isolation' not in install


def test_development_compiles_the_kernels_after_the_installation(setup_venv, commands, tmp_path):
    setup_venv.install_tools(str(tmp_path / 'env'))
    setup_venv.compile_kernels(str(tmp_path / 'env'))
    install, compilation = commands
    assert install[-1].endswith('[test,lint]') and compilation[1].endswith('compile_kernels.py')


def test_an_environment_without_the_pictures_of_the_demo_is_ready(setup_venv, monkeypatch, tmp_path, capsys):
    commands = []

    def run(command, advice):
        commands.append(command)
        if '[demo' in command[-1]:
            raise setup_venv.SetupError('no network')

    monkeypatch.setattr(setup_venv, 'run', run)
    setup_venv.create_environment(str(tmp_path / 'env'), 'none')
    assert '"make demo" runs without the nuclei' in capsys.readouterr().out
    assert [command[-1].removeprefix(setup_venv.ROOT) for command in commands[1:]] == ['[demo]', '']


def test_an_activated_environment_is_created_by_the_base_interpreter(setup_venv, commands, monkeypatch, tmp_path):
    """The interpreter of the environment is deleted with its folder."""
    monkeypatch.setattr(sys, 'executable', str(tmp_path / 'env' / 'bin' / 'python'))
    setup_venv.create_environment(str(tmp_path / 'env'), 'none')
    assert commands[0][0] == sys._base_executable and commands[0][1:3] == ['-m', 'venv']
    assert not any('cuda' in word for command in commands for word in command)


@pytest.mark.parametrize(
    ('version', 'supported'),
    [((3, 9, 1), False), ((3, 10, 0), True), ((3, 15, 4), True), ((3, 16, 0), False), ((2, 7, 18), False)],
)
def test_supported_python_versions(setup_venv, monkeypatch, version, supported):
    monkeypatch.setattr(sys, 'version_info', version)
    if supported:
        setup_venv.check_python()
    else:
        with pytest.raises(setup_venv.SetupError, match='make setup PYTHON=python3.12'):
            setup_venv.check_python()


@pytest.mark.parametrize(
    ('banner', 'extras'),
    [
        (b'| Driver Version: 570.1  CUDA Version: 12.8  |', 'cuda12'),
        (b'| Driver Version: 580.9  CUDA Version: 13.0  |', 'cuda13'),
        (b'| Driver Version: 470.1  CUDA Version: 11.4  |', 'none'),
        (b'something else', 'none'),
        (OSError('no nvidia-smi'), 'none'),
        (subprocess.CalledProcessError(9, 'nvidia-smi'), 'none'),
    ],
)
def test_extras_match_the_driver(setup_venv, monkeypatch, banner, extras):
    def check_output(command, **options):
        if isinstance(banner, Exception):
            raise banner
        return banner

    monkeypatch.setattr(subprocess, 'check_output', check_output)
    assert setup_venv.driver_extras() == extras
