"""A peer: another implementation of the network in a separate process that predicts on request."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.inference.save import collect_arrays

PROGRAM = Path(__file__).resolve().parent / 'peers' / 'torch_mask_rcnn.py'


class PeerError(Exception):
    """The peer cannot run this model; ``str()`` is one line."""


class Peer:
    """The process of a peer.

    Args:
        python: Interpreter with PyTorch.
        network: ``'torch'`` or ``'torchvision'``; see ``peers/torch_mask_rcnn.py``.
        model: The model; ``'torch'`` computes the same network with the same weights.
        image: ``(3, H, W)`` float32, RGB.
        precision: Arithmetic precision.

    Attributes:
        versions (dict): Versions of the peer's libraries.
    """

    def __init__(self, python: str, network: str, model, image, *, precision: str = 'fp32'):
        check(network, model)
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        write_task(folder, model, image)
        device = 'cpu' if model.xp is np else f'cuda:{model.device.device.id}'
        threads = len(os.sched_getaffinity(0))
        self._errors = (folder / 'errors').open('w+')
        command = [
            python,
            str(PROGRAM),
            str(folder),
            '--network',
            network,
            '--threads',
            str(threads),
            '--precision',
            precision,
            '--device',
            device,
        ]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            self.close()
            raise PeerError(f'{python}: {error.strerror}') from error
        self.versions = self._read()

    def run(self) -> dict:
        """Predict once.

        Returns:
            dict: Seconds of ``wall`` and ``cpu`` time, the number of ``detections``, and bytes: ``host_peak``, and on
            a GPU ``gpu_pool`` and ``gpu_used``.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write('predict\n')
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or [f'status {self._process.returncode}']
            self.close()
            raise PeerError(f'the peer has ended: {lines[-1]} (--peer-python names an interpreter that has PyTorch)')
        return json.loads(line)

    def close(self) -> None:
        """Stop the process and delete its files."""
        process = getattr(self, '_process', None)
        if process is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def check(network: str, model) -> None:
    """Raise PeerError if the peer does not support a model."""
    config = model.config
    if network == 'torch' and (
        config.backbone not in RESNET_BLOCKS
        or config.norm != 'affine'
        or not config.masks
        or config.n_keypoint
        or config.dialect.name != 'detectron'
    ):
        raise PeerError("--against torch supports Detectron's ResNets with affine channels, boxes and masks")


def write_task(folder: Path, model, image) -> None:
    """Write the input files of the peer."""
    config = model.config
    names = (
        'min_size',
        'max_size',
        'size_divisor',
        'rpn_pre_nms',
        'rpn_post_nms',
        'rpn_nms_threshold',
        'score_threshold',
        'nms_threshold',
        'max_detections',
        'sampling_ratio',
    )
    setup = {
        **{name: getattr(config, name) for name in names},
        'fpn': config.has_fpn,
        'blocks': RESNET_BLOCKS.get(config.backbone),
        'pixel_mean': config.dialect.input.pixel_mean,
        'strides': model.rpn.strides,
        'cell_anchors': [cell.tolist() for cell in model.rpn.cell_anchors],
    }
    (folder / 'setup.json').write_text(json.dumps(setup))
    np.save(folder / 'image.npy', image)
    np.savez(folder / 'weights.npz', **collect_arrays(model))
