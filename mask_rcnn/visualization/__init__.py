"""Drawing of detections on images."""

from mask_rcnn.visualization.backdrops import BACKDROPS
from mask_rcnn.visualization.drawing import LABELS, draw_detections
from mask_rcnn.visualization.labels import load_font

__all__ = ['BACKDROPS', 'LABELS', 'draw_detections', 'load_font']
