"""Kill the commands with SIGKILL at random moments, and check the files that they leave.

A killed training is resumed from its newest snapshot until it ends: its model must be the uninterrupted run's to the
bit.  The output of a killed conversion or evaluation must be absent, the old one, or the whole new one.  Half of the
kills wait until the command writes a file.  At the end no temporary file may be left.

    python scripts/reliability/kill.py                # 100 kills
    python scripts/reliability/kill.py --kills 10
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import data_samples
import harness
from PIL import Image

from mask_rcnn.io.wording import counted
from mask_rcnn.training.snapshot import list_snapshots, read_snapshot
from mask_rcnn.weights import WeightFileError, read_weights

#: Updates of a run; a snapshot after each of them.
ITERATIONS = 12


class Killer:
    """Runs commands and kills them.

    Args:
        folder: The working folder of the commands.
        rng: Chooses the moments.

    Attributes:
        n_kills: Number of processes that were killed, as opposed to those that had already ended.
        n_writing: Number of those that were killed while a temporary file existed.
        findings: One line for each violation.
    """

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self._rng = folder, rng
        self.n_kills = self.n_writing = 0
        self.findings: list[str] = []

    def run_and_kill(self, words: Sequence[str], output: Path, seconds: float) -> bool:
        """Start a command and kill it; return whether it was still running.

        Args:
            words: Arguments of ``mask-rcnn``.
            output: The folder in which the command writes.
            seconds: Duration of the command, the limit of the random moment.
        """
        log = self.folder / 'killed.log'
        with open(log, 'w') as stream:
            process = subprocess.Popen(
                harness.command(words),
                cwd=self.folder,
                env=harness.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            old = _temporary(output)
            waits_for_file = self._rng.random() < 0.5
            end = time.monotonic() + self._rng.uniform(0.2, 1) * seconds
            delay = self._rng.choice((0, 0, 0.0005, 0.002))
            while process.poll() is None and not (
                _temporary(output) - old if waits_for_file else time.monotonic() >= end
            ):
                time.sleep(0.0005)
            time.sleep(delay)
            was_running = process.poll() is None
            process.kill()
            process.wait()
        if was_running:
            self.n_kills += 1
            self.n_writing += bool(_temporary(output) - old)
        elif 'Traceback' in log.read_text(errors='replace'):
            self.findings.append(f'{words[0]}: a traceback after an earlier kill')
        return was_running

    def finish(self, words: Sequence[str]) -> None:
        """Run a command to its end, which must succeed."""
        done = harness.run(words, self.folder)
        if done.returncode:
            self.findings.append(f'{words[0]} after a kill: {harness.describe(done)}')

    def compare(self, path: Path, reference: Path) -> None:
        """Check that a file has the bytes of another."""
        if not path.exists() or path.read_bytes() != reference.read_bytes():
            self.findings.append(f'{path.name} differs from that of the uninterrupted command')

    def check_no_remains(self, output: Path) -> None:
        """Check that a folder contains no temporary file."""
        for path in _temporary(output):
            self.findings.append(f'{path.name} of a killed process is left')


def _temporary(folder: Path) -> set[Path]:
    return {folder / name for name in os.listdir(folder) if name.endswith('.part')}


def _time(killer: Killer, words: Sequence[str]) -> float:
    """Run a command to its end and return its duration."""
    started = time.monotonic()
    done = harness.run(words, killer.folder)
    if done.returncode:
        raise SystemExit(f'{words[0]} fails without a kill: {harness.describe(done)}')
    return time.monotonic() - started


def kill_training(killer: Killer, n_kills: int) -> None:
    """Kill runs of training until the number of kills is reached; resume each run to its end."""
    options = [*harness.TRAIN, '--iteration', str(ITERATIONS), '--snapshot', '1', '--validation', '0']
    reference = killer.folder / 'reference'
    seconds = _time(killer, [*options, '--out', str(reference)])
    number = 0
    stop = killer.n_kills + n_kills
    while killer.n_kills < stop:
        out = killer.folder / f'run{number}'
        out.mkdir()
        number += 1
        for _ in range(min(10, stop - killer.n_kills)):
            killer.run_and_kill([*options, *_resume(out), '--out', str(out)], out, seconds)
            _check_run(killer, out)
        if f'model_iter_{ITERATIONS}.npz' not in {path.name for path in out.iterdir()} or not _is_done(out):
            killer.finish([*options, *_resume(out), '--out', str(out)])
            killer.check_no_remains(out)
        killer.compare(out / f'model_iter_{ITERATIONS}.npz', reference / f'model_iter_{ITERATIONS}.npz')


def _is_done(out: Path) -> bool:
    return bool(list_snapshots(out)) and list_snapshots(out)[-1][0] == ITERATIONS


def _resume(out: Path) -> list[str]:
    """Return the option that resumes the newest snapshot, or nothing if there is none."""
    snapshots = list_snapshots(out)
    if not snapshots or snapshots[-1][0] == ITERATIONS:
        snapshots = snapshots[:-1]
    return ['--resume', str(snapshots[-1][1])] if snapshots else []


def _check_run(killer: Killer, out: Path) -> None:
    """Check that every file of a killed run is whole."""
    for path in sorted(out.iterdir()):
        if path.is_dir() or path.name.endswith('.part'):
            continue
        try:
            if path.name.startswith('snapshot_iter'):
                read_snapshot(path)
            elif path.suffix == '.npz':
                read_weights(path)
            elif path.suffix == '.png':
                with Image.open(path) as image:
                    image.load()
            elif path.name == 'log' or path.suffix == '.json':
                json.loads(path.read_bytes())
        except (WeightFileError, OSError, ValueError) as error:
            killer.findings.append(f'{path.name} is not whole after a kill: {error}')


def kill_command(killer: Killer, n_kills: int, words: Sequence[str], names: Sequence[str]) -> None:
    """Kill a command that writes files into its last argument, a folder.

    Args:
        killer: Runs the command.
        n_kills: Number of kills.
        words: The command, whose words may contain ``OUT`` for the folder.
        names: The files that it writes.
    """
    reference = killer.folder / f'{words[0]}-reference'
    reference.mkdir()

    def command(folder: Path) -> list[str]:
        return [word.replace('OUT', str(folder)) for word in words]

    seconds = _time(killer, command(reference))
    stop, number = killer.n_kills + n_kills, 0
    while killer.n_kills < stop:
        out = killer.folder / f'{words[0]}{number}'
        out.mkdir()
        old = b'old' if number % 2 and words[0] == 'evaluate' else None
        number += 1
        for name in names:
            if old is not None:
                (out / name).write_bytes(old)
        killer.run_and_kill(command(out), out, seconds)
        for name in names:
            content = (out / name).read_bytes() if (out / name).exists() else None
            if content not in (None, old, (reference / name).read_bytes()):
                killer.findings.append(f'{name} is not whole after a kill ({counted(len(content or b""), "byte")})')
        killer.finish(command(out))
        for name in names:
            killer.compare(out / name, reference / name)
        killer.check_no_remains(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    parser = harness.make_parser(__doc__)
    parser.add_argument('--kills', type=int, default=100, help='number of kills (default: %(default)s)')
    args = parser.parse_args(argv)
    started = time.monotonic()
    with harness.working_folder() as folder:
        model = harness.prepare_model(folder)
        data_samples.write_images(folder)
        annotations = folder / 'instances.json'
        annotations.write_bytes(data_samples.annotation_files()['instances.json'][0])
        killer = Killer(folder, random.Random(args.seed))
        n_training = max(1, args.kills // 2)
        n_conversion = max(1, args.kills // 4)
        kill_training(killer, n_training)
        kill_command(
            killer, n_conversion, ['convert', str(model), '--bn2affine', '--output', 'OUT/affine.npz'], ['affine.npz']
        )
        evaluation = ['evaluate', '--modelfile', str(model), '--gpu', '-1', '--val-annotations', str(annotations)]
        kill_command(
            killer,
            max(1, args.kills - n_training - n_conversion),
            [*evaluation, '--val-images', str(folder), '--out', 'OUT'],
            ['results.bbox.json', 'results.segm.json', 'metrics.json'],
        )
    report = harness.Report(
        check='kill -9',
        done=f'{counted(killer.n_kills, "kill")} of training, conversion and evaluation, '
        f'{killer.n_writing} during a write',
        outcome=counted(len(killer.findings), 'difference or half file', 'differences or half files'),
        findings=sorted(set(killer.findings)),
    )
    return harness.finish(report, args.json, started)


if __name__ == '__main__':
    sys.exit(main())
