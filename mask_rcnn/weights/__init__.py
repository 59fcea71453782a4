"""Weight files: one safe reader per format, one name mapping per network.  Loading a file executes no code from it.

- :mod:`~mask_rcnn.weights.native`: the format of this library: :func:`read_weights`, :func:`write_weights`,
  :func:`load_arrays`, :class:`ModelMeta`.
- :mod:`~mask_rcnn.weights.formats`: the table of all formats; the content of a file determines its format.
- :mod:`~mask_rcnn.weights.readers`: decode other programs' files to arrays.
- :mod:`~mask_rcnn.weights.converters`: convert other programs' arrays to those of the native network, for Detectron's
  ``.pkl``, Matterport's ``.h5`` and its network in PyTorch's ``.pth``, MindSpore's ``.ckpt``, the ``.npz`` of DeNA's
  Chainer_Mask_R-CNN and ImageNet backbones.
- :mod:`~mask_rcnn.weights.pretrained`: load the weights that training starts from.
- :mod:`~mask_rcnn.weights.download`: download files from a model zoo.

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
