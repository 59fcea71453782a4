"""Mask R-CNN on Chainer and CuPy that loads Detectron's weights and finds what Detectron found.

    import mask_rcnn

    model = mask_rcnn.load('modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz')
    detections, = model.detect(['photo.jpg'])

Importing this package makes Chainer and ChainerCV importable (:mod:`mask_rcnn.compat`).
"""

from mask_rcnn import compat

compat.install()

from mask_rcnn.config import DETECTRON, MATTERPORT, PRESETS, Config, Dialect
from mask_rcnn.inference import Detections, save
from mask_rcnn.models import MaskRCNN, build, load

__version__ = '0.1.0'

__all__ = ['DETECTRON', 'MATTERPORT', 'PRESETS', 'Config', 'Detections', 'Dialect', 'MaskRCNN', 'build', 'load', 'save']
