"""Settings that torchvision's state dicts do not contain: arguments with which a model was built.

They have the names of the arguments of ``torchvision.models.detection.MaskRCNN`` (``mask_rcnn.py``,
``faster_rcnn.py``), except ``anchor_sizes`` and ``aspect_ratios`` (``AnchorGenerator``) and ``bn_eps`` (the ``eps`` of
the backbone's normalisations).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from mask_rcnn.config import Config
from mask_rcnn.weights.converters.settings import (
    FileSettings,
    Setting,
    check_network,
    convert_settings,
    fraction,
    is_number,
    numbers_of_each_level,
    numbers_of_levels,
    positive_integer,
    positive_numbers,
    read_json,
    replace_fields,
    unsupported_values,
    yxhw,
)
from mask_rcnn.weights.errors import summarize_names


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file of arguments, such as ``{"box_nms_thresh": 0.3}``.

    Raises:
        WeightFileError: The file cannot be read or does not contain a JSON object.
    """
    return read_json(path, 'the arguments of torchvision\'s models are a JSON file such as {"box_nms_thresh": 0.3}')


#: The file and the options of the settings.
FILE_SETTINGS = FileSettings(
    read_settings,
    {
        'min_size': 'min_size',
        'max_size': 'max_size',
        'anchor_sizes': 'anchor_sizes',
        'score_threshold': 'box_score_thresh',
        'bn_eps': 'bn_eps',
    },
)


def _last_integer(value: Any) -> int:
    """Return the shorter side at test time: the last of the sizes with which keypoint models are trained."""
    return positive_integer(value[-1] if isinstance(value, list) and value else value)


def _epsilon(value: Any) -> float:
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError('a number from 0 to below 1')
    return float(value)


def _pixels(value: Any) -> tuple[float, ...]:
    """Return the mean or standard deviation of pixels from 0 to 255, given those of pixels from 0 to 1."""
    return tuple(255 * x for x in positive_numbers(value, 3))


#: The settings that a native network has.
SETTINGS: tuple[Setting, ...] = (
    ('min_size', 'min_size', _last_integer),
    ('max_size', 'max_size', positive_integer),
    ('anchor_sizes', 'anchor_sizes', numbers_of_levels),
    ('aspect_ratios', 'anchor_ratios', numbers_of_each_level),
    ('rpn_pre_nms_top_n_test', 'rpn_pre_nms', positive_integer),
    ('rpn_post_nms_top_n_test', 'rpn_post_nms', positive_integer),
    ('rpn_nms_thresh', 'rpn_nms_threshold', fraction),
    ('box_score_thresh', 'score_threshold', fraction),
    ('box_nms_thresh', 'nms_threshold', fraction),
    ('box_detections_per_img', 'max_detections', positive_integer),
    ('image_mean', 'input.pixel_mean', _pixels),
    ('image_std', 'input.pixel_std', _pixels),
    ('bbox_reg_weights', 'boxes.box_delta_weights', yxhw),
    ('bn_eps', 'backbone.bn_eps', _epsilon),
)

#: The only supported values of settings that the native network does not have.
_SUPPORTED_VALUES: tuple[tuple[str, Any], ...] = (('rpn_score_thresh', 0.0), ('fixed_size', None))

#: Settings that the arrays determine, and the function that returns the value of a network; torchvision counts the
#: background as a class.
_OF_NETWORK: dict[str, Callable[[Config], int | None]] = {
    'num_classes': lambda config: config.n_fg_class + 1,
    'num_keypoints': lambda config: config.n_keypoint or None,
}

#: Settings of training, which are not used.
_TRAINING = (
    'rpn_pre_nms_top_n_train',
    'rpn_post_nms_top_n_train',
    'rpn_fg_iou_thresh',
    'rpn_bg_iou_thresh',
    'rpn_batch_size_per_image',
    'rpn_positive_fraction',
    'box_fg_iou_thresh',
    'box_bg_iou_thresh',
    'box_batch_size_per_image',
    'box_positive_fraction',
    'trainable_backbone_layers',
)


def apply(settings: Mapping[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Apply settings to a configuration.

    Args:
        settings: Values by name.
        config: The network, with the values of the settings that are not given.

    Returns:
        The configuration, one warning for every setting that is not supported, and one for all that are unknown.

    Raises:
        ValueError: A setting is not valid, or settings contradict each other.
    """
    changes = convert_settings(settings, SETTINGS)
    if 'min_size' not in changes and 'max_size' in changes:
        changes['min_size'] = min(config.min_size, changes['max_size'])
    if 'max_size' not in changes and 'min_size' in changes:
        changes['max_size'] = max(config.max_size, changes['min_size'])
    warnings = unsupported_values(settings, _SUPPORTED_VALUES)
    known = {name for name, *_ in (*SETTINGS, *_SUPPORTED_VALUES)} | {*_TRAINING, *_OF_NETWORK}
    if unknown := [name for name in settings if name not in known]:
        verb = (
            'is not a setting of detections and is' if len(unknown) == 1 else 'are not settings of detections and are'
        )
        warnings.append(f'{summarize_names(unknown)} {verb} not used')
    return replace_fields(config, changes), warnings


def check(settings: Mapping[str, Any], config: Config) -> None:
    """Check the settings that the arrays determine.

    Raises:
        OtherNetworkError: They are those of another network.
    """
    check_network(settings, config, ((name, value_of(config)) for name, value_of in _OF_NETWORK.items()))
