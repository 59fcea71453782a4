"""Compare detections and training updates on a GPU with those on the CPU.

    python scripts/benchmarks/compare_devices.py detect [--gpu 0] [--network bundled] [--precisions fp32 tf32 fp16 bf16]
    python scripts/benchmarks/compare_devices.py update [--gpu 0] [--network resnet50_fpn] [--precisions fp32 fp16]

``detect`` detects objects in a generated scene.  A detection of the CPU is found again if the GPU has one of the same
class whose box has an IoU of at least 0.9 with it.  ``update`` trains one iteration on two scenes and compares every
loss and the change of the parameters.  Both run on the GPU first and print a line for each precision as it ends; an
error in one precision does not stop the others.  The exit status is 0 if every precision reaches its limits
(``MIN_FOUND``, ``MAX_LOSS_ERROR``), else 1.

The networks are the bundled model and, with random weights, the presets of the package.  Random weights give scores
that are close to each other, so their rank, which decides what is kept, depends on rounding more than in a trained
network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import mask_rcnn

# isort: split
import chainer
import numpy as np
from benchmark import random_model, write_json

from mask_rcnn.cli.options import capability, check_precision, gpu_number
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.cudnn_frontend import PRECISIONS, precision_error, using_precision
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.targets import Sampling
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import SubdivisionUpdater

BUNDLED = Path(__file__).resolve().parents[2] / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
#: Seed and height and width of the scenes; the bundled model was trained on scenes with other seeds.
SEED, SCENE_SIZE = 2_000_016, 512
#: Fields of the networks with random weights, and the sampling of an update: the CPU must end in seconds.
SMALL = {'min_size': 256, 'max_size': 256, 'rpn_pre_nms': 1000, 'rpn_post_nms': 100, 'score_threshold': 0.01}
SAMPLING = Sampling(roi_batch=64, train_pre_nms=1000, train_post_nms=200)

MIN_IOU = 0.9
#: Minimum fraction of the detections with a score of at least MIN_SCORE that are found again.
MIN_SCORE = 0.3
MIN_FOUND = {'fp32': 0.95, 'tf32': 0.9, 'fp16': 0.9, 'bf16': 0.8}
#: Maximum relative error of a loss.  A score that is rounded differently may change the sampled RoIs.
MAX_LOSS_ERROR = {'fp32': 0.01, 'tf32': 0.05, 'fp16': 0.1, 'bf16': 0.2}
#: Multiplier of the loss for float16 gradients; constant, so that no iteration is skipped.
LOSS_SCALE = {'fp16': 128.0}


def make_network(name: str):
    """Return the bundled model, or a preset of the package with random weights and eight classes, on the CPU."""
    if name == 'bundled':
        return mask_rcnn.load(BUNDLED)
    n_classes = len(RichShapesDataset(1).class_names)
    return random_model(name, n_fg_class=n_classes, **SMALL)


def scenes(n: int):
    """Return generated scenes whose images are ``(3, 512, 512)`` float32, RGB."""
    dataset = RichShapesDataset(n, size=SCENE_SIZE, seed=SEED)
    return [dataset[i] for i in range(n)]


def detect(network: str, gpu: int, precision: str) -> dict:
    """Detect the objects of a scene.

    Returns:
        dict: The ``detections``, with pasted masks, and the ``seconds`` of the first and of the second call; kernels
        are compiled in the first one.
    """
    model, (scene,) = make_network(network), scenes(1)
    model.to_device(get_device(gpu))
    seconds = []
    with using_precision(precision):
        for _ in range(2):
            started = time.perf_counter()
            (detections,) = model.detect([scene.image])
            assert detections.masks is not None
            seconds.append(time.perf_counter() - started)
    return {'detections': detections, 'seconds': seconds}


def detect_line(result: dict) -> str:
    """Describe the result of :func:`detect`."""
    first, second = result['seconds']
    n = len(result['detections'])
    return f'{counted(n, "detection")}, first call {first:.2f} s, second {1e3 * second:.1f} ms'


def compare_detections(expected: dict, result: dict, precision: str) -> dict:
    """Match detections with those of the CPU; return plain data.

    Returns:
        dict: ``expected``, the number of detections of the CPU with a score of at least ``MIN_SCORE`` (all of them if
        there are none); ``found``, how many of them were found again; over these the maxima of ``box_error`` in pixels
        and ``score_error``, and ``mask_iou``, the minimum IoU of masks; whether the result ``passed``.
    """
    truth, found = expected['detections'], result['detections']
    if (truth.scores >= MIN_SCORE).any():
        truth = truth[truth.scores >= MIN_SCORE]
    pairs = match(truth, found)
    i, j = np.array(pairs, np.intp).reshape(-1, 2).T
    ious = [mask_iou(truth.masks[a], found.masks[b]) for a, b in pairs]
    return {
        'expected': len(truth),
        'found': len(pairs),
        'box_error': float(np.abs(truth.boxes[i] - found.boxes[j]).max(initial=0)),
        'score_error': float(np.abs(truth.scores[i] - found.scores[j]).max(initial=0)),
        'mask_iou': min(ious, default=1.0),
        'seconds': result['seconds'],
        'passed': bool(len(truth) and len(pairs) >= MIN_FOUND[precision] * len(truth)),
    }


def match(truth, found) -> list[tuple[int, int]]:
    """Match detections of one class one to one in the order of ``truth``; return the pairs of their indices."""
    iou = box_iou(truth.boxes, found.boxes, offset=truth.dialect.boxes.offset)
    iou = np.where(truth.labels[:, None] == found.labels[None], iou, 0)
    pairs = []
    for i in range(len(truth)):
        j = int(iou[i].argmax()) if len(found) else 0
        if len(found) and iou[i, j] >= MIN_IOU:
            pairs.append((i, j))
            iou[:, j] = 0
    return pairs


def mask_iou(mask, other) -> float:
    """Return the IoU of two masks; 1 if both are empty."""
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 1.0


def detections_line(row: dict) -> str:
    """Describe the result of :func:`compare_detections`."""
    return (
        f'{row["found"]}/{row["expected"]} found, box {row["box_error"]:.3g} px, score {row["score_error"]:.2g}, '
        f'mask IoU {row["mask_iou"]:.3f}'
    )


def update(network: str, gpu: int, precision: str) -> dict:
    """Train one iteration on two scenes.

    Returns:
        dict: The reported values (``losses``), the ``changes`` of the parameters by path, and the ``seconds``.
    """
    model = make_network(network)
    freeze(model)
    before = {path: param.array.copy() for path, param in model.namedparams()}
    chain = MaskRCNNTrainChain(model, sampling=SAMPLING)
    device = get_device(gpu)
    chain.to_device(device)
    optimizer = make_optimizer(chain)
    set_learning_rate(optimizer, 0.001)
    transform = TrainingTransform(model.config)
    examples = [transform(scene, seed) for seed, scene in enumerate(scenes(2))]
    iterator = chainer.iterators.SerialIterator(examples, len(examples), shuffle=False)
    updater = SubdivisionUpdater(iterator, optimizer, loss_scale=LOSS_SCALE.get(precision))
    reporter = chainer.Reporter()
    reported: dict[str, np.ndarray] = {}
    reporter.add_observer('main', chain)
    started = time.perf_counter()
    with using_precision(precision), reporter.scope(reported):
        updater.update()
    changes = {
        path: chainer.backends.cuda.to_cpu(param.array) - before[path] for path, param in model.namedparams()
    }  # copies to the host, so the update has ended
    seconds = time.perf_counter() - started
    losses = {name.rsplit('/', 1)[-1]: float(value) for name, value in reported.items()}
    return {'losses': losses, 'changes': changes, 'seconds': seconds}


def update_line(result: dict) -> str:
    """Describe the result of :func:`update`."""
    losses = ', '.join(f'{name} {value:.5g}' for name, value in result['losses'].items())
    return f'{result["seconds"]:.2f} s, {losses}'


def compare_updates(expected: dict, result: dict, precision: str) -> dict:
    """Compare an update with that of the CPU; return plain data.

    Returns:
        dict: ``losses`` and ``expected``, the reported values of both; ``error``, the maximum relative error of a loss;
        ``change_error``, the L2 norm of the difference of the parameters' changes divided by that of the expected
        changes; whether the result ``passed``, for which every change must be finite.
    """
    names = [name for name in expected['losses'] if name.endswith('loss')]
    errors = [relative_error(result['losses'][name], expected['losses'][name]) for name in names]
    difference = size = 0.0
    for path, change in expected['changes'].items():
        difference += float(np.square(result['changes'][path] - change, dtype=np.float64).sum())
        size += float(np.square(change, dtype=np.float64).sum())
    change_error = (difference / size) ** 0.5
    return {
        'losses': result['losses'],
        'expected': expected['losses'],
        'error': max(errors),
        'change_error': change_error,
        'seconds': result['seconds'],
        'passed': bool(max(errors) <= MAX_LOSS_ERROR[precision] and np.isfinite(change_error)),
    }


def relative_error(value: float, expected: float) -> float:
    """Return the difference of two losses relative to the expected one, or to 0.01 if that is larger."""
    return abs(value - expected) / max(abs(expected), 0.01)


def updates_line(row: dict) -> str:
    """Describe the result of :func:`compare_updates`."""
    return f'losses within {row["error"]:.2g}, parameters within {row["change_error"]:.2g} (relative)'


#: For each command: what runs on both devices, its line, the comparison, its line, and the default precisions.
COMMANDS: dict[str, tuple[Callable, Callable, Callable, Callable, tuple[str, ...]]] = {
    'detect': (detect, detect_line, compare_detections, detections_line, tuple(PRECISIONS)),
    'update': (update, update_line, compare_updates, updates_line, ('fp32', 'fp16')),
}


def attempt(title: str, action: Callable, describe: Callable) -> dict | None:
    """Return the result of an action and print its line; print the traceback and return ``None`` if it fails."""
    try:
        result = action()
        print(f'{title}: {describe(result)}', flush=True)
    except Exception as error:  # the other precisions still run
        traceback.print_exc()
        sys.stderr.flush()
        print(f'{title}: failed, {type(error).__name__}: {" ".join(str(error).split())[:200]}', flush=True)
        return None
    return result


def supported(precisions: Sequence[str], args: argparse.Namespace) -> list[str]:
    """Return the precisions that the device supports, and print a line for each of the others."""
    errors = {name: precision_error(name, None if args.gpu < 0 else capability(args.gpu)) for name in precisions}
    for name, error in errors.items():
        if error is not None and args.gpu >= 0:
            print(f'{args.network} on GPU {args.gpu}, {name}: not supported, {error}')
    return [name for name, error in errors.items() if error is None]


def run_checked(work: Callable, args: argparse.Namespace, precision: str) -> dict:
    """Run a command on the device if it supports the precision."""
    check_precision(precision, args.gpu)
    return work(args.network, args.gpu, precision)


def run(args: argparse.Namespace) -> dict:
    """Run a command on both devices; returns plain data."""
    work, describe, compare, describe_row, precisions = COMMANDS[args.command]
    results: dict[str, dict | None] = {}
    rows: dict[str, dict | None] = {}
    for precision in args.precisions or supported(precisions, args):
        title = f'{args.network} on GPU {args.gpu}, {precision}' if args.gpu >= 0 else f'{args.network} on the CPU'
        results[precision] = attempt(title, lambda name=precision: run_checked(work, args, name), describe)
    expected = attempt(f'{args.network} on the CPU', lambda: work(args.network, -1, 'fp32'), describe)
    for precision, result in results.items():
        rows[precision] = None
        if expected is not None and result is not None:
            title = f'{args.network}, {precision} compared with the CPU'
            rows[precision] = attempt(
                title, lambda name=precision, result=result: compare(expected, result, name), describe_row
            )
    passed = all(row is not None and row['passed'] for row in rows.values())
    return {'network': args.network, 'command': args.command, 'precisions': rows, 'passed': passed}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('command', choices=sorted(COMMANDS))
    add('--gpu', '-g', type=gpu_number, default=0, help='-1 compares the CPU with itself (default: %(default)s)')
    networks = ['bundled', *sorted(mask_rcnn.PRESETS)]
    add('--network', choices=networks, default='bundled', help='(default: %(default)s)')
    add('--precisions', nargs='+', choices=tuple(PRECISIONS), help='(default: fp32 fp16 for update, all for detect)')
    add('--json', type=Path, help='also write the result to this file')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a comparison; returns the exit status."""
    args = parse_arguments(argv)
    try:
        result = run(args)
    except (ValueError, OSError) as error:
        print(f'compare_devices.py: {error}', file=sys.stderr)
        return 1
    print(json.dumps(result['precisions']))
    if args.json:
        write_json(args.json, result)
    print('passed' if result['passed'] else 'failed')
    return 0 if result['passed'] else 1


if __name__ == '__main__':
    sys.exit(main())
