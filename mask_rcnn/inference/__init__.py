"""Inference with a network: the predictor, its detections, and saving the network."""

from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import Predictor, RawDetections
from mask_rcnn.inference.save import model_meta, save

__all__ = ['Detections', 'Predictor', 'RawDetections', 'model_meta', 'save']
