"""Conversion of other programs' arrays with a table of parameter mappings.

For each array of the native network, a converter lists the arrays of the source file that it is computed from
(:class:`ParamMapping`).  :func:`apply_mappings` checks that these exist with the right shapes, and computes the native
arrays.  :mod:`mask_rcnn.weights.native` stores the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mask_rcnn.config import RESNET_BLOCKS, RESNET_GROUPS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii


@dataclass(frozen=True)
class ConversionReport:
    """The outcome of a conversion.

    Args:
        taken: Names of the source arrays that were converted, in the network's order.
        skipped: Names of the other source arrays by group, such as ``'momentum'`` or ``'unknown'``.
        notes: Lines about adaptations that need no action.
        warnings: Lines about settings and values that are not supported and may change results.
        assumptions: Lines about properties that the file does not determine, with the option that selects the other
            reading.
    """

    taken: tuple[str, ...]
    skipped: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def cautions(self) -> tuple[str, ...]:
        """The warnings and the assumptions, as lines for a log."""
        return (*self.warnings, *(f'assumed: {line}' for line in self.assumptions))


@dataclass(frozen=True)
class ConvertedWeights:
    """A weight file of another program after conversion.

    Args:
        kind: ``'model'`` or ``'backbone'``.
        format: Name of the source format, such as ``'detectron-pickle'``.
        config: The network and its settings.
        arrays: Arrays by parameter path, float32; some are read-only views of the file's data.
        report: The outcome of the conversion.
        sha256: SHA-256 of the source file; empty for a file in the native format, which has no other source.
        class_names: Names of the foreground classes, if the file has them.
        category_ids: Category ids of the classes in the dataset, if the file has them.
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
    """A native array and the source arrays that it is computed from.

    Args:
        path: Path of the native array, such as ``'extractor/conv1/conv/W'``.
        inputs: Expected shape of each source array by name; empty for a constant.
        convert: Computes the native array from the source arrays in that order; ``None`` to use a single source array
            unchanged.
    """

    path: str
    inputs: Mapping[str, tuple[int, ...]]
    convert: Callable[..., np.ndarray] | None = None

    def apply(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the native array.

        Args:
            arrays: The source arrays by name.
        """
        inputs = [arrays[name] for name in self.inputs]
        return np.asarray(self.convert(*inputs) if self.convert else inputs[0], np.float32, order='C')


def apply_mappings(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], mappings: Iterable[ParamMapping], *, noun: str = 'arrays'
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """Compute the native arrays from the arrays of a file.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
        mappings: The mapping of each native array.
        noun: The format's term for its arrays.

    Returns:
        The native arrays by path, the names of the source arrays that were used, and warnings about values that are
        not finite.

    Raises:
        WeightFileError: Arrays are missing, are not floats or have another shape; the message lists all of them.
    """
    mappings = tuple(mappings)
    shapes = {name: shape for mapping in mappings for name, shape in mapping.inputs.items()}
    check_arrays(path, arrays, shapes, noun=noun)
    native = {mapping.path: mapping.apply(arrays) for mapping in mappings}
    broken = dict.fromkeys(
        name
        for mapping in mappings
        if not np.isfinite(native[mapping.path]).all()
        for name in _broken_inputs(mapping, arrays)
    )
    warnings = []
    if broken:
        warnings.append(f'infinite or undefined values in {", ".join(broken)}: did the training diverge?')
    return native, tuple(shapes), warnings


def _broken_inputs(mapping: ParamMapping, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the inputs that are not finite; all of them if each is finite (a negative variance)."""
    names = list(mapping.inputs)
    return [name for name in names if not np.isfinite(arrays[name]).all()] or names


def check_arrays(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    noun: str = 'arrays',
) -> None:
    """Check that every array exists, has floats and has its shape.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
        shapes: The expected shapes by name.
        noun: The format's term for its arrays.

    Raises:
        WeightFileError: See :func:`apply_mappings`.
    """
    problems = []
    missing = [name for name in shapes if name not in arrays]
    if missing:
        problems.append(f'missing {noun}: {", ".join(missing)}')
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is not None and (array.shape != shape or array.dtype.kind != 'f'):
            problems.append(f'{name} is {array.dtype.name} {array.shape}, expected float32 {shape}')
    if problems:
        raise WeightFileError(path, '; '.join(problems))


def group_names(names: Iterable[str], group_of: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Group names for :attr:`ConversionReport.skipped`.

    Args:
        names: Names of arrays that were not converted.
        group_of: Returns the group of a name, such as ``'momentum'`` or ``'unknown'``.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(group_of(name), []).append(to_printable_ascii(name))
    return {group: tuple(members) for group, members in groups.items()}


def swap_xy(array: np.ndarray) -> np.ndarray:
    """Reorder ``(dx, dy, dw, dh)`` to ``(dy, dx, dh, dw)`` within each group of four rows."""
    groups = array.reshape(-1, 4, *array.shape[1:])
    return groups[:, [1, 0, 3, 2]].reshape(array.shape)


def drop_background(array: np.ndarray) -> np.ndarray:
    """Return the weight or bias of a mask layer without its first output, the unused background."""
    return array[1:]


def scale_outputs(array: np.ndarray, factors: Sequence[float] | np.ndarray) -> np.ndarray:
    """Multiply a layer that predicts box deltas.

    Args:
        array: ``(4 * N, ...)``, a weight or bias.
        factors: Four factors, which are repeated for each group of four rows.

    Returns:
        Array of the same shape.
    """
    rows = np.tile(factors, len(array) // 4).reshape(-1, *[1] * (array.ndim - 1))
    return array * rows


def batch_counter(path: str) -> ParamMapping:
    """Return the mapping of Chainer's batch counter ``N``, which is irrelevant once statistics are loaded.

    Args:
        path: Path of the batch normalisation.
    """
    return ParamMapping(f'{path}/N', {}, lambda: np.zeros((), np.float32))


class ResNetConv(NamedTuple):
    """A convolution in a bottleneck block of a ResNet.

    Attributes:
        stage: Stage of the ResNet, 2 to 5.
        block: Index of the block in the stage.
        name: ``'conv1'``, ``'conv2'``, ``'conv3'``, or in block 0 also ``'shortcut'``.
        shape: Shape of the weight.
    """

    stage: int
    block: int
    name: str
    shape: tuple[int, ...]


#: Caffe's names of the convolutions in a block, which Detectron and Matterport also use.
CAFFE_BRANCHES = {'conv1': 'branch2a', 'conv2': 'branch2b', 'conv3': 'branch2c', 'shortcut': 'branch1'}


def resnet_convolutions(backbone: str) -> Iterator[ResNetConv]:
    """Yield the convolutions in the blocks of a ResNet (He et al. 2016, table 1).

    Args:
        backbone: A key of :data:`mask_rcnn.config.RESNET_BLOCKS`.
    """
    width_in = 64
    groups, group_width = RESNET_GROUPS[backbone]
    for stage, n_blocks in enumerate(RESNET_BLOCKS[backbone], start=2):
        group_channels, width_out = group_width << stage - 2, 64 << stage
        width = groups * group_channels
        for block in range(n_blocks):
            yield ResNetConv(stage, block, 'conv1', (width, width_in, 1, 1))
            yield ResNetConv(stage, block, 'conv2', (width, group_channels, 3, 3))
            yield ResNetConv(stage, block, 'conv3', (width_out, width, 1, 1))
            if block == 0:
                yield ResNetConv(stage, block, 'shortcut', (width_out, width_in, 1, 1))
            width_in = width_out


def resnet_depth(backbone: str) -> int:
    """Return the number of layers in the name of a ResNet or ResNeXt: 50, 101 or 152."""
    return int(backbone.partition('_')[0].lstrip('resnxt'))


def find_resnet(path: str | os.PathLike, n_blocks: int, width: int, group_width: int) -> str:
    """Return the ResNet or ResNeXt, a key of :data:`mask_rcnn.config.RESNET_BLOCKS`.

    Args:
        path: The file, for errors.
        n_blocks: Number of blocks in res4.
        width: Number of output channels of the 3x3 convolutions in res2.
        group_width: Number of input channels of each of their groups.

    Raises:
        WeightFileError: The backbone is not supported; the message describes it.
    """
    groups = width // group_width
    for name, blocks in RESNET_BLOCKS.items():
        if (blocks[2], RESNET_GROUPS[name], width) == (n_blocks, (groups, group_width), groups * group_width):
            return name
    kind = f'a ResNeXt {groups}x{group_width}d' if groups > 1 else f'a ResNet with {counted(width, "channel")} in res2'
    raise WeightFileError(
        path,
        f'has {kind} and {counted(n_blocks, "block")} in res4, which is not supported '
        f'(supported: {", ".join(RESNET_BLOCKS)})',
    )


def person_class(config: Config) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the name and the category id of the only class of a keypoint model, COCO's first; empty for others."""
    return (('person',), (1,)) if config.n_keypoint and config.n_fg_class == 1 else ((), ())


_BACKBONE_NAMES = {
    'resnet50': 'R-50',
    'resnet101': 'R-101',
    'resnet152': 'R-152',
    'resnext50_32x4d': 'X-50-32x4d',
    'resnext101_32x8d': 'X-101-32x8d',
    'resnext101_64x4d': 'X-101-64x4d',
    'resnext152_32x8d': 'X-152-32x8d',
    'mobilenet_v1': 'MobileNetV1',
}


#: Suffixes of the names of networks whose FPN and heads have normalisations.
_HEAD_NORM_SUFFIXES = {'none': '', 'gn': '-GN', 'bn': '-BN', 'affine': '-BN'}


def backbone_name(config: Config) -> str:
    """Return the usual name of a network's backbone, such as ``'R-50'`` or ``'R-50-GN'``."""
    return _plain_name(config) + ('-GN' if config.norm == 'gn' else '')


def _plain_name(config: Config) -> str:
    name = _BACKBONE_NAMES.get(config.backbone, config.backbone)  # a registered one has no other name
    return name + (f' x{config.width:g}' if config.width != 1 else '')


def network_name(config: Config) -> str:
    """Return the usual name of a network, such as ``'R-50-FPN Mask R-CNN'`` or ``'R-50-FPN-GN Mask R-CNN'``."""
    heads = [name for name, present in (('Mask', config.masks), ('Keypoint', config.n_keypoint)) if present]
    neck = f'FPN{_HEAD_NORM_SUFFIXES[config.head_norm]}' if config.has_fpn else 'C4'
    return f'{_plain_name(config)}-{neck} {" and ".join(heads) or "Faster"} R-CNN'
