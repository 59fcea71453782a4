"""The options of ``mask-rcnn train``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from mask_rcnn.cli.dataset_options import add_arguments as add_dataset_arguments
from mask_rcnn.cli.options import (
    BN2AFFINE_HELP,
    AddArgument,
    add_gpu,
    add_precision,
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed,
)
from mask_rcnn.config import EXTRACTORS, Config
from mask_rcnn.config.fields import describe_value
from mask_rcnn.config.schedules import DEFAULT_DECAYS, DEFAULT_ITERATIONS, DEFAULT_RATE, DEFAULT_WARMUP
from mask_rcnn.training import distributed
from mask_rcnn.training.schedule import DETECTRON_SCHEDULES
from mask_rcnn.weights.pretrained_files import MODEL_FOLDER

#: The value of ``--resume`` for the newest whole snapshot in ``--out``.
LAST = 'last'

#: Fields of ``Config`` that ``--set`` does not accept, because the data or other options determine them.
_FIELDS_WITH_OPTIONS = (
    'extractor',
    'n_fg_class',
    'n_keypoint',
    'dialect',
    'norm',
    'head_norm',
    'roi_size',
    'roi_align',
    'min_size',
    'max_size',
    'anchor_sizes',
)


_DESCRIPTION = 'Train Mask R-CNN with the losses and schedules of Detectron, on COCO 2017 or on your own data.'

_EPILOG = """\
learning rate:
  --lr in the first --lr-initialchange iterations, then ten times --lr; multiplied by 0.1 at iteration
  --step-size and again at iteration --lr-step. With --schedule: 0.02 for 16 images and proportional to the
  batch size, after a linear warm-up over 500 iterations; the iterations and steps are scaled so that the
  network is trained on as many images as in Detectron (1x: 1.44 million).

files in the folder --out:
  log                      mean losses, learning rate and AP as JSON
  loss.png, ap.png         the same values as curves
  snapshot_iter_N.npz      the complete state after iteration N, for --resume
  model_iter_N.npz         the model alone, for mask-rcnn demo
  snapshot_model.npz       the newest of these models; a file of this name that is not a model of this program,
                           such as one of the old Chainer port, is renamed to snapshot_model.old.npz first
  model_best.npz           the model with the best AP so far: keypoint AP or mask AP
  results_iter_N.*.json    detections in the evaluation data in COCO's format (.bbox and .segm or .keypoints)
  run_1, run_2, ...        the files of earlier runs in the same folder, which a new run moves there

evaluation:
  --lr 0 --iteration 1 --validation 1 --resume MODEL trains nothing, needs no training data and writes
  results.bbox.json, results.segm.json (or results.keypoints.json) and metrics.json.

GPU memory:
  CuPy caches freed memory. If an allocation fails, CuPy releases the cache and tries again, so no limit is
  set here. If other programs use the same GPU, set CUPY_GPU_MEMORY_LIMIT=60% (or a number of bytes).

exit status:
  0; 1 for a failed run; 2 for bad arguments; 128 + N after signal N: Ctrl-C, a closed terminal (SIGHUP), SIGTERM,
  SIGQUIT, SIGALRM, SIGXCPU, SIGPWR, SIGUSR1 and SIGUSR2 finish the iteration and write a snapshot. After a second
  signal, the iteration is dropped and the state before it is saved; a third one stops immediately. mpiexec ends
  its processes itself after Ctrl-C and SIGTERM; it forwards SIGUSR1.
  An error ends a run in the same way: the state after the last complete iteration is saved first. If --out cannot
  be written (a full disk), the last state is saved in a temporary folder, which the error names.
"""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('.')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: The parser of the command.
        folder: The parent of the folders ``COCO`` and ``modelfiles``.
    """
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(model_folder=folder / MODEL_FOLDER)
    add_dataset_arguments(parser.add_argument_group('data'), folder)
    _add_network(parser.add_argument_group('network').add_argument)
    _add_initial_weights(parser.add_argument_group('initial weights').add_argument)
    _add_optimization(parser.add_argument_group('optimisation').add_argument)
    add_augmentation(parser.add_argument_group('augmentation').add_argument)
    _add_run(parser.add_argument_group('run').add_argument)


def _add_network(add: AddArgument) -> None:
    add_extractor(add)
    _add_normalization(add)
    add(
        '--roialign',
        action=argparse.BooleanOptionalAction,
        help='RoIAlign, or RoI max pooling (default: RoIAlign); in the old Chainer port, --roialign switched RoIAlign '
        'off, against its README',
    )
    add(
        '--roi-size',
        '-r',
        type=int,
        choices=(7, 14),
        help='height and width of the pooled RoI features (default: 14; with a feature pyramid: 7)',
    )
    add_network_fields(add)


def add_extractor(add: AddArgument) -> None:
    """Add the options that select a new network.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--extractor',
        choices=EXTRACTORS,
        help='network: the backbone, with _fpn also a feature pyramid (default: resnet50; with --keypoints: '
        'resnet50_fpn)',
    )
    add(
        '--keypoints',
        action='store_true',
        help="predict COCO's 17 keypoints of each object instead of masks; coco2017 is then "
        'person_keypoints_*2017.json',
    )


def add_network_fields(add: AddArgument) -> None:
    """Add the options that set sizes and other fields of the network.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--min-size',
        type=positive_int,
        metavar='N',
        help='the shorter side of an image is resized to N pixels (default: 800; shapes: 128; shapes-rich: 160) ...',
    )
    add(
        '--max-size',
        type=positive_int,
        metavar='N',
        help='... unless the longer side would exceed N pixels (default: 1333; shapes: 128; shapes-rich: 160); the '
        'model stores both, so the demo and the evaluation use the same',
    )
    add(
        '--anchor-sizes',
        type=positive_float,
        nargs='+',
        metavar='N',
        help='sizes of the anchors in pixels of the resized image; with a feature pyramid, one for each level '
        '(default: 32 64 128 256 512; shapes and shapes-rich: 8 16 32 64 128)',
    )
    add(
        '--set',
        type=config_field,
        nargs='+',
        default=[],
        metavar='FIELD=VALUE',
        dest='fields',
        help='set other fields of mask_rcnn.Config of a new network, such as width=0.5 or anchor_ratios=[1,2]; '
        'masks=false trains boxes only, for data without outlines',
    )


def _add_normalization(add: AddArgument) -> None:
    add(
        '--norm',
        choices=('affine', 'bn', 'gn'),
        help='frozen affine channels, batch normalisation, or group normalisation, also in the pyramid and the heads, '
        "which are then those of Detectron's GN networks (default: affine, as in Detectron; bn with --freeze-bn or "
        '--pretrained none; with --resume or a pretrained GN network, the normalisation of the file); train '
        'MobileNetV1 with bn: otherwise, its last layers become constant',
    )
    add('--freeze-bn', action='store_true', help='freeze the statistics and parameters of batch normalisation')
    add(
        '--unfreeze-bn',
        action='store_true',
        help='the same as --norm bn: a flag of early versions of the old Chainer port, which froze batch normalisation '
        'without it',
    )
    add('--bn2affine', action='store_true', help=BN2AFFINE_HELP)


def _add_initial_weights(add: AddArgument) -> None:
    add(
        '--pretrained',
        '-p',
        metavar='NAME',
        help="imagenet (a backbone) or coco (the whole network; finds the file in modelfiles/ or Chainer's folder, or "
        "names the one to download), none, or a file: Caffe's .caffemodel, Detectron's R-50.pkl, an .npz with an "
        'ImageNet network, or a model of any format that convert reads; the heads of a model with other classes are '
        'newly initialised (default: imagenet)',
    )
    add(
        '--resume',
        type=resume_source,
        metavar='FILE',
        help='a snapshot, to continue its run exactly; a folder, to continue from its newest whole snapshot; last, to '
        'continue from the newest whole snapshot in --out (./last is a file); or a model, to start from it',
    )


def _add_optimization(add: AddArgument) -> None:
    first, second = DEFAULT_DECAYS
    rate = f'learning rate; 0 only evaluates (default: {DEFAULT_RATE:g})'
    add('--lr', '-l', type=non_negative_float, metavar='RATE', help=rate)
    add(
        '--lr-initialchange',
        '-li',
        type=non_negative_int,
        metavar='N',
        help=f'iteration at which the learning rate is multiplied by 10 (default: {DEFAULT_WARMUP})',
    )
    add('--step-size', '-ss', type=positive_int, metavar='N', help=f'iteration of the first decay (default: {first})')
    add('--lr-step', '-ls', type=positive_int, metavar='N', help=f'iteration of the second decay (default: {second})')
    add(
        '--schedule',
        choices=DETECTRON_SCHEDULES,
        help="Detectron's learning rates, steps and iterations instead of the four options above",
    )
    add(
        '--iteration',
        '-i',
        type=positive_int,
        metavar='N',
        help=f"number of iterations (default: {DEFAULT_ITERATIONS}, or the schedule's)",
    )
    add(
        '--batchsize',
        '-b',
        type=positive_int,
        default=8,
        metavar='N',
        help='images per iteration and process (default: %(default)s)',
    )
    add(
        '--subdivisions',
        type=positive_int,
        default=1,
        metavar='K',
        help='accumulate gradients over K passes of N/K images: the same update with less memory (default: '
        '%(default)s)',
    )
    add_sampling(add)
    add('--gamma', type=non_negative_float, default=1.0, help='weight of the mask loss (default: 1)')
    add('--clip-gradient', type=positive_float, metavar='NORM', help='clip gradients to this L2 norm')
    add('--seed', '-s', type=seed, metavar='N', help='seed of all random numbers (default: 0)')


def add_sampling(add: AddArgument) -> None:
    """Add the options of the sampling of RoIs.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--roi-batch',
        type=positive_int,
        metavar='N',
        help='RoIs sampled per image (default: 512; for models of Chainer_Mask_R-CNN: 128)',
    )
    add(
        '--train-proposals',
        type=positive_int,
        metavar='N',
        help='proposals per image from which the RoIs are sampled (default: 2000; for FPNs of detectron2: 1000, with '
        'keypoints 1500)',
    )


def add_augmentation(add: AddArgument) -> None:
    """Add the options of random changes of the images.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--flip',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='flip half of the images horizontally (default: yes); --no-flip for objects such as text',
    )
    add('--vertical-flip', action='store_true', help='flip half of the images vertically')
    add('--quarter-turns', action='store_true', help='rotate images by 0, 90, 180 or 270 degrees')
    add(
        '--scale-jitter',
        type=positive_float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=('LOW', 'HIGH'),
        help='multiply the size of the network input by a random factor from LOW to HIGH, such as 0.5 2',
    )
    add(
        '--crop',
        type=positive_int,
        metavar='N',
        help='train on a random window of at most N x N pixels of each resized image, which contains an object',
    )
    add(
        '--color-jitter',
        type=fraction,
        default=0.0,
        metavar='S',
        help='change brightness, contrast and saturation by random factors from 1 - S to 1 + S, and the hue by up to '
        'S / 4 of the colour circle (default: 0)',
    )


def _add_run(add: AddArgument) -> None:
    add(
        '--auto',
        action='store_true',
        help='choose image size, anchors, batch, learning rates, length and evaluations for your own data and this '
        'machine, as "mask-rcnn data stats" suggests them; options that you give are kept; prints the command with '
        'these options, such as for --resume last',
    )
    add_gpu(add, '-g')
    add_precision(add, '; fp16 uses loss scaling')
    add(
        '--communicator',
        choices=distributed.NAMES,
        help='train in several processes, started by mpiexec: naive on CPUs, pure_nccl with one GPU each',
    )
    add('--out', '-o', type=Path, default=Path('result'), metavar='DIR', help='output folder (default: %(default)s)')
    add(
        '--workers',
        type=non_negative_int,
        metavar='N',
        help='processes that read images; 0 reads them in the main process (default: the number of CPUs minus 1, at '
        'most 4)',
    )
    add(
        '--snapshot',
        type=non_negative_int,
        metavar='N',
        help='iterations between snapshots; 0 writes none (default: 4000, and at the end)',
    )
    add('--keep', type=positive_int, metavar='K', help='number of snapshots to keep (default: 3)')
    add(
        '--validation',
        type=non_negative_int,
        metavar='N',
        help='iterations between evaluations; 0 never evaluates (default: 30000)',
    )
    add(
        '--early-stop',
        type=positive_int,
        metavar='N',
        help='stop after N evaluations without a better AP (keypoint AP or mask AP); model_best.npz is then the model '
        'of the best one, and the exit status is 0',
    )
    add(
        '--tensorboard',
        action='store_true',
        help='also write event files of TensorBoard: the log, the options and, at each evaluation, four images with '
        'their annotations and detections, and histograms of weights and gradients (needs the extra tensorboard)',
    )


def resume_source(text: str) -> Path | str:
    """Return the path that ``--resume`` names, or :data:`LAST`; ``./last`` is a file."""
    return LAST if text == LAST else Path(text)


def config_field(text: str) -> tuple[str, Any]:
    """Parse an argument ``FIELD=VALUE`` of ``--set``.

    Raises:
        argparse.ArgumentTypeError: There is no such field, another option sets it, or the value has another type than
            the field or is out of range.
    """
    name, _, value_text = text.partition('=')
    defaults = {f.name: f.default for f in dataclasses.fields(Config) if f.name not in _FIELDS_WITH_OPTIONS}
    if name not in defaults:
        raise argparse.ArgumentTypeError(f'no field {describe_value(name)} to set; there are {", ".join(defaults)}')
    shown = describe_value(text)
    try:
        value = json.loads(value_text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f'{shown}: the value is not a number, true, false or a list') from None
    value, default = tuple(value) if isinstance(value, list) else value, defaults[name]
    fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if not fits or (isinstance(value, tuple) and not all(type(v) in (int, float) for v in value)):
        raise argparse.ArgumentTypeError(f'{shown}: the value must be like that of {name}={json.dumps(default)}')
    fields: dict[str, Any] = {name: value}
    try:
        Config(**fields)  # the ranges of these fields do not depend on other fields
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{shown}: {error}') from None
    return name, value
