"""Figures of the steps of a detection, from a :class:`~mask_rcnn.inspect.Trace`.

In a notebook::

    from mask_rcnn.inspect import figures, trace

    steps = trace(model, 'photo.jpg')
    figures.draw_anchors(steps)
    figures.draw_why(steps, 0)

Each function returns a Matplotlib figure, which a notebook shows and ``figure.savefig('anchors.png')`` writes.  All
boxes are in pixels of the image.  Figures of many boxes show the best ones; their titles give the total.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, MIN_KEYPOINT_LOGIT
from mask_rcnn.inference.resize import resize_detections
from mask_rcnn.inspect.network_input import viewable_input
from mask_rcnn.inspect.reasons import Rejection, Step, best_classes, check_detection, why, why_not
from mask_rcnn.inspect.tables import Fate, Trace
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import outer_corners
from mask_rcnn.visualization import anchor_figures, detection_figures, feature_figures, reason_figures
from mask_rcnn.visualization.class_names import plot_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Length in pixels that the longer side of a picture of detections reaches if the image is smaller.
_MIN_SIDE = 600

#: Words for the fates of boxes.
FATE_NAMES = {
    Fate.KEPT: 'kept',
    Fate.INVALID: 'invalid',
    Fate.SUPPRESSED: 'suppressed',
    Fate.BEYOND_LIMIT: 'beyond the limit',
}

#: Step -> the table of ``Rejection.counts`` in which no box fits any more.
_LOST_TABLE = {
    Step.ANCHORS: 1,
    Step.OBJECTNESS: 2,
    Step.SIZE: 2,
    Step.PROPOSAL_NMS: 3,
    Step.PROPOSAL_LIMIT: 3,
    Step.REFINEMENT: 5,
    Step.CLASSIFICATION: 5,
    Step.BOX_SIZE: 6,
    Step.DETECTION_NMS: 6,
    Step.DETECTION_LIMIT: 6,
    Step.ROUNDING: 6,
    Step.DETECTED: 7,
}


def draw_input(trace: Trace) -> Figure:
    """Draw the image beside the pixels that the network reads; a frame separates the resized image from padding."""
    window = np.array(trace.transform.window) + (0, 0, 1, 1)  # from centres to edges of pixels
    return feature_figures.draw_input(trace.image, viewable_input(trace.input, trace.config), window)


def draw_features(trace: Trace) -> Figure:
    """Draw the mean and the maximum over the channels of each feature map."""
    return feature_figures.draw_feature_maps(trace.level_names, trace.features)


def draw_channels(trace: Trace, level: int = 0, *, n: int = 16) -> Figure:
    """Draw the channels of a feature map with the highest variance.

    Args:
        trace: The steps.
        level: Index of the feature map; see ``trace.level_names``.
        n: Maximum number of channels.
    """
    features = trace.features[level]
    chosen = f'{min(n, len(features))} of {counted(len(features), "channel")}'
    title = f'{trace.level_names[level]}: the {chosen} with the most contrast'
    return feature_figures.draw_channels(features, n=n, title=title)


def draw_activations(trace: Trace, name: str, *, n: int = 16, index: int = 0) -> Figure:
    """Draw the channels of a layer's output with the highest variance.

    Args:
        trace: The steps, with the layer in ``layers`` of :func:`mask_rcnn.inspect.trace`.
        name: The name of the layer.
        n: Maximum number of channels.
        index: For layers of the heads, the RoI: in ``trace.rois`` for the box head, otherwise in
            ``trace.detections``.  For other layers, the number of the call, that is, of the feature map.

    Raises:
        ValueError: The trace does not contain the layer.
        IndexError: There is no such RoI or feature map.
    """
    if name not in trace.activations:
        raise ValueError(f'the trace does not contain the layer {name!r}; list it in the layers of trace()')
    arrays = trace.activations[name]
    if is_roi_layer(name):
        first = arrays[0].shape[1:]
        rows = np.concatenate([array for array in arrays if array.shape[1:] == first])
        kind = 'RoI' if name.startswith('box_head') else 'detection'
        array, place = rows[index], f', {kind} {index} of {len(rows)}'
    else:
        array = arrays[index][0]
        place = f', map {index} of {len(arrays)}' if len(arrays) > 1 else ''
    if array.ndim != 1 and array.ndim != 3:
        array = array.reshape(-1)
    size = ' x '.join(map(str, array.shape))
    return feature_figures.draw_channels(array, n=n, title=f'{name}{place}: {size}')


def is_roi_layer(name: str) -> bool:
    """Return whether a layer's output has a row for each RoI, because it belongs to a head."""
    return name.split('/')[0] in ('box_head', 'mask_head', 'keypoint_head')


def draw_anchors(trace: Trace, *, n: int = 20) -> Figure:
    """Draw the ``n`` anchors of each level with the highest objectness, and the anchors of one location."""
    boxes, scores, shapes = [], [], []
    for level in range(len(trace.level_names)):
        rows = np.flatnonzero(trace.anchors.levels == level)
        level_boxes = _input_corners(trace, trace.anchors.boxes[rows])
        boxes.append(level_boxes)
        scores.append(trace.probabilities(trace.anchors.scores[rows]))
        height, width = trace.features[level].shape[1:]
        cells = level_boxes.reshape(height, width, -1, 4)
        row, column = _central_cell(cells[:, :, 0], trace.image.shape[:2])
        shapes.append(cells[row, column])
    return anchor_figures.draw_anchors(trace.image, trace.level_names, boxes, scores, shapes, n=n)


def _central_cell(boxes: np.ndarray, size: Sequence[int]) -> tuple[int, int]:
    """Return the row and the column of the box ``(h, w, 4)`` whose centre is nearest to the image's centre."""
    centres = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2
    distances = ((centres - np.array(size) / 2) ** 2).sum(axis=2)
    row, column = divmod(int(distances.argmin()), boxes.shape[1])
    return row, column


def draw_objectness(trace: Trace) -> Figure:
    """Draw the objectness of each location, the maximum over its anchors, for each level."""
    maps, extents = [], []
    for level, stride in enumerate(trace.strides):
        height, width = trace.features[level].shape[1:]
        scores = trace.anchors.scores[trace.anchors.levels == level].reshape(height, width, -1)
        maps.append(trace.probabilities(scores.max(axis=2)))
        extents.append(trace.in_image(np.array([0, 0, height * stride, width * stride], np.float32)))
    return anchor_figures.draw_objectness(trace.image, trace.level_names, maps, extents)


def draw_proposals(trace: Trace, *, n: int = 40) -> Figure:
    """Draw the ``n`` best proposals before and after NMS, and the outcomes of the boxes that enter NMS."""
    table = trace.proposals
    return anchor_figures.draw_proposals(
        trace.image,
        _input_corners(trace, table.boxes),
        trace.probabilities(table.scores),
        [FATE_NAMES[fate] for fate in table.fates.tolist()],
        [trace.level_names[level] for level in table.levels.tolist()],
        n=n,
    )


def draw_roi_levels(trace: Trace, *, n: int = 40) -> Figure:
    """Draw the ``n`` best RoIs of each level from which RoIs are pooled, and the distribution of all sizes."""
    names = pooled_level_names(trace)
    return anchor_figures.draw_roi_levels(
        trace.image, names, _input_corners(trace, trace.rois.boxes), trace.rois.levels, n=n
    )


def pooled_level_names(trace: Trace) -> tuple[str, ...]:
    """Return the names of the levels from which RoIs are pooled: all but P6, which only has anchors."""
    return trace.level_names[:-1] if trace.config.has_fpn else trace.level_names


def draw_class_scores(trace: Trace, *, n: int = 6, n_rejected: int = 4) -> Figure:
    """Draw the class scores of the RoIs of the ``n`` best detections and of the best RoIs without a detection.

    The latter are the ``n_rejected`` RoIs with the highest scores of a class among those below the threshold.
    """
    detected = trace.candidates.rois[trace.candidate_of_detection][:n]
    titles = [describe_detection(trace, i) for i in range(len(detected))]
    probs = trace.rois.probs[:, 1:].max(axis=1, initial=0)
    below = np.setdiff1d(np.arange(len(trace.rois)), trace.candidates.rois)
    rejected = below[np.argsort(-probs[below], kind='stable')][:n_rejected]
    titles += [f'RoI {i}: rejected' for i in rejected.tolist()]
    rois = np.concatenate([detected, rejected]).astype(np.intp)
    return detection_figures.draw_class_scores(
        trace.image,
        _input_corners(trace, trace.rois.boxes[rois]),
        [best_classes(trace, i) for i in rois.tolist()],
        titles,
        threshold=trace.config.score_threshold,
    )


def describe_detection(trace: Trace, i: int) -> str:
    """Return the class and the score of a detection as a text of Matplotlib."""
    return f'{plot_name(trace.detections.names[i])} {trace.detections.scores[i]:.2f}'


def draw_refinement(trace: Trace, *, n: int = 12) -> Figure:
    """Draw the RoIs of the ``n`` best detections, dotted, and the boxes after their regression."""
    detections = trace.detections[:n]
    rois = trace.candidates.rois[trace.candidate_of_detection[:n]]
    return detection_figures.draw_refinement(
        trace.image,
        _input_corners(trace, trace.rois.boxes[rois]),
        _corners(trace, detections.boxes),
        [describe_detection(trace, i) for i in range(len(detections))],
        total=len(trace.detections),
    )


def draw_detection_nms(trace: Trace, *, n: int = 100) -> Figure:
    """Draw the boxes of the ``n`` best detections and those that they suppress, before and after NMS per class."""
    kept = trace.candidate_of_detection[:n]
    by = trace.candidates.suppressed_by
    suppressed = np.flatnonzero(np.isin(by, kept))
    owner_of = np.full(len(trace.candidates) + 1, -1)
    owner_of[kept] = np.arange(len(kept))
    return detection_figures.draw_suppression(
        trace.image,
        _corners(trace, trace.candidates.boxes[kept]),
        _corners(trace, trace.candidates.boxes[suppressed]),
        owner_of[by[suppressed]],
        [describe_detection(trace, i) for i in range(len(kept))],
        total=len(trace.detections),
    )


def draw_masks(trace: Trace, *, n: int = 8) -> Figure:
    """Draw the mask probabilities of the ``n`` best detections on their grids, and the pasted masks.

    Raises:
        ValueError: The network has no mask head, or there are no detections.
    """
    detections = trace.detections[:n]
    if detections.mask_probs is None:
        raise ValueError('the network has no mask head')
    if not len(detections):
        raise ValueError('the network detects nothing in this image')
    return feature_figures.draw_masks(
        trace.image,
        _corners(trace, detections.boxes),
        detections.mask_probs,
        list(detections.iter_masks()),
        [describe_detection(trace, i) for i in range(len(detections))],
        threshold=trace.config.dialect.masks.threshold,
    )


def draw_keypoints(trace: Trace, detection: int = 0) -> Figure:
    """Draw the heat maps of the keypoints of a detection, and the points that are decoded from them.

    Raises:
        ValueError: The network has no keypoint head.
        IndexError: There is no such detection.
    """
    if trace.heatmaps is None or trace.detections.keypoints is None:
        raise ValueError('the network has no keypoint head')
    detection = check_detection(trace, detection)
    keypoints = trace.detections.keypoints[detection]
    is_coco = len(keypoints) == len(COCO_KEYPOINT_NAMES)
    names = COCO_KEYPOINT_NAMES if is_coco else [f'keypoint {k}' for k in range(len(keypoints))]
    return feature_figures.draw_heatmaps(
        trace.image,
        trace.detections.boxes[detection],
        trace.heatmaps[detection],
        keypoints[:, :2],
        names,
        keypoints[:, 2] > MIN_KEYPOINT_LOGIT,
        text=describe_detection(trace, detection),
    )


def draw_why(trace: Trace, detection: int) -> Figure:
    """Draw the origin of a detection: its anchor, its proposal, its box, and the boxes that it suppresses.

    Args:
        trace: The steps.
        detection: Index of the detection.

    Raises:
        IndexError: There is no such detection.
    """
    origin = why(trace, detection)
    return reason_figures.draw_origin(
        trace.image,
        _input_corners(trace, trace.anchors.boxes[origin.anchor]),
        _input_corners(trace, trace.rois.boxes[origin.roi]),
        _corners(trace, origin.box),
        _corners(trace, trace.candidates.boxes[origin.suppressed]),
        origin.class_scores,
        text=describe_detection(trace, detection),
        threshold=trace.config.score_threshold,
    )


def draw_why_not(trace: Trace, box: Sequence[float], label: int | str, *, min_iou: float = 0.5) -> Figure:
    """Draw an expected object, and the step at which it was lost.

    The figure shows the best box of that step and the number of fitting boxes at each step.

    Args:
        trace: The steps.
        box: The expected box, ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        label: The expected class; see :func:`mask_rcnn.inspect.why_not`.
        min_iou: IoU with the expected box at or above which a box fits.

    Raises:
        ValueError: As :func:`mask_rcnn.inspect.why_not`.
        TypeError: As :func:`mask_rcnn.inspect.why_not`.
    """
    return draw_rejection(trace, why_not(trace, box, label, min_iou=min_iou))


def draw_rejection(trace: Trace, rejection: Rejection) -> Figure:
    """Draw the result of :func:`mask_rcnn.inspect.why_not`."""
    return reason_figures.draw_rejection(
        trace.image,
        _corners(trace, rejection.box),
        _best_box(trace, rejection),
        [(_plot_title(title, rejection.name), count, iou) for title, count, iou in rejection.counts],
        _LOST_TABLE[rejection.step],
        text=plot_name(rejection.name),
        suppressor=_suppressor(trace, rejection),
    )


def _plot_title(title: str, name: str) -> str:
    """Return the title of a table as a text of Matplotlib, with the name of the class in limited length."""
    return title.removeprefix('... ').replace(name, plot_name(name)) if name else title


def _best_box(trace: Trace, rejection: Rejection) -> np.ndarray | None:
    """Return the best box of the step at which an object was lost, as it is drawn."""
    i = rejection.index
    if i < 0:
        return None
    if rejection.table == 'rois':
        return _corners(trace, trace.rois.class_boxes[i, 1 + trace.class_names.index(rejection.name)])
    if rejection.table == 'proposals':
        return _input_corners(trace, trace.proposals.boxes[i])
    if rejection.table == 'anchors':
        return _input_corners(trace, trace.anchors.decoded[i])
    return _corners(trace, (trace.candidates if rejection.table == 'candidates' else trace.detections).boxes[i])


def _suppressor(trace: Trace, rejection: Rejection) -> np.ndarray | None:
    """Return the box because of which NMS suppressed an object, as it is drawn."""
    if rejection.step is Step.PROPOSAL_NMS:
        return _input_corners(trace, trace.proposals.boxes[trace.proposals.suppressed_by[rejection.index]])
    if rejection.step is Step.DETECTION_NMS:
        return _corners(trace, trace.candidates.boxes[trace.candidates.suppressed_by[rejection.index]])
    return None


def _input_corners(trace: Trace, boxes: np.ndarray) -> np.ndarray:
    """Return boxes ``(..., 4)`` of the network input in the image, with their outer corners, as they are drawn."""
    return trace.in_image(outer_corners(boxes, trace.config.dialect.boxes.offset))


def _corners(trace: Trace, boxes: np.ndarray) -> np.ndarray:
    """Return boxes ``(..., 4)`` of the image with their outer corners, as they are drawn."""
    return outer_corners(boxes, trace.config.dialect.boxes.offset)


def draw_detections(trace: Trace, *, min_score: float = 0.0) -> np.ndarray:
    """Draw the detections with scores above ``min_score`` on the image, which is upscaled if it is small.

    Returns:
        numpy.ndarray: ``(k * H, k * W, 3)`` uint8, RGB, with an integer ``k``.
    """
    detections = trace.detections.above(min_score)
    k = max(1, _MIN_SIDE // max(detections.size))
    if k == 1:
        return detections.draw(trace.image)
    enlarged = resize_detections(detections, (detections.size[0] * k, detections.size[1] * k))
    return enlarged.draw(trace.image.repeat(k, axis=0).repeat(k, axis=1))
