"""Arrays of the weight files of DeNA's Chainer_Mask_R-CNN, without values of the original program."""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import RESNET_BLOCKS
from tests.support.weight_arrays import zeros

#: Neutral statistics as the original program writes them: float32 arithmetic.
NEUTRAL = {'avg_mean': np.float32(0), 'avg_var': np.float32(1) - np.float32(2e-5)}


def array_shapes(n_classes=3, backbone='resnet50'):
    """Return the shapes of a file's float arrays by name, from the table in golden/dena/README.md."""
    shapes = {'extractor/conv1/W': (64, 3, 7, 7)} | norm_shapes('extractor/bn1', 64)
    width_in = 64
    for stage, n_blocks in zip((2, 3, 4, 5), RESNET_BLOCKS[backbone], strict=True):
        width = 64 * 2 ** (stage - 2)
        for block in ['a', *(f'b{i}' for i in range(1, n_blocks))]:
            prefix = f'{"head" if stage == 5 else "extractor"}/res{stage}/{block}'
            convs = {1: (width, width_in, 1, 1), 2: (width, width, 3, 3), 3: (4 * width, width, 1, 1)}
            if block == 'a':
                convs[4] = (4 * width, width_in, 1, 1)
            for i, shape in convs.items():
                shapes |= {f'{prefix}/conv{i}/W': shape} | norm_shapes(f'{prefix}/bn{i}', shape[0])
            width_in = 4 * width
    layers = {
        'rpn/conv1': (1024, 1024, 3, 3),
        'rpn/score': (15, 1024, 1, 1),
        'rpn/loc': (60, 1024, 1, 1),
        'head/score': (n_classes + 1, 2048),
        'head/cls_loc': (4 * (n_classes + 1), 2048),
        'head/convm2': (n_classes + 1, 256, 1, 1),
    }
    shapes |= {f'{name}/W': shape for name, shape in layers.items()}
    shapes |= {f'{name}/b': shape[:1] for name, shape in layers.items()}
    return shapes | {'head/deconvm1/W': (2048, 256, 2, 2), 'head/deconvm1/b': (256,)}


def norm_shapes(name, width):
    """Return the shapes of a batch normalisation's float arrays."""
    return {f'{name}/{array}': (width,) for array in ('gamma', 'beta', 'avg_mean', 'avg_var')}


def with_counters(arrays):
    """Add the batch counter of each batch normalisation."""
    names = [name for name in arrays if name.endswith('/gamma')]
    return arrays | {name.replace('/gamma', '/N'): np.array(0, np.int64) for name in names}


def file_arrays(n_classes=3, backbone='resnet50', **changes):
    """Return arrays of zeros with neutral statistics that take no memory; a change to ``None`` removes an array."""
    shapes = array_shapes(n_classes, backbone)
    arrays = zeros(shapes)
    for name, shape in shapes.items():
        kind = name.rpartition('/')[2]
        if kind in NEUTRAL:
            arrays[name] = np.broadcast_to(NEUTRAL[kind], shape)
    return {name: array for name, array in (with_counters(arrays) | changes).items() if array is not None}
