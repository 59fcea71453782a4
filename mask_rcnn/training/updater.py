"""One update from a batch that goes through the network in several passes, on one or several processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import chainer
import numpy as np
from chainer import training

from mask_rcnn.training.distributed import Communicator
import itertools

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient is not finite; ``str()`` is one line.

    Args:
        iteration: The iteration that could not be finished, counted from 1.
        what: What is not finite.
        names: The images of its batch.
    """

    def __init__(self, iteration: int, what: str, names: Sequence[str]):
        super().__init__(iteration, what, tuple(names))
        self.iteration = iteration
        self.what = what
        self.names = tuple(names)

    def __str__(self) -> str:
        return f'iteration {self.iteration}: {self.what}; images: {", ".join(self.names)}'


class SubdivisionUpdater(training.updaters.StandardUpdater):
    """Updates a model with a batch in several passes.

    The batch is cut into ``subdivisions`` parts of (almost) equal size.  Each goes forward and backward on
    its own, its loss weighted with its share of the images, and the gradients add up to one update: that
    of the whole batch in one pass, because the loss is a mean over images, at the memory of one part.  (Only
    batch normalisation that is being trained sees the parts one by one.)

    What the chain reports is averaged in the same way, over the parts and over the processes;
    ``grad_norm``, the gradient's L2 norm before it is clipped, is added to it.

    Args:
        iterator (chainer.dataset.Iterator): Gives lists of examples; their ``name`` appears in errors.
        optimizer (mask_rcnn.training.optimizer.MomentumSGD): Its target takes a list of examples and returns the
            mean loss.
        subdivisions (int): Number of parts; at most one for each example of a batch is used.
        loss_scale: Factor of the loss in the backward pass, for float16 gradients; ``'dynamic'`` looks for
            the largest that works, skipping the updates where it was too large, with a line of log for each.
        communicator (mask_rcnn.training.distributed.Communicator): Averages gradients and reports over
            processes; ``None`` for one process.
        device: Device to move the target to, or ``None`` to leave it.

    Raises (from :meth:`update`):
        NonFiniteLossError: The loss or the gradient is not finite; nothing has been updated.
    """

    def __init__(
        self,
        iterator,
        optimizer,
        *,
        subdivisions: int = 1,
        loss_scale: float | str | None = None,
        communicator: Communicator | None = None,
        device=None,
    ):
        if subdivisions < 1:
            raise ValueError(f'subdivisions must be at least 1, not {subdivisions!r}')
        fixed_scale = None if loss_scale == 'dynamic' else loss_scale
        super().__init__(iterator, optimizer, device=device, loss_scale=fixed_scale)
        if loss_scale == 'dynamic':
            optimizer.loss_scaling()
        self.subdivisions = subdivisions
        self.communicator = communicator or Communicator()

    def update_core(self):
        iterator, optimizer = self.get_iterator('main'), self.get_optimizer('main')
        batch = iterator.next()
        optimizer.target.cleargrads()
        reports = self._accumulate(batch, optimizer)
        self.communicator.mean_gradients(optimizer.target)
        reports['grad_norm'] = optimizer.compute_grad_norm()
        reports = self.communicator.mean(reports)
        self._check(reports, batch, dynamic=optimizer._loss_scaling_is_dynamic)
        chainer.report(reports)
        optimizer.update()
        if optimizer.last_update_skipped and self.communicator.is_main:
            logger.warning(
                'iteration %d is skipped: its gradient has overflown; the loss scale is %g from now on',
                self.iteration + 1,
                optimizer._loss_scale,
            )
        if iterator.is_new_epoch:
            optimizer.new_epoch(auto=True)

    def _accumulate(self, batch: Sequence, optimizer) -> dict:
        """Add up the gradients of all parts; returns the mean of what the chain reported."""
        means = {}
        for part in split(batch, self.subdivisions):
            weight = len(part) / len(batch)
            reported = {}
            with chainer.reporter.report_scope(reported):
                loss = optimizer.target(part)
            (loss * weight).backward(loss_scale=optimizer._loss_scale)
            for name, value in {'main/loss': loss, **reported}.items():
                means[name] = means.get(name, 0) + weight * chainer.as_array(value)
            del loss  # and with it the part's activations, before those of the next are made
        return means

    def _check(self, reports: Mapping[str, float], batch: Sequence, *, dynamic: bool) -> None:
        losses = {name.rsplit('/', 1)[-1]: value for name, value in reports.items() if name.endswith('loss')}
        bad = [f'{name} is {value}' for name, value in losses.items() if not np.isfinite(value)]
        bad = [line for line in bad if not line.startswith('loss ')] or bad  # rather parts than the sum
        if not bad and not dynamic and not np.isfinite(reports['grad_norm']):
            bad = [f'the gradient is {reports["grad_norm"]}']
        if bad:
            names = self.communicator.gather([str(example.name) for example in batch])
            flat = [name for of_process in self.communicator.broadcast_object(names) for name in of_process]
            raise NonFiniteLossError(self.iteration + 1, ', '.join(bad), flat)


def split(batch: Sequence, n: int) -> list[Sequence]:
    """Cut a batch into ``n`` parts whose sizes differ by at most 1, without empty ones."""
    bounds = [len(batch) * i // n for i in range(n + 1)]
    return [batch[start:stop] for start, stop in itertools.pairwise(bounds) if stop > start]
