"""Time the stages of a prediction.

    python scripts/benchmark.py [--modelfile FILE] [--image FILE | --size 800 1333] [--gpu 0] [--json FILE]

Without a weight file the network has random weights: the work is the same up to the number of detections,
which the table gives.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

import mask_rcnn  # noqa: E402  (before Chainer, which it makes importable)
import chainer  # noqa: E402
from mask_rcnn.datasets.image_io import read_image  # noqa: E402
from mask_rcnn.models.builder import get_device  # noqa: E402

STAGES = ('prepare', 'extractor', 'RPN', 'box head', 'mask head', 'paste')


class StageClock:
    """Seconds of wall-clock and of CPU time by stage, one entry a run."""

    def __init__(self, device):
        self.device = device
        self.wall = {stage: [] for stage in STAGES}
        self.cpu = {stage: [] for stage in STAGES}

    @contextlib.contextmanager
    def stage(self, name: str):
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
    with clock.stage('prepare'):
        x, scale = model.prepare(image)
    with clock.stage('extractor'):
        features = model.extract(x)
    with clock.stage('RPN'):
        rois = model.propose(features, x.shape[2:], scale)
    with clock.stage('box head'):
        boxes, labels, scores = model.classify(features, rois, size, scale)
    with clock.stage('mask head'):
        probs = model.segment(features, boxes, labels, scale)
    with clock.stage('paste'):
        detections = model.assemble(boxes, labels, scores, probs, size)
        assert detections.masks.shape == (len(boxes), *size)
    return detections, len(rois)


def summarise(seconds: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum in seconds."""
    return {'median': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def benchmark(model, image, *, runs: int, warmup: int) -> dict:
    """Return the timings and what they were measured on, as plain data."""
    device = model.device
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        for _ in range(warmup):
            detect_by_stages(model, image, StageClock(device))
        clock = StageClock(device)
        for _ in range(runs):
            detections, n_roi = detect_by_stages(model, image, clock)
    stages = {stage: {**summarise(clock.wall[stage]), 'cpu_median': statistics.median(clock.cpu[stage])}
              for stage in STAGES}
    whole = [sum(run) for run in zip(*clock.wall.values())]
    whole_cpu = [sum(run) for run in zip(*clock.cpu.values())]
    return {
        'stages': stages,
        'total': {**summarise(whole), 'cpu_median': statistics.median(whole_cpu)},
        'runs': runs, 'warmup': warmup,
        'image': {'height': image.shape[1], 'width': image.shape[2]},
        'proposals': n_roi, 'detections': len(detections),
        'network': model.config.to_dict(),
        'memory': memory(device),
        'machine': machine(device),
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
        f'{config["extractor"]} C4, image {image["height"]} x {image["width"]}, network input at '
        f'{config["min_size"]}/{config["max_size"]}, {result["proposals"]} proposals, '
        f'{result["detections"]} detections',
        f'{facts.get("gpu", facts["processor"])}, {facts["cpus"]} CPUs, Python {facts["python"]}, '
        f'NumPy {facts["numpy"]}, {facts["date"]}; {result["runs"]} runs after {result["warmup"]}',
        '',
        f'{"stage":<12}{"median s":>10}{"min":>10}{"max":>10}{"CPU s":>10}{"share":>8}',
    ]
    total = result['total']
    for name, row in (*result['stages'].items(), ('total', total)):
        lines.append(f'{name:<12}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}'
                     f'{row["cpu_median"]:>10.4f}{row["median"] / total["median"]:>8.1%}')
    lines.append('')
    lines += [f'{name.replace("_", " ")}: {value / 2 ** 20:.0f} MiB'
              for name, value in result['memory'].items()]
    return '\n'.join(lines)


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
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.runs < 1 or args.warmup < 0 or min(args.size) < 1:
        parser.error('--runs and --size must be at least 1, --warmup at least 0')
    return args


def main(argv=None) -> int:
    args = parse_arguments(argv)
    changes = {} if args.proposals is None else {'rpn_post_nms': args.proposals}
    try:
        if args.modelfile:
            model = mask_rcnn.load(args.modelfile, gpu=args.gpu, **changes)
        else:
            model = random_model(args.extractor, **changes)
            model.to_device(get_device(args.gpu))
        if args.image:
            image = read_image(args.image)
        else:
            image = np.random.RandomState(0).uniform(0, 255, (3, *args.size)).astype(np.float32)
    except (ValueError, OSError) as error:
        print(f'benchmark.py: {error}', file=sys.stderr)
        return 1
    result = benchmark(model, image, runs=args.runs, warmup=args.warmup)
    print(table(result))
    if args.json:
        partial = args.json.with_name(args.json.name + '.part')
        partial.write_text(json.dumps(result, indent=1) + '\n')
        os.replace(partial, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
