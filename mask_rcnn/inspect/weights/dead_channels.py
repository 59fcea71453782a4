"""The search for dead channels: output channels of layers that contribute nothing but a constant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import DETECTRON
from mask_rcnn.inspect.weights.source import WeightSource, read_network_weights

#: The reasons for which a channel is dead.
REASONS = ('zero weights', 'zero scale', 'zero variance', 'closed ReLU')

#: Values that are at most this fraction of the largest one of their layer are zero.
_TOLERANCE = 1e-6
#: Distance from the mean, in standard deviations, that a value practically never has.
_MAX_DEVIATION = 5.0

#: Layers whose normalisation is followed by the addition of the shortcut and not by ReLU.
_WITHOUT_RELU = re.compile(r'/block\d+/(conv3|shortcut)/conv$')
#: The layer of the box deltas, whose first four channels belong to the background.
_DELTAS, _N_BACKGROUND_DELTAS = 'box_head/delta', 4


@dataclass(frozen=True)
class DeadChannels:
    """The dead channels of a layer that have one reason.

    Args:
        layer: The path of the layer, such as ``'extractor/conv1/conv'``.
        reason: One of :data:`REASONS`.
        channels: The indices of the output channels, ascending.
        n_channels: The number of output channels of the layer.
    """

    layer: str
    reason: str
    channels: tuple[int, ...]
    n_channels: int


def dead_channels(source: WeightSource) -> tuple[DeadChannels, ...]:
    """Return the dead channels of all layers, in the order of the layers.

    A channel is dead if its output does not depend on the input.  One or several of these reasons apply to an output
    channel of a convolution, a deconvolution or a linear layer:

    - ``'zero weights'``: The absolute value of each of its weights is at most 1e-6 of the largest one of the layer.
    - ``'zero scale'``: The absolute value of the scale of its normalisation (gamma, or the scale of an affine channel)
      is at most 1e-6 of the largest one of the layer.
    - ``'zero variance'``: The running variance of its batch normalisation is at most 1e-6 of epsilon, so that the
      normalised values of the training images differ by at most 0.001 of a standard deviation.  A negative variance,
      which is an error, counts as zero.
    - ``'closed ReLU'``: Its batch normalisation is followed by ReLU, and ``beta + 5 * abs(gamma) <= 0``: the output is
      0 unless the value is more than five standard deviations from its mean.

    The inputs of a layer are not examined: a channel that reads only dead channels is found by its variance, if it has
    a batch normalisation.  Channels with NaN or infinities are not dead.  The deltas of the background class in a box
    head, which no program reads, are left out.

    Args:
        source: A weight file of any format, a model, or arrays by parameter path; see
            :func:`mask_rcnn.inspect.weights.source.read_network_weights`.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be read.
    """
    weights = read_network_weights(source)
    eps = (DETECTRON if weights.config is None else weights.config.dialect).backbone.bn_eps
    found = []
    for name, array in weights.arrays.items():
        if name.endswith('/W') and array.ndim in (2, 4) and array.size:
            layer = name.removesuffix('/W')
            for reason, is_dead in _examine_layer(layer, array, weights.arrays, eps):
                channels = tuple(np.flatnonzero(is_dead).tolist())
                if channels:
                    found.append(DeadChannels(layer, reason, channels, len(is_dead)))
    return tuple(found)


def count_dead(found: tuple[DeadChannels, ...]) -> int:
    """Return the number of channels, each of which may have several reasons."""
    return len({(item.layer, channel) for item in found for channel in item.channels})


def _examine_layer(
    layer: str, weight: np.ndarray, arrays: Mapping[str, np.ndarray], eps: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each reason, with ``(O,)`` bool."""
    is_dead = _are_zero(_largest_weights(layer, weight))
    if layer == _DELTAS:
        is_dead[:_N_BACKGROUND_DELTAS] = False
    yield 'zero weights', is_dead
    norm = layer.removesuffix('conv') + 'norm/'
    parts = {
        key: np.abs(array.astype(np.float64)) if key in ('gamma', 'scale') else array.astype(np.float64)
        for key in ('gamma', 'scale', 'beta', 'avg_var')
        if (array := arrays.get(norm + key)) is not None and array.shape == is_dead.shape
    }
    for key in ('gamma', 'scale'):
        if key in parts:
            yield 'zero scale', _are_zero(parts[key])
    if 'avg_var' in parts:
        yield 'zero variance', parts['avg_var'] <= _TOLERANCE * eps
    if 'gamma' in parts and 'beta' in parts and not _WITHOUT_RELU.search(layer):
        with np.errstate(invalid='ignore'):
            yield 'closed ReLU', parts['beta'] + _MAX_DEVIATION * parts['gamma'] <= 0


def _largest_weights(layer: str, weight: np.ndarray) -> np.ndarray:
    """Return the largest absolute weight of each output channel, ``(O,)`` float64; NaN if one is NaN."""
    axis = 1 if layer.endswith('/deconv') and weight.ndim == 4 else 0  # (I, O, kh, kw) and (O, I, kh, kw)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    # Extrema instead of absolute values, so that no copy of the weight is made.
    return np.maximum(rows.max(axis=1).astype(np.float64), -rows.min(axis=1).astype(np.float64))


def _are_zero(values: np.ndarray) -> np.ndarray:
    """Return ``(O,)`` bool, true for absolute values of at most :data:`_TOLERANCE` of the largest finite one."""
    finite = values[np.isfinite(values)]
    return values <= _TOLERANCE * (finite.max() if finite.size else 0.0)
