"""The statistics of the arrays of a network: a table with one row per array."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mask_rcnn.inspect.weights.network_order import part_of
from mask_rcnn.inspect.weights.source import WeightSource, read_network_weights
from mask_rcnn.weights.histograms import Histogram, finite_values, histogram_of

#: The percentiles of :attr:`ArrayStatistics.percentiles`.
PERCENTILES = (1, 25, 50, 75, 99)


@dataclass(frozen=True, eq=False)
class ArrayStatistics:
    """The statistics of one array, computed in float64 from its finite values.

    Without finite values, mean, standard deviation, minimum, maximum and percentiles are NaN.

    Args:
        name: The path of the array.
        part: The part of the network, one of :data:`mask_rcnn.inspect.weights.network_order.PARTS`.
        shape: Its shape.
        dtype: The name of its type, such as ``'float16'``.
        mean: The mean.
        std: The standard deviation of the values (not of a sample: the divisor is their number).
        min: The minimum.
        max: The maximum.
        percentiles: The values at :data:`PERCENTILES`.
        n_zeros: The number of values that are exactly zero.
        n_nan: The number of values that are not a number.
        n_inf: The number of infinite values.
        histogram: The histogram of the finite values.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    min: float
    max: float
    percentiles: tuple[float, ...]
    n_zeros: int
    n_nan: int
    n_inf: int
    histogram: Histogram

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def zero_fraction(self) -> float:
        """The fraction of values that are exactly zero; 0 for an empty array."""
        return self.n_zeros / self.size if self.size else 0.0


def weight_table(source: WeightSource) -> tuple[ArrayStatistics, ...]:
    """Return the statistics of every array of a network, in the order of its layers.

    Args:
        source: A weight file of any format, a model, or arrays by parameter path; see
            :func:`mask_rcnn.inspect.weights.source.read_network_weights`.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be read.
    """
    return tuple(describe_array(name, array) for name, array in read_network_weights(source).arrays.items())


def describe_array(name: str, array: np.ndarray) -> ArrayStatistics:
    """Return the statistics of one array.

    Args:
        name: The path of the array.
        array: Floats or integers of any shape.
    """
    values = finite_values(array)
    n_nan = int(np.isnan(array).sum())
    with np.errstate(over='ignore', invalid='ignore'):  # of float64 values near the largest float64
        moments = (values.mean(), values.std(), values.min(), values.max()) if values.size else (math.nan,) * 4
        percentiles = np.percentile(values, PERCENTILES) if values.size else np.full(len(PERCENTILES), math.nan)
    mean, std, low, high = map(float, moments)
    return ArrayStatistics(
        name=name,
        part=part_of(name),
        shape=tuple(array.shape),
        dtype=array.dtype.name,
        mean=mean,
        std=std,
        min=low,
        max=high,
        percentiles=tuple(percentiles.tolist()),
        n_zeros=int(values.size - np.count_nonzero(values)),
        n_nan=n_nan,
        n_inf=int(array.size - values.size - n_nan),
        histogram=histogram_of(values),
    )
