"""Build what a release consists of, and check it: ``make dist``.

    python scripts/make_dist.py [--out dist]

The folder receives the source archive and the wheel of this package, and the wheels of Chainer and ChainerCV, which the
wheel of this package requires and no package index has.  Together they install without a checkout or a compiler:

    pip install dist/*.whl

Equal sources give equal bytes.  The extra ``dist`` contains the tools.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Build and check; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=ROOT / 'dist', help='folder, in which no other file may be')
    folder = parser.parse_args(argv).out
    if folder.exists() and not folder.is_dir():
        parser.error(f'--out {folder}: is a file; name a folder, which may be missing')
    try:
        if folder.exists() and any(path.suffix not in ('.whl', '.gz') for path in folder.iterdir()):
            parser.error(f'{folder}: the folder contains other files than archives; choose another one with --out')
        for archive in build(folder):
            sys.stdout.write(f'{archive}\n')
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f'make_dist: {" ".join(map(str, error.cmd))} failed; its error is printed above\n')
        return 1
    except OSError as error:  # such as --out below a file
        sys.stderr.write(f'make_dist: {error.filename or folder}: {error.strerror or error}\n')
        return 1
    return 0


def build(folder: Path) -> list[Path]:
    """Build the archives of a release in place of those in a folder.

    Args:
        folder: The folder, which is created if it is missing; it is changed only after all checks.

    Returns:
        The archives.

    Raises:
        subprocess.CalledProcessError: A tool failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        new = Path(temporary)
        _run('build', '--outdir', new, '--config-setting', 'portable=true', ROOT)
        (wheel,) = new.glob('*.whl')
        _run('twine', 'check', '--strict', *new.iterdir())
        _run('check_wheel_contents', wheel)
        _run_python(ROOT / 'build_backend' / 'chainer_wheels.py', new)
        for path in folder.glob('*.*'):
            if path.is_file():
                path.unlink()
        return sorted(path.rename(folder / path.name) for path in new.iterdir())


def _run(module: str, *arguments: object) -> None:
    _run_python('-m', module, *arguments)


def _run_python(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=sys.stderr)


if __name__ == '__main__':
    sys.exit(main())
