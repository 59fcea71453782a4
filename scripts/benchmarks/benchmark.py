"""Time the stages of a prediction, optionally in turns with a peer (another implementation).

    python scripts/benchmarks/benchmark.py [--modelfile FILE] [--image FILE | --size 800 1333] [--gpu 0] [--json FILE]
    python scripts/benchmarks/benchmark.py --against torch [--peer-python PYTHON] [--extractor resnet50_fpn]

Without a weight file the network has random weights.  The work is then the same except for the number of detections,
which the table contains.  "Total" is one call of ``model.detect``, from the image on the host to the pasted masks on
the host.  The stages are timed separately, in turns with the total.  On a GPU the total replays a CUDA graph, while the
stages are launched one by one and end with a synchronisation, so they add up to more than the total.  "Of ceiling"
relates a stage to the peak of the machine, measured afterwards: to the rate of a matrix multiplication, or for
"prepare" and "paste", which are bound by memory, to the rate of a copy.  "GPU used" is the decrease of the free memory
that ``cudaMemGetInfo`` reports since before the network was built, without CUDA's context.  It includes other
processes, so no other process should use the GPU.

A peer runs in a separate process, on the same image and the same number of CPUs.  The predictions alternate, so that
other load on the machine affects both.  ``torch`` is the same network with the same weights in plain PyTorch
(``peers/torch_mask_rcnn.py``), ``torchvision`` is torchvision's R-50-FPN: with the weights of ``--modelfile`` if they
are in torchvision's dialect, otherwise with random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import mask_rcnn  # makes Chainer importable

# isort: split
import chainer
import numpy as np
from machine_ceiling import WorkCounter, copy_bandwidth, matmul_flops
from peer import Peer, PeerError, add_peer_arguments, check

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import add_precision, check_precision
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.cudnn_frontend import current_precision, frontend, using_precision
from mask_rcnn.ops.runtime.cache import cache_features, cache_weights
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import load_image

STAGES = ('prepare', 'extractor', 'RPN', 'box head', 'mask head', 'paste')


class StageClock:
    """Wall-clock and CPU seconds per stage, one entry per run, and the floating-point operations of each stage."""

    def __init__(self, device):
        self.device = device
        self.wall: dict[str, list[float]] = {stage: [] for stage in (*STAGES, 'total')}
        self.cpu: dict[str, list[float]] = {stage: [] for stage in (*STAGES, 'total')}
        self.operations = dict.fromkeys(STAGES, 0)

    @contextlib.contextmanager
    def stage(self, name: str):
        """Time a block and count its operations."""
        counter = WorkCounter()
        with self.timed(name), counter:
            yield
        self.operations[name] = counter.operations

    @contextlib.contextmanager
    def timed(self, name: str):
        """Time a block; on a GPU, until its kernels have finished."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if self.device.xp is not np:
            self.device.xp.cuda.get_current_stream().synchronize()
        self.wall[name].append(time.perf_counter() - wall)
        self.cpu[name].append(time.process_time() - cpu)


def detect_by_stages(model, image, clock: StageClock):
    """Run the stages of ``model.detect`` and time each; return the detections and the number of proposals."""
    size, predictor = image.shape[:2], Predictor(model)
    with cache_features():
        with clock.stage('prepare'):
            x, transform = predictor.prepare(image)
        with clock.stage('extractor'):
            features = model.extractor(x)
        with clock.stage('RPN'):
            proposals = model.rpn.propose(features, x.shape[2:], [transform])
        with clock.stage('box head'):
            boxes, labels, scores = model.box_head.detect(features, proposals, [transform])
        with clock.stage('mask head'):
            masks = model.mask_head.predict(features, boxes, labels, [transform])
        with clock.stage('paste'):
            detections = predictor.postprocess(boxes[0], labels[0], scores[0], masks[0], None, transform)
            assert detections.masks is not None and detections.masks.shape == (len(detections), *size)
    return detections, len(proposals[0])


def detect_at_once(model, image, clock: StageClock):
    """Detect the objects of an image and paste their masks, without synchronising between the stages."""
    with clock.timed('total'):
        (detections,) = model.detect([image])
        assert detections.masks.shape == (len(detections), *image.shape[:2])
    return detections


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum in seconds."""
    return {'median': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def benchmark(model, image, *, runs: int, warmup: int, free: int | None = None, against=None) -> dict:
    """Return the timings, the network and the machine as plain data.

    Args:
        model: The network, on its device.
        image: ``(H, W, 3)`` uint8, RGB, on the host.
        runs: Number of timed runs.
        warmup: Number of runs before them that are not timed.
        free: Result of :func:`free_memory` before the network was built.
        against: Creates a :class:`~peer.Peer`; ``None`` for no peer.
    """
    device = model.device
    clock, turns = StageClock(device), []
    with contextlib.ExitStack() as stack:
        for context in (chainer.using_config('train', False), chainer.no_backprop_mode(), cache_weights()):
            stack.enter_context(context)
        for _ in range(warmup):
            detect_by_stages(model, image, StageClock(device))
            detect_at_once(model, image, StageClock(device))
        # The peer starts first in every turn, so that its GPU memory is not counted as that of this program.
        peer = None if against is None else stack.enter_context(against())
        if peer is not None:
            turns = [peer.run() for _ in range(warmup + 1)][warmup:]
        for i in range(runs):
            if peer is not None and i > 0:
                turns.append(peer.run())
            detections = detect_at_once(model, image, clock)
            _, n_roi = detect_by_stages(model, image, clock)
    taken = memory(device, free)  # after the peer has ended
    ceiling = {'product': matmul_flops(device.xp), 'copy': copy_bandwidth(device.xp)}
    result = {
        'stages': stage_results(clock, ceiling, image, len(detections)),
        'total': {**summarise(clock.wall['total']), 'cpu_median': statistics.median(clock.cpu['total'])},
        'ceiling': ceiling,
        'precision': current_precision().name,
        'runs': runs,
        'warmup': warmup,
        'image': {'height': image.shape[0], 'width': image.shape[1]},
        'proposals': n_roi,
        'detections': len(detections),
        'network': model.config.to_dict(),
        'memory': taken,
        'machine': machine(device),
    }
    if peer is not None:
        result['peer'] = {**peer.versions, **peer_results(turns, clock.wall['total'])}
    return result


def stage_results(clock: StageClock, ceiling: dict, image, n_detection: int) -> dict:
    """Return the seconds of each stage and the fraction of the ceiling that it reaches."""
    # The network input is float32, the masks are bytes.
    copied = {'prepare': (1 + 4) * image.size, 'paste': n_detection * image[..., 0].size}
    stages = {}
    for stage in STAGES:
        seconds, n_operations = summarise(clock.wall[stage]), clock.operations[stage]
        row: dict[str, float | None] = {**seconds, 'cpu_median': statistics.median(clock.cpu[stage])}
        if stage in copied:
            row['of_ceiling'] = copied[stage] / seconds['median'] / ceiling['copy']
        else:
            row['operations'] = n_operations
            row['of_ceiling'] = n_operations / seconds['median'] / ceiling['product'] if ceiling['product'] else None
        stages[stage] = row
    return stages


def peer_results(turns: list[dict], totals: Sequence[float]) -> dict:
    """Return the seconds of the peer, and their ratios to the total seconds of this program, turn by turn."""
    return {
        **summarise([turn['wall'] for turn in turns]),
        'cpu_median': statistics.median(turn['cpu'] for turn in turns),
        **{name: turns[-1][name] for name in ('detections', 'losses') if name in turns[-1]},
        'memory': {
            'host_peak': turns[-1]['host_peak'],
            **{name: turns[0][name] for name in ('gpu_pool', 'gpu_used') if name in turns[0]},
        },
        'ratio': summarise([turn['wall'] / total for turn, total in zip(turns, totals, strict=True)]),
    }


def free_memory(device) -> int | None:
    """Return the free memory of a GPU in bytes; ``None`` for the CPU."""
    return None if device.xp is np else device.xp.cuda.runtime.memGetInfo()[0]


def memory(device, free: int | None = None) -> dict[str, int]:
    """Return memory in bytes: the peak of this process, the size of CuPy's pool, and the used memory of the GPU.

    Args:
        device: Device of the network.
        free: Result of :func:`free_memory` before the network was built.
    """
    unit = 1 if sys.platform == 'darwin' else 1024
    taken = {'host_peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.xp is not np:
        taken['gpu_pool'] = device.xp.get_default_memory_pool().total_bytes()
        left = free_memory(device)
        if free is not None and left is not None:
            taken['gpu_used'] = free - left
    return taken


def machine(device) -> dict[str, str | int | None]:
    """Return the hardware and the versions that the figures depend on."""
    import cv2
    import numba

    facts = {
        'processor': processor_name(),
        'cpus': len(os.sched_getaffinity(0)),
        'system': platform.platform(),
        'python': platform.python_version(),
        'numpy': np.__version__,
        'numba': numba.__version__,
        'chainer': chainer.__version__,
        'opencv': cv2.__version__,
        'mask_rcnn': mask_rcnn.__version__,
        'date': time.strftime('%Y-%m-%d'),
    }
    return facts if device.xp is np else {**facts, **gpu_facts(device)}


def gpu_facts(device) -> dict[str, str | int | None]:
    """Return the name of the GPU and the versions of its libraries; ``None`` for a missing library."""
    runtime = device.xp.cuda.runtime
    cudnn = frontend.load_frontend()
    return {
        'gpu': runtime.getDeviceProperties(device.device.id)['name'].decode(),
        'driver': driver_version(),
        'cuda_of_driver': runtime.driverGetVersion(),
        'cuda': runtime.runtimeGetVersion(),
        'cupy': device.xp.__version__,
        'cudnn': None if cudnn is None else cudnn.backend_version(),
        'cudnn_frontend': getattr(cudnn, '__version__', None),
    }


def driver_version(path: Path = Path('/proc/driver/nvidia/version')) -> str | None:
    """Return the version of NVIDIA's kernel module, such as ``'570.124.06'``; ``None`` if it is unknown."""
    with contextlib.suppress(OSError):
        found = re.search(r'\b\d{3,}\.[\d.]+', path.read_text())
        return found[0] if found else None
    return None


def processor_name() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def table(result: dict) -> str:
    """Format the result as a table."""
    image, facts = result['image'], result['machine']
    config = result['network']
    lines = [
        f'{config["extractor"]}, {result["precision"]}, image {image["height"]} x {image["width"]}, '
        f'network input at {config["min_size"]}/{config["max_size"]}, {counted(result["proposals"], "proposal")}, '
        f'{counted(result["detections"], "detection")}',
        f'{facts.get("gpu", facts["processor"])}, {counted(facts["cpus"], "CPU")}, Python {facts["python"]}, '
        f'NumPy {facts["numpy"]}, {facts["date"]}; {counted(result["runs"], "run")} after {result["warmup"]}',
        *gpu_lines(facts),
        '',
        f'{"stage":<12}{"median s":>10}{"min":>10}{"max":>10}{"CPU s":>10}{"share":>8}{"of ceiling":>12}',
    ]
    total = result['total']
    for name, row in (*result['stages'].items(), ('total', total)):
        of_ceiling = row.get('of_ceiling')
        lines.append(
            f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}'
            f'{row["cpu_median"]:>10.4f}{row["median"] / total["median"]:>8.1%}'
            + ('' if name == 'total' else f'{"n/a" if of_ceiling is None else f"{of_ceiling:.1%}":>12}')
        )
    ceiling = result['ceiling']
    product = 'n/a' if ceiling['product'] is None else f'{ceiling["product"] / 1e9:.0f} GFLOP/s'
    lines += ['', f'ceiling: matrix product {product}, copy {ceiling["copy"] / 1e9:.1f} GB/s (read and written)']
    lines += [f'{name}: {value}' for name, value in sizes(result['memory']).items()]
    if 'peer' in result:
        lines += ['', *peer_lines(result['peer'], total)]
    return '\n'.join(lines)


def gpu_lines(facts: dict) -> list[str]:
    """Format the versions that the figures of a GPU depend on."""
    names = {'driver': 'driver', 'cuda': 'CUDA', 'cupy': 'CuPy', 'cudnn': 'cuDNN', 'cudnn_frontend': 'cuDNN Frontend'}
    return [', '.join(f'{title} {facts[name]}' for name, title in names.items())] if 'gpu' in facts else []


def sizes(memory: dict[str, int]) -> dict[str, str]:
    """Format sizes in MiB."""
    return {name.replace('_', ' ').replace('gpu', 'GPU'): f'{value / 2**20:.0f} MiB' for name, value in memory.items()}


def peer_lines(peer: dict, total: dict) -> list[str]:
    """Format the comparison with the peer."""
    vision = 'with torchvision' if peer['torchvision'] else 'without torchvision'
    rows = [
        f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}{row["cpu_median"]:>10.4f}'
        for name, row in (('this', total), ('peer', peer))
    ]
    ratio = peer['ratio']
    taken = ', '.join(f'{name} {value}' for name, value in sizes(peer['memory']).items())
    return [
        f'in turns with PyTorch {peer["torch"]} {vision} ({counted(peer["detections"], "detection")}, {taken})',
        *rows,
        f'the peer takes {ratio["median"]:.2f} times as long ({ratio["min"]:.2f} to {ratio["max"]:.2f})',
    ]


def random_image(size) -> np.ndarray:
    """Return noise, ``(H, W, 3)`` uint8."""
    return np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)


def random_model(extractor: str, **changes):
    """Build a network with random weights that yields as many proposals as a trained one."""
    np.random.seed(0)
    model = mask_rcnn.build(extractor, **changes)
    for path, param in model.namedparams():
        if path.endswith('conv3/norm/scale'):  # keeps activations near 1 through the residual sums
            assert isinstance(param.array, np.ndarray)
            param.array[...] = 0.2
    model.rpn.delta.W.array[...] *= 0.1  # keeps proposals near their anchors
    return model


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--modelfile', type=Path, help='weights (default: random weights)')
    parser.add_argument(
        '--extractor',
        default='resnet50',
        choices=sorted(mask_rcnn.PRESETS),
        help='network to build without --modelfile',
    )
    parser.add_argument('--image', type=Path, help='photo (default: noise of size --size)')
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1333), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--proposals', type=int, help='number of proposals (default: as configured)')
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    add_precision(parser.add_argument)
    add_peer_arguments(parser)
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--warmup', type=int, help='runs that are not timed (default: 1, on a GPU 4)')
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.warmup is None:
        args.warmup = 1 if args.gpu < 0 else 4  # a CUDA graph is captured in the second run
    if args.runs < 1 or args.warmup < 0 or min(args.size) < 1:
        parser.error('--runs and --size must be at least 1, --warmup at least 0')
    return args


def write_json(path: Path, result: dict) -> None:
    """Write a result; an incomplete file never has this name."""
    with open_for_writing(path) as file:
        file.write((json.dumps(result, indent=1) + '\n').encode())


def make_model(args: argparse.Namespace):
    """Return the network to time, on its device."""
    changes = {} if args.proposals is None else {'rpn_post_nms': args.proposals}
    if args.modelfile:
        return mask_rcnn.load(args.modelfile, gpu=args.gpu, **changes)
    model = random_model(args.extractor, **changes)
    model.to_device(get_device(args.gpu))
    return model


def run(args: argparse.Namespace) -> dict:
    """Run the benchmark that the arguments describe; returns the result."""
    check_precision(args.precision, args.gpu)
    free = free_memory(get_device(args.gpu))
    model = make_model(args)
    image = load_image(args.image) if args.image else random_image(args.size)
    against = None
    if args.against:
        check(args.against, model)
        against = partial(Peer, args.peer_python, args.against, model, image, precision=args.precision)
    with using_precision(args.precision):
        return benchmark(model, image, runs=args.runs, warmup=args.warmup, free=free, against=against)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments(argv)
    try:
        result = run(args)
    except (ValueError, OSError, UsageError, PeerError) as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 1
    print(table(result))
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == '__main__':
    sys.exit(main())
