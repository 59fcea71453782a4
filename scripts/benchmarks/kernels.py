"""Time the operations that multiply little, and compare them with what their bytes need.

    python scripts/benchmarks/kernels.py [--gpu 0] [--json FILE]

RoIAlign forward and backward, non-maximum suppression, the best of many scores and the pasting of masks, in the sizes
that an image of 800 x 1333 has in a C4 and in an FPN network.  "Bytes" is what must move at least: every input read
once, every output written once.  "Of copy" is the rate of these bytes divided by that of a large copy on the same
device: 100 % can hardly be reached, and non-maximum suppression, which compares pairs of boxes, is far from it
whatever it does.  On a GPU the time is that between two events of the stream, of several calls one behind the other;
where the kernels take less than the host needs to start them, it is the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import chainer
import numpy as np
from benchmark import machine
from machine_ceiling import copy_bandwidth, seconds

import mask_rcnn  # noqa: F401  (before Chainer, which it makes importable)
from mask_rcnn.ops.boxes.nms import nms_padded
from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.masks.paste_masks import paste_into
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.runtime.device import get_device

#: Sets of inputs that take turns, so that a cache does not hold what the call before has read ...
_SETS = 4
#: ... and how many calls are timed together on a GPU, so that the pauses between them weigh little.
_CALLS = 8


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything; the defaults are Detectron's.

    Args:
        image: Height and width of the network's input and of the pasted masks.
        rois: RoIs of an image.
        channels: Of the C4 network's map, a quarter of which a feature pyramid has.
        boxes, kept: Boxes before and after non-maximum suppression.
        best: Scores that are chosen of those of all anchors.
        masks: Masks that are pasted.
    """

    image: tuple[int, int] = (800, 1344)
    rois: int = 1000
    channels: int = 1024
    boxes: int = 6000
    kept: int = 1000
    best: int = 1000
    masks: int = 100


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        name: What a table calls it.
        calls: The same operation on several sets of inputs.
        n_byte: Bytes of the inputs and outputs of one call.
    """

    name: str
    calls: list[Callable[[], object]]
    n_byte: int


def cases(xp, sizes: Sizes) -> Iterator[Case]:
    """Yield the operations, one by one, because each has much memory.

    Args:
        xp: NumPy or CuPy.
        sizes: How large they are.
    """
    random = np.random.RandomState(0)
    types = ('float32',) if xp is np else ('float32', 'float16')
    for dtype in types:
        # (network, channels, stride, what it pools)
        for network, channels, stride, pooling in (
            ('C4', sizes.channels, 16, {'output_size': 14, 'sampling_ratio': 0, 'bin_step': 2}),
            ('FPN', sizes.channels // 4, 4, {'output_size': 7, 'sampling_ratio': 2}),
        ):
            shape = (1, channels, *(side // stride for side in sizes.image))
            yield from _roi_align_cases(
                xp, random, f'{network}, {dtype}', shape, np.dtype(dtype), sizes, spatial_scale=1 / stride, **pooling
            )
    inputs = [
        (xp.asarray(_boxes(random, sizes.boxes, sizes.image)), _uniform(xp, random, sizes.boxes)) for _ in range(_SETS)
    ]
    yield _case(f'NMS, {sizes.boxes} boxes', lambda *own: nms_padded(*own, 0.7, limit=sizes.kept), inputs)
    n = 3 * sum((sizes.image[0] // stride) * (sizes.image[1] // stride) for stride in (4, 8, 16, 32, 64))
    inputs = [(_uniform(xp, random, n),) for _ in range(_SETS)]
    yield _case(f'best {sizes.best} of {n}', lambda scores: top_k_indices(scores, sizes.best), inputs)
    out = xp.empty((sizes.masks, *sizes.image), np.bool_)
    inputs = [
        (_uniform(xp, random, sizes.masks, 28, 28), xp.asarray(_boxes(random, sizes.masks, sizes.image)))
        for _ in range(_SETS)
    ]
    yield _case(f'paste {sizes.masks} masks', lambda *own: paste_into(out, *own), inputs)


def _roi_align_cases(xp, random, title: str, shape, dtype, sizes: Sizes, **pooling) -> Iterator[Case]:
    rois = xp.asarray(_boxes(random, sizes.rois, sizes.image))
    indices = xp.zeros(sizes.rois, np.int32)
    maps = [(_channels_last(xp, random, shape, dtype),) for _ in range(_SETS)]
    pool = lambda x: roi_align(x, rois, indices, **pooling)  # noqa: E731
    yield _case(f'RoIAlign forward, {title}', lambda x: pool(x).array, maps, rois.nbytes + indices.nbytes)
    pooled = pool(chainer.Variable(maps[0][0]))
    gradients = [(_channels_last(xp, random, pooled.shape, dtype),) for _ in range(_SETS)]
    yield _case(
        f'RoIAlign backward, {title}',
        lambda gy: pooled.creator.backward((0,), (chainer.Variable(gy),))[0].array,
        gradients,
        rois.nbytes + indices.nbytes,
    )


def _case(name: str, operation: Callable, inputs: list[tuple], more: int = 0) -> Case:
    """Return a case; ``more`` are bytes of inputs that all calls share."""
    outputs = operation(*inputs[0])
    n_byte = sum(array.nbytes for array in (*inputs[0], outputs)) + more
    return Case(name, [lambda own=own: operation(*own) for own in inputs], n_byte)


def _uniform(xp, random, *shape):
    return xp.asarray(random.uniform(0, 1, shape).astype(np.float32))


def _channels_last(xp, random, shape, dtype):
    """Return random maps; on a GPU with the channels innermost in memory, as cuDNN leaves them."""
    x = xp.asarray(random.uniform(-1, 1, shape).astype(dtype))
    return x if xp is np else xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _boxes(random, n: int, image: tuple[int, int]) -> np.ndarray:
    """Return boxes ``(n, 4)`` float32 of all sizes from a hundredth to half of an image, anywhere in it."""
    sides = np.exp(random.uniform(np.log(0.01), np.log(0.5), (n, 2)))
    low = random.uniform(0, 1, (n, 2)) * (1 - sides)
    return (np.concatenate([low, low + sides], axis=1) * (*image, *image)).astype(np.float32)


def measure(case: Case, xp, copy: float, *, runs: int) -> dict:
    """Return what one operation takes, as plain data: the median of some runs after one that is not timed.

    Args:
        case: The operation.
        xp: Where its arrays are.
        copy: Bytes a second, read and written, of a large copy.
        runs: How often it is timed.
    """
    n_call = 1 if xp is np else _CALLS

    def work(start):
        for i in range(start, start + n_call):
            case.calls[i % len(case.calls)]()

    work(0)
    taken = statistics.median(seconds(xp, lambda: work(run * n_call)) for run in range(runs)) / n_call
    return {
        'name': case.name,
        'seconds': taken,
        'bytes': case.n_byte,
        'rate': case.n_byte / taken,
        'of_copy': case.n_byte / taken / copy,
    }


def table(result: dict) -> str:
    """Return the result as text."""
    facts = result['machine']
    lines = [
        f'{facts.get("gpu", facts["processor"])}, {facts["cpus"]} CPUs, {facts["date"]}; copy '
        f'{result["copy"] / 1e9:.1f} GB/s (read and written)',
        '',
        f'{"operation":<34}{"ms":>10}{"MB":>9}{"GB/s":>9}{"of copy":>9}',
    ]
    lines += [
        f'{row["name"]:<34}{1e3 * row["seconds"]:>10.3f}{row["bytes"] / 1e6:>9.1f}{row["rate"] / 1e9:>9.1f}'
        f'{row["of_copy"]:>9.1%}'
        for row in result['operations']
    ]
    return '\n'.join(lines)


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    parser.add_argument('--runs', type=int, default=10)
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error('--runs must be at least 1')
    return args


def run(args: argparse.Namespace, sizes: Sizes = Sizes()) -> dict:
    """Do what the arguments say; returns the result as plain data."""
    device = get_device(args.gpu)
    copy = copy_bandwidth(device.xp)
    rows = [measure(case, device.xp, copy, runs=args.runs) for case in cases(device.xp, sizes)]
    return {'operations': rows, 'copy': copy, 'runs': args.runs, 'machine': machine(device)}


def main(argv=None, sizes: Sizes = Sizes()) -> int:
    args = parse_arguments(argv)
    try:
        result = run(args, sizes)
    except ValueError as error:
        print(f'kernels.py: {error}', file=sys.stderr)
        return 1
    print(table(result))
    if args.json:
        partial = args.json.with_name(args.json.name + '.part')
        partial.write_text(json.dumps(result, indent=1) + '\n')
        os.replace(partial, args.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
