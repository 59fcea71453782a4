"""``mask-rcnn train`` and ``train.py``: train, go on, fine-tune, evaluate."""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mask_rcnn.cli import dataset_options
from mask_rcnn.cli.evaluate import check_classes, evaluate_to_folder
from mask_rcnn.cli.initial_model import config_field, load_model, make_model, uses_keypoints
from mask_rcnn.cli.options import (
    UsageError,
    add_precision,
    check_precision,
    choose_device,
    gpu_number,
    print_error,
    run_and_report_errors,
)
from mask_rcnn.config import EXTRACTORS, Config
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation.coco import evaluate_model
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training import distributed
from mask_rcnn.training.distributed import Communicator, DistributedError
from mask_rcnn.training.freezing import FROZEN_STAGES
from mask_rcnn.training.schedule import DETECTRON_SCHEDULES, detectron_schedule, step_schedule
from mask_rcnn.training.snapshot import Snapshot, is_snapshot, list_snapshots, read_options
from mask_rcnn.training.tensorboard import TensorBoardMissingError, writer_class
from mask_rcnn.training.trainer import (
    TrainingOptions,
    TrainingRun,
    build_training_run,
    options_to_store,
    print_line,
    print_warning,
)
from mask_rcnn.training.updater import NonFiniteLossError
from mask_rcnn.training.worker_pool import ExampleError, WorkerError
from mask_rcnn.weights import WeightFileError

#: What is taken where a flag is not given; the flags themselves default to ``None``, so that those that
#: contradict each other can be told.
DEFAULTS = {
    'seed': 0,
    'lr': 1e-4,
    'lr_initialchange': 800,
    'step_size': 400000,
    'lr_step': 480000,
    'iteration': 800000,
    'pretrained': 'imagenet',
    'snapshot': 4000,
    'keep': 3,
    'validation': 30000,
}

_SCHEDULE_FLAGS = ('lr', 'lr_initialchange', 'step_size', 'lr_step')

_DESCRIPTION = "Train Mask R-CNN as Detectron did, on COCO 2017 or on data of one's own."

_EPILOG = """\
learning rate:
  --lr for the first --lr_initialchange iterations, then ten times as much, from iteration --step_size on a
  tenth of that, from --lr_step on a hundredth. Or, with --schedule: 0.02 for 16 images and proportional to
  the batch, after a linear warm-up over 500 iterations; iterations and steps so that as many images are seen
  as by Detectron (1x: 1.44 million).

what is written to the folder --out:
  log                      means of all losses, the rate and the AP, JSON
  loss.png, ap.png         the same as curves
  snapshot_iter_N.npz      everything needed to go on after iteration N
  model_iter_N.npz         the model alone, for the demo
  model_best.npz           the model with the best AP so far: of the keypoints, or the masks
  results_iter_N.*.json    detections in the evaluation data, COCO's format (.bbox and .segm or .keypoints)

evaluating:
  --lr 0 --iteration 1 --validation 1 --resume MODEL trains nothing, needs no training data and writes
  results.bbox.json, results.segm.json (or results.keypoints.json) and metrics.json.

memory of a GPU:
  CuPy keeps what is free for what comes next, and gives it all back and tries again before an allocation fails;
  so nothing is limited here. For a GPU that others use, too, CUPY_GPU_MEMORY_LIMIT=60% (or bytes) does that.

exit status:
  0; 1 if something failed; 2 for bad arguments; 128 + N after signal N: Ctrl-C, SIGTERM and SIGUSR1 finish
  the iteration and write a snapshot (a second one stops at once). mpiexec ends its processes itself on the
  first two; it passes SIGUSR1 on.
"""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('.')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: Of the command or of a subcommand.
        folder: Where ``COCO/`` lies.
    """
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    dataset_options.add_arguments(parser.add_argument_group('data'), folder)
    _add_network(parser.add_argument_group('network'))
    _add_start(parser.add_argument_group('starting weights'))
    _add_learning(parser.add_argument_group('learning'))
    _add_run(parser.add_argument_group('the run'))


def _add_network(group) -> None:
    add = group.add_argument
    add('--extractor', choices=EXTRACTORS, help='(default: resnet50; with --keypoints: resnet50_fpn)')
    add(
        '--keypoints',
        action='store_true',
        help="find objects and COCO's 17 keypoints of each instead of masks; coco2017 is then "
        'person_keypoints_*2017.json',
    )
    add(
        '--norm',
        choices=('affine', 'bn'),
        help='affine channels, which are frozen, or batch normalisation (default: affine as Detectron; bn '
        'with --freeze_bn or --pretrained none; with --resume, that of the file)',
    )
    add('--freeze_bn', action='store_true', help='batch normalisation keeps its statistics and learns nothing')
    add('--bn2affine', action='store_true', help='turn batch normalisation into affine channels first')
    add('--roialign', action=argparse.BooleanOptionalAction, help='RoIAlign, or RoI max pooling (default: RoIAlign)')
    add('--roi_size', '-r', type=int, choices=(7, 14), help='bins of a RoI (default: 14; with a feature pyramid: 7)')
    add(
        '--min-size',
        type=_count,
        metavar='N',
        help='images are resized to this short side (default: 800; shapes: 128) ...',
    )
    add('--max-size', type=_count, metavar='N', help='... or to this long side (default: 1333; shapes: 128)')
    add(
        '--anchor-sizes',
        type=_positive,
        nargs='+',
        metavar='N',
        help='sides of the anchors in pixels of the resized image (default: 32 64 128 256 512; shapes: 8 16 32 64 128)',
    )
    add(
        '--set',
        type=config_field,
        nargs='+',
        default=[],
        metavar='FIELD=VALUE',
        dest='fields',
        help='other fields of mask_rcnn.Config of a new network, such as width=0.5 or anchor_ratios=[1,2]',
    )


def _add_start(group) -> None:
    add = group.add_argument
    add(
        '--pretrained',
        '-p',
        metavar='NAME',
        help="imagenet, none, or a file: Caffe's .caffemodel, Detectron's R-50.pkl, an .npz of an ImageNet "
        'network or a model of ours, whose heads start anew for another number of classes (default: '
        'imagenet)',
    )
    add(
        '--resume',
        type=Path,
        metavar='FILE',
        help='a snapshot, to go on as if the run had never stopped, or a model, to start from it',
    )


def _add_learning(group) -> None:
    add = group.add_argument
    add('--lr', '-l', type=_not_negative, metavar='RATE', help='learning rate; 0 only evaluates (default: 1e-4)')
    add(
        '--lr_initialchange',
        '-li',
        type=_number,
        metavar='N',
        help='iteration from which on the rate is ten times as large (default: 800)',
    )
    add('--step_size', '-ss', type=_count, metavar='N', help='iteration of the first decay (default: 400000)')
    add('--lr_step', '-ls', type=_count, metavar='N', help='iteration of the second decay (default: 480000)')
    add('--schedule', choices=DETECTRON_SCHEDULES, help="Detectron's rates, steps and iterations instead")
    add('--iteration', '-i', type=_count, metavar='N', help="iterations (default: 800000, or the schedule's)")
    add(
        '--batchsize',
        '-b',
        type=_count,
        default=8,
        metavar='N',
        help='images of an update, of each process (default: %(default)s)',
    )
    add(
        '--subdivisions',
        type=_count,
        default=1,
        metavar='K',
        help='go through the network in K passes of N/K images: less memory, the same update (default: %(default)s)',
    )
    add(
        '--roi-batch',
        type=_count,
        default=Sampling.roi_batch,
        metavar='N',
        help='RoIs of an image that learn (default: %(default)s)',
    )
    add(
        '--train-proposals',
        type=_count,
        default=Sampling.train_post_nms,
        metavar='N',
        help='proposals of an image from which these are drawn (default: %(default)s)',
    )
    add('--gamma', type=_not_negative, default=1.0, help='weight of the mask loss (default: 1)')
    add('--clip-gradient', type=_positive, metavar='NORM', help='shorten longer gradients to this L2 norm')
    add('--seed', '-s', type=_number, metavar='N', help='of all random choices (default: 0)')


def _add_run(group) -> None:
    add = group.add_argument
    add(
        '--gpu',
        '-g',
        type=gpu_number,
        metavar='ID',
        help='number of the GPU, -1 for the CPU (default: 0 where CUDA works, else the CPU)',
    )
    add_precision(add)
    add(
        '--communicator',
        choices=distributed.NAMES,
        help='several processes, started by mpiexec: naive on CPUs, pure_nccl on a GPU each',
    )
    add('--out', '-o', type=Path, default=Path('result'), metavar='DIR', help='(default: %(default)s)')
    add(
        '--workers',
        type=_number,
        metavar='N',
        help='processes that read images; 0 reads them in the main one (default: 4, or the CPUs but one)',
    )
    add(
        '--snapshot',
        type=_number,
        metavar='N',
        help='iterations between snapshots; 0 writes none (default: 4000, and at the end)',
    )
    add('--keep', type=_count, metavar='K', help='snapshots that are kept (default: 3)')
    add(
        '--validation',
        type=_number,
        metavar='N',
        help='iterations between evaluations; 0 never evaluates (default: 30000)',
    )
    add('--tensorboard', action='store_true', help="write TensorBoard's files, too (needs tensorboardX)")


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status (see the command's help)."""
    try:
        check(args)
        communicator = distributed.create_communicator(args.communicator)
    except UsageError as error:
        return print_error(str(error), 2)
    except DistributedError as error:
        return print_error(str(error))
    with communicator.guard():
        status = _run_and_report_errors(lambda: _run(args, communicator))
        if status in (1, 2) and communicator.size > 1:
            raise SystemExit(status)  # the others may be waiting for this process: end them, too
    return status


def main(argv: Sequence[str] | None = None, folder: Path = Path('.')) -> int:
    """Parse the command line and train.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Where ``COCO/`` lies.

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser, folder)
    return run(parser.parse_args(argv))


def _run_and_report_errors(body: Callable[[], int]) -> int:
    """Turn the errors that a user can do something about into a line and a status."""
    try:
        return run_and_report_errors(
            body,
            (
                WeightFileError,
                AnnotationFileError,
                ImageFileError,
                DistributedError,
                TensorBoardMissingError,
                ExampleError,
                WorkerError,
            ),
        )
    except MemoryError as error:
        reason = ' '.join(str(error).split())[:100]
        return print_error(
            'not enough memory (more --subdivisions or a smaller --min-size need less)' + f': {reason}' * bool(reason)
        )


def check(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other, and fill in the defaults.

    Raises:
        UsageError: They do; it names both.
    """
    dataset_options.check(args)
    _check_conflicts(args)
    if args.lr == 0:
        _check_evaluation(args)
    elif not dataset_options.has('train', args):
        raise UsageError(
            '--val-annotations without --train-annotations: nothing to train on (to evaluate, give --lr 0)'
        )
    if not dataset_options.has('val', args):
        if args.validation:
            raise UsageError('--validation needs --val-annotations and --val-images')
        args.validation = 0
    # What nothing was learned for has to learn as a whole.
    args.frozen_stages = 0 if args.pretrained == 'none' else FROZEN_STAGES
    if args.resume and args.lr != 0 and is_snapshot(args.resume):
        _inherit_from_snapshot(args)
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None and not (args.schedule and name in (*_SCHEDULE_FLAGS, 'iteration')):
            setattr(args, name, value)
    if not args.schedule and args.step_size > args.lr_step:
        raise UsageError(
            f'--step_size {args.step_size} and --lr_step {args.lr_step} contradict each other: '
            'the second decay would come before the first'
        )
    if args.subdivisions > args.batchsize:
        raise UsageError(
            f'--subdivisions {args.subdivisions} and --batchsize {args.batchsize} contradict '
            'each other: a pass needs at least one image'
        )


def _inherit_from_snapshot(args: argparse.Namespace) -> None:
    """The order of the images, all that is drawn for them, and what is frozen go on as they began."""
    try:
        options = read_options(args.resume)
    except WeightFileError:
        return  # what is wrong with the file is said when it is read
    args.frozen_stages = options.get('frozen_stages', FROZEN_STAGES)
    seed = options.get('seed', 0)
    if args.seed not in (None, seed):
        raise UsageError(
            f'--seed {args.seed} and --resume {args.resume} contradict each other: its run has the seed {seed}'
        )
    args.seed = seed


def _check_conflicts(args: argparse.Namespace) -> None:
    on_gpu = args.gpu is not None and args.gpu >= 0
    # (whether it is so, one flag, the other, why not both)
    pairs = [
        *(
            (args.schedule and getattr(args, name) is not None, 'schedule', name, 'the schedule says the rates')
            for name in _SCHEDULE_FLAGS
        ),
        # The run of a snapshot started somewhere, too: it goes on with the command that started it.
        (
            args.resume and args.pretrained and not is_snapshot(args.resume),
            'resume',
            'pretrained',
            'both say where to start',
        ),
        (
            args.fields and args.resume and not is_snapshot(args.resume),
            'set',
            'resume',
            'the network is that of the file',
        ),
        (args.norm == 'bn' and args.bn2affine, 'norm', 'bn2affine', 'either batch normalisation or affine channels'),
        (args.norm == 'affine' and args.freeze_bn, 'norm', 'freeze_bn', 'affine channels are frozen anyway'),
        (args.snapshot == 0 and args.keep, 'snapshot', 'keep', 'without snapshots there is nothing to keep'),
        (
            args.communicator == 'pure_nccl' and args.gpu is not None,
            'communicator',
            'gpu',
            'pure_nccl gives every process its own GPU',
        ),
        (args.communicator == 'naive' and on_gpu, 'communicator', 'gpu', 'naive runs on CPUs'),
    ]
    for applies, first, second, why in pairs:
        if applies:
            flags = f'{dataset_options.flag(first)} and {dataset_options.flag(second)}'
            raise UsageError(f'{flags} contradict each other: {why}')


def _check_evaluation(args: argparse.Namespace) -> None:
    if args.resume is None:
        raise UsageError('--lr 0 trains nothing; to evaluate a model, name it with --resume')
    if args.validation == 0:
        raise UsageError('--lr 0 and --validation 0 contradict each other: nothing would be done')
    if args.iteration not in (None, 1):
        raise UsageError(
            f'--lr 0 and --iteration {args.iteration} contradict each other: one evaluation is all that there is to do'
        )
    for name, idle in (('subdivisions', 1), ('tensorboard', False), ('clip_gradient', None)):
        if getattr(args, name) != idle:
            raise UsageError(f'--lr 0 and {dataset_options.flag(name)} contradict each other: nothing is trained')


def _run(args: argparse.Namespace, communicator: Communicator) -> int:
    if args.lr == 0:
        return _evaluate(args, communicator)
    _check_output_dir(args)
    if args.tensorboard and communicator.is_main:
        writer_class()  # that it is missing is better said now than after the data are read
    gpu = _choose_gpu(args, communicator)
    check_precision(args.precision, gpu)
    device = get_device(gpu)
    random.seed(args.seed)
    np.random.seed(args.seed)
    size = args.min_size or dataset_options.SIZES[dataset_options.kind(args)][0]
    keypoints = uses_keypoints(args)
    train_set = dataset_options.open_data('train', args, size=size, seed=args.seed, keypoints=keypoints)
    val_set = dataset_options.open_data('val', args, size=size, keypoints=keypoints) if args.validation else None
    model, snapshot = make_model(args, train_set, is_main=communicator.is_main)
    if args.gamma != 1 and not model.config.masks:
        raise UsageError(f'--gamma {args.gamma:g}: the network draws no masks')
    if val_set is not None:
        check_classes(model, val_set, dataset_options.dataset_name('val', args))
    for name, data_set in (('training', train_set), ('evaluation', val_set)):
        if data_set is not None and communicator.is_main:
            skipped = getattr(data_set, 'n_skipped', 0)
            print_line(
                f'{name}: {len(data_set)} images, {len(data_set.class_names)} classes'
                + f' ({skipped} broken images and annotations left out)' * bool(skipped)
            )
    model.to_device(device)
    training = build_training_run(
        model,
        train_set,
        _options(args, communicator, model.config),
        communicator=communicator,
        evaluate=_evaluator(model, val_set, communicator),
        examples=_examples(val_set, args),
    )
    if snapshot is not None:
        _restore(training, snapshot, args, communicator)
    try:
        with using_precision(args.precision):
            training.start()
    except NonFiniteLossError as error:
        last = training.snapshots.last or args.resume
        return print_error(f'{error}; ' + (f'the last good state is {last}' if last else 'there is no snapshot yet'))
    communicator.barrier()  # the first process may still be writing
    return _report(training, args, communicator)


def _evaluate(args: argparse.Namespace, communicator: Communicator) -> int:
    """Evaluate a model, and do nothing else."""
    gpu = _choose_gpu(args, communicator)
    check_precision(args.precision, gpu)
    model = load_model(args)
    model.to_device(get_device(gpu))
    val_set = dataset_options.open_data('val', args, size=model.config.min_size, keypoints=model.config.n_keypoint > 0)
    with using_precision(args.precision):
        evaluate_to_folder(
            model, val_set, args.out, name=dataset_options.dataset_name('val', args), communicator=communicator
        )
    return 0


def _check_output_dir(args: argparse.Namespace) -> None:
    """A new run must not overwrite the snapshots of an earlier one."""
    earlier = list_snapshots(args.out)
    if earlier and args.snapshot and not (args.resume and is_snapshot(args.resume)):
        raise UsageError(
            f'--out {args.out} holds a run already; go on with --resume {earlier[-1][1]}, or name another folder'
        )
    args.out.mkdir(parents=True, exist_ok=True)


def _choose_gpu(args: argparse.Namespace, communicator: Communicator) -> int:
    if args.communicator == 'pure_nccl':
        return communicator.intra_rank
    return -1 if args.communicator else choose_device(args.gpu)


def _options(args: argparse.Namespace, communicator: Communicator, config: Config) -> TrainingOptions:
    batch_size = args.batchsize * communicator.size
    if args.schedule:
        schedule, iterations = detectron_schedule(args.schedule, batch_size)
    else:
        schedule = step_schedule(
            args.lr, warmup=args.lr_initialchange, first_decay=args.step_size, second_decay=args.lr_step
        )
        iterations = args.iteration
    iterations = args.iteration or iterations
    return TrainingOptions(
        out=os.fspath(args.out),
        iterations=iterations,
        schedule=schedule,
        batch_size=args.batchsize,
        subdivisions=args.subdivisions,
        seed=args.seed,
        workers=_n_worker(args),
        gamma=args.gamma,
        sampling=_sampling(args, config),
        freeze_bn=args.freeze_bn,
        frozen_stages=args.frozen_stages,
        clip=args.clip_gradient,
        # Gradients in float16 would lose their small numbers; bfloat16 has the range of float32.
        loss_scale='dynamic' if args.precision == 'fp16' else None,
        snapshot_interval=args.snapshot,
        keep=args.keep,
        eval_interval=args.validation,
        log_interval=max(1, min(100, iterations // 200)),
        tensorboard=args.tensorboard,
    )


def _sampling(args: argparse.Namespace, config: Config) -> Sampling:
    """Detectron's, whose FPN files look at 2000 anchors of each of their maps (``RPN_PRE_NMS_TOP_N``)."""
    fraction = args.train_proposals / Sampling.train_post_nms
    pre_nms = Sampling.train_post_nms if config.has_fpn else Sampling.train_pre_nms
    return Sampling(
        roi_batch=args.roi_batch, train_pre_nms=math.ceil(pre_nms * fraction), train_post_nms=args.train_proposals
    )


def _n_worker(args: argparse.Namespace) -> int:
    if args.workers is not None:
        return args.workers
    n_cpu = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(4, max(n_cpu - 1, 0))


def _evaluator(model, val_set, communicator: Communicator) -> Callable:
    return lambda results: evaluate_model(
        model, val_set, progress=communicator.is_main, results_file=results, comm=communicator
    )


def _examples(val_set, args: argparse.Namespace, n: int = 4):
    """The first images of the evaluation data, for TensorBoard."""
    if val_set is None or not args.tensorboard:
        return []
    examples = [val_set[i] for i in range(min(n, len(val_set)))]
    return [(Path(example.name).stem, example.image) for example in examples]


def _restore(training: TrainingRun, snapshot: Snapshot, args: argparse.Namespace, communicator: Communicator) -> None:
    options = training.options
    if snapshot.iteration >= options.iterations:
        raise UsageError(
            f'--resume {snapshot.path} and --iteration {options.iterations} contradict each '
            f'other: {snapshot.iteration} iterations are done'
        )
    snapshot.restore(training.trainer)
    if not communicator.is_main:
        return
    for name, value in options_to_store(options, communicator).items():
        before = snapshot.options.get(name)
        if before != value:
            print_warning(f'{name} was {before}, and is {value} from now on')
    print_line(f'going on after iteration {snapshot.iteration}')


def _report(training: TrainingRun, args: argparse.Namespace, communicator: Communicator) -> int:
    """Say how the run ended; returns the exit status."""
    iteration, last = training.trainer.updater.iteration, training.snapshots.last
    missing = args.snapshot and communicator.is_main and (last is None or last.name != f'snapshot_iter_{iteration}.npz')
    if training.stop_trigger.interrupted:
        # Another process may have got the signal.
        number = training.signal_handler.signal or signal.SIGTERM
        if communicator.is_main:
            advice = f'go on with --resume {last}' if last else 'no snapshot was written'
            if iteration >= training.options.iterations:
                advice = 'this was the last one, only its evaluation is missing (--lr 0 makes up for it)'
            print_error(f'stopped by {signal.Signals(number).name} after iteration {iteration}; {advice}')
        return 128 + number
    if missing:
        return print_error(
            'the last state is not saved; ' + (f'go on with --resume {last}' if last else 'no snapshot was written')
        )
    if communicator.is_main:
        print_line(
            f'done after {iteration} iterations'
            + f'; the model is {args.out}/model_iter_{iteration}.npz' * bool(args.snapshot)
        )
    return 0


def _number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{text} is negative')
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0 on')
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a positive number')
    return value


_number.__name__ = _count.__name__ = 'integer'  # argparse names the type in its messages
_not_negative.__name__ = _positive.__name__ = 'number'
