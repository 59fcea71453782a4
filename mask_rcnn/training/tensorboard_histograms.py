"""Histograms of weights and gradients for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable

import chainer
import numpy as np
from chainer import training
from chainer.backends import cuda

from mask_rcnn.training.tensorboard import TensorBoard
from mask_rcnn.training.updater import SubdivisionUpdater


class WeightHistograms(training.Extension):
    """Trainer extension: writes the histograms of all weights, and those of the gradient of the same update.

    The gradient is that of ``grad_norm``: the mean over all passes and processes, without the loss scale and before
    clipping and weight decay.  The trained parameters and the gradients are read on their way to the update and not
    changed.  Frozen weights are written once.

    Args:
        tensorboard: Writes the histograms.
        model: The model.
        is_due: Called with the number of an iteration, returns whether its histograms are written.
    """

    name = 'histograms'  # type: ignore[assignment]  # Chainer declares None
    priority = 35  # after TensorBoard

    def __init__(self, tensorboard: TensorBoard, model: chainer.Link, is_due: Callable[[int], bool]):
        self._tensorboard, self._model, self._is_due = tensorboard, model, is_due
        self._gradients: dict[str, np.ndarray] = {}
        self._error: Exception | None = None

    def initialize(self, trainer: training.Trainer) -> None:
        trainer.updater.gradient_observer = self._observe
        iteration = trainer.updater.iteration
        self._write_weights(iteration, trained=iteration == 0, frozen=True)

    def __call__(self, trainer: training.Trainer) -> None:
        iteration = trainer.updater.iteration
        gradients, self._gradients = self._gradients, {}
        for path, array in gradients.items():
            self._tensorboard.add_histogram(histogram_tag('gradients', path), array, iteration)
        self._write_weights(iteration, trained=True, frozen=False)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _observe(self, updater: SubdivisionUpdater) -> None:
        """Copy the gradients to the host before an update whose histograms are due; raise nothing."""
        if not self._is_due(updater.iteration + 1):
            return
        try:
            self._gradients = copy_gradients(self._model, updater.get_optimizer('main')._loss_scale)
        except Exception as error:  # the update must not fail; the extension raises it
            self._error = error

    def _write_weights(self, iteration: int, *, trained: bool, frozen: bool) -> None:
        for path, param in self._model.namedparams():
            if param.array is not None and (trained if param.requires_grad else frozen):
                array = cuda.to_cpu(param.array)
                self._tensorboard.add_histogram(histogram_tag('weights', path), array, iteration)


def copy_gradients(link: chainer.Link, loss_scale: float | None) -> dict[str, np.ndarray]:
    """Return copies of the gradients of trained parameters on the host, by path, without the loss scale."""
    scale = np.float32(loss_scale or 1)
    return {
        path: cuda.to_cpu(param.grad) / scale
        for path, param in link.namedparams()
        if param.requires_grad and param.grad is not None
    }


def histogram_tag(kind: str, path: str) -> str:
    """Return the name of a histogram: TensorBoard groups them by the part before the first slash.

    Args:
        kind: ``'weights'`` or ``'gradients'``.
        path: The path of a parameter, such as ``'/rpn/conv/W'``.
    """
    return f'{kind}_{path.lstrip("/")}'
