"""Measure the throughput and latency of ``mask-rcnn serve`` beside ``model.detect``, one image after the other.

    python scripts/benchmarks/serving.py [--modelfile FILE] [--clients 4] [--requests 200] [--size 512]

The images are generated scenes (``--dataset shapes-rich``) of several sizes around ``--size``, as PNG files.  The
script starts the server as a command of its own, with the default options, and stops it.  Both sides decode the files
and compute the masks' run lengths; the server also encodes JSON and sends it.  The two sides run one after the other,
after a warm-up of each.  "p50" and "p95" are percentiles of the time of a request, or of one image of ``detect``.
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
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mask_rcnn  # makes Chainer importable

# isort: split
import numpy as np

from mask_rcnn.cli.options import positive_int
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.ops.runtime.cache import cache_weights
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


def run_requests(work: Callable[[Path], None], files: Sequence[Path], count: int, n_threads: int) -> dict[str, float]:
    """Call a function for each request in some threads; returns requests per second, and percentiles in ms."""
    seconds: list[float] = []
    lock = threading.Lock()

    def measure(i: int) -> None:
        start = time.perf_counter()
        work(files[i % len(files)])
        elapsed = time.perf_counter() - start
        with lock:
            seconds.append(elapsed)

    start = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(measure, range(count)))
    total = time.perf_counter() - start
    median, high = 1000 * np.percentile(seconds, [50, 95])
    return {'images/s': count / total, 'p50 ms': float(median), 'p95 ms': float(high)}


@contextmanager
def running_server(modelfile: Path, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Start the command, wait until it is ready, and stop it after the context; yields its URL and process id."""
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
        yield match[0], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f'{url}readyz') as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def resident_mib(url: str) -> float:
    """Return the resident memory of a server in MiB, from its metrics."""
    with urllib.request.urlopen(f'{url}metrics') as answer:
        text = answer.read().decode()
    match = re.search(r'^process_resident_memory_bytes (\S+)', text, re.MULTILINE)
    return float(match[1]) / 2**20 if match else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--modelfile', type=Path, default=MODEL, metavar='FILE', help='weights (default: %(default)s)')
    parser.add_argument('--clients', type=positive_int, nargs='+', default=[1, 4], help='numbers of clients')
    parser.add_argument('--requests', type=positive_int, default=200, help='requests of each run')
    parser.add_argument('--size', type=positive_int, default=512, help='size of the largest images in pixels')
    parser.add_argument('--gpu', default='-1', help='number of the GPU, -1 for the CPU')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), args.size)
        rows = {'detect': _measure_detect(args, files)}
        with running_server(args.modelfile, ['--gpu', args.gpu]) as (url, _):
            run_requests(lambda file: _post(url, file), files, len(files), 1)
            memory = resident_mib(url)
            for n_clients in args.clients:
                rows[f'server, {n_clients} at once'] = run_requests(
                    lambda file: _post(url, file), files, args.requests, n_clients
                )
            grown = resident_mib(url) - memory
    for name, row in rows.items():
        print(f'{name:22}' + '  '.join(f'{key} {value:7.1f}' for key, value in row.items()))
    print(f'memory of the server: {memory:.0f} MiB after the warm-up, {grown:+.0f} MiB after the requests')
    return 0


def _measure_detect(args: argparse.Namespace, files: Sequence[Path]) -> dict[str, float]:
    model = mask_rcnn.load(args.modelfile, gpu=int(args.gpu), bn2affine=True)

    def detect(file: Path) -> None:
        (detections,) = model.detect([file])
        detections.to_coco(0)

    with cache_weights():
        for file in files:
            detect(file)
        # In this thread: the cache is that of the thread.
        seconds = []
        for i in range(args.requests):
            start = time.perf_counter()
            detect(files[i % len(files)])
            seconds.append(time.perf_counter() - start)
    median, high = 1000 * np.percentile(seconds, [50, 95])
    return {'images/s': len(seconds) / sum(seconds), 'p50 ms': float(median), 'p95 ms': float(high)}


def _post(url: str, file: Path) -> None:
    request = urllib.request.Request(f'{url}v1/detect', file.read_bytes(), {'Content-Type': 'image/png'})
    with urllib.request.urlopen(request) as answer:
        json.loads(answer.read())


if __name__ == '__main__':
    sys.exit(main())
