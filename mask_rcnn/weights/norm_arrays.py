"""Conversion between batch normalisations and affine channels of a configuration and of arrays, without a network."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.weights import folding
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii

_NORM_ARRAYS = ('gamma', 'beta', 'avg_mean', 'avg_var', 'N', 'scale', 'bias')

#: Normalisations that can be converted into each other.
CONVERTIBLE = ('affine', 'bn')

#: The first array of a normalisation, and the path of one to which ``head_norm`` applies.
_FIRST_ARRAY = re.compile(r'(.*/norm/)(gamma|scale)')
_HEAD_NORM = re.compile(r'(extractor/(lateral|output)|(box|mask)_head/conv)\d+/norm/')


def config_with_norm(config: Config, norm: str) -> Config:
    """Return the configuration of the network after a conversion of its normalisations.

    Args:
        config: The configuration of the network.
        norm: ``'affine'`` or ``'bn'``, to which the normalisations of backbone and heads are converted; or ``'gn'``
            for a network with this normalisation, which stays unchanged, as do heads with group normalisation.

    Raises:
        ValueError: The normalisation is unknown, or one of the two is group normalisation.
    """
    changed = config.replace(norm=norm)
    if norm != config.norm and not {norm, config.norm} <= set(CONVERTIBLE):
        raise ValueError(f"norm={config.norm!r} cannot be converted to {norm!r}: only 'affine' and 'bn' are equivalent")
    if norm in CONVERTIBLE and config.head_norm in CONVERTIBLE:
        return changed.replace(head_norm=norm)
    return changed


def convert_norm_arrays(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    norm: str,
    eps: float,
    new_eps: float,
    *,
    head_norm: str = 'none',
) -> dict[str, np.ndarray]:
    """Return the arrays for a network with the given normalisations and the same output.

    Args:
        path: The file, for errors.
        arrays: Its arrays by parameter path.
        norm: The normalisation of the network's backbone: ``'affine'``, ``'bn'`` or ``'gn'``, whose arrays are
            unchanged.
        eps: Constant that the batch normalisations of the file add to the variance.
        new_eps: Constant that those of the network add.
        head_norm: The normalisation of the network's feature pyramid and heads, or ``'none'``.

    Raises:
        WeightFileError: Arrays of a normalisation are missing or have different shapes.
    """
    converted = dict(arrays)
    for name in arrays:
        first = _FIRST_ARRAY.fullmatch(name)
        if first is None:
            continue
        prefix, has_statistics = first[1], first[2] == 'gamma'
        convert = _conversion(head_norm if _HEAD_NORM.match(name) else norm, has_statistics, eps, new_eps)
        if convert is None:
            continue
        parts = {key: converted.pop(prefix + key) for key in _NORM_ARRAYS if prefix + key in converted}
        try:
            converted |= {prefix + key: np.float32(array) for key, array in convert(**parts).items()}
        except (TypeError, ValueError):  # an array is missing, or the shapes do not match
            raise WeightFileError(path, f'its {to_printable_ascii(prefix)}... are damaged') from None
    return converted


def _conversion(norm: str, has_statistics: bool, eps: float, new_eps: float) -> Callable[..., dict] | None:
    """Return the function that converts the arrays of a normalisation, ``None`` if they are unchanged."""
    if norm == 'affine' and has_statistics:
        return functools.partial(_fold_into_affine, eps=eps)
    if norm == 'bn' and not has_statistics:
        return functools.partial(_affine_to_batch_norm, eps=new_eps)
    if norm == 'bn' and eps != new_eps:
        return functools.partial(_change_epsilon, eps=eps, new_eps=new_eps)
    return None


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
