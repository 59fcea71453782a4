"""Write pickles of NumPy arrays that other versions of Python and NumPy read.

NumPy 2 pickles its arrays under a module name that NumPy 1 does not have, and Python 3 has no byte strings that Python
2 reads.  The names here are those of NumPy 1, which NumPy 2 also reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from mask_rcnn.weights.exporters import opcodes
from mask_rcnn.weights.exporters.opcodes import integer, integers, sequence

_MODULE = 'numpy.core.multiarray'


class ArrayPickle:
    """A pickle that is written value by value, without copies of its arrays.

    Args:
        file: The file to write to.
        python2: Whether text is Python 2's ``str``, as in the files of its ``cPickle`` (protocol 2), which Python 3
            reads with ``encoding='latin1'``; otherwise protocol 3, which Python 3 reads with any encoding.
    """

    def __init__(self, file: BinaryIO, *, python2: bool) -> None:
        self._file = file
        self._protocol = 2 if python2 else 3
        self._text: Callable[[str], bytes] = opcodes.byte_string if python2 else opcodes.text
        self._data_start = opcodes.python2_data_start if python2 else opcodes.data_start

    def write(self, value: Any) -> None:
        """Write the whole pickle of a value: nested dictionaries of text, booleans and float32 arrays.

        Raises:
            TypeError: The value has another type.
        """
        self._file.write(opcodes.start(self._protocol))
        self._write_value(value)
        self._file.write(opcodes.STOP)

    def _write_value(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._file.write(b'}(')
            for key, item in value.items():
                self._file.write(self._text(key))
                self._write_value(item)
            self._file.write(b'u')
        elif isinstance(value, np.ndarray):
            self._write_array(np.asarray(value, '<f4', order='C'))
        elif isinstance(value, bool):
            self._file.write(opcodes.TRUE if value else opcodes.FALSE)
        elif isinstance(value, str):
            self._file.write(self._text(value))
        else:
            raise TypeError(f'cannot write a {type(value).__name__}')

    def _write_array(self, array: np.ndarray) -> None:
        """Write the call of ``_reconstruct`` and the state of the array: version, shape, type, order and bytes."""
        empty = opcodes.name('numpy', 'ndarray'), integers([0]), self._data_start(1) + b'b'
        self._file.write(opcodes.call(opcodes.name(_MODULE, '_reconstruct'), *empty))
        self._file.write(b'(' + integer(1) + integers(array.shape) + self._dtype() + opcodes.FALSE)
        self._file.write(self._data_start(array.nbytes))
        self._file.write(array.reshape(-1).view(np.uint8).data)
        self._file.write(b'tb')

    def _dtype(self) -> bytes:
        """Return ``numpy.dtype('<f4')`` as NumPy pickles it: the version of its state, the byte order, no fields."""
        built = opcodes.call(opcodes.name('numpy', 'dtype'), self._text('f4'), integer(0), integer(1))
        state = integer(3), self._text('<'), *3 * [opcodes.NONE], integer(-1), integer(-1), integer(0)
        return built + sequence(*state) + b'b'
