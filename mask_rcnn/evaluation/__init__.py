"""Evaluation of detections with COCO's metrics."""

from mask_rcnn.evaluation.coco import KEYPOINT_METRIC_NAMES, METRIC_NAMES, COCOEvaluator, Metrics, evaluate_model

__all__ = ['KEYPOINT_METRIC_NAMES', 'METRIC_NAMES', 'COCOEvaluator', 'Metrics', 'evaluate_model']
