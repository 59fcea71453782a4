"""Build a network from a preset, or load it from a weight file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import chainer

from mask_rcnn.config import DIALECTS, PRESETS, Config, Dialect, fields
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES, COCO_SPARSE_CLASS_NAMES
from mask_rcnn.inference.save import model_meta
from mask_rcnn.io.console import escape
from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.backbones.registry import make_backbone
from mask_rcnn.models.box_head import LinearBoxHead, Res5BoxHead
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.models.mask_head import MaskHead
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.models.norm_conversion import affine_to_bn, bn_to_affine
from mask_rcnn.models.norms import set_conventions
from mask_rcnn.models.roi_pooling import RoIPooling
from mask_rcnn.models.rpn import RPN
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.weights import WeightFileError, formats, load_arrays
from mask_rcnn.weights.converters.mapping import ConvertedWeights
from mask_rcnn.weights.norm_arrays import config_with_norm

#: Fields of the configuration that the arrays of a weight file determine.
_DETERMINED_BY_ARRAYS = ('extractor', 'n_fg_class')

_logger = logging.getLogger(__name__)


def build(preset: str | Config = 'resnet50', *, class_names=None, category_ids=None, **changes) -> MaskRCNN:
    """Build a network with random weights on the CPU.

    Args:
        preset: Name of a preset (a key of ``mask_rcnn.PRESETS``) or a complete configuration.
        class_names: Names of the classes, or ``None``.
        category_ids: COCO category ids of the classes, or ``None``.
        **changes: Fields of :class:`~mask_rcnn.config.Config` that differ from the preset's, such as
            ``n_fg_class=3``.

    Returns:
        MaskRCNN: The network.

    Raises:
        ValueError: The preset is unknown or a value is invalid.
        TypeError: A field does not exist; the message names similar ones.
    """
    if not isinstance(preset, Config):
        if not isinstance(preset, str) or preset not in PRESETS:
            shown = fields.describe_value(preset)
            raise ValueError(f'unknown preset {shown}; expected one of {", ".join(PRESETS)}')
        preset = PRESETS[preset]
    config = preset.replace(**changes)
    extractor = _build_extractor(config)
    rpn = RPN(extractor.out_channels[0], strides=extractor.strides, config=config)
    heads = (_build_fpn_heads if config.has_fpn else _build_c4_heads)(extractor, config)
    model = MaskRCNN(extractor, rpn, *heads, config=config, class_names=class_names, category_ids=category_ids)
    set_conventions(model, config.dialect.backbone)
    model_meta(model)  # an error in the classes is raised here, not when the model is saved
    return model


def _build_extractor(config: Config):
    backbone = make_backbone(config)
    return FPN(backbone, config.fpn_channels, norm=config.head_norm) if config.has_fpn else backbone


def _build_c4_heads(extractor, config: Config) -> tuple[chainer.Link | None, ...]:
    """Build heads that share the output of res5 (He et al. 2017, figure 4, left)."""
    box_head = Res5BoxHead(extractor.out_channels[0], strides=extractor.strides, config=config)
    mask_head = None
    if config.masks:
        mask_head = MaskHead(box_head.out_channels, pool=box_head.roi_features, shares_box_features=True, config=config)
    return box_head, mask_head


def _build_fpn_heads(extractor, config: Config) -> tuple[chainer.Link | None, ...]:
    """Build heads that pool their own features (He et al. 2017, figure 4, right)."""
    box_head = LinearBoxHead(config.fpn_channels, strides=extractor.strides, config=config)
    pool = RoIPooling(extractor.strides, config.mask_roi_size, config=config)
    mask_head = keypoint_head = None
    if config.masks:
        mask_head = MaskHead(config.fpn_channels, n_conv=config.mask_convs, pool=pool, config=config)
    if config.n_keypoint:
        keypoint_head = KeypointHead(config.fpn_channels, pool=pool, config=config)
    return box_head, mask_head, keypoint_head


def load(
    path: str | os.PathLike,
    *,
    gpu: int = -1,
    bn2affine: bool = False,
    dialect: str | Dialect | None = None,
    builder: Callable[..., MaskRCNN] = build,
    **changes,
) -> MaskRCNN:
    """Load a model from a weight file.

    A file of another program is converted in memory (:mod:`mask_rcnn.weights.formats`), and each warning of the
    converter is logged as one line.

    Args:
        path: A weight file of any format; usually an ``.npz`` file written by ``mask-rcnn convert``, by training or by
            :func:`mask_rcnn.save`.
        gpu: CUDA device id for the model; -1 for the CPU.
        bn2affine: Convert every batch normalisation into the equivalent affine channel.  The same as
            ``norm='affine'``; ``norm='bn'`` is the inverse.  In files of DeNA's program: use ``gamma`` and ``beta`` as
            affine channels and ignore the statistics.
        dialect: Dialect in which to run a C4 network, or its name, ``'detectron'`` or ``'dena'``; by default that of
            the program that wrote the weights.
        builder: Builds the network: a function with the arguments ``config``, ``class_names`` and ``category_ids`` of
            :func:`build`, for networks with heads of your own.
        **changes: Fields of :class:`~mask_rcnn.config.Config` to use instead of the file's, such as
            ``min_size=600`` or ``roi_size=7``.

    Returns:
        MaskRCNN: The model.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be read or does not contain a model.
        ValueError: A change contradicts the file's arrays or is not a valid value, the network cannot run in the
            dialect, or the GPU does not exist.
        TypeError: A change names an unknown field.
    """
    device = get_device(gpu)
    file = formats.read(path, bn2affine=bn2affine, dialect=_find_dialect(dialect))
    if file.kind != 'model':
        raise WeightFileError(
            path,
            f'contains {file.kind} weights for training, expected a whole model; "mask-rcnn train --pretrained {path}" '
            'starts a training from them',
        )
    for name in _DETERMINED_BY_ARRAYS:
        if name in changes and changes[name] != getattr(file.config, name):
            raise ValueError(f'{escape(path)}: its {name} is {getattr(file.config, name)!r}, not {changes[name]!r}')
    converts_norm, norm = 'norm' in changes and not bn2affine, changes.pop('norm', None)
    config = file.config.replace(**changes)
    try:
        converts_norm = converts_norm and config_with_norm(config, norm) != config
    except ValueError as error:
        raise ValueError(f'{escape(path)}: {error}') from None
    class_names, category_ids = default_classes(file)
    with no_initial_weights():
        model = builder(config, class_names=class_names, category_ids=category_ids)
    load_arrays(model, file.arrays, source=path)
    if converts_norm:
        convert_norm(model, norm)
    model.to_device(device)
    for line in file.report.cautions:
        _logger.warning('%s: %s', escape(path), line)
    return model


def _find_dialect(dialect: str | Dialect | None) -> Dialect | None:
    if dialect is None or isinstance(dialect, Dialect):
        return dialect
    if not isinstance(dialect, str) or dialect not in DIALECTS:
        raise ValueError(f'unknown dialect {dialect!r}; expected one of {", ".join(DIALECTS)}')
    return DIALECTS[dialect]


def placeholder_names(n_classes: int) -> tuple[str, ...]:
    """Return the names of classes whose names are unknown: ``class_1``, ``class_2``, ..."""
    return tuple(f'class_{i}' for i in range(1, n_classes + 1))


def default_classes(file: ConvertedWeights) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of a file's classes and their category ids in the dataset, both empty for a backbone.

    Args:
        file: The weights.  If their names are not known, they are ``class_1``, ``class_2``, ...
    """
    if file.kind == 'backbone':
        return (), ()
    n_classes = file.config.n_fg_class
    names = known_classes(file) or placeholder_names(n_classes)
    if file.category_ids:
        return names, tuple(file.category_ids)
    return names, COCO_CATEGORY_IDS if names == COCO_CLASS_NAMES else tuple(range(1, n_classes + 1))


def known_classes(file: ConvertedWeights) -> tuple[str, ...]:
    """Return the names of a file's classes, empty if they are not known.

    Args:
        file: The weights.  If they have no names, those of COCO are used for 80 classes, and for the category ids 1 to
            90 (torchvision's models).
    """
    if file.kind == 'backbone' or file.class_names:
        return tuple(file.class_names)
    if tuple(file.category_ids) == tuple(range(1, len(COCO_SPARSE_CLASS_NAMES) + 1)):
        return COCO_SPARSE_CLASS_NAMES
    return COCO_CLASS_NAMES if file.config.n_fg_class == len(COCO_CLASS_NAMES) else ()


def convert_norm(model: MaskRCNN, norm: str) -> None:
    """Convert all affine channels and batch normalisations of a model to one of the two without changing its output.

    Args:
        model: Changed in place.
        norm: ``'affine'`` or ``'bn'``; or that of the model.

    Raises:
        ValueError: ``norm`` has another value, or the model has group normalisation.
    """
    model.config = config_with_norm(model.config, norm)
    if norm == 'affine':
        bn_to_affine(model)
    elif norm == 'bn':
        affine_to_bn(model, eps=model.config.dialect.backbone.bn_eps)
