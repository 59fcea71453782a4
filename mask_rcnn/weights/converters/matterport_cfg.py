"""Settings that Matterport's ``.h5`` files do not contain: the values of the ``Config`` class of a network.

They have the names of ``mrcnn/config.py``, are read from the command line or a JSON file, and become fields of the
native :class:`~mask_rcnn.config.Config`.  Settings that concern only training are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import MATTERPORT, Config
from mask_rcnn.weights.converters.mapping import scale_outputs
from mask_rcnn.weights.converters.settings import (
    FileSettings,
    Setting,
    convert_setting,
    convert_settings,
    fraction,
    positive_integer,
    positive_numbers,
    read_json,
    unsupported_values,
)
from mask_rcnn.weights.errors import WeightFileError, format_value

#: ``RPN_ANCHOR_RATIOS`` of Matterport's released models, as heights divided by widths.
RATIOS = (2.0, 1.0, 0.5)

#: Settings that affect detections; the defaults reproduce a network only if it was trained with them.
_WARN_IF_MISSING = ('IMAGE_MIN_DIM', 'IMAGE_MAX_DIM', 'RPN_ANCHOR_SCALES', 'DETECTION_MIN_CONFIDENCE')


def _inverses(value: Any) -> tuple[float, ...]:
    return tuple(1 / ratio for ratio in positive_numbers(value))


#: The file and the options of the settings.
FILE_SETTINGS = FileSettings(
    read_json,
    {
        'min_size': 'IMAGE_MIN_DIM',
        'max_size': 'IMAGE_MAX_DIM',
        'anchor_sizes': 'RPN_ANCHOR_SCALES',
        'score_threshold': 'DETECTION_MIN_CONFIDENCE',
    },
)

#: The settings that a native network has.
_MAPPED: tuple[Setting, ...] = (
    ('IMAGE_MIN_DIM', 'min_size', positive_integer),
    ('IMAGE_MAX_DIM', 'max_size', positive_integer),
    ('RPN_ANCHOR_SCALES', 'anchor_sizes', positive_numbers),
    ('RPN_ANCHOR_RATIOS', 'anchor_ratios', _inverses),
    ('PRE_NMS_LIMIT', 'rpn_pre_nms', positive_integer),
    ('POST_NMS_ROIS_INFERENCE', 'rpn_post_nms', positive_integer),
    ('RPN_NMS_THRESHOLD', 'rpn_nms_threshold', fraction),
    ('MASK_POOL_SIZE', 'mask_roi_size', positive_integer),
    ('DETECTION_MIN_CONFIDENCE', 'score_threshold', fraction),
    ('DETECTION_NMS_THRESHOLD', 'nms_threshold', fraction),
    ('DETECTION_MAX_INSTANCES', 'max_detections', positive_integer),
)

#: The only supported values of settings that the native network does not have.
_SUPPORTED_VALUES: tuple[tuple[str, Any], ...] = (
    ('IMAGE_RESIZE_MODE', 'square'),
    ('IMAGE_MIN_SCALE', 0),
    ('MEAN_PIXEL', list(MATTERPORT.input.pixel_mean)),
    ('BACKBONE_STRIDES', [4, 8, 16, 32, 64]),
    ('RPN_ANCHOR_STRIDE', 1),
    ('USE_RPN_ROIS', True),
)

#: Settings that the arrays determine: name, and a function that returns the value for a network.
_DETERMINED_BY_ARRAYS: tuple[tuple[str, Callable[[Config], Any]], ...] = (
    ('NUM_CLASSES', lambda config: config.n_fg_class + 1),
    ('BACKBONE', lambda config: config.backbone),
    ('POOL_SIZE', lambda config: config.roi_size),
    ('TOP_DOWN_PYRAMID_SIZE', lambda config: config.fpn_channels),
    ('FPN_CLASSIF_FC_LAYERS_SIZE', lambda config: config.head_channels),
)

#: Standard deviations by which predicted deltas are multiplied: name, layer that predicts the deltas, and the weights
#: of the native network, which divides by them.
_DELTA_STD_DEVS = (
    ('RPN_BBOX_STD_DEV', 'rpn/delta', MATTERPORT.boxes.rpn_delta_weights),
    ('BBOX_STD_DEV', 'box_head/delta', MATTERPORT.boxes.box_delta_weights),
)


def apply(settings: Mapping[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Apply settings to a configuration.

    Args:
        settings: Values (text, numbers, lists) by Matterport's names.
        config: The configuration with the values of the settings that are not given.

    Returns:
        The configuration, and one warning for every unsupported setting that changes results.

    Raises:
        ValueError: A setting is not valid, or settings contradict each other.
    """
    changes = convert_settings(settings, _MAPPED)
    for name, _, _ in _DELTA_STD_DEVS:
        if settings.get(name) is not None and len(convert_setting(name, settings[name], positive_numbers)) != 4:
            raise ValueError(f'{name} must be four numbers, not {format_value(settings[name])}')
    if 'min_size' not in changes and 'max_size' in changes:
        changes['min_size'] = min(config.min_size, changes['max_size'])
    return config.replace(**changes), unsupported_values(settings, _SUPPORTED_VALUES)


def check(path: str | os.PathLike, settings: Mapping[str, Any], config: Config) -> None:
    """Compare settings with the network that the arrays of a file determine.

    Args:
        path: The file, for errors.
        settings: Values by Matterport's names.
        config: The network.

    Raises:
        WeightFileError: A setting contradicts the arrays.
    """
    for name, used in _DETERMINED_BY_ARRAYS:
        if settings.get(name) is not None and settings[name] != used(config):
            raise WeightFileError(
                path,
                f'its arrays are for {name} = {used(config)}, not {format_value(settings[name])} as in the settings',
            )


def rescale_delta_layers(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the layers that predict deltas, converted from the settings' standard deviations to the dialect's.

    Both decode ``delta * deviation``, so the boxes stay the same.

    Args:
        settings: Valid values by Matterport's names.
        arrays: Native arrays by path.

    Returns:
        The arrays that change, by path.
    """
    changed = {}
    for name, path, weights in _DELTA_STD_DEVS:
        if settings.get(name) is None:
            continue
        factors = np.multiply(settings[name], weights)
        if not np.allclose(factors, 1, rtol=1e-9):
            for array_path in (f'{path}/W', f'{path}/b'):
                changed[array_path] = scale_outputs(arrays[array_path], factors).astype(np.float32)
    return changed


def missing_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the important settings that are not given."""
    return [name for name in _WARN_IF_MISSING if settings.get(name) is None]
