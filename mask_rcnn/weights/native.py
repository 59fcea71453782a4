"""The native weight file format: an uncompressed ``.npz`` of arrays by parameter path, and JSON metadata.

The arrays have the names of ``chain.namedparams()`` without the first slash, such as ``extractor/conv1/conv/W``; the
member ``meta`` contains :class:`ModelMeta` as UTF-8 JSON.  ``numpy.load`` can also read the file.  Reading never
unpickles, and never allocates more than the size of the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeGuard, cast

import chainer
import numpy as np

from mask_rcnn.config import DIALECTS, EXTRACTORS, Config, fields
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.weights.errors import UnregisteredNameError, WeightFileError, corruption_error, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, create_weight_file, open_stored_zip, open_weight_file

_Check = Callable[[Any], bool]

#: Version of the format that this module writes, and the newest one it reads.
FORMAT_VERSION = 1

KINDS = ('model', 'backbone')

_META = 'meta'

#: Fields of :class:`ModelMeta` that have another name in files.
_JSON_KEYS = {'skipped': 'left'}

#: ``{'descr': '<f4', 'fortran_order': False, 'shape': (64, 3, 7, 7), }``, padded with blanks.
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<|](?:[iu][1248]|f[248]))', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:\d{1,18}, ?){0,32}(?:\d{1,18})?)\), \} *\n"
)

_DTYPES = ('float16', 'float32', 'float64', 'int32', 'int64')


@dataclass(frozen=True)
class Source:
    """The source of converted weights.

    Args:
        file: Name of the file, without folders.
        sha256: SHA-256 of the content, hexadecimal.
        format: Name of the format, such as ``'detectron-pickle'``.
    """

    file: str
    sha256: str
    format: str


_MAX_CLASSES = 1 << 16
_INT64 = fields.integer(-(1 << 63), (1 << 63) - 1)

#: The type and the range of fields of :class:`ModelMeta`.
_CHECKS: dict[str, fields.Check] = {
    'kind': fields.choice(KINDS, f'one of {", ".join(KINDS)}'),
    'config': fields.instance_of(Config, 'a Config'),
    'class_names': fields.sequence(fields.text, 'a list of names', min_length=0, max_length=_MAX_CLASSES),
    'category_ids': fields.sequence(_INT64, 'a list of integers', min_length=0, max_length=_MAX_CLASSES),
    'notes': fields.sequence(fields.text, 'a list of lines', min_length=0, max_length=1 << 20),
}


@dataclass(frozen=True)
class ModelMeta:
    """Metadata that is stored with the arrays of a network.

    Args:
        kind: ``'model'``, or ``'backbone'`` for ImageNet weights (extractor and res5 only).
        config: The network.  For a backbone, only ``extractor``, ``dialect`` and ``norm`` are meaningful.
        class_names: Name of each foreground class; empty for a backbone.
        category_ids: Category id of each class in the dataset, for results in COCO's format.
        source: The converted file, or ``None`` for weights trained with this library.
        skipped: Number of arrays of the source that were not converted, by group.
        notes: Lines about the conversion for the user.

    Raises:
        ValueError: A value is not allowed, or the number of classes differs from the network's.
    """

    kind: str
    config: Config
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    source: Source | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)
        if len(set(self.category_ids)) != len(self.category_ids):
            raise ValueError('two classes have the same category id')
        n_classes = self.config.n_fg_class if self.kind == 'model' else 0
        for name in ('class_names', 'category_ids'):
            if len(getattr(self, name)) != n_classes:
                raise ValueError(f'{len(getattr(self, name))} {name} for {counted(n_classes, "class", "classes")}')

    def to_json(self) -> str:
        """Return the metadata as JSON text.

        Raises:
            ValueError: The dialect is not a named one (:meth:`mask_rcnn.config.Config.to_dict`).
        """
        data = {_JSON_KEYS.get(f.name, f.name): getattr(self, f.name) for f in dataclasses.fields(self)}
        data['config'] = self.config.to_dict()
        data['source'] = dataclasses.asdict(self.source) if self.source else None
        data['left'] = dict(self.skipped)
        return json.dumps({'format_version': FORMAT_VERSION, **data}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelMeta:
        """Parse the text of :meth:`to_json`.

        Raises:
            UnregisteredNameError: The extractor or the dialect is not registered in this process.
            ValueError: The text is not such metadata, or has a newer version.
        """
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError('nested too deeply') from None
        version = data.pop('format_version', None) if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError('it is not the metadata of a weight file')
        if version > FORMAT_VERSION:
            raise ValueError(f'format version {version} is newer than this program ({FORMAT_VERSION})')
        _check_fields(data)
        _check_registered(data['config'])
        source = data['source']
        try:
            config = Config.from_dict(data['config'])
        except ValueError as error:
            raise ValueError(f'metadata field config: {error}') from None
        return cls(
            kind=data['kind'],
            config=config,
            class_names=tuple(data['class_names']),
            category_ids=tuple(data['category_ids']),
            source=Source(**source) if source else None,
            skipped=data['left'],
            notes=tuple(data['notes']),
        )


def _check_fields(data: Mapping[str, Any]) -> None:
    """Check that exactly the fields of :class:`ModelMeta` are there and have the right types."""
    unknown, missing = sorted(set(data) - set(_FIELDS)), sorted(set(_FIELDS) - set(data))
    if unknown or missing:
        raise ValueError(f'metadata fields unknown: {to_printable_ascii(str(unknown))}, missing: {missing}')
    for name, (is_valid, expected) in _FIELDS.items():
        if not is_valid(data[name]):
            raise ValueError(f'metadata field {name} must be {expected}')


def _check_registered(config: Mapping[str, Any]) -> None:
    """Raise :class:`UnregisteredNameError` for names that another process may have registered."""
    extractor, dialect = config.get('extractor'), config.get('dialect')
    if isinstance(dialect, dict):
        dialect = dialect.get('name')
    if _can_be_registered(extractor) and extractor.endswith('_fpn') and extractor not in EXTRACTORS:
        raise UnregisteredNameError('extractor', extractor, 'register_backbone', 'Your own backbone')
    if _can_be_registered(dialect) and dialect not in DIALECTS:
        raise UnregisteredNameError('dialect', dialect, 'register_dialect', 'Your own dialect')


def _can_be_registered(name: Any) -> TypeGuard[str]:
    try:
        fields.check_new_name(name)
    except ValueError:
        return False
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_list(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_integer, value.values()))


def _is_source(value: Any) -> bool:
    names = {f.name for f in dataclasses.fields(Source)}
    return value is None or (isinstance(value, dict) and set(value) == names and all(map(_is_text, value.values())))


#: Each metadata field's check and its description for errors.
_FIELDS: dict[str, tuple[_Check, str]] = {
    'kind': (_is_text, 'a string'),
    'config': (lambda value: isinstance(value, dict), 'an object'),  # Config checks its fields
    'class_names': (_is_list(_is_text), 'a list of strings'),
    'category_ids': (_is_list(_is_integer), 'a list of integers'),
    'source': (_is_source, 'null or an object with the strings file, sha256 and format'),
    'left': (_is_counts, 'an object of integers'),
    'notes': (_is_list(_is_text), 'a list of strings'),
}


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Args:
        meta: The metadata.
        arrays: Array by parameter path.
    """

    meta: ModelMeta
    arrays: Mapping[str, np.ndarray]


def write_weights(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], meta: ModelMeta) -> None:
    """Write a weight file, which appears under its name only when it is complete.

    Args:
        path: The file to write, usually ``*.npz``.
        arrays: NumPy array of floats or integers by parameter path.
        meta: The metadata.

    Raises:
        WeightFileError: The file cannot be written; an existing one stays unchanged.
        ValueError: The format does not support the type of an array, or reserves its name.
    """
    for name, array in arrays.items():
        if name == _META or not name:
            raise ValueError(f'{name!r} cannot be the name of an array')
        if array.dtype.name not in _DTYPES:
            raise ValueError(f'{name} is {array.dtype}, not one of {", ".join(_DTYPES)}')
    # Chainer's serialisers enumerate the parameters of a link in the order of their hashes, which differs by process.
    members = {_META: np.frombuffer(meta.to_json().encode(), np.uint8), **dict(sorted(arrays.items()))}
    with create_weight_file(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in members.items():
            # ZipInfo has a fixed date, so that equal weights make equal files.
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order='C'), (1, 0), allow_pickle=False)


def read_weights(path: str | os.PathLike) -> WeightFile:
    """Read a file that :func:`write_weights` wrote.

    Raises:
        WeightFileError: The file cannot be read, is damaged or has another format.
    """
    with open_weight_file(path) as (file, size):
        try:
            return _read_archive(file, size)
        except CORRUPT_FILE_ERRORS as error:
            raise corruption_error(path, 'is not a weight file of this program, or damaged', error) from None


def _read_archive(file: BinaryIO, size: int) -> WeightFile:
    archive, members = open_stored_zip(file, size)
    if f'{_META}.npy' not in members:
        raise ValueError('an .npz needs the member meta that mask-rcnn convert writes')
    arrays = {name.removesuffix('.npy'): _read_member(archive, member) for name, member in members.items()}
    if len(arrays) != len(members):
        raise ValueError('it has two members of one name')
    meta = arrays.pop(_META)
    if meta.dtype != np.uint8:
        raise ValueError(f'its member meta must be uint8 (JSON text), not {meta.dtype}')
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(f'{name} is {array.dtype}, not one of {", ".join(_DTYPES)}')
    return WeightFile(ModelMeta.from_json(meta.tobytes()), arrays)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an ``.npy`` member whose size must agree with its header."""
    with archive.open(member) as stream:
        file = cast(zipfile.ZipExtFile, stream)  # the type of ZipFile.open for reading
        shape, dtype = _read_header(file, member.filename)
        n_bytes = math.prod(shape) * dtype.itemsize
        if file.tell() + n_bytes != member.file_size:
            raise ValueError(f'{member.filename} does not have the size that its header declares')
        array = np.empty(shape, dtype)
        if n_bytes and file.readinto(array.reshape(-1).view(np.uint8).data) != n_bytes:
            raise ValueError(f'{member.filename} is truncated')
        if file.read(1):  # reaches the end, where the checksum is verified
            raise ValueError(f'{member.filename} is longer than it declares')
        return array


def _read_header(file: zipfile.ZipExtFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Parse the only form of header that this format has; NumPy's parser accepts any Python literal."""
    start = file.read(10)
    match = None
    if start[:8] == b'\x93NUMPY\x01\x00' and len(start) == 10:
        match = _HEADER.fullmatch(file.read(int.from_bytes(start[8:], 'little')))
    if match is None:
        raise ValueError(f'{name} is not a plain array of numbers')
    shape = tuple(int(n) for n in match['shape'].split(b',') if n.strip())
    return shape, np.dtype(match['dtype'].decode())


def load_arrays(
    chain: chainer.Link, arrays: Mapping[str, np.ndarray], *, source: str | os.PathLike, partial: bool = False
) -> None:
    """Copy arrays into the parameters and persistent values of a link on the CPU or a GPU.

    Nothing is copied unless everything fits.

    Args:
        chain: The link.
        arrays: Array by path, such as ``'extractor/conv1/conv/W'``: the names in the link without the first slash.
        source: Name of the file, for errors.
        partial: Accept that parameters of the link are missing in ``arrays``, as for ImageNet weights.

    Raises:
        WeightFileError: Names are missing or unexpected or shapes differ; the message lists all of them.
    """
    params = {path.lstrip('/'): param for path, param in chain.namedparams()}
    persistents = {
        f'{path}/{name}'.lstrip('/'): (link, name)
        for path, link in chain.namedlinks()
        for name in sorted(link._persistent)
    }  # Chainer has no public function that lists them
    shapes: dict[str, tuple[int, ...] | None]
    shapes = {path: None if param.array is None else param.shape for path, param in params.items()}
    shapes.update({path: np.shape(getattr(link, name)) for path, (link, name) in persistents.items()})
    problems = _find_mismatches(shapes, arrays, partial)
    if problems:
        raise WeightFileError(source, f'does not fit the network: {"; ".join(problems)}')
    for path, array in arrays.items():
        if path in params:
            _set_parameter(params[path], array)
        else:
            _set_persistent(*persistents[path], array)


def _find_mismatches(
    shapes: Mapping[str, tuple[int, ...] | None], arrays: Mapping[str, np.ndarray], partial: bool
) -> list[str]:
    missing = [path for path in shapes if path not in arrays]
    unexpected = [path for path in arrays if path not in shapes]
    problems = [
        f'{path} has the shape {arrays[path].shape}, not {shape}'
        for path, shape in shapes.items()
        if path in arrays and shape is not None and arrays[path].shape != shape
    ]
    if missing and not partial:
        problems.append(f'missing {", ".join(missing)}')
    if unexpected:
        problems.append(f'unexpected {", ".join(to_printable_ascii(path) for path in unexpected)}')
    return problems


def _set_parameter(param: chainer.Parameter, array: np.ndarray) -> None:
    if param.array is None:
        param.initialize(array.shape)
    target: Any = param.array
    target[...] = get_array_module(target).asarray(array)


def _set_persistent(link: chainer.Link, name: str, array: np.ndarray) -> None:
    value = getattr(link, name)
    if np.isscalar(value):
        scalar_type: Any = type(value)
        setattr(link, name, scalar_type(array))
    else:
        value[...] = get_array_module(value).asarray(array)
