"""Run all reliability checks, some side by side, and write the table of docs/reliability.md.

python scripts/reliability/run_all.py --page docs/reliability.md     # 45 minutes on two cores
python scripts/reliability/run_all.py --quick                        # a few minutes
python scripts/reliability/run_all.py --parts kill disk
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT / 'scripts'))
from part_runner import OK, Part, PartRunner, Result

#: Name of a part -> the script, its arguments at full size and with ``--quick``, and its time limit in seconds.
PARTS: Mapping[str, tuple[str, Sequence[str], Sequence[str], float]] = {
    'mutate': ('mutate.py', ['--jobs', '1'], ['--jobs', '1', '--n', '400'], 7200),
    'kill': ('kill.py', [], ['--kills', '4'], 7200),
    'soak': ('soak.py', [], ['--predictions', '200', '--updates', '50'], 3600),
    'disk': ('disk.py', [], ['--cases', '2'], 1800),
    'clock': ('clock.py', [], ['--cases', '3', '9'], 1800),
    'threads': ('soak.py', ['--threads', '8', '--minutes', '10'], ['--threads', '8', '--minutes', '0.1'], 1800),
}

#: The lines of the page between which the table stands.
BEGIN, END = '<!-- figures -->', '<!-- end of the figures -->'


def make_parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts that the arguments select."""
    parts = []
    for name in args.parts:
        script, full, quick, seconds = PARTS[name]
        words = [
            sys.executable,
            str(harness.ROOT / 'scripts' / 'reliability' / script),
            *(quick if args.quick else full),
        ]
        words += ['--seed', str(args.seed), '--json', str(args.out / f'{name}.json')]
        words += ['--keep', str(args.out / 'findings')] if name == 'mutate' else []
        # The threads would be measured beside the other parts' load.
        parts.append(Part(name, words, seconds, is_timed=name == 'threads', env={'OPENBLAS_NUM_THREADS': '1'}))
    return parts


def make_table(reports: Sequence[Mapping]) -> str:
    """Return the reports of the checks as a Markdown table."""
    lines = ['| Check | Done | Outcome | Findings | Minutes |', '| --- | --- | --- | --- | --- |']
    for report in reports:
        outcome = '; '.join([report['outcome'], *(f'skipped: {line}' for line in report['skipped'])])
        cells = (report['check'], report['done'], outcome, len(report['findings']), f'{report["seconds"] / 60:.1f}')
        lines.append(f'| {" | ".join(str(cell).replace("|", "/") for cell in cells)} |')
    return '\n'.join(lines)


def write_page(path: Path, table: str) -> None:
    """Replace the table of a page, the text between :data:`BEGIN` and :data:`END`."""
    before, _, rest = path.read_text(encoding='utf-8').partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f'{path}: no lines {BEGIN} and {END}')
    measured = f'Measured on {time.strftime("%Y-%m-%d")}: {harness.machine()}.'
    path.write_text(f'{before}{BEGIN}\n{measured}\n\n{table}\n{END}{after}', encoding='utf-8')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='checks to run (default: all)')
    add('--quick', action='store_true', help='small numbers, to try the checks')
    add('--seed', type=int, default=0, help='seed of all random choices (default: %(default)s)')
    add('--jobs', type=int, default=os.cpu_count() or 1, help='checks side by side (default: the number of CPUs)')
    add('--out', type=Path, default=Path('reliability'), help='folder of logs and figures (default: %(default)s)')
    add('--page', type=Path, help='page whose table is replaced')
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit status."""
    args = parse_arguments(argv)
    runner = PartRunner(args.out, harness.ROOT, _report, jobs=args.jobs)
    for name in args.parts:
        (args.out / f'{name}.json').unlink(missing_ok=True)
    results = runner.run(make_parts(args))
    files = [args.out / f'{name}.json' for name in args.parts]
    table = make_table([json.loads(file.read_text()) for file in files if file.exists()])
    print(f'\n{table}')
    if args.page is not None:
        write_page(args.page, table)
    return 0 if all(result.status == OK for result in results) else 1


def _report(result: Result) -> None:
    print(f'{result.name}: {result.status}, {result.seconds / 60:.1f} minutes; {result.figure}', flush=True)


if __name__ == '__main__':
    sys.exit(main())
