"""Intact state dicts of torchvision and detectron2, in PyTorch's formats, as pickles and as safetensors.

The files have the names of all arrays, but few values; the arrays that determine the network have their real shapes.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import struct
from collections.abc import Callable, Mapping

import harness  # noqa: F401  # finds the package and tests.support
import numpy as np
from mutations import Mutation, flip_bits, mutate_json, mutate_zip

from mask_rcnn.config import DETECTRON2, PRESETS, TORCHVISION, Config
from mask_rcnn.weights.converters import detectron2, torchvision
from mask_rcnn.weights.exporters.opcodes import ORDERED_DICT, call, integer, name, sequence, text
from tests.support import torch_bytes

#: Key of the storage of an optimizer's state.
_MOMENTUM = 'momentum'

#: Maximum size of an axis of the arrays that determine nothing.
_MAX_SIZE = 2

_NARROW = {'fpn_channels': 4, 'rpn_channels': 4, 'head_channels': 4, 'mask_channels': 4, 'n_fg_class': 2, 'norm': 'bn'}

#: Names of the arrays that keep their shapes, up to 256 in each axis.
_KEPT = re.compile(r'layer1\.0\.conv2\.weight|res2\.0\.conv2\.weight|rpn|roi_heads\.(?!res5)|fpn')


def _arrays(config: Config, mappings: Callable[[Config], list]) -> dict[str, np.ndarray]:
    """Return arrays under a program's names for a narrow network."""
    shapes: dict[str, tuple[int, ...]] = {}
    for mapping in mappings(config):
        shapes |= mapping.inputs
    limits = {key: 256 if _KEPT.search(key) else _MAX_SIZE for key in shapes}
    return {key: np.ones([min(n, limits[key]) for n in shape], np.float32) for key, shape in shapes.items()}


def torchvision_arrays() -> dict[str, np.ndarray]:
    """Return the arrays of Mask R-CNN, narrow, under torchvision's names."""
    config = PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, **_NARROW)
    return _arrays(config, torchvision.param_mappings)


def detectron2_arrays(extractor: str) -> dict[str, np.ndarray]:
    """Return the arrays of Mask R-CNN, narrow, under detectron2's names, and the constants of the input."""
    config = PRESETS[extractor].replace(dialect=DETECTRON2, **_NARROW)
    constants = {'pixel_mean': np.array([103.53, 116.28, 123.675]), 'pixel_std': np.ones(3)}
    inputs = {key: value.astype(np.float32).reshape(3, 1, 1) for key, value in constants.items()}
    return inputs | _arrays(config, detectron2.param_mappings)


def checkpoint(arrays: Mapping[str, np.ndarray], neighbours: Mapping[str, bytes]) -> bytes:
    """Return a file in the zip format: a state dict under ``model``, and encoded values beside it."""
    keys = {key: str(i) for i, key in enumerate(arrays)}
    tensors = {f'module.{key}': torch_bytes.of_array(array, keys[key]) for key, array in arrays.items()}
    items = b''.join(text(key) + value for key, value in tensors.items())
    state = ORDERED_DICT + b'(' + items + b'u'
    beside = b''.join(text(key) + value for key, value in neighbours.items())
    pickled = b'\x80\x02}(' + beside + text('model') + state + b'u.'
    data = {keys[key]: array.tobytes() for key, array in arrays.items()}
    return torch_bytes.zipped(pickled, data | {_MOMENTUM: bytes(8)})


def neighbours(canary: str) -> dict[str, bytes]:
    """Return encoded objects that checkpoints contain beside the weights, and calls that would create a file."""
    momentum = b'}' + integer(0) + torch_bytes.of_array(np.ones(2, np.float32), _MOMENTUM) + b's'
    return {
        'args': name('argparse', 'Namespace') + b')\x81}' + text('lr') + b'G' + struct.pack('>d', 0.1) + b'sb',
        'counter': call(name('collections', 'Counter'), b'}'),
        'device': call(name('torch', 'device'), text('cuda'), integer(0)),
        'size': call(name('torch', 'Size'), sequence(integer(2), integer(3))),
        'dtype': name('torch', 'float32'),
        'optimizer': b'}' + text('state') + momentum + b's',
        'iteration': integer(89999),
        'hostile': call(name('os', 'system'), text(f'touch {canary}')),
        'opened': name('builtins', 'open') + sequence(text(canary), text('w')) + b'\x81',
    }


def safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file."""
    header: dict[str, object] = {'__metadata__': dict(metadata)}
    position = 0
    for key, array in arrays.items():
        offsets = [position, position := position + array.nbytes]
        header[key] = {'dtype': 'F32', 'shape': list(array.shape), 'data_offsets': offsets}
    return _join(json.dumps(header).encode(), b''.join(array.tobytes() for array in arrays.values()))


def _join(header: bytes, values: bytes) -> bytes:
    return struct.pack('<Q', len(header)) + header + values


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, with the correct length before it."""
    length = int.from_bytes(data[:8], 'little')
    if not 2 <= length <= len(data) - 8:
        return flip_bits(data, rng)
    return _join(mutate_json(data[8 : 8 + length], rng), data[8 + length :])


def samples(canary: str, mutate_pickle: Callable[[dict], Mutation]) -> dict[str, tuple[bytes, tuple[Mutation, ...]]]:
    """Return the files.

    Args:
        canary: The file that code in a hostile file would create.
        mutate_pickle: Returns the mutation of a pickle, given the pickled object.
    """
    fpn, c4, vision = detectron2_arrays('resnet50_fpn'), detectron2_arrays('resnet50'), torchvision_arrays()
    zoo = {'model': fpn, '__author__': 'Detectron2 Model Zoo'}
    beside = neighbours(canary)
    return {
        'torchvision.pth': (torch_bytes.state_dict(vision), (mutate_zip,)),
        'torchvision_legacy.pth': (torch_bytes.state_dict(vision, True), ()),
        'torchvision_run.pth': (checkpoint(vision, beside), (mutate_zip,)),
        'detectron2.pkl': (pickle.dumps(zoo, 4), (mutate_pickle(zoo),)),
        'detectron2.pth': (checkpoint(c4, beside), (mutate_zip,)),
        'torchvision.safetensors': (safetensors(vision, {'format': 'pt'}), (mutate_safetensors,)),
    }
