"""Profile a prediction: the functions of the host, or the kernels of the GPU.

    python scripts/benchmarks/profile_detect.py host [--gpu 0] [--extractor resnet50] [--precision fp16] [--runs 10]
    python scripts/benchmarks/profile_detect.py kernels [--gpu 0] [--extractor resnet50] [--precision fp16]

``host`` prints the functions with the most time of their own in Python's profiler.  If launches are the limit, they
are the functions that prepare them: the GPU waits in the gaps.  ``kernels`` runs Nsight Compute (``ncu``) on one
prediction, prints the time and the number of launches of the slowest kernels, and the utilisation of the three slowest.
``once`` is the process that Nsight Compute profiles.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import pstats
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import mask_rcnn

# isort: split
import chainer
from benchmark import random_image, random_model

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import add_precision, check_precision, gpu_number
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.device import get_device

#: Lines of the tables of functions and of kernels, and kernels that are examined in detail.
N_FUNCTIONS, N_KERNELS, N_DETAILED = 25, 20, 3
#: Launches of each kernel that are examined in detail.
N_LAUNCHES = 3
SECTIONS = ('SpeedOfLight', 'MemoryWorkloadAnalysis', 'ComputeWorkloadAnalysis', 'Occupancy', 'LaunchStats')


def make_detect(args: argparse.Namespace):
    """Return a function that detects objects in an image until the masks are on the host."""
    model = mask_rcnn.load(args.modelfile) if args.modelfile else random_model(args.extractor)
    model.to_device(get_device(args.gpu))
    image = random_image(args.size)

    def detect():
        (detections,) = model.detect([image])
        return detections.masks

    return detect


def profile_host(args: argparse.Namespace) -> str:
    """Return the functions with the most time of their own."""
    detect = make_detect(args)
    for _ in range(args.warmup):
        detect()
    started = time.perf_counter()
    for _ in range(args.runs):
        detect()
    seconds = (time.perf_counter() - started) / args.runs
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(args.runs):
        detect()
    profile.disable()
    pstats.Stats(profile).strip_dirs().sort_stats('tottime').print_stats(N_FUNCTIONS)
    return f'{1e3 * seconds:.1f} ms per prediction without the profiler, {counted(args.runs, "run")}'


def detect_once(args: argparse.Namespace) -> str:
    """Detect objects once between the calls that start and stop an external profiler."""
    from cupy.cuda import runtime

    detect = make_detect(args)
    for _ in range(args.warmup):
        detect()
    runtime.profilerStart()
    detect()
    runtime.deviceSynchronize()
    runtime.profilerStop()
    return 'done'


def profile_kernels(args: argparse.Namespace) -> str:
    """Print the slowest kernels of a prediction, and the sections of Nsight Compute for the first of them."""
    options = ['--csv', '--metrics', 'gpu__time_duration.sum', '--print-units', 'base']
    launches = read_launches(run_ncu(args, options))
    rows = sorted(launches.items(), key=lambda item: -sum(item[1]))
    total, n_launches = sum(map(sum, launches.values())), sum(map(len, launches.values()))
    for name, times in rows[:N_KERNELS]:
        share = sum(times) / total
        n_times = counted(len(times), 'launch', 'launches', spec='>6')
        print(f'{sum(times) / 1e3:>10.1f} us{n_times:<15}{share:>8.1%}  {name[:100]}', flush=True)
    for name, _ in rows[:N_DETAILED]:
        options = [word for section in SECTIONS for word in ('--section', section)]
        options += ['-k', f'regex:^{re.escape(name)}$', '--launch-count', str(N_LAUNCHES)]
        print(f'\n{name}\n{run_ncu(args, options)}', flush=True)
    return f'{counted(n_launches, "launch", "launches")}, {total / 1e6:.2f} ms in kernels'


def run_ncu(args: argparse.Namespace, options: list[str]) -> str:
    """Profile :func:`detect_once` with Nsight Compute; return its output.

    Raises:
        OSError: Nsight Compute failed, or does not exist.
    """
    words = ['once', '--gpu', str(args.gpu), '--extractor', args.extractor, '--precision', args.precision]
    words += ['--warmup', str(args.warmup), '--size', *map(str, args.size)]
    if args.modelfile:
        words += ['--modelfile', str(args.modelfile)]
    # The clocks stay as they are: times are those of a prediction, and locked clocks would change the GPU for others.
    ncu = ['ncu', '--profile-from-start', 'off', '--clock-control', 'none', '--print-kernel-base', 'function', *options]
    result = subprocess.run([*ncu, sys.executable, __file__, *words], capture_output=True, text=True)
    if result.returncode:
        lines = (result.stdout + result.stderr).strip().splitlines() or ['no output']
        reasons = [line for line in lines if '==ERROR==' in line] or lines[-1:]
        raise OSError(f'ncu ended with status {result.returncode}: {reasons[0]}')
    return result.stdout


def read_launches(text: str) -> dict[str, list[float]]:
    """Return the nanoseconds of every launch by the name of its kernel.

    Args:
        text: Output of ``ncu --csv`` with the metric ``gpu__time_duration.sum``; other lines may precede the table.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches = defaultdict(list)
    for row in csv.DictReader(lines[start:]):
        if row.get('Metric Name') == 'gpu__time_duration.sum':
            launches[row['Kernel Name']].append(float(row['Metric Value'].replace(',', '')))
    return dict(launches)


COMMANDS = {'host': profile_host, 'kernels': profile_kernels, 'once': detect_once}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('command', choices=sorted(COMMANDS))
    add('--gpu', '-g', type=gpu_number, default=0, help='-1 is the CPU, for the host only (default: %(default)s)')
    add('--modelfile', type=Path, help='weights (default: random weights)')
    presets = sorted(mask_rcnn.PRESETS)
    add('--extractor', default='resnet50', choices=presets, help='network to build without --modelfile')
    add('--size', type=int, nargs=2, default=(800, 1333), metavar=('HEIGHT', 'WIDTH'))
    add_precision(add)
    add('--runs', type=int, default=10)
    add('--warmup', type=int, default=3)
    args = parser.parse_args(argv)
    if args.gpu < 0 and args.command != 'host':
        parser.error(f'{args.command} needs a GPU')
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the profile; returns the exit status."""
    args = parse_arguments(argv)
    try:
        check_precision(args.precision, args.gpu)
        with using_precision(args.precision), chainer.using_config('train', False), cache_weights():
            print(COMMANDS[args.command](args))
    except (ValueError, OSError, UsageError) as error:
        print(f'profile_detect.py: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
