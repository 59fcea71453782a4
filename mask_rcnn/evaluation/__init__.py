"""How good detections are: COCO's metrics."""

from mask_rcnn.evaluation.coco import METRIC_NAMES, COCOEvaluator, Metrics, evaluate_model

__all__ = ['COCOEvaluator', 'METRIC_NAMES', 'Metrics', 'evaluate_model']
