"""The model that a run starts from: new, from a model file, or of a snapshot."""

from __future__ import annotations

import argparse
import dataclasses
import json

import mask_rcnn
from mask_rcnn.cli import dataset_options
from mask_rcnn.cli.evaluate import listed
from mask_rcnn.cli.options import UsageError
from mask_rcnn.config import PRESETS, Config
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.models.builder import convert_norm
from mask_rcnn.training.snapshot import Snapshot, is_snapshot, read_model_meta, read_snapshot
from mask_rcnn.training.trainer import print_line
from mask_rcnn.weights import WeightFileError, formats, load_arrays, read_weights
from mask_rcnn.weights.converters.mapping import ConvertedWeights
from mask_rcnn.weights.pretrained import find_pretrained, load_pretrained

#: Fields that flags of their own, or the data, decide.
_OTHER_FLAGS_SET = (
    'extractor',
    'n_fg_class',
    'n_keypoint',
    'dialect',
    'norm',
    'roi_size',
    'roi_align',
    'min_size',
    'max_size',
    'anchor_sizes',
)


def make_model(args: argparse.Namespace, train_set, *, is_main: bool):
    """Return the model of a run, on the CPU, and the snapshot to restore.

    Args:
        args: The command's arguments.
        train_set: The data, for the classes.
        is_main: Whether this process says what it took.

    Returns:
        tuple: :class:`~mask_rcnn.MaskRCNN`, and a :class:`~mask_rcnn.training.snapshot.Snapshot` or ``None``.

    Raises:
        UsageError: The flags or the classes do not fit the file.
        mask_rcnn.weights.WeightFileError: A file cannot be used.
    """
    if args.resume is None:
        return _new_model(args, train_set, is_main), None
    snapshot = None
    if is_snapshot(args.resume):
        snapshot = read_snapshot(args.resume)
        model = _model_of(snapshot, args)
    else:
        model = load_model(args)
    _check_classes(model, dataset_options.dataset_name('train', args), train_set)
    return model, snapshot


def uses_keypoints(args: argparse.Namespace) -> bool:
    """Return whether a run's network finds keypoints, as ``--keypoints`` or the file of ``--resume`` says.

    Raises:
        UsageError: ``--keypoints`` does not fit the file.
        mask_rcnn.weights.WeightFileError: The file cannot be used.
    """
    if args.resume is None:
        return args.keypoints
    meta = read_model_meta(args.resume) if is_snapshot(args.resume) else read_weights(args.resume).meta
    if args.keypoints and not meta.config.n_keypoint:
        raise UsageError(f'--keypoints and --resume {args.resume} contradict each other: its network finds none')
    return meta.config.n_keypoint > 0


def _new_model(args: argparse.Namespace, train_set, is_main: bool):
    path = file = None
    if args.pretrained != 'none':
        path = find_pretrained(args.pretrained, _preset(args))
        file = formats.read(path)
    model = mask_rcnn.build(
        _new_config(args, file, len(train_set.class_names)),
        class_names=train_set.class_names,
        category_ids=train_set.category_ids,
    )
    if file is not None:
        report = load_pretrained(model, path, file)
        if is_main:
            print_line(str(report))
    return model


def _new_config(args: argparse.Namespace, file: ConvertedWeights | None, n_fg_class: int) -> Config:
    """Return what the flags, the data and the file with the starting weights make of a network."""
    kind, base = dataset_options.kind(args), _base_config(args, file)
    changes = {}
    if kind in dataset_options.DRAWN:
        changes = {
            'min_size': dataset_options.SIZES[kind][0],
            'max_size': dataset_options.SIZES[kind][1],
            'anchor_sizes': dataset_options.ANCHOR_SIZES[kind],
            'rpn_post_nms': dataset_options.PROPOSALS[kind],
        }
    if args.min_size is not None and args.max_size is None:  # keep the proportion
        before = base.replace(**changes)
        changes['max_size'] = round(args.min_size * before.max_size / before.min_size)
    # Without trained statistics there is nothing that an affine channel could stand for.
    norm = args.norm or ('bn' if args.freeze_bn or args.pretrained == 'none' else 'affine')
    try:
        return base.replace(
            **{
                **changes,
                **_overrides(args),
                'norm': 'affine' if args.bn2affine else norm,
                'n_fg_class': n_fg_class,
                'masks': not args.keypoints,
                'n_keypoint': len(COCO_KEYPOINT_NAMES) if args.keypoints else 0,
                **dict(args.fields),
            }
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _base_config(args: argparse.Namespace, file: ConvertedWeights | None) -> Config:
    """Return the network of a model file with its dialect, unless the flags ask for another; else a preset."""
    if file is None or file.kind != 'model' or args.extractor not in (None, file.config.extractor):
        return PRESETS[_preset(args)]
    return file.config if file.config.has_fpn or not args.keypoints else PRESETS[_preset(args)]


def _preset(args: argparse.Namespace) -> str:
    return args.extractor or ('resnet50_fpn' if args.keypoints else 'resnet50')


def config_field(text: str) -> tuple[str, object]:
    """Parse an argument ``FIELD=VALUE`` of ``--set``.

    Raises:
        argparse.ArgumentTypeError: There is no such field, another flag sets it, or the value is of another type
            than the field's.
    """
    name, _, value = text.partition('=')
    defaults = {f.name: f.default for f in dataclasses.fields(Config) if f.name not in _OTHER_FLAGS_SET}
    if name not in defaults:
        raise argparse.ArgumentTypeError(f'no field {name!r} to set; there are {", ".join(defaults)}')
    try:
        value = json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: the value is no number, true, false or list') from None
    value, default = tuple(value) if isinstance(value, list) else value, defaults[name]
    fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if not fits or (isinstance(value, tuple) and not all(type(v) in (int, float) for v in value)):
        raise argparse.ArgumentTypeError(f'{text!r}: {name} is like {json.dumps(default)}')
    return name, value


def _overrides(args: argparse.Namespace) -> dict:
    given = {
        'extractor': args.extractor,
        'roi_align': args.roialign,
        'roi_size': args.roi_size,
        'min_size': args.min_size,
        'max_size': args.max_size,
        'anchor_sizes': tuple(args.anchor_sizes) if args.anchor_sizes else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def load_model(args: argparse.Namespace):
    """Return the model of ``--resume``, on the CPU, in the normalisation that the flags ask for.

    Args:
        args: The command's arguments; the file may be a snapshot, too.

    Raises:
        UsageError: The flags do not fit the file.
        mask_rcnn.weights.WeightFileError: The file cannot be used.
    """
    if is_snapshot(args.resume):
        snapshot = read_snapshot(args.resume)
        model = _model_of(snapshot, args)
        prefix = 'updater/model:main/model/'
        arrays = {
            name.removeprefix(prefix): array for name, array in snapshot.arrays.items() if name.startswith(prefix)
        }
        load_arrays(model, arrays, source=args.resume)
        return model
    overrides = _overrides(args)
    if args.norm:
        overrides['norm'] = args.norm
    try:
        model = mask_rcnn.load(args.resume, bn2affine=args.bn2affine, **overrides)
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.freeze_bn and not args.bn2affine and model.config.norm == 'affine':
        convert_norm(model, 'bn')
    return model


def _model_of(snapshot: Snapshot, args: argparse.Namespace):
    """Return the network of a snapshot; flags must not ask for another."""
    config = snapshot.model.config
    asked = {**_overrides(args), **dict(args.fields)}
    norm = 'affine' if args.bn2affine else args.norm
    if norm is not None:
        asked['norm'] = norm
    for name, value in asked.items():
        if getattr(config, name) != value:
            raise UsageError(f'{snapshot.path}: its {name} is {getattr(config, name)!r}, not {value!r}')
    return mask_rcnn.build(config, class_names=snapshot.model.class_names, category_ids=snapshot.model.category_ids)


def _check_classes(model, name: str, data_set) -> None:
    """The model's classes must be the data's, in their order."""
    model_classes, dataset_classes = model.class_names, data_set.class_names
    if len(model_classes) != len(dataset_classes):
        raise UsageError(
            f'{name} has {len(dataset_classes)} classes ({listed(dataset_classes)}), but the model '
            f'has {len(model_classes)} ({listed(model_classes)}); --pretrained takes a model with '
            'other classes'
        )
    for i, (model_class, dataset_class) in enumerate(zip(model_classes, dataset_classes)):
        if model_class != dataset_class:
            raise UsageError(
                f'{name}: its class {i + 1} is {dataset_class!r}, but that of the model is {model_class!r}'
            )
