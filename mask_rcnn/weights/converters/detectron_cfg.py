"""Parse the ``cfg`` of Detectron's weight files, and apply the settings that a network needs.

Detectron dumps its configuration as YAML with PyYAML's Python tags (``!!python/object/new:...AttrDict``).  The text is
only parsed to nodes here; a tag never becomes a class or a call.  Names and defaults are those of Detectron's
``core/config.py``.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

from mask_rcnn.config import DETECTRON, FPN_STRIDES, RESNET_GROUPS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.converters.settings import get_field, is_integer, is_number, not_supported, replace_fields
from mask_rcnn.weights.errors import to_printable_ascii

#: Maximum length of the text in characters; Detectron's have about 12 kB.
_MAX_TEXT = 1 << 18

#: Maximum number of nodes.  Each use of an alias counts, so that nested aliases cannot expand exponentially.
_MAX_NODES = 20_000

_MAX_DEPTH = 40

#: Maximum length of a number in characters.  The time for one in base 60 (``1:30``) grows with the square.
_MAX_NUMBER = 1000


def parse(text: str) -> dict[str, Any]:
    """Parse the YAML text to nested dictionaries, lists, text and numbers.

    Objects become the dictionary of their items, tuples become lists, and dumped NumPy scalars and arrays become
    numbers and lists.  Any other Python object becomes ``None``.

    Args:
        text: Content of ``cfg``.

    Raises:
        ValueError: The text is not a YAML mapping, or is larger or nested more deeply than any configuration.
    """
    if len(text) > _MAX_TEXT:
        raise ValueError(f'{counted(len(text), "character")} are too many for a configuration (at most {_MAX_TEXT})')
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _NodeConverter().convert(root, 0) if root is not None else None
    except yaml.YAMLError as error:
        problem = getattr(error, 'problem', None) or 'not YAML'
        mark = getattr(error, 'problem_mark', None)
        raise ValueError(to_printable_ascii(problem) + (f' in line {mark.line + 1}' if mark else '')) from None
    except RecursionError:
        raise ValueError('nested too deeply') from None
    if not isinstance(values, dict):
        raise ValueError('not a mapping')
    return values


class _NodeConverter:
    """Converts YAML nodes to plain values."""

    _PREFIX = 'tag:yaml.org,2002:'
    _SCALARS = yaml.constructor.SafeConstructor()

    def __init__(self) -> None:
        self._count = 0

    def convert(self, node: yaml.Node, depth: int) -> Any:
        """Return the value of a node at a nesting depth."""
        self._count += 1
        if self._count > _MAX_NODES or depth > _MAX_DEPTH:
            raise ValueError('nested too deeply or too large')
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        kind = node.tag.removeprefix(self._PREFIX)
        is_object = kind.startswith('python/object')
        if isinstance(node, yaml.SequenceNode):
            items = [self.convert(item, depth + 1) for item in node.value]
            return self._object(kind, items, None) if is_object else items
        values = self._mapping(node, depth)
        if not is_object:
            return values
        if 'dictitems' in values:
            return values['dictitems']
        return self._object(kind, values.get('args'), values.get('state'))

    def _mapping(self, node: yaml.Node, depth: int) -> dict[Any, Any]:
        values = {}
        for key_node, value_node in node.value:
            key = self.convert(key_node, depth + 1)
            if not isinstance(key, (str, int, float, bool)):
                raise ValueError('a key that is not text')
            values[key] = self.convert(value_node, depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(self._PREFIX).removeprefix('python/')
        try:
            if kind in ('int', 'long', 'float') and len(node.value) > _MAX_NUMBER:
                raise ValueError
            if kind in ('int', 'long'):
                return self._SCALARS.construct_yaml_int(node)
            if kind == 'float':
                return self._SCALARS.construct_yaml_float(node)
            if kind == 'bool':
                return self._SCALARS.construct_yaml_bool(node)
            if kind == 'binary':
                return base64.b64decode(node.value)
        except (ValueError, KeyError, IndexError, OverflowError, binascii.Error):
            raise ValueError(f'{to_printable_ascii(node.value)!r} is not a valid {kind}') from None
        if kind in ('null', 'none') or kind.startswith(('name:', 'module:', 'object')):
            return None
        return node.value

    @staticmethod
    def _object(kind: str, arguments: Any, state: Any) -> Any:
        """Return the value of ``numpy.dtype``, ``scalar`` or ``_reconstruct`` as PyYAML dumps them, or ``None``."""
        name = kind.rpartition('.')[2]
        if name == 'dtype' and isinstance(arguments, list) and arguments and arguments[0] in ('f4', 'f8'):
            return np.dtype(arguments[0]).newbyteorder('<')
        if name == 'scalar' and isinstance(arguments, list) and len(arguments) == 2:
            dtype, data = arguments
        elif name == '_reconstruct' and isinstance(state, list) and len(state) == 5:
            dtype, data = state[2], state[4]
        else:
            return None
        if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) % dtype.itemsize:
            return None
        array = np.frombuffer(data, dtype)
        return array.tolist() if name == '_reconstruct' else array.tolist()[0]


def lookup(cfg: dict[str, Any], name: str) -> Any:
    """Return the value of a dotted name such as ``'TEST.NMS'``, or ``None`` if it does not exist."""
    value: Any = cfg
    for key in name.split('.'):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _integer(value: Any) -> int:
    if isinstance(value, list) and len(value) == 1:  # TEST.SCALES before it became TEST.SCALE
        value = value[0]
    if not is_integer(value):
        raise ValueError
    return value


def _positive(value: Any) -> int:
    if _integer(value) == 0:
        raise ValueError
    return _integer(value)


def _number(value: Any) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value or any(_number(v) == 0 for v in value):
        raise ValueError
    return tuple(value)


def _resolution(value: Any) -> int:
    if value not in (7, 14):
        raise ValueError
    return int(value)


def _is_roi_align(value: Any) -> bool:
    if value not in ('RoIAlign', 'RoIPoolF'):
        raise ValueError
    return value == 'RoIAlign'


def _start_size(value: Any) -> tuple[int, ...]:
    """Return the anchor sizes of all levels, which double from one level to the next, given the finest level's."""
    return tuple(_positive(value) << level for level in range(len(FPN_STRIDES)))


def _is_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return not value


_MappedSetting = tuple[str, str, Callable[[Any], Any]]
_SupportedValue = tuple[str, Any]

#: Name in ``cfg``, field of :class:`~mask_rcnn.config.Config` (or group and convention of its dialect), and a function
#: that checks and converts the value.  If a field has two names, the last one that exists is used.
_MAPPED: tuple[_MappedSetting, ...] = (
    ('TEST.SCALES', 'min_size', _positive),
    ('TEST.SCALE', 'min_size', _positive),
    ('TEST.MAX_SIZE', 'max_size', _positive),
    ('TEST.RPN_PRE_NMS_TOP_N', 'rpn_pre_nms', _positive),
    ('TEST.RPN_POST_NMS_TOP_N', 'rpn_post_nms', _positive),
    ('TEST.RPN_NMS_THRESH', 'rpn_nms_threshold', _number),
    ('TEST.RPN_MIN_SIZE', 'rpn_min_size', _number),
    ('TEST.SCORE_THRESH', 'score_threshold', _number),
    ('TEST.NMS', 'nms_threshold', _number),
    ('TEST.DETECTIONS_PER_IM', 'max_detections', _positive),
    ('FAST_RCNN.ROI_XFORM_RESOLUTION', 'roi_size', _resolution),
    ('FAST_RCNN.ROI_XFORM_METHOD', 'roi_align', _is_roi_align),
    ('FAST_RCNN.ROI_XFORM_SAMPLING_RATIO', 'sampling_ratio', _integer),
    ('RESNETS.STRIDE_1X1', 'backbone.stride_in_3x3', _is_false),
)

_MAPPED_C4: tuple[_MappedSetting, ...] = (
    ('RPN.SIZES', 'anchor_sizes', _numbers),
    ('RPN.ASPECT_RATIOS', 'anchor_ratios', _numbers),
)

_MAPPED_FPN: tuple[_MappedSetting, ...] = (
    ('FPN.RPN_ANCHOR_START_SIZE', 'anchor_sizes', _start_size),
    ('FPN.RPN_ASPECT_RATIOS', 'anchor_ratios', _numbers),
)

_MAPPED_GN: tuple[_MappedSetting, ...] = (
    ('GROUP_NORM.NUM_GROUPS', 'backbone.gn_groups', _positive),
    ('GROUP_NORM.EPSILON', 'backbone.gn_eps', _number),
)

#: The only supported values of settings that the native network does not have.
_SUPPORTED_VALUES: tuple[_SupportedValue, ...] = (
    ('PIXEL_MEANS', list(DETECTRON.input.pixel_mean)),
    ('BBOX_XFORM_CLIP', DETECTRON.boxes.max_log_scale),
    ('RESNETS.RES5_DILATION', 1),
    ('GROUP_NORM.DIM_PER_GP', -1),
    ('MODEL.CLS_AGNOSTIC_BBOX_REG', False),
    ('TEST.BBOX_REG', True),
    ('TEST.BBOX_AUG.ENABLED', False),
    ('TEST.BBOX_VOTE.ENABLED', False),
    ('TEST.SOFT_NMS.ENABLED', False),
)

_SUPPORTED_VALUES_C4: tuple[_SupportedValue, ...] = (('RPN.STRIDE', FPN_STRIDES[2]),)

#: The functions of ``modeling/ResNet.py`` that build a backbone, by ``RESNETS.x``: without group normalisation, and
#: with it.
_BACKBONE_FUNCTIONS = {
    'TRANS_FUNC': ('bottleneck_transformation', 'bottleneck_gn_transformation'),
    'STEM_FUNC': ('basic_bn_stem', 'basic_gn_stem'),
    'SHORTCUT_FUNC': ('basic_bn_shortcut', 'basic_gn_shortcut'),
}

_SUPPORTED_VALUES_FPN: tuple[_SupportedValue, ...] = (
    ('FPN.COARSEST_STRIDE', FPN_STRIDES[3]),
    ('FPN.EXTRA_CONV_LEVELS', False),
    ('FPN.MULTILEVEL_ROIS', True),
    ('FPN.MULTILEVEL_RPN', True),
    ('FPN.ROI_CANONICAL_LEVEL', 4),
    ('FPN.ROI_CANONICAL_SCALE', 224),
    ('FPN.ROI_MIN_LEVEL', 2),
    ('FPN.ROI_MAX_LEVEL', 5),
    ('FPN.RPN_MIN_LEVEL', 2),
    ('FPN.RPN_MAX_LEVEL', 6),
)

_SUPPORTED_VALUES_MASK: tuple[_SupportedValue, ...] = (
    ('MRCNN.CLS_SPECIFIC_MASK', True),
    ('MRCNN.UPSAMPLE_RATIO', 1),
    ('MRCNN.THRESH_BINARIZE', DETECTRON.masks.threshold),
    ('TEST.MASK_AUG.ENABLED', False),
)

_SUPPORTED_VALUES_KEYPOINT: tuple[_SupportedValue, ...] = (
    ('KRCNN.UP_SCALE', 2),
    ('KRCNN.USE_DECONV', False),
    ('KRCNN.USE_DECONV_OUTPUT', True),
    ('KRCNN.DILATION', 1),
    ('KRCNN.KEYPOINT_CONFIDENCE', 'bbox'),
    ('KRCNN.NMS_OKS', False),
    ('KRCNN.INFERENCE_MIN_SIZE', 0),
    ('TEST.KPS_AUG.ENABLED', False),
)

#: Settings that all heads share (``MRCNN.x`` and ``KRCNN.x`` must equal ``FAST_RCNN.x``).
_SHARED = ('ROI_XFORM_METHOD', 'ROI_XFORM_SAMPLING_RATIO')


def apply(cfg: dict[str, Any], config: Config) -> tuple[Config, list[str]]:
    """Apply the settings of ``cfg`` to a configuration.

    Args:
        cfg: Result of :func:`parse`.
        config: The network, with the values of the settings that ``cfg`` does not contain.

    Returns:
        The configuration, and one warning for every unsupported setting that changes results.
    """
    changes: dict[str, Any] = {}
    warnings: list[str] = []
    for name, field, convert in _mapped_settings(config):
        value = lookup(cfg, name)
        if value is None:
            continue
        try:
            changes[field] = convert(value)
        except ValueError:
            warnings.append(not_supported(name, value, get_field(config, field)))
    try:
        config = replace_fields(config, changes)
    except ValueError as error:
        warnings.append(f'its sizes and thresholds contradict each other and are not used: {error}')
    warnings.extend(_unsupported_settings(cfg, config))
    return config, warnings


def _mapped_settings(config: Config) -> tuple[_MappedSetting, ...]:
    """Return the settings that apply to a network."""
    group_norm = _MAPPED_GN if 'gn' in (config.norm, config.head_norm) else ()
    if not config.has_fpn:
        return _MAPPED + _MAPPED_C4 + group_norm
    sizes = tuple((f'{head}.ROI_XFORM_RESOLUTION', 'mask_roi_size', _resolution) for head in _heads(config))
    return _MAPPED + _MAPPED_FPN + group_norm + sizes


def _heads(config: Config) -> tuple[str, ...]:
    """Return the sections of ``cfg`` for the heads other than the box head."""
    return ('MRCNN',) * config.masks + ('KRCNN',) * bool(config.n_keypoint)


def _supported_values(config: Config) -> tuple[_SupportedValue, ...]:
    mask_size = 2 * config.mask_roi_size
    masks = (*_SUPPORTED_VALUES_MASK, ('MRCNN.RESOLUTION', mask_size if config.has_fpn else 14))
    keypoints = (
        *_SUPPORTED_VALUES_KEYPOINT,
        ('KRCNN.HEATMAP_SIZE', 2 * mask_size),
        ('KRCNN.NUM_KEYPOINTS', config.n_keypoint),
    )
    is_gn = config.norm == 'gn'
    groups, width = RESNET_GROUPS[config.backbone]
    backbone = (
        ('RESNETS.NUM_GROUPS', groups),
        ('RESNETS.WIDTH_PER_GROUP', width),
        *((f'RESNETS.{name}', functions[is_gn]) for name, functions in _BACKBONE_FUNCTIONS.items()),
    )
    pyramid = (*_SUPPORTED_VALUES_FPN, ('FPN.USE_GN', config.head_norm == 'gn'))
    return (
        _SUPPORTED_VALUES
        + backbone
        + (pyramid if config.has_fpn else _SUPPORTED_VALUES_C4)
        + masks * config.masks
        + keypoints * bool(config.n_keypoint)
    )


def _unsupported_settings(cfg: dict[str, Any], config: Config) -> list[str]:
    """Return a warning for every setting that differs from the native network's behaviour."""
    warnings = []
    for name, used in _supported_values(config):
        value = lookup(cfg, name)
        if value is not None and not _is_equal(value, used):
            warnings.append(not_supported(name, value, used))
    for name in _SHARED if config.has_fpn else (*_SHARED, 'ROI_XFORM_RESOLUTION'):
        for head in _heads(config):
            used, value = lookup(cfg, f'FAST_RCNN.{name}'), lookup(cfg, f'{head}.{name}')
            if None not in (used, value) and used != value:
                warnings.append(not_supported(f'{head}.{name}', value, used))
    return warnings


def _is_equal(value: Any, used: Any) -> bool:
    """Compare values regardless of the notation of numbers and the nesting of arrays."""
    try:
        value, used = np.ravel(np.asarray(value, np.float64)), np.ravel(np.asarray(used, np.float64))
    except (TypeError, ValueError, OverflowError):
        return value == used
    return value.shape == used.shape and np.allclose(value, used, rtol=1e-6, atol=0)
