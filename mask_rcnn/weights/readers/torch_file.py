"""Read PyTorch's files of tensors (``torch.save`` of a state dict) without PyTorch.

Both formats consist of a pickle whose tensors refer to *storages*, flat arrays outside of the pickle:

- since PyTorch 1.6, a zip archive: ``<name>/data.pkl``, ``<name>/data/<key>`` for each storage and
  ``<name>/byteorder`` (``torch/serialization.py``, ``_save``);
- before that ("legacy"), four consecutive pickles (a magic number, the protocol version, a description of the
  machine, the data), a fifth with the keys of the storages, and then each storage: its number of items in 8 bytes and
  its items (``_legacy_save``).

:mod:`~mask_rcnn.weights.readers.safe_pickle` reads the pickles and executes nothing; the only additional globals are
those of tensors.  In the data, unknown objects beside the tensors become placeholders
(:mod:`~mask_rcnn.weights.readers.inert_pickle`), and :mod:`~mask_rcnn.weights.readers.state_dicts` finds the state
dict.  A file of a whole saved model has none and is refused.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, is_array_shape, open_deflated_zip, open_weight_file
from mask_rcnn.weights.readers import safe_pickle
from mask_rcnn.weights.readers.inert_pickle import Inert, InertUnpickler
from mask_rcnn.weights.readers.state_dicts import USUAL_KEYS, array_shape, find_module, find_state_dict

#: The magic number in the first pickle of a legacy file.
_MAGIC = 0x1950A86A20F9469CFC6C

#: The first bytes of a legacy file: that pickle, of any protocol since 2, with a frame since 4.
_LEGACY_START = re.compile(
    rb'\x80[\x02-\x05](?:\x95.{8})?\x8a\x0a' + re.escape(_MAGIC.to_bytes(10, 'little')), re.DOTALL
)

#: The number of bytes that determine whether a file has the legacy format.
_N_START = 32

_LEGACY_VERSION = 1001

_DTYPES = {
    'torch.FloatStorage': '<f4',
    'torch.DoubleStorage': '<f8',
    'torch.HalfStorage': '<f2',
    'torch.LongStorage': '<i8',
    'torch.IntStorage': '<i4',
    'torch.ShortStorage': '<i2',
    'torch.CharStorage': '|i1',
    'torch.ByteStorage': '|u1',
    'torch.BoolStorage': '|b1',
    'torch.ComplexFloatStorage': '<c8',
    'torch.ComplexDoubleStorage': '<c16',
}

#: Storages whose tensors are placeholders: quantised and untyped ones.
_OTHER_DTYPES = {
    'torch.QInt8Storage': '|i1',
    'torch.QUInt8Storage': '|u1',
    'torch.QInt32Storage': '<i4',
    'torch.UntypedStorage': '|u1',
    'torch.storage.UntypedStorage': '|u1',
}

#: bfloat16: the upper half of the bits of a float32; NumPy does not have this type.
_BFLOAT16 = 'torch.BFloat16Storage'

_MAX_DIMENSIONS = 8

#: Maximum ratio of the unpacked members to the archive, which PyTorch does not compress; weights hardly shrink.
_MAX_GROWTH = 4


class StateDict(dict[str, np.ndarray]):
    """The arrays of a state dict by name.

    Args:
        arrays: The arrays.
        notes: Lines about the choice of the state dict, for the user.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], notes: tuple[str, ...] = ()) -> None:
        super().__init__(arrays)
        self.notes = notes


def is_legacy(start: bytes) -> bool:
    """Return whether a file that begins with these bytes has the legacy format."""
    return _LEGACY_START.match(start) is not None


def find_pickles(names: Iterable[str]) -> list[str]:
    """Return the members of an archive that are the pickle of a file in the zip format: one, in such a file.

    Users unpack and pack such files again, which moves the members to the root or adds those of macOS.
    """
    return [name for name in names if f'/{name}'.endswith('/data.pkl') and not name.startswith('__MACOSX/')]


def read(path: str | os.PathLike) -> StateDict:
    """Read the state dict of a PyTorch file.

    Args:
        path: A ``.pth`` or ``.pt`` of either format: a state dict, or a checkpoint that contains one; see
            :mod:`mask_rcnn.weights.readers.state_dicts`.

    Returns:
        StateDict: Array by name, in the file's order, without the prefixes of wrappers such as ``module.`` of
        ``DataParallel``.  Arrays keep their type, except that bfloat16 becomes float32; some share memory.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or contains no state dict.
    """
    with open_weight_file(path) as (file, size), _one_line_errors(path):
        tensors, notes, storages = _read_tensors(file, size)
        arrays = {name: storages.array(x) if isinstance(x, _Tensor) else x for name, x in tensors.items()}
        return StateDict(arrays, notes)


def read_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Return the names in the state dict of a PyTorch file, without reading its arrays; see :func:`read`."""
    with open_weight_file(path) as (file, size), _one_line_errors(path):
        return tuple(_read_tensors(file, size)[0])


@contextlib.contextmanager
def _one_line_errors(path: str | os.PathLike) -> Iterator[None]:
    """Replace the errors of a damaged file by one line."""
    try:
        yield
    except safe_pickle.UnpicklingError as error:
        raise WeightFileError(path, str(error)) from None
    except CORRUPT_FILE_ERRORS as error:
        reason = to_printable_ascii(str(error), 200) or type(error).__name__
        raise WeightFileError(path, f'is not a PyTorch file, or damaged: {reason}') from None


def _read_tensors(file: BinaryIO, size: int) -> tuple[dict[str, Any], tuple[str, ...], _Storages]:
    """Return the state dict of a file, notes about its choice, and the storages of its tensors."""
    start = file.read(_N_START)
    file.seek(0)
    if is_legacy(start):
        unpickler, data, storages = _read_legacy(file, size)
    elif start.startswith(b'PK'):
        unpickler, data, storages = _read_zip(file, size)
    else:
        raise safe_pickle.UnpicklingError(
            'is not a PyTorch file: it is neither in the zip format nor in the legacy format '
            '(files from before PyTorch 0.1.10 are not supported)'
        )
    tensors, notes = find_state_dict(data, _shape_of)
    if not tensors:  # some programs convert the tensors to NumPy's arrays first
        tensors, notes = find_state_dict(data, array_shape)
    if not tensors:
        raise _no_state_dict(data, unpickler.refusal)
    return tensors, notes, storages


def _no_state_dict(data: Any, refusal: str | None) -> safe_pickle.UnpicklingError:
    """Return the error of a file without a state dict."""
    module = find_module(data)
    if module is not None:
        return safe_pickle.UnpicklingError(
            f'is a saved model ({module}), which contains code; only state dicts are supported: in PyTorch, write one '
            'with torch.save(model.state_dict(), FILE)'
        )
    if refusal is not None:
        return safe_pickle.UnpicklingError(f'{refusal}; only state dicts are supported, not saved models')
    if not isinstance(data, dict):
        return safe_pickle.UnpicklingError('contains a single value or a list, not a state dict')
    return safe_pickle.UnpicklingError(
        f'has no tensors: it is not a state dict, and has none under {", ".join(USUAL_KEYS)} or any other key'
    )


# Objects in the pickle


@dataclass(frozen=True)
class _Storage:
    """A reference to a flat array outside of the pickle; ``length`` counts items."""

    kind: str
    key: str
    length: int

    @property
    def itemsize(self) -> int:
        """Bytes per item."""
        return self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype:
        """Type of the items in the file."""
        return np.dtype('<u2' if self.kind == _BFLOAT16 else (_DTYPES | _OTHER_DTYPES)[self.kind])


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage; offset and strides count items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _OrderedDict(dict):
    """An ``OrderedDict``, the only plain container with attributes: ``_metadata`` has the versions of the modules."""


class _TorchUnpickler(InertUnpickler):
    """An unpickler of tensors.

    Attributes:
        storages: Every storage that the pickle refers to, by its key.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, reference: Any) -> _Storage:
        """Resolve ``('storage', class, key, device, length)``; in legacy files, a sixth item is a view."""
        if not (isinstance(reference, tuple) and 5 <= len(reference) <= 6 and reference[0] == 'storage'):
            raise safe_pickle.RefusedError('is refused: it refers to an object other than a storage of numbers')
        _, kind, key, _, length = reference[:5]
        if isinstance(kind, Inert) and kind.name not in _OTHER_DTYPES:
            raise safe_pickle.RefusedError(f'is refused: it refers to {kind.name}')
        is_known = isinstance(kind, (safe_pickle.AllowedGlobal, Inert))
        if not (is_known and isinstance(key, str) and _is_size(length)):
            raise safe_pickle.UnpicklingError('is damaged: a storage without type, key and length')
        if reference[5:] not in ((), (None,)):
            raise safe_pickle.RefusedError('is refused: it has a view of a storage, which only PyTorch 0.1 wrote')
        return self.storages.setdefault(key, _Storage(kind.name, key, length))

    def make_tensor(self, arguments: tuple) -> _Tensor:
        """Apply ``_rebuild_tensor_v2(storage, offset, shape, strides, ...)``; the rest concerns training."""
        if len(arguments) < 4:
            raise safe_pickle.UnpicklingError('is damaged: a tensor without storage, offset, shape and strides')
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, Inert) or (isinstance(storage, _Storage) and storage.kind in _OTHER_DTYPES):
            raise safe_pickle.RefusedError('is refused: it has a tensor of a type that NumPy does not have')
        if not (
            isinstance(storage, _Storage)
            and _is_size(offset)
            and _are_sizes(shape)
            and _are_sizes(strides)
            and len(shape) == len(strides)
        ):
            raise safe_pickle.UnpicklingError('is damaged: a tensor without proper storage, shape and strides')
        return _Tensor(storage, offset, shape, strides)

    def make_parameter(self, arguments: tuple) -> _Tensor:
        """Apply ``_rebuild_parameter(tensor, requires_grad, hooks)``."""
        if arguments and isinstance(arguments[0], Inert):
            raise safe_pickle.RefusedError('is refused: it has a parameter of an unknown type')
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise safe_pickle.UnpicklingError('is damaged: a parameter without a tensor')
        return arguments[0]

    def make_size(self, arguments: tuple) -> tuple:
        """Apply ``torch.Size((n, ...))``."""
        if len(arguments) != 1 or not _are_sizes(arguments[0]):
            raise safe_pickle.UnpicklingError('is damaged: a size without numbers')
        return arguments[0]

    def make_subclass(self, arguments: tuple) -> Any:
        """Apply ``_rebuild_from_type_v2(function, class, arguments, state)``: a tensor with attributes."""
        function = arguments[0] if len(arguments) == 4 else None
        if isinstance(function, safe_pickle.AllowedGlobal) and isinstance(arguments[2], tuple):
            if function.name.endswith(('_rebuild_tensor', '_rebuild_tensor_v2')):
                return self.make_tensor(arguments[2])
            if function.name.endswith('_rebuild_parameter'):
                return self.make_parameter(arguments[2])
        raise safe_pickle.RefusedError('is refused: it has a tensor of an unknown class')

    def make_dict(self, arguments: tuple) -> dict:
        """Apply ``OrderedDict``."""
        return _OrderedDict(super().make_dict(arguments))

    def set_state(self, target: Any, state: Any) -> None:
        """Ignore the attributes of ordered dictionaries and tensors; refuse those of other plain values."""
        if not isinstance(target, (_OrderedDict, _Tensor)):
            super().set_state(target, state)


_TorchUnpickler.allowed_globals = {
    **safe_pickle.SafeUnpickler.allowed_globals,
    'torch._utils._rebuild_tensor': _TorchUnpickler.make_tensor,
    'torch._utils._rebuild_tensor_v2': _TorchUnpickler.make_tensor,
    'torch._utils._rebuild_parameter': _TorchUnpickler.make_parameter,
    'torch._utils._rebuild_parameter_with_state': _TorchUnpickler.make_parameter,
    'torch._tensor._rebuild_from_type_v2': _TorchUnpickler.make_subclass,
    'collections.OrderedDict': _TorchUnpickler.make_dict,
    'torch.Size': _TorchUnpickler.make_size,
    _BFLOAT16: None,
    **dict.fromkeys(_DTYPES),
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MAX_DIMENSIONS and all(map(_is_size, value))


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, _Tensor) else None


# Storages


class _Storages:
    """The storages of a file, each read when the first tensor needs it.

    Args:
        load: Returns the bytes of a storage.
        big_endian: True if a big-endian machine wrote the file.
    """

    def __init__(self, load: Callable[[_Storage], bytes], big_endian: bool) -> None:
        self._load = load
        self._byte_order: Literal['>', '<'] = '>' if big_endian else '<'
        self._items_of: dict[_Storage, np.ndarray] = {}

    def array(self, tensor: _Tensor) -> np.ndarray:
        """Return a tensor as a view of its storage."""
        storage = tensor.storage
        count = math.prod(tensor.shape)
        strides = zip(tensor.shape, tensor.strides, strict=True)
        end = tensor.offset + sum((n - 1) * stride for n, stride in strides) + 1
        if not is_array_shape(tensor.shape) or (count and (end > storage.length or count > storage.length)):
            raise safe_pickle.UnpicklingError(
                f'is damaged: a tensor of shape {tensor.shape} does not fit into its '
                f'storage of {counted(storage.length, "element")}'
            )
        items = self._items(storage)
        if not count:
            return np.empty(tensor.shape, items.dtype)
        byte_strides = [stride * items.itemsize for stride in tensor.strides]
        return np.ndarray(tensor.shape, items.dtype, items, tensor.offset * items.itemsize, byte_strides)

    def _items(self, storage: _Storage) -> np.ndarray:
        if storage not in self._items_of:
            items = np.frombuffer(self._load(storage), storage.dtype.newbyteorder(self._byte_order))
            is_bfloat16 = storage.kind == _BFLOAT16
            self._items_of[storage] = (items.astype('<u4') << 16).view('<f4') if is_bfloat16 else items
        return self._items_of[storage]


def _read_zip(file: BinaryIO, size: int) -> tuple[_TorchUnpickler, Any, _Storages]:
    """Return the unpickler, the pickled data and the storages of a file in the zip format."""
    archive, members = open_deflated_zip(file, size, _MAX_GROWTH)
    pickles = find_pickles(members)
    if len(pickles) != 1:
        raise ValueError('it is a zip archive without a data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    pickle = archive.read(pickles[0])
    byte_order = archive.read(f'{root}byteorder') if f'{root}byteorder' in members else b'little'
    if byte_order not in (b'little', b'big'):
        raise ValueError('its byte order is neither little nor big')

    def load(storage: _Storage) -> bytes:
        member = members.get(f'{root}data/{storage.key}')
        if member is None or member.file_size != storage.length * storage.itemsize:
            raise ValueError(
                f'its storage {to_printable_ascii(storage.key)} is missing or does not have the length '
                'its tensors declare'
            )
        return archive.read(member)

    unpickler = _TorchUnpickler(io.BytesIO(pickle), len(pickle))
    return unpickler, unpickler.load(), _Storages(load, byte_order == b'big')


def _read_legacy(file: BinaryIO, size: int) -> tuple[_TorchUnpickler, Any, _Storages]:
    """Return the unpickler, the pickled data and the storages of a legacy file, which is little-endian."""
    unpickler = _TorchUnpickler(file, size)
    plain = (safe_pickle.SafeUnpickler(file, size) for _ in range(4))
    _, version, _ = (next(plain).load(must_end=False) for _ in range(3))
    data, keys = unpickler.load(must_end=False), next(plain).load(must_end=False)
    if version != _LEGACY_VERSION:
        raise ValueError(f'its format version is {to_printable_ascii(str(version))}, not {_LEGACY_VERSION}')
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError('it has no list of its storages')
    starts = _legacy_starts(file, size, keys, unpickler.storages)

    def load(storage: _Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f'its storage {to_printable_ascii(storage.key)} is missing')
        file.seek(starts[storage.key])
        return file.read(storage.length * storage.itemsize)

    return unpickler, data, _Storages(load, big_endian=False)


def _legacy_starts(file: BinaryIO, size: int, keys: list[str], storages: Mapping[str, _Storage]) -> dict[str, int]:
    """Return the position of the items of each storage; the length of the storage precedes them."""
    starts = {}
    for key in keys:
        storage = storages.get(key)
        length = file.read(8)
        if storage is None or length != storage.length.to_bytes(8, 'little'):
            raise ValueError(f'its storage {to_printable_ascii(key)} does not have the length its tensors declare')
        starts[key] = file.tell()
        if file.seek(storage.length * storage.itemsize, os.SEEK_CUR) > size:
            raise ValueError('it is truncated')
    if file.tell() != size:
        raise ValueError(f'{counted(size - file.tell(), "byte follows", "bytes follow")} its end')
    return starts
