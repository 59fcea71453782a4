"""How good detections are: COCO's metrics."""

from mask_rcnn.evaluation.coco import COCOEvaluator, KEYPOINT_METRIC_NAMES, METRIC_NAMES, Metrics, evaluate_model

__all__ = ['COCOEvaluator', 'KEYPOINT_METRIC_NAMES', 'METRIC_NAMES', 'Metrics', 'evaluate_model']
