"""Detection with a trained network: loading, prediction, results, saving."""

from mask_rcnn.inference.detections import Detections
from mask_rcnn.inference.load import load
from mask_rcnn.inference.save import save

__all__ = ['Detections', 'load', 'save']
