"""Event files for TensorBoard, through tensorboardX: scalars, texts, images and histograms."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from chainer import training

from mask_rcnn.io.console import escape
from mask_rcnn.training.extensions import TrainingLog
from mask_rcnn.weights.histograms import finite_values, histogram_of

#: Characters with a meaning in Markdown or HTML.
_MARKUP = re.compile(r"[^\w .,:;/()=+%'-]|_")


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
    """Trainer extension: writes every entry of the log as scalars, and the configuration of the run as text.

    Args:
        log: The log.
        make_writer: Called with the folder and the first step when the run starts; see :func:`make_writer`.
        configuration: Title -> the names and values of a table, such as the options of the run.
    """

    name = 'tensorboard'  # type: ignore[assignment]  # Chainer declares None
    priority = 40  # after the log

    def __init__(
        self,
        log: TrainingLog,
        make_writer: Callable[..., Any] = make_writer,
        *,
        configuration: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ):
        self._log, self._make_writer, self._configuration = log, make_writer, configuration
        self._writer: Any = None
        self._n_written = 0

    def initialize(self, trainer: training.Trainer) -> None:
        self._n_written = len(self._log.log)
        iteration = trainer.updater.iteration
        self._writer = self._make_writer(os.path.join(trainer.out, 'tensorboard'), purge_step=iteration + 1)
        for title, values in self._configuration.items():
            self._writer.add_text(f'configuration/{title}', markdown_table(values), iteration)

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

    def add_histogram(self, name: str, array: np.ndarray, step: int) -> None:
        """Write the histogram of the finite values of an array; nothing if there are none."""
        values = finite_values(array)
        if self._writer is None or not values.size:
            return
        histogram = histogram_of(values)
        self._writer.add_histogram_raw(
            name,
            min=float(values.min()),
            max=float(values.max()),
            num=int(values.size),
            sum=float(values.sum()),
            sum_squares=float(values @ values),
            bucket_limits=histogram.edges[1:].tolist(),
            bucket_counts=histogram.counts.tolist(),
            global_step=step,
        )


def markdown_table(values: Mapping[str, Any]) -> str:
    """Return names and values as a table in Markdown; characters with a meaning in Markdown become HTML entities."""
    rows = [f'| {_plain(name)} | {_plain(value)} |' for name, value in values.items()]
    return '\n'.join(['| name | value |', '| --- | --- |', *rows])


def _plain(value: Any) -> str:
    return _MARKUP.sub(lambda match: f'&#{ord(match[0])};', escape(value))
