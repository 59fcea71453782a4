"""The networks that a program can run, and the differences of the results."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mask_rcnn.config import Config, Dialect
from mask_rcnn.weights.converters.mapping import network_name
from mask_rcnn.weights.exporters.programs import ARCHITECTURE, Program

#: Maximum difference of the pixel means, in levels of 0 ... 255, that is folded into the first normalisation.  Folding
#: is exact except at the zero padding of conv1, which then stands for a colour that differs by this much.
MAX_MEAN_DIFFERENCE = 2.0

#: The epsilon of PyTorch's batch normalisation.
_TORCH_EPSILON = 1e-5

#: Conventions whose values change the results by more than fractions of a pixel: their subject, and their values in
#: words.
_ESSENTIAL: Mapping[str, tuple[str, Mapping[Any, str]]] = {
    'input.letterbox': ('the image', {True: 'centred in a square input', False: 'at the upper left of its input'}),
    'backbone.stem_pool_pad': (
        'the max pooling after conv1',
        {0: 'padded at the bottom and the right only', 1: 'padded on all sides'},
    ),
    'backbone.stride_in_3x3': (
        'the stride of a block',
        {False: 'in the 1x1 convolution', True: 'in the 3x3 convolution'},
    ),
    'rois.op': ('the pooling of RoIs', {'crop_and_resize': 'by crop_and_resize', 'roi_align': 'by RoIAlign'}),
    'rois.level_rounding': (
        'the pyramid level of a RoI',
        {'nearest': 'rounded to the nearest', 'floor': 'rounded down'},
    ),
    'detections.best_class_only': (
        'detections of a RoI',
        {True: 'of its best class only', False: 'of every class'},
    ),
}

#: Maximum length of the line of differences with their values; a longer one has names only, or counts of names.
_MAX_DIFFERENCES = 300

#: Conventions whose values are converted with the arrays (:mod:`mask_rcnn.weights.exporters.adaptation`).
_CONVERTED = (
    'input.channel_order',
    'input.pixel_mean',
    'input.pixel_std',
    'backbone.bn_eps',
    'boxes.rpn_delta_weights',
    'boxes.box_delta_weights',
)

#: The groups of conventions that detection depends on.
_GROUPS = ('input', 'backbone', 'boxes', 'rpn', 'rois', 'detections', 'masks', 'keypoints')

#: Conventions of detection that only the program's own demo uses.
_OF_DEMO = ('detections.visualize_nms_threshold',)


def find_obstacles(config: Config, program: Program) -> list[str]:
    """Return the properties of a network that the program does not have; empty if it can run the network."""
    dialect, title = config.dialect, program.title
    obstacles = list(_unknown_layers(config, program))
    if dialect.rpn.anchors == 'matterport':
        obstacles.append("anchors of Matterport's program")
    for name, (subject, words) in _ESSENTIAL.items():
        values = get_convention(dialect, name), get_convention(program.dialect, name)
        if values[0] != values[1] and name not in program.settable and name not in _unused_conventions(config):
            obstacles.append(f'{subject} {words[values[0]]} ({title}: {words[values[1]]})')
    sizes = config.anchor_sizes
    if program.doubles_anchors and config.has_fpn and any(b != 2 * a for a, b in itertools.pairwise(sizes)):
        obstacles.append(f'anchor sizes that do not double from level to level ({_plain(sizes)})')
    difference = mean_difference(dialect, program.dialect)
    if config.norm == 'gn' and difference and not keeps_input(config, program):
        obstacles.append('other pixel means before group normalisation')
    elif difference > MAX_MEAN_DIFFERENCE and not keeps_input(config, program):
        obstacles.append(f'pixel means that differ from those of {title} by {difference:.1f}')
    return obstacles


def _unknown_layers(config: Config, program: Program) -> Iterator[str]:
    """Yield the layers that the program's networks do not have."""
    backbones = program.backbones if config.has_fpn else program.c4_backbones
    if config.backbone not in backbones:
        yield f'{network_name(config)} (backbones there: {", ".join(backbones)})' if backbones else 'a C4 network'
        return
    if config.n_keypoint and config.masks and not program.takes_both_heads:
        yield 'masks and keypoints in one network'
    if config.norm == 'gn' and 'gn' not in program.norms:
        yield 'group normalisation'
        return
    candidates = [_differing_layers(config, program, network) for network in program.networks]
    yield from min(candidates, key=len)


def _differing_layers(config: Config, program: Program, network: Any) -> list[str]:
    """Return the fields of a configuration that determine its layers and differ from those of the program's network."""
    reference = program.reference(config, network)
    names = [name for name in ARCHITECTURE if name not in config.unused_fields | {*program.settable_layers}]
    return [
        f'{name} {value!r} ({program.title}: {expected!r})'
        for name in names
        if (value := _layer_value(config, name)) != (expected := _layer_value(reference, name))
    ]


def _layer_value(config: Config, name: str) -> Any:
    """Return a field's value; frozen normalisations are equal, since each can be written as the other."""
    value = getattr(config, name)
    if name in ('norm', 'head_norm'):
        return 'bn' if value == 'affine' else value
    if name == 'rpn_channels' and not value:
        return config.fpn_channels if config.has_fpn else 1024
    return value


def find_notes(config: Config, program: Program) -> list[str]:
    """Return lines about what a file of the program does not contain, and about its other conventions."""
    title, notes = program.title, []
    if settings := _settings_to_repeat(config, program):
        notes.append(f'settings of {title} that the file does not contain, {settings}')
    difference = mean_difference(config.dialect, program.dialect)
    if difference > 0 and not keeps_input(config, program):
        notes.append(
            f'pixel means that differ from those of {title} by {difference:.2f} of 255 are converted, except at the '
            'zero padding around the image'
        )
    if differences := find_differences(config, program):
        notes.append(_describe_differences(title, differences))
    return notes


def _describe_differences(title: str, differences: Mapping[str, str]) -> str:
    """Return a line of at most :data:`_MAX_DIFFERENCES` characters about conventions, given both values by name."""
    start = f'runs in {title} with these differences'
    lines = [f'{start}: {", ".join(f"{name} {values}" for name, values in differences.items())}']
    groups: dict[str, list[str]] = {}
    for name in differences:
        group, _, convention = name.partition('.')
        groups.setdefault(group, []).append(convention)
    values = f'{start} (values: mask-rcnn info --json):'
    lines.append(f'{values} {"; ".join(f"{group} {_listed(names)}" for group, names in groups.items())}')
    lines.append(f'{values} {", ".join(f"{len(names)} of {group}" for group, names in groups.items())}')
    return next((line for line in lines if len(line) <= _MAX_DIFFERENCES), lines[-1])


def _listed(names: Sequence[str]) -> str:
    return f'({", ".join(names)})'


def _settings_to_repeat(config: Config, program: Program) -> str:
    """Return the settings that differ from the program's defaults, by its own names; empty if there are none."""
    names = program.setting_names
    if names is None:
        return ''
    reference = program.reference(config, {})
    defaults = names.defaults(reference)
    values = names.values(config, target_dialect(config, program))
    changes = {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
    texts = names.format(changes)
    for name in names.fixed:
        if name not in config.unused_fields and getattr(config, name) != getattr(reference, name):
            texts.append(f'{name} {_plain(getattr(config, name))} (no setting there)')
    base = names.base.format(neck='FPN' if config.has_fpn else 'C4')
    return f'to add {base}: {", ".join(texts)}' if texts else ''


def target_dialect(config: Config, program: Program) -> Dialect:
    """Return the program's dialect, with the network's values of the conventions that the program's user can set."""
    dialect, before = program.dialect, config.dialect
    is_own = before.name == dialect.name
    if keeps_input(config, program):
        names = ('channel_order', 'pixel_mean', 'pixel_std')
        dialect = dialect.replace(input={name: getattr(before.input, name) for name in names})
    if 'backbone.stride_in_3x3' in program.settable:
        dialect = dialect.replace(backbone={'stride_in_3x3': before.backbone.stride_in_3x3})
    keeps_epsilon = is_own and config.norm == 'bn' and before.backbone.bn_eps in (0.0, _TORCH_EPSILON)
    epsilon = before.backbone.bn_eps if keeps_epsilon else _TORCH_EPSILON
    return dialect.replace(backbone={'bn_eps': epsilon})


def find_differences(config: Config, program: Program) -> dict[str, str]:
    """Return the conventions of a network that the program replaces by its own: both values by name."""
    skipped = {*_CONVERTED, *_OF_DEMO, *program.settable, *_unused_conventions(config)}
    differences = {}
    for group in _GROUPS:
        for convention in dataclasses.fields(getattr(config.dialect, group)):
            name = f'{group}.{convention.name}'
            value, other = get_convention(config.dialect, name), get_convention(program.dialect, name)
            if value != other and name not in skipped:
                differences[name] = f'{_plain(other)} instead of {_plain(value)}'
    return differences


def _unused_conventions(config: Config) -> set[str]:
    """Return the conventions that do not affect a network: those of layers that it does not have."""
    unused = set()
    if config.norm != 'gn':
        unused |= {'backbone.gn_groups', 'backbone.gn_eps'}
    if not config.has_fpn:
        unused |= {'rpn.proposals_per_level', 'rois.level_rounding', 'rois.level_epsilon', 'rois.level_bias'}
    if config.has_fpn or config.roi_size == 14:
        unused |= {'rois.average_half_window'}
    for group, is_present in (('masks', config.masks), ('keypoints', config.n_keypoint)):
        if not is_present:
            unused |= {f'{group}.{field.name}' for field in dataclasses.fields(getattr(config.dialect, group))}
    return unused


def keeps_input(config: Config, program: Program) -> bool:
    """Return whether the network keeps its input, which the program's configuration sets.

    Networks with group normalisation do, because their first normalisation has no mean that could be changed.
    """
    is_own = config.dialect.name == program.dialect.name
    return 'input.pixel_mean' in program.settable and (is_own or config.norm == 'gn')


def mean_difference(dialect: Dialect, other: Dialect) -> float:
    """Return the largest difference of the pixel means of two dialects, in levels of 0 ... 255."""
    return max(abs(a - b) for a, b in zip(_rgb_mean(dialect), _rgb_mean(other), strict=True))


def _rgb_mean(dialect: Dialect) -> tuple[float, ...]:
    mean = dialect.input.pixel_mean
    return mean if dialect.input.channel_order == 'RGB' else mean[::-1]


def get_convention(dialect: Dialect, name: str) -> Any:
    """Return the value of a convention such as ``'boxes.offset'``."""
    group, _, field = name.partition('.')
    return getattr(getattr(dialect, group), field)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ' '.join(map(_plain, value))
    return f'{value:g}' if isinstance(value, float) else str(value)
