"""The initial model of a training run: new, from a model file, or from a snapshot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mask_rcnn
from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.dataset_options import ANCHOR_SIZES, PROPOSALS, SIZES, Dataset, model_category_ids
from mask_rcnn.cli.evaluate import name_classes, shorten_names
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.config import PRESETS, Config
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.io.console import print_lines
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.models.builder import convert_norm, known_classes
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.training.snapshot import Snapshot, is_snapshot, read_model_meta, read_snapshot
from mask_rcnn.weights import WeightFileError, formats, load_arrays
from mask_rcnn.weights.converters.mapping import ConvertedWeights
from mask_rcnn.weights.norm_arrays import CONVERTIBLE
from mask_rcnn.weights.pretrained import load_pretrained
from mask_rcnn.weights.pretrained_files import IMAGENET, find_pretrained


def make_model(args: TrainArguments, train_set: Dataset, *, is_main: bool) -> tuple[MaskRCNN, Snapshot | None]:
    """Return the initial model of a run on the CPU, and the snapshot to restore.

    Args:
        args: The command's arguments.
        train_set: The training data, which determine the classes.
        is_main: True in the process that prints the report on the pretrained weights.

    Raises:
        UsageError: The options or the classes do not fit the file.
        mask_rcnn.weights.WeightFileError: A file cannot be used.
    """
    if args.resume is None:
        return _new_model(args, train_set, is_main), None
    snapshot = None
    if is_snapshot(args.resume):
        snapshot = read_snapshot(args.resume)
        model = _model_of_snapshot(snapshot, args)
    else:
        model = load_model(args)
        name_classes(model, train_set)
    check_same_classes(model, args.data.title('train'), train_set, '; --pretrained accepts a model with other classes')
    return model, snapshot


def data_options(args: TrainArguments) -> dict[str, Any]:
    """Return the arguments of :meth:`mask_rcnn.cli.dataset_options.DatasetArguments.open` that a network determines.

    They are read from the file of ``--resume`` or ``--pretrained``.

    Raises:
        UsageError: ``--keypoints`` does not fit the file.
        mask_rcnn.weights.WeightFileError: The file cannot be used.
    """
    if args.resume is None:
        config = _config_before_options(args)
        keypoints = args.keypoints
        masks = dict(args.fields).get('masks', not keypoints)
        class_names: tuple[str, ...] = ()
    else:
        is_run = is_snapshot(args.resume)
        model = read_model_meta(args.resume) if is_run else formats.read(args.resume)
        config, masks, class_names = model.config, model.config.masks, model.class_names
        keypoints = config.n_keypoint > 0
        if args.keypoints and not keypoints:
            raise UsageError(
                f'--keypoints and --resume {args.resume} contradict each other: the network has no keypoint head'
            )
    return {
        'keypoints': keypoints,
        'masks': masks,
        'apply_orientation': config.dialect.input.apply_orientation,
        'kept_classes': class_names,
    }


def selected_extractor(args: TrainArguments) -> str:
    """Return the extractor of a run's network: that of the options, or of the file of ``--resume`` or ``--pretrained``.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be used.
    """
    if args.resume is not None:
        return formats.read(args.resume).config.extractor
    return _config_before_options(args).extractor


def load_model(args: TrainArguments) -> MaskRCNN:
    """Return the model of ``--resume``, a model file or a snapshot, on the CPU.

    Args:
        args: The command's arguments.

    Raises:
        UsageError: The options do not fit the file.
        mask_rcnn.weights.WeightFileError: The file cannot be used.
    """
    path = args.resume
    if path is None:
        raise UsageError('no model to load; name one with --resume')
    if is_snapshot(path):
        return _load_snapshot_model(path, args)
    overrides = _overrides(args)
    if args.norm:
        overrides['norm'] = args.norm
    try:
        model = mask_rcnn.load(path, bn2affine=args.bn2affine, **overrides)
        model.config = model.config.replace(**_trained_norms(args, model.config))
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.freeze_bn and not args.bn2affine and model.config.norm == 'affine':
        convert_norm(model, 'bn')
    return model


def _new_model(args: TrainArguments, train_set: Dataset, is_main: bool) -> MaskRCNN:
    path = file = None
    if args.pretrained != 'none':
        path = _pretrained_file(args)
        file = formats.read(path, bn2affine=args.bn2affine)
        file = dataclasses.replace(file, class_names=known_classes(file))
    config, category_ids = _new_config(args, file, len(train_set.class_names)), model_category_ids(train_set)
    try:
        model = mask_rcnn.build(config, class_names=train_set.class_names, category_ids=category_ids)
    except ValueError as error:  # the groups of group normalisation do not divide a number of channels
        raise UsageError(str(error)) from error
    if path is not None:
        report = load_pretrained(model, path, file)
        if is_main:
            print_lines(str(report))
    return model


def _pretrained_file(args: TrainArguments) -> Path:
    return find_pretrained(args.pretrained, _preset(args), keypoints=args.keypoints, model_folder=args.model_folder)


def _new_config(args: TrainArguments, file: ConvertedWeights | None, n_fg_class: int) -> Config:
    """Return the configuration of a new network.

    Args:
        args: The command's arguments.
        file: The pretrained weights, or ``None``.
        n_fg_class: Number of classes of the training data.
    """
    base = _base_config(args, file)
    changes = _dataset_changes(args)
    if args.min_size is not None and args.max_size is None:  # keep the ratio of the two
        default = base.replace(**changes)
        changes['max_size'] = round(args.min_size * default.max_size / default.min_size)
    changes |= _overrides(args)
    changes |= _norm_changes(args, base)
    changes |= {
        'n_fg_class': n_fg_class,
        'masks': not args.keypoints,
        'n_keypoint': len(COCO_KEYPOINT_NAMES) if args.keypoints else 0,
    }
    changes |= dict(args.fields)
    try:
        config = base.replace(**changes)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    for name, _ in args.fields:
        if name in config.unused_fields:
            heads = '' if config.masks else ' without masks'
            raise UsageError(f'--set {name}: the network {config.extractor}{heads} does not use this field')
    return config


def _norm_changes(args: TrainArguments, base: Config) -> dict[str, Any]:
    """Return the fields of a new network that its normalisation determines."""
    # Affine channels need pretrained statistics, and are frozen in dialects that do not fix statistics in training.
    uses_bn = args.freeze_bn or args.pretrained == 'none' or base.dialect.training.fix_statistics
    norm = args.norm or ('gn' if base.norm == 'gn' else 'bn' if uses_bn else 'affine')
    if args.bn2affine:
        norm = 'affine'
    trained = _trained_norms(args, base)
    if norm in CONVERTIBLE and base.head_norm in CONVERTIBLE:
        return {'norm': norm, 'head_norm': norm, **trained}
    if norm != 'gn' or base.norm == 'gn' or not base.has_fpn:
        return {'norm': norm, **trained}
    preset = PRESETS['resnet50_fpn_gn']
    conventions = {'stride_in_3x3': preset.dialect.backbone.stride_in_3x3}
    heads = {name: getattr(preset, name) for name in ('norm', 'head_norm', 'box_convs', 'box_fcs')}
    return {**heads, 'dialect': base.dialect.replace(backbone=conventions)}


def _trained_norms(args: TrainArguments, base: Config) -> dict[str, Any]:
    """Return the dialect of a network whose normalisations are trained because of ``--norm bn``, if it changes."""
    is_frozen = base.dialect.training.freeze_norms
    return (
        {'dialect': base.dialect.replace(training={'freeze_norms': False})} if is_frozen and args.norm == 'bn' else {}
    )


def _dataset_changes(args: TrainArguments) -> dict[str, Any]:
    """Return the fields of a new network that have other defaults for generated images."""
    if not args.data.is_generated:
        return {}
    name = args.data.name
    min_size, max_size = SIZES[name]
    return {
        'min_size': min_size,
        'max_size': max_size,
        'anchor_sizes': ANCHOR_SIZES[name],
        'rpn_post_nms': PROPOSALS[name],
    }


def _config_before_options(args: TrainArguments) -> Config:
    """Return the configuration that the options of a new network change; it reads the file of ``--pretrained``."""
    if args.pretrained in ('none', IMAGENET):
        return _base_config(args, None)
    return _base_config(args, formats.read(_pretrained_file(args)))


def _base_config(args: TrainArguments, file: ConvertedWeights | None) -> Config:
    """Return the configuration in a pretrained model file unless the options select another network; else a preset."""
    if file is None or file.kind != 'model' or args.extractor not in (None, file.config.extractor):
        return PRESETS[_preset(args)]
    return file.config if file.config.has_fpn or not args.keypoints else PRESETS[_preset(args)]


def _preset(args: TrainArguments) -> str:
    return args.extractor or ('resnet50_fpn' if args.keypoints else 'resnet50')


def _overrides(args: TrainArguments) -> dict[str, Any]:
    """Return the fields of the configuration that options set."""
    fields = {
        'extractor': args.extractor,
        'roi_align': args.roialign,
        'roi_size': args.roi_size,
        'min_size': args.min_size,
        'max_size': args.max_size,
        'anchor_sizes': args.anchor_sizes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _load_snapshot_model(path: Path, args: TrainArguments) -> MaskRCNN:
    snapshot = read_snapshot(path)
    model = _model_of_snapshot(snapshot, args)
    prefix = 'updater/model:main/model/'
    arrays = {name.removeprefix(prefix): array for name, array in snapshot.arrays.items() if name.startswith(prefix)}
    load_arrays(model, arrays, source=path)
    return model


def _model_of_snapshot(snapshot: Snapshot, args: TrainArguments) -> MaskRCNN:
    """Build the network of a snapshot without its weights; the options must not select another network."""
    config = snapshot.model.config
    expected = {**_overrides(args), **dict(args.fields)}
    norm = 'affine' if args.bn2affine else args.norm
    if norm is not None:
        expected['norm'] = norm
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise UsageError(f'{snapshot.path}: its {name} is {getattr(config, name)!r}, not {value!r}')
    with no_initial_weights():
        return mask_rcnn.build(config, class_names=snapshot.model.class_names, category_ids=snapshot.model.category_ids)


def check_same_classes(model: MaskRCNN, name: str, dataset: Dataset, advice: str = '') -> None:
    """Refuse a model and a dataset that do not have the same classes in the same order.

    Args:
        model: The model.
        name: The dataset's name in the message.
        dataset: The dataset.
        advice: The end of the message if the numbers of classes differ.

    Raises:
        UsageError: The classes differ.
    """
    model_names, dataset_names = model.class_names or (), dataset.class_names
    if len(model_names) != len(dataset_names):
        raise UsageError(
            f'{name} has {counted(len(dataset_names), "class", "classes")} ({shorten_names(dataset_names)}), but the '
            f'model has {len(model_names)} ({shorten_names(model_names)}){advice}'
        )
    for number, (model_name, dataset_name) in enumerate(zip(model_names, dataset_names, strict=True), 1):
        if model_name != dataset_name:
            raise UsageError(
                f'{name}: class {number} is {dataset_name!r}, but class {number} of the model is {model_name!r}'
            )
