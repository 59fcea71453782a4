"""Intact weight files and snapshots of every format, a few kilobytes each.

The native files, the ImageNet weights of MobileNetV1 and the snapshots contain whole small networks.  The networks of
the other formats have fixed widths (100 MB): their files have the names of all arrays, and few values.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import harness  # noqa: F401  # finds the package and tests.support
import numpy as np
import torch_samples
from mutations import Mutation, change_value, mutate_zip, replace_number_in_text

from mask_rcnn.config import MATTERPORT, Config
from mask_rcnn.weights.converters.mapping import CAFFE_BRANCHES, resnet_convolutions
from mask_rcnn.weights.converters.matterport_layers import param_mappings
from tests.support import dena_files, protobuf_bytes, torch_bytes

try:
    import h5py
except ImportError:  # no wheel for Python 3.15
    h5py = None

#: File name -> content and the mutations that know its structure.
Samples = dict[str, tuple[bytes, tuple[Mutation, ...]]]

#: Detectron's text of settings, with PyYAML's Python tags.
CFG = """\
!!python/object/new:detectron.utils.collections.AttrDict
dictitems:
  FPN: !!python/object/new:detectron.utils.collections.AttrDict
    dictitems: {FPN_ON: false, RPN_MIN_LEVEL: 2, RPN_MAX_LEVEL: 6, RPN_ASPECT_RATIOS: !!python/tuple [0.5, 1, 2]}
  MODEL: !!python/object/new:detectron.utils.collections.AttrDict
    dictitems: {NUM_CLASSES: 3, BBOX_REG_WEIGHTS: !!python/tuple [10.0, 10.0, 5.0, 5.0], MASK_ON: true}
  PIXEL_MEANS: [[[102.9801, 115.9465, 122.7717]]]
  RPN: {SIZES: !!python/tuple [32, 64, 128, 256, 512], ASPECT_RATIOS: [0.5, 1, 2], STRIDE: 16}
  TEST: {SCALE: 800, SCALES: !!python/tuple [800], MAX_SIZE: 1333, NMS: 0.5, SCORE_THRESH: 0.05,
    RPN_PRE_NMS_TOP_N: 6000, RPN_POST_NMS_TOP_N: 1000, RPN_NMS_THRESH: 0.7, RPN_MIN_SIZE: 0, DETECTIONS_PER_IM: 100}
state: {__immutable__: true}
"""


class Hostile:
    """An object whose pickle runs a function if it is loaded carelessly."""

    def __init__(self, function: Callable, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> tuple:
        """Return the call that a careless reader makes."""
        return self._call

    def __deepcopy__(self, memo: dict) -> Hostile:
        """Return the object itself: a copy would make the call."""
        return self


def hostile_objects(canary: Path) -> list[Any]:
    """Return objects that would create the file ``canary``."""
    return [
        Hostile(os.system, f'touch {canary}'),
        Hostile(open, str(canary), 'w'),
        Hostile(eval, f'open({str(canary)!r}, "w")'),
        Hostile(np.save, str(canary), np.zeros(1)),
        Hostile(os.mkdir, str(canary)),
    ]


def _npz(arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    save(file, **arrays)
    return file.getvalue()


def _small(shape: Iterable[int], largest: int = 2) -> np.ndarray:
    """Return an array of ones in which no axis is longer than ``largest``."""
    return np.ones([min(n, largest) for n in shape], np.float32)


# Detectron


def _detectron_blobs(heads: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    layers = ['conv1'] + [f'res{s}_{b}_{CAFFE_BRANCHES[n]}' for s, b, n, _ in resnet_convolutions('resnet50')]
    blobs = {f'{layer}_w': _small((2, 2, 1, 1)) for layer in layers}
    for layer in layers:
        norm = 'res_conv1_bn' if layer == 'conv1' else f'{layer}_bn'
        blobs |= {f'{norm}_s': _small((2,)), f'{norm}_b': _small((2,))}
    for layer, shape in heads.items():
        blobs |= {f'{layer}_w': np.ones(shape, np.float32), f'{layer}_b': np.ones(shape[:1], np.float32)}
    return blobs


_C4_HEADS = {
    'conv_rpn': (2, 2, 3, 3),
    'rpn_cls_logits': (15, 2, 1, 1),
    'rpn_bbox_pred': (60, 2, 1, 1),
    'cls_score': (3, 2),
    'bbox_pred': (12, 2),
    'conv5_mask': (2, 2, 2, 2),
    'mask_fcn_logits': (3, 2, 1, 1),
}


def _mutate_pickle(content: Any, canary: Path) -> Mutation:
    """Return a mutation that changes the pickled object: a value becomes odd, or code that creates a file."""
    hostile = hostile_objects(canary)
    odd = (
        np.zeros(0),
        np.zeros((1, 1, 1), '>f8'),
        np.zeros(2, object),
        np.float32(1),
        b'x',
        (1,),
        {1},
        1j,
        len,
        *hostile,
    )

    def mutate(data: bytes, rng) -> bytes:
        changed = change_value(content, rng, odd if rng.random() < 0.5 else (None, 0, [], {}, '', 'x', -1, 2**70, [[]]))
        if isinstance(changed, dict) and rng.random() < 0.3 and isinstance(changed.get('cfg'), str):
            text = replace_number_in_text(changed['cfg'].encode('utf-8', 'replace'), rng)
            changed['cfg'] = text.decode('utf-8', 'replace')
        try:
            return pickle.dumps(changed, rng.randrange(6))
        except Exception:  # protocol 0 cannot store some objects
            return pickle.dumps(changed, 4)

    return mutate


def _detectron(canary: Path) -> Samples:
    model = {'blobs': _detectron_blobs(_C4_HEADS), 'cfg': CFG}
    backbone = _detectron_blobs({})
    return {
        'model_final.pkl': (pickle.dumps(model, 2), (_mutate_pickle(model, canary),)),
        'model_python2.pkl': (pickle.dumps(model, 0), (_mutate_pickle(model, canary),)),
        'R-50.pkl': (pickle.dumps(backbone, 4), (_mutate_pickle(backbone, canary),)),
    }


# NumPy archives


def _caffe_layers() -> dict[str, str]:
    """Return the name of each convolution and of its batch normalisation in Caffe's ResNet-50."""
    layers = {'conv1': 'bn_conv1'}
    for stage, block, name, _ in resnet_convolutions('resnet50'):
        suffix = f'{stage}{string.ascii_lowercase[block]}_{CAFFE_BRANCHES[name]}'
        layers[f'res{suffix}'] = f'bn{suffix}'
    return layers


def _caffe_arrays() -> dict[str, np.ndarray]:
    arrays = {}
    for conv, norm in _caffe_layers().items():
        arrays[f'{conv}/W'] = _small((2, 2, 1, 1))
        arrays |= {f'{norm}/{name}': _small((2,)) for name in ('gamma', 'beta', 'mean', 'var')}
    return arrays


def _chainer_arrays() -> dict[str, np.ndarray]:
    indices = {'conv1': 1, 'conv2': 2, 'conv3': 3, 'shortcut': 4}
    layers = [('conv1', 'bn1')]
    for stage, block, name, _ in resnet_convolutions('resnet50'):
        prefix, index = f'res{stage}/{f"b{block}" if block else "a"}', indices[name]
        layers.append((f'{prefix}/conv{index}', f'{prefix}/bn{index}'))
    arrays = {f'{conv}/W': _small((2, 2, 1, 1)) for conv, _ in layers}
    return arrays | {f'{bn}/{n}': _small((2,)) for _, bn in layers for n in ('gamma', 'beta', 'avg_mean', 'avg_var')}


def _mobilenet_arrays() -> dict[str, np.ndarray]:
    """Return the arrays of a MobileNetV1 of width 1/16 under TensorFlow's names."""
    widths = [max(8, round(n / 16)) for n in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    shapes: dict[str, tuple[int, ...]] = {'Conv2d_0/weights': (widths[0], 3, 3, 3)}
    for i, (width_in, width) in enumerate(itertools.pairwise(widths), start=1):
        shapes[f'Conv2d_{i}_depthwise/depthwise_weights'] = (width_in, 1, 3, 3)
        shapes[f'Conv2d_{i}_pointwise/weights'] = (width, width_in, 1, 1)
    for name, shape in list(shapes.items()):
        for part in ('gamma', 'beta', 'moving_mean', 'moving_variance'):
            shapes[f'{name.partition("/")[0]}/BatchNorm/{part}'] = shape[:1]
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def _archives() -> Samples:
    dena = {name: _small(array.shape) for name, array in dena_files.file_arrays().items()}
    files = {
        'resnet50_imagenet.npz': _npz(_caffe_arrays()),
        'resnet50_compressed.npz': _npz(_caffe_arrays(), compressed=True),
        'ResNet-50-model.npz': _npz(_chainer_arrays()),
        'mobilenet_v1_imagenet.npz': _npz(_mobilenet_arrays()),
        'snapshot_model.npz': _npz(dena),
    }
    return {name: (data, (mutate_zip,)) for name, data in files.items()}


# PyTorch, Keras, Caffe and MindSpore


def _torch() -> Samples:
    names = ['fpn.C1.0', 'fpn.C1.1', 'fpn.C2.0.conv1', 'rpn.conv_class', 'classifier.linear_class', 'mask.conv5']
    arrays = {f'module.{name}.{part}': _small((4, 2)) for name in names for part in ('weight', 'bias')}
    arrays |= {'module.half': np.ones(3, np.float16), 'module.count': np.array(7)}
    pickled = torch_bytes.dictionary({'a': torch_bytes.of_array(np.ones(4, np.float32), '0')})
    return {
        'mask_rcnn_coco.pth': (torch_bytes.state_dict(arrays), (mutate_zip,)),
        'legacy.pth': (torch_bytes.state_dict(arrays, True), ()),
        'one.pth': (torch_bytes.zipped(pickled, {'0': bytes(16)}), (mutate_zip,)),
    }


def _keras() -> Samples:
    if h5py is None:
        return {}
    config = Config(
        extractor='resnet50_fpn', dialect=MATTERPORT, norm='bn', n_fg_class=3, rpn_channels=4, roi_size=7, max_size=1024
    )
    kinds = {'mean': 'moving_mean', 'var': 'moving_variance'}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for mapping in param_mappings(config, lambda layer, kind: f'{layer}/{kind}'):
        for name, shape in mapping.inputs.items():
            layer, kind = name.split('/')
            shapes[layer, kind] = shape
    samples: Samples = {}
    for compression in (None, 'gzip'):
        file = io.BytesIO()
        with h5py.File(file, 'w') as opened:
            opened.attrs['layer_names'] = np.array(sorted({layer.encode() for layer, _ in shapes}))
            for (layer, kind), shape in list(shapes.items())[:: 20 if compression else 1]:
                name = f'{layer}/{layer}/{kinds.get(kind, kind)}:0'
                opened.create_dataset(name, data=_small(shape[::-1], 12), compression=compression)
        samples[f'mask_rcnn_{compression or "plain"}.h5'] = (file.getvalue(), ())
    return samples


def _caffemodel() -> bytes:
    field, varint = protobuf_bytes.bytes_field, protobuf_bytes.varint

    def layer(name: str, *blobs: np.ndarray) -> bytes:
        content = field(1, name.encode())
        for blob in blobs:
            shape = field(1, b''.join(map(varint, blob.shape)))
            content += field(7, field(7, shape) + field(5, blob.tobytes()))
        return field(100, content)

    parts = [field(1, b'ResNet-50')]
    for conv, norm in _caffe_layers().items():
        parts.append(layer(conv, _small((2, 2, 1, 1))))
        parts.append(layer(norm, _small((2,)), _small((2,)), np.ones(1, np.float32)))
        parts.append(layer(norm.replace('bn', 'scale', 1), _small((2,)), _small((2,))))
    return b''.join(parts)


def _mindspore() -> bytes:
    field, varint = protobuf_bytes.bytes_field, protobuf_bytes.varint
    arrays = {
        'backbone.layer1.0.conv1.weight': _small((4, 4, 1, 1), 4),
        'rcnn_cls.fpn_cls.cls_scores.weight': _small((4, 3), 4),
        'learning_rate': np.ones(1, np.float16),
        'global_step': np.ones(1, np.int32),
    }
    content = b''
    for name, array in arrays.items():
        kind = array.dtype.name.capitalize().encode()
        dims = b''.join(b'\x08' + varint(n) for n in array.shape)
        content += field(1, field(1, name.encode()) + field(2, dims + field(2, kind) + field(3, array.tobytes())))
    return content


def weights(native: Mapping[str, bytes], canary: Path) -> Samples:
    """Return weight files of every format.

    Args:
        native: Native model files by name.
        canary: The file that code in a hostile file would create.
    """
    return {
        **{name: (data, (mutate_zip,)) for name, data in native.items()},
        **_archives(),
        **_detectron(canary),
        **_torch(),
        **torch_samples.samples(str(canary), lambda content: _mutate_pickle(content, canary)),
        **_keras(),
        'ResNet-50-model.caffemodel': (_caffemodel(), ()),
        'mask_rcnn.ckpt': (_mindspore(), ()),
    }
