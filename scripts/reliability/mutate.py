"""Read thousands of mutated files of every kind: weights, snapshots, images, annotations and settings.

Each file must be accepted, or refused with one line of a documented error.  Anything else is a finding: another
exception, a crash, a hang, much memory, a line of a C library, or code of the file that runs.

    python scripts/reliability/mutate.py                          # 20,000 files
    python scripts/reliability/mutate.py --kind images --n 1000
    python scripts/reliability/mutate.py --check images FILE      # repeat a finding
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import data_samples
import harness
import weight_samples
from mutations import Mutation, mutate, mutate_zip
from readers import EXPECTED_ERRORS, READERS
from workers import FINDING, Outcome, run_cases

from mask_rcnn.io.wording import counted

#: Number of files of each kind among 20,000.
SHARES = {'weights': 7000, 'snapshots': 2000, 'images': 6000, 'annotations': 3000, 'settings': 2000}

#: Pixels above which Pillow refuses an image, so that the memory of an accepted one stays below ``MAX_MEMORY``.
MAX_PIXELS = 1 << 20

#: Limits of a file: memory in bytes and seconds.
MAX_MEMORY, MAX_SECONDS = 256 << 20, 30

CANARY = 'canary'


class Corpus:
    """The intact files of every kind, and the cases that are made from them.

    Args:
        folder: A folder for the mutated files.
        kinds: The kinds of files.
        seed: Seed of the mutations.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], seed: int):
        self.folder, self.seed = folder, seed
        self.samples = {kind: list(self._make(kind).items()) for kind in kinds}
        if 'annotations' in kinds:
            data_samples.write_images(folder)

    def _make(self, kind: str) -> dict[str, tuple[bytes, tuple[Mutation, ...]]]:
        if kind in ('weights', 'snapshots'):
            native, snapshots = self._trained()
            if kind == 'weights':
                return weight_samples.weights(native, self.folder / CANARY)
            return {name: (data, (mutate_zip,)) for name, data in snapshots.items()}
        return data_samples.MAKERS[kind]()

    def _trained(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return the model and the snapshot of a short training run."""
        if not hasattr(self, '_run'):
            model = harness.prepare_model(self.folder)
            snapshot = model.with_name(model.name.replace('model', 'snapshot'))
            self._run = {model.name: model.read_bytes()}, {snapshot.name: snapshot.read_bytes()}
        return self._run

    def content(self, kind: str, number: int) -> tuple[str, bytes]:
        """Return the name of the intact file, and the mutated content, of a case."""
        rng = random.Random(f'{self.seed}/{kind}/{number}')
        name, (data, structured) = rng.choice(self.samples[kind])
        return name, mutate(data, structured, rng)

    def task(self, kind: str) -> Callable[[int], tuple]:
        """Return the function that makes the cases of a kind in a worker."""

        def make(number: int) -> tuple[Path, Callable[[Path], None], tuple[type[Exception], ...]]:
            name, data = self.content(kind, number)
            path = self.folder / f'{os.getpid()}-{name}'
            path.write_bytes(data)
            return path, READERS[kind], EXPECTED_ERRORS[kind]

        return make

    def warm_up(self, kind: str) -> Callable[[], None]:
        """Return the function that reads every intact file of a kind in a worker."""

        def read_all() -> None:
            for name, (data, _) in self.samples[kind]:
                path = self.folder / f'{os.getpid()}-{name}'
                path.write_bytes(data)
                with contextlib.suppress(*EXPECTED_ERRORS[kind]):
                    READERS[kind](path)

        return read_all


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add('--n', type=int, default=20000, help='number of files in total (default: %(default)s)')
    add('--kind', nargs='+', choices=READERS, default=list(READERS), help='kinds of files (default: all)')
    add('--jobs', type=int, default=os.cpu_count() or 1, help='processes (default: the number of CPUs)')
    add('--keep', type=Path, default=Path('findings'), help='folder of the files of findings (default: %(default)s)')
    add('--check', nargs=2, metavar=('KIND', 'FILE'), help='read one file with the full error, and exit')
    return parser.parse_args(argv)


def check_file(kind: str, path: Path) -> int:
    """Read one file in this process; unexpected errors keep their traceback."""
    _limit_pixels()
    try:
        READERS[kind](path)
    except EXPECTED_ERRORS[kind] as error:
        print(f'{type(error).__name__}: {error}')
    else:
        print('accepted')
    return 0


def _limit_pixels() -> None:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class Results:
    """Counts of the outcomes, and one kept file for each cause of findings.

    Args:
        corpus: Makes the files again that are kept.
        keep: The folder of the kept files.
    """

    def __init__(self, corpus: Corpus, keep: Path):
        self._corpus, self._keep = corpus, keep
        self.counts: Counter[str] = Counter()
        self.causes: Counter[tuple[str, str]] = Counter()
        self.lines: list[str] = []

    def add(self, kind: str, number: int, outcome: Outcome) -> None:
        """Count an outcome; print and keep the first finding of each cause."""
        self.counts[outcome.kind] += 1
        if outcome.kind != FINDING:
            return
        text, cause = (part.encode('utf-8', 'backslashreplace').decode() for part in (outcome.text, outcome.cause))
        self.causes[kind, cause] += 1
        if self.causes[kind, cause] > 1:
            return
        name, data = self._corpus.content(kind, number)
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f'{kind}-{number}-{name}'
        path.write_bytes(data)
        command = f'python scripts/reliability/mutate.py --check {kind} {path}'
        self.lines.append(f'{kind}: {text} [{cause}]; {command}')
        print(self.lines[-1], flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args = parse_arguments(argv)
    if args.check:
        return check_file(args.check[0], Path(args.check[1]))
    started = time.monotonic()
    total = sum(SHARES[kind] for kind in args.kind)
    with harness.working_folder() as folder:
        corpus = Corpus(folder, args.kind, args.seed)
        _limit_pixels()
        results = Results(corpus, args.keep)
        for kind in args.kind:
            cases = range(-(-args.n * SHARES[kind] // total))
            begun, before = time.monotonic(), results.counts.copy()
            limits = {
                'warm_up': corpus.warm_up(kind),
                'jobs': args.jobs,
                'seconds': MAX_SECONDS,
                'max_memory': MAX_MEMORY,
            }
            for number, outcome in run_cases(corpus.task(kind), cases, **limits):
                results.add(kind, number, outcome)
            _print_kind(kind, results.counts - before, time.monotonic() - begun)
            if (folder / CANARY).exists():
                results.lines.append(f'{kind}: code in a file has run')
    counts = results.counts
    found = [f'{cause} ({counted(n, "file")})' for (_, cause), n in results.causes.most_common()]
    report = harness.Report(
        check='mutated files',
        done=f'{counted(counts.total(), "file", spec=",")}: {", ".join(args.kind)}',
        outcome=f'{counts["accepted"]:,} accepted, {counts["refused"]:,} refused with one line, '
        f'{counted(counts[FINDING], "finding")}, {counted(len(found), "cause")}',
        findings=found,
    )
    return harness.finish(report, args.json, started)


def _print_kind(kind: str, counts: Counter[str], seconds: float) -> None:
    listed = ', '.join(f'{n} {name}' for name, n in sorted(counts.items()))
    print(f'{kind}: {listed}, {1000 * seconds / max(counts.total(), 1):.0f} ms per file', flush=True)


if __name__ == '__main__':
    sys.exit(main())
