"""Compile the CPU kernels, so that the first prediction and the first training iteration start at once.

Numba compiles a kernel at its first call and caches it on disk.  This script runs small networks of every kind once.
``make setup`` calls it; run it again after an update of this package or of Numba.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping

import numpy as np

import mask_rcnn
from mask_rcnn.config import DETECTRON2, MATTERPORT, TORCHVISION
from mask_rcnn.ops.runtime.cache import cache_weights

#: Small channels and images keep the networks cheap; kernels are compiled per type, not per size.
_SMALL = {'min_size': 64, 'max_size': 128, 'rpn_pre_nms': 50, 'rpn_post_nms': 10, 'n_fg_class': 2}
_SMALL_FPN = {**_SMALL, 'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 16, 'mask_channels': 16}
_NETWORKS: dict[str, Mapping[str, object]] = {
    'resnet50': _SMALL,
    'resnet50_fpn': {**_SMALL_FPN, 'norm': 'bn'},
    'resnext50_32x4d_fpn': _SMALL_FPN,
    'resnet50_fpn_gn': {**_SMALL_FPN, 'fpn_channels': 32, 'mask_channels': 32},
    'mobilenet_v1_fpn': {**_SMALL_FPN, 'width': 0.25},
    'keypoint_resnet50_fpn': {**_SMALL_FPN, 'n_fg_class': 1},
}


def main(argv: list[str] | None = None) -> int:
    """Compile; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--training', action='store_true', help='compile the kernels of training as well')
    args = parser.parse_args(argv)
    started = time.monotonic()
    for preset, changes in _NETWORKS.items():
        _predict(preset, **changes)
    for dialect in (MATTERPORT, TORCHVISION, DETECTRON2):
        _predict('resnet50_fpn', dialect=dialect, **_SMALL_FPN)
    if args.training:
        _train()
    sys.stdout.write(f'CPU kernels are compiled ({time.monotonic() - started:.0f} s)\n')
    return 0


def _predict(preset: str, **changes) -> None:
    model = mask_rcnn.build(preset, score_threshold=0.0, **changes)
    pixels = np.random.RandomState(0).randint(0, 256, (96, 128, 3)).astype(np.uint8)
    floats = pixels.transpose(2, 0, 1) + np.float32(0.5)  # detectron2 resizes them like torchvision
    with cache_weights():
        for image, batch_size in ((pixels, 1), (floats, 1), (floats, 2)):
            for detections in model.detect([image] * 2, batch_size=batch_size):
                detections.draw(image, contour=True)
                detections.to_coco(1)


def _train() -> None:
    from mask_rcnn.cli import train

    with tempfile.TemporaryDirectory() as folder:
        for number, extractor in enumerate(('resnet50_fpn', 'mobilenet_v1_fpn', 'mobilenet_v1_fpn --norm gn')):
            options = f'--dataset shapes --pretrained none --extractor {extractor} --min-size 64 --max-size 64'
            options += ' --batchsize 1 --iteration 1 --validation 0 --snapshot 0 --workers 0 --gpu -1 --out'
            train.main([*options.split(), f'{folder}/{number}'])


if __name__ == '__main__':
    sys.exit(main())
