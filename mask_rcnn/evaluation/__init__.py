"""Evaluation of detections with COCO's metrics."""

from mask_rcnn.evaluation.coco import COCOEvaluator, evaluate_model
from mask_rcnn.evaluation.metrics import KEYPOINT_METRIC_NAMES, METRIC_NAMES, Metrics

__all__ = ['KEYPOINT_METRIC_NAMES', 'METRIC_NAMES', 'COCOEvaluator', 'Metrics', 'evaluate_model']
