"""Training in several processes, over ChainerMN, MPI and NCCL.

Every process holds the whole model and takes its part of every batch; between the backward pass and the
update the gradients are averaged, so that all models stay the same.  With one process nothing of MPI is
needed or imported::

    communicator = create(name)             # None: one process
    with communicator.guard():              # a process that fails ends the others, too
        communicator.broadcast(model)
        ...
        loss.backward()                     # as often as the batch has subdivisions
        communicator.mean_gradients(model)
        optimizer.update()

The mean over processes is the gradient of the whole batch because the loss is a mean over images and every
process takes equally many.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import chainer
import numpy as np

from mask_rcnn.compat import mend_chainermn
from mask_rcnn.inference.save import arrays_of
from mask_rcnn.ops.runtime.device import cuda_device_count
from mask_rcnn.weights import WeightFileError, load_arrays

logger = logging.getLogger(__name__)

#: The communicators of ChainerMN that :func:`create_communicator` knows: over MPI between CPUs, over NCCL between GPUs.
NAMES = ('naive', 'pure_nccl')

#: Where launchers leave the number of processes: Open MPI; MPICH and Intel MPI; MVAPICH.
_SIZE_VARIABLES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'MV2_COMM_WORLD_SIZE')


class DistributedError(RuntimeError):
    """The processes cannot work together; ``str()`` is one line that says why."""


class Communicator:
    """How one process talks to the others; this class is the case that there are no others.

    All methods but :meth:`guard` must be called by every process, in the same order.

    Attributes:
        rank (int): Number of this process, from 0.
        size (int): Number of processes.
        intra_rank (int): Number of this process among those of its host: the GPU it should take.
    """

    rank = 0
    size = 1
    intra_rank = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def broadcast(self, link: chainer.Link) -> None:
        """Give all processes the parameters and persistent values of process 0's link.

        Raises:
            DistributedError: The links of two processes have different parameters.
        """

    def mean_gradients(self, link: chainer.Link) -> None:
        """Replace the gradient of every trained parameter by its mean over the processes.

        Frozen parameters (``requires_grad`` false, or their update rule disabled) are left alone.  A
        process without a gradient where another has one counts as zero.

        Raises:
            DistributedError: The link is on a device that the communicator does not serve.
        """

    def mean_persistents(self, link: chainer.Link) -> None:
        """Replace the floating point persistent values (running statistics) by their mean."""

    def mean(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return the mean of each number over the processes that have it, the same on all of them."""
        return {name: _to_float(value) for name, value in values.items()}

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in at least one process."""
        return bool(flag)

    def gather(self, obj: Any) -> list | None:
        """Return the objects of all processes, by rank, in process 0 and ``None`` in the others."""
        return [obj]

    def broadcast_object(self, obj: Any) -> Any:
        """Return process 0's object."""
        return obj

    def barrier(self) -> None:
        """Wait for all processes."""

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """End all processes if the body fails in this one.

        Without it, the others would wait for ever for an answer of the one that failed.  With several
        processes, an exception in the body is written to the standard error and ends all of them with
        exit status 1, and ``SystemExit`` with its status; with one, exceptions pass.
        """
        yield


def create_communicator(name: str | None) -> Communicator:
    """Return the communicator of this process.

    Args:
        name: ``'naive'`` (models on the CPU), ``'pure_nccl'`` (on a GPU each), or ``None`` for one
            process.

    Raises:
        DistributedError: MPI, mpi4py or NCCL do not work here, or how the processes were started does
            not go with ``name``.
        ValueError: Unknown name.
    """
    started = _n_started()
    if name is None:
        if started > 1:
            raise DistributedError(
                f'{started} processes were started, but no communicator is named: add '
                '--communicator naive (CPUs) or pure_nccl (GPUs)'
            )
        return Communicator()
    if name not in NAMES:
        raise ValueError(f'communicator must be one of {", ".join(NAMES)}, not {name!r}')
    chainermn = _import_chainermn()
    _check_nccl(name, chainermn)
    communicator = _MPICommunicator(name, chainermn)
    if communicator.size < started:
        raise DistributedError(
            f'{started} processes were started, but MPI sees {communicator.size}: the '
            'launcher and the library that mpi4py loads are of different MPI '
            'installations'
        )
    if communicator.size == 1:
        logger.warning('communicator %s: there is only one process; start with "mpiexec -n N"', name)
    return communicator


def _n_started() -> int:
    """Return how many processes the launcher says it started; 1 without one."""
    values = [os.environ.get(variable, '') for variable in _SIZE_VARIABLES]
    return max([int(value) for value in values if value.isdecimal()], default=1)


def _import_chainermn():
    try:
        import chainermn
        import mpi4py.MPI  # noqa: F401  (starts MPI: not before somebody asks for it)

        mend_chainermn()
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DistributedError(
            f'several processes need mpi4py and MPI, which do not work here ({reason}); see the README, "Several GPUs"'
        ) from error
    return chainermn


def _check_nccl(name: str, chainermn) -> None:
    """All processes learn whether one lacks NCCL: if that one just left, the others would wait for it."""
    from mpi4py import MPI

    lacks_nccl = name == 'pure_nccl' and not (cuda_device_count() and chainermn.nccl._available)
    hosts = MPI.COMM_WORLD.allgather(MPI.Get_processor_name() if lacks_nccl else None)
    for host in filter(None, hosts):
        raise DistributedError(
            'communicator pure_nccl needs CUDA, CuPy and NCCL, which do not work on '
            f'{host}; see the README, "Several GPUs" (naive works on CPUs)'
        )


class _MPICommunicator(Communicator):
    """Several processes, over ChainerMN's communicators."""

    def __init__(self, name: str, chainermn):
        self._name = name
        self._chainermn = chainermn.create_communicator(name)
        self._mpi = self._chainermn.mpi_comm
        self.rank = self._chainermn.rank
        self.size = self._chainermn.size
        self.intra_rank = self._chainermn.intra_rank

    def broadcast(self, link):
        arrays = self.broadcast_object(arrays_of(link) if self.is_main else None)
        if not self.is_main:
            try:
                load_arrays(link, arrays, source='the model of process 0')
            except WeightFileError as error:
                raise DistributedError(f'the processes have different models: {error}') from error

    def mean_gradients(self, link):
        trained = [(path, param) for path, param in link.namedparams() if _is_trained(param)]
        for path, param in trained:
            self._check_device(param)
            # ChainerMN works in place on the memory of a C-contiguous array; of others, on a lost copy.
            if param.grad is not None and not param.grad.flags.c_contiguous:
                param.grad = param.xp.ascontiguousarray(param.grad)
        self._chainermn.multi_node_mean_grad(_Parameters(trained), zero_fill=True)

    def mean_persistents(self, link):
        params = {path.lstrip('/') for path, _ in link.namedparams()}
        means = {
            path: self._mean_array(array)
            for path, array in sorted(arrays_of(link).items())
            if path not in params and array.dtype.kind == 'f'
        }
        load_arrays(link, means, source='the means over the processes', partial=True)

    def mean(self, values):
        of_all = self._mpi.allgather(super().mean(values))
        names = dict.fromkeys(name for of_one in of_all for name in of_one)
        return {name: float(np.mean([of_one[name] for of_one in of_all if name in of_one])) for name in names}

    def any(self, flag):
        return any(self._mpi.allgather(bool(flag)))

    def gather(self, obj):
        return self._mpi.gather(obj)

    def broadcast_object(self, obj):
        # ChainerMN's bcast_obj splits what is larger than an MPI message, but takes no None.
        return self._chainermn.bcast_obj((obj,) if self.is_main else None)[0]

    def barrier(self):
        self._mpi.barrier()

    @contextlib.contextmanager
    def guard(self):
        try:
            yield
        except SystemExit as error:
            if error.code in (None, 0):
                raise
            if not isinstance(error.code, int):
                sys.stderr.write(f'{error.code}\n')
            self._abort(error.code if isinstance(error.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            self._abort(1)

    def _abort(self, status: int) -> None:
        """End all processes, this one included."""
        sys.stderr.write(f'process {self.rank} of {self.size} failed; ending all of them\n')
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._mpi.Abort(status)

    def _check_device(self, param: chainer.Parameter) -> None:
        on_gpu = param.xp is not np
        if on_gpu != (self._name == 'pure_nccl'):
            raise DistributedError(
                f'communicator {self._name} does not serve models on '
                f'{"GPUs; take pure_nccl" if on_gpu else "CPUs; take naive"}'
            )

    def _mean_array(self, array: np.ndarray) -> np.ndarray:
        total = np.empty_like(array, np.float64)
        self._mpi.Allreduce(array.astype(np.float64), total)
        return (total / self.size).astype(array.dtype)


class _Parameters:
    """The part of a link's interface that ChainerMN's gradient mean reads, for some parameters."""

    def __init__(self, named_params: list[tuple[str, chainer.Parameter]]):
        self._named_params = named_params

    def namedparams(self) -> list[tuple[str, chainer.Parameter]]:
        return self._named_params


def _is_trained(param: chainer.Parameter) -> bool:
    rule = param.update_rule
    return param.array is not None and param.requires_grad and (rule is None or rule.enabled)


def _to_float(value: Any) -> float:
    return float(chainer.backends.cuda.to_cpu(chainer.as_array(value)))
