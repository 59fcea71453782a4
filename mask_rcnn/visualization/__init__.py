"""Drawing of detections on images."""

from mask_rcnn.visualization.drawing import BACKDROPS, draw_detections
from mask_rcnn.visualization.labels import load_font

__all__ = ['BACKDROPS', 'draw_detections', 'load_font']
