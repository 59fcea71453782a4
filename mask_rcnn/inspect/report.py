"""A report on every step of the detection in one image, which explains the network on the way."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mask_rcnn.config import VISUALIZE_SCORE_THRESHOLD
from mask_rcnn.inspect import figures
from mask_rcnn.inspect.reasons import Origin, why
from mask_rcnn.inspect.tables import Fate, Trace
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import format_box
from mask_rcnn.visualization.html_report import Report

#: Maximum number of detections with a figure of their origin, of rows of a table, and of objects with heat maps.
MAX_REASONS, _MAX_ROWS, _MAX_HEATMAPS = 10, 20, 3


def make_report(trace: Trace, title: str) -> Report:
    """Return a report on the steps of a detection, in the order of the network.

    It contains tables, figures and an explanation of every step, the layers of ``trace.activations``, and the origin of
    the ten best detections.  It takes some seconds and, as a file, a few megabytes.

    Args:
        trace: The steps.
        title: The title, usually the name of the image.
    """
    report = Report(title)
    _add_summary(report, trace)
    _add_input(report, trace)
    _add_features(report, trace)
    _add_anchors(report, trace)
    _add_proposals(report, trace)
    _add_rois(report, trace)
    _add_classification(report, trace)
    _add_refinement(report, trace)
    _add_nms(report, trace)
    if trace.config.masks:
        _add_masks(report, trace)
    if trace.config.n_keypoint:
        _add_keypoints(report, trace)
    for name in trace.activations:
        _add_layer(report, trace, name)
    _add_reasons(report, trace)
    return report


def _add_summary(report: Report, trace: Trace) -> None:
    config, detections = trace.config, trace.detections
    height, width = trace.image.shape[:2]
    report.add_heading('Overview')
    report.add_text(
        'Mask R-CNN detects objects in two stages. The first stage, the region proposal network (RPN), proposes boxes '
        'that may contain an object of any class. The second stage classifies each proposal, regresses its box, and '
        'predicts its mask. This page follows one image through all steps.'
    )
    counts = Counter(detections.names).most_common(_MAX_ROWS)
    listed = ', '.join(f'{count} {name}' for name, count in counts)
    n_drawn = int(np.count_nonzero(detections.scores > VISUALIZE_SCORE_THRESHOLD))
    # A network that is unsure of everything still has a picture.
    threshold = VISUALIZE_SCORE_THRESHOLD if n_drawn else 0.0
    caption = f'{counted(len(detections), "detection")}: {listed}.' if listed else 'There are no detections.'
    if 0 < n_drawn < len(detections):
        caption = f'{counted(n_drawn, "detection")} with a score above {threshold:g}. All {caption}'
    report.add_figure(figures.draw_detections(trace, min_score=threshold), caption)
    kept = int(np.count_nonzero(trace.proposals.fates == Fate.KEPT))
    n_classes = counted(config.n_fg_class, 'class', 'classes')
    rows = [
        ('image', f'{width} x {height} pixels'),
        ('network', f'{config.extractor}, dialect {config.dialect.name}, {n_classes}'),
        ('anchors', len(trace.anchors)),
        ('proposals before NMS', len(trace.proposals)),
        ('RoIs: proposals after NMS', kept),
        ('boxes with a sufficient score', len(trace.candidates)),
        ('detections', len(detections)),
    ]
    report.add_table(['step', 'number'], rows)


def _add_input(report: Report, trace: Trace) -> None:
    config, transform = trace.config, trace.transform
    height, width = trace.input.shape[1:]
    window = transform.window[2] - transform.window[0] + 1, transform.window[3] - transform.window[1] + 1
    padding = '' if window == (height, width) else f'It is then padded to {width} x {height} pixels. '
    report.add_heading('Input')
    report.add_text(
        f'The image is resized by the factor {transform.scale:.3f}: the shorter side to {config.min_size} pixels, '
        f'unless the longer side would exceed {config.max_size}. {padding}The mean colour is subtracted, and the '
        'values are divided by the standard deviation of the channels.'
    )
    caption = 'The image, and the network input with the mean colour added again.'
    if padding:
        caption += ' The dashed frame separates the resized image from padding.'
    report.add_figure(figures.draw_input(trace), caption)
    conventions = config.dialect.input
    report.add_table(
        ['convention', 'value'],
        [
            ('order of the channels', conventions.channel_order),
            ('mean of the channels', ', '.join(f'{value:g}' for value in conventions.pixel_mean)),
            ('standard deviation', ', '.join(f'{value:g}' for value in conventions.pixel_std)),
        ],
    )


def _add_features(report: Report, trace: Trace) -> None:
    report.add_heading('Backbone and feature maps')
    text = f'The backbone, {trace.config.backbone}, is a network for image classification. It turns the pixels into '
    if trace.config.has_fpn:
        text += (
            'maps of features, which become coarser and more abstract from stage to stage. The feature pyramid (FPN) '
            'adds the coarse maps to the fine ones, so that each level combines abstract features with exact '
            'positions: P2 is for small objects, P6 for large ones.'
        )
    else:
        text += 'one map of features, C4, which all following steps read; objects of all sizes share it.'
    report.add_text(text)
    rows = [
        (name, stride, ' x '.join(map(str, features.shape)))
        for name, stride, features in zip(trace.level_names, trace.strides, trace.features, strict=True)
    ]
    report.add_table(['level', 'input pixels per location', 'channels x height x width'], rows)
    report.add_figure(
        figures.draw_features(trace),
        'Mean and maximum over the channels; violet is the lowest and yellow the highest value of each map. A map that '
        'differs only at its border contains little information: the difference comes from the zero padding.',
    )
    level = min(1, len(trace.features) - 1)
    report.add_figure(figures.draw_channels(trace, level), 'Single channels react to different patterns.')


def _add_anchors(report: Report, trace: Trace) -> None:
    config = trace.config
    report.add_heading('Anchors')
    ratios = ', '.join(f'{ratio:g}' for ratio in config.anchor_ratios)
    report.add_text(
        'The RPN places anchors, boxes of fixed shapes, at each location of the feature maps. Their ratios of height '
        f'and width are {ratios}. For each anchor it estimates the objectness, the probability that the anchor '
        'contains an object of any class, and how the anchor must be moved and resized to fit that object.'
    )
    sizes = [f'{size:g}' for size in config.anchor_sizes]
    rows = []
    for level, name in enumerate(trace.level_names):
        scores = trace.probabilities(trace.anchors.scores[trace.anchors.levels == level])
        size = sizes[level] if config.has_fpn else ', '.join(sizes)
        likely = int(np.count_nonzero(scores >= 0.5))
        rows.append((name, size, len(scores), float(scores.max(initial=0)), likely))
    report.add_table(['level', 'sizes (input pixels)', 'anchors', 'best objectness', 'objectness >= 0.5'], rows)
    report.add_figure(
        figures.draw_anchors(trace), 'The anchors of one location, and the best anchors of each level by objectness.'
    )
    report.add_figure(
        figures.draw_objectness(trace),
        'The objectness of each location: the maximum over its anchors. Bright locations are likely to be objects.',
    )


def _add_proposals(report: Report, trace: Trace) -> None:
    config, table = trace.config, trace.proposals
    report.add_heading('Proposals')
    scope = ''
    if config.has_fpn:
        scope = ' of each level' if config.dialect.rpn.proposals_per_level else ' of all levels'
    report.add_text(
        f'The {config.rpn_pre_nms} anchors{scope} with the highest objectness are moved to the objects and become '
        'proposals. Many of them show the same object. Non-maximum suppression (NMS) keeps the best one and drops '
        f'those whose IoU (intersection over union) with it is {_at_threshold(trace, config.rpn_nms_threshold)}, and '
        f'so on with the next best. At most {config.rpn_post_nms} remain.'
    )
    rows = []
    for level, name in enumerate(trace.level_names):
        counts = Counter(table.fates[table.levels == level].tolist())
        rows.append((name, sum(counts.values()), *(counts[fate] for fate in figures.FATE_NAMES)))
    total = Counter(table.fates.tolist())
    rows.append(('all', len(table), *(total[fate] for fate in figures.FATE_NAMES)))
    report.add_table(['level', 'before NMS', *figures.FATE_NAMES.values()], rows)
    report.add_figure(
        figures.draw_proposals(trace),
        'Proposals before NMS (dotted) and after it (solid), and their outcomes: invalid boxes are too small or '
        'lie outside the image, and boxes beyond the limit have a lower objectness than enough others.',
    )


def _add_rois(report: Report, trace: Trace) -> None:
    config = trace.config
    report.add_heading('Regions of interest')
    text = (
        'Each remaining proposal is a region of interest (RoI). RoIAlign pools its features from a feature map: it '
        f'interpolates them on a grid of {config.roi_size} x {config.roi_size}, whatever the size of the RoI. '
    )
    if config.has_fpn:
        text += (
            'Large RoIs are pooled from coarse levels, small ones from fine levels: each level is for RoIs that are '
            'twice as large as those of the level before.'
        )
    report.add_text(text)
    names = figures.pooled_level_names(trace)
    counts = np.bincount(trace.rois.levels, minlength=len(names)).tolist()
    report.add_table(['pooled from', 'RoIs'], list(zip(names, counts, strict=False)))
    report.add_figure(figures.draw_roi_levels(trace), 'The sizes of all RoIs, and the best RoIs of each level.')


def _add_classification(report: Report, trace: Trace) -> None:
    config = trace.config
    report.add_heading('Classification')
    inclusive = config.dialect.detections.score_threshold_inclusive
    bound = f'{"of at least" if inclusive else "above"} {config.score_threshold:g}'
    report.add_text(
        'The box head estimates the class of each RoI: probabilities of all classes and of the background, whose sum '
        f'is 1. Pairs of an RoI and a class with a probability {bound} enter NMS; most RoIs are background.'
    )
    best = trace.rois.probs.argmax(axis=1)
    names = ('background', *trace.class_names)
    counts = Counter(names[i] for i in best.tolist())
    rows = counts.most_common(_MAX_ROWS)
    report.add_table(['class with the highest probability', 'RoIs'], rows)
    if len(counts) > len(rows):
        n_left = counted(len(counts) - len(rows), 'other class is', 'other classes are')
        report.add_text(f'{n_left} not listed.')
    if len(trace.rois):
        report.add_figure(
            figures.draw_class_scores(trace),
            'The RoIs of the best detections, and the best RoIs that are rejected because no class reaches the '
            'threshold (dashed line). Crops of dark images are brightened.',
        )


def _add_refinement(report: Report, trace: Trace) -> None:
    report.add_heading('Box refinement')
    report.add_text(
        'The box head also regresses the box of each RoI, separately for each class, from the features of the whole '
        'RoI, while the RPN regresses an anchor from the features around one location.'
    )
    if not _has_detections(report, trace):
        return
    report.add_figure(
        figures.draw_refinement(trace),
        'RoIs (dotted) of the best detections and their refined boxes (solid); arrows lead from the old to the new '
        'centre.',
    )


def _add_nms(report: Report, trace: Trace) -> None:
    config, table = trace.config, trace.candidates
    report.add_heading('Detections')
    remain = counted(config.max_detections, 'detection remains', 'detections remain')
    limit = f'At most {remain}.' if config.max_detections else ''
    report.add_text(
        'Several RoIs usually contain the same object. NMS, now within each class, keeps the box with the highest '
        f'score and drops those whose IoU with it is {_at_threshold(trace, config.nms_threshold)}. {limit}'
    )
    counts = Counter(table.fates.tolist())
    report.add_table(
        ['boxes', *figures.FATE_NAMES.values()], [(len(table), *(counts[fate] for fate in figures.FATE_NAMES))]
    )
    if not _has_detections(report, trace):
        return
    report.add_figure(
        figures.draw_detection_nms(trace), 'The boxes of the best detections, and those that they suppress.'
    )
    rows = []
    for i in range(min(len(trace.detections), _MAX_ROWS)):
        origin = why(trace, i)
        best = f'{origin.suppressed_scores[0]:.3f}' if len(origin.suppressed) else '-'
        rows.append((i, origin.name, f'{origin.score:.3f}', format_box(origin.box), len(origin.suppressed), best))
    report.add_table(['detection', 'class', 'score', 'box x0,y0,x1,y1', 'suppresses', 'best of them'], rows)
    _add_rest(report, len(rows), len(trace.detections))


def _add_masks(report: Report, trace: Trace) -> None:
    conventions = trace.config.dialect.masks
    report.add_heading('Masks')
    report.add_text(
        'For each detection, the mask head estimates on a small grid over the box which locations belong to the '
        'object. The grid is resized to the box in the image, and pixels with a probability '
        f'{"of at least" if conventions.threshold_inclusive else "above"} {conventions.threshold:g} form the mask.'
    )
    if not _has_detections(report, trace):
        return
    report.add_figure(
        figures.draw_masks(trace),
        f'The best of {counted(len(trace.detections), "mask")}: probabilities with the contour at the threshold '
        '(white), and the mask in the image. Crops of dark images are brightened.',
    )


def _add_keypoints(report: Report, trace: Trace) -> None:
    report.add_heading('Keypoints')
    report.add_text(
        f'For each detection, the keypoint head computes {counted(trace.config.n_keypoint, "heat map")} over the box. '
        'The place with the highest value is the keypoint.'
    )
    if not _has_detections(report, trace):
        return
    n = min(len(trace.detections), _MAX_HEATMAPS)
    for i in range(n):
        report.add_figure(
            figures.draw_keypoints(trace, i),
            f'Detection {i} of {len(trace.detections)}: heat maps and decoded points; names in parentheses: the '
            'confidence is too low for a picture.',
        )
    _add_rest(report, n, len(trace.detections))


def _add_layer(report: Report, trace: Trace, name: str) -> None:
    report.add_heading(f'Layer {name}')
    arrays = trace.activations[name]
    shapes = Counter(' x '.join(map(str, array.shape)) for array in arrays)
    report.add_table(['shape', 'arrays'], shapes.most_common(_MAX_ROWS))
    if not arrays or not all(array.size for array in arrays):
        report.add_text('The layer has no values for this image.')
        return
    maps = 1 if figures.is_roi_layer(name) else min(len(arrays), len(trace.strides))
    for index in range(maps):
        report.add_figure(figures.draw_activations(trace, name, index=index), 'The channels with the most contrast.')


def _add_reasons(report: Report, trace: Trace) -> None:
    report.add_heading('Origins of the best detections')
    report.add_text(
        'Every detection comes from one RoI, one proposal and one anchor. Arrows lead from the centre of the anchor '
        'to that of the proposal, and to that of the detection.'
    )
    if not _has_detections(report, trace):
        return
    n = min(len(trace.detections), MAX_REASONS)
    for i in range(n):
        origin = why(trace, i)
        report.add_heading(f'Detection {i}: {origin.name} {origin.score:.3f}', level=3)
        report.add_text(_describe_origin(origin))
        report.add_figure(figures.draw_why(trace, i), f'The origin of detection {i}.')
    _add_rest(report, n, len(trace.detections))


def _describe_origin(origin: Origin) -> str:
    row, column = origin.anchor_cell
    text = (
        f'The anchor at row {row}, column {column} of {origin.anchor_level} has the '
        f'objectness {origin.objectness:.3f}, rank {origin.anchor_rank} of {origin.n_anchors}. Its proposal is RoI '
        f'{origin.roi}, whose features come from {origin.roi_level}. The detection has the box {format_box(origin.box)}'
    )
    n = len(origin.suppressed)
    return f'{text} and suppresses {counted(n, "other box", "other boxes")}.' if n else f'{text}.'


def _at_threshold(trace: Trace, threshold: float) -> str:
    """Return the words for an IoU with which NMS suppresses a box."""
    return f'{"at least" if trace.config.dialect.boxes.nms_suppress_equal else "above"} {threshold:g}'


def _has_detections(report: Report, trace: Trace) -> bool:
    """Return whether there are detections; adds a sentence if there are none."""
    if not len(trace.detections):
        report.add_text('There are no detections.')
    return len(trace.detections) > 0


def _add_rest(report: Report, n_shown: int, n: int) -> None:
    """Add a sentence on what is left out."""
    if n > n_shown:
        report.add_text(f'{counted(n - n_shown, "other detection is", "other detections are")} not shown.')
