"""Weight files: one safe reader per format, one name map per network.  Nothing executes on load.

- :mod:`~mask_rcnn.weights.npz`: our own files, :func:`read_weights`, :func:`write_weights`,
  :func:`load_arrays`, :class:`ModelMeta`.
- :mod:`~mask_rcnn.weights.detectron`: Detectron's ``.pkl`` translated (on top of
  :mod:`~mask_rcnn.weights.safe_pickle` and :mod:`~mask_rcnn.weights.detectron_cfg`).
- :mod:`~mask_rcnn.weights.pretrained`: ImageNet weights and models to start from, of every format (with
  :mod:`~mask_rcnn.weights.caffemodel`).
- :mod:`~mask_rcnn.weights.download`: fetching files from a model zoo.
"""

from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.npz import ModelMeta, Source, WeightFile, load_arrays, read_weights, write_weights

__all__ = [
    'ModelMeta', 'Source', 'WeightFile', 'WeightFileError', 'load_arrays', 'read_weights', 'write_weights',
]
