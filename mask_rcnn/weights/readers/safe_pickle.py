"""A restricted unpickler that executes no code from a pickle.

Python's unpickler is an interpreter: a pickle may import any module and call any function in it.  This module is a
second, much smaller interpreter of the same opcodes (``pickletools`` documents them).  It builds plain containers, text
and numbers, and has a list of a dozen allowed globals (:attr:`SafeUnpickler.allowed_globals`).  A function of this
module replaces each of them and builds the same array.  No name is looked up, nothing is imported, and every other
global is refused.  A format that stores more than plain data derives a subclass of :class:`SafeUnpickler`
(:mod:`mask_rcnn.weights.readers.torch_file`).

To keep a hostile file from exhausting memory or time:

- a length or an array's shape is accepted only if the rest of the file contains that number of bytes;
- text, bytes and array data together may take twice the size of the file (:meth:`SafeUnpickler._spend`);
- a file may have :data:`MAX_OPERATIONS` opcodes, which bounds time, containers and memo;
- keys are text, bytes and small integers, whose hashes neither nest nor collide at will;
- no function recurses.

Python 2's byte strings are read as Latin-1 text, as ``pickle.load(encoding='latin1')`` does.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar, Literal, cast

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file

#: Detectron's largest files need about 30 opcodes for each of 1000 arrays.
MAX_OPERATIONS = 500_000

#: Maximum length of a number, name or memo index of protocol 0, in characters.
_MAX_LINE = 1000

_MAX_DIMENSIONS = 32

#: First bytes of files that are often mistaken for weights.
_OTHER_FORMATS = (
    (b'\x1f\x8b', 'is gzip-compressed; unpack it first'),
    (b'PK\x03\x04', 'is a zip archive (.npz or PyTorch .pth), not a pickle'),
    (b'\x89HDF', 'is an HDF5 file, not a pickle'),
    (b'\x93NUMPY', 'is a single NumPy array (.npy), not the weights of a network'),
    (b'BZh', 'is bzip2-compressed; unpack it first'),
    (b'\xfd7zXZ', 'is xz-compressed; unpack it first'),
    (b'<', 'is a web page or XML, not weights; was the download refused?'),
    (b'version https://git-lfs', 'is a Git LFS pointer; the file itself has not been downloaded'),
)


#: The replacement for calling a global: a function of the unpickler and the tuple of arguments.
_Apply = Callable[[Any, tuple], Any]


def load(path: str | os.PathLike) -> Any:
    """Read a pickle of NumPy arrays and plain data, protocol 0 to 5, written by Python 2 or 3.

    Args:
        path: The file.

    Returns:
        Dictionaries (also for ``collections.OrderedDict``), lists, tuples, sets, text, bytes, numbers and NumPy arrays
        of booleans, integers and floats.  The arrays are read-only.

    Raises:
        WeightFileError: The file cannot be read, is damaged or is not such a pickle; the message names a refused
            global.
    """
    with open_weight_file(path) as (file, size):
        try:
            _refuse_other_formats(file, size)
            return SafeUnpickler(file, size).load()
        except UnpicklingError as error:
            raise WeightFileError(path, str(error)) from None
        except MemoryError:
            raise WeightFileError(path, 'does not fit into memory') from None


class UnpicklingError(Exception):
    """A file cannot be unpickled; the message is one line."""


class RefusedError(UnpicklingError):
    """The pickle is intact, but contains something other than plain data; the message begins with ``is refused``."""


class UnknownGlobalError(RefusedError):
    """The pickle refers to a global that is not on the list."""


def _refuse_other_formats(file: BinaryIO, size: int) -> None:
    reason = other_format(file.read(32))
    file.seek(0)
    if reason is not None:
        raise UnpicklingError(reason)


def other_format(start: bytes) -> str | None:
    """Return a description of a file that is often mistaken for weights, or ``None`` for any other file.

    Args:
        start: The first bytes of the file.
    """
    if not start:
        return 'is empty'
    return next((reason for signature, reason in _OTHER_FORMATS if start.startswith(signature)), None)


class AllowedGlobal:
    """An allowed global on the stack, which is neither a value nor callable.

    Args:
        name: Its dotted name.
        apply: The replacement for calling it: a function of the unpickler and the tuple of arguments; ``None`` if it
            is only used as an argument.
    """

    def __init__(self, name: str, apply: _Apply | None) -> None:
        self.name = name
        self.apply = apply


class Dtype:
    """A ``numpy.dtype`` under construction: the type and byte order of an item; structures are refused."""

    _CODE = re.compile(r'(b1|[iu][1248]|f[248])')

    def __init__(self, code: Any) -> None:
        if not (isinstance(code, str) and self._CODE.fullmatch(code)):
            shown = to_printable_ascii(code) if isinstance(code, str) else type(code).__name__
            raise RefusedError(f"is refused: it has arrays of type '{shown}', not of numbers")
        self.value = np.dtype(code)
        self.is_refused = False  # for readers that go on after an error of set_state

    def set_state(self, state: Any) -> None:
        """Apply ``(version, byte order, subdtype, names, fields, itemsize, alignment, flags)``."""
        if not (
            isinstance(state, tuple)
            and len(state) == 8
            and state[1] in ('<', '>', '|', '=')
            and state[2:5] == (None, None, None)
            and state[5:] == (-1, -1, 0)
        ):
            raise RefusedError('is refused: it has structured arrays')
        self.value = self.value.newbyteorder(state[1])


class PendingArray:
    """An array between ``_reconstruct`` (which makes an empty one) and its state (which fills it)."""

    def __init__(self) -> None:
        self.value: Any = None


class SafeUnpickler:
    """An interpreter of one pickle: the stack, the memo and the opcodes.

    Args:
        file: A file at the position where the pickle begins.
        size: Size of the file in bytes.

    Attributes:
        allowed_globals: The globals that a pickle may refer to, and the function that replaces a call of each.  It is
            called with the unpickler and the tuple of arguments (``None``: the global is only used as an argument).
        max_operations: Maximum number of opcodes.
    """

    allowed_globals: ClassVar[Mapping[str, _Apply | None]]
    max_operations: ClassVar[int] = MAX_OPERATIONS

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._position = 0  # in the file while it is loaded; the method of the file is a system call
        self._budget = 2 * size + (1 << 20)
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack at which a mark lies
        self._memo: dict[int, Any] = {}

    def load(self, *, must_end: bool = True) -> Any:
        """Return the value in the pickle.

        Args:
            must_end: Whether the file must end after the pickle.

        Raises:
            UnpicklingError: The pickle is damaged or contains more than plain data.
        """
        self._position = self._file.tell()
        for _ in range(self.max_operations):
            position = self._position
            opcode = self._take(1)
            if opcode == b'.':
                return self._finish(must_end)
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise UnpicklingError(f'is damaged or not a pickle: unknown opcode {opcode!r} at byte {position}')
            try:
                operation(self)
            except (ValueError, OverflowError, struct.error, Warning) as error:
                # Numbers and text that do not parse; the message of a decoder may quote the file.
                reason = to_printable_ascii(str(error))
                raise UnpicklingError(f'is damaged at byte {position}: {reason}') from None
        raise UnpicklingError(f'has more than {self.max_operations} pickle operations')

    def _finish(self, must_end: bool) -> Any:
        result = self._pop()
        if self._stack or self._marks:
            raise UnpicklingError('is damaged: values are left over at its end')
        rest = self._size - self._position
        if rest and must_end:
            raise UnpicklingError(f'is damaged: {counted(rest, "byte follows", "bytes follow")} the end of the pickle')
        self.check_result(result)
        return result

    def check_result(self, result: Any) -> None:
        """Refuse globals and array types that remain inside the data.  Each container is visited once."""
        seen, waiting = set(), [result]
        while waiting:
            value = waiting.pop()
            if isinstance(value, (AllowedGlobal, Dtype)):
                raise RefusedError('is refused: it has a class or an array type as data')
            if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                waiting.extend(value.values() if isinstance(value, dict) else value)

    # Bytes of the file

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= self._size - self._position:
            raise UnpicklingError(
                f'is truncated or damaged: {counted(count, "byte")} expected at byte {self._position}'
            )
        data = self._file.read(count)
        self._position += len(data)
        if len(data) != count:
            raise UnpicklingError('became shorter while it was read')
        return data

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self, limit: int = _MAX_LINE) -> bytes:
        line = self._file.readline(limit + 1)
        self._position += len(line)
        if not line.endswith(b'\n'):
            raise UnpicklingError('is truncated or damaged: a line does not end')
        return line[:-1]

    def _long_line(self) -> bytes:
        return self._line(self._size)

    def _spend(self, count: int) -> None:
        """Account for ``count`` bytes that are about to be allocated."""
        self._budget -= count
        if self._budget < 0:
            raise UnpicklingError('is damaged: it expands to more than twice its size')

    # The stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UnpicklingError('is damaged: a value is missing')
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return _complete(value)

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise UnpicklingError('is damaged: a mark is missing')
        start = self._marks.pop()
        values = [_complete(value) for value in self._stack[start:]]
        del self._stack[start:]
        return values

    def _pop_type(self, expected: type, title: str) -> Any:
        value = self._pop()
        if not isinstance(value, expected):
            raise UnpicklingError(f'is damaged: {title} expected')
        return value

    # Opcodes: numbers and text

    def proto(self) -> None:
        version = self._number('B')
        if version > 5:
            raise UnpicklingError(f'is damaged or too new: pickle protocol {version}')

    def frame(self) -> None:
        length = self._number('<Q')
        if length > self._size - self._position:
            raise UnpicklingError('is truncated or damaged: a frame is longer than the file')

    def int_line(self) -> None:
        line = self._line()
        self._push(line == b'01' if line in (b'00', b'01') else int(line))

    def long_line(self) -> None:
        self._push(int(self._line().rstrip(b'L')))

    def long_bytes(self, layout: str) -> None:
        count = self._number(layout)
        if not 0 <= count <= _MAX_LINE:
            raise UnpicklingError(f'is damaged: an integer of {counted(count, "byte")}')
        self._push(int.from_bytes(self._take(count), 'little', signed=True))

    def float_line(self) -> None:
        self._push(float(self._line()))

    def string_line(self) -> None:
        line = self._long_line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise UnpicklingError('is damaged: a string without quotes')
        self._spend(len(line))
        self._push(codecs.escape_decode(line[1:-1])[0].decode('latin-1'))

    def string_bytes(self, layout: str) -> None:
        data = self._take(self._number(layout))
        self._spend(len(data))
        self._push(data.decode('latin-1'))

    def unicode_line(self) -> None:
        line = self._long_line()
        # One character beyond Latin-1 makes CPython store every character of the text in 2 or 4 bytes.
        self._spend(len(line) * (4 if re.search(rb'\\U|\\u(?!00)', line) else 1))
        self._push(line.decode('raw-unicode-escape'))

    def unicode_bytes(self, layout: str) -> None:
        data = self._take(self._number(layout))
        wide = np.frombuffer(data, np.uint8).max(initial=0) > 0xC3  # lead bytes beyond U+00FF
        self._spend(len(data) * (4 if wide else 1))
        self._push(data.decode('utf-8', 'surrogatepass'))

    def raw_bytes(self, layout: str) -> None:
        count = self._number(layout)
        data = self._take(count)
        self._spend(count)
        self._push(data)

    # Opcodes: containers

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def build_tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def build_dict(self) -> None:
        values = self._pop_mark()
        self._push({})
        self._set_items(values)

    def append(self) -> None:
        values = [self._pop()]
        self._extend(values)

    def appends(self) -> None:
        self._extend(self._pop_mark())

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self._pop_mark())

    def add_items(self) -> None:
        self._add_elements(self._pop_mark())

    def frozen_set(self) -> None:
        self._push(frozenset(map(self.key, self._pop_mark())))

    def _add_elements(self, values: list[Any]) -> None:
        target = self._pop_type(set, 'a set')
        target.update(map(self.key, values))
        self._push(target)

    def _extend(self, values: list[Any]) -> None:
        target = self._pop_type(list, 'a list')
        target.extend(values)
        self._push(target)

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise UnpicklingError('is damaged: a key without a value')
        target = self._pop_type(dict, 'a dictionary')
        target.update(zip(map(self.key, values[::2]), values[1::2], strict=True))
        self._push(target)

    def key(self, value: Any) -> Any:
        """Return ``value`` if it is a valid key; tuples, floats and large integers allow crafted hashes."""
        if type(value) in (str, bytes, bool) or value is None:
            return value
        if type(value) is int and -1 << 63 <= value < 1 << 64:
            return value
        raise RefusedError(f'is refused: a dictionary key or set element of type {type(value).__name__}')

    # Opcodes: memo

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise UnpicklingError(f'is damaged: memo entry {index} does not exist')
        self._push(self._memo[index])

    def put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:
            raise UnpicklingError('is damaged: a memo index out of range')
        self._memo[index] = self._top()

    # Opcodes: globals and objects

    def global_line(self) -> None:
        self.push_global(*(to_printable_ascii(self._line().decode('utf-8', 'replace')) for _ in range(2)))

    def stack_global(self) -> None:
        name, module = self._pop_type(str, 'a name'), self._pop_type(str, 'a module')
        self.push_global(to_printable_ascii(module), to_printable_ascii(name))

    def inst(self) -> None:
        module, name = (to_printable_ascii(self._line().decode('utf-8', 'replace')) for _ in range(2))
        raise RefusedError(f'is refused: it makes an object of {module}.{name}')

    def push_global(self, module: str, name: str) -> None:
        name = f'{module}.{name}'
        if name not in self.allowed_globals:
            hint = ', which is only read from files of torch.save' if module.startswith('torch.') else ''
            raise UnknownGlobalError(f'is refused: it refers to {name}{hint}')
        self._push(AllowedGlobal(name, self.allowed_globals[name]))

    def reduce(self) -> None:
        arguments = self._pop_type(tuple, 'a tuple of arguments')
        function = self._pop()
        if not isinstance(function, AllowedGlobal) or function.apply is None:
            called = getattr(function, 'name', f'a value ({type(function).__name__})')
            raise RefusedError(f'is refused: it calls {called}')
        self._push(function.apply(self, arguments))

    def build(self) -> None:
        state = self._pop()
        self.set_state(self._top(), state)

    def set_state(self, target: Any, state: Any) -> None:
        """Fill an array or an array type; other values have no state, so this raises an error."""
        if isinstance(target, PendingArray) and target.value is None:
            target.value = self._array_from_state(state)
        elif isinstance(target, Dtype):
            target.set_state(state)
        else:
            raise RefusedError(f'is refused: it sets the state of a value ({type(target).__name__})')

    def obj(self) -> None:
        raise RefusedError('is refused: it makes an object (opcode OBJ)')

    def new_obj(self) -> None:
        raise RefusedError('is refused: it makes an object (opcode NEWOBJ)')

    def new_obj_ex(self) -> None:
        raise RefusedError('is refused: it makes an object (opcode NEWOBJ_EX)')

    def extension(self, size: int) -> None:
        raise RefusedError(f'is refused: it uses the extension registry (opcode EXT{size})')

    def persistent_line(self) -> None:
        raise RefusedError('is refused: it refers to an object outside of the file (opcode PERSID)')

    def persistent(self) -> None:
        self._push(self.persistent_load(self._pop()))

    def next_buffer(self) -> None:
        raise RefusedError('is refused: it refers to a buffer outside of the file (opcode NEXT_BUFFER)')

    def read_only_buffer(self) -> None:
        raise RefusedError('is refused: it refers to a buffer outside of the file (opcode READONLY_BUFFER)')

    def persistent_load(self, reference: Any) -> Any:
        """Return the object outside of the pickle that a reference names; plain data have none, so this raises."""
        raise RefusedError('is refused: it refers to an object outside of the file (opcode BINPERSID)')

    # The replacements of allowed globals (arguments come from the file, so each one is checked)

    def make_empty_array(self, arguments: tuple) -> PendingArray:
        if not arguments or not isinstance(arguments[0], AllowedGlobal) or arguments[0].name != 'numpy.ndarray':
            raise RefusedError('is refused: it makes an array of an unknown class')
        return PendingArray()

    def make_array(self, arguments: tuple) -> np.ndarray:
        """Apply ``_frombuffer(data, dtype, shape, order)`` of protocol 5."""
        if len(arguments) != 4 or arguments[3] not in ('C', 'F'):
            raise UnpicklingError('is damaged: an array without data, type, shape and order')
        data, dtype, shape, order = arguments
        return self.array(data, dtype, shape, order)

    def _array_from_state(self, state: Any) -> np.ndarray:
        """Return the array of the state ``(version, shape, dtype, is Fortran order, data)``."""
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[3], (bool, int))):
            raise UnpicklingError('is damaged: an array without shape, type and data')
        _, shape, dtype, fortran, data = state
        return self.array(data, dtype, shape, 'F' if fortran else 'C')

    def array(self, data: Any, dtype: Any, shape: Any, order: Literal['C', 'F']) -> np.ndarray:
        data = self._buffer(data)
        if not isinstance(dtype, Dtype):
            raise UnpicklingError('is damaged: an array without a type')
        if not (
            isinstance(shape, tuple)
            and len(shape) <= _MAX_DIMENSIONS
            and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
        ):
            raise UnpicklingError('is damaged: an array without a proper shape')
        expected = dtype.value.itemsize
        for n in shape:
            expected *= n
        if expected != len(data):
            raise UnpicklingError(
                f'is damaged: an array of shape {to_printable_ascii(str(shape))} needs {counted(expected, "byte")}, '
                f'not {len(data)}'
            )
        return np.ndarray(shape, dtype.value, buffer=data, order=order)

    def make_scalar(self, arguments: tuple) -> np.generic:
        if len(arguments) != 2:
            raise UnpicklingError('is damaged: a number without type and data')
        return cast(np.generic, self.array(arguments[1], arguments[0], (), 'C')[()])

    def make_dtype(self, arguments: tuple) -> Dtype:
        if not 1 <= len(arguments) <= 3:
            raise UnpicklingError('is damaged: an array type without a code')
        return Dtype(arguments[0])

    def make_dict(self, arguments: tuple) -> dict:
        """Apply ``OrderedDict()`` of Python 3 or ``OrderedDict([[key, value], ...])`` of Python 2."""
        pairs = arguments[0] if arguments else []
        if not (
            len(arguments) <= 1
            and isinstance(pairs, list)
            and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
        ):
            raise UnpicklingError('is damaged: a dictionary without pairs')
        self._spend(100 * len(pairs))  # the list may be shared, and each use makes a copy
        return {self.key(key): value for key, value in pairs}

    def make_set(self, arguments: tuple) -> set:
        """Apply ``set([...])`` of protocols 0 to 3."""
        values = arguments[0] if len(arguments) == 1 else None
        if not isinstance(values, list):
            raise UnpicklingError('is damaged: a set without a list of elements')
        self._spend(100 * len(values))
        return {self.key(value) for value in values}

    def make_bytes(self, arguments: tuple) -> bytes:
        """Apply ``bytes()``: how Python 3 writes empty bytes for Python 2."""
        if arguments:
            raise RefusedError('is refused: it calls builtins.bytes with arguments')
        return b''

    def encode(self, arguments: tuple) -> bytes:
        """Apply ``_codecs.encode(text, 'latin1')``: how Python 3 writes bytes for Python 2."""
        text, encoding = arguments if len(arguments) == 2 else (None, None)
        if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
            raise RefusedError('is refused: it calls _codecs.encode for something other than Latin-1 text')
        return self._buffer(text)

    def _buffer(self, data: Any) -> bytes:
        """Return array data as bytes; those of Python 2 have been read as Latin-1 text."""
        if isinstance(data, bytes):
            return data
        if not isinstance(data, str):
            raise RefusedError('is refused: it has an array of Python objects')
        self._spend(len(data))
        return data.encode('latin-1')


def _complete(value: Any) -> Any:
    """Return the value of a popped stack entry."""
    if not isinstance(value, PendingArray):
        return value
    if value.value is None:
        raise UnpicklingError('is damaged: an array is used before its data')
    return value.value


SafeUnpickler.allowed_globals = {
    'numpy.ndarray': None,
    'numpy.dtype': SafeUnpickler.make_dtype,
    'numpy.core.multiarray._reconstruct': SafeUnpickler.make_empty_array,
    'numpy._core.multiarray._reconstruct': SafeUnpickler.make_empty_array,
    'numpy.core.multiarray.scalar': SafeUnpickler.make_scalar,
    'numpy._core.multiarray.scalar': SafeUnpickler.make_scalar,
    'numpy.core.numeric._frombuffer': SafeUnpickler.make_array,
    'numpy._core.numeric._frombuffer': SafeUnpickler.make_array,
    'collections.OrderedDict': SafeUnpickler.make_dict,
    '__builtin__.set': SafeUnpickler.make_set,
    'builtins.set': SafeUnpickler.make_set,
    '_codecs.encode': SafeUnpickler.encode,
    '__builtin__.bytes': SafeUnpickler.make_bytes,
    'builtins.bytes': SafeUnpickler.make_bytes,
}

_OPERATIONS: dict[bytes, Callable[[SafeUnpickler], object]] = {
    b'\x80': SafeUnpickler.proto,
    b'\x95': SafeUnpickler.frame,
    # Numbers
    b'N': lambda u: u._push(None),
    b'\x88': lambda u: u._push(True),
    b'\x89': lambda u: u._push(False),
    b'I': SafeUnpickler.int_line,
    b'J': lambda u: u._push(u._number('<i')),
    b'K': lambda u: u._push(u._number('<B')),
    b'M': lambda u: u._push(u._number('<H')),
    b'L': SafeUnpickler.long_line,
    b'\x8a': lambda u: u.long_bytes('<B'),
    b'\x8b': lambda u: u.long_bytes('<i'),
    b'F': SafeUnpickler.float_line,
    b'G': lambda u: u._push(u._number('>d')),
    # Text and bytes
    b'S': SafeUnpickler.string_line,
    b'T': lambda u: u.string_bytes('<i'),
    b'U': lambda u: u.string_bytes('<B'),
    b'V': SafeUnpickler.unicode_line,
    b'X': lambda u: u.unicode_bytes('<I'),
    b'\x8c': lambda u: u.unicode_bytes('<B'),
    b'\x8d': lambda u: u.unicode_bytes('<Q'),
    b'B': lambda u: u.raw_bytes('<I'),
    b'C': lambda u: u.raw_bytes('<B'),
    b'\x8e': lambda u: u.raw_bytes('<Q'),
    b'\x96': lambda u: u.raw_bytes('<Q'),
    # Containers
    b'(': SafeUnpickler.mark,
    b'0': SafeUnpickler.pop,
    b'1': lambda u: u._pop_mark(),
    b'2': lambda u: u._push(u._top()),
    b')': lambda u: u._push(()),
    b't': lambda u: u._push(tuple(u._pop_mark())),
    b'\x85': lambda u: u.build_tuple(1),
    b'\x86': lambda u: u.build_tuple(2),
    b'\x87': lambda u: u.build_tuple(3),
    b']': lambda u: u._push([]),
    b'l': lambda u: u._push(u._pop_mark()),
    b'a': SafeUnpickler.append,
    b'e': SafeUnpickler.appends,
    b'}': lambda u: u._push({}),
    b'd': SafeUnpickler.build_dict,
    b's': SafeUnpickler.set_item,
    b'u': SafeUnpickler.set_items,
    b'\x8f': lambda u: u._push(set()),
    b'\x90': SafeUnpickler.add_items,
    b'\x91': SafeUnpickler.frozen_set,
    # Memo
    b'g': lambda u: u.get(int(u._line())),
    b'h': lambda u: u.get(u._number('<B')),
    b'j': lambda u: u.get(u._number('<I')),
    b'p': lambda u: u.put(int(u._line())),
    b'q': lambda u: u.put(u._number('<B')),
    b'r': lambda u: u.put(u._number('<I')),
    b'\x94': lambda u: u.put(len(u._memo)),
    # Globals and objects
    b'c': SafeUnpickler.global_line,
    b'\x93': SafeUnpickler.stack_global,
    b'R': lambda u: u.reduce(),
    b'b': SafeUnpickler.build,
    b'i': lambda u: u.inst(),
    b'o': lambda u: u.obj(),
    b'\x81': lambda u: u.new_obj(),
    b'\x92': lambda u: u.new_obj_ex(),
    b'\x82': lambda u: u.extension(1),
    b'\x83': lambda u: u.extension(2),
    b'\x84': lambda u: u.extension(4),
    b'P': lambda u: u.persistent_line(),
    b'Q': lambda u: u.persistent(),
    b'\x97': lambda u: u.next_buffer(),
    b'\x98': lambda u: u.read_only_buffer(),
}
