"""Check and measure this package on a GPU: ``make gpu-check``.

    python scripts/gpu_check.py [--gpu 0] [--quick] [--parts NAME ...] [--limit SECONDS] [--jobs N] [--json FILE]

Every part is a command with its own time limit; a part that fails or runs out of time does not stop the others.  A line
is printed as each part ends, and a table at the end.  The folder --out contains the output of every part.  The exit
status is 0 if no part failed or ran out of time, else 1.  Without a GPU that works, no part runs: one line states why.

- doctor: the installation
- tests: the tests that need a GPU, by file, because an error of CUDA ends all later tests of its process
- golden: the reference outputs of the original programs, by file (skipped if they are absent)
- detect, update: detections and one training update in each precision, compared with those of the CPU
- precision-ap: the AP of each precision on generated scenes
- sanitizer: compute-sanitizer on RoIAlign and NMS (skipped if it is not on the PATH)
- photos (only with --photos): a training on photos of many sizes, and the AP on them
- new-sizes: what the first training iterations with an image size spend their time on
- server: throughput of the server (skipped without its packages)
- training-speed: time and memory of training iterations, in turns with a peer
- predict-speed: prediction time in each precision, in turns with PyTorch and torchvision if --peer-python has them
- kernels: memory bandwidth of the operations
- training: a short training on generated shapes
- profile (only with --profile): the functions that take the host's time, and Nsight Compute on the slowest kernels

``--gpu -1`` is a dry run on the CPU: small sizes, one run of each measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts import ENVIRONMENT, ROOT, make_parts
from part_runner import FAILED, TIMED_OUT, PartRunner, count, last_line, line, table


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--gpu', '-g', type=int, default=0, help='number of the GPU; -1 is a dry run on the CPU (default: %(default)s)')
    add('--parts', nargs='+', metavar='NAME', help='parts or groups of parts to run (default: all)')
    add('--first', nargs='+', default=[], metavar='NAME', help='parts or groups that run before the others')
    add('--list', action='store_true', help='print the parts and their time limits, and exit')
    add('--quick', action='store_true', help='only the parts that check correctness: tests to sanitizer')
    add('--photos', type=Path, metavar='DIR', help='annotations/instances_train2017.json and train2017/ to train on')
    add('--weights', type=Path, metavar='FILE', help='ImageNet weights for --photos (default: where train.py searches)')
    add('--profile', action='store_true', help='also profile a prediction')
    add('--limit', type=float, metavar='SECONDS', help='total time limit (default: none)')
    add('--jobs', type=int, default=1, help='correctness parts that run side by side (default: %(default)s)')
    add('--out', type=Path, default=Path('gpu_check'), help='folder of the logs (default: %(default)s)')
    add('--json', type=Path, help='also write the results to this file')
    add('--peer-python', default=sys.executable, metavar='PYTHON', help='interpreter with PyTorch (default: this one)')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error('--jobs must be at least 1')
    for name in ('out', 'photos', 'weights'):  # the parts run in the root of the repository
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    return args


def gpu_error(gpu: int) -> str | None:
    """Return the reason why a GPU cannot be used, or ``None`` if it can."""
    # In another process: this one would keep a part of the GPU's memory during the measurements.
    code = f'import sys; from mask_rcnn.cli.options import gpu_error; sys.exit(gpu_error({gpu}))'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return last_line(done.stderr) or f'the test of the GPU ended with status {done.returncode}'


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args = parse_arguments(argv)
    parts = make_parts(args)
    if not parts:
        print('gpu_check.py: --parts selects no part; --list prints them', file=sys.stderr)
        return 2
    if args.list:
        print('\n'.join(f'{part.name:<36}{part.seconds:>5.0f} s' for part in parts))
        return 0
    reason = None if args.gpu < 0 else gpu_error(args.gpu)
    if reason is not None:
        advice = (
            'run this on a machine with an NVIDIA GPU, after "make setup", or use --gpu -1 for a dry run on the CPU'
        )
        print(f'gpu_check.py: --gpu {args.gpu}: {reason}; {advice}', file=sys.stderr)
        return 1
    started = time.monotonic()
    runner = PartRunner(
        args.out, ROOT, lambda result: print(line(result), flush=True), jobs=args.jobs, limit=args.limit
    )
    results = runner.run(parts)
    print(f'\n{table(results)} in {time.monotonic() - started:.0f} s, logs in {args.out}')
    if args.json:
        content = {'gpu': args.gpu, 'date': time.strftime('%Y-%m-%d'), 'parts': [part.as_dict() for part in results]}
        args.json.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return 1 if count(results, FAILED) + count(results, TIMED_OUT) else 0


if __name__ == '__main__':
    sys.exit(main())
