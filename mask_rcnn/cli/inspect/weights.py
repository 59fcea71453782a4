"""``mask-rcnn inspect weights``: the statistics of a weight file, or the differences between two."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mask_rcnn.cli.command import run_and_report_errors
from mask_rcnn.cli.outputs import check_report
from mask_rcnn.inspect.weights.changes import ArrayChange, WeightComparison, compare_weights
from mask_rcnn.inspect.weights.findings import (
    WeightInspection,
    describe_comparison,
    describe_doubts,
    describe_inspection,
    inspect_weights,
    summarize_parts,
)
from mask_rcnn.inspect.weights.report import build_comparison_report, build_weight_report
from mask_rcnn.inspect.weights.source import read_network_weights
from mask_rcnn.io.console import escape, print_line, print_lines, print_note
from mask_rcnn.io.wording import counted
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = """\
Describe the values of the weights in a file of any format, or the differences between two files: what is doubtful (NaN,
infinities, dead channels), then the ranges of the values in each part of the network."""

_EPILOG = """\
exit status:
  0: done, also if something is doubtful; 1: a file cannot be read or written; 2: bad arguments.
"""

#: Numbers of entries that the text lists; ``--json`` and the report list more.
_MAX_DOUBTS, _MAX_CHANGES, _MAX_NAMES = 10, 12, 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add('file', type=Path, metavar='FILE', help='weight file of any format')
    add('other', type=Path, nargs='?', metavar='FILE2', help='another one, whose differences to the first are shown')
    add(
        '--out',
        type=Path,
        metavar='FILE',
        help='also write an HTML report: histograms and ranges of the layers, the filters of the first layer, all '
        'arrays; for two files their changes',
    )
    add('--json', action='store_true', help='write one line of JSON with all arrays instead of the text')
    add(
        '--bn2affine',
        action='store_true',
        help='convert batch normalisations to affine channels first, to compare files with different normalisations',
    )


def run(args: argparse.Namespace) -> int:
    """Describe the files; returns the exit status (0, 1 if a file cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _inspect(args), (WeightFileError,))


def _inspect(args: argparse.Namespace) -> int:
    paths = [path for path in (args.file, args.other) if path is not None]
    if args.out is not None:
        check_report('--out', args.out, [('the weight file', path) for path in paths])
    inspections = [
        inspect_weights(escape(path), read_network_weights(path, bn2affine=args.bn2affine)) for path in paths
    ]
    comparison = None
    if len(inspections) == 2:
        comparison = compare_weights(*(inspection.weights for inspection in inspections))
    if args.json:
        description: dict[str, Any] = {'files': [describe_inspection(inspection) for inspection in inspections]}
        if comparison is not None:
            description['comparison'] = describe_comparison(comparison)
        print_line(json.dumps(description))
    else:
        for inspection in inspections:
            print_lines(_format_inspection(inspection, with_parts=comparison is None))
        if comparison is not None:
            print_lines(_format_comparison(comparison))
    if args.out is not None:
        _write_report(args.out, inspections, comparison)
    return 0


def _write_report(path: Path, inspections: Sequence[WeightInspection], comparison: WeightComparison | None) -> None:
    if comparison is None:
        report = build_weight_report(inspections[0])
    else:
        report = build_comparison_report(inspections[0], inspections[1], comparison)
    report.write(path)
    print_note(f'wrote {path}')


def _format_inspection(inspection: WeightInspection, *, with_parts: bool) -> str:
    lines = [
        f'{inspection.name}: {inspection.weights.title}, {counted(len(inspection.arrays), "array")}, '
        f'{inspection.n_values / 1e6:.3g} million values, {inspection.zero_fraction:.2%} of them zero'
    ]
    doubts = list(describe_doubts(inspection))
    for title, members in doubts:
        lines.append(f'  DOUBTFUL  {title}')
        lines += [f'    {member}' for member in members[:_MAX_DOUBTS]]
        if len(members) > _MAX_DOUBTS:
            lines.append(f'    ... and {len(members) - _MAX_DOUBTS} more, see --json or --out')
    if not doubts:
        lines.append('  nothing doubtful: no NaN, no infinities, no dead channels')
    if with_parts:
        rows = [
            (
                *(summary.part, str(summary.n_arrays), f'{summary.n_values:,}', _number(summary.std)),
                *(_number(summary.low), _number(summary.high), f'{summary.zero_fraction:.2%}', str(summary.n_dead)),
            )
            for summary in summarize_parts(inspection)
        ]
        lines += _format_table(('part', 'arrays', 'values', 'std', 'min', 'max', 'zeros', 'dead'), rows)
    return '\n'.join(map(escape, lines))


def _format_comparison(comparison: WeightComparison) -> str:
    lines = [f'arrays in both: {len(comparison.changes)}, of which equal in type and bits: {comparison.n_identical}']
    for name, values in comparison.settings.items():
        first, second = ('-' if value is None else _shorten(value) for value in values)
        lines.append(f'  {name}: {first}, then {second}')
    for title, names in (('first', comparison.only_first), ('second', comparison.only_second)):
        if names:
            lines.append(f'  only in the {title}: {len(names)} ({_first_names(names)})')
    if comparison.other_shapes:
        shapes = [f'{name} {first}, then {second}' for name, (first, second) in comparison.other_shapes.items()]
        lines.append(f'  of other shapes: {len(shapes)} ({_first_names(shapes)})')
    changed = [change for change in comparison.changes if not change.is_identical]
    rows = [
        (
            *(change.name, _number(change.relative_change), _number(change.max_difference)),
            *(f'{change.cosine:.6f}' if math.isfinite(change.cosine) else '-', _describe_kind(change)),
        )
        for change in changed[:_MAX_CHANGES]
    ]
    if rows:
        lines += _format_table(('changed array', 'relative', 'max', 'cosine', ''), rows)
    if len(changed) > _MAX_CHANGES:
        lines.append(f'  ... and {len(changed) - _MAX_CHANGES} more with smaller changes, see --json or --out')
    return '\n'.join(map(escape, lines))


def _describe_kind(change: ArrayChange) -> str:
    """Return the properties of a change that its numbers do not state."""
    parts = []
    if change.dtypes[0] != change.dtypes[1]:
        parts.append(f'{change.dtypes[0]}, then {change.dtypes[1]}')
    if change.n_not_finite_changes:
        parts.append(f'{counted(change.n_not_finite_changes, "NaN or infinite value")} changed')
    return '; '.join(parts)


def _number(value: float) -> str:
    return '-' if math.isnan(value) else f'{value:.3g}'


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _first_names(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:_MAX_NAMES]) + (', ...' if len(names) > _MAX_NAMES else '')


def _format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first column is aligned to the left, and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append('  '.join(['', f'{row[0]:<{widths[0]}}', *cells]).rstrip())
    return lines
