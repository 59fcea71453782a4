"""Shared parts of the reliability checks: the small network, runs of the command line, and the figures of a check.

The checks need a checkout and its ``.venv`` only; every input is generated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this checkout, and the builders of files that the tests share

#: Fields of a network of 20,000 parameters, as options of ``mask-rcnn train``.
FIELDS = {'width': 0.0625, 'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 16, 'mask_channels': 8}

#: Shapes of 64 pixels: an iteration takes some 50 ms.
TRAIN = [
    *('train', '--dataset', 'shapes', '--extractor', 'mobilenet_v1_fpn', '--pretrained', 'none'),
    *('--set', *(f'{name}={value}' for name, value in FIELDS.items())),
    *('--min-size', '64', '--max-size', '64', '--roi-batch', '16', '--train-proposals', '50', '--batchsize', '2'),
    *('--gpu', '-1', '--workers', '0', '--lr', '0.001', '--lr-initialchange', '0'),
]


@dataclass
class Report:
    """The outcome of a check, one row of the table.

    Args:
        check: Name of the check.
        done: The work, with its number.
        outcome: The figures.
        findings: One line per failure; empty if the check passed.
        skipped: One line per part that this machine does not permit.
        seconds: Duration.
    """

    check: str
    done: str
    outcome: str
    findings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def status(self) -> int:
        """The exit status of the script."""
        return 1 if self.findings else 0


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all checks have.

    Args:
        description: The script's docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0, help='seed of all random choices (default: %(default)s)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the figures to this file')
    return parser


def finish(report: Report, path: Path | None, started: float) -> int:
    """Print a report, write it if ``path`` is not ``None``, and return the exit status.

    Args:
        report: The report.
        path: The value of ``--json``.
        started: ``time.monotonic()`` at the beginning of the check.
    """
    report.seconds = time.monotonic() - started
    for line in report.findings:
        print(f'FINDING: {line}')
    for line in report.skipped:
        print(f'skipped: {line}')
    print(f'{report.check}: {report.done}: {report.outcome} ({report.seconds:.0f} s)')
    if path is not None:
        path.write_text(json.dumps(asdict(report), indent=1) + '\n')
    return report.status


def machine() -> str:
    """Return the machine and the versions that a table of figures names."""
    import mask_rcnn  # noqa: F401  (patches NumPy for Chainer)
    import chainer  # isort: skip
    import cv2
    import numba
    import numpy
    import PIL

    from mask_rcnn.io.wording import counted

    versions = {'NumPy': numpy, 'Chainer': chainer, 'OpenCV': cv2, 'Pillow': PIL, 'Numba': numba}
    listed = ', '.join(f'{name} {module.__version__}' for name, module in versions.items())
    return (
        f'{platform.system()}, {counted(os.cpu_count() or 1, "CPU core")}, Python {platform.python_version()}, {listed}'
    )


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment for commands, which use one BLAS thread and the package of this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, 'OPENBLAS_NUM_THREADS': '1', 'PYTHONHASHSEED': '0', **changes}


def command(words: Sequence[str | os.PathLike]) -> list[str]:
    """Return the command line that runs ``mask-rcnn`` with some arguments."""
    return [sys.executable, '-m', 'mask_rcnn.cli', *(os.fspath(word) for word in words)]


def run(
    words: Sequence[str | os.PathLike], folder: Path, *, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``mask-rcnn`` to its end in a folder; returns the exit status and the text of both streams."""
    return subprocess.run(
        command(words),
        cwd=folder,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors='backslashreplace',
        timeout=timeout,
        check=False,
    )


def describe(done: subprocess.CompletedProcess[str]) -> str:
    """Return the exit status and the last line of the errors, for a finding."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f'status {done.returncode}, {lines[-1][:300] if lines else "no message"}'


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on the standard error that begin with ``error:`` or ``warning:``."""
    return [line for line in done.stderr.splitlines() if line.startswith(('error:', 'warning:'))]


def has_traceback(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether a command ended with a traceback or by a signal."""
    return 'Traceback (most recent call last)' in done.stderr + done.stdout or done.returncode < 0


def prepare_model(folder: Path, iterations: int = 2) -> Path:
    """Train the small network for a few iterations and return its model file."""
    out = folder / 'model'
    done = run([*TRAIN, '--iteration', str(iterations), '--validation', '0', '--out', str(out)], folder)
    if done.returncode:
        raise SystemExit(f'the small network cannot be trained: {describe(done)}')
    return out / f'model_iter_{iterations}.npz'


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a temporary folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix='reliability-') as folder:
        yield Path(folder)
