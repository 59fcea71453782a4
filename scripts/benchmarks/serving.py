"""Measure the throughput and latency of ``mask-rcnn serve`` beside ``model.detect``, one image after the other.

    python scripts/benchmarks/serving.py [--modelfile FILE] [--clients 1 4] [--rounds 5] [--size 512]

The images are twelve generated scenes (``--dataset shapes-rich``) of several sizes, as PNG files.  The script starts
the server as a command of its own, with the default options, and stops it.  Both sides decode the files, compute the
run lengths of the masks and encode JSON; the server also receives and sends.  The sides alternate, so that other load
on the machine affects all of them; each round processes all images.  "p50" and "p95" are percentiles of the time of a
request, or of an image of ``detect``.  The CPU time of the server does not contain that of the clients.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mask_rcnn  # makes Chainer importable

# isort: split
import numpy as np

from mask_rcnn.cli.options import positive_int
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.serving.limits import MIB
from mask_rcnn.visualization.pictures import encode_picture

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'


def make_files(folder: Path, size: int, n_files: int = 12) -> list[Path]:
    """Write scenes of different sizes as PNG files."""
    files = []
    dataset = RichShapesDataset(n_files, size=size, seed=3)
    for i in range(n_files):
        pixels = dataset[i].image.transpose(1, 2, 0).astype(np.uint8)
        height = size - (i % 3) * size // 4
        files.append(folder / f'{i}.png')
        files[-1].write_bytes(encode_picture(pixels[:height], '.png'))
    return files


@dataclass
class Side:
    """The measurements of one side.

    Args:
        work: Processes the image of a file.
        n_threads: Number of files that are processed at the same time.
        cpu_seconds: Returns the CPU time that the side has used.
    """

    work: Callable[[Path], None]
    n_threads: int
    cpu_seconds: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    total: float = 0.0
    cpu: float = 0.0

    def run(self, files: Sequence[Path]) -> None:
        """Process files and add the times."""
        start, cpu = time.perf_counter(), self.cpu_seconds()
        if self.n_threads == 1:  # in this thread, which has a cache of the weights
            self.seconds += map(self._measure, files)
        else:
            with ThreadPoolExecutor(self.n_threads) as pool:
                self.seconds += pool.map(self._measure, files)
        self.total += time.perf_counter() - start
        self.cpu += self.cpu_seconds() - cpu

    def _measure(self, file: Path) -> float:
        start = time.perf_counter()
        self.work(file)
        return time.perf_counter() - start

    def row(self) -> str:
        """Return the figures as text."""
        n_files = len(self.seconds)
        median, high = 1000 * np.percentile(self.seconds, [50, 95])
        cpu = 1000 * self.cpu / n_files
        return f'{n_files / self.total:10.2f} {median:8.0f} {high:8.0f} {cpu:15.0f}'


@contextmanager
def running_server(modelfile: Path, options: Sequence[str]) -> Iterator[str]:
    """Start the command, wait until it is ready, and stop it after the context; yields its URL."""
    command = [
        sys.executable,
        '-m',
        'mask_rcnn.cli',
        'serve',
        '--bn2affine',
        '--modelfile',
        str(modelfile),
        '--port',
        '0',
    ]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        match = re.search(r'http://\S+', process.stdout.readline())
        if match is None:
            raise SystemExit('error: the server did not start')
        while not _is_ready(match[0]):
            time.sleep(0.1)
        yield match[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f'{url}readyz') as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def read_metric(url: str, name: str) -> float:
    """Return a metric of a server."""
    with urllib.request.urlopen(f'{url}metrics') as answer:
        match = re.search(rf'^{name} (\S+)', answer.read().decode(), re.MULTILINE)
    return float(match[1]) if match else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--modelfile', type=Path, default=MODEL, metavar='FILE', help='weights (default: %(default)s)')
    parser.add_argument('--clients', type=positive_int, nargs='+', default=[1, 4], help='numbers of clients')
    parser.add_argument('--rounds', type=positive_int, default=5, metavar='N', help='rounds (default: %(default)s)')
    parser.add_argument(
        '--size', type=positive_int, default=512, metavar='N', help='size of the largest images, pixels'
    )
    parser.add_argument('--gpu', default='-1', metavar='ID', help='number of the GPU, -1 for the CPU')
    args = parser.parse_args(argv)
    model = mask_rcnn.load(args.modelfile, gpu=int(args.gpu), bn2affine=True)

    def detect(file: Path) -> None:
        (detections,) = model.detect([file])
        json.dumps(detections.to_coco(0))

    sides = {'detect': Side(detect, 1, time.process_time)}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(args.modelfile, ['--gpu', args.gpu]) as url,
        cache_weights(),
    ):

        def post(file: Path) -> None:
            request = urllib.request.Request(f'{url}v1/detect', file.read_bytes(), {'Content-Type': 'image/png'})
            with urllib.request.urlopen(request) as answer:
                json.loads(answer.read())

        def server_cpu() -> float:
            return read_metric(url, 'process_cpu_seconds_total')

        for n_clients in args.clients:
            name = f'server, {counted(n_clients, "client")}'
            sides[name] = Side(post, n_clients, server_cpu)
        files = make_files(Path(folder), args.size)
        for file in files:
            detect(file)
            post(file)
        memory = read_metric(url, 'process_resident_memory_bytes')
        for _ in range(args.rounds):
            for side in sides.values():
                side.run(files)
        grown = read_metric(url, 'process_resident_memory_bytes') - memory
    print(f'{"":20}{"images/s":>10} {"p50, ms":>8} {"p95, ms":>8} {"CPU ms / image":>15}')
    for name, side in sides.items():
        print(f'{name:20}{side.row()}')
    print(f'memory of the server: {memory / MIB:.0f} MiB after the warm-up, {grown / MIB:+.0f} MiB after the requests')
    return 0


if __name__ == '__main__':
    sys.exit(main())
