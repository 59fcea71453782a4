"""Time the stages of a prediction, and a peer that predicts in turn with us.

    python scripts/benchmark.py [--modelfile FILE] [--image FILE | --size 800 1333] [--gpu 0] [--json FILE]
    python scripts/benchmark.py --against torch [--peer-python PYTHON] [--extractor resnet50_fpn]

Without a weight file the network has random weights: the work is the same up to the number of detections,
which the table gives.  "Of ceiling" is the share of what the machine can do at best, measured just before: of
a matrix product's rate, or for "prepare" and "paste", which multiply little, of the rate of a copy.

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
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402

import mask_rcnn  # noqa: E402  (before Chainer, which it makes importable)
import chainer  # noqa: E402
from machine_ceiling import WorkCounter, copy_bandwidth, product_rate  # noqa: E402
from mask_rcnn.commands.common import UsageError, add_precision, check_precision  # noqa: E402
from mask_rcnn.datasets.image_io import read_image  # noqa: E402
from mask_rcnn.models.builder import get_device  # noqa: E402
from mask_rcnn.ops.cudnn import current_precision, using_precision  # noqa: E402
from mask_rcnn.ops.derived import constant_parameters, one_image  # noqa: E402
from peer import Peer, PeerError  # noqa: E402

STAGES = ('prepare', 'extractor', 'RPN', 'box head', 'mask head', 'paste')


class StageClock:
    """Seconds of wall-clock and of CPU time by stage, one entry a run, and the operations of products."""

    def __init__(self, device):
        self.device = device
        self.wall = {stage: [] for stage in STAGES}
        self.cpu = {stage: [] for stage in STAGES}
        self.operations = dict.fromkeys(STAGES, 0)

    @contextlib.contextmanager
    def stage(self, name: str):
        """Time a block; on a GPU, until it has finished what the block asked of it."""
        wall, cpu = time.perf_counter(), time.process_time()
        with WorkCounter() as counter:
            yield
        if self.device.xp is not np:
            self.device.xp.cuda.get_current_stream().synchronize()
        self.wall[name].append(time.perf_counter() - wall)
        self.cpu[name].append(time.process_time() - cpu)
        self.operations[name] = counter.operations


def detect_by_stages(model, image, clock: StageClock):
    """Do what ``model.detect`` does, timing each stage; return the detections and number of proposals."""
    size = image.shape[1:]
    with one_image():
        with clock.stage('prepare'):
            x, placement = model.prepare(image)
        with clock.stage('extractor'):
            features = model.extract(x)
        with clock.stage('RPN'):
            rois = model.propose(features, x.shape[2:], placement.scale)
        with clock.stage('box head'):
            boxes, labels, scores = model.classify(features, rois, placement)
        with clock.stage('mask head'):
            probs = model.segment(features, boxes, labels, placement)
        with clock.stage('paste'):
            detections = model.assemble(boxes, labels, scores, probs, placement)
            assert detections.masks.shape == (len(detections), *size)
    return detections, len(rois)


def summarise(seconds: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum in seconds."""
    return {'median': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def benchmark(model, image, *, runs: int, warmup: int, peer: Peer | None = None) -> dict:
    """Return the timings and what they were measured on, as plain data."""
    device = model.device
    clock, turns = StageClock(device), []
    ceiling = {'product': product_rate(device.xp), 'copy': copy_bandwidth(device.xp)}
    with chainer.using_config('train', False), chainer.no_backprop_mode(), constant_parameters():
        for _ in range(warmup):
            detect_by_stages(model, image, StageClock(device))
            if peer is not None:
                peer.run()
        for _ in range(runs):
            detections, n_roi = detect_by_stages(model, image, clock)
            if peer is not None:
                turns.append(peer.run())
    whole = [sum(run) for run in zip(*clock.wall.values())]
    whole_cpu = [sum(run) for run in zip(*clock.cpu.values())]
    result = {
        'stages': stage_results(clock, ceiling, image, len(detections)),
        'total': {**summarise(whole), 'cpu_median': statistics.median(whole_cpu)},
        'ceiling': ceiling, 'precision': current_precision().name, 'runs': runs, 'warmup': warmup,
        'image': {'height': image.shape[1], 'width': image.shape[2]},
        'proposals': n_roi, 'detections': len(detections),
        'network': model.config.to_dict(),
        'memory': memory(device),
        'machine': machine(device),
    }
    if peer is not None:
        result['peer'] = {**peer.versions, **peer_results(turns, whole)}
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
            row['of_ceiling'] = row['operations'] / row['median'] / ceiling['product']
        stages[stage] = row
    return stages


def peer_results(turns: list[dict], ours: list[float]) -> dict:
    """Return the peer's seconds and how many times as long as we it took, turn by turn."""
    return {
        **summarise([turn['wall'] for turn in turns]),
        'cpu_median': statistics.median(turn['cpu'] for turn in turns),
        'detections': turns[-1]['detections'],
        'memory': {name: turns[-1][name] for name in ('host_peak', 'gpu_peak')},
        'ratio': summarise([turn['wall'] / own for turn, own in zip(turns, ours)]),
    }


def memory(device) -> dict[str, int]:
    """Return the peak memory in bytes: of the process, and what CuPy's pool has taken of the GPU."""
    unit = 1 if sys.platform == 'darwin' else 1024
    peak = {'host_peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.xp is not np:
        peak['gpu_pool'] = device.xp.get_default_memory_pool().total_bytes()
    return peak


def machine(device) -> dict[str, str | int]:
    """Return what the figures depend on besides the program."""
    import cv2
    import numba
    facts = {
        'processor': processor_name(), 'cpus': len(os.sched_getaffinity(0)), 'system': platform.platform(),
        'python': platform.python_version(), 'numpy': np.__version__, 'numba': numba.__version__,
        'chainer': chainer.__version__, 'opencv': cv2.__version__, 'mask_rcnn': mask_rcnn.__version__,
        'date': time.strftime('%Y-%m-%d'),
    }
    if device.xp is not np:
        runtime = device.xp.cuda.runtime
        facts.update(gpu=runtime.getDeviceProperties(device.device.id)['name'].decode(),
                     cuda=runtime.runtimeGetVersion(), cupy=device.xp.__version__)
    return facts


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
        '',
        f'{"stage":<12}{"median s":>10}{"min":>10}{"max":>10}{"CPU s":>10}{"share":>8}'
        f'{"of ceiling":>12}',
    ]
    total = result['total']
    for name, row in (*result['stages'].items(), ('total', total)):
        lines.append(f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}'
                     f'{row["cpu_median"]:>10.4f}{row["median"] / total["median"]:>8.1%}'
                     + (f'{row["of_ceiling"]:>12.1%}' if 'of_ceiling' in row else ''))
    ceiling = result['ceiling']
    lines += ['', f'ceiling: matrix product {ceiling["product"] / 1e9:.0f} GFLOP/s, copy '
                  f'{ceiling["copy"] / 1e9:.1f} GB/s (read and written)']
    lines += [f'{name.replace("_", " ")}: {value / 2 ** 20:.0f} MiB'
              for name, value in result['memory'].items()]
    if 'peer' in result:
        lines += ['', *peer_lines(result['peer'], total)]
    return '\n'.join(lines)


def peer_lines(peer: dict, ours: dict) -> list[str]:
    """Return the comparison as text."""
    vision = 'with torchvision' if peer['torchvision'] else 'without torchvision'
    rows = [f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}'
            f'{row["cpu_median"]:>10.4f}' for name, row in (('ours', ours), ('peer', peer))]
    ratio = peer['ratio']
    return [f'in turns with torch {peer["torch"]} {vision} ({peer["detections"]} detections, host peak '
            f'{peer["memory"]["host_peak"] / 2 ** 20:.0f} MiB)', *rows,
            f'the peer takes {ratio["median"]:.2f} times as long ({ratio["min"]:.2f} to {ratio["max"]:.2f})']


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
    parser.add_argument('--extractor', default='resnet50', choices=sorted(mask_rcnn.PRESETS),
                        help='network to make where there is no --modelfile')
    parser.add_argument('--image', type=Path, help='photo (default: noise of --size)')
    parser.add_argument('--size', type=int, nargs=2, default=(800, 1333), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--proposals', type=int, help="proposals to look at (default: the network's)")
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    add_precision(parser.add_argument)
    parser.add_argument('--against', choices=('torch', 'torchvision'), help='a peer to take turns with')
    parser.add_argument('--peer-python', default=sys.executable, metavar='PYTHON',
                        help="the peer's interpreter, which has PyTorch (default: this one)")
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
    model = make_model(args)
    if args.image:
        image = read_image(args.image)
    else:
        image = np.random.RandomState(0).uniform(0, 255, (3, *args.size)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        stack.enter_context(using_precision(args.precision))
        peer = None
        if args.against:
            peer = stack.enter_context(Peer(args.peer_python, args.against, model, image,
                                            precision=args.precision))
        return benchmark(model, image, runs=args.runs, warmup=args.warmup, peer=peer)


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
