"""Resume a training after the clock, the time zone or the files have changed.

The clock is replaced in a ``sitecustomize`` module, so that no other program is needed.  The model of a resumed run
must be the uninterrupted run's to the bit.  A damaged snapshot must be refused with one line, and the one before it
must do.

    python scripts/reliability/clock.py
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import harness

from mask_rcnn.io.wording import counted

#: Iterations of the interrupted and of the whole run.
HALF, ALL = 4, 8

YEAR = 365 * 24 * 3600

#: A module that Python imports first; ``CLOCK`` is an expression of the true time ``t`` and the number of calls ``n``.
_SITE = """\
import itertools, os, time
_true, _calls = time.time, itertools.count()
_moved = eval('lambda t, n: ' + os.environ['CLOCK'])
time.time = lambda: _moved(_true(), next(_calls))
"""


@dataclass(frozen=True)
class Case:
    """A change between the interruption of a run and its resumption.

    Args:
        name: Name for findings.
        env: Environment variables of the resumed run.
        change: Changes the folder of the run.
        refused: Whether the newest snapshot must be refused, and the one before it be used.
    """

    name: str
    env: Mapping[str, str] = field(default_factory=dict)
    change: Callable[[Path], None] = lambda out: None
    refused: bool = False


def _touch(seconds: float) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        for path in out.iterdir():
            os.utime(path, (time.time() + seconds,) * 2)

    return change


def _cut(fraction: float) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        path = out / f'snapshot_iter_{HALF}.npz'
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])

    return change


def _empty_others(out: Path) -> None:
    """Empty every file except the snapshots."""
    for path in out.iterdir():
        if not path.name.startswith('snapshot_iter'):
            path.write_bytes(b'')


def make_cases(site: Path) -> list[Case]:
    """Return all cases; ``site`` is the folder of the module that replaces the clock."""

    def clock(expression: str) -> dict[str, str]:
        return {'CLOCK': expression, 'PYTHONPATH': os.pathsep.join([str(site), str(harness.ROOT)])}

    return [
        Case('clock a year back', clock(f't - {YEAR}')),
        Case('clock at 1970', clock('1.5')),
        Case('clock in 2100', clock('4102444800 + t % 1000')),
        Case('clock that runs backwards', clock('t - 60 * n')),
        Case('other time zone', {'TZ': 'Pacific/Kiritimati'}),
        Case('invalid time zone', {'TZ': 'Nowhere/Nowhere'}),
        Case('files from the future', change=_touch(10 * YEAR)),
        Case('files of 1980', change=_touch(315532800 - time.time())),
        Case('empty log, plots and models', change=_empty_others),
        Case('0-byte snapshot', change=_cut(0), refused=True),
        Case('half-written snapshot', change=_cut(0.5), refused=True),
        Case('snapshot without its last byte', change=_cut(0.99999), refused=True),
    ]


def check(case: Case, folder: Path, interrupted: Path, expected: bytes) -> list[str]:
    """Resume a copy of an interrupted run and return what is wrong."""
    out = folder / 'resumed'
    shutil.copytree(interrupted, out)
    case.change(out)
    words = [*_train(out), '--iteration', str(ALL)]
    done = harness.run([*words, '--resume', str(out / f'snapshot_iter_{HALF}.npz')], folder, env=case.env)
    problems = []
    if harness.has_traceback(done):
        problems.append(f'a traceback or a signal ({harness.describe(done)})')
    if case.refused:
        lines = harness.error_lines(done)
        if done.returncode not in (1, 2) or len(lines) != 1 or f'snapshot_iter_{HALF}.npz' not in lines[0]:
            problems.append(f'not one line that names the snapshot ({harness.describe(done)})')
        done = harness.run([*words, '--resume', str(out / f'snapshot_iter_{HALF // 2}.npz')], folder, env=case.env)
    if done.returncode:
        problems.append(f'not resumed ({harness.describe(done)})')
    elif (out / f'model_iter_{ALL}.npz').read_bytes() != expected:
        problems.append('the model differs from that of the uninterrupted run')
    shutil.rmtree(out)
    return [f'{case.name}: {problem}' for problem in problems]


def _train(out: Path) -> list[str]:
    return [*harness.TRAIN, '--validation', '0', '--snapshot', str(HALF // 2), '--out', str(out)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    parser = harness.make_parser(__doc__)
    parser.add_argument('--cases', type=int, nargs='+', metavar='N', help='numbers of the cases (default: all)')
    args = parser.parse_args(argv)
    started = time.monotonic()
    with harness.working_folder() as folder:
        site = folder / 'site'
        site.mkdir()
        (site / 'sitecustomize.py').write_text(_SITE)
        models = {}
        for name, iterations in (('whole', ALL), ('interrupted', HALF)):
            out = folder / name
            done = harness.run([*_train(out), '--iteration', str(iterations)], folder)
            if done.returncode:
                raise SystemExit(f'the small network cannot be trained: {harness.describe(done)}')
            models[name] = out / f'model_iter_{iterations}.npz'
        cases = make_cases(site)
        cases = [cases[i] for i in args.cases or range(len(cases))]
        expected = models['whole'].read_bytes()
        findings = [line for case in cases for line in check(case, folder, folder / 'interrupted', expected)]
    report = harness.Report(
        check='clock, time zone and damaged snapshots',
        done=f'{counted(len(cases), "change")} between the two halves of a run',
        outcome=f'{counted(len(findings), "finding")}; every resumed model equal to the bit'
        if not findings
        else 'see the findings',
        findings=findings,
    )
    return harness.finish(report, args.json, started)


if __name__ == '__main__':
    sys.exit(main())
