"""The table of weight file formats, and their detection by content.

Suffixes are not reliable: a ``.pth`` or a ``.pkl`` may be a zip archive or a pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn.config import DENA, DETECTRON, Dialect, fields
from mask_rcnn.io.atomic_file import is_replaced
from mask_rcnn.io.console import escape
from mask_rcnn.weights import safetensors_model, snapshot_model, unsupported
from mask_rcnn.weights.converters import (
    dena,
    detectron,
    detectron2,
    detectron2_cfg,
    imagenet,
    matterport,
    matterport_cfg,
    mindspore,
    pytorch,
    torchvision,
    torchvision_cfg,
)
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.converters.settings import FileSettings, OtherNetworkError, SettingError
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, open_weight_file, zip_member_names
from mask_rcnn.weights.native import read_weights
from mask_rcnn.weights.norm_arrays import config_with_norm, convert_norm_arrays
from mask_rcnn.weights.readers import safe_pickle, safetensors_file, state_dict_file, torch_file

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
        matches: Returns True if a file may have this format.
        read: Reads and converts a file of this format.
        suffix: Last part of the default name of a converted file; ``None`` for the native format.
        settings: The settings that the files do not contain, which are the second argument of ``read``; ``None`` if
            there are none.
        takes_bn2affine: True if ``read`` has the argument ``bn2affine``, because batch normalisations in such files may
            be affine channels (:mod:`mask_rcnn.weights.converters.dena`).
    """

    name: str
    title: str
    matches: Callable[[Contents], bool]
    read: Callable[..., ConvertedWeights]
    suffix: str | None = None
    settings: FileSettings | None = None
    takes_bn2affine: bool = False

    @property
    def takes_settings(self) -> bool:
        """True if the second argument of ``read`` is a mapping of settings that the file does not contain."""
        return self.settings is not None


@dataclass(frozen=True)
class Contents:
    """The properties of a file that determine its format.

    Args:
        path: The file.
        start: Its first bytes.
        members: The names of its members if it is a zip archive.
    """

    path: _Path
    start: bytes
    members: frozenset[str]

    @property
    def is_torch(self) -> bool:
        """True for a file of PyTorch."""
        return torch_file.is_legacy(self.start) or bool(torch_file.find_pickles(self.members))

    @property
    def is_safetensors(self) -> bool:
        """True for a safetensors file."""
        return safetensors_file.is_safetensors(self.start)

    @functools.cached_property
    def is_safetensors_model(self) -> bool:
        """True for a safetensors file of this program."""
        try:
            return self.is_safetensors and safetensors_model.is_model(self.path)
        except WeightFileError:
            return False

    @functools.cached_property
    def tensors(self) -> tuple[str, ...]:
        """The names in the state dict of a file of PyTorch or a safetensors file; empty if it is damaged."""
        if not (self.is_torch or self.is_safetensors):
            return ()
        try:
            return state_dict_file.read_names(self.path)
        except (WeightFileError, MemoryError):
            return ()


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
    contents = Contents(path, start, names)
    for format in _registered:
        if format.matches(contents):
            return format
    known_problem = unsupported.describe_unsupported(path, start, names)
    if known_problem is not None:
        raise WeightFileError(path, known_problem)
    for format in FORMATS:
        if format.matches(contents):
            return format
    known_problem = None if names else safe_pickle.other_format(start)
    if known_problem is not None:
        raise WeightFileError(path, known_problem)
    kind = 'zip archive' if names else 'file'
    titles = ', '.join(format.title for format in (*_registered, *FORMATS))
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
        settings: Settings that the file does not contain, by their names in the original program (``Format.settings``);
            ``None`` or empty for formats without such settings.
        bn2affine: Return affine channels instead of batch normalisations: for files of DeNA's program ``gamma`` and
            ``beta``, for others the affine channels with the same output.
        dialect: Dialect in which to run the network, with the same arrays
            (:meth:`mask_rcnn.config.Config.in_dialect`); ``None`` for that of the file's program.

    Raises:
        WeightFileError: The format is unknown, the file is damaged or not supported, the settings contradict it, or
            there are settings for a format that takes none.
        SettingError: Settings are not valid.
        OtherNetworkError: Settings are those of another network.
        ValueError: The network cannot run in the dialect.
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
    except (WeightFileError, SettingError, OtherNetworkError):
        raise
    except ValueError as error:
        if settings:
            raise SettingError(str(error)) from None
        raise WeightFileError(path, f'its network is not supported: {to_printable_ascii(str(error), 200)}') from None
    except MemoryError:
        raise WeightFileError(path, 'does not fit into memory') from None
    return _convert(path, file, 'affine' if bn2affine else None, dialect or file.config.dialect)


def _convert(path: _Path, file: ConvertedWeights, norm: str | None, dialect: Dialect) -> ConvertedWeights:
    """Return a file's network with another normalisation, unless ``None``, and in another dialect."""
    before = file.config
    try:
        config = before.in_dialect(dialect)
        config = config if norm is None else config_with_norm(config, norm)
    except ValueError as error:
        raise ValueError(f'{escape(path)}: {error}') from None
    if config == before:
        return file
    epsilons = before.dialect.backbone.bn_eps, dialect.backbone.bn_eps
    arrays = convert_norm_arrays(path, file.arrays, config.norm, *epsilons, head_norm=config.head_norm)
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
    if config.dialect.name != original.name:
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


def _has_member(name: str) -> Callable[[Contents], bool]:
    return lambda contents: name in contents.members


def _is_dena(contents: Contents) -> bool:
    return dena.matches(contents.members)


def _is_torchvision(contents: Contents) -> bool:
    return torchvision.matches(contents.tensors)


def _is_detectron2(contents: Contents) -> bool:
    return detectron2.matches(contents.tensors) or detectron2.is_pickle(contents.start)


def _is_safetensors_model(contents: Contents) -> bool:
    return contents.is_safetensors_model


def _is_state_dict(contents: Contents) -> bool:
    return contents.is_torch or contents.is_safetensors


def _is_hdf5(contents: Contents) -> bool:
    return contents.start.startswith(matterport.SIGNATURE)


def _is_mindspore(contents: Contents) -> bool:
    return mindspore.is_checkpoint(contents.start)


def _is_pickle(contents: Contents) -> bool:
    """Return True for protocol 2 or later, and for a dictionary or a global in older protocols."""
    return re.match(rb'\x80[\x02-\x05]|\(d|\(l|\}q|c[\w.]+\n', contents.start) is not None


def _is_caffe(contents: Contents) -> bool:
    """Return True if the file begins like ``NetParameter``: with a name or a layer (fields 1, 2 and 100)."""
    return re.match(rb'\n[\x01-\x7f][ -~]|\x12[\x80-\xff]|\xa2\x06', contents.start) is not None


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
    Format(
        torchvision.FORMAT,
        "torchvision's .pth",
        _is_torchvision,
        torchvision.read,
        'tv2c',
        torchvision_cfg.FILE_SETTINGS,
    ),
    Format(
        detectron2.FORMAT,
        "detectron2's .pkl or .pth",
        _is_detectron2,
        detectron2.read,
        'd22c',
        detectron2_cfg.FILE_SETTINGS,
    ),
    Format(
        safetensors_model.FORMAT, "this program's .safetensors", _is_safetensors_model, safetensors_model.read, 'st2c'
    ),
    Format(pytorch.FORMAT, "PyTorch's .pth", _is_state_dict, pytorch.read, 'p2c', matterport_cfg.FILE_SETTINGS),
    Format(matterport.FORMAT, "Matterport's .h5", _is_hdf5, matterport.read, 'm2c', matterport_cfg.FILE_SETTINGS),
    Format(mindspore.FORMAT, "MindSpore's .ckpt", _is_mindspore, mindspore.read, 'ms2c'),
    Format(imagenet.CAFFEMODEL, "Caffe's .caffemodel", _is_caffe, imagenet.read_caffemodel),
    Format(detectron.FORMAT, "Detectron's .pkl", _is_pickle, detectron.read, 'd2c'),
)

BY_NAME = {format.name: format for format in FORMATS}

#: The formats of :func:`register_format`, the last one first.
_registered: list[Format] = []


def register_format(format: Format) -> None:
    """Add a format of weight files, which is tried before the formats of this package.

    Args:
        format: The format.  It replaces a registered format of the same name.

    Raises:
        ValueError: The name is that of a format of this package, or not a letter that lower-case letters, digits,
            underscores and hyphens follow; or the format has no suffix.
    """
    fields.check_new_name(format.name)
    if any(format.name == other.name for other in FORMATS):
        raise ValueError(f'the format {format.name!r} is part of this package; choose another name')
    if not format.suffix:
        raise ValueError(f'the format {format.name!r} needs a suffix for the names of converted files, such as zoo2c')
    _registered[:] = [format, *(other for other in _registered if other.name != format.name)]
    BY_NAME[format.name] = format
