"""Time the operations that are bound by memory, and compare them with the bandwidth of a copy.

    python scripts/benchmarks/kernels.py [--gpu 0] [--json FILE]

RoIAlign forward and backward, non-maximum suppression, top-k, mask pasting and the network input, with the sizes of
an image of 800 x 1333 pixels in a C4 and an FPN network.  "Masks to host" and "network input" begin with arrays on
the host; the CPU pastes these masks.  "MB" is the minimum traffic: every input is read once, every output is written
once.  "Of copy" is the rate of these bytes divided by the rate of a large copy on the same device.  100 % is hardly
reachable, and non-maximum suppression, which compares pairs of boxes, cannot come close.  On a GPU the time is measured
between two events of the stream around several consecutive calls; if the kernels are shorter than their launches, it is
the time of the launches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mask_rcnn  # makes Chainer importable
from mask_rcnn.io.wording import counted

# isort: split
import chainer
import numpy as np
from benchmark import machine, write_json
from machine_ceiling import copy_bandwidth, seconds

from mask_rcnn.ops.boxes.nms import nms_padded
from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.masks.paste_masks import paste_into, paste_masks
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_transform import prepare_image, prepare_image_gpu

#: Sets of inputs that alternate, so that a cache does not hold the inputs of the previous call.
_SETS = 4
#: Calls that are timed together on a GPU, so that the gaps between them hardly count.
_CALLS = 8


@dataclass(frozen=True)
class Sizes:
    """Problem sizes; the defaults are Detectron's.

    Args:
        image: Height and width of the network input and of the pasted masks.
        rois: RoIs per image.
        channels: Channels of a C4 network's features; an FPN has a quarter of them.
        boxes, kept: Boxes before and after non-maximum suppression.
        best: The k of top-k over the scores of all anchors.
        masks: Number of pasted masks.
    """

    image: tuple[int, int] = (800, 1344)
    rois: int = 1000
    channels: int = 1024
    boxes: int = 6000
    kept: int = 1000
    best: int = 1000
    masks: int = 100


#: Sizes that only check the program.
SMALL = Sizes(image=(64, 96), rois=8, channels=16, boxes=50, kept=10, best=10, masks=3)


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        name: Title in the table.
        calls: The same operation on several sets of inputs.
        n_bytes: Bytes of the inputs and outputs of one call.
    """

    name: str
    calls: list[Callable[[], object]]
    n_bytes: int


def cases(xp, sizes: Sizes) -> Iterator[Case]:
    """Yield the operations one by one, because each needs much memory.

    Args:
        xp: NumPy or CuPy.
        sizes: Problem sizes.
    """
    random = np.random.RandomState(0)
    types = ('float32',) if xp is np else ('float32', 'float16')
    for dtype in types:
        # (network, channels, stride, arguments of RoIAlign)
        for network, channels, stride, pooling in (
            ('C4', sizes.channels, 16, {'output_size': 14, 'sampling_ratio': 0, 'bin_step': 2}),
            ('FPN', sizes.channels // 4, 4, {'output_size': 7, 'sampling_ratio': 2}),
        ):
            shape = (1, channels, *(side // stride for side in sizes.image))
            yield from _roi_align_cases(
                xp, random, f'{network}, {dtype}', shape, np.dtype(dtype), sizes, spatial_scale=1 / stride, **pooling
            )
    inputs: list[tuple] = [
        (xp.asarray(_boxes(random, sizes.boxes, sizes.image)), _uniform(xp, random, sizes.boxes)) for _ in range(_SETS)
    ]
    yield _case(
        f'NMS, {sizes.boxes} boxes', lambda boxes, scores: nms_padded(boxes, scores, 0.7, limit=sizes.kept), inputs
    )
    n = 3 * sum((sizes.image[0] // stride) * (sizes.image[1] // stride) for stride in (4, 8, 16, 32, 64))
    inputs = [(_uniform(xp, random, n),) for _ in range(_SETS)]
    yield _case(f'top {sizes.best} of {n}', lambda scores: top_k_indices(scores, sizes.best), inputs)
    out = xp.empty((sizes.masks, *sizes.image), np.bool_)
    inputs = [
        (_uniform(xp, random, sizes.masks, 28, 28), xp.asarray(_boxes(random, sizes.masks, sizes.image)))
        for _ in range(_SETS)
    ]
    yield _case(f'paste {sizes.masks} masks', lambda probs, boxes: paste_into(out, probs, boxes), inputs)
    yield from _masks_to_host(xp, random, sizes)
    yield from _network_inputs(xp, random, sizes)


def _masks_to_host(xp, random, sizes: Sizes) -> Iterator[Case]:
    """Yield the pasting of masks, with boxes of 10 % of the image, into an array on the host."""
    sides = np.array(sizes.image) * np.sqrt(0.1)
    inputs = []
    for _ in range(_SETS):
        low = random.uniform(0, 1, (sizes.masks, 2)) * (sizes.image - sides)
        boxes = np.concatenate([low, low + sides], axis=1).astype(np.float32)
        inputs.append((_uniform(np, random, sizes.masks, 28, 28), boxes))
    yield _case(f'{sizes.masks} masks to host', lambda probs, boxes: paste_masks(probs, boxes, sizes.image), inputs)


def _network_inputs(xp, random, sizes: Sizes) -> Iterator[Case]:
    """Yield the ways to prepare the network input of a C4 network."""
    height, width = sizes.image
    config = mask_rcnn.PRESETS['resnet50'].replace(min_size=min(sizes.image), max_size=max(sizes.image))
    images = [(random.uniform(0, 255, (3, height, width)).astype(np.float32),) for _ in range(_SETS)]
    if xp is np:
        yield _case('network input, float32', lambda image: prepare_image(image, config)[0], images)
        return
    prepare = lambda image: prepare_image_gpu(image, config, xp)[0]  # noqa: E731
    yield _case('network input, float32', prepare, images)
    images = [(random.randint(0, 256, (height, width, 3)).astype(np.uint8),) for _ in range(_SETS)]
    yield _case('network input, uint8', prepare, images)


def _roi_align_cases(xp, random, title: str, shape, dtype, sizes: Sizes, **pooling) -> Iterator[Case]:
    rois = xp.asarray(_boxes(random, sizes.rois, sizes.image))
    indices = xp.zeros(sizes.rois, np.int32)
    features = [(_channels_last(xp, random, shape, dtype),) for _ in range(_SETS)]
    pool = lambda x: roi_align(x, rois, indices, **pooling)  # noqa: E731
    yield _case(f'RoIAlign forward, {title}', lambda x: pool(x).array, features, rois.nbytes + indices.nbytes)
    pooled = pool(chainer.Variable(features[0][0]))
    gradients = [(_channels_last(xp, random, pooled.shape, dtype),) for _ in range(_SETS)]
    yield _case(
        f'RoIAlign backward, {title}',
        lambda gy: pooled.creator.backward((0,), (chainer.Variable(gy),))[0].array,
        gradients,
        rois.nbytes + indices.nbytes,
    )


def _case(name: str, operation: Callable, inputs: list[tuple], more: int = 0) -> Case:
    """Return a case; ``more`` is the number of bytes of inputs that all calls share."""
    outputs = operation(*inputs[0])
    n_bytes = sum(array.nbytes for array in (*inputs[0], outputs)) + more
    return Case(name, [partial(operation, *arguments) for arguments in inputs], n_bytes)


def _uniform(xp, random, *shape):
    return xp.asarray(random.uniform(0, 1, shape).astype(np.float32))


def _channels_last(xp, random, shape, dtype):
    """Return random features; on a GPU in channels-last memory layout, as cuDNN returns them."""
    x = xp.asarray(random.uniform(-1, 1, shape).astype(dtype))
    return x if xp is np else xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _boxes(random, n: int, image: tuple[int, int]) -> np.ndarray:
    """Return random boxes ``(n, 4)`` float32 with sides of 1 % to 50 % of an image."""
    sides = np.exp(random.uniform(np.log(0.01), np.log(0.5), (n, 2)))
    low = random.uniform(0, 1, (n, 2)) * (1 - sides)
    return (np.concatenate([low, low + sides], axis=1) * (*image, *image)).astype(np.float32)


def measure(case: Case, xp, copy: float, *, runs: int) -> dict:
    """Return the median time and the rate of one operation as plain data; the first run is not timed.

    Args:
        case: The operation.
        xp: Array module of its inputs.
        copy: Bytes per second, read and written, of a large copy.
        runs: Number of timed runs.
    """
    n_call = 1 if xp is np else _CALLS

    def work(start):
        for i in range(start, start + n_call):
            case.calls[i % len(case.calls)]()

    work(0)
    taken = statistics.median(seconds(xp, partial(work, run * n_call)) for run in range(runs)) / n_call
    return {
        'name': case.name,
        'seconds': taken,
        'bytes': case.n_bytes,
        'rate': case.n_bytes / taken,
        'of_copy': case.n_bytes / taken / copy,
    }


def table(result: dict) -> str:
    """Format the result as a table."""
    facts = result['machine']
    lines = [
        f'{facts.get("gpu", facts["processor"])}, {counted(facts["cpus"], "CPU")}, {facts["date"]}; copy '
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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--gpu', '-g', type=int, default=-1, help='-1 is the CPU (default)')
    parser.add_argument('--runs', type=int, default=10)
    parser.add_argument('--small', action='store_true', help='small sizes, to check this program')
    parser.add_argument('--json', type=Path, help='also write the result to this file')
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error('--runs must be at least 1')
    return args


def run(args: argparse.Namespace, sizes: Sizes) -> dict:
    """Run the benchmark that the arguments describe; returns plain data."""
    device = get_device(args.gpu)
    copy = copy_bandwidth(device.xp)
    rows = [measure(case, device.xp, copy, runs=args.runs) for case in cases(device.xp, sizes)]
    return {'operations': rows, 'copy': copy, 'runs': args.runs, 'machine': machine(device)}


def main(argv: list[str] | None = None, sizes: Sizes | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    args = parse_arguments(argv)
    try:
        result = run(args, sizes or (SMALL if args.small else Sizes()))
    except ValueError as error:
        print(f'kernels.py: {error}', file=sys.stderr)
        return 1
    print(table(result))
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == '__main__':
    sys.exit(main())
