"""Mapping of boxes between an image and its network input in ONNX graphs; the last steps of their computation."""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.onnx_export.boxes import corners, of_both_corners
from mask_rcnn.onnx_export.graph import Tensor
from mask_rcnn.onnx_export.transform import GraphTransform


def apply_boxes(boxes: Tensor, transform: GraphTransform) -> Tensor:
    """Map boxes ``(R, 4)`` float32 from the image to the network input: ``ImageTransform.apply_boxes``."""
    return boxes * of_both_corners(transform.factors.cast(np.float32)) + of_both_corners(
        transform.origin.cast(np.float32)
    )


def invert_boxes(boxes: Tensor, transform: GraphTransform) -> Tensor:
    """Map boxes ``(R, 4)`` float32 from the network input to the image: ``ImageTransform.invert_boxes``."""
    return (boxes - of_both_corners(transform.origin.cast(np.float32))) / of_both_corners(
        transform.factors.cast(np.float32)
    )


def map_to_input(boxes: Tensor, transform: GraphTransform, dialect: Dialect) -> Tensor:
    """Return boxes of detections in pixels of the network input: the RoIs of the mask and keypoint heads.

    For the arguments, see :func:`map_to_image`.
    """
    return boxes if dialect.detections.postprocess_in_input_space else apply_boxes(boxes, transform)


def map_to_image(boxes: Tensor, transform: GraphTransform, dialect: Dialect) -> Tensor:
    """Return boxes of detections in pixels of the image: :func:`mask_rcnn.inference.predictor.map_to_image`.

    Args:
        boxes: ``(R, 4)`` float32, in pixels of the network input if the dialect has
            ``detections.postprocess_in_input_space``, otherwise in pixels of the image.
        transform: The image's transform.
        dialect: Provides ``detections.postprocess_in_input_space``, ``detections.clip_to_original`` and
            ``input.box_factors``.
    """
    if dialect.detections.postprocess_in_input_space:
        if dialect.input.box_factors == 'side_ratios':
            inverse = (1 / transform.factors).cast(np.float32)
            boxes = (boxes - of_both_corners(transform.origin.cast(np.float32))) * of_both_corners(inverse)
        else:
            boxes = invert_boxes(boxes, transform)
    if dialect.detections.clip_to_original:
        boxes = boxes.maximum(0).minimum(of_both_corners(transform.size.cast(np.float32)))
    return boxes


def finish_boxes(boxes: Tensor, dialect: Dialect) -> Tensor:
    """Round the corners of boxes ``(R, 4)`` float32 if the dialect has ``detections.integer_boxes``.

    See :func:`mask_rcnn.inference.predictor.finish_boxes`.
    """
    if not dialect.detections.integer_boxes:
        return boxes
    return boxes.graph.op('Round', boxes + np.array([0, 0, 1, 1]))


def has_area(boxes: Tensor) -> Tensor:
    """Return a mask ``(R,)`` of the boxes ``(R, 4)`` whose height and width are positive."""
    low, high = corners(boxes)
    is_longer = high > low
    return is_longer.take(0, axis=1) & is_longer.take(1, axis=1)
