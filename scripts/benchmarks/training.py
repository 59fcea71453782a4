"""Time training iterations and measure their memory, optionally in turns with a peer (another implementation).

    python scripts/benchmarks/training.py [--extractor resnet50_fpn] [--batch-sizes 1 2 4] [--gpu 0] [--precision bf16]
    python scripts/benchmarks/training.py --extractor resnet50_fpn --against torchvision [--peer-python PYTHON]

An iteration is one update as in ``train.py``: copies of the prepared images to the device, forward pass, targets,
losses, backward pass and optimizer step, until the GPU has finished.  The images are noise with random objects, the
weights are random, and the learning rate is 0: the work does not depend on it, and all iterations are the same.  The
network, the sampling and the frozen stages are the defaults of ``train.py``, except that images are not resized.

Memory is measured for each batch size: "GPU pool" is the size of CuPy's memory pool, which is emptied before and after
the first iteration (so that trials of algorithms do not count), without the memory of CUDA graphs.  "GPU used" is the
decrease of the free memory that ``cudaMemGetInfo`` reports since before the network was built, without CUDA's context.
It includes other processes, so no other process should use the GPU.  "Host peak" is that of the whole process, and
batch sizes run in ascending order.

A peer runs in a separate process, one for each batch size, on the same batch and the same number of CPUs.  The
iterations alternate, so that other load on the machine affects both.  ``torch`` is the same network with the same
weights in PyTorch (``peers/torch_training.py``), ``torchvision`` is torchvision's R-50-FPN.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import mask_rcnn  # makes Chainer importable

# isort: split
import chainer
import numpy as np
from benchmark import free_memory, gpu_lines, machine, memory, peer_results, random_model, sizes, summarise, write_json
from chainer.iterators import SerialIterator
from peer import PeerError, TrainingPeer, add_peer_arguments, check_training

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import add_precision, check_precision, positive_int
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import NonFiniteLossError, SubdivisionUpdater

N_OBJECTS = 8


class Trainer:
    """Updates of a network as ``train.py`` makes them (``mask_rcnn.training.trainer.build_training_run``).

    Args:
        model: The network, on its device; its first stages are frozen.
        sampling: Sampling sizes and IoU thresholds.
        precision: Arithmetic precision; float16 uses dynamic loss scaling.
    """

    def __init__(self, model, sampling: Sampling, precision: str):
        freeze(model)
        self.device, self.sampling = model.device, sampling
        self.loss_scale = 'dynamic' if precision == 'fp16' else None
        chain = MaskRCNNTrainChain(model, sampling=sampling)
        chain.to_device(model.device)
        self.optimizer = make_optimizer(chain)

    def start(self, examples):
        """Return a function without arguments that makes one update.

        It returns wall-clock seconds, CPU seconds, and the reported losses and counts by name.
        """
        iterator = SerialIterator(examples, len(examples), shuffle=False)
        updater = SubdivisionUpdater(iterator, self.optimizer, loss_scale=self.loss_scale)
        reporter = chainer.Reporter()
        reporter.add_observer('main', self.optimizer.target)

        def update():
            reported: dict[str, np.ndarray] = {}
            wall, cpu = time.perf_counter(), time.process_time()
            with reporter.scope(reported):
                updater.update()
            if self.device.xp is not np:
                self.device.xp.cuda.get_current_stream().synchronize()
            seconds = time.perf_counter() - wall, time.process_time() - cpu
            return *seconds, {name.rsplit('/', 1)[-1]: float(value) for name, value in reported.items()}

        return update


def make_examples(config, count: int, size: tuple[int, int]):
    """Return prepared images of noise, each with :data:`N_OBJECTS` random octagons.

    Args:
        config: Configuration of the network.
        count: Number of images.
        size: Height and width of the images.
    """
    transform = TrainingTransform(config, Augmentation(flip=False))
    rng = np.random.RandomState(0)
    examples = []
    for i in range(count):
        image = rng.uniform(0, 255, (3, *size)).astype(np.float32)
        examples.append(
            transform(Example(image, random_objects(rng, size, config.n_fg_class), f'noise {i}', i), seed=i)
        )
    return examples


def random_objects(rng: np.random.RandomState, size: tuple[int, int], n_classes: int) -> Annotations:
    """Return octagons whose heights and widths are 10 to 60 % of those of the image."""
    extents = rng.uniform(0.1, 0.6, (N_OBJECTS, 2)) * size
    corners = rng.uniform(size=(N_OBJECTS, 2)) * (size - extents - 1)
    boxes = np.concatenate([corners, corners + extents], axis=1).astype(np.float32)
    return Annotations(
        boxes=boxes,
        labels=rng.randint(n_classes, size=N_OBJECTS).astype(np.int32),
        crowd=np.zeros(N_OBJECTS, bool),
        segmentations=tuple((octagon(box),) for box in boxes),
    )


def octagon(box: np.ndarray) -> np.ndarray:
    """Return the polygon ``x, y, x, y, ...`` that touches the sides of a box ``(4,)``."""
    y = box[0] + (box[2] - box[0]) * np.array([0, 0, 0.3, 0.7, 1, 1, 0.7, 0.3])
    x = box[1] + (box[3] - box[1]) * np.array([0.3, 0.7, 1, 1, 0.7, 0.3, 0, 0])
    return np.stack([x, y], axis=1).ravel()


def benchmark(trainer: Trainer, examples, *, runs: int, warmup: int, free: int | None = None, against=None) -> dict:
    """Return the timings, the memory and the losses of one batch as plain data.

    Args:
        trainer: The network and its optimizer.
        examples: The batch.
        runs: Number of timed iterations.
        warmup: Number of iterations before them that are not timed.
        free: Result of ``benchmark.free_memory`` before the network was built.
        against: Creates a :class:`~peer.TrainingPeer`; ``None`` for no peer.
    """
    release(trainer.device)
    update, turns, iterations = trainer.start(examples), [], []
    for i in range(warmup):
        update()
        if i == 0:
            release(trainer.device)
    with contextlib.ExitStack() as stack:
        # The peer starts first in every turn, so that its GPU memory is not counted as that of this program.
        peer = None if against is None else stack.enter_context(against(examples))
        if peer is not None:
            turns = [peer.run() for _ in range(warmup + 1)][warmup:]
        for i in range(runs):
            if peer is not None and i > 0:
                turns.append(peer.run())
            iterations.append(update())
    wall, cpu, losses = zip(*iterations, strict=True)
    result = {
        'batch_size': len(examples),
        **summarise(wall),
        'cpu_median': statistics.median(cpu),
        'losses': losses[-1],
        'memory': memory(trainer.device, free),  # after the peer has ended
    }
    if peer is not None:
        result['peer'] = {**peer.versions, **peer_results(turns, wall)}
    return result


def release(device) -> None:
    """Return the free memory of CuPy's pool to the GPU."""
    gc.collect()
    if device.xp is not np:
        device.xp.get_default_memory_pool().free_all_blocks()


def header(result: dict) -> str:
    """Format the conditions of the measurement, and the titles of the columns."""
    image, facts, config = result['image'], result['machine'], result['network']
    lines = [
        f'{config["extractor"]}, {result["precision"]}, images {image["height"]} x {image["width"]}, '
        f'{result["sampling"]["roi_batch"]} RoIs of {result["sampling"]["train_post_nms"]} proposals',
        f'{facts.get("gpu", facts["processor"])}, {counted(facts["cpus"], "CPU")}, Python {facts["python"]}, '
        f'NumPy {facts["numpy"]}, {facts["date"]}; {counted(result["runs"], "iteration")} after {result["warmup"]}',
        *gpu_lines(facts),
        '',
        f'{"images":<8}{"program":<14}{"median s":>10}{"min":>10}{"max":>10}{"CPU s":>10}{"images/s":>10}  memory',
    ]
    return '\n'.join(lines)


def rows(batch: dict) -> str:
    """Format the result of one batch size."""
    size, lines = batch['batch_size'], []
    programs = {'this': batch}
    if 'peer' in batch:
        programs[f'torch {batch["peer"]["torch"].split("+")[0]}'] = batch['peer']
    for name, row in programs.items():
        taken = ', '.join(f'{title} {value}' for title, value in sizes(row['memory']).items())
        lines.append(
            f'{size:<8}{name:<14}{row["median"]:>10.4f}{row["min"]:>10.4f}{row["max"]:>10.4f}'
            f'{row["cpu_median"]:>10.4f}{size / row["median"]:>10.2f}  {taken}'
        )
    if 'peer' in batch:
        ratio = batch['peer']['ratio']
        lines.append(f'the peer takes {ratio["median"]:.2f} times as long ({ratio["min"]:.2f} to {ratio["max"]:.2f})')
    return '\n'.join(lines)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--extractor', default='resnet50', choices=mask_rcnn.config.EXTRACTORS, help='network to build')
    parser.add_argument('--size', type=positive_int, nargs=2, default=(800, 1333), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch-sizes', type=positive_int, nargs='+', default=[1, 2, 4], metavar='N')
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    add_precision(parser.add_argument)
    add_peer_arguments(parser)
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--json', type=Path, help='also write the result to this file, after each batch size')
    args = parser.parse_args(argv)
    if args.runs < 1 or args.warmup < 0:
        parser.error('--runs must be at least 1, --warmup at least 0')
    return args


def sampling_of(config) -> Sampling:
    """Return the sampling of ``train.py``: Detectron's FPN networks keep fewer anchors before NMS."""
    return Sampling(train_pre_nms=Sampling.train_post_nms) if config.has_fpn else Sampling()


def run(args: argparse.Namespace) -> None:
    """Run the benchmark that the arguments describe, and print and write the results as they are measured."""
    check_precision(args.precision, args.gpu)
    device = get_device(args.gpu)
    free = free_memory(device)
    model = random_model(args.extractor, min_size=min(args.size), max_size=max(args.size))
    if args.against:
        check_training(args.against, model)
    model.to_device(device)
    trainer = Trainer(model, sampling_of(model.config), args.precision)
    against = None
    if args.against:
        create = partial(TrainingPeer, args.peer_python, args.against, model, precision=args.precision)
        against = lambda examples: create(examples, trainer.sampling)  # noqa: E731
    result = {
        'precision': args.precision,
        'runs': args.runs,
        'warmup': args.warmup,
        'image': {'height': args.size[0], 'width': args.size[1]},
        'sampling': vars(trainer.sampling),
        'network': model.config.to_dict(),
        'machine': machine(device),
        'batches': [],
    }
    print(header(result), flush=True)
    for size in sorted(args.batch_sizes):
        examples = make_examples(model.config, size, tuple(args.size))
        batch = benchmark(trainer, examples, runs=args.runs, warmup=args.warmup, free=free, against=against)
        result['batches'].append(batch)
        print(rows(batch), flush=True)
        if args.json:
            write_json(args.json, result)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments(argv)
    try:
        with chainer.using_config('train', True), using_precision(args.precision):
            run(args)
    except (ValueError, OSError, MemoryError, UsageError, PeerError, NonFiniteLossError) as error:
        print(f'training.py: {" ".join(str(error).split())}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
