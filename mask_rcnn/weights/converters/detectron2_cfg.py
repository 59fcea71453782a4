"""Settings that detectron2's weight files do not contain: its configuration (``detectron2/config/defaults.py``).

The settings are read from a YAML file such as those of the model zoo or the ``config.yaml`` that training writes, and
have dotted names (``MODEL.RPN.NMS_THRESH``).  A file may name another one that it changes (``_BASE_``).  If that does
not exist, the settings of the zoo's ``Base-RCNN-FPN.yaml`` or ``Base-RCNN-C4.yaml`` are used, as they are without any
file.
"""

from __future__ import annotations

import ast
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any
from warnings import catch_warnings, simplefilter

from mask_rcnn.config import RESNET_GROUPS, Config
from mask_rcnn.weights.converters import detectron_cfg
from mask_rcnn.weights.converters.mapping import resnet_depth
from mask_rcnn.weights.converters.settings import (
    FileSettings,
    Setting,
    check_network,
    convert_settings,
    fraction,
    is_integer,
    is_number,
    numbers_of_each_level,
    numbers_of_levels,
    positive_integer,
    positive_numbers,
    replace_fields,
    unsupported_values,
    yxhw,
)
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import read_text_file

#: Maximum number of files that a file names one after another with ``_BASE_``; the zoo has two.
_MAX_BASES = 8

#: Maximum length of text that is read as a number, a tuple or a list.
_MAX_LITERAL = 1000

_BASE = '_BASE_'

#: A setting under this name is the ``_BASE_`` that does not exist.
_MISSING_BASE = '_MISSING_BASE_'


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Read a YAML file and the files that it is based on.

    Args:
        path: The file.

    Returns:
        The settings by dotted name.

    Raises:
        WeightFileError: A file cannot be read or is not such a YAML file, or files are based on each other.
    """
    merged: dict[str, Any] = {}
    current = pathlib.Path(path)
    for _ in range(_MAX_BASES):
        text = read_text_file(current)
        try:
            values = detectron_cfg.parse(text)
        except ValueError as error:
            raise WeightFileError(current, f'is not a configuration of detectron2: {error}') from None
        base = values.pop(_BASE, None)
        merged = _flatten(values) | merged
        found = None if base is None else _find_base(current, base)
        if found is None:
            merged |= {} if base is None else {_MISSING_BASE: base}
            _check_names(path, merged)
            return merged
        current = found
    raise WeightFileError(path, f'is based on more than {_MAX_BASES} files ({_BASE})')


def _check_names(path: str | os.PathLike, settings: Mapping[str, Any]) -> None:
    """Raise an error if no setting is detectron2's, nor the name of a file that has some."""
    if _MISSING_BASE not in settings and not any(name.startswith(_KNOWN_GROUPS) for name in settings):
        raise WeightFileError(
            path, 'is not a configuration of detectron2: it has no MODEL, INPUT or TEST with settings of detectron2'
        )


def _find_base(path: pathlib.Path, name: Any) -> pathlib.Path | None:
    """Return the file that ``_BASE_`` names relative to another, or ``None`` if it does not exist."""
    if not isinstance(name, str) or '\0' in name or not name.endswith(('.yaml', '.yml')) or os.path.isabs(name):
        return None
    base = path.parent / name
    return base if os.path.isfile(base) else None


def _flatten(values: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f'{prefix}{key}'
        flat |= _flatten(value, f'{name}.') if isinstance(value, dict) else {name: _literal(value)}
    return flat


def _literal(value: Any) -> Any:
    """Return the value of text such as ``'(800,)'`` or ``'1e-3'``, which detectron2 evaluates as Python literals."""
    if not isinstance(value, str) or len(value) > _MAX_LITERAL or '\\' in value:
        return value
    try:
        with catch_warnings():
            simplefilter('ignore')  # Python's, of text such as '1or 2'
            literal = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return list(literal) if isinstance(literal, tuple) else literal


def _integer(value: Any) -> int:
    if not is_integer(value):
        raise ValueError('an integer that is not negative')
    return value


def _resolution(value: Any) -> int:
    if value not in (7, 14):
        raise ValueError('7 or 14')
    return int(value)


def _three(value: Any) -> tuple[float, ...]:
    return positive_numbers(value, 3)


def _beta(value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1e6:
        raise ValueError('a number of at least 0')
    return float(value)


def _channel_order(value: Any) -> str:
    if value not in ('BGR', 'RGB'):
        raise ValueError('BGR or RGB')
    return value


def _stride_in_3x3(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError('True or False')
    return not value


#: The settings that a native network has.
SETTINGS: tuple[Setting, ...] = (
    ('INPUT.MIN_SIZE_TEST', 'min_size', positive_integer),
    ('INPUT.MAX_SIZE_TEST', 'max_size', positive_integer),
    ('INPUT.FORMAT', 'input.channel_order', _channel_order),
    ('MODEL.PIXEL_MEAN', 'input.pixel_mean', _three),
    ('MODEL.PIXEL_STD', 'input.pixel_std', _three),
    ('MODEL.RESNETS.STRIDE_IN_1X1', 'backbone.stride_in_3x3', _stride_in_3x3),
    ('MODEL.ANCHOR_GENERATOR.SIZES', 'anchor_sizes', numbers_of_levels),
    ('MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS', 'anchor_ratios', numbers_of_each_level),
    ('MODEL.RPN.PRE_NMS_TOPK_TEST', 'rpn_pre_nms', positive_integer),
    ('MODEL.RPN.POST_NMS_TOPK_TEST', 'rpn_post_nms', positive_integer),
    ('MODEL.RPN.NMS_THRESH', 'rpn_nms_threshold', fraction),
    ('MODEL.RPN.SMOOTH_L1_BETA', 'losses.rpn_smooth_l1_beta', _beta),
    ('MODEL.ROI_HEADS.SCORE_THRESH_TEST', 'score_threshold', fraction),
    ('MODEL.ROI_HEADS.NMS_THRESH_TEST', 'nms_threshold', fraction),
    ('MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION', 'roi_size', _resolution),
    ('MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO', 'sampling_ratio', _integer),
    ('MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS', 'boxes.box_delta_weights', yxhw),
    ('MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA', 'losses.box_smooth_l1_beta', _beta),
    ('TEST.DETECTIONS_PER_IMAGE', 'max_detections', positive_integer),
)

#: The only supported values of settings that the native network does not have.
_SUPPORTED_VALUES: tuple[tuple[str, Any], ...] = (
    ('MODEL.META_ARCHITECTURE', 'GeneralizedRCNN'),
    ('MODEL.RESNETS.RES5_DILATION', 1),
    ('MODEL.RESNETS.DEFORM_ON_PER_STAGE', [False] * 4),
    ('MODEL.ANCHOR_GENERATOR.NAME', 'DefaultAnchorGenerator'),
    ('MODEL.ANCHOR_GENERATOR.OFFSET', 0.0),
    ('MODEL.RPN.BBOX_REG_WEIGHTS', [1.0] * 4),
    ('MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG', False),
    ('MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK', False),
    ('INPUT.MASK_FORMAT', 'polygon'),
    ('TEST.AUG.ENABLED', False),
)

_SUPPORTED_VALUES_FPN: tuple[tuple[str, Any], ...] = (
    ('MODEL.FPN.FUSE_TYPE', 'sum'),
    ('MODEL.RPN.IN_FEATURES', ['p2', 'p3', 'p4', 'p5', 'p6']),
    ('MODEL.ROI_HEADS.IN_FEATURES', ['p2', 'p3', 'p4', 'p5']),
)

_SUPPORTED_VALUES_C4: tuple[tuple[str, Any], ...] = (
    ('MODEL.RPN.IN_FEATURES', ['res4']),
    ('MODEL.ROI_HEADS.IN_FEATURES', ['res4']),
)

#: The zoo's files under ``_BASE_``, and whether they are for a network.
_BASES: dict[str, Callable[[Config], bool]] = {
    'Base-RCNN-C4.yaml': lambda config: not config.has_fpn,
    'Base-RCNN-FPN.yaml': lambda config: config.has_fpn,
    'Base-Keypoint-RCNN-FPN.yaml': lambda config: config.has_fpn and config.n_keypoint > 0,
    'Base-RCNN-DilatedC5.yaml': lambda config: False,
    'Base-RetinaNet.yaml': lambda config: False,
}

#: Names of detectron2's own backbones and heads; a user's may be of any kind.
_BACKBONES = ('build_resnet_backbone', 'build_resnet_fpn_backbone')
_ROI_HEADS = ('Res5ROIHeads', 'StandardROIHeads', 'CascadeROIHeads')

#: Beginnings of detectron2's names; a configuration of a network has at least one of them.
_KNOWN_GROUPS = (
    *(
        f'MODEL.{name}'
        for name in ('META_ARCHITECTURE', 'MASK_ON', 'KEYPOINT_ON', 'WEIGHTS', 'PIXEL_MEAN', 'PIXEL_STD')
    ),
    *(f'MODEL.{name}.' for name in ('BACKBONE', 'FPN', 'RESNETS', 'ANCHOR_GENERATOR', 'PROPOSAL_GENERATOR', 'RPN')),
    *(f'MODEL.ROI_{name}.' for name in ('HEADS', 'BOX_HEAD', 'MASK_HEAD', 'KEYPOINT_HEAD')),
    *(f'INPUT.{name}' for name in ('MIN_SIZE_T', 'MAX_SIZE_T', 'FORMAT', 'MASK_FORMAT')),
    *(f'TEST.{name}' for name in ('DETECTIONS_PER_IMAGE', 'AUG.', 'EVAL_PERIOD', 'EXPECTED_RESULTS')),
)

#: The file and the options of the settings.
FILE_SETTINGS = FileSettings(
    read_settings,
    {
        'min_size': 'INPUT.MIN_SIZE_TEST',
        'max_size': 'INPUT.MAX_SIZE_TEST',
        'anchor_sizes': 'MODEL.ANCHOR_GENERATOR.SIZES',
        'score_threshold': 'MODEL.ROI_HEADS.SCORE_THRESH_TEST',
    },
)


def apply(settings: Mapping[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Apply settings to a configuration.

    Args:
        settings: Values by dotted name.
        config: The network, with the values of the settings that are not given.

    Returns:
        The configuration, and one warning for every setting that has an unsupported value.

    Raises:
        OtherNetworkError: The settings are those of another network.
        ValueError: A setting is not valid, or settings contradict each other.
    """
    check_network(settings, config, _determined_by_arrays(settings, config), _other_base(settings, config))
    changes = convert_settings(settings, SETTINGS)
    warnings = unsupported_values(settings, _supported_values(config))
    if _MISSING_BASE in settings:
        base = to_printable_ascii(str(settings[_MISSING_BASE]), 200)
        warnings.append(f'_BASE_ {base} does not exist beside the configuration; the settings of the zoo are used')
    return replace_fields(config, changes), warnings


def _determined_by_arrays(settings: Mapping[str, Any], config: Config) -> list[tuple[str, Any]]:
    """Return the names of the settings that the arrays determine, and the values of a network."""
    groups, group_width = RESNET_GROUPS[config.backbone]
    determined: list[tuple[str, Any]] = [
        ('MODEL.RESNETS.DEPTH', resnet_depth(config.backbone)),
        ('MODEL.RESNETS.NUM_GROUPS', groups),
        ('MODEL.RESNETS.WIDTH_PER_GROUP', group_width),
        ('MODEL.MASK_ON', config.masks),
        ('MODEL.KEYPOINT_ON', config.n_keypoint > 0),
        ('MODEL.ROI_HEADS.NUM_CLASSES', config.n_fg_class),
    ]
    if config.n_keypoint:
        determined.append(('MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS', config.n_keypoint))
    for name, known in (('MODEL.BACKBONE.NAME', _BACKBONES), ('MODEL.ROI_HEADS.NAME', _ROI_HEADS)):
        if settings.get(name) in known:
            determined.append((name, known[config.has_fpn]))
    return determined


def _other_base(settings: Mapping[str, Any], config: Config) -> list[str]:
    """Return a line if ``_BASE_`` does not exist and is, by its name, a file of the zoo for other networks."""
    base = str(settings.get(_MISSING_BASE, ''))
    fits = _BASES.get(base.rpartition('/')[2])
    return [] if fits is None or fits(config) else [f'{_BASE} is {to_printable_ascii(base, 200)}']


def _supported_values(config: Config) -> list[tuple[str, Any]]:
    """Return the names of the settings that are not free, and the values that are used."""
    poolers = ['ROI_BOX_HEAD', *['ROI_MASK_HEAD'] * config.masks, *['ROI_KEYPOINT_HEAD'] * bool(config.n_keypoint)]
    return [
        *_SUPPORTED_VALUES,
        *(_SUPPORTED_VALUES_FPN if config.has_fpn else _SUPPORTED_VALUES_C4),
        *((f'MODEL.{head}.POOLER_TYPE', 'ROIAlignV2') for head in poolers),
    ]
