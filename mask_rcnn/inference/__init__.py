"""Inference with a network: the predictor, its detections, their tracking in videos, and saving the network."""

from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.predictor import Predictor, RawDetections
from mask_rcnn.inference.save import model_meta, save
from mask_rcnn.inference.tracking import Tracker

__all__ = ['Detections', 'Predictor', 'RawDetections', 'Tracker', 'model_meta', 'save']
