"""Every step of the detection in one image, as the network computes it.

:func:`trace` runs the network once, with the code of :meth:`mask_rcnn.MaskRCNN.detect`, and lists all boxes of every
step with their fates (:mod:`mask_rcnn.inspect.tables`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.inference.image_lists import load_listed_image
from mask_rcnn.inference.predictor import Predictor, drops_empty_boxes, finish_boxes, has_area, map_to_image
from mask_rcnn.inspect.layers import LayerRecorder, check_layers, on_cpu
from mask_rcnn.inspect.tables import Anchors, DetectionCandidates, Fate, ProposalCandidates, RoIs, Trace
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.boxes.nms import find_suppressors
from mask_rcnn.ops.boxes.proposals import NMSRecord, ProposalDecoding, as_rows, generate_proposals, select_detections
from mask_rcnn.preprocessing.image_io import to_pixels
from mask_rcnn.preprocessing.image_transform import ImageTransform


def trace(model: MaskRCNN, image: str | os.PathLike | np.ndarray, *, layers: Iterable[str] = ()) -> Trace:
    """Detect objects in one image and return every step.

    The detections equal those of ``model.detect([image])`` on the CPU to the bit.  A model on a GPU is copied to the
    CPU.

    Args:
        model: The network, on the CPU or a GPU; it is not changed.
        image: File name or array; see :meth:`mask_rcnn.MaskRCNN.detect`.
        layers: Names of the layers whose outputs are kept; see :func:`mask_rcnn.inspect.layer_names`.

    Raises:
        ValueError: A layer does not exist, or the array is not an image.
        TypeError: The layers are not a list of names, or the model is not a network.
        mask_rcnn.preprocessing.image_io.ImageFileError: The image file cannot be read.
    """
    network = on_cpu(model)
    config, layers = network.config, check_layers(layers)
    pixels = load_listed_image(image, check_finite=True, apply_orientation=config.dialect.input.apply_orientation)
    with LayerRecorder(network, {*_PARTS.intersection(_children(network)), *layers}) as recorder:
        (detections,) = network.detect([pixels])
    x, transform = Predictor(network).prepare(pixels)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), np.errstate(all='ignore'):
        anchors, proposals = _trace_rpn(network, recorder.output('rpn'), x.shape[2:], transform)
        features = recorder.output('extractor')
        rois, candidates = _trace_box_head(network, recorder, features, proposals, transform)
    return Trace(
        image=to_pixels(pixels),
        transform=transform,
        input=x[0],
        config=config,
        strides=network.rpn.strides,
        features=tuple(level[0] for level in features),
        anchors=anchors,
        proposals=proposals,
        rois=rois,
        candidates=_drop_empty(candidates, config.dialect),
        detections=detections,
        heatmaps=np.concatenate(recorder.output('keypoint_head')) if config.n_keypoint else None,
        layer_shapes=recorder.shapes,
        activations={name: recorder.output(name) for name in layers},
    )


_PARTS = frozenset({'extractor', 'rpn', 'box_head', 'keypoint_head'})


def _children(network: chainer.Chain) -> set[str]:
    return {child.name for child in network.children() if child.name is not None}


def _trace_rpn(
    network: MaskRCNN, outputs: tuple[np.ndarray, ...], size: tuple[int, ...], transform: ImageTransform
) -> tuple[Anchors, ProposalCandidates]:
    """Repeat the selection of proposals with the recorded outputs of the RPN, and list its candidates."""
    n_levels = len(network.rpn.strides)
    logits, deltas = [a[0] for a in outputs[:n_levels]], [a[0] for a in outputs[n_levels:]]
    inputs = network.rpn.selection_inputs(logits, deltas, size, transform)
    records: list[NMSRecord] = []
    generate_proposals(**inputs, record=records)
    anchors = _list_anchors(inputs)
    (record,) = records
    levels = anchors.levels[record.indices]
    suppressed_by = _suppressors(
        record,
        inputs['nms_threshold'],
        offset=inputs['offset'],
        groups=levels if inputs['per_level'] else None,
        suppress_equal=inputs['suppress_equal'],
        shift=inputs['shift'],
    )
    rois = _invert(record.keep, len(levels))
    candidates = ProposalCandidates(
        anchors=record.indices,
        boxes=record.boxes,
        scores=record.scores,
        levels=levels,
        fates=_fates(rois >= 0, record.is_valid, suppressed_by),
        suppressed_by=suppressed_by,
        rois=rois,
    )
    return anchors, candidates


def _list_anchors(inputs: Mapping[str, Any]) -> Anchors:
    """Return all anchors with the outputs of the RPN, from the arguments of the selection of proposals."""
    levels = [as_rows(*level) for level in zip(inputs['scores'], inputs['deltas'], inputs['anchors'], strict=True)]
    scores, boxes, deltas = (np.concatenate(arrays) for arrays in zip(*levels, strict=True))
    decode = ProposalDecoding(**{f.name: inputs[f.name] for f in dataclasses.fields(ProposalDecoding)})
    return Anchors(
        boxes=boxes,
        deltas=deltas,
        scores=scores,
        levels=np.repeat(np.arange(len(levels), dtype=np.int32), [len(level[0]) for level in levels]),
        decoded=decode(boxes, deltas)[0],
    )


def _trace_box_head(
    network: MaskRCNN,
    recorder: LayerRecorder,
    features: tuple[np.ndarray, ...],
    proposals: ProposalCandidates,
    transform: ImageTransform,
) -> tuple[RoIs, DetectionCandidates]:
    """Repeat the selection of detections with the recorded outputs of the box head, and list its candidates."""
    head = network.box_head
    order = np.flatnonzero(proposals.rois >= 0)
    order = order[np.argsort(proposals.rois[order])]
    boxes = proposals.boxes[order]
    calls = recorder.outputs['box_head']
    probs = np.concatenate([F.softmax(scores.astype(np.float32, copy=False)).array for scores, _ in calls])
    deltas = np.concatenate([deltas.astype(np.float32, copy=False) for _, deltas in calls])
    class_boxes = head.class_boxes(boxes, deltas, transform)
    records: list[NMSRecord] = []
    options = {'offset': network.config.dialect.boxes.offset, **head.selection_options()}
    selected = select_detections(probs, class_boxes, **options, record=records)
    (record,) = records
    rois, classes = np.divmod(record.indices, probs.shape[1])
    labels = (classes - 1).astype(np.int32)
    kept = record.keep[: len(selected[0])]  # beyond the limit there are only lower scores
    suppressed_by = _suppressors(
        record,
        options['nms_threshold'],
        offset=options['offset'],
        groups=labels,
        suppress_equal=options['suppress_equal'],
        shift=options['shift'],
    )
    detections = _invert(kept, len(labels))
    dialect = network.config.dialect
    candidates = DetectionCandidates(
        rois=rois,
        labels=labels,
        boxes=map_to_image(record.boxes, transform, dialect),
        scores=record.scores,
        fates=_fates(detections >= 0, record.is_valid, suppressed_by),
        suppressed_by=suppressed_by,
        detections=detections,
    )
    table = RoIs(
        boxes=boxes,
        candidates=order,
        levels=head.pool.levels(features, boxes),
        probs=probs,
        class_boxes=map_to_image(class_boxes.reshape(-1, 4), transform, dialect).reshape(*probs.shape, 4),
    )
    return table, candidates


def _drop_empty(candidates: DetectionCandidates, dialect: Dialect) -> DetectionCandidates:
    """Mark the candidates that the postprocessing drops because their boxes are empty after clipping or rounding."""
    if not drops_empty_boxes(dialect):
        return candidates
    rows = np.flatnonzero(candidates.detections >= 0)
    rows = rows[np.argsort(candidates.detections[rows])]
    has_pixels = has_area(finish_boxes(candidates.boxes[rows], dialect))
    fates = candidates.fates.copy()
    fates[rows[~has_pixels]] = Fate.INVALID
    return dataclasses.replace(candidates, fates=fates, detections=_invert(rows[has_pixels], len(candidates)))


def _suppressors(record: NMSRecord, threshold: float, *, groups: np.ndarray | None, **options: Any) -> np.ndarray:
    """Return the index of the candidate that suppresses each candidate of a run of NMS, ``(C,)`` int64; -1 for none.

    Args:
        record: The run of NMS.
        threshold: IoU threshold of suppression.
        groups: ``(C,)`` group of each candidate, or ``None``.
        **options: Options of :func:`mask_rcnn.ops.boxes.nms.find_suppressors`.
    """
    suppressed_by = np.full(len(record.boxes), -1, np.int64)
    rows = np.flatnonzero(record.is_valid)
    found = find_suppressors(
        record.boxes[rows],
        record.scores[rows],
        _invert(rows, len(record.boxes))[record.keep],
        threshold,
        groups=None if groups is None else groups[rows],
        **options,
    )
    is_suppressed = found >= 0
    suppressed_by[rows[is_suppressed]] = rows[found[is_suppressed]]
    return suppressed_by


def _fates(is_kept: np.ndarray, is_valid: np.ndarray, suppressed_by: np.ndarray) -> np.ndarray:
    fates = np.full(len(is_kept), Fate.BEYOND_LIMIT, np.int8)
    fates[suppressed_by >= 0] = Fate.SUPPRESSED
    fates[~is_valid] = Fate.INVALID
    fates[is_kept] = Fate.KEPT
    return fates


def _invert(rows: np.ndarray, n: int) -> np.ndarray:
    """Return the position of each of ``n`` indices in ``rows``, or -1."""
    positions = np.full(n, -1, np.int64)
    positions[rows] = np.arange(len(rows))
    return positions
