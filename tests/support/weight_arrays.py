"""Arrays of whole networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.weights.converters import detectron, detectron2, torchvision


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return arrays of zeros that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def random_arrays(config: Config) -> dict[str, np.ndarray]:
    """Return arrays of random values with the names and shapes of a network's parameters and statistics."""
    random = np.random.default_rng(0)
    table = torchvision if config.has_fpn else detectron2
    mappings = (detectron if config.norm == 'affine' else table).param_mappings(config)
    shapes = {name: shape for mapping in mappings for name, shape in mapping.inputs.items()}
    values = random.standard_normal(1 << 16, np.float32)
    source = {name: np.roll(np.resize(values, shape), i) for i, (name, shape) in enumerate(shapes.items())}
    arrays = {mapping.path: mapping.apply(source) for mapping in mappings}
    for name, array in arrays.items():
        if name.endswith('avg_var'):
            array[...] = random.uniform(0.5, 2, array.shape)
    return arrays


def used_fields(config: Config) -> dict[str, Any]:
    """Return the fields of a configuration that affect the network."""
    return {name: value for name, value in config.to_dict().items() if name not in config.unused_fields}
