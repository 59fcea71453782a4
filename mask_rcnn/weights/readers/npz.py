"""Read the arrays of other programs' ``.npz`` files, which may be compressed.  Nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, open_deflated_zip, open_weight_file, read_npy_member

#: Maximum ratio of the unpacked arrays' size to the size of the file (trained weights hardly compress).
_MAX_GROWTH = 1.5


def read(path: str | os.PathLike, is_needed: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Return the needed arrays of an ``.npz`` of ``numpy.savez`` or ``savez_compressed`` by name.

    Args:
        path: The file.
        is_needed: Returns whether the array of a name is needed.

    Raises:
        WeightFileError: The file cannot be read, is not such an archive, or an array is damaged or consists of Python
            objects.
    """
    with open_weight_file(path) as (file, size):
        name = None
        try:
            archive, members = open_deflated_zip(file, size, _MAX_GROWTH)
            names = [member.removesuffix('.npy') for member in members if member.endswith('.npy')]
            arrays = {}
            for name in filter(is_needed, names):
                arrays[name] = read_npy_member(archive, members[f'{name}.npy'])
        except CORRUPT_FILE_ERRORS as error:
            reason = to_printable_ascii(str(error), 200) or type(error).__name__
            subject = '' if name is None else f'{to_printable_ascii(name)} '
            kind = 'a weight file' if name is None else 'a plain array of numbers'
            raise WeightFileError(path, f'{subject}is not {kind}, or damaged: {reason}') from None
    return arrays
