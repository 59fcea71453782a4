"""The tables of reports on training: classes, objects and levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.inspect.names import level_names
from mask_rcnn.inspect.training.summary import TrainedObject, summarize_classes
from mask_rcnn.inspect.training.trace import TrainingTrace

#: The titles of the columns, and the rows.
Table = tuple[list[str], list[list]]


def class_table(objects: Sequence[TrainedObject], names: Sequence[str], foreground_iou: float) -> Table:
    """Return a row for each class that has an object, the most frequent class first.

    Args:
        objects: The objects of all images.
        names: Names of the classes.
        foreground_iou: IoU of foreground RoIs: ``Sampling.roi_foreground_iou``.
    """
    header = [
        *('class', 'objects', 'median size', 'no anchor', 'no proposal', 'anchors', 'RoIs'),
        *('class loss', 'box loss', 'mask loss'),
    ]
    rows = [
        [
            *(names[c.label], c.n_objects, round(c.size), c.n_without_positive, c.n_without_proposal),
            *(round(c.n_positive, 1), round(c.n_foreground, 1)),
            *map(_cell, (c.classification, c.regression, c.mask)),
        ]
        for c in summarize_classes(objects, foreground_iou)
    ]
    return header, sorted(rows, key=lambda row: -row[1])


def missing_table(objects: Sequence[TrainedObject], names: Sequence[str]) -> Table:
    """Return a row for each object without a positive anchor, with the reason."""
    header = ['image', 'number', 'class', 'size', 'anchor IoU', 'reason']
    rows = [[o.image, o.number, names[o.label], round(o.size), round(o.best_anchor, 3), o.missing] for o in objects]
    return header, rows


def object_table(objects: Sequence[TrainedObject], names: Sequence[str], *, has_masks: bool) -> Table:
    """Return a row for each object of an image."""
    header = [
        *('number', 'class', 'size', 'anchors', 'anchor IoU', 'proposal IoU', 'RoIs', 'of these proposals'),
        *('class loss', 'box loss', *['mask loss'] * has_masks),
    ]
    rows = [
        [
            *(o.number, names[o.label], round(o.size), o.n_positive, round(o.best_anchor, 2)),
            *(round(o.best_proposal, 2), o.n_foreground, o.n_proposals, _cell(o.classification), _cell(o.regression)),
            *[_cell(o.mask)] * has_masks,
        ]
        for o in objects
    ]
    return header, rows


def level_table(trace: TrainingTrace) -> Table:
    """Return the number of anchors of each level and role."""
    header = ['level', 'stride', 'anchors', 'outside', 'ignored', 'negative, not sampled', 'negative']
    header += ['positive, not sampled', 'positive']
    rows = [
        [name, stride, int(counts.sum()), *counts.tolist()]
        for name, stride, counts in zip(
            level_names(trace.anchors.strides), trace.anchors.strides, trace.anchors.counts, strict=True
        )
    ]
    return header, rows


def _cell(value: float) -> float | str:
    """Return a loss for a cell: a number, or a dash for NaN."""
    return '-' if np.isnan(value) else float(f'{value:.3g}')
