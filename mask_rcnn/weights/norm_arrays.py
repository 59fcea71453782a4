"""Conversion of arrays between batch normalisations and affine channels, without a network."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from mask_rcnn.weights import folding
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii

_NORM_ARRAYS = ('gamma', 'beta', 'avg_mean', 'avg_var', 'N', 'scale', 'bias')


def convert_norm_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], norm: str, eps: float, new_eps: float
) -> dict[str, np.ndarray]:
    """Return the arrays for a network with the given normalisation and the same output.

    Args:
        path: The file, for errors.
        arrays: Its arrays by parameter path.
        norm: ``'affine'`` or ``'bn'``, the normalisation of the network.
        eps: Constant that the batch normalisations of the file add to the variance.
        new_eps: Constant that those of the network add.

    Raises:
        WeightFileError: Arrays of a normalisation are missing or have different shapes.
    """
    converted = dict(arrays)
    convert: Callable[..., dict[str, np.ndarray]]
    if norm == 'affine':
        first, convert = 'gamma', functools.partial(_fold_into_affine, eps=eps)
    elif any(name.endswith('/norm/scale') for name in arrays):
        first, convert = 'scale', functools.partial(_affine_to_batch_norm, eps=new_eps)
    elif eps != new_eps:
        first, convert = 'gamma', functools.partial(_change_epsilon, eps=eps, new_eps=new_eps)
    else:
        return converted
    for name in arrays:
        if name.endswith(f'/norm/{first}'):
            prefix = name.removesuffix(first)
            parts = {key: converted.pop(prefix + key) for key in _NORM_ARRAYS if prefix + key in converted}
            try:
                converted |= {prefix + key: np.float32(array) for key, array in convert(**parts).items()}
            except (TypeError, ValueError):  # an array is missing, or the shapes do not match
                raise WeightFileError(path, f'its {to_printable_ascii(prefix)}... are damaged') from None
    return converted


def _fold_into_affine(
    gamma: np.ndarray,
    beta: np.ndarray,
    avg_mean: np.ndarray,
    avg_var: np.ndarray,
    N: np.ndarray | None = None,
    *,
    eps: float,
) -> dict[str, np.ndarray]:
    scale, bias = folding.norm_to_affine(gamma, beta, avg_mean, avg_var, eps)
    return {'scale': scale, 'bias': bias}


def _affine_to_batch_norm(scale: np.ndarray, bias: np.ndarray, *, eps: float) -> dict[str, np.ndarray]:
    gamma, beta, mean, var = folding.affine_to_norm(scale, bias, eps)
    return {'gamma': gamma, 'beta': beta, 'avg_mean': mean, 'avg_var': var}


def _change_epsilon(
    gamma: np.ndarray,
    beta: np.ndarray,
    avg_mean: np.ndarray,
    avg_var: np.ndarray,
    N: np.ndarray | None = None,
    *,
    eps: float,
    new_eps: float,
) -> dict[str, np.ndarray]:
    gamma = folding.gamma_for_epsilon(gamma, avg_var, eps, new_eps)
    parts = {'gamma': gamma, 'beta': beta, 'avg_mean': avg_mean, 'avg_var': avg_var}
    return parts if N is None else {**parts, 'N': N}
