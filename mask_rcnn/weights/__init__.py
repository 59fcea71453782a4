"""Weight files: one safe reader per format, one name map per network.  Nothing executes on load.

- :mod:`~mask_rcnn.weights.native`: our own files, :func:`read_weights`, :func:`write_weights`,
  :func:`load_arrays`, :class:`ModelMeta`.
- :mod:`~mask_rcnn.weights.formats`: the table of all formats; files are recognised by their contents.
- Files of other programs translated (:mod:`~mask_rcnn.weights.converters.mapping`): Detectron's ``.pkl``
  (:mod:`~mask_rcnn.weights.converters.detectron` on top of :mod:`~mask_rcnn.weights.readers.safe_pickle`), Matterport's ``.h5``
  (:mod:`~mask_rcnn.weights.converters.matterport`) and its network in PyTorch's ``.pth``
  (:mod:`~mask_rcnn.weights.converters.pytorch` on top of :mod:`~mask_rcnn.weights.readers.torch_file`), MindSpore's ``.ckpt``
  (:mod:`~mask_rcnn.weights.converters.mindspore`).
- :mod:`~mask_rcnn.weights.pretrained`: ImageNet weights and models to start from, of every format (with
  :mod:`~mask_rcnn.weights.readers.caffemodel`).
- :mod:`~mask_rcnn.weights.download`: fetching files from a model zoo.
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
