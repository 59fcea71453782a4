"""The arguments of ``mask-rcnn train``: checked, with their defaults."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mask_rcnn.cli.command import UsageError, flag
from mask_rcnn.cli.dataset_options import DatasetArguments
from mask_rcnn.cli.train_options import LAST
from mask_rcnn.config.schedules import DEFAULT_DECAYS, DEFAULT_RATE, DEFAULT_WARMUP
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.io.console import print_warning
from mask_rcnn.training.snapshot import check_snapshot, find_newest_snapshot, is_snapshot, read_options
from mask_rcnn.weights import WeightFileError, formats

#: The options that ``--schedule`` replaces.
SCHEDULE_OPTIONS = ('lr', 'lr_initialchange', 'step_size', 'lr_step')


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """The checked arguments of ``mask-rcnn train``.

    A field has the name of its option.  The options of the fields with defaults here default to ``None``, so that
    contradictions between options are detected only where the user gave both.

    Args:
        data: The datasets.
        roi_batch: ``None`` for the number of the model's dialect.
        frozen_stages: The first ``frozen_stages`` of conv1, res2, res3 and res4 are frozen; ``None`` for the number of
            the model's dialect.
        model_folder: The folder in which ``--pretrained imagenet`` and ``coco`` also search.
    """

    data: DatasetArguments

    extractor: str | None
    keypoints: bool
    norm: str | None
    freeze_bn: bool
    bn2affine: bool
    roialign: bool | None
    roi_size: int | None
    min_size: int | None
    max_size: int | None
    anchor_sizes: tuple[float, ...] | None
    fields: tuple[tuple[str, Any], ...]

    pretrained: str = 'imagenet'
    model_folder: Path
    resume: Path | None

    lr: float = DEFAULT_RATE
    lr_initialchange: int = DEFAULT_WARMUP
    step_size: int = DEFAULT_DECAYS[0]
    lr_step: int = DEFAULT_DECAYS[1]
    schedule: str | None
    iteration: int | None
    batchsize: int
    subdivisions: int
    roi_batch: int | None
    train_proposals: int | None
    gamma: float
    augmentation: Augmentation
    clip_gradient: float | None
    seed: int = 0
    frozen_stages: int | None = None

    gpu: int | None
    precision: str
    communicator: str | None
    out: Path
    workers: int | None
    snapshot: int = 4000
    keep: int = 3
    validation: int = 30000
    early_stop: int | None
    tensorboard: bool

    @classmethod
    def from_namespace(cls, args: argparse.Namespace) -> TrainArguments:
        """Check parsed arguments and fill in the defaults.

        Raises:
            UsageError: Two options contradict each other; the message names both.
            WeightFileError: The file to resume is damaged; for a snapshot, the message names one that is not.
        """
        data = DatasetArguments.from_namespace(args)
        args.resume = _choose_snapshot(args.resume, args.out)
        _check_conflicts(args)
        _check_data(args, data)
        values: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(cls)}
        values['data'] = data
        values['fields'] = tuple(args.fields)
        values['augmentation'] = _read_augmentation(args)
        if args.unfreeze_bn:
            values['norm'] = 'bn'
        values['anchor_sizes'] = tuple(args.anchor_sizes) if args.anchor_sizes else None
        if not data.has('val'):
            values['validation'] = 0
        if args.pretrained == 'none':
            values['frozen_stages'] = 0  # stages without pretrained weights must be trained
        if args.resume and args.lr != 0 and is_snapshot(args.resume):
            values.update(_inherit_from_snapshot(args))
        for field in dataclasses.fields(cls):
            if values[field.name] is None and field.default is not dataclasses.MISSING:
                values[field.name] = field.default
        arguments = cls(**values)
        _check_order(arguments)
        return arguments

    @property
    def only_evaluates(self) -> bool:
        """True if nothing is trained (``--lr 0``)."""
        return self.lr == 0


def _choose_snapshot(path: Path | str | None, out: Path) -> Path | None:
    """Return the newest whole snapshot of a folder, or the file itself.

    Args:
        path: A file, a folder, :data:`LAST` or ``None``.
        out: The folder for :data:`LAST`.
    """
    if path is None:
        return None
    title = f'--resume {path}'
    folder = out if path == LAST else Path(path)
    if path != LAST and not folder.is_dir():
        check_snapshot(folder)
        return folder
    newest = find_newest_snapshot(folder, report_damaged=print_warning)
    if newest is None:
        raise UsageError(f'{title}: {f"--out {out}" if path == LAST else "the folder"} contains no whole snapshot')
    return newest


def _inherit_from_snapshot(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that a snapshot determines: the seed and the frozen stages."""
    try:
        options = read_options(args.resume)
    except WeightFileError:
        return {}  # reported when the whole file is read
    run_seed = options.get('seed', 0)
    if args.seed not in (None, run_seed):
        raise UsageError(
            f'--seed {args.seed} and --resume {args.resume} contradict each other: its run has the seed {run_seed}'
        )
    return {'seed': run_seed, 'frozen_stages': options.get('frozen_stages')}


def _contradict(first: str, second: str, reason: str) -> NoReturn:
    raise UsageError(f'{first} and {second} contradict each other: {reason}')


def _check_conflicts(args: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for options that contradict each other."""
    if args.schedule:
        for name in SCHEDULE_OPTIONS:
            if getattr(args, name) is not None:
                _contradict('--schedule', flag(name), 'the schedule determines the learning rates')
    # A snapshot may be resumed with the command that started its run, so only models are checked.
    if args.resume and not is_snapshot(args.resume):
        if args.resume.is_file():
            formats.detect_format(args.resume)  # a damaged snapshot is named, not taken for a model
        if args.pretrained:
            _contradict('--resume', '--pretrained', 'both name the initial weights')
        if args.fields:
            _contradict('--set', '--resume', 'the file determines the network')
    _check_norm(args)
    if args.snapshot == 0 and args.keep:
        _contradict('--snapshot', '--keep', 'no snapshots are written')
    if args.communicator == 'pure_nccl' and args.gpu is not None:
        _contradict('--communicator', '--gpu', 'pure_nccl assigns one GPU to each process')
    if args.communicator == 'naive' and args.gpu is not None and args.gpu >= 0:
        _contradict('--communicator', '--gpu', 'naive runs on CPUs')
    if args.subdivisions > args.batchsize:
        _contradict(
            f'--subdivisions {args.subdivisions}', f'--batchsize {args.batchsize}', 'a pass needs at least one image'
        )
    if args.lr == 0:
        _check_evaluation(args)


def _read_augmentation(args: argparse.Namespace) -> Augmentation:
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(Augmentation)}
    try:
        return Augmentation(**values)
    except ValueError as error:  # the parser checks all but the scale jitter
        raise UsageError(f'--scale-jitter: {error}') from None


def _check_norm(args: argparse.Namespace) -> None:
    if args.norm == 'bn' and args.bn2affine:
        _contradict('--norm', '--bn2affine', 'choose batch normalisation or affine channels')
    if args.norm == 'gn' and args.bn2affine:
        _contradict('--norm', '--bn2affine', 'choose group normalisation or affine channels')
    if args.norm == 'gn' and args.freeze_bn:
        _contradict('--norm', '--freeze-bn', 'group normalisation has no statistics to freeze')
    if args.norm == 'affine' and args.freeze_bn:
        _contradict('--norm', '--freeze-bn', 'affine channels are always frozen')
    if args.unfreeze_bn:
        for name, idle in (('norm', ('bn', None)), ('freeze_bn', (False,)), ('bn2affine', (False,))):
            if getattr(args, name) not in idle:
                _contradict('--unfreeze-bn', flag(name), '--unfreeze-bn trains batch normalisation')


def _check_evaluation(args: argparse.Namespace) -> None:
    if args.resume is None:
        raise UsageError('--lr 0 trains nothing; to evaluate a model, name it with --resume')
    if args.validation == 0:
        _contradict('--lr 0', '--validation 0', 'nothing would be done')
    if args.iteration not in (None, 1):
        _contradict('--lr 0', f'--iteration {args.iteration}', 'the model is evaluated once')
    for name, idle in (('subdivisions', 1), ('tensorboard', False), ('clip_gradient', None), ('early_stop', None)):
        if getattr(args, name) != idle:
            _contradict('--lr 0', flag(name), 'nothing is trained')


def _check_data(args: argparse.Namespace, data: DatasetArguments) -> None:
    if args.lr == 0 and not data.has('val'):
        raise UsageError('--lr 0 needs --val-annotations and --val-images')
    if args.lr != 0 and not data.has('train'):
        raise UsageError(
            '--val-annotations without --train-annotations: nothing to train on (to evaluate, give --lr 0)'
        )
    if args.validation and not data.has('val'):
        raise UsageError('--validation needs --val-annotations and --val-images')
    if args.early_stop and (args.validation == 0 or not data.has('val')):
        missing = '--validation 0' if data.has('val') else 'no --val-annotations'
        _contradict('--early-stop', missing, 'the AP of the evaluations decides')


def _check_order(args: TrainArguments) -> None:
    if not args.schedule and args.step_size > args.lr_step:
        _contradict(
            f'--step-size {args.step_size}', f'--lr-step {args.lr_step}', 'the second decay would precede the first'
        )
