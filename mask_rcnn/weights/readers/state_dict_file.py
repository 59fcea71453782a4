"""Read state dicts in any of their formats: PyTorch's files and safetensors."""

from __future__ import annotations

import os

from mask_rcnn.weights.files import open_weight_file
from mask_rcnn.weights.readers import safetensors_file, torch_file
from mask_rcnn.weights.readers.state_dicts import rename_parameters
from mask_rcnn.weights.readers.torch_file import StateDict

_Path = str | os.PathLike


def read(path: _Path) -> StateDict:
    """Read a state dict; see :func:`mask_rcnn.weights.readers.torch_file.read`.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or contains no state dict.
    """
    if not _is_safetensors(path):
        return torch_file.read(path)
    return StateDict(rename_parameters(safetensors_file.read(path).arrays))


def read_names(path: _Path) -> tuple[str, ...]:
    """Return the names in a state dict, without reading its arrays; see :func:`read`."""
    if not _is_safetensors(path):
        return torch_file.read_names(path)
    return tuple(rename_parameters(dict.fromkeys(safetensors_file.read_header(path).names)))


def _is_safetensors(path: _Path) -> bool:
    with open_weight_file(path) as (file, _):
        return safetensors_file.is_safetensors(file.read(16))
