"""What Matterport's ``.h5`` files do not say: the values of the ``Config`` class that a network was run with.

They come by their names in ``mrcnn/config.py``, from the command line or from a JSON file, and become fields
of our :class:`~mask_rcnn.config.Config`.  Names that only concern training are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import MATTERPORT, Config
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii

_MAX_TEXT = 1 << 20

#: Between these are sizes, ratios and deviations that one can calculate with.
_MIN_NUMBER, _MAX_NUMBER = 1e-6, 1e6

#: ``RPN_ANCHOR_RATIOS`` of Matterport's own models, as heights divided by widths.
RATIOS = (2.0, 1.0, 0.5)

#: Without them one cannot run a network as it was trained, unless they are as in Matterport's own models.
_WARN_IF_MISSING = ('IMAGE_MIN_DIM', 'IMAGE_MAX_DIM', 'RPN_ANCHOR_SCALES', 'DETECTION_MIN_CONFIDENCE')


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file of settings by name, such as ``{"IMAGE_MAX_DIM": 512}``.

    Raises:
        WeightFileError: The file cannot be read or holds something else.
    """
    try:
        with open(path, encoding='utf-8') as file:
            settings = json.loads(file.read(_MAX_TEXT))
    except OSError as error:
        raise WeightFileError(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError):
        raise WeightFileError(path, 'is no JSON text') from None
    if not isinstance(settings, dict):
        raise WeightFileError(path, 'does not hold names and values in braces')
    return settings


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise ValueError('a positive integer')
    return value


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError('a number from 0 to 1')
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    valid = (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and _MIN_NUMBER < v < _MAX_NUMBER for v in value
        )
    )
    if not valid:
        raise ValueError(f'a list of positive numbers between {_MIN_NUMBER:g} and {_MAX_NUMBER:g}')
    return tuple(value)


def _inverses(value: Any) -> tuple[float, ...]:
    return tuple(1 / ratio for ratio in _numbers(value))


#: Name, field of our ``Config``, check and conversion.
_MAPPED: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ('IMAGE_MIN_DIM', 'min_size', _integer),
    ('IMAGE_MAX_DIM', 'max_size', _integer),
    ('RPN_ANCHOR_SCALES', 'anchor_sizes', _numbers),
    ('RPN_ANCHOR_RATIOS', 'anchor_ratios', _inverses),
    ('PRE_NMS_LIMIT', 'rpn_pre_nms', _integer),
    ('POST_NMS_ROIS_INFERENCE', 'rpn_post_nms', _integer),
    ('RPN_NMS_THRESHOLD', 'rpn_nms_threshold', _fraction),
    ('MASK_POOL_SIZE', 'mask_roi_size', _integer),
    ('DETECTION_MIN_CONFIDENCE', 'score_threshold', _fraction),
    ('DETECTION_NMS_THRESHOLD', 'nms_threshold', _fraction),
    ('DETECTION_MAX_INSTANCES', 'max_detections', _integer),
)

#: What our network does, whatever the settings say.
_SUPPORTED_VALUES: tuple[tuple[str, Any], ...] = (
    ('IMAGE_RESIZE_MODE', 'square'),
    ('IMAGE_MIN_SCALE', 0),
    ('MEAN_PIXEL', list(MATTERPORT.input.pixel_mean)),
    ('BACKBONE_STRIDES', [4, 8, 16, 32, 64]),
    ('RPN_ANCHOR_STRIDE', 1),
    ('USE_RPN_ROIS', True),
)

#: What the arrays decide: name and our field as they have it.
_DETERMINED_BY_ARRAYS: tuple[tuple[str, Callable[[Config], Any]], ...] = (
    ('NUM_CLASSES', lambda config: config.n_fg_class + 1),
    ('BACKBONE', lambda config: config.backbone),
    ('POOL_SIZE', lambda config: config.roi_size),
    ('TOP_DOWN_PYRAMID_SIZE', lambda config: config.fpn_channels),
    ('FPN_CLASSIF_FC_LAYERS_SIZE', lambda config: config.head_channels),
)

#: Standard deviations by which predicted deltas are multiplied, the layer that predicts them, and ours.
_DELTA_STD_DEVS = (
    ('RPN_BBOX_STD_DEV', 'rpn/delta', MATTERPORT.boxes.rpn_delta_weights),
    ('BBOX_STD_DEV', 'box_head/delta', MATTERPORT.boxes.box_delta_weights),
)


def apply(settings: Mapping[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Take settings over into a configuration.

    Args:
        settings: Values by Matterport's names; text, numbers, lists.
        config: Supplies what they do not say.

    Returns:
        The configuration, and one line for every setting that changes results and cannot be honoured.

    Raises:
        ValueError: A setting has no valid value, or they do not fit together.
    """
    changes = {}
    for name, field, check in _MAPPED:
        if settings.get(name) is not None:
            changes[field] = _checked(name, settings[name], check)
    for name, _, _ in _DELTA_STD_DEVS:
        if settings.get(name) is not None and len(_checked(name, settings[name], _numbers)) != 4:
            raise ValueError(f'{name} must be four numbers, not {_shown(settings[name])}')
    if 'min_size' not in changes and 'max_size' in changes:
        changes['min_size'] = min(config.min_size, changes['max_size'])
    warnings = [
        f'{name} is {_shown(settings[name])}, which is not supported; {_shown(used)} is used'
        for name, used in _SUPPORTED_VALUES
        if settings.get(name) is not None and settings[name] != used
    ]
    return config.replace(**changes), warnings


def check(path: str | os.PathLike, settings: Mapping[str, Any], config: Config) -> None:
    """Compare settings with what the arrays of a file say.

    Raises:
        WeightFileError: They contradict each other.
    """
    for name, used in _DETERMINED_BY_ARRAYS:
        if settings.get(name) is not None and settings[name] != used(config):
            raise WeightFileError(
                path, f'its arrays are for {name} = {used(config)}, not {_shown(settings[name])} as the settings say'
            )


def rescale_delta_layers(settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the layers that predict deltas, for the dialect's standard deviations instead of the settings'.

    Both decode ``delta * deviation``, so the boxes stay the same.

    Args:
        settings: As for :func:`apply`.
        arrays: Ours by path.
    """
    changed = {}
    for name, path, weights in _DELTA_STD_DEVS:
        if settings.get(name) is None:
            continue
        factors = np.multiply(settings[name], weights)
        if not np.allclose(factors, 1, rtol=1e-9):
            for own in (f'{path}/W', f'{path}/b'):
                array = arrays[own]
                rows = np.tile(factors, len(array) // 4).reshape(-1, *[1] * (array.ndim - 1))
                changed[own] = (array * rows).astype(np.float32)
    return changed


def missing_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of important settings that are not given."""
    return [name for name in _WARN_IF_MISSING if settings.get(name) is None]


def _checked(name: str, value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f'{name} must be {error}, not {_shown(value)}') from None


def _shown(value: Any) -> str:
    return to_printable_ascii(value if isinstance(value, str) else repr(value))
