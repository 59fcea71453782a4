"""Write every output to a full disk and to a read-only disk.

The disk is a small tmpfs in a mount namespace of its own (``unshare``).  Where that is not permitted, a limit on the
size of files stands for the full disk, and a folder without write permission for the read-only one.  Each command must
end with status 1 or 2 and one error line, leave old files intact and no half file, and print what it has computed.

    python scripts/reliability/disk.py
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import data_samples
import harness
from PIL import Image

from mask_rcnn.io.wording import counted
from mask_rcnn.training.snapshot import read_snapshot
from mask_rcnn.weights import read_weights

#: Size of the disk, and what is left on the full one, in bytes.
DISK_SIZE, LEFT = 1 << 20, 4096

#: The old content of outputs.
OLD = b'old content\n'


@dataclass(frozen=True)
class Case:
    """A command and its output.

    Args:
        name: Name for findings.
        words: The arguments; ``DISK`` is replaced by the folder of the disk.
        old: Names of files that exist before.
        prints: Text that the command must print although its output fails.
        statuses: The accepted exit statuses.
    """

    name: str
    words: Sequence[str]
    old: Sequence[str] = ()
    prints: str = ''
    statuses: Sequence[int] = (1, 2)


def make_cases(folder: Path, model: Path) -> list[Case]:
    """Return the cases: every output of every command."""
    evaluate = ['evaluate', '--modelfile', str(model), '--gpu', '-1', '--val-images', str(folder)]
    evaluate += ['--val-annotations', str(folder / 'instances.json')]
    demo = [
        'demo',
        '--modelfile',
        str(model),
        '--gpu',
        '-1',
        '--image',
        str(folder / '0.png'),
        '--score-thresh',
        '0.01',
    ]
    train = [*harness.TRAIN, '--validation', '0', '--iteration', '4', '--snapshot', '2', '--out']
    inside = str(folder / 'inside.png')
    return [
        Case('train --out', [*train, 'DISK/run']),
        Case('convert --output', ['convert', str(model), '--bn2affine', '--output', 'DISK/new.npz']),
        Case('convert over a file', ['convert', str(model), '--bn2affine', '--output', 'DISK/old.npz'], ['old.npz']),
        Case('evaluate --out', [*evaluate, '--out', 'DISK/evaluation'], prints='class'),
        Case('evaluate over files', [*evaluate, '--out', 'DISK'], ['metrics.json', 'results.bbox.json'], 'class'),
        Case('demo --output', [*demo, '--output', 'DISK/new.png']),
        Case('demo over a picture', [*demo, '--output', 'DISK/old.png'], ['old.png']),
        Case('demo --json', [*demo, '--output', inside, '--json', 'DISK/new.json']),
        Case('demo over a JSON file', [*demo, '--output', inside, '--json', 'DISK/old.json'], ['old.json']),
    ]


class Disk:
    """A folder that is full or read-only.

    Args:
        folder: The folder.
        mounted: Whether the disk may be mounted.
    """

    def __init__(self, folder: Path, *, mounted: bool):
        self.folder, self._mounted = folder, mounted

    @contextlib.contextmanager
    def ready(self, state: str, old: Sequence[str]) -> Iterator[Callable[[], None] | None]:
        """Yield what a command does before it starts, with the disk in the state ``'full'`` or ``'read-only'``.

        Args:
            state: The state.
            old: Names of files that exist on the disk.
        """
        self.folder.mkdir()
        if self._mounted:
            _mount('-t', 'tmpfs', '-o', f'size={DISK_SIZE}', 'none', self.folder)
        for name in old:
            (self.folder / name).write_bytes(OLD)
        before_start = None
        if state == 'full' and self._mounted:
            _fill(self.folder / 'filler', LEFT)
        elif state == 'full':
            before_start = _limit_file_size
        elif self._mounted:
            _mount('-o', 'remount,ro', self.folder)
        else:
            self.folder.chmod(0o500)
        try:
            yield before_start
        finally:
            if self._mounted:
                subprocess.run(['umount', str(self.folder)], check=True)
            else:
                self.folder.chmod(0o700)
            shutil.rmtree(self.folder)


def _mount(*words: str | Path) -> None:
    subprocess.run(['mount', *map(str, words)], check=True)


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT, LEFT))


def _fill(path: Path, left: int) -> None:
    """Write a file until the disk is full, and then make ``left`` bytes free."""
    with open(path, 'wb', buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(file.tell() - left)


def check(case: Case, state: str, disk: Disk) -> list[str]:
    """Run a case and return what is wrong."""
    words = [word.replace('DISK', str(disk.folder)) for word in case.words]
    with disk.ready(state, case.old) as before_start:
        done = subprocess.run(
            harness.command(words),
            cwd=disk.folder.parent,
            env=harness.environment(TMPDIR=str(disk.folder.parent)),  # for the last state of a training
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            preexec_fn=before_start,
            check=False,
        )
        problems = []
        if harness.has_traceback(done):
            problems.append(f'a traceback or a signal ({harness.describe(done)})')
        if done.returncode not in case.statuses:
            problems.append(f'exit status {done.returncode}')
        if not any(line.startswith('error: ') for line in harness.error_lines(done)):
            problems.append('no line that begins with "error:"')
        if case.prints not in done.stdout:
            problems.append('its figures are not printed')
        problems += [f'{name} is changed' for name in case.old if not _is_whole(disk.folder / name)]
        problems += [
            f'{path.name} is a half file' for path in disk.folder.rglob('*') if path.is_file() and not _is_whole(path)
        ]
    return [f'{case.name}, {state} disk: {problem}' for problem in problems]


def _is_whole(path: Path) -> bool:
    """Return whether a file is the filler, has the old content, or is a complete new file."""
    if path.name == 'filler':
        return True
    try:
        data = path.read_bytes()
        if data == OLD:
            return True
        if path.name.startswith('snapshot_iter'):
            read_snapshot(path)
        elif path.suffix == '.npz':
            read_weights(path)
        elif path.suffix == '.png':
            with Image.open(path) as image:
                image.load()
        elif path.name == 'log' or path.suffix == '.json':
            json.loads(data)
        else:  # a temporary file
            return False
    except (OSError, ValueError):
        return False
    return True


def _can_mount() -> bool:
    """Return whether this process may mount a disk."""
    with harness.working_folder() as folder:
        try:
            done = subprocess.run(['mount', '-t', 'tmpfs', 'none', str(folder)], capture_output=True, check=False)
            if done.returncode == 0:
                subprocess.run(['umount', str(folder)], check=True)
        except OSError:
            return False
    return done.returncode == 0


def _enter_namespace(argv: Sequence[str]) -> None:
    """Start this script again in a mount namespace of its own, if the machine permits it."""
    program = shutil.which('unshare')
    words = [sys.executable, str(Path(__file__).resolve()), '--inside', *argv]
    if program and not subprocess.run([program, '-rm', 'true'], capture_output=True, check=False).returncode:
        sys.stdout.flush()
        os.execv(program, [program, '-rm', *words])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    parser = harness.make_parser(__doc__)
    parser.add_argument('--inside', action='store_true', help='do not enter a mount namespace')
    parser.add_argument('--cases', type=int, help='number of cases (default: all)')
    args = parser.parse_args(argv)
    if not args.inside:
        _enter_namespace(sys.argv[1:] if argv is None else argv)
    started = time.monotonic()
    mounted = args.inside and _can_mount()
    findings, skipped = [], []
    states = ['full', 'read-only']
    if not mounted and os.geteuid() == 0:
        states.remove('read-only')
        skipped.append('read-only disk: mounting is not permitted, and root ignores permissions')
    with harness.working_folder() as folder:
        model = harness.prepare_model(folder)
        data_samples.write_images(folder)
        (folder / 'instances.json').write_bytes(data_samples.annotation_files()['instances.json'][0])
        cases = make_cases(folder, model)[: args.cases]
        for case in cases:
            for state in states:
                findings += check(case, state, Disk(folder / 'disk', mounted=mounted))
    report = harness.Report(
        check='full and read-only disk',
        done=f'{counted(len(cases), "output")} x {len(states)} ({"a tmpfs" if mounted else "limits, not a disk"})',
        outcome=counted(len(findings), 'finding'),
        findings=findings,
        skipped=skipped,
    )
    return harness.finish(report, args.json, started)


if __name__ == '__main__':
    sys.exit(main())
