"""The HTML report of the weights of one network, or of the differences between two."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from mask_rcnn.inspect.weights.changes import WeightComparison
from mask_rcnn.inspect.weights.dead_channels import REASONS
from mask_rcnn.inspect.weights.findings import (
    WeightInspection,
    describe_channels,
    describe_doubts,
    is_weight,
    summarize_parts,
)
from mask_rcnn.inspect.weights.statistics import ArrayStatistics
from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.html_report import Report
from mask_rcnn.visualization.weight_figures import (
    HistogramPanel,
    RangeRow,
    draw_changes,
    draw_filters,
    draw_histograms,
    draw_ranges,
)

#: Limits of a report, which files of real networks do not reach: rows of a table, histograms of a part of the network,
#: arrays of a range figure, filters.
_MAX_ROWS, _MAX_PANELS, _MAX_RANGES, _MAX_FILTERS = 1000, 150, 400, 256
#: Numbers of the changed arrays that are drawn as bars and as histograms.
_MAX_BARS, _MAX_CHANGED_PANELS = 40, 20
#: The first layer of a ResNet and of a MobileNet.
_FIRST_LAYERS = ('conv1/conv/W', 'conv0/conv/W')
_SCALES = ('/gamma', '/scale')

_REASONS_TEXT = (
    'A channel is dead if its output does not depend on the input. Zero weights: all weights of the channel are at '
    'most 1e-6 of the largest one of the layer. Zero scale: so is the scale of its normalisation. Zero variance: the '
    'running variance of its batch normalisation is at most 1e-6 of epsilon. Closed ReLU: the batch normalisation '
    'before a ReLU has beta + 5 |gamma| <= 0. Only the weights are examined: channels that are constant because of '
    'their inputs, or because ReLU6 limits them to 6, are not listed; "mask-rcnn inspect image" shows the feature maps.'
)


def build_weight_report(inspection: WeightInspection) -> Report:
    """Return the report of one network."""
    report = Report(f'Weights of {inspection.name}')
    report.add_text(
        f'{inspection.weights.title}: {counted(len(inspection.arrays), "array")}, '
        f'{counted(inspection.n_values, "value", spec=",")}, '
        f'{inspection.zero_fraction:.2%} of them exactly zero.'
    )
    _add_doubts(report, [inspection])
    report.add_heading('Parts of the network')
    _add_parts(report, inspection)
    _add_filters(report, inspection)
    _add_ranges(report, inspection)
    report.add_heading('Histograms')
    report.add_text(
        'The weights of each layer over 64 bins from the smallest to the largest value. The counts are logarithmic, '
        'so that single outliers are visible.'
    )
    for part, members in groupby(filter(is_weight, inspection.arrays), key=lambda array: array.part):
        panels = [_panel(array) for array in members]
        report.add_heading(part, level=3)
        report.add_figure(draw_histograms(panels[:_MAX_PANELS]), f'Weights of the {part}')
        _add_limit(report, min(len(panels), _MAX_PANELS), len(panels), 'layers')
    report.add_heading('All arrays')
    report.add_table(
        ('array', 'shape', 'type', 'values', 'mean', 'std', 'min', 'max', 'zeros %', 'NaN', 'infinite'),
        [_row(array) for array in inspection.arrays[:_MAX_ROWS]],
    )
    _add_limit(report, min(len(inspection.arrays), _MAX_ROWS), len(inspection.arrays), 'arrays')
    return report


def build_comparison_report(first: WeightInspection, second: WeightInspection, comparison: WeightComparison) -> Report:
    """Return the report of the differences between two networks."""
    report = Report(f'Weights of {first.name} and {second.name}')
    report.add_text(f'{first.name}: {first.weights.title}. {second.name}: {second.weights.title}.')
    report.add_text(
        f'{counted(len(comparison.changes), "array has", "arrays have")} the same name and shape; '
        f'{counted(comparison.n_identical, "of them is", "of them are")} equal in type and bits.'
    )
    _add_doubts(report, [first, second])
    _add_mismatches(report, comparison)
    report.add_heading('Relative changes')
    if comparison.changes:
        _add_changes(report, comparison)
        _add_changed_histograms(report, first, second, comparison)
    else:
        report.add_text('No array of one has the name and the shape of an array of the other.')
    for inspection in (first, second):
        _add_filters(report, inspection, of=f' of {inspection.name}')
    if comparison.changes:
        _add_change_table(report, comparison)
    return report


def _add_doubts(report: Report, inspections: list[WeightInspection]) -> None:
    report.add_heading('Doubtful values')
    if any(inspection.dead for inspection in inspections):
        report.add_text(_REASONS_TEXT)
    for inspection in inspections:
        if len(inspections) > 1:
            report.add_heading(inspection.name, level=3)
        doubts = list(describe_doubts(inspection))
        if not doubts:
            report.add_text('None: no NaN, no infinite values, no dead channels.')
        for title, _ in doubts:
            report.add_text(f'{title[0].upper()}{title[1:]}.')
        if inspection.not_finite:
            rows = [(array.name, array.size, array.n_nan, array.n_inf) for array in inspection.not_finite]
            report.add_table(('array', 'values', 'NaN', 'infinite'), rows)
        if inspection.dead:
            dead = sorted(inspection.dead, key=lambda item: REASONS.index(item.reason))[:_MAX_ROWS]
            report.add_table(
                ('layer', 'reason', 'channels'), [(item.layer, item.reason, describe_channels(item)) for item in dead]
            )
            _add_limit(report, len(dead), len(inspection.dead), 'entries')


def _add_limit(report: Report, n_shown: int, n_all: int, noun: str) -> None:
    if n_shown < n_all:
        report.add_text(f'The first {n_shown} of {n_all} {noun}; mask-rcnn inspect weights --json lists all.')


def _add_parts(report: Report, inspection: WeightInspection) -> None:
    rows = [
        (s.part, s.n_arrays, s.n_values, s.std, s.low, s.high, 100 * s.zero_fraction, s.n_dead)
        for s in summarize_parts(inspection)
    ]
    report.add_text(
        'The numbers of arrays and values include biases and normalisations; the statistics are those of the weights.'
    )
    report.add_table(('part', 'arrays', 'values', 'std', 'min', 'max', 'zeros %', 'dead channels'), rows)


def _add_filters(report: Report, inspection: WeightInspection, of: str = '') -> None:
    arrays, config = inspection.weights.arrays, inspection.weights.config
    name = next((name for name in arrays if name.endswith(_FIRST_LAYERS)), None)
    if name is None or config is None or arrays[name].ndim != 4 or arrays[name].shape[1] != 3:
        return
    weight = arrays[name][:_MAX_FILTERS]
    if not weight.size:
        return
    order = config.dialect.input.channel_order
    report.add_heading(f'Filters of the first layer{of}')
    report.add_figure(
        draw_filters(weight, channel_order=order),
        f'{name}, {len(weight)} of {counted(len(arrays[name]), "filter")}. The input channels are {order}, the '
        'pictures are RGB. Grey is the weight 0; each filter is scaled by its largest weight, and filters without '
        'weights are grey.',
    )


def _add_ranges(report: Report, inspection: WeightInspection) -> None:
    report.add_heading('Ranges')
    weights = [array for array in inspection.arrays if is_weight(array) and array.size]
    scales = [array for array in inspection.arrays if array.name.endswith(_SCALES) and array.size]
    for arrays, caption in ((weights, 'Weights of the layers'), (scales, 'Scales of the normalisations')):
        if arrays:
            rows = [
                RangeRow(short_name(array.name), array.part, array.min, array.percentiles, array.max)
                for array in arrays[:_MAX_RANGES]
            ]
            report.add_figure(draw_ranges(rows), f'{caption}, from the input to the heads')
            _add_limit(report, len(rows), len(arrays), 'arrays')


def _add_mismatches(report: Report, comparison: WeightComparison) -> None:
    report.add_heading('Configuration and arrays')
    if comparison.settings:
        report.add_table(
            ('field', 'first', 'second'),
            [(name, _shorten(a), _shorten(b)) for name, (a, b) in comparison.settings.items()],
        )
    else:
        report.add_text('The configurations are equal.')
    for title, names in (('the first', comparison.only_first), ('the second', comparison.only_second)):
        if names:
            report.add_text(f'Arrays that only {title} has ({len(names)}): {_join(names)}')
    if comparison.other_shapes:
        rows = [(name, *map(str, shapes)) for name, shapes in comparison.other_shapes.items()]
        report.add_table(('array', 'first shape', 'second shape'), rows[:_MAX_ROWS])
        _add_limit(report, min(len(rows), _MAX_ROWS), len(rows), 'arrays')


def _shorten(value: object) -> str:
    text = '-' if value is None else str(value)
    return text if len(text) <= 200 else f'{text[:199]}…'


def _join(names: tuple[str, ...], limit: int = 40) -> str:
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


def _add_changes(report: Report, comparison: WeightComparison) -> None:
    changes = comparison.changes
    bars = changes[:_MAX_BARS]
    report.add_figure(
        draw_changes([change.name for change in bars], [change.relative_change for change in bars]),
        f'The {counted(len(bars), "array")} that changed most' if len(bars) < len(changes) else 'All arrays',
    )


def _add_change_table(report: Report, comparison: WeightComparison) -> None:
    report.add_heading('All arrays')
    rows = [
        (
            *(change.name, str(change.shape), change.relative_change, change.max_difference, change.cosine),
            'yes' if change.is_identical else 'no',
            change.n_not_finite_changes,
        )
        for change in comparison.changes[:_MAX_ROWS]
    ]
    report.add_table(
        (
            'array',
            'shape',
            'relative change',
            'max difference',
            'cosine',
            'equal type and bits',
            'NaN or infinite changes',
        ),
        rows,
    )
    _add_limit(report, len(rows), len(comparison.changes), 'arrays')


def _add_changed_histograms(
    report: Report, first: WeightInspection, second: WeightInspection, comparison: WeightComparison
) -> None:
    before, after = ({array.name: array for array in inspection.arrays} for inspection in (first, second))
    changed = [change for change in comparison.changes if not change.is_identical and np.prod(change.shape) > 1]
    changed = [change for change in changed if change.max_difference > 0][:_MAX_CHANGED_PANELS]
    if not changed:
        return
    report.add_heading('Histograms of the most changed arrays')
    panels = [
        HistogramPanel(
            short_name(change.name),
            before[change.name].histogram.counts,
            before[change.name].histogram.edges,
            f'{change.relative_change:.2g}',
            other=(after[change.name].histogram.counts, after[change.name].histogram.edges),
        )
        for change in changed
    ]
    report.add_figure(
        draw_histograms(panels, labels=('first file', 'second file')),
        'Values of the arrays in both files, with logarithmic counts, and the relative change',
    )


def _panel(array: ArrayStatistics) -> HistogramPanel:
    n_bad = array.n_nan + array.n_inf
    note = f'{n_bad} not finite' if n_bad else f'std {array.std:.2g}'
    return HistogramPanel(
        short_name(array.name), array.histogram.counts, array.histogram.edges, note, is_doubtful=bool(n_bad)
    )


def short_name(name: str) -> str:
    """Return the path of an array without what is the same for all layers."""
    return name.removeprefix('extractor/').removeprefix('body/').removesuffix('/W')


def _row(array: ArrayStatistics) -> tuple:
    return (
        *(array.name, 'x'.join(map(str, array.shape)) or 'scalar', array.dtype, array.size, array.mean, array.std),
        *(array.min, array.max, 100 * array.zero_fraction, array.n_nan, array.n_inf),
    )
