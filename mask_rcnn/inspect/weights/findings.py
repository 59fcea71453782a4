"""The complete inspection of a network's weights, and its summaries: what is doubtful, and the parts of the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mask_rcnn.inspect.weights.changes import WeightComparison
from mask_rcnn.inspect.weights.dead_channels import DeadChannels, count_dead, dead_channels
from mask_rcnn.inspect.weights.source import NetworkWeights
from mask_rcnn.inspect.weights.statistics import ArrayStatistics, weight_table
from mask_rcnn.io.wording import counted

#: Number of channels that a text lists.
_MAX_CHANNELS = 12


@dataclass(frozen=True, eq=False)
class WeightInspection:
    """The inspection of a network's weights.

    Args:
        name: The name of the file.
        weights: The weights.
        arrays: The statistics of every array.
        dead: The dead channels.
    """

    name: str
    weights: NetworkWeights
    arrays: tuple[ArrayStatistics, ...]
    dead: tuple[DeadChannels, ...]

    @property
    def not_finite(self) -> tuple[ArrayStatistics, ...]:
        """The arrays with values that are NaN or infinite."""
        return tuple(array for array in self.arrays if array.n_nan or array.n_inf)

    @property
    def n_values(self) -> int:
        """The number of values of all arrays."""
        return sum(array.size for array in self.arrays)

    @property
    def zero_fraction(self) -> float:
        """The fraction of all values that are exactly zero."""
        return sum(array.n_zeros for array in self.arrays) / max(self.n_values, 1)


@dataclass(frozen=True)
class PartSummary:
    """The statistics of the weights (``W``) in a part of a network.

    Args:
        part: The part.
        n_arrays: The number of arrays, including biases and normalisations.
        n_values: Their number of values.
        std: The standard deviation of the values of the weights; NaN without weights.
        low: Their minimum.
        high: Their maximum.
        zero_fraction: The fraction of the weights that are exactly zero.
        n_dead: The number of dead channels.
    """

    part: str
    n_arrays: int
    n_values: int
    std: float
    low: float
    high: float
    zero_fraction: float
    n_dead: int


def inspect_weights(name: str, weights: NetworkWeights) -> WeightInspection:
    """Return the inspection of a network's weights.

    Args:
        name: The name of the file, for texts.
        weights: The weights.
    """
    return WeightInspection(name, weights, weight_table(weights), dead_channels(weights))


def summarize_parts(inspection: WeightInspection) -> list[PartSummary]:
    """Return a summary of each part of the network, in the order of the layers."""
    summaries = []
    for part, members in groupby(inspection.arrays, key=lambda array: array.part):
        arrays = list(members)
        layers = {array.name.rpartition('/')[0] for array in arrays}
        weights = [array for array in arrays if is_weight(array) and not math.isnan(array.mean)]
        n_finite = [array.size - array.n_nan - array.n_inf for array in weights]
        total = max(sum(n_finite), 1)
        mean = sum(n * array.mean for n, array in zip(n_finite, weights, strict=True)) / total
        squares = sum(n * (array.std**2 + array.mean**2) for n, array in zip(n_finite, weights, strict=True)) / total
        summaries.append(
            PartSummary(
                part,
                len(arrays),
                sum(array.size for array in arrays),
                math.sqrt(max(squares - mean**2, 0)) if weights else math.nan,
                min((array.min for array in weights), default=math.nan),
                max((array.max for array in weights), default=math.nan),
                sum(array.n_zeros for array in weights) / max(sum(array.size for array in weights), 1),
                count_dead(tuple(item for item in inspection.dead if item.layer in layers)),
            )
        )
    return summaries


def is_weight(array: ArrayStatistics) -> bool:
    """Return whether an array is the weight of a layer, not a bias or part of a normalisation."""
    return array.name.endswith('/W')


def describe_channels(item: DeadChannels) -> str:
    """Return dead channels as text, such as ``'2 of 64: 24, 57'``."""
    listed = ', '.join(map(str, item.channels[:_MAX_CHANNELS]))
    more = ', ...' if len(item.channels) > _MAX_CHANNELS else ''
    return f'{len(item.channels)} of {item.n_channels}: {listed}{more}'


def describe_inspection(inspection: WeightInspection) -> dict[str, Any]:
    """Return an inspection as JSON-compatible values, without the histograms; NaN and infinities are ``None``."""
    return {
        'file': inspection.name,
        'network': inspection.weights.title,
        'settings': inspection.weights.settings,
        'n_values': inspection.n_values,
        'n_dead_channels': count_dead(inspection.dead),
        'dead_channels': [dataclasses.asdict(item) for item in inspection.dead],
        'arrays': [_describe_array(array) for array in inspection.arrays],
    }


def _describe_array(array: ArrayStatistics) -> dict[str, Any]:
    names = ('name', 'part', 'shape', 'dtype', 'size', 'mean', 'std', 'min', 'max', 'zero_fraction', 'n_nan', 'n_inf')
    return finite({name: getattr(array, name) for name in names})


def describe_comparison(comparison: WeightComparison) -> dict[str, Any]:
    """Return a comparison as JSON-compatible values; NaN and infinities are ``None``."""
    return {
        'n_identical': comparison.n_identical,
        'changes': [finite(dataclasses.asdict(change)) for change in comparison.changes],
        'only_first': list(comparison.only_first),
        'only_second': list(comparison.only_second),
        'other_shapes': {name: list(map(list, shapes)) for name, shapes in comparison.other_shapes.items()},
        'settings': {name: list(values) for name, values in comparison.settings.items()},
    }


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with ``None`` in place of the floats that JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def describe_doubts(inspection: WeightInspection) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the title of each kind of doubtful values, and one line per array or layer."""
    for kind, attribute in (('NaN', 'n_nan'), ('infinite values', 'n_inf')):
        arrays = [array for array in inspection.arrays if getattr(array, attribute)]
        if arrays:
            total = sum(getattr(array, attribute) for array in arrays)
            yield (
                f'{kind}: {total} in {counted(len(arrays), "array")}',
                [f'{array.name}: {getattr(array, attribute)} of {array.size}' for array in arrays],
            )
    if inspection.dead:
        n_layers = len({item.layer for item in inspection.dead})
        yield (
            f'dead channels: {count_dead(inspection.dead)} in {counted(n_layers, "layer")}',
            [f'{item.layer}: {item.reason} in {describe_channels(item)}' for item in inspection.dead],
        )
