"""Mask R-CNN on Chainer and CuPy: reproduces the detections of other programs with their weights.

The programs are Detectron, torchvision, detectron2, Matterport's Mask R-CNN with its PyTorch ports, MindSpore, and
DeNA's Chainer_Mask_R-CNN.

    import mask_rcnn

    model = mask_rcnn.load('modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz')
    detections, = model.detect(['photo.jpg'])

After ``import mask_rcnn``, ``import chainer`` and ``import chainercv`` work on current versions of Python, NumPy and
CuPy (:mod:`mask_rcnn.compat`).  The names of this module are imported when they are first used, so ``import mask_rcnn``
itself is fast.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from mask_rcnn.compat import register as _register_compat

if TYPE_CHECKING:
    from mask_rcnn.api import train
    from mask_rcnn.config import DETECTRON, MATTERPORT, PRESETS, Config, Dialect
    from mask_rcnn.inference import Detections, save
    from mask_rcnn.models import MaskRCNN, build, load

__version__ = '0.2.0'

__all__ = [
    'DETECTRON',
    'MATTERPORT',
    'PRESETS',
    'Config',
    'Detections',
    'Dialect',
    'MaskRCNN',
    'build',
    'load',
    'save',
    'train',
]

#: Public name -> the subpackage that defines it.
_SOURCES = {
    **dict.fromkeys(('DETECTRON', 'MATTERPORT', 'PRESETS', 'Config', 'Dialect'), 'config'),
    **dict.fromkeys(('Detections', 'save'), 'inference'),
    **dict.fromkeys(('MaskRCNN', 'build', 'load'), 'models'),
    'train': 'api',
}

#: Subpackages and modules.
_SUBPACKAGES = (
    'api',
    'cli',
    'compat',
    'config',
    'datasets',
    'evaluation',
    'inference',
    'inspect',
    'io',
    'media',
    'models',
    'onnx_export',
    'ops',
    'preprocessing',
    'serving',
    'targets',
    'training',
    'visualization',
    'weights',
)

#: Serialises lazy imports: two threads would otherwise import interdependent subpackages at the same time.
_import_lock = threading.RLock()

_register_compat()


def __getattr__(name: str) -> Any:
    """Import a public name or a subpackage on first use (PEP 562)."""
    if name not in _SUBPACKAGES and name not in _SOURCES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    with _import_lock:
        if name in _SUBPACKAGES:
            return importlib.import_module(f'{__name__}.{name}')
        value = getattr(importlib.import_module(f'{__name__}.{_SOURCES[name]}'), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return the names of the module, including those that have not been imported yet."""
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
