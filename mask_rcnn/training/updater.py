"""The updater: gradient accumulation over several passes, in one or several processes."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chainer
import numpy as np
from chainer import training

from mask_rcnn.io.console import escape
from mask_rcnn.io.errors import OneLineError
from mask_rcnn.ops.runtime.gpu_errors import memory_errors
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.failures import StateBeforeUpdate
from mask_rcnn.training.optimizer import MomentumSGD
from mask_rcnn.training.signals import SignalHandler

_logger = logging.getLogger(__name__)


class NonFiniteLossError(OneLineError, RuntimeError):
    """A loss or a gradient is not finite; ``str()`` is one line.

    Args:
        iteration: The iteration that failed, counted from 1.
        reason: The values that are not finite.
        names: The images of the batch.
    """

    def __init__(self, iteration: int, reason: str, names: Sequence[str]):
        super().__init__(iteration, reason, tuple(names))
        self.iteration = iteration
        self.reason = reason
        self.names = tuple(names)

    def __str__(self) -> str:
        return escape(f'iteration {self.iteration}: {self.reason}; images: {", ".join(self.names)}')


class SubdivisionUpdater(training.updaters.StandardUpdater):
    """Updates a model with a batch in several passes.

    The batch is divided into ``subdivisions`` parts of nearly equal size.  The loss of each part is weighted by its
    fraction of the images, and the gradients of all parts are accumulated.  Because the loss is a mean over images,
    the update equals that of the whole batch in one pass, but needs the memory of one part.  (Batch normalisation in
    training mode is the exception: its statistics are computed for each part.)

    The reported values are averaged in the same way over the parts and over the processes.  ``grad_norm``, the L2
    norm of the gradient before clipping, is added to them.

    With ``sum_images``, the gradient is the sum over the images of all processes instead of the mean; the reported
    losses remain means.

    Args:
        iterator: Returns lists of examples; their ``name`` appears in errors.
        optimizer: Its target is called with a list of examples and returns their mean loss.  If it has the methods
            ``passes`` and ``disable_graphs``, like :class:`~mask_rcnn.training.train_chain.MaskRCNNTrainChain`, the
            first one divides each part further, and the second one is called if memory is short.
        subdivisions: Number of parts; at most one for each example of a batch.
        loss_scale: Multiplier of the loss in the backward pass, for float16 gradients.  ``'dynamic'`` searches for the
            largest factor without overflow and skips updates that overflow, with one log line each.  It is an error
            if the gradient overflows with :data:`~mask_rcnn.training.optimizer.MIN_LOSS_SCALE`.
        communicator: Averages gradients and reported values over processes; ``None`` for one process.
        device: Device to move the target to; ``None`` does not move it.
        sum_images: The dialect's ``training.sum_images``.
        signal_handler: The second stop signal raises ``KeyboardInterrupt`` while the gradient is computed.

    Attributes:
        is_consistent (bool): False while an update changes the parameters, or if it has failed then.  Otherwise the
            state is the one after ``iteration`` updates: an update that fails earlier restores it.
        gradient_observer: Called with the updater before each update, when the parameters have the gradient that is
            the same in all processes, with the loss scale and not clipped.  It must neither change anything nor raise.

    Raises (from :meth:`update`):
        NonFiniteLossError: The loss or the gradient is not finite; no parameter has been updated.
    """

    def __init__(
        self,
        iterator: chainer.dataset.Iterator,
        optimizer: MomentumSGD,
        *,
        subdivisions: int = 1,
        loss_scale: float | str | None = None,
        communicator: Communicator | None = None,
        device: Any = None,
        sum_images: bool = False,
        signal_handler: SignalHandler | None = None,
    ):
        if subdivisions < 1:
            raise ValueError(f'subdivisions must be at least 1, not {subdivisions!r}')
        fixed_scale = None if loss_scale == 'dynamic' else loss_scale
        super().__init__(iterator, optimizer, device=device, loss_scale=fixed_scale)
        if loss_scale == 'dynamic':
            optimizer.loss_scaling()
        self.subdivisions = subdivisions
        self.communicator = communicator or Communicator()
        self.sum_images = sum_images
        self.is_consistent = True
        self.gradient_observer: Callable[[SubdivisionUpdater], None] | None = None
        self._signal_handler = signal_handler or SignalHandler()
        self._before = StateBeforeUpdate(iterator, optimizer.target)

    def update(self) -> None:
        """Update the parameters and count the iteration."""
        self._before.save()
        self.is_consistent = False
        try:
            with self._signal_handler.interruptible(2):
                reports = self._compute_gradient()
        except BaseException:
            self._before.restore()
            self.is_consistent = True
            raise
        chainer.report(reports)
        if self.gradient_observer is not None:
            self.gradient_observer(self)
        self.update_core()
        self.iteration += 1
        self.is_consistent = True

    def _compute_gradient(self) -> dict[str, float]:
        """Compute the gradient of the next batch, the same in all processes; return the reported values."""
        optimizer = self.get_optimizer('main')
        batch: Sequence = ()
        reports: dict[str, Any] = {}
        failure = None
        try:
            batch = self.get_iterator('main').next()
            with chainer.using_config('type_check', False):  # it costs host time in each function
                reports = self._accumulate_with_retry(batch, optimizer)
        except BaseException as error:
            failure = error
        self.communicator.agree(failure)
        self.communicator.mean_gradients(optimizer.target)
        reports = self.communicator.mean(optimizer.report_grad_norm(reports))
        self._check(reports, batch, optimizer)
        return reports

    def update_core(self) -> None:
        """Update the parameters with the gradient."""
        iterator, optimizer = self.get_iterator('main'), self.get_optimizer('main')
        optimizer.update()
        if optimizer.last_update_skipped and self.communicator.is_main:
            _logger.warning(
                'iteration %d is skipped: its gradient has overflowed; the loss scale is now %g',
                self.iteration + 1,
                optimizer._loss_scale,
            )
        if iterator.is_new_epoch:
            optimizer.new_epoch(auto=True)

    def _accumulate_with_retry(self, batch: Sequence, optimizer: Any) -> dict[str, Any]:
        """Accumulate the gradients; if memory is short, give up the CUDA graphs of this process and try again."""
        try:
            with memory_errors():
                return self._accumulate(batch, optimizer)
        except MemoryError:
            disable_graphs = getattr(optimizer.target, 'disable_graphs', None)
            if disable_graphs is None or not disable_graphs():
                raise
        gc.collect()  # the frames of the error refer to it and keep the arrays of the passes alive
        self._before.restore_statistics()
        with memory_errors():
            return self._accumulate(batch, optimizer)

    def _accumulate(self, batch: Sequence, optimizer: Any) -> dict[str, Any]:
        """Accumulate the gradients of all passes; return the means of the reported values."""
        optimizer.cleargrads()
        means: dict[str, Any] = {}
        # The processes have batches of one size, and `mean_gradients` divides by the number of processes.
        n_images = len(batch) * self.communicator.size if self.sum_images else 1
        passes = getattr(optimizer.target, 'passes', lambda part: [part])
        for examples in (examples for part in split(batch, self.subdivisions) for examples in passes(part)):
            weight = len(examples) / len(batch)
            reported: dict[str, Any] = {}
            # A backward pass follows each forward pass.
            with chainer.using_config('training_graphs', True), chainer.reporter.report_scope(reported):
                loss = optimizer.target(examples)
            # A product with 1 would start a kernel.
            (loss if weight * n_images == 1 else loss * (weight * n_images)).backward(loss_scale=optimizer._loss_scale)
            for name, value in {'main/loss': loss, **reported}.items():
                array = chainer.as_array(value)
                means[name] = array if weight == 1 else means.get(name, 0) + weight * array
            del loss  # frees the activations before those of the next pass are allocated
        return means

    def _check(self, reports: Mapping[str, float], batch: Sequence, optimizer: MomentumSGD) -> None:
        """Raise if a loss is not finite, or if the gradient is not and no smaller loss scale may help."""
        losses = {name.rsplit('/', 1)[-1]: value for name, value in reports.items() if name.endswith('loss')}
        bad = [f'{name} is {value}' for name, value in losses.items() if not np.isfinite(value)]
        bad = [line for line in bad if not line.startswith('loss ')] or bad  # the terms rather than their sum
        if not bad and not np.isfinite(reports['grad_norm']) and not optimizer.may_overflow:
            with_scale = '' if optimizer._loss_scale is None else f' with the loss scale {optimizer._loss_scale:g}'
            bad = [f'the gradient is {reports["grad_norm"]}{with_scale}']
        if bad:
            gathered = self.communicator.gather([str(example.name) for example in batch])
            names = [name for process in self.communicator.broadcast_object(gathered) for name in process]
            self.communicator.failed_together = True
            raise NonFiniteLossError(self.iteration + 1, ', '.join(bad), names)


def split(batch: Sequence, n: int) -> list[Sequence]:
    """Split a batch into ``n`` parts whose sizes differ by at most 1, without empty parts."""
    bounds = [len(batch) * i // n for i in range(n + 1)]
    return [batch[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]
