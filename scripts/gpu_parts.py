"""The parts of ``gpu_check.py``: their commands, and their time limits."""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu_figures import (
    benchmark_figure,
    detect_figure,
    doctor_figure,
    kernels_figure,
    new_size_figure,
    photo_figure,
    precision_figure,
    pytest_figure,
    pytest_skipped,
    sanitizer_figure,
    server_figure,
    training_figure,
    training_speed_figure,
    update_figure,
)
from part_runner import Part

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / 'scripts' / 'benchmarks'
BUNDLED = ROOT / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'

PRECISIONS = ('fp32', 'tf32', 'fp16', 'bf16')
NETWORKS = ('bundled', 'resnet50_fpn', 'resnet50')
#: Part of the message about a precision that the GPU does not support.
UNSUPPORTED = 'needs a GPU of compute capability'
#: Part of the message about the packages of the server, which an installation may lack.
SERVER_NEEDS = 'error: the server needs'
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


def doctor_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the description of the installation."""
    command = [sys.executable, '-m', 'mask_rcnn.cli', 'doctor']
    yield Part('doctor', command, 60, figure=doctor_figure, env=ENVIRONMENT)


def test_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the tests, by folder, and the golden cases."""
    make = functools.partial(Part, figure=pytest_figure, is_skipped=pytest_skipped, env=ENVIRONMENT | ONE_THREAD)
    pytest = [sys.executable, '-m', 'pytest', '-q', '--durations=5']
    if args.gpu < 0:
        yield make('tests/dry', [*pytest, '-m', 'not slow', *DRY_TESTS], 120)
        return
    for path in gpu_test_files():
        folder, name = path.parent.name, path.stem.removeprefix('test_')
        group, seconds = (folder, 240) if folder == 'golden' else (f'tests/{folder}', 180)
        yield make(f'{group}/{name}', [*pytest, '-m', 'gpu', str(path.relative_to(ROOT))], seconds)


def gpu_test_files() -> list[Path]:
    """Return the files with GPU tests: those with the mark, or with a fixture of their folder that has it."""
    files = []
    folders = [path for path in (ROOT / 'tests').iterdir() if path.name not in ('scripts', 'support')]
    for folder in sorted(folders, key=lambda path: (path.name == 'golden', path.name)):
        words = ['pytest.mark.gpu', *gpu_fixtures(folder / 'conftest.py')]
        pattern = re.compile('|'.join(rf'\b{re.escape(word)}\b' for word in words))
        files += [path for path in sorted(folder.rglob('test_*.py')) if pattern.search(path.read_text('utf-8'))]
    return files


def gpu_fixtures(conftest: Path) -> list[str]:
    """Return the fixtures of a folder with GPU variants, and those that use them."""
    text = conftest.read_text('utf-8') if conftest.exists() else ''
    fixtures = re.findall(r'^@pytest\.fixture(.*?)^def (\w+)\((.*?)\)', text, re.DOTALL | re.MULTILINE)
    names = [name for options, name, _ in fixtures if 'pytest.mark.gpu' in options]
    for _, name, arguments in fixtures:  # in the order in which they use each other
        if set(re.findall(r'\w+', arguments)) & set(names):
            names.append(name)
    return list(dict.fromkeys(names))


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
        180,
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


def server_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the throughput of the server beside that of single predictions."""
    words = ['--gpu', str(args.gpu)]
    if args.gpu < 0:
        words += ['--clients', '1', '--rounds', '1', '--size', '64']
    else:
        words += ['--clients', '1', '8', '--rounds', '4']
    yield Part(
        'server',
        [sys.executable, str(BENCHMARKS / 'serving.py'), *words],
        90,
        is_timed=True,
        figure=server_figure,
        is_skipped=lambda status, log: status != 0 and SERVER_NEEDS in log,
        env=ENVIRONMENT,
    )


def new_size_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the time of the first training iterations with a size."""
    if args.gpu < 0:
        variants = {'fp32': ['--extractor', 'mobilenet_v1_fpn', '--sizes', '1', '--first', '64', '96']}
    else:
        variants = {'fp16': []}
    for precision, words in variants.items():
        words = [*words, '--precision', precision, *(['--repeats', '1'] if args.gpu < 0 else [])]
        yield measurement(args, f'new-sizes/{precision}', 'new_sizes.py', words, seconds=90, figure=new_size_figure)


def kernel_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the bandwidth of the kernels."""
    words = ['--runs', '1', '--small'] if args.gpu < 0 else []
    yield measurement(args, 'kernels', 'kernels.py', words, seconds=90, figure=kernels_figure)


def training_speed_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield the time of training iterations."""
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


def photo_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Yield a short training on photos of many sizes, which ends with the AP on these photos."""
    if args.photos is None:
        return
    out = args.out / 'photos'
    annotations, images = args.photos / 'annotations' / 'instances_train2017.json', args.photos / 'train2017'
    data = [
        word for part in ('train', 'val') for word in (f'--{part}-annotations', annotations, f'--{part}-images', images)
    ]
    words = [
        *map(str, data),
        '--pretrained',
        str(args.weights or 'imagenet'),
        '--snapshot',
        '0',
        '--gpu',
        str(args.gpu),
    ]
    if args.gpu < 0:
        words += ['--min-size', '64', '--max-size', '64', '--batchsize', '1', '--roi-batch', '16']
        words += ['--iteration', '1', '--validation', '0', '--workers', '0']
    else:
        words += ['--precision', 'fp16', '--batchsize', '4', '--lr-initialchange', '30']
        words += ['--clip-gradient', '10', '--iteration', '150', '--validation', '150']
    yield Part(
        'photos',
        [sys.executable, str(ROOT / 'train.py'), *words, '--out', str(out)],
        240,
        needs=[str(annotations), str(images), *([str(args.weights)] if args.weights else [])],
        is_timed=True,
        figure=photo_figure,
        env=ENVIRONMENT,
    )


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


def make_parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts that the arguments select, in their order."""
    sources = [doctor_parts, test_parts, comparison_parts, precision_parts, sanitizer_parts]
    if not args.quick:
        sources += [photo_parts, new_size_parts, server_parts, training_speed_parts, prediction_parts]
        sources += [kernel_parts, training_parts, profile_parts]
    parts = [part for source in sources for part in source(args)]
    chosen = [part for part in parts if args.parts is None or part.belongs_to(args.parts)]
    return sorted(chosen, key=lambda part: not part.belongs_to(args.first))  # a stable sort
