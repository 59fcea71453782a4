"""Scalars and example detections for TensorBoard, through tensorboardX."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from chainer import training

from mask_rcnn.models import MaskRCNN
from mask_rcnn.training.extensions import TrainingLog


class TensorBoardMissingError(RuntimeError):
    """tensorboardX is not installed; ``str()`` is one line that contains the command to install it."""

    def __init__(self) -> None:
        super().__init__("TensorBoard's files need tensorboardX: pip install tensorboardX")


def writer_class() -> type:
    """Return tensorboardX's ``SummaryWriter``.

    Raises:
        TensorBoardMissingError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise TensorBoardMissingError from error
    return SummaryWriter


def make_writer(folder: str | os.PathLike, *, purge_step: int) -> Any:
    """Return a writer of event files, a ``SummaryWriter``.

    Args:
        folder: The folder of the files.
        purge_step: TensorBoard discards events of this step or later, which a run wrote before it was resumed.

    Raises:
        TensorBoardMissingError: tensorboardX is not installed.
    """
    return _keep_errors(writer_class()(os.fspath(folder), purge_step=purge_step))


class _ErrorKeeper:
    """The file of tensorboardX's writing thread; keeps the first error instead of raising it.

    An error would end the thread with a traceback, and the run would wait for it when its queue is full.
    """

    def __init__(self, file: Any):
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Callable:
        method = getattr(self._file, name)

        def call(*args: Any) -> Any:
            try:
                return method(*args)
            except OSError as error:
                self.error = self.error or error

        return call


def _keep_errors(writer: Any) -> Any:
    """Let the thread of a ``SummaryWriter`` survive errors; its new attribute ``errors`` has the first one."""
    events: Any = getattr(getattr(writer, 'file_writer', None), 'event_writer', None)
    if hasattr(events, '_ev_writer') and hasattr(getattr(events, '_worker', None), '_record_writer'):
        writer.errors = events._ev_writer = events._worker._record_writer = _ErrorKeeper(events._ev_writer)
    return writer


class TensorBoard(training.Extension):
    """Trainer extension: writes every entry of the log as scalars.

    Args:
        log: The log.
        make_writer: Called with the folder and the first step when the run starts; see :func:`make_writer`.
    """

    name = 'tensorboard'  # type: ignore[assignment]  # Chainer declares None
    priority = 40  # after the log

    def __init__(self, log: TrainingLog, make_writer: Callable[..., Any] = make_writer):
        self._log, self._make_writer = log, make_writer
        self._writer: Any = None
        self._n_written = 0

    def initialize(self, trainer: training.Trainer) -> None:
        self._n_written = len(self._log.log)
        iteration = trainer.updater.iteration
        self._writer = self._make_writer(os.path.join(trainer.out, 'tensorboard'), purge_step=iteration + 1)

    def __call__(self, trainer: training.Trainer) -> None:
        if self._writer is None:  # the folder could not be created
            return
        for entry in self._log.log[self._n_written :]:
            for name, value in entry.items():
                if name != 'iteration':
                    self._writer.add_scalar(name, value, entry['iteration'])
        self._n_written = len(self._log.log)
        error = getattr(getattr(self._writer, 'errors', None), 'error', None)
        if error is not None:
            raise error

    def finalize(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Write an ``(H, W, 3)`` uint8 RGB image."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats='HWC')


class ExampleDetections(training.Extension):
    """Trainer extension: draws the detections of a few images.

    Args:
        tensorboard: Writes the drawings.
        model: The model.
        images: Pairs of a name and a ``(3, H, W)`` float32 RGB image.
        threshold: Detections with a score above it are drawn.
    """

    name = 'examples'  # type: ignore[assignment]  # Chainer declares None
    priority = 30

    def __init__(
        self,
        tensorboard: TensorBoard,
        model: MaskRCNN,
        images: Sequence[tuple[str, np.ndarray]],
        *,
        threshold: float = 0.5,
    ):
        self._tensorboard, self._model, self._images, self._threshold = tensorboard, model, images, threshold

    def __call__(self, trainer: training.Trainer) -> None:
        for name, image in self._images:
            (detections,) = self._model.detect([image])
            drawing = detections.above(self._threshold).draw(image)
            self._tensorboard.add_image(f'detections/{name}', drawing, trainer.updater.iteration)
