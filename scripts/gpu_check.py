"""Check and measure this package on a GPU: ``make gpu-check``.

    python scripts/gpu_check.py [--gpu 0] [--quick] [--parts NAME ...] [--limit SECONDS] [--jobs N] [--json FILE]

Every part is a command with its own time limit; a part that fails or runs out of time does not stop the others.  A line
is printed as each part ends, and a table at the end.  The folder --out contains the output of every part.  The exit
status is 0 if no part failed or ran out of time, else 1.  Without a GPU that works, no part runs: one line states why.

- tests: the tests that need a GPU, by folder
- golden: the reference outputs of the original programs (skipped if they are absent)
- detect, update: detections and one training update in each precision, compared with those of the CPU
- precision-ap: the AP of each precision on generated scenes
- sanitizer: compute-sanitizer on RoIAlign and NMS (skipped if it is not on the PATH)
- predict-speed: prediction time in each precision, in turns with PyTorch and torchvision if --peer-python has them
- kernels: memory bandwidth of the operations
- training-speed: time and memory of training iterations
- training: a short training on generated shapes
- profile (only with --profile): the functions that take the host's time, and Nsight Compute on the slowest kernels

``--gpu -1`` is a dry run on the CPU: small sizes, one run of each measurement.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from part_runner import FAILED, TIMED_OUT, Part, PartRunner, count, last_line, line, table

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / 'scripts' / 'benchmarks'
BUNDLED = ROOT / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'

PRECISIONS = ('fp32', 'tf32', 'fp16', 'bf16')
NETWORKS = ('bundled', 'resnet50_fpn', 'resnet50')
#: Part of the message about a precision that the GPU does not support.
UNSUPPORTED = 'needs a GPU of compute capability'
#: Networks, precisions and peers of the training measurements.
TRAINING_SPEED = (
    ('resnet50', 'fp16', 'torch'),
    ('resnet50', 'fp32', 'torch'),
    ('resnet50_fpn', 'fp16', 'torchvision'),
    ('resnet50_fpn', 'fp32', 'torchvision'),
)
SANITIZED = ('tests/ops/test_roi_align.py', 'tests/ops/test_nms.py')
#: The tests of a dry run.
DRY_TESTS = ('tests/ops/test_nms.py', 'tests/ops/test_boxes.py')

#: The paths of a checkout come first, and processes that run side by side do not use all CPUs each.
ENVIRONMENT = {'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))}
ONE_THREAD = {'OPENBLAS_NUM_THREADS': '1'}


def test_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the tests, by folder, and the golden cases."""
    make = functools.partial(Part, figure=pytest_figure, is_skipped=pytest_skipped, env=ENVIRONMENT | ONE_THREAD)
    pytest = [sys.executable, '-m', 'pytest', '-q', '--durations=5']
    if args.gpu < 0:
        yield make('tests/dry', [*pytest, '-m', 'not slow', *DRY_TESTS], 60)
    else:
        for folder in gpu_test_folders():
            yield make(f'tests/{folder}', [*pytest, '-m', 'gpu', f'tests/{folder}'], 180)
    yield make('golden', [*pytest, 'tests/golden', '-k', 'cuda'], 240)


def gpu_test_folders() -> list[str]:
    """Return the folders of tests that contain GPU tests, without the golden cases."""
    files = sorted((ROOT / 'tests').glob('*/*.py'))
    marked = [path.parent.name for path in files if 'pytest.mark.gpu' in path.read_text(encoding='utf-8')]
    return [folder for folder in dict.fromkeys(marked) if folder != 'golden']


def comparison_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the comparisons of detections and updates with the CPU."""
    script = str(BENCHMARKS / 'compare_devices.py')
    for command, figure in (('detect', detect_figure), ('update', update_figure)):
        for network in NETWORKS if args.gpu >= 0 else NETWORKS[:1]:
            words = [command, '--gpu', str(args.gpu), '--network', network]
            yield Part(
                f'{command}/{network}',
                [sys.executable, script, *words, '--json', str(args.out / f'{command}-{network}.json')],
                150,
                figure=figure,
                env=ENVIRONMENT | ONE_THREAD,
            )


def precision_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the AP of the precisions; on the CPU that of ``fp32``."""
    words = ['--modelfile', str(BUNDLED), '--dataset', 'shapes-rich', '--gpu', str(args.gpu)]
    if args.gpu < 0:
        words += ['--images', '2', '--precisions', 'fp32']
    yield Part(
        'precision-ap',
        [sys.executable, str(BENCHMARKS / 'precision_ap.py'), *words, '--json', str(args.out / 'precision-ap.json')],
        120,
        figure=precision_figure,
        env=ENVIRONMENT | ONE_THREAD,
    )


def sanitizer_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield compute-sanitizer on the tests of two kernels."""
    if args.gpu < 0:
        return
    pytest = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '-p', 'tests.support.no_memory_pool', *SANITIZED]
    for tool in ('memcheck', 'racecheck'):
        yield Part(
            f'sanitizer/{tool}',
            ['compute-sanitizer', '--tool', tool, '--error-exitcode', '9', *pytest],
            150,
            needs=['compute-sanitizer'],
            figure=sanitizer_figure,
            env=ENVIRONMENT | ONE_THREAD,
        )


def prediction_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the prediction times; a peer takes part if its interpreter has its package."""
    if args.gpu < 0:
        words = ['--modelfile', str(BUNDLED), '--size', '128', '192', '--runs', '1', '--warmup', '0']
        yield benchmark_part(args, 'predict-speed/bundled', words)
        return
    runs = ['--runs', '20', '--warmup', '3']
    for network in ('resnet50', 'resnet50_fpn'):
        for precision in PRECISIONS:
            words = ['--extractor', network, '--precision', precision, *against(args, 'torch'), *runs]
            yield benchmark_part(args, f'predict-speed/{network}/{precision}', words)
    for precision in PRECISIONS if has_package(args.peer_python, 'torchvision') else ():
        words = ['--extractor', 'resnet50_fpn', '--precision', precision, *against(args, 'torchvision'), *runs]
        yield benchmark_part(args, f'predict-speed/torchvision/{precision}', words)


def benchmark_part(args: argparse.Namespace, name: str, words: list[str]) -> Part:
    """Return a part that runs ``benchmark.py``."""
    return measurement(args, name, 'benchmark.py', words, seconds=90, figure=benchmark_figure)


def measurement(args: argparse.Namespace, name: str, script: str, words: list[str], *, seconds: float, figure) -> Part:
    """Return a part that runs a benchmark and writes its result as JSON."""
    json_file = args.out / f'{name.replace("/", "-")}.json'
    path = str(BENCHMARKS / script)
    command = [sys.executable, path, '--gpu', str(args.gpu), *words, '--json', str(json_file)]
    return Part(
        name,
        command,
        seconds,
        needs=[path],
        is_timed=True,
        figure=figure,
        is_skipped=lambda status, log: status != 0 and UNSUPPORTED in log,
        env=ENVIRONMENT,
    )


def against(args: argparse.Namespace, peer: str) -> list[str]:
    """Return the options for a peer, or none if its package is missing."""
    return ['--against', peer, '--peer-python', args.peer_python] if has_package(args.peer_python, peer) else []


@functools.cache
def has_package(python: str, name: str) -> bool:
    """Return whether an interpreter finds a package, without importing it."""
    code = f'import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)'
    try:
        return subprocess.run([python, '-c', code], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def speed_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the bandwidth of the kernels and the time of training iterations."""
    words = ['--runs', '1', '--small'] if args.gpu < 0 else []
    yield measurement(args, 'kernels', 'kernels.py', words, seconds=90, figure=kernels_figure)
    if args.gpu < 0:
        return
    for network, precision, peer in TRAINING_SPEED:
        words = ['--extractor', network, '--precision', precision, '--batch-sizes', '1', '2', '4', *against(args, peer)]
        yield measurement(
            args,
            f'training-speed/{network}/{precision}',
            'training.py',
            words,
            seconds=150,
            figure=training_speed_figure,
        )


def training_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield short trainings on generated shapes, which end with an evaluation on a GPU."""
    command = [sys.executable, str(ROOT / 'train.py'), '--dataset', 'shapes', '--pretrained', 'none', '--snapshot', '0']
    if args.gpu < 0:
        network = ['--extractor', 'mobilenet_v1_fpn', '--set', 'width=0.25', 'fpn_channels=16', 'head_channels=32']
        sizes = ['--min-size', '64', '--max-size', '64', '--batchsize', '2', '--iteration', '2', '--validation', '0']
        variants = {'training/fp32': [*network, *sizes, '--workers', '0']}
    else:
        sizes = ['--batchsize', '4', '--roi-batch', '64', '--iteration', '100', '--validation', '100']
        network = ['--extractor', 'resnet50_fpn', '--lr-initialchange', '10', '--clip-gradient', '10']
        variants = {f'training/{name}': [*network, *sizes, '--precision', name] for name in ('fp32', 'fp16')}
    for name, words in variants.items():
        words = [*words, '--gpu', str(args.gpu), '--out', str(args.out / name.replace('/', '-'))]
        yield Part(name, [*command, *words], 120, is_timed=True, figure=training_figure, env=ENVIRONMENT)


def profile_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the profiles of the host and of the kernels."""
    if not args.profile:
        return
    script = str(BENCHMARKS / 'profile_detect.py')
    words = ['--gpu', str(args.gpu)]
    if args.gpu < 0:
        words += ['--modelfile', str(BUNDLED), '--size', '128', '192', '--runs', '1', '--warmup', '1']
    else:
        words += ['--extractor', 'resnet50', '--precision', 'fp16']
    make = functools.partial(Part, is_timed=True, env=ENVIRONMENT)
    yield make('profile/host', [sys.executable, script, 'host', *words], 60)
    if args.gpu >= 0:
        yield make('profile/kernels', [sys.executable, script, 'kernels', *words], 180, needs=['ncu'])


def pytest_figure(log: str) -> str:
    """Return the counts in the last line of pytest's output."""
    return last_line(log).strip('= ')


def pytest_skipped(status: int, log: str) -> bool:
    """Return whether pytest selected no test, or skipped all of them."""
    return status == 5 or (status == 0 and 'passed' not in last_line(log))


def detect_figure(log: str) -> str:
    """Return for each precision the detections that were found again and the largest differences."""
    rows = re.findall(r', (\w+) compared with the CPU: (\S+) found, box (\S+) px, score (\S+?),', log)
    return comparison_figure(log, [(name, f'{found} ({box} px, {score})') for name, found, box, score in rows])


def update_figure(log: str) -> str:
    """Return the relative error of the losses in each precision."""
    return comparison_figure(log, re.findall(r', (\w+) compared with the CPU: losses within (\S+),', log))


def comparison_figure(log: str, rows: list[tuple[str, str]]) -> str:
    """Return the figures of precisions, and the precisions without figures."""
    others = re.findall(r'GPU \d+, (\w+): (failed|not supported)', log)
    return ', '.join(f'{name} {figure}' for name, figure in [*rows, *others])


def precision_figure(log: str) -> str:
    """Return the mask AP of each precision in percent."""
    rows = re.findall(r'^(\w+) +[\d.]+ +\S+ +\S+ +([\d.]+) ', log, re.MULTILINE)
    return ', '.join(f'{name} {ap}' for name, ap in rows)


def sanitizer_figure(log: str) -> str:
    """Return the summary of compute-sanitizer."""
    return re.findall(r'=+ ((?:ERROR|RACECHECK) SUMMARY: .*)', log)[-1]


def benchmark_figure(log: str) -> str:
    """Return the median time of a prediction and how many times as long the peer takes."""
    total = re.findall(r'^total +([\d.]+)', log, re.MULTILINE)[0]
    peer = re.search(r'the peer takes ([\d.]+) times', log)
    return f'{1e3 * float(total):.1f} ms' + (f', peer x {peer[1]}' if peer else '')


def kernels_figure(log: str) -> str:
    """Return the fractions of a copy's bandwidth that RoIAlign and NMS reach."""
    rows = re.findall(r'^(RoIAlign|NMS).*?([\d.]+)%$', log, re.MULTILINE)
    names = dict.fromkeys(name for name, _ in rows)
    return ', '.join(f'{name} {"/".join(share for other, share in rows if other == name)} %' for name in names)


def training_speed_figure(log: str) -> str:
    """Return for each batch size the median time of an iteration, and how many times as long the peer takes."""
    rows = re.findall(r'^(\d+) +this +([\d.]+)', log, re.MULTILINE)
    ratios = [f', peer x {ratio}' for ratio in re.findall(r'the peer takes ([\d.]+) times', log)]
    ratios += [''] * (len(rows) - len(ratios))
    return '; '.join(f'{n}: {1e3 * float(s):.0f} ms{ratio}' for (n, s), ratio in zip(rows, ratios, strict=False))


def training_figure(log: str) -> str:
    """Return the first and the last loss of a training."""
    rows = re.findall(r'^ +(\d+) +\d+ +[\d.e+-]+ +(\S+)', log, re.MULTILINE)
    return f'loss {rows[0][1]} to {rows[-1][1]} after {rows[-1][0]} iterations'


def make_parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts that the arguments select, in their order."""
    sources = [test_parts, comparison_parts, precision_parts, sanitizer_parts]
    if not args.quick:
        sources += [prediction_parts, speed_parts, training_parts, profile_parts]
    parts = [part for source in sources for part in source(args)]
    return [part for part in parts if args.parts is None or part.belongs_to(args.parts)]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--gpu', '-g', type=int, default=0, help='number of the GPU; -1 is a dry run on the CPU (default: %(default)s)')
    add('--parts', nargs='+', metavar='NAME', help='parts or groups of parts to run (default: all)')
    add('--list', action='store_true', help='print the parts and their time limits, and exit')
    add('--quick', action='store_true', help='only the parts that check correctness: tests to sanitizer')
    add('--profile', action='store_true', help='also profile a prediction')
    add('--limit', type=float, metavar='SECONDS', help='total time limit (default: none)')
    add('--jobs', type=int, default=1, help='correctness parts that run side by side (default: %(default)s)')
    add('--out', type=Path, default=Path('gpu_check'), help='folder of the logs (default: %(default)s)')
    add('--json', type=Path, help='also write the results to this file')
    add('--peer-python', default=sys.executable, metavar='PYTHON', help='interpreter with PyTorch (default: this one)')
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error('--jobs must be at least 1')
    args.out = args.out.resolve()  # the parts run in the root of the repository
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
