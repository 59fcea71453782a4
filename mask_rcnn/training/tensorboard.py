"""Scalars and example detections for TensorBoard, through tensorboardX."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from chainer import training

from mask_rcnn.training.extensions import TrainingLog


class TensorBoardMissingError(RuntimeError):
    """tensorboardX is not installed; ``str()`` is one line that says what to do."""

    def __init__(self):
        super().__init__("TensorBoard's files need tensorboardX: pip install tensorboardX")


def writer_class() -> type:
    """Return tensorboardX's ``SummaryWriter``.

    Raises:
        TensorBoardMissingError: tensorboardX is not there.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise TensorBoardMissingError from error
    return SummaryWriter


def make_writer(folder: str | os.PathLike, *, purge_step: int):
    """Return a writer of event files.

    Args:
        folder: Where they go.
        purge_step: TensorBoard forgets what it holds from this step on (of a run that was resumed).

    Raises:
        TensorBoardMissingError: tensorboardX is not there.
    """
    return writer_class()(os.fspath(folder), purge_step=purge_step)


class TensorBoard(training.Extension):
    """Trainer extension: every entry of the log as scalars.

    Args:
        log: The log.
        make_writer: Called with the folder and the first step, when the run starts.
    """

    name = 'tensorboard'
    priority = 40  # after the log

    def __init__(self, log: TrainingLog, make_writer: Callable = make_writer):
        self._log, self._make_writer = log, make_writer
        self._writer = None
        self._n_written = 0

    def initialize(self, trainer):
        self._n_written = len(self._log.log)
        iteration = trainer.updater.iteration
        self._writer = self._make_writer(os.path.join(trainer.out, 'tensorboard'), purge_step=iteration + 1)

    def __call__(self, trainer):
        for entry in self._log.log[self._n_written :]:
            for name, value in entry.items():
                if name != 'iteration':
                    self._writer.add_scalar(name, value, entry['iteration'])
        self._n_written = len(self._log.log)

    def finalize(self):
        if self._writer is not None:
            self._writer.close()

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Show an ``(H, W, 3)`` uint8 RGB picture."""
        self._writer.add_image(name, picture, step, dataformats='HWC')


class ExampleDetections(training.Extension):
    """Trainer extension: what the model finds in a few images, as pictures.

    Args:
        tensorboard: Where they go.
        model (mask_rcnn.MaskRCNN): The model.
        images: Pairs of a name and a ``(3, H, W)`` float32 RGB image.
        threshold: Scores above it are drawn.
    """

    name = 'examples'
    priority = 30

    def __init__(self, tensorboard: TensorBoard, model, images, *, threshold: float = 0.5):
        self._tensorboard, self._model, self._images, self._threshold = tensorboard, model, images, threshold

    def __call__(self, trainer):
        for name, image in self._images:
            (found,) = self._model.detect([image])
            picture = found.above(self._threshold).draw(image)
            self._tensorboard.add_picture(f'detections/{name}', picture, trainer.updater.iteration)
