"""Time the stages of a prediction, and a peer that predicts in turn with us.

    python scripts/benchmarks/benchmark.py [--modelfile FILE] [--image FILE | --size 800 1333] [--gpu 0] [--json FILE]
    python scripts/benchmarks/benchmark.py --against torch [--peer-python PYTHON] [--extractor resnet50_fpn]

Without a weight file the network has random weights: the work is the same up to the number of detections,
which the table gives.  "Total" is one call of ``model.detect``, from the image on the host to the pasted masks there.
The stages are timed by themselves, in turn with it; on a GPU each waits until it has finished, so that they may take
longer than the whole.  "Of ceiling" is the share of what the machine can do at best, measured just after: of a
matrix product's rate, or for "prepare" and "paste", which multiply little, of the rate of a copy.  "GPU used" is what
``cudaMemGetInfo`` has less, since before the network was made, without CUDA's own context: everybody's, so let nobody
else use the GPU.

A peer runs in a process of its own, on the same image and as many CPUs, ours and its predictions taking
turns: what else happens on the machine then hits both.  ``torch`` is our network with our weights in plain
PyTorch (``peers/torch_mask_rcnn.py``), ``torchvision`` is torchvision's R-50-FPN.
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
from functools import partial
from pathlib import Path

import chainer
import numpy as np
from machine_ceiling import WorkCounter, copy_bandwidth, matmul_flops
from peer import Peer, PeerError, check

import mask_rcnn
from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import add_precision, check_precision
from mask_rcnn.ops.cudnn_frontend import current_precision, frontend, using_precision
from mask_rcnn.ops.runtime.cache import cache_features, cache_weights
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import read_image

STAGES = ('prepare', 'extractor', 'RPN', 'box head', 'mask head', 'paste')


class StageClock:
    """Seconds of wall-clock and of CPU time by stage, one entry a run, and the operations of products."""

    def __init__(self, device):
        self.device = device
        self.wall = {stage: [] for stage in (*STAGES, 'total')}
        self.cpu = {stage: [] for stage in (*STAGES, 'total')}
        self.operations = dict.fromkeys(STAGES, 0)

    @contextlib.contextmanager
    def stage(self, name: str):
        """Time a block and count its operations."""
        with self.timed(name), WorkCounter() as counter:
            yield
        self.operations[name] = counter.operations

    @contextlib.contextmanager
    def timed(self, name: str):
        """Time a block; on a GPU, until it has finished what the block asked of it."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if self.device.xp is not np:
            self.device.xp.cuda.get_current_stream().synchronize()
        self.wall[name].append(time.perf_counter() - wall)
        self.cpu[name].append(time.process_time() - cpu)


def detect_by_stages(model, image, clock: StageClock):
    """Do what ``model.detect`` does, timing each stage; return the detections and number of proposals."""
    size = image.shape[1:]
    with cache_features():
        with clock.stage('prepare'):
            x, transform = model.prepare(image)
        with clock.stage('extractor'):
            features = model.extract(x)
        with clock.stage('RPN'):
            rois = model.propose(features, x.shape[2:], transform.scale)
        with clock.stage('box head'):
            boxes, labels, scores = model.detect_boxes(features, rois, transform)
        with clock.stage('mask head'):
            probs = model.predict_masks(features, boxes, labels, transform)
        with clock.stage('paste'):
            detections = model.postprocess(boxes, labels, scores, probs, transform)
            assert detections.masks.shape == (len(detections), *size)
    return detections, len(rois)


def detect_at_once(model, image, clock: StageClock):
    """Find the objects of an image and paste their masks, as a user would, without waiting between the stages."""
    with clock.timed('total'):
        (detections,) = model.detect([image])
        assert detections.masks.shape == (len(detections), *image.shape[1:])
    return detections


def summarise(seconds: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum in seconds."""
    return {'median': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def benchmark(model, image, *, runs: int, warmup: int, free: int | None = None, against=None) -> dict:
    """Return the timings and what they were measured on, as plain data.

    Args:
        model: The network, on its device.
        image: ``(3, H, W)`` float32, RGB, on the host.
        runs, warmup: How often everything is timed, after how many times that it is not.
        free: What :func:`free_memory` returned before there was a network.
        against: Makes a :class:`~peer.Peer`; ``None``: there is none.
    """
    device = model.device
    clock, turns = StageClock(device), []
    with contextlib.ExitStack() as stack:
        for context in (chainer.using_config('train', False), chainer.no_backprop_mode(), cache_weights()):
            stack.enter_context(context)
        for _ in range(warmup):
            detect_by_stages(model, image, StageClock(device))
            detect_at_once(model, image, StageClock(device))
        # Made now, and first in every turn: what it takes of the GPU is then not mixed with what we take.
        peer = None if against is None else stack.enter_context(against())
        if peer is not None:
            turns = [peer.run() for _ in range(warmup + 1)][warmup:]
        for i in range(runs):
            if peer is not None and i > 0:
                turns.append(peer.run())
            detections = detect_at_once(model, image, clock)
            _, n_roi = detect_by_stages(model, image, clock)
    taken = memory(device, free)  # without the peer, which has ended
    ceiling = {'product': matmul_flops(device.xp), 'copy': copy_bandwidth(device.xp)}
    result = {
        'stages': stage_results(clock, ceiling, image, len(detections)),
        'total': {**summarise(clock.wall['total']), 'cpu_median': statistics.median(clock.cpu['total'])},
        'ceiling': ceiling,
        'precision': current_precision().name,
        'runs': runs,
        'warmup': warmup,
        'image': {'height': image.shape[1], 'width': image.shape[2]},
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
    """Return each stage's seconds, and the share of the ceiling that it reaches."""
    copied = {'prepare': 2 * image.nbytes, 'paste': n_detection * image[0].size}
    stages = {}
    for stage in STAGES:
        row = {**summarise(clock.wall[stage]), 'cpu_median': statistics.median(clock.cpu[stage])}
        if stage in copied:
            row['of_ceiling'] = copied[stage] / row['median'] / ceiling['copy']
        else:
            row['operations'] = clock.operations[stage]
            row['of_ceiling'] = row['operations'] / row['median'] / ceiling['product'] if ceiling['product'] else None
        stages[stage] = row
    return stages


def peer_results(turns: list[dict], ours: list[float]) -> dict:
    """Return the peer's seconds and how many times as long as we it took, turn by turn."""
    return {
        **summarise([turn['wall'] for turn in turns]),
        'cpu_median': statistics.median(turn['cpu'] for turn in turns),
        'detections': turns[-1]['detections'],
        'memory': {
            'host_peak': turns[-1]['host_peak'],
            **{name: turns[0][name] for name in ('gpu_pool', 'gpu_used') if name in turns[0]},
        },
        'ratio': summarise([turn['wall'] / own for turn, own in zip(turns, ours)]),
    }


def free_memory(device) -> int | None:
    """Return the bytes of a GPU's memory that nobody uses; ``None`` for the CPU."""
    return None if device.xp is np else device.xp.cuda.runtime.memGetInfo()[0]


def memory(device, free: int | None = None) -> dict[str, int]:
    """Return the memory in bytes: the process's peak, and of the GPU what CuPy's pool holds and all that is used.

    Args:
        device: The network's.
        free: What :func:`free_memory` returned before there was a network.
    """
    unit = 1 if sys.platform == 'darwin' else 1024
    taken = {'host_peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.xp is not np:
        taken['gpu_pool'] = device.xp.get_default_memory_pool().total_bytes()
        if free is not None:
            taken['gpu_used'] = free - free_memory(device)
    return taken


def machine(device) -> dict[str, str | int | None]:
    """Return what the figures depend on besides the program."""
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
    """Return the GPU's name and the versions of all that stands between it and us, ``None`` for what is not there."""
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
    """Return the version of NVIDIA's kernel module, as in ``'570.124.06'``; ``None`` where it does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r'\b\d{3,}\.[\d.]+', path.read_text())
        return found[0] if found else None
    return None


def processor_name() -> str:
    """Return the processor's name as the system gives it."""
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def table(result: dict) -> str:
    """Return the result as text."""
    image, facts = result['image'], result['machine']
    config = result['network']
    lines = [
        f'{config["extractor"]}, {result["precision"]}, image {image["height"]} x {image["width"]}, '
        f'network input at {config["min_size"]}/{config["max_size"]}, {result["proposals"]} proposals, '
        f'{result["detections"]} detections',
        f'{facts.get("gpu", facts["processor"])}, {facts["cpus"]} CPUs, Python {facts["python"]}, '
        f'NumPy {facts["numpy"]}, {facts["date"]}; {result["runs"]} runs after {result["warmup"]}',
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
    """Return the versions that a GPU's figures depend on as text."""
    names = {'driver': 'driver', 'cuda': 'CUDA', 'cupy': 'CuPy', 'cudnn': 'cuDNN', 'cudnn_frontend': 'cuDNN Frontend'}
    return [', '.join(f'{title} {facts[name]}' for name, title in names.items())] if 'gpu' in facts else []


def sizes(memory: dict[str, int]) -> dict[str, str]:
    """Return bytes as text for people."""
    return {name.replace('_', ' ').replace('gpu', 'GPU'): f'{value / 2**20:.0f} MiB' for name, value in memory.items()}


def peer_lines(peer: dict, ours: dict) -> list[str]:
    """Return the comparison as text."""
    vision = 'with torchvision' if peer['torchvision'] else 'without torchvision'
    rows = [
        f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}{row["cpu_median"]:>10.4f}'
        for name, row in (('ours', ours), ('peer', peer))
    ]
    ratio = peer['ratio']
    taken = ', '.join(f'{name} {value}' for name, value in sizes(peer['memory']).items())
    return [
        f'in turns with torch {peer["torch"]} {vision} ({peer["detections"]} detections, {taken})',
        *rows,
        f'the peer takes {ratio["median"]:.2f} times as long ({ratio["min"]:.2f} to {ratio["max"]:.2f})',
    ]


def random_model(extractor: str, **changes):
    """Return a network whose random weights give it as many proposals as trained ones would."""
    np.random.seed(0)
    model = mask_rcnn.build(extractor, **changes)
    for path, param in model.namedparams():
        if path.endswith('conv3/norm/scale'):  # activations stay near 1 through the residual sums ...
            param.array[...] = 0.2
    model.rpn.delta.W.array[...] *= 0.1  # ... and proposals near their anchors
    return model


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--modelfile', type=Path, help='weights (default: random ones)')
    parser.add_argument(
        '--extractor',
        default='resnet50',
        choices=sorted(mask_rcnn.PRESETS),
        help='network to make where there is no --modelfile',
    )
    parser.add_argument('--image', type=Path, help='photo (default: noise of --size)')
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1333), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--proposals', type=int, help="proposals to look at (default: the network's)")
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    add_precision(parser.add_argument)
    parser.add_argument('--against', choices=('torch', 'torchvision'), help='a peer to take turns with')
    parser.add_argument(
        '--peer-python',
        default=sys.executable,
        metavar='PYTHON',
        help="the peer's interpreter, which has PyTorch (default: this one)",
    )
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.runs < 1 or args.warmup < 0 or min(args.size) < 1:
        parser.error('--runs and --size must be at least 1, --warmup at least 0')
    return args


def make_model(args: argparse.Namespace):
    """Return the network that is timed, on its device."""
    changes = {} if args.proposals is None else {'rpn_post_nms': args.proposals}
    if args.modelfile:
        return mask_rcnn.load(args.modelfile, gpu=args.gpu, **changes)
    model = random_model(args.extractor, **changes)
    model.to_device(get_device(args.gpu))
    return model


def run(args: argparse.Namespace) -> dict:
    """Do what the arguments say; returns the result."""
    check_precision(args.precision, args.gpu)
    free = free_memory(get_device(args.gpu))
    model = make_model(args)
    if args.image:
        image = read_image(args.image)
    else:
        image = np.random.RandomState(0).uniform(0, 255, (3, *args.size)).astype(np.float32)
    against = None
    if args.against:
        check(args.against, model)
        against = partial(Peer, args.peer_python, args.against, model, image, precision=args.precision)
    with using_precision(args.precision):
        return benchmark(model, image, runs=args.runs, warmup=args.warmup, free=free, against=against)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    try:
        result = run(args)
    except (ValueError, OSError, UsageError, PeerError) as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 1
    print(table(result))
    if args.json:
        partial = args.json.with_name(args.json.name + '.part')
        partial.write_text(json.dumps(result, indent=1) + '\n')
        os.replace(partial, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
