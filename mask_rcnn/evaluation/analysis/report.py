"""The report of an analysis as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.evaluation.analysis.analysis import Analysis, KindAnalysis
from mask_rcnn.evaluation.analysis.report_images import ImageReader, add_worst_images
from mask_rcnn.evaluation.metrics import format_percent
from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.analysis_figures import (
    plot_class_ap,
    plot_class_curves,
    plot_error_costs,
    plot_precision_recall,
    plot_size_ap,
    plot_size_recall,
)
from mask_rcnn.visualization.confusion_figure import plot_confusion
from mask_rcnn.visualization.error_pictures import mark_title
from mask_rcnn.visualization.html_report import Report

#: Number of classes in the figures; of more classes, the worst and the best ones are shown.
_MAX_CURVES, _MAX_BARS, _MAX_CONFUSED = 24, 30, 24
_MAX_PAIRS = 15
_SIZE_NAMES = {'small': 'APs', 'medium': 'APm', 'large': 'APl'}


def make_report(
    analysis: Analysis, read_image: ImageReader, *, title: str, details: Sequence[tuple[str, str]] = ()
) -> Report:
    """Return the report of an analysis.

    Args:
        analysis: The analysis.
        read_image: Reads the worst images.
        title: The title.
        details: Names and values for the summary, such as the model and the dataset.
    """
    report = Report(title)
    _add_summary(report, analysis, details)
    if not _evaluated_classes(_main(analysis)):
        report.add_text(
            'The ground truth has no objects, except crowds: no metric is defined, and every figure would be empty.'
        )
        return report
    _add_curves(report, analysis)
    _add_sizes(report, analysis)
    _add_classes(report, analysis)
    _add_confusion(report, analysis)
    _add_costs(report, analysis)
    add_worst_images(report, analysis, read_image)
    return report


def _add_summary(report: Report, analysis: Analysis, details: Sequence[tuple[str, str]]) -> None:
    report.add_heading('Summary')
    n_objects = int(analysis.kinds[0].objects_per_class.sum())
    n_classes = len(analysis.metrics.class_names)
    report.add_table(
        ['', ''],
        [*details, ('images', str(analysis.n_images)), ('objects', str(n_objects)), ('classes', str(n_classes))],
    )
    report.add_text(
        "COCO's metrics in percent: AP is averaged over the IoU thresholds 0.50 to 0.95, AP50 and AP75 are at one "
        'threshold; s, m and l are small (below 32 x 32 pixels), medium and large (above 96 x 96 pixels) objects; AR '
        'is the recall with the given number of detections per image. "-" stands for a metric without objects.'
    )
    for header, rows in analysis.metrics.tables():
        report.add_table(header, rows)


def _add_curves(report: Report, analysis: Analysis) -> None:
    report.add_heading('Precision and recall')
    kinds = {kind.kind.plural: kind.curves for kind in analysis.kinds}
    report.add_figure(
        plot_precision_recall(analysis.kinds[0].curves.recalls, {name: c.precision for name, c in kinds.items()}),
        'Each curve shows the precision that remains when the score threshold is lowered until a recall is reached; '
        'the area below it is the AP, and it falls to 0 at the recall that no threshold exceeds. Mean of all classes.',
    )
    main = _main(analysis)
    classes = _evaluated_classes(main)
    if len(classes) < 2:
        return
    shown, n_worst = _ends(classes, _MAX_CURVES)
    names = analysis.metrics.class_names
    report.add_figure(
        plot_class_curves(main.curves.recalls, [(names[k], main.curves.precision_per_class[k]) for k in shown]),
        f'The same curves of the {main.kind.plural} of each class with its AP, in ascending order: a curve that falls '
        'to 0 early belongs to a class with missed objects, a low one to a class with false positives.'
        + _explain_ends(classes, n_worst),
    )


def _add_sizes(report: Report, analysis: Analysis) -> None:
    report.add_heading('Object sizes')
    summary = analysis.metrics.summary()
    main = _main(analysis)
    aps = {}
    for kind in analysis.kinds:
        keys = {size: f'{kind.kind.name}/{_SIZE_NAMES[size]}' for size in kind.size_counts}
        aps[kind.kind.plural] = {size: summary[key] for size, key in keys.items() if key in summary}
    report.add_figure(
        plot_size_ap(aps, main.size_counts),
        "AP of COCO's three sizes: a low value shows the size of the objects that the model detects poorly.",
    )
    sizes = main.size_recall
    if len(sizes.n_objects):
        report.add_figure(
            plot_size_recall(sizes.limits, sizes.n_objects, sizes.recall),
            f'Recall of the objects of each size ({main.kind.plural}, all scores), and their number: a gap between the '
            'curves means that objects are detected, but poorly localised.',
        )


def _add_classes(report: Report, analysis: Analysis) -> None:
    report.add_heading('Classes')
    main = _main(analysis)
    classes = _evaluated_classes(main)
    shown, n_worst = _ends(classes, _MAX_BARS)
    names, aps = analysis.metrics.class_names, main.curves.ap_per_class
    rows = [(names[k], int(main.objects_per_class[k]), aps[k, 2], aps[k, 0]) for k in shown]
    report.add_figure(
        plot_class_ap(rows, n_worst),
        f'AP of the {main.kind.plural} of each class with its number of objects, the worst class first: a long '
        'distance from the bar to the dot means that the objects are detected, but poorly localised.'
        + _explain_ends(classes, n_worst),
    )
    per_kind = analysis.metrics.ap_per_class().values()
    report.add_table(
        ['class', 'objects', *(f'{kind.kind.singular} AP' for kind in analysis.kinds)],
        [(names[k], int(main.objects_per_class[k]), *(format_percent(a[k]) for a in per_kind)) for k in shown],
    )


def _add_confusion(report: Report, analysis: Analysis) -> None:
    report.add_heading('Confused classes')
    names, matrix = analysis.metrics.class_names, analysis.confusion
    labels, counts = matrix.reduce(_MAX_CONFUSED)
    shown = [names[k] for k in labels]
    rest = [counted(len(names) - len(labels), 'other class', 'other classes')] if len(labels) < len(names) else []
    note = f' The {counted(len(labels), "class", "classes")} that are confused most.' if rest else ''
    report.add_figure(
        plot_confusion(counts, [*shown, *rest, 'background'], [*shown, *rest, 'not detected']),
        'Each row contains the objects of one class by the class of their detections '
        f'({analysis.main_kind.plural} with a score above {matrix.score_threshold:g} and IoU of at least 0.5), and the '
        f'last row detections without an object; a good model has its numbers on the diagonal.{note}',
    )
    pairs = matrix.confusions(_MAX_PAIRS)
    if pairs:
        report.add_text(f'The most frequent confusions, at most {_MAX_PAIRS}:')
        report.add_table(
            ['object', 'detected as', 'objects', 'percent of its class'],
            [(names[p.label], names[p.predicted], p.count, f'{100 * p.fraction:.1f}') for p in pairs],
        )


def _add_costs(report: Report, analysis: Analysis) -> None:
    report.add_heading('Kinds of errors')
    kinds = {kind.kind.plural: kind.costs for kind in analysis.kinds if kind.costs is not None}
    report.add_figure(
        plot_error_costs(
            {name: [(item.name, item.cost) for item in costs.kinds] for name, costs in kinds.items()},
            {name: [(item.name, item.cost) for item in costs.totals] for name, costs in kinds.items()},
        ),
        'By how much AP50 would rise if one kind of error were corrected and nothing else (TIDE, ECCV 2020): the '
        'longest coloured bar is the kind to improve first. The bars do not add up, because errors hide each other.',
    )
    report.add_table(
        ['', *(title for name in kinds for title in (name, 'AP50')), 'definition'],
        [
            (
                mark_title(items[0].name),
                *(cell for item in items for cell in (item.count, f'+{100 * max(item.cost, 0):.1f}')),
                _DEFINITIONS[items[0].name],
            )
            for items in zip(*((*costs.kinds, *costs.totals) for costs in kinds.values()), strict=True)
        ],
    )


_DEFINITIONS = {
    'classification': 'IoU of at least 0.5 with an object of another class',
    'localisation': 'IoU of 0.1 to 0.5 with an object of the class',
    'both': 'IoU of 0.1 to 0.5 with an object of another class',
    'duplicate': 'IoU of at least 0.5 with an object that a detection with a higher score matches',
    'background': 'IoU below 0.1 with every object',
    'missed': 'objects without a detection, even of a wrong class or location',
    'false positives': 'the five kinds of detections above',
    'false negatives': 'all objects that are not detected',
}


def _main(analysis: Analysis) -> KindAnalysis:
    return next(kind for kind in analysis.kinds if kind.kind == analysis.main_kind)


def _evaluated_classes(kind: KindAnalysis) -> list[int]:
    """Return the labels with objects in ascending order of AP."""
    aps = kind.curves.ap_per_class[:, 2]
    return [k for k in np.argsort(aps, kind='stable').tolist() if not np.isnan(aps[k])]


def _ends(classes: Sequence[int], limit: int) -> tuple[list[int], int | None]:
    """Return all classes, or the first and the last ones and the number of the first ones."""
    if len(classes) <= limit:
        return list(classes), None
    half = limit // 2
    return [*classes[:half], *classes[-half:]], half


def _explain_ends(classes: Sequence[int], n_worst: int | None) -> str:
    """Return a sentence about classes that are left out."""
    if n_worst is None:
        return ''
    n_classes = counted(len(classes), 'class', 'classes')
    return f' Of {n_classes} with objects, the {n_worst} with the lowest and the {n_worst} with the highest AP.'
