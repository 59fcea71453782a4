"""The figures and pictures of one training pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.inspect.names import level_names
from mask_rcnn.inspect.training.anchor_roles import ANCHOR_ROLES
from mask_rcnn.inspect.training.trace import TrainingTrace
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import outer_corners
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.contact_sheet import draw_tile_picture
from mask_rcnn.visualization.loss_figures import draw_keypoint_targets, draw_mask_targets, plot_costs
from mask_rcnn.visualization.target_figures import ANCHOR_STYLES, Objects, Panel, plot_anchors, plot_rois

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Ignored anchors, and positive ones that are not sampled, in the panel of a level.
MAX_NOT_SAMPLED = 40
_MAX_DRAWN = 100  # RoIs of a role
_MAX_PER_OBJECT = 6  # foreground RoIs of an object
_MAX_MASKS, _MAX_KEYPOINTS, _MAX_BARS = 16, 15, 12


def draw_input(trace: TrainingTrace, *, side: int) -> np.ndarray:
    """Draw the boxes and masks of the objects on the network input.

    Args:
        trace: The training pass.
        side: The longer side of the picture in pixels.

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB.
    """
    return draw_tile_picture(trace.picture, trace.objects, trace.class_names, side=side)


def draw_anchors(trace: TrainingTrace) -> Figure | None:
    """Draw the anchors by role, one panel for each level with anchors to draw; ``None`` if there is none."""
    anchors, panels = trace.anchors, []
    for level, name in enumerate(level_names(anchors.strides)):
        boxes, counts = {}, {}
        for role in ANCHOR_STYLES:
            members = np.flatnonzero((anchors.levels == level) & (anchors.roles == ANCHOR_ROLES.index(role)))
            drawn, counts[role] = members, len(members)
            if role in ('ignored', 'positive_not_sampled'):
                drawn = members[np.argsort(-anchors.best_iou[members], kind='stable')][:MAX_NOT_SAMPLED]
            boxes[role] = _corners(trace, anchors.boxes[drawn])
        if any(counts.values()):
            panels.append(Panel(f'{name}: {counts["positive"]} positive, {counts["negative"]} negative', boxes))
    if not panels:
        return None
    marked = tuple(anchors.objects_without_positive)
    return plot_anchors(trace.picture, Objects(_corners(trace, trace.objects.boxes), marked), panels)


def draw_rois(trace: TrainingTrace) -> Figure:
    """Draw the sampled RoIs and the targets of the foreground."""
    rois = trace.rois
    owners = rois.best_object[: rois.n_foreground]
    drawn = _spread(owners, np.arange(len(owners)), _MAX_DRAWN, _MAX_PER_OBJECT)
    background = np.flatnonzero(rois.labels == 0)
    limited = f' ({len(drawn)} drawn)' if len(drawn) < len(owners) else ''
    titles = f'{counted(len(owners), "foreground RoI")}{limited}', counted(len(background), 'background RoI')
    if len(background) > _MAX_DRAWN:
        titles = titles[0], f'{titles[1]} ({_MAX_DRAWN} drawn, those with the highest IoU)'
        background = background[np.argsort(-rois.iou[background], kind='stable')[:_MAX_DRAWN]]
    objects = Objects(
        _corners(trace, trace.objects.boxes),
        tuple(rois.objects_without_foreground.tolist()),
        'object without foreground RoI',
    )
    return plot_rois(
        trace.picture,
        objects,
        _corners(trace, rois.boxes[drawn]),
        _corners(trace, rois.target_boxes[drawn]),
        owners[drawn],
        _corners(trace, rois.boxes[background]),
        titles,
    )


def draw_masks(trace: TrainingTrace) -> np.ndarray | None:
    """Draw the mask targets with the highest losses, similar numbers of each object.

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB; ``None`` without foreground RoIs or a mask head.
    """
    rois, masks = trace.rois, trace.masks
    if masks is None or not len(masks.targets):
        return None
    losses = masks.terms.losses.mean(axis=(1, 2))
    owners = rois.best_object[: rois.n_foreground]
    shown = _spread(owners, _highest_first(losses), _MAX_MASKS)
    captions = [
        (f'{owners[i]} {trace.class_names[rois.labels[i] - 1]}', f'IoU {rois.iou[i]:.2f}, loss {losses[i]:.2g}')
        for i in shown
    ]
    return draw_mask_targets(
        trace.picture,
        _corners(trace, rois.boxes[shown]),
        masks.targets[shown],
        masks.probabilities[shown],
        captions,
    )


def draw_keypoints(trace: TrainingTrace) -> np.ndarray | None:
    """Draw the keypoint targets with the highest losses, similar numbers of each object.

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB; ``None`` without RoIs or a keypoint head.
    """
    keypoints = trace.keypoints
    if keypoints is None or not len(keypoints.boxes):
        return None
    has_target = keypoints.locations >= 0
    losses = (keypoints.terms.losses * has_target).sum(axis=1) / np.maximum(has_target.sum(axis=1), 1)
    shown = _spread(keypoints.best_object, _highest_first(losses), _MAX_KEYPOINTS)
    targets = np.where(has_target[:, :, None], _cell_centres(keypoints.locations, keypoints.size), np.nan)
    captions = [(f'object {keypoints.best_object[i]}', f'loss {losses[i]:.2g}') for i in shown]
    return draw_keypoint_targets(
        trace.picture,
        _corners(trace, keypoints.boxes[shown]),
        targets[shown],
        _cell_centres(keypoints.predicted, keypoints.size)[shown],
        captions,
    )


def draw_roi_costs(trace: TrainingTrace) -> Figure:
    """Draw the contributions of the RoIs that contribute most to the loss."""
    rois, n = trace.rois, trace.rois.n_foreground
    heads = 'box head' if trace.masks is None else 'box and mask heads'
    parts = {'class': rois.classification.values, 'box': np.zeros(len(rois.labels))}
    parts['box'][:n] = rois.regression.values.sum(axis=1)
    if trace.masks is not None:
        parts['mask'] = np.zeros(len(rois.labels))
        parts['mask'][:n] = trace.masks.terms.values.sum(axis=(1, 2))
    shown = _highest_first(_sum(parts))[:_MAX_BARS]
    names = ['background', *map(plot_name, trace.class_names)]
    texts = []
    for i in shown:
        predicted = int(rois.probabilities[i].argmax())
        label = int(rois.labels[i])
        title = f'{names[label]} {rois.best_object[i]}' if i < n else ('ignored' if label < 0 else 'background')
        other = f', {names[predicted]} {rois.probabilities[i, predicted]:.2f}' if predicted != label else ''
        probability = rois.probabilities[i, max(label, 0)]
        texts.append(f'{title} (IoU {rois.iou[i]:.2f}): p = {probability:.2f}{other}')
    title = f'{len(shown)} of {counted(len(rois.labels), "RoI")} {_describe_share(parts, shown)} of the {heads}'
    values = {name: part[shown] for name, part in parts.items()}
    return plot_costs(trace.picture, _corners(trace, rois.boxes[shown]), texts, values, title)


def draw_anchor_costs(trace: TrainingTrace) -> Figure | None:
    """Draw the contributions of the anchors that contribute most to the loss; ``None`` if none is sampled."""
    anchors = trace.anchors
    if not len(anchors.indices):
        return None
    parts = {'objectness': anchors.classification.values, 'box': anchors.regression.values.sum(axis=1)}
    shown = _highest_first(_sum(parts))[:_MAX_BARS]
    indices, names = anchors.indices[shown], level_names(anchors.strides)
    probabilities = 1 / (1 + np.exp(-anchors.logits[shown].astype(np.float64)))
    texts = [
        f'{names[anchors.levels[i]]}, '
        + (f'positive, object {anchors.best_object[i]}' if label else 'negative')
        + f' (IoU {anchors.best_iou[i]:.2f}): p = {probability:.2f}'
        for i, label, probability in zip(indices, anchors.labels[shown], probabilities, strict=True)
    ]
    title = f'{len(shown)} of {counted(len(anchors.indices), "anchor")} {_describe_share(parts, shown)} of the RPN'
    values = {name: part[shown] for name, part in parts.items()}
    return plot_costs(trace.picture, _corners(trace, anchors.boxes[indices]), texts, values, title)


def _sum(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.sum(list(parts.values()), axis=0)


def _highest_first(losses: np.ndarray) -> np.ndarray:
    """Return the indices of losses in descending order; those that are not finite are first."""
    return np.argsort(-np.where(np.isfinite(losses), losses, np.inf), kind='stable')


def _describe_share(parts: Mapping[str, np.ndarray], shown: np.ndarray) -> str:
    """Return the share of elements in the losses, as a clause that ends with "the losses"."""
    losses = _sum(parts)
    n_bad = int(np.count_nonzero(~np.isfinite(losses)))
    if n_bad:
        return f'({n_bad} of all have NaN or infinite losses, without bars) contribute most to the losses'
    return f'contribute {losses[shown].sum() / max(losses.sum(), 1e-12):.0%} of the losses'


def _spread(owners: np.ndarray, order: np.ndarray, limit: int, per_object: int | None = None) -> np.ndarray:
    """Return at most ``limit`` indices in ascending order of their objects, with similar numbers of each object.

    Args:
        owners: ``(F,)`` int: the object of each RoI.
        order: ``(F,)`` indices; the first ones of an object are preferred.
        limit: Maximum number of indices.
        per_object: Maximum number of indices of an object; ``None`` for no limit.
    """
    ranks, counts = np.zeros(len(owners), np.intp), dict.fromkeys(owners.tolist(), 0)
    for i in order.tolist():
        ranks[i] = counts[int(owners[i])]
        counts[int(owners[i])] += 1
    kept = order[np.argsort(ranks[order], kind='stable')][:limit]
    if per_object is not None:
        kept = kept[ranks[kept] < per_object]
    return kept[np.lexsort((ranks[kept], owners[kept]))]


def _cell_centres(locations: np.ndarray, size: int) -> np.ndarray:
    """Return the centres ``(Q, N, 2)`` of heat map cells in fractions of the RoI."""
    return (np.stack([locations // size, locations % size], axis=2) + 0.5) / size


def _corners(trace: TrainingTrace, boxes: np.ndarray) -> np.ndarray:
    """Return boxes with their outer corners, as they are drawn."""
    return outer_corners(boxes, trace.config.dialect.boxes.offset)
