"""Writers of other programs' weight files.

- :mod:`~mask_rcnn.weights.exporters.targets`: the table of formats that can be written;
  :func:`~mask_rcnn.weights.exporters.targets.export_weights`.
- :mod:`~mask_rcnn.weights.exporters.compatibility`: which networks a program can run, and with which differences.
- :mod:`~mask_rcnn.weights.exporters.program_settings`: the settings of a network by their names in another program.
- :mod:`~mask_rcnn.weights.exporters.adaptation`: conversion of arrays to a program's conventions where that is exact.
- :mod:`~mask_rcnn.weights.exporters.inversion`: the converters' tables of names, read backwards.
- :mod:`~mask_rcnn.weights.exporters.torch_file`, :mod:`~mask_rcnn.weights.exporters.array_pickle` and
  :mod:`~mask_rcnn.weights.exporters.safetensors_file`: the bytes of files.
"""
