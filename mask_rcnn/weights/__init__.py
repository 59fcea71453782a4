"""Weight files: one safe reader per format, one name mapping per network.  Loading a file executes nothing.

- :mod:`~mask_rcnn.weights.native`: the library's own format: :func:`read_weights`, :func:`write_weights`,
  :func:`load_arrays`, :class:`ModelMeta`.
- :mod:`~mask_rcnn.weights.formats`: the table of all formats; the content of a file determines its format.
- :mod:`~mask_rcnn.weights.readers`: from the bytes of other programs' files to arrays.
- :mod:`~mask_rcnn.weights.converters`: from other programs' arrays to the native network's, for Detectron's ``.pkl``,
  Matterport's ``.h5`` and its network in PyTorch's ``.pth``, MindSpore's ``.ckpt`` and ImageNet backbones.
- :mod:`~mask_rcnn.weights.pretrained`: loading the weights that training starts from.
- :mod:`~mask_rcnn.weights.download`: fetching files from a model zoo.

Modules of this package import from each other's modules, not from this one.
"""

from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.native import ModelMeta, Source, WeightFile, load_arrays, read_weights, write_weights

__all__ = [
    'ModelMeta',
    'Source',
    'WeightFile',
    'WeightFileError',
    'load_arrays',
    'read_weights',
    'write_weights',
]
