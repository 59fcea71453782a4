"""The converters' tables of parameter mappings, read backwards: a source program's arrays from the native ones.

A table states the name and the shape of every array of a program once, for both directions.  An array that is computed
from one source array has an inverse (:data:`INVERSES`); constants, such as batch counters, are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mask_rcnn.weights.converters import detectron2
from mask_rcnn.weights.converters.mapping import ParamMapping, drop_background, swap_xy
from mask_rcnn.weights.errors import WeightFileError, summarize_names

_Function = Callable[[np.ndarray], np.ndarray]


def add_mask_background(array: np.ndarray) -> np.ndarray:
    """Return a mask layer's weight or bias with a first output of zeros, the unused background."""
    return np.concatenate([np.zeros_like(array[:1]), array])


#: Inverses of the functions in the tables; ``None`` is the identity.
INVERSES: dict[Callable[..., np.ndarray] | None, _Function] = {
    None: np.asarray,
    swap_xy: swap_xy,
    drop_background: add_mask_background,
    detectron2.background_first: lambda array: np.roll(array, -1, axis=0),
    detectron2.add_background_deltas: lambda array: swap_xy(array[4:]),
}


def invert_mappings(
    path: str | os.PathLike, mappings: Iterable[ParamMapping], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the source arrays by name, in the order of the table.

    Args:
        path: The file of the native arrays, for errors.
        mappings: The mapping of each native array, each from one source array or from none.
        arrays: The native arrays by path.

    Raises:
        WeightFileError: A native array is missing, is not in the table or has another shape; the message lists them.
    """
    source, problems = {}, []
    mappings = tuple(mappings)
    unexpected = sorted(set(arrays) - {mapping.path for mapping in mappings})
    if unexpected:
        problems.append(f'unexpected {summarize_names(unexpected)}')
    for mapping in mappings:
        if not mapping.inputs:
            continue
        ((name, shape),) = mapping.inputs.items()
        if mapping.path not in arrays:
            problems.append(f'missing {mapping.path}')
            continue
        source[name] = np.asarray(INVERSES[mapping.convert](arrays[mapping.path]), np.float32, order='C')
        if source[name].shape != shape:
            problems.append(f'{mapping.path} gives {name} of shape {source[name].shape}, expected {shape}')
    if problems:
        raise WeightFileError(path, f'does not have the arrays of its network: {"; ".join(problems)}')
    return source
