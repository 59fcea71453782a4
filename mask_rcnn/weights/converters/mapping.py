"""What every reader of foreign weight files returns, and the table-driven way to it.

A reader names, for each array of our network, the arrays of the file that it is made of
(:class:`ParamMapping`); :func:`apply_mappings` checks that all are there in the right shape and makes ours.
See :mod:`mask_rcnn.weights.native` for where the result goes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii


@dataclass(frozen=True)
class ConversionReport:
    """What became of a file's arrays.

    Args:
        taken: Names of those that were translated, in the network's order.
        skipped: Names of those that were not, by what they are, such as ``'momentum'`` or ``'unknown'``.
        notes: Lines about things that were adapted and need no action.
        warnings: Lines about things that could not be honoured and may change results.
    """

    taken: tuple[str, ...]
    skipped: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertedWeights:
    """A foreign weight file in our terms.

    Args:
        kind: ``'model'`` or ``'backbone'``.
        format: Name of the file's format, such as ``'detectron-pickle'``.
        config: The network and its numbers.
        arrays: Arrays by parameter path, float32; some are read-only views into the file's data.
        report: What was taken and left.
        sha256: Of the source file.
        class_names: Names of the foreground classes, where the file knows them.
        category_ids: Their numbers in the data set, where the file knows them.
    """

    kind: str
    format: str
    config: Config
    arrays: Mapping[str, np.ndarray]
    report: ConversionReport
    sha256: str
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ParamMapping:
    """How one array of ours is made.

    Args:
        path: Ours, such as ``'extractor/conv1/conv/W'``.
        inputs: Shape of each of the file's arrays that it is made of, by name; none for a constant.
        convert: Takes them in that order and returns ours; ``None`` where there is one and it stays as it is.
    """

    path: str
    inputs: Mapping[str, tuple[int, ...]]
    convert: Callable[..., np.ndarray] | None = None

    def apply(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return our array from the file's."""
        inputs = [arrays[name] for name in self.inputs]
        return np.asarray(self.convert(*inputs) if self.convert else inputs[0], np.float32, order='C')


def apply_mappings(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], mappings: Iterable[ParamMapping], *, noun: str = 'arrays'
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """Make our arrays from a file's.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
        mappings: One for each of ours.
        noun: What the format calls its arrays.

    Returns:
        Our arrays by path, the names of the file's that were taken, and warnings (about numbers that are
        infinite or undefined).

    Raises:
        WeightFileError: Arrays are missing, hold no floats or have another shape; all of them are named.
    """
    mappings = tuple(mappings)
    shapes = {name: shape for t in mappings for name, shape in t.inputs.items()}
    _check(path, arrays, shapes, noun)
    native = {t.path: t.apply(arrays) for t in mappings}
    broken = dict.fromkeys(
        name for t in mappings if not np.isfinite(native[t.path]).all() for name in _culprits(t, arrays)
    )
    warnings = []
    if broken:
        warnings.append(f'infinite or undefined numbers in {", ".join(broken)}: did the training diverge?')
    return native, tuple(shapes), warnings


def _culprits(mapping: ParamMapping, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The inputs that are not finite; all of them where none is to blame alone (a negative variance)."""
    names = list(mapping.inputs)
    return [name for name in names if not np.isfinite(arrays[name]).all()] or names


def _check(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], noun: str
) -> None:
    """Every array must be there, hold floats and have its shape."""
    problems = []
    missing = [name for name in shapes if name not in arrays]
    if missing:
        problems.append(f'missing {noun}: {", ".join(missing)}')
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is not None and (array.shape != shape or array.dtype.kind != 'f'):
            problems.append(f'{name} is {array.dtype.name} {array.shape}, not float32 {shape}')
    if problems:
        raise WeightFileError(path, '; '.join(problems))


def group_names(names: Iterable[str], group_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Sort names for :attr:`ConversionReport.skipped`.

    Args:
        names: Of arrays that were not taken.
        group_of: Says what an array is by its name, such as ``'momentum'`` or ``'unknown'``.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(group_of(name), []).append(to_printable_ascii(name))
    return {group: tuple(members) for group, members in groups.items()}


def swap_xy(array: np.ndarray) -> np.ndarray:
    """Turn ``(dx, dy, dw, dh)`` into ``(dy, dx, dh, dw)`` within each four rows."""
    fours = array.reshape(-1, 4, *array.shape[1:])
    return fours[:, [1, 0, 3, 2]].reshape(array.shape)


def drop_background(array: np.ndarray) -> np.ndarray:
    """Return a layer of masks without its first output, the background's, which is never used."""
    return array[1:]


def batch_counter(path: str) -> ParamMapping:
    """Return Chainer's count of the batches behind a running mean, which means something only without one.

    Args:
        path: Of the batch normalisation.
    """
    return ParamMapping(f'{path}/N', {}, lambda: np.zeros((), np.float32))


_BACKBONE_NAMES = {'resnet50': 'R-50', 'resnet101': 'R-101', 'mobilenet_v1': 'MobileNetV1'}


def backbone_name(config: Config) -> str:
    """Return the usual name of a network's backbone, such as ``'R-50'``."""
    return _BACKBONE_NAMES[config.backbone] + (f' x{config.width:g}' if config.width != 1 else '')


def network_name(config: Config) -> str:
    """Return what papers and model zoos call a network, such as ``'R-50-FPN Mask R-CNN'``."""
    heads = [name for name, present in (('Mask', config.masks), ('Keypoint', config.n_keypoint)) if present]
    return f'{backbone_name(config)}-{"FPN" if config.has_fpn else "C4"} {" and ".join(heads) or "Faster"} R-CNN'
