"""Matching of RoIs with the objects of an image (``detectron/datasets/json_dataset.py``)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.preprocessing.image_transform import ImageTransform


@dataclass(frozen=True)
class Candidates:
    """The RoIs of one image that can be sampled for training: the ground truth boxes and the proposals.

    Args:
        boxes: ``(K, 4)`` float32 in the coordinates in which RoIs are matched: those of the original image or, with
            ``training.match_in_input``, of the network input.
        iou: ``(K,)`` float32 best IoU with an object or crowd region; -1 for a crowd region itself.
        gt_index: ``(K,)`` int index of that object or crowd region; -1 if nothing overlaps.
        labels: ``(K,)`` int32: 1 + the label of that object; 0 if nothing overlaps, and for a crowd region itself.
    """

    boxes: np.ndarray
    iou: np.ndarray
    gt_index: np.ndarray
    labels: np.ndarray


def match_proposals(
    proposals: np.ndarray, annotations: Annotations, transform: ImageTransform, *, dialect: Dialect
) -> Candidates:
    """Match proposals with the objects of an image in the coordinates of the dialect; see :func:`match_rois`.

    Args:
        proposals: ``(P, 4)`` float32 boxes in the network input.
        annotations: The image's objects.
        transform: Maps the original image to the network input.
        dialect: Provides ``boxes.offset`` and ``training.match_in_input``.
    """
    if dialect.training.match_in_input:
        objects = dataclasses.replace(annotations, boxes=transform.apply_boxes(annotations.boxes))
        return match_rois(proposals, objects, offset=dialect.boxes.offset)
    boxes = transform.invert_boxes(proposals, reciprocal=True)
    return match_rois(boxes, annotations, offset=dialect.boxes.offset)


def match_rois(boxes: np.ndarray, annotations: Annotations, *, offset: float) -> Candidates:
    """Prepend the ground truth boxes to the proposals and match each box with an object.

    Crowd regions are included: a RoI whose best match is a crowd region gets the region's class
    (``_merge_proposal_boxes_into_roidb``).

    Args:
        boxes: ``(P, 4)`` float32 proposals.
        annotations: The image's objects, with boxes in the coordinates of the proposals.
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
