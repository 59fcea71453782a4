"""Matching of RoIs with the objects of an image (``detectron/datasets/json_dataset.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.ops.boxes.boxes import box_iou


@dataclass(frozen=True)
class Candidates:
    """The RoIs of one image that can be sampled for training: the ground truth boxes and the proposals.

    Args:
        boxes: ``(K, 4)`` float32 in pixels of the original image.
        iou: ``(K,)`` float32 best IoU with an object or crowd region; -1 for a crowd region itself.
        gt_index: ``(K,)`` int index of that object or crowd region; -1 if nothing overlaps.
        labels: ``(K,)`` int32: 1 + the label of that object; 0 if nothing overlaps, and for a crowd region itself.
    """

    boxes: np.ndarray
    iou: np.ndarray
    gt_index: np.ndarray
    labels: np.ndarray


def match_rois(boxes: np.ndarray, annotations: Annotations, *, offset: float) -> Candidates:
    """Prepend the ground truth boxes to the proposals and match each box with an object.

    Crowd regions are included: a RoI whose best match is a crowd region gets the region's class
    (``_merge_proposal_boxes_into_roidb``).

    Args:
        boxes: ``(P, 4)`` float32 proposals in pixels of the original image.
        annotations: The image's objects.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.
    """
    crowd, gt_labels = annotations.crowd, annotations.labels + np.int32(1)
    gt_iou = np.where(crowd, -1, 1).astype(np.float32)
    iou, gt_index = np.zeros(len(boxes), np.float32), np.full(len(boxes), -1)
    if len(crowd) and len(boxes):
        overlaps = box_iou(boxes, annotations.boxes, offset=offset)
        best = overlaps.argmax(axis=1)
        iou = overlaps[np.arange(len(boxes)), best]  # a maximum along a short axis is slow
        gt_index = np.where(iou > 0, best, -1)
    labels = np.append(gt_labels, np.int32(0))[gt_index]  # index -1 reads the appended 0
    return Candidates(
        boxes=np.concatenate([annotations.boxes, boxes]),
        iou=np.concatenate([gt_iou, iou]),
        gt_index=np.concatenate([np.arange(len(crowd)), gt_index]),
        labels=np.concatenate([np.where(crowd, 0, gt_labels), labels]).astype(np.int32),
    )
