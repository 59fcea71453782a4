"""The training of objects and classes: overlaps, sampled anchors and RoIs, and losses of each object and class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask_rcnn.inspect.training.trace import TrainingTrace
from mask_rcnn.io.wording import counted
from mask_rcnn.targets import Sampling

_MAX_CLASSES = 5  # in a sentence


@dataclass(frozen=True)
class TrainedObject:
    """The training of one object of one image.

    Args:
        image: Name of the image, without its folder.
        number: Index in the annotations of the augmented example.
        label: The class; 0 is the first foreground class.
        size: Square root of the area of the box, in pixels of the network input.
        n_positive: Number of sampled positive anchors.
        best_anchor: Best IoU with an anchor.
        missing: The reason why the object has no positive anchor; empty if it has one.
        n_foreground: Number of foreground RoIs.
        n_proposals: Number of those that are proposals; the annotated box itself can be another one.
        best_proposal: Best IoU with a proposal.
        classification: Mean classification loss of its foreground RoIs; NaN if there is none.
        regression: Mean box regression loss of its foreground RoIs; NaN if there is none.
        mask: Mean mask loss per pixel; NaN without foreground RoIs, an outline or a mask head.
    """

    image: str
    number: int
    label: int
    size: float
    n_positive: int
    best_anchor: float
    missing: str
    n_foreground: int
    n_proposals: int
    best_proposal: float
    classification: float
    regression: float
    mask: float


@dataclass(frozen=True)
class TrainedClass:
    """The training of the objects of one class; means of its objects.

    Args:
        label: The class; 0 is the first foreground class.
        n_objects: Number of objects.
        size: Median size in pixels of the network input.
        n_without_positive: Number of objects without a positive anchor.
        n_positive: Mean number of positive anchors.
        n_without_proposal: Number of objects that no proposal overlaps enough to be foreground.
        n_foreground: Mean number of foreground RoIs.
        classification: Mean classification loss; NaN if no object has foreground RoIs.
        regression: Mean box regression loss, likewise.
        mask: Mean mask loss, likewise.
    """

    label: int
    n_objects: int
    size: float
    n_without_positive: int
    n_positive: float
    n_without_proposal: int
    n_foreground: float
    classification: float
    regression: float
    mask: float


def summarize_objects(trace: TrainingTrace) -> list[TrainedObject]:
    """Return the training of each object of an image, without its crowd regions."""
    anchors, rois, objects = trace.anchors, trace.rois, trace.objects
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2] + np.float32(trace.config.dialect.boxes.offset)
    sizes, n_positive = np.sqrt(sides.prod(axis=1)), anchors.positives_of_object.sum(axis=1)
    missing, owners = anchors.objects_without_positive, rois.best_object[: rois.n_foreground]
    regression = rois.regression.losses.sum(axis=1)
    mask = np.full(len(owners), np.nan)
    if trace.masks is not None and len(owners):
        has_mask = trace.masks.targets[:, 0, 0] >= 0
        mask = np.where(has_mask, trace.masks.terms.losses.mean(axis=(1, 2)), np.nan)
    return [
        TrainedObject(
            image=Path(trace.example.name).name,
            number=int(i),
            label=int(objects.labels[i]),
            size=float(sizes[i]),
            n_positive=int(n_positive[i]),
            best_anchor=float(anchors.best_iou_of_object[i]),
            missing=missing.get(int(i), ''),
            n_foreground=int((owners == i).sum()),
            n_proposals=int(((owners == i) & ~rois.is_annotated[: len(owners)]).sum()),
            best_proposal=float(rois.best_proposal[i]),
            classification=_mean(rois.classification.losses[: len(owners)][owners == i]),
            regression=_mean(regression[owners == i]),
            mask=_mean(mask[owners == i]),
        )
        for i in np.flatnonzero(~objects.crowd)
    ]


def summarize_classes(objects: Sequence[TrainedObject], foreground_iou: float) -> list[TrainedClass]:
    """Return the training of each class that has an object, in the order of the labels.

    Args:
        objects: The objects of all images.
        foreground_iou: IoU of foreground RoIs: ``Sampling.roi_foreground_iou``.
    """
    classes = []
    for label in sorted({obj.label for obj in objects}):
        members = [obj for obj in objects if obj.label == label]
        classes.append(
            TrainedClass(
                label=label,
                n_objects=len(members),
                size=float(np.median([obj.size for obj in members])),
                n_without_positive=sum(bool(obj.missing) for obj in members),
                n_positive=_mean(obj.n_positive for obj in members),
                n_without_proposal=sum(obj.best_proposal < foreground_iou for obj in members),
                n_foreground=_mean(obj.n_foreground for obj in members),
                classification=_mean(obj.classification for obj in members),
                regression=_mean(obj.regression for obj in members),
                mask=_mean(obj.mask for obj in members),
            )
        )
    return classes


def describe_training(
    objects: Sequence[TrainedObject],
    anchor_sizes: Sequence[float],
    sampling: Sampling,
    class_names: Sequence[str],
) -> list[str]:
    """Return the summary of the objects of all images as sentences.

    Args:
        objects: The objects.
        anchor_sizes: Sizes of the network's anchors.
        sampling: The IoU thresholds of negative anchors and of foreground RoIs.
        class_names: Names of the classes.
    """
    foreground_iou, low = sampling.roi_foreground_iou, sampling.rpn_negative_iou
    unmatched = [obj for obj in objects if obj.best_anchor < low]
    missing = [obj for obj in objects if obj.missing]
    unproposed = [obj for obj in objects if obj.best_proposal < foreground_iou]
    reasons = Counter(obj.missing for obj in missing).most_common()
    because = f' ({"; ".join(f"{reason}: {n}" for reason, n in reasons)})' if reasons else ''
    anchors = f'; anchors have {min(anchor_sizes):g} to {max(anchor_sizes):g}' if missing else ''
    lines = [
        f'{_count(missing, objects)} no positive anchor{because}{_describe_sizes(missing)}{anchors}',
        f'{_count(unproposed, objects)} no proposal with IoU >= {foreground_iou:g}{_describe_sizes(unproposed)}',
    ]
    if unmatched:
        # The best anchor of an object is positive whatever its IoU, so these objects are not among the missing ones.
        lines.insert(
            1,
            f'{_count(unmatched, objects)} no anchor with IoU >= {low:g}{_describe_sizes(unmatched)}; anchors have '
            f'{min(anchor_sizes):g} to {max(anchor_sizes):g}: {_count_classes(unmatched, objects, class_names)}; '
            '"mask-rcnn data stats" suggests --anchor-sizes and --min-size',
        )
    return lines


def _count(some: Sequence[TrainedObject], objects: Sequence[TrainedObject]) -> str:
    return f'{len(some)} of {counted(len(objects), "object")} {"has" if 1 in (len(some), len(objects)) else "have"}'


def _count_classes(some: Sequence[TrainedObject], objects: Sequence[TrainedObject], class_names: Sequence[str]) -> str:
    """Return the number of objects of each class, such as ``'cat 2 of 3'``, the most frequent class first."""
    totals = Counter(obj.label for obj in objects)
    counts = Counter(obj.label for obj in some).most_common()
    listed = ', '.join(f'{class_names[label]} {n} of {totals[label]}' for label, n in counts[:_MAX_CLASSES])
    n_left = len(counts) - _MAX_CLASSES
    return listed + (f' and {counted(n_left, "more class", "more classes")}' if n_left > 0 else '')


def _describe_sizes(objects: Sequence[TrainedObject]) -> str:
    if not objects:
        return ''
    sizes = [obj.size for obj in objects]
    smallest, largest = f'{min(sizes):.0f}', f'{max(sizes):.0f}'
    if smallest == largest:
        return f', size {smallest} pixels in the network input'
    return f', sizes {smallest} to {largest} pixels in the network input (median {np.median(sizes):.0f})'


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float('nan')
