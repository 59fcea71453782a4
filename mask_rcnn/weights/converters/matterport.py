"""Convert Matterport's ``.h5`` weight files: read HDF5 as data, and resolve the names that Keras gives to arrays.

Keras saves one group per layer (``save_weights``, or all of them below ``model_weights`` for ``save``), with datasets
such as ``conv1/conv1/kernel:0``.  A model inside a model adds groups in between, such as
``rpn_model/rpn_conv_shared/kernel:0`` (a multi-GPU model does the same to the whole network), and a repeated name gets
a suffix (``conv1_1``).  Therefore, a dataset belongs to the last layer of the network in its path.
:mod:`mask_rcnn.weights.converters.matterport_layers` maps the layers to the native network.

Only arrays are read, not attributes.  Links to other files or objects, virtual and external datasets, and compression
other than the format's own are never followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import MATTERPORT, Config
from mask_rcnn.weights.converters import matterport_layers
from mask_rcnn.weights.converters.mapping import ConvertedWeights
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file

try:
    import h5py
except ImportError:  # no wheel for Python 3.15; all other formats are read without it
    h5py = None

#: Name of the format in the metadata of converted files.
FORMAT = 'matterport-h5'

_Path = str | os.PathLike

#: The first bytes of an HDF5 file.
SIGNATURE = b'\x89HDF\r\n\x1a\n'

#: Limits on objects, group levels and the length of a path; files of Keras have about 1000, 5 and 100.
_MAX_OBJECTS, _MAX_DEPTH, _MAX_PATH = 20_000, 16, 1000

#: Filters built into HDF5 (``H5Zpublic.h``): deflate, shuffle, checksum.  Others would be loaded as plugins.
_FILTERS = {1, 2, 3}

#: Maximum ratio of the unpacked arrays' size to the size of the file (trained weights hardly compress).
_MAX_GROWTH = 1.5

#: Errors that h5py raises for damaged files.
_CORRUPT_FILE_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)

#: Keras' names of arrays, and those of :mod:`mask_rcnn.weights.converters.matterport_layers`.
_KINDS = {
    'kernel': 'kernel',
    'bias': 'bias',
    'gamma': 'gamma',
    'beta': 'beta',
    'moving_mean': 'mean',
    'moving_variance': 'var',
}

#: Permutations from Keras' order of a kernel's axes to the native order, by the number of axes: ``(kh, kw, in, out)``
#: (transposed convolutions: ``(kh, kw, out, in)``) and ``(in, out)``.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


def read(path: _Path, settings: Mapping[str, Any] | None = None) -> ConvertedWeights:
    """Read and convert a weight file of Matterport's Mask R-CNN.  Nothing in the file is executed.

    Args:
        path: An ``.h5`` file, saved in training or inference mode.
        settings: Settings that the file does not contain, under the names of Matterport's ``Config``, such as
            ``IMAGE_MAX_DIM``; see :mod:`mask_rcnn.weights.converters.matterport_cfg`.

    Raises:
        WeightFileError: The file is not such a file, is damaged, arrays are missing or have the wrong shape (the
            message lists all of them), the settings contradict it, or h5py is not installed.
        ValueError: A setting is not valid.
    """
    arrays, skipped = _read_contents(path)

    def group_skipped(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        groups = {**skipped, 'unknown': [*skipped['unknown'], *sorted(names)]}
        return {group: tuple(members) for group, members in groups.items() if members}

    return matterport_layers.convert_weights(path, FORMAT, arrays, _name_of, settings or {}, group_skipped)


def _name_of(layer: str, kind: str) -> str:
    return f'{layer}/{kind}'


# Contents of the file


def _read_contents(path: _Path) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Return the arrays by layer and kind, in the native order of axes, and the names of all other objects by group."""
    with open_weight_file(path) as (file, size):
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise WeightFileError(path, 'is not an HDF5 file')
        if h5py is None:
            raise WeightFileError(
                path,
                'is an HDF5 file, and h5py cannot be imported: pip install h5py, or convert the file with a Python of '
                'which h5py has a build (mask-rcnn convert)',
            )
        try:
            with h5py.File(file, 'r') as opened:
                return _Reader(path, size).read(opened)
        except WeightFileError:
            raise
        except _CORRUPT_FILE_ERRORS as error:
            reason = to_printable_ascii(str(error) or 'no reason given')
            raise WeightFileError(path, f'is a damaged HDF5 file: {reason}') from None


class _Reader:
    """A reader of the arrays of one file.

    Args:
        path: The file, for errors.
        size: Its size in bytes.
    """

    def __init__(self, path: _Path, size: int) -> None:
        self._path = path
        self._allowed = size * _MAX_GROWTH
        self._layers = _layer_names()

    def read(self, file: h5py.File) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
        """Return the result of :func:`_read_contents`."""
        arrays: dict[str, np.ndarray] = {}
        skipped: dict[str, list[str]] = {'optimizer': [], 'links': [], 'unknown': []}
        for name, dataset in self._walk(file, skipped):
            key = self._key(name)
            if 'optimizer_weights' in name.split('/'):
                skipped['optimizer'].append(to_printable_ascii(name))
            elif key is None:
                skipped['unknown'].append(to_printable_ascii(name))
            elif key in arrays:
                raise WeightFileError(self._path, f'has {key} twice')
            else:
                arrays[key] = self._array(key, dataset)
        if not any(key.startswith(('rpn_class_raw/', 'mrcnn_class_logits/')) for key in arrays):
            raise WeightFileError(
                self._path,
                'is not a Mask R-CNN of Matterport: the layers rpn_class_raw and mrcnn_class_logits are missing',
            )
        return arrays, skipped

    def _walk(self, root: h5py.Group, skipped: dict[str, list[str]]) -> Iterator[tuple[str, h5py.Dataset]]:
        """Yield every dataset once with its path, and record the links that are not followed."""
        seen, stack = set(), [('', root)]
        while stack:
            name, node = stack.pop()
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(node, h5py.Dataset):
                yield name, node
                continue
            if name.count('/') > _MAX_DEPTH or len(seen) + len(stack) + len(node) > _MAX_OBJECTS:
                raise WeightFileError(self._path, 'has more groups than any network')
            for child in node:
                path = f'{name}/{child}'
                if len(path) > _MAX_PATH:
                    raise WeightFileError(
                        self._path, f'has a path of more than {_MAX_PATH} characters: {to_printable_ascii(path)}'
                    )
                if not isinstance(node.get(child, getlink=True), h5py.HardLink):
                    skipped['links'].append(to_printable_ascii(path))
                elif node.get(child, getclass=True) in (h5py.Group, h5py.Dataset):
                    stack.append((path, node[child]))

    def _key(self, name: str) -> str | None:
        """Return ``layer/kind`` of a dataset, or ``None`` if it does not belong to the network."""
        *groups, last = name.split('/')
        kind = _KINDS.get(last.partition(':')[0])
        for group in reversed(groups):
            for layer in (group, re.sub(r'_\d+$', '', group)):
                if layer in self._layers:
                    return kind and _name_of(layer, kind)
        return None

    def _array(self, key: str, dataset: h5py.Dataset) -> np.ndarray:
        problem = self._problem(dataset)
        if problem:
            raise WeightFileError(self._path, f'{key} {problem}')
        array = dataset[()]
        return array.transpose(_AXES[array.ndim]) if array.ndim in _AXES else array

    def _problem(self, dataset: h5py.Dataset) -> str | None:
        """Return the reason not to read a dataset, or ``None``; count the dataset's size."""
        if dataset.shape is None or dataset.dtype.kind != 'f' or dataset.dtype.itemsize > 8:
            return f'is not an array of floating-point numbers, but of {to_printable_ascii(str(dataset.dtype))}'
        if dataset.is_virtual or dataset.external:
            return 'is stored in another file'
        properties = dataset.id.get_create_plist()
        filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
        if not filters <= _FILTERS:
            return 'is compressed with an unsupported method'
        self._allowed -= dataset.nbytes
        chunk_size = np.prod(dataset.chunks or (0,), dtype=float) * dataset.dtype.itemsize
        if self._allowed < 0 or chunk_size > max(dataset.nbytes, 1 << 20):
            return f'declares the shape {dataset.shape}, which is more than the file contains'
        if dataset.id.get_storage_size() == 0 and dataset.nbytes:
            return 'has no values'
        return None


def _layer_names() -> set[str]:
    """Return the names of the layers of all supported networks."""
    largest = Config(extractor='resnet101_fpn', dialect=MATTERPORT, norm='bn', roi_size=7, max_size=1024)
    return {
        name.partition('/')[0]
        for mapping in matterport_layers.param_mappings(largest, _name_of)
        for name in mapping.inputs
    }
