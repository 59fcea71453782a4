"""The table of weight file formats, and their detection by content.

Suffixes are not reliable: a ``.pth`` or a ``.pkl`` may be a zip archive or a pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn.config import DENA, DETECTRON, Dialect
from mask_rcnn.io.atomic_file import is_replaced
from mask_rcnn.io.console import escape
from mask_rcnn.weights import snapshot_model, unsupported
from mask_rcnn.weights.converters import dena, detectron, imagenet, matterport, mindspore, pytorch
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, open_weight_file, zip_member_names
from mask_rcnn.weights.native import read_weights
from mask_rcnn.weights.norm_arrays import convert_norm_arrays
from mask_rcnn.weights.readers import safe_pickle, torch_file

#: Name of the native format.
NATIVE = 'mask-rcnn-npz'

#: Number of bytes at the beginning of a file that determine its format.
_START = 4096

_Path = str | os.PathLike


@dataclass(frozen=True)
class Format:
    """A weight file format.

    Args:
        name: Identifier, such as ``'detectron-pickle'``.
        title: Name for messages.
        matches: Returns True if a file may have this format, given its first bytes and, for a zip archive, the names of
            its members.
        read: Reads and converts a file of this format.
        suffix: Last part of the default name of a converted file; ``None`` for the native format.
        takes_settings: True if the second argument of ``read`` is a mapping of settings that the file does not contain,
            under the names of Matterport's ``Config`` (:mod:`mask_rcnn.weights.converters.matterport_cfg`).
        takes_bn2affine: True if ``read`` has the argument ``bn2affine``, because batch normalisations in such files may
            be affine channels (:mod:`mask_rcnn.weights.converters.dena`).
    """

    name: str
    title: str
    matches: Callable[[bytes, frozenset[str]], bool]
    read: Callable[..., ConvertedWeights]
    suffix: str | None = None
    takes_settings: bool = False
    takes_bn2affine: bool = False


def detect_format(path: _Path) -> Format:
    """Return the format of a file.

    Raises:
        WeightFileError: The file cannot be read, or its format is unknown.
    """
    if os.path.isdir(path):
        raise WeightFileError(path, unsupported.describe_folder(path))
    with open_weight_file(path) as (file, size):
        start = file.read(_START)
        names: frozenset[str] = frozenset()
        if start.startswith(b'PK'):
            try:
                names = zip_member_names(file, size)
            except CORRUPT_FILE_ERRORS as error:
                reason = to_printable_ascii(str(error), 200)
                raise WeightFileError(path, f'is a damaged zip archive: {reason}') from None
    known_problem = unsupported.describe_unsupported(path, start, names)
    if known_problem is not None:
        raise WeightFileError(path, known_problem)
    for format in FORMATS:
        if format.matches(start, names):
            return format
    known_problem = None if names else safe_pickle.other_format(start)
    if known_problem is not None:
        raise WeightFileError(path, known_problem)
    kind = 'zip archive' if names else 'file'
    titles = ', '.join(format.title for format in FORMATS)
    content = unsupported.describe_content(start, names)
    hint = f': it is {content}' if content else ''
    raise WeightFileError(path, f'is not a {kind} of weights in a supported format{hint} (supported: {titles})')


def read(
    path: _Path,
    settings: Mapping[str, Any] | None = None,
    *,
    bn2affine: bool = False,
    dialect: Dialect | None = None,
) -> ConvertedWeights:
    """Read and convert a weight file of any format.  Nothing in the file is executed.

    Args:
        path: The file.
        settings: Settings that files of Matterport's network do not contain; ``None`` or empty for other formats.
        bn2affine: Return affine channels instead of batch normalisations: for files of DeNA's program ``gamma`` and
            ``beta``, for others the affine channels with the same output.
        dialect: Dialect in which to run the network, with the same arrays
            (:meth:`mask_rcnn.config.Config.in_dialect`); ``None`` for that of the file's program.

    Raises:
        WeightFileError: The format is unknown, the file is damaged or not supported, the settings contradict it, or
            there are settings for a format that takes none.
        ValueError: A setting is not valid, or the network cannot run in the dialect.
    """
    format = detect_format(path)
    if settings and not format.takes_settings:
        raise WeightFileError(
            path, f'takes no settings ({", ".join(map(to_printable_ascii, settings))}): it is {format.title}'
        )
    try:
        if format.takes_settings:
            file = format.read(path, settings or {})
        else:
            file = format.read(path, bn2affine=bn2affine) if format.takes_bn2affine else format.read(path)
    except WeightFileError:
        raise
    except ValueError as error:
        if settings:
            raise
        raise WeightFileError(path, f'its network is not supported: {to_printable_ascii(str(error), 200)}') from None
    except MemoryError:
        raise WeightFileError(path, 'does not fit into memory') from None
    norm = 'affine' if bn2affine else file.config.norm
    return _convert(path, file, norm, dialect or file.config.dialect)


def _convert(path: _Path, file: ConvertedWeights, norm: str, dialect: Dialect) -> ConvertedWeights:
    """Return a file's network with another normalisation and in another dialect."""
    before = file.config
    if (norm, dialect) == (before.norm, before.dialect):
        return file
    try:
        config = before.in_dialect(dialect).replace(norm=norm)
    except ValueError as error:
        raise ValueError(f'{escape(path)}: {error}') from None
    arrays = convert_norm_arrays(path, file.arrays, norm, before.dialect.backbone.bn_eps, dialect.backbone.bn_eps)
    return dataclasses.replace(file, config=config, arrays=arrays)


def default_name(file: ConvertedWeights) -> str:
    """Return the default file name for converted weights, which follows Detectron's file names.

    Examples are ``e2e_mask_rcnn_R-50-C4_1x_d2c.npz`` for Detectron's R-50-C4, ``R-50_d2c.npz`` for its ImageNet weights
    and ``mask_rcnn_R-101-FPN_m2c.npz`` for Matterport's network.
    """
    suffix = _suffix(file)
    if file.kind == 'backbone':
        return f'{backbone_name(file.config)}_{suffix}.npz'
    backbone, heads = network_name(file.config).split(maxsplit=1)
    kind = heads.lower().replace(' ', '_').replace('r-cnn', 'rcnn')
    if file.format == detectron.FORMAT:
        return f'e2e_{kind}_{backbone}_1x_{suffix}.npz'
    return f'{kind}_{backbone}_{suffix}.npz'


def _suffix(file: ConvertedWeights) -> str:
    """Return the last part of a default name, which differs for the readings of one file."""
    format, config = BY_NAME[file.format], file.config
    original = {dena.FORMAT: DENA, detectron.FORMAT: DETECTRON}.get(file.format, config.dialect)
    parts = [format.suffix]
    if format.takes_bn2affine and config.norm == 'affine':
        parts.append('affine')
    if config.dialect != original:
        parts.append(config.dialect.name)
    return '_'.join(map(str, parts))


@contextlib.contextmanager
def keep_source_file(path: Path) -> Iterator[Path | None]:
    """Rename a file that is not in the native format while a new file is written in its place.

    If the ``with`` block raises an exception, the file gets its name back.

    Args:
        path: A file that may exist, ``NAME.npz``; pipes, devices and open files (``/dev/stdout``) stay.

    Yields:
        The new path, ``NAME.old.npz``, ``NAME.old.2.npz``, ... (the first that is free); ``None`` if there is no such
        file, or one in the native format.
    """
    if not is_replaced(path) or is_native(path):
        yield None
        return
    kept, number = path.with_name(f'{path.stem}.old{path.suffix}'), 2
    while os.path.lexists(kept):
        kept = path.with_name(f'{path.stem}.old.{number}{path.suffix}')
        number += 1
    path.rename(kept)
    try:
        yield kept
    except BaseException:
        kept.rename(path)
        raise


def is_native(path: _Path) -> bool:
    """Return whether a file has the native format, as opposed to another format or a damaged file."""
    try:
        return detect_format(path).name == NATIVE
    except WeightFileError:
        return False


def _read_native(path: _Path) -> ConvertedWeights:
    weights = read_weights(path)
    meta = weights.meta
    origin = (f'converted from {meta.source.file} ({meta.source.format})',) if meta.source else ()
    report = ConversionReport(tuple(weights.arrays), {}, origin + meta.notes)
    return ConvertedWeights(
        meta.kind, NATIVE, meta.config, weights.arrays, report, '', meta.class_names, meta.category_ids
    )


# Detection by content


def _has_member(name: str) -> Callable[[bytes, frozenset[str]], bool]:
    return lambda start, members: name in members


def _is_dena(start: bytes, members: frozenset[str]) -> bool:
    return dena.matches(members)


def _is_torch(start: bytes, members: frozenset[str]) -> bool:
    return torch_file.is_legacy(start) or bool(torch_file.find_pickles(members))


def _is_hdf5(start: bytes, members: frozenset[str]) -> bool:
    return start.startswith(matterport.SIGNATURE)


def _is_mindspore(start: bytes, members: frozenset[str]) -> bool:
    return mindspore.is_checkpoint(start)


def _is_pickle(start: bytes, members: frozenset[str]) -> bool:
    """Return True for protocol 2 or later, and for a dictionary or a global in older protocols."""
    return re.match(rb'\x80[\x02-\x05]|\(d|\(l|\}q|c[\w.]+\n', start) is not None


def _is_caffe(start: bytes, members: frozenset[str]) -> bool:
    """Return True if the file begins like ``NetParameter``: with a name or a layer (fields 1, 2 and 100)."""
    return re.match(rb'\n[\x01-\x7f][ -~]|\x12[\x80-\xff]|\xa2\x06', start) is not None


#: All formats; the most specific ones first.
FORMATS = (
    Format(NATIVE, "this program's .npz", _has_member('meta.npy'), _read_native),
    Format(
        snapshot_model.FORMAT,
        "a training snapshot's .npz",
        _has_member(snapshot_model.HEADER),
        snapshot_model.read,
        'snapshot',
    ),
    Format(imagenet.CAFFE_NPZ, "a Caffe ResNet's .npz", _has_member('res2a_branch2a/W.npy'), imagenet.read_caffe_npz),
    Format(
        imagenet.CHAINER_NPZ, "a Chainer ResNet's .npz", _has_member('res2/a/conv1/W.npy'), imagenet.read_chainer_npz
    ),
    Format(
        imagenet.MOBILENET_NPZ, "a MobileNetV1's .npz", _has_member('Conv2d_0/weights.npy'), imagenet.read_mobilenet_npz
    ),
    Format(dena.FORMAT, "Chainer_Mask_R-CNN's .npz", _is_dena, dena.read, 'dena2c', takes_bn2affine=True),
    Format(pytorch.FORMAT, "PyTorch's .pth", _is_torch, pytorch.read, 'p2c', takes_settings=True),
    Format(matterport.FORMAT, "Matterport's .h5", _is_hdf5, matterport.read, 'm2c', takes_settings=True),
    Format(mindspore.FORMAT, "MindSpore's .ckpt", _is_mindspore, mindspore.read, 'ms2c'),
    Format(imagenet.CAFFEMODEL, "Caffe's .caffemodel", _is_caffe, imagenet.read_caffemodel),
    Format(detectron.FORMAT, "Detectron's .pkl", _is_pickle, detectron.read, 'd2c'),
)

BY_NAME = {format.name: format for format in FORMATS}
