"""The table of formats that :func:`export_weights` writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.weights import safetensors_model
from mask_rcnn.weights.converters import detectron, detectron2, torchvision
from mask_rcnn.weights.converters.mapping import ConvertedWeights
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.exporters import detectron_cfg, programs, torch_file
from mask_rcnn.weights.exporters.adaptation import adapt
from mask_rcnn.weights.exporters.array_pickle import ArrayPickle
from mask_rcnn.weights.exporters.compatibility import find_notes, find_obstacles
from mask_rcnn.weights.exporters.inversion import invert_mappings
from mask_rcnn.weights.files import create_weight_file
from mask_rcnn.weights.native import ModelMeta, write_weights

_Path = str | os.PathLike
_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Target:
    """A format that can be written.

    Args:
        title: Whose files they are, for messages.
        suffixes: Suffixes of its files; the first one is that of default names.
        write: Writes a file, given the path, the configuration, the arrays and the metadata.
        program: The program of the format; ``None`` for a format of native arrays.
        arrays: Returns the program's arrays by name, given the source path, the adapted configuration and arrays.
    """

    title: str
    suffixes: tuple[str, ...]
    write: Callable[[_Path, Config, _Arrays, ModelMeta], None]
    program: programs.Program | None = None
    arrays: Callable[[_Path, Config, _Arrays], _Arrays] = lambda path, config, arrays: arrays


def export_weights(
    path: _Path, output: _Path, file: ConvertedWeights, meta: ModelMeta, target: Target
) -> tuple[str, ...]:
    """Write the weights of a file in another format; the new file appears under its name only when it is complete.

    Args:
        path: The file, for errors.
        output: The file to write.
        file: The weights.
        meta: Their metadata.
        target: A value of :data:`TARGETS`.

    Returns:
        Lines about what differs in the other program.

    Raises:
        WeightFileError: The other program cannot run the network, an array is missing, or the file cannot be written.
    """
    config, arrays, program = file.config, dict(file.arrays), target.program
    notes: list[str] = []
    if program is not None:
        check_target(path, file, target)
        notes = find_notes(config, program)
        config, arrays = adapt(path, config, arrays, program)
    target.write(output, config, target.arrays(path, config, arrays), meta)
    return tuple(notes)


def check_target(path: _Path, file: ConvertedWeights, target: Target) -> None:
    """Raise an error if the program of a format cannot run the network of a file.

    Raises:
        WeightFileError: It cannot; the message names everything that does not fit.
    """
    program = target.program
    if program is None:
        return
    if file.kind != 'model':
        raise WeightFileError(path, f'contains {file.kind} weights, which cannot be written for {program.title}')
    obstacles = find_obstacles(file.config, program)
    if obstacles:
        raise WeightFileError(
            path, f'cannot be written for {program.title}, which does not have {"; ".join(obstacles)}'
        )


def default_name(path: Path, name: str) -> str:
    """Return the default name of a file in a format: that of the input and the format, ``mine_torchvision.pth``."""
    suffix = TARGETS[name].suffixes[0]
    return f'{path.stem}{suffix}' if suffix == f'.{name}' else f'{path.stem}_{name}{suffix}'


def check_suffix(path: Path, name: str) -> None:
    """Raise an error if a file to write has a suffix that is not one of its format; without a suffix, it has any name.

    Args:
        path: The file.
        name: A key of :data:`TARGETS`.

    Raises:
        ValueError: The message names the suffixes of the format, and the formats of the suffix.
    """
    suffix = path.suffix.lower()
    if not suffix or suffix in TARGETS[name].suffixes:
        return
    others = [f'--to {other}' for other, target in TARGETS.items() if suffix in target.suffixes]
    hint = f'give {" or ".join(others)}' if others else f'{path.suffix} is the suffix of no format'
    raise ValueError(f'{TARGETS[name].title} end with {" or ".join(TARGETS[name].suffixes)}; {hint}')


# The formats


def _write_npz(path: _Path, config: Config, arrays: _Arrays, meta: ModelMeta) -> None:
    write_weights(path, arrays, meta)


def _write_safetensors(path: _Path, config: Config, arrays: _Arrays, meta: ModelMeta) -> None:
    safetensors_model.write(path, arrays, meta)


def _detectron_blobs(path: _Path, config: Config, arrays: _Arrays) -> _Arrays:
    """Return Detectron's blobs, with the fixed upsampling of keypoint networks."""
    blobs = invert_mappings(path, detectron.param_mappings(config), arrays)
    if config.n_keypoint:
        blobs |= {'kps_score_w': detectron.bilinear_upsampling(config.n_keypoint)}
        blobs |= {'kps_score_b': np.zeros(config.n_keypoint, np.float32)}
    return blobs


def _write_detectron(path: _Path, config: Config, arrays: _Arrays, meta: ModelMeta) -> None:
    with create_weight_file(path) as file:
        ArrayPickle(file, python2=True).write({'blobs': arrays, 'cfg': detectron_cfg.dump(config)})


def _torchvision_tensors(path: _Path, config: Config, arrays: _Arrays) -> _Arrays:
    """Return torchvision's tensors.  A network with an epsilon has batch counters, by which readers recognise it."""
    mappings = torchvision.param_mappings(config)
    tensors = invert_mappings(path, mappings, arrays)
    if not config.dialect.backbone.bn_eps:
        return tensors
    with_counters: _Arrays = {}
    for mapping in mappings:
        for name in mapping.inputs:
            with_counters[name] = tensors[name]
            if name.endswith('.running_var'):
                norm, counter = mapping.path.removesuffix('avg_var'), name.removesuffix('running_var')
                count = arrays.get(f'{norm}N', np.zeros(()))
                with_counters[f'{counter}num_batches_tracked'] = np.asarray(count, np.int64)
    return with_counters


def _write_torchvision(path: _Path, config: Config, arrays: _Arrays, meta: ModelMeta) -> None:
    torch_file.write(path, arrays)


def _detectron2_arrays(path: _Path, config: Config, arrays: _Arrays) -> _Arrays:
    """Return detectron2's arrays, with the constants of the input as in the files of its model zoo."""
    values = config.dialect.input
    constants = {'pixel_mean': values.pixel_mean, 'pixel_std': values.pixel_std}
    return {
        **{name: np.asarray(value, np.float32).reshape(3, 1, 1) for name, value in constants.items()},
        **invert_mappings(path, detectron2.param_mappings(config), arrays),
    }


def _write_detectron2(path: _Path, config: Config, arrays: _Arrays, meta: ModelMeta) -> None:
    with create_weight_file(path) as file:
        ArrayPickle(file, python2=False).write({'__author__': 'mask_rcnn', 'model': arrays})


#: All formats by the name on the command line.
TARGETS: Mapping[str, Target] = {
    'npz': Target("this program's files", ('.npz',), _write_npz),
    'torchvision': Target(
        "torchvision's files", ('.pth', '.pt'), _write_torchvision, programs.TORCHVISION_PROGRAM, _torchvision_tensors
    ),
    'detectron2': Target(
        "detectron2's files", ('.pkl',), _write_detectron2, programs.DETECTRON2_PROGRAM, _detectron2_arrays
    ),
    'detectron': Target("Detectron's files", ('.pkl',), _write_detectron, programs.DETECTRON_PROGRAM, _detectron_blobs),
    'safetensors': Target('safetensors files', ('.safetensors',), _write_safetensors),
}
