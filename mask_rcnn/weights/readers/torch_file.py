"""Read PyTorch's files of tensors (``torch.save`` of a state dict) without PyTorch.

Both formats consist of a pickle whose tensors refer to *storages*, flat arrays outside of the pickle:

- since PyTorch 1.6, a zip archive: ``<name>/data.pkl``, ``<name>/data/<key>`` for each storage and
  ``<name>/byteorder`` (``torch/serialization.py``, ``_save``);
- before that ("legacy"), four consecutive pickles (a magic number, the protocol version, a description of the
  machine, the data), a fifth with the keys of the storages, and then each storage: its number of items in 8 bytes and
  its items (``_legacy_save``).

:mod:`~mask_rcnn.weights.readers.safe_pickle` reads the pickles and executes nothing; the only additional globals are
those of tensors.  A file of a whole saved model refers to the model's class and is refused.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, open_stored_zip, open_weight_file
from mask_rcnn.weights.readers import safe_pickle

#: The magic number in the first pickle of a legacy file.
_MAGIC = 0x1950A86A20F9469CFC6C

#: The first bytes of a legacy file: that pickle.
LEGACY_START = b'\x80\x02\x8a\x0a' + _MAGIC.to_bytes(10, 'little')

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
}

#: bfloat16: the upper half of the bits of a float32; NumPy does not have this type.
_BFLOAT16 = 'torch.BFloat16Storage'

_MAX_DIMENSIONS = 8

#: The usual keys of the state dict in checkpoints that contain more than that.
_STATE_DICT_KEYS = ('state_dict', 'model_state_dict', 'model', 'net', 'network')


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the state dict of a PyTorch file.

    Args:
        path: A ``.pth`` or ``.pt`` of either format: a state dict, or a checkpoint with one under a usual key
            (``'state_dict'``, ``'model'`` ...).

    Returns:
        dict: Array by name, in the file's order, without the prefix ``module.`` of ``DataParallel``.  Arrays keep
        their type, except that bfloat16 becomes float32; some share memory.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or contains more than plain data and tensors.
    """
    with open_weight_file(path) as (file, size):
        try:
            start = file.read(len(LEGACY_START))
            file.seek(0)
            if start == LEGACY_START:
                data, storages = _read_legacy(file, size)
            elif start.startswith(b'PK'):
                data, storages = _read_zip(file, size)
            else:
                raise safe_pickle.UnpicklingError(
                    'is not a PyTorch file: it is neither in the zip format nor in the legacy format '
                    '(files from before PyTorch 0.1.10 are not supported)'
                )
            tensors = _state_dict(data)
            return {name: storages.array(tensor) for name, tensor in tensors.items()}
        except safe_pickle.UnknownGlobalError as error:
            raise WeightFileError(path, f'{error}; only state dicts are supported, not saved models') from None
        except safe_pickle.UnpicklingError as error:
            raise WeightFileError(path, str(error)) from None
        except CORRUPT_FILE_ERRORS as error:
            reason = to_printable_ascii(str(error), 200) or type(error).__name__
            raise WeightFileError(path, f'is not a PyTorch file, or damaged: {reason}') from None


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
        return np.dtype('<u2' if self.kind == _BFLOAT16 else _DTYPES[self.kind])


@dataclass(frozen=True)
class _Tensor:
    """A view into a storage; offset and strides count items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _TorchUnpickler(safe_pickle.SafeUnpickler):
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
            raise safe_pickle.UnpicklingError('is refused: it refers to an object other than a storage of numbers')
        _, kind, key, _, length = reference[:5]
        is_known = isinstance(kind, safe_pickle.AllowedGlobal) and kind.name in (*_DTYPES, _BFLOAT16)
        if not (is_known and isinstance(key, str) and _is_size(length)):
            raise safe_pickle.UnpicklingError('is damaged: a storage without type, key and length')
        if reference[5:] not in ((), (None,)):
            raise safe_pickle.UnpicklingError('is refused: it has a view of a storage, which only PyTorch 0.1 wrote')
        return self.storages.setdefault(key, _Storage(kind.name, key, length))

    def make_tensor(self, arguments: tuple) -> _Tensor:
        """Apply ``_rebuild_tensor_v2(storage, offset, shape, strides, ...)``; the rest concerns training."""
        if len(arguments) < 4:
            raise safe_pickle.UnpicklingError('is damaged: a tensor without storage, offset, shape and strides')
        storage, offset, shape, strides = arguments[:4]
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
        if not arguments or not isinstance(arguments[0], _Tensor):
            raise safe_pickle.UnpicklingError('is damaged: a parameter without a tensor')
        return arguments[0]

    def make_size(self, arguments: tuple) -> tuple:
        """Apply ``torch.Size((n, ...))``."""
        if len(arguments) != 1 or not _are_sizes(arguments[0]):
            raise safe_pickle.UnpicklingError('is damaged: a size without numbers')
        return arguments[0]

    def set_state(self, target: Any, state: Any) -> None:
        """Ignore the ``_metadata`` of a state dict (versions of the modules); refuse other attributes."""
        if not (isinstance(target, dict) and isinstance(state, dict) and set(state) <= {'_metadata'}):
            super().set_state(target, state)


_TorchUnpickler.allowed_globals = {
    **safe_pickle.SafeUnpickler.allowed_globals,
    'torch._utils._rebuild_tensor': _TorchUnpickler.make_tensor,
    'torch._utils._rebuild_tensor_v2': _TorchUnpickler.make_tensor,
    'torch._utils._rebuild_parameter': _TorchUnpickler.make_parameter,
    'torch.Size': _TorchUnpickler.make_size,
    _BFLOAT16: None,
    **dict.fromkeys(_DTYPES),
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MAX_DIMENSIONS and all(map(_is_size, value))


def _state_dict(data: Any) -> dict[str, _Tensor]:
    """Return the dictionary of tensors in the unpickled data."""
    if not isinstance(data, dict):
        raise safe_pickle.UnpicklingError('contains a single value or a list, not a state dict')
    candidates = [data] + [data[key] for key in _STATE_DICT_KEYS if isinstance(data.get(key), dict)]
    for candidate in candidates:
        tensors = {
            name: value for name, value in candidate.items() if isinstance(name, str) and isinstance(value, _Tensor)
        }
        if tensors:
            return {name.removeprefix('module.'): tensor for name, tensor in tensors.items()}
    raise safe_pickle.UnpicklingError(
        f'has no tensors: it is not a state dict, and has none under {", ".join(_STATE_DICT_KEYS)}'
    )


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
        if count and (end > storage.length or count > storage.length):
            raise safe_pickle.UnpicklingError(
                f'is damaged: a tensor of shape {tensor.shape} does not fit into its '
                f'storage of {storage.length} elements'
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


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, _Storages]:
    """Return the pickled data and the storages of a file in the zip format."""
    archive, members = open_stored_zip(file, size)
    pickles = [name for name in members if name.endswith('/data.pkl')]
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

    return _TorchUnpickler(io.BytesIO(pickle), len(pickle)).load(), _Storages(load, byte_order == b'big')


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, _Storages]:
    """Return the pickled data and the storages of a file in the legacy format, which is little-endian."""
    unpicklers = [_TorchUnpickler(file, size) for _ in range(5)]
    _, version, _, data, keys = (unpickler.load(must_end=False) for unpickler in unpicklers)
    if version != _LEGACY_VERSION:
        raise ValueError(f'its format version is {to_printable_ascii(str(version))}, not {_LEGACY_VERSION}')
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError('it has no list of its storages')
    starts = _legacy_starts(file, size, keys, unpicklers[3].storages)

    def load(storage: _Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f'its storage {to_printable_ascii(storage.key)} is missing')
        file.seek(starts[storage.key])
        return file.read(storage.length * storage.itemsize)

    return data, _Storages(load, big_endian=False)


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
        raise ValueError(f'{size - file.tell()} bytes follow its end')
    return starts
