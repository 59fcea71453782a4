"""Create or update the virtual environment that ``make demo`` and ``make test`` use.

    python3 scripts/setup_venv.py [--venv .venv] [--extras auto|none|cuda12|cuda13] [--purpose run|develop|test]

Needs Python 3.10 to 3.15 with venv and pip, nothing else.  An environment that is up to date is kept; any other is
created again.  The one that ``make demo`` creates is small; ``make lint`` adds the packages of developers, and
``make test`` compiles all kernels.
"""

from __future__ import print_function

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INPUTS = (
    'pyproject.toml',
    'constraints.txt',
    os.path.join('build_backend', 'dependencies.txt'),
    os.path.join('scripts', 'setup_venv.py'),
)
#: In ascending order: an environment also serves the earlier purposes.
PURPOSES = ['run', 'develop', 'test']


class SetupError(Exception):
    """The environment cannot be created; the message contains the remedy."""


def main():
    """Create the environment unless it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', default=os.path.join(ROOT, '.venv'))
    parser.add_argument(
        '--extras',
        default='auto',
        choices=['auto', 'none', 'cuda12', 'cuda13'],
        help='GPU libraries to install (default: what the NVIDIA driver supports, if any)',
    )
    parser.add_argument(
        '--purpose',
        default='test',
        choices=PURPOSES,
        help='"run" installs what the demo needs, "develop" also what tests and lint need; "test" (default) also '
        'compiles the CPU kernels',
    )
    args = parser.parse_args()
    try:
        check_python()
        extras = driver_extras() if args.extras == 'auto' else args.extras
        stamp = os.path.join(args.venv, '.ready')
        key = environment_key(extras)
        ready = [number for number, purpose in enumerate(PURPOSES) if read_text(stamp) == key + purpose]
        steps = [
            lambda: create_environment(args.venv, extras),
            lambda: install_tools(args.venv),
            lambda: compile_kernels(args.venv),
        ]
        missing = steps[ready[0] + 1 if ready else 0 : PURPOSES.index(args.purpose) + 1]
        for step in missing:
            step()
        if missing:
            with open(stamp, 'w') as file:
                file.write(key + args.purpose)
            print_now('ready; activate the environment with: %s' % activation_command(args.venv))
    except SetupError as error:
        sys.exit('setup: %s' % error)


def check_python():
    """Raise SetupError unless this interpreter can create the environment."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 15):
        raise SetupError(
            'Python %d.%d is not supported; choose one of 3.10 to 3.15, for example '
            '"make setup PYTHON=python3.12"' % sys.version_info[:2]
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            'this Python has no venv or no pip; install them '
            '(on Debian and Ubuntu: apt install python3-venv python3-pip)'
        )


def driver_extras():
    """Return the extra that matches the NVIDIA driver, 'none' without a driver."""
    try:
        banner = subprocess.check_output(['nvidia-smi'], stderr=subprocess.DEVNULL).decode()
    except (OSError, subprocess.CalledProcessError):
        return 'none'
    version = re.search(r'CUDA Version:\s*(\d+)', banner)
    if not version or int(version.group(1)) < 12:
        return 'none'
    return 'cuda12' if int(version.group(1)) == 12 else 'cuda13'


def environment_key(extras):
    """Return a string that changes when the environment must be created again."""
    digest = hashlib.sha256()
    for name in INPUTS:
        with open(os.path.join(ROOT, name), 'rb') as f:
            digest.update(f.read())
    # base_prefix: the same inside an activated environment as outside it
    return '%s %s %s %s %s\n' % (sys.version.split()[0], sys.base_prefix, extras, ROOT, digest.hexdigest())


def create_environment(folder, extras):
    """Create the environment with what the demo needs."""
    print_now(
        'Setting up %s with Python %s (extras: %s); this takes about a minute.'
        % (folder, sys.version.split()[0], extras)
    )
    shutil.rmtree(folder, ignore_errors=True)
    # Not sys.executable: if this environment is activated, it lies in the folder that was just removed.
    interpreter = getattr(sys, '_base_executable', None) or sys.executable
    run([interpreter, '-m', 'venv', folder], 'the virtual environment could not be created')
    gpu = [] if extras == 'none' else [extras]
    try:
        install(folder, ['demo'] + gpu, ['--only-binary', 'mahotas'])
    except SetupError:
        install(folder, gpu)
        print_now('The extra "demo" (mahotas) could not be installed; "make demo" runs without the nuclei.')


def install_tools(folder):
    """Install what tests and lint need."""
    print_now('Installing the packages of the tests.')
    install(folder, ['test', 'lint'])


def compile_kernels(folder):
    """Compile the CPU kernels, which the tests would otherwise do one by one."""
    print_now('Compiling the CPU kernels; this takes one to three minutes.')
    script = os.path.join(ROOT, 'scripts', 'compile_kernels.py')
    command = [environment_python(folder), script, '--training']
    run(command, 'the CPU kernels could not be compiled; the error is printed above')


def install(folder, extras, options=()):
    """Install this checkout with some of its extras, in the versions that the tests run with."""
    command = [environment_python(folder), '-m', 'pip', '--disable-pip-version-check', 'install', '-q']
    command += ['-c', os.path.join(ROOT, 'constraints.txt')] + list(options)
    command += ['-e', ROOT + ('[%s]' % ','.join(extras) if extras else '')]
    run(command, 'pip could not install the packages; check the network (and the proxy), then run it again')


def environment_python(folder):
    """Return the interpreter of an environment."""
    return os.path.join(folder, 'Scripts' if os.name == 'nt' else 'bin', 'python')


def activation_command(folder):
    """Return the shell command that activates an environment."""
    if os.name == 'nt':
        return os.path.join(folder, 'Scripts', 'activate')
    return 'source %s' % shlex.quote(os.path.join(folder, 'bin', 'activate'))


def print_now(line):
    """Print a line before the next subprocess prints."""
    print(line)
    sys.stdout.flush()


def run(command, advice):
    """Run a command; raise SetupError with a piece of advice if it fails."""
    try:
        subprocess.check_call(command)
    except (OSError, subprocess.CalledProcessError):
        raise SetupError(advice)


def read_text(path):
    """Return the content of a file, None if it cannot be read."""
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return None


if __name__ == '__main__':
    main()
