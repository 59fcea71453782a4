"""A peer: another implementation of the network in a separate process that predicts or trains on request."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.inference.save import collect_arrays, model_meta
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.weights import formats
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from mask_rcnn.weights.exporters.targets import TARGETS, export_weights

PROGRAM = Path(__file__).resolve().parent / 'peers' / 'torch_mask_rcnn.py'
#: File of the weights for torchvision in a peer's folder.
STATE_DICT = 'model.pth'
TRAINING_PROGRAM = PROGRAM.with_name('torch_training.py')


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a peer and its interpreter."""
    parser.add_argument('--against', choices=('torch', 'torchvision'), help='peer to alternate with')
    parser.add_argument(
        '--peer-python',
        default=sys.executable,
        metavar='PYTHON',
        help='interpreter of the peer, with PyTorch (default: this one)',
    )


class PeerError(Exception):
    """The peer cannot run this model; ``str()`` is one line."""


class Peer:
    """The process of a peer.

    Args:
        python: Interpreter with PyTorch.
        network: ``'torch'`` or ``'torchvision'``; see ``peers/torch_mask_rcnn.py``.
        model: The model; ``'torch'`` computes the same network with the same weights, as does ``'torchvision'`` for a
            model in its dialect.
        image: ``(H, W, 3)`` uint8, RGB.
        precision: Arithmetic precision.

    Attributes:
        versions (dict): Versions of the peer's libraries.
    """

    def __init__(self, python: str, network: str, model, image, *, precision: str = 'fp32'):
        check(network, model)
        self._folder = tempfile.TemporaryDirectory()
        write_task(Path(self._folder.name), model, image)
        if network == 'torchvision' and runs_in_torchvision(model):
            write_state_dict(Path(self._folder.name) / STATE_DICT, model)
        self._start(python, PROGRAM, network, model, precision)

    def _start(self, python: str, program: Path, network: str, model, precision: str) -> None:
        """Start a program on the task in the folder."""
        folder = Path(self._folder.name)
        device = 'cpu' if model.xp is np else f'cuda:{model.device.device.id}'
        threads = len(os.sched_getaffinity(0))
        self._errors = (folder / 'errors').open('w+')
        options = {'network': network, 'threads': threads, 'precision': precision, 'device': device}
        command = [python, str(program), str(folder)]
        for name, value in options.items():
            command += [f'--{name}', str(value)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            self.close()
            raise PeerError(f'{python}: {error.strerror}') from error
        self.versions = self._read()

    def run(self) -> dict:
        """Run one prediction or training iteration.

        Returns:
            dict: Seconds of ``wall`` and ``cpu`` time, the result (the number of ``detections``, or the ``losses``),
            and bytes: ``host_peak``, and on a GPU ``gpu_pool`` and ``gpu_used``.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write('run\n')
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        assert self._process.stdout is not None
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


class TrainingPeer(Peer):
    """The process of a peer that trains.

    Args:
        python: Interpreter with PyTorch.
        network: ``'torch'`` or ``'torchvision'``; see ``peers/torch_training.py``.
        model: The model; ``'torch'`` trains the same network with the same weights.
        examples: The batch, images of one size.
        sampling: Sampling sizes and IoU thresholds.
        precision: Arithmetic precision.
    """

    def __init__(
        self,
        python: str,
        network: str,
        model,
        examples: Sequence[TrainingExample],
        sampling: Sampling,
        *,
        precision: str = 'fp32',
    ):
        check_training(network, model)
        self._folder = tempfile.TemporaryDirectory()
        write_training_task(Path(self._folder.name), model, examples, sampling)
        self._start(python, TRAINING_PROGRAM, network, model, precision)


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
    is_r50_fpn = config.extractor == 'resnet50_fpn' and config.masks and not config.n_keypoint
    if network == 'torchvision' and runs_in_torchvision(model) and not is_r50_fpn:
        raise PeerError('--against torchvision runs weights of its maskrcnn_resnet50_fpn and maskrcnn_resnet50_fpn_v2')


def runs_in_torchvision(model) -> bool:
    """Return whether torchvision runs a model with its weights, because its dialect is that of torchvision."""
    return model.config.dialect.name == 'torchvision'


def check_training(network: str, model) -> None:
    """Raise PeerError if the peer cannot train a model, or trains another network."""
    check(network, model)
    if network == 'torchvision' and model.config.extractor != 'resnet50_fpn':
        raise PeerError('--against torchvision trains R-50-FPN: it needs --extractor resnet50_fpn')


def write_task(folder: Path, model, image) -> None:
    """Write the input files of a peer that predicts."""
    write_network(folder, model)
    np.save(folder / 'image.npy', image)


def write_state_dict(path: Path, model) -> None:
    """Write the weights of a model for torchvision."""
    report = ConversionReport((), {})
    file = ConvertedWeights('model', formats.NATIVE, model.config, collect_arrays(model), report, '')
    export_weights('the model', path, file, model_meta(model), TARGETS['torchvision'])


def write_training_task(folder: Path, model, examples: Sequence[TrainingExample], sampling: Sampling) -> None:
    """Write the input files of a peer that trains."""
    losses = model.config.dialect.losses
    write_network(
        folder,
        model,
        n_classes=1 + model.config.n_fg_class,
        frozen_stages=model.config.dialect.training.frozen_stages,
        rpn_smooth_l1_beta=losses.rpn_smooth_l1_beta,
        box_smooth_l1_beta=losses.box_smooth_l1_beta,
        sampling=dataclasses.asdict(sampling),
        input_size=examples[0].image_transform.input_size,
    )
    np.savez(
        folder / 'batch.npz',
        x=np.stack([example.x for example in examples]),
        boxes=np.stack([_input_boxes(example) for example in examples]),
        labels=np.stack([example.annotations.labels for example in examples]),
        masks=np.stack([_input_masks(example) for example in examples]),
    )


def _input_boxes(example: TrainingExample) -> np.ndarray:
    """Return the boxes ``(G, 4)`` of the objects in the network input, as ``(y1, x1, y2, x2)``."""
    return example.image_transform.apply_boxes(example.annotations.boxes)


def _input_masks(example: TrainingExample) -> np.ndarray:
    """Rasterise the polygons of the objects in the network input: ``(G, h, w)`` uint8."""
    factor, size = example.image_transform.factors[0], example.image_transform.input_size
    masks = []
    for polygons in example.annotations.segmentations:
        parts = pycocotools.mask.frPyObjects([np.asarray(polygon) * factor for polygon in polygons], *size)
        masks.append(pycocotools.mask.decode(parts).any(axis=2))
    return np.stack(masks).astype(np.uint8)


def write_network(folder: Path, model, **settings) -> None:
    """Write the configuration, with more settings, and the weights."""
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
        'n_fg_class',
        'anchor_sizes',
        'anchor_ratios',
        'head_norm',
    )
    setup = {
        **{name: getattr(config, name) for name in names},
        'fpn': config.has_fpn,
        'blocks': RESNET_BLOCKS.get(config.backbone),
        'bn_eps': config.dialect.backbone.bn_eps,
        'pixel_mean': config.dialect.input.pixel_mean,
        'strides': model.rpn.strides,
        'cell_anchors': [cell.tolist() for cell in model.rpn.cell_anchors],
        **settings,
    }
    (folder / 'setup.json').write_text(json.dumps(setup))
    save: Callable[..., None] = np.savez  # its type forbids names of arrays from a dictionary
    save(folder / 'weights.npz', **collect_arrays(model))
