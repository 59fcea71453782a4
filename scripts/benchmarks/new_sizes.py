"""Time the training iterations of new image sizes, and divide the time of the first ones by its causes.

    python scripts/benchmarks/new_sizes.py [--extractor resnet50_fpn] [--gpu 0] [--precision fp16] [--sizes 6]

Every size has --repeats iterations of one image, as in ``training.py``.  The first one plans its convolutions and
compiles kernels, the second one captures CUDA graphs, and later ones replay them.  Before the measurement, another size
runs as often, so that what happens once per process does not count.  Each of these is timed without the others:

- plans: cuDNN's engines and plans of the convolutions (``frontend.GraphCache``)
- compilation: CUDA sources that CuPy compiles or loads from its cache
- graphs: the capture of CUDA graphs, with the passes that precede it
- memory: allocations from the GPU, which CuPy's pool does not contain

The rest is the iteration itself: forward and backward pass, targets, losses and update.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mask_rcnn  # makes Chainer importable

# isort: split
import chainer
from benchmark import gpu_lines, machine, random_model, write_json
from chainer.backends import cuda
from training import Trainer, make_examples, sampling_of

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import add_precision, check_precision, positive_int
from mask_rcnn.ops.cudnn_frontend import convolution, using_precision
from mask_rcnn.ops.runtime import training_graph
from mask_rcnn.ops.runtime.device import get_device

CAUSES = ('plans', 'compilation', 'graphs', 'memory')


class CauseClock:
    """The seconds and the number of calls of each cause; the time of a nested call counts for the inner cause only."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.calls = dict.fromkeys(CAUSES, 0)
        self._starts: list[tuple[str, float]] = []
        self._inner: list[float] = []

    def start(self, cause: str) -> None:
        """Begin the time of a cause."""
        self._starts.append((cause, time.perf_counter()))
        self._inner.append(0.0)

    def stop(self) -> None:
        """End the time of the cause that was begun last."""
        cause, started = self._starts.pop()
        seconds = time.perf_counter() - started
        self.seconds[cause] += seconds - self._inner.pop()
        self.calls[cause] += 1
        if self._inner:
            self._inner[-1] += seconds

    def timed(self, cause: str, function: Callable) -> Callable:
        """Return a function whose calls count for a cause."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.start(cause)
            try:
                return function(*arguments, **options)
            finally:
                self.stop()

        return call

    def take(self) -> dict[str, dict[str, float]]:
        """Return the seconds and the calls since the last call."""
        taken: dict[str, dict[str, float]] = {'seconds': self.seconds, 'calls': dict(self.calls)}
        self.seconds, self.calls = dict.fromkeys(CAUSES, 0.0), dict.fromkeys(CAUSES, 0)
        return taken


@contextlib.contextmanager
def timed_causes(clock: CauseClock, has_gpu: bool) -> Iterator[None]:
    """Time the causes in a ``with`` block."""
    functions = [
        ('plans', convolution, '_build'),
        ('graphs', training_graph.CapturedGradient, '__init__'),
    ]
    with contextlib.ExitStack() as stack:
        if has_gpu:
            functions.append(('compilation', cuda.cupy.cuda.compiler, '_compile_module_with_cache'))
            stack.enter_context(_allocation_hook(clock))
        for cause, owner, name in functions:
            original = getattr(owner, name)
            setattr(owner, name, clock.timed(cause, original))
            stack.callback(setattr, owner, name, original)
        yield


def _allocation_hook(clock: CauseClock) -> Any:
    """Return a hook of CuPy that counts the allocations from the GPU for ``memory``."""

    class Hook(cuda.cupy.cuda.MemoryHook):
        name = 'allocations'

        def alloc_preprocess(self, **arguments: Any) -> None:
            clock.start('memory')

        def alloc_postprocess(self, **arguments: Any) -> None:
            clock.stop()

    return Hook()


def make_sizes(n: int, first: tuple[int, int]) -> list[tuple[int, int]]:
    """Return heights and widths that differ by 32 pixels, as those of photos that are padded for an FPN."""
    height, width = first
    return [(height, width - 32 * i) for i in range(n)]


def measure(trainer: Trainer, clock: CauseClock, config, size: tuple[int, int], n_repeats: int) -> list[dict]:
    """Return the seconds of the iterations of a size, and of their causes."""
    update = trainer.start(make_examples(config, 1, size))
    iterations = []
    for _ in range(n_repeats):
        clock.take()
        seconds, *_ = update()
        iterations.append({'total': seconds, **clock.take()})
    return iterations


def row(name: str, iterations: list[dict]) -> str:
    """Format the medians of iterations of several sizes, in milliseconds, and the calls of the causes."""
    total = statistics.median(item['total'] for item in iterations)
    causes = [statistics.median(item['seconds'][cause] for item in iterations) for cause in CAUSES]
    rest = statistics.median(item['total'] - sum(item['seconds'].values()) for item in iterations)
    calls = [statistics.median(item['calls'][cause] for item in iterations) for cause in CAUSES]
    cells = [f'{1e3 * seconds:>9.1f} ({n:.0f})'.rjust(18) for seconds, n in zip(causes, calls, strict=True)]
    return f'{name:<10}{1e3 * total:>9.1f}{"".join(cells)}{1e3 * rest:>9.1f}'


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--extractor', default='resnet50_fpn', choices=mask_rcnn.config.EXTRACTORS, help='network')
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    add_precision(parser.add_argument)
    parser.add_argument('--sizes', type=positive_int, default=6, metavar='N', help='sizes (default: %(default)s)')
    parser.add_argument('--first', type=positive_int, nargs=2, default=(800, 1216), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--repeats', type=positive_int, default=5, metavar='N', help='iterations of each size')
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.first[1] <= 32 * args.sizes:
        parser.error(f'--first: the width must be greater than 32 x {args.sizes}')
    return args


def run(args: argparse.Namespace) -> None:
    """Run the benchmark that the arguments describe; print and write the result."""
    check_precision(args.precision, args.gpu)
    device = get_device(args.gpu)
    model = random_model(args.extractor, min_size=min(args.first), max_size=max(args.first))
    model.to_device(device)
    trainer, clock = Trainer(model, sampling_of(model.config), args.precision), CauseClock()
    warmup, *sizes = make_sizes(args.sizes + 1, tuple(args.first))
    with timed_causes(clock, args.gpu >= 0):
        measure(trainer, clock, model.config, warmup, args.repeats)
        measured = [measure(trainer, clock, model.config, size, args.repeats) for size in sizes]
    facts = machine(device)
    print(f'{args.extractor}, {args.precision}, {args.sizes} sizes from {sizes[0][0]} x {sizes[0][1]}; medians in ms')
    print('\n'.join([facts.get('gpu') or facts['processor'], *gpu_lines(facts)]))  # type: ignore[list-item]
    titles = ''.join(f'{f"{cause} (calls)":>18}' for cause in CAUSES)
    print(f'\n{"iteration":<10}{"total":>9}{titles}{"rest":>9}')
    for number, iterations in enumerate(zip(*measured, strict=True), 1):
        print(row(str(number), list(iterations)))
    if args.json:
        write_json(args.json, {'machine': facts, 'precision': args.precision, 'sizes': sizes, 'iterations': measured})


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments(argv)
    try:
        with chainer.using_config('train', True), using_precision(args.precision):
            run(args)
    except (ValueError, OSError, MemoryError, UsageError) as error:
        print(f'new_sizes.py: {" ".join(str(error).split())}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
