"""Training in several processes, over ChainerMN, MPI and NCCL.

Every process holds the whole model and processes its part of every batch.  The gradients are averaged between the
backward pass and the update, so that all models stay equal.  A single process neither needs nor imports MPI::

    communicator = create_communicator(name)    # None: one process
    with communicator.guard():                  # a process that fails ends the others
        communicator.broadcast(model)
        ...
        loss.backward()                         # once per subdivision of the batch
        communicator.mean_gradients(model)
        optimizer.update()

The mean over the processes is the gradient of the whole batch, because the loss is a mean over images and every
process has the same number of images.  (Where a dialect adds the gradients of all images, the updater multiplies the
loss by their number.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any, TypeVar

import chainer
import numpy as np

from mask_rcnn.compat import patch_chainermn
from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.ops.runtime.device import DOCTOR, cuda_device_count
from mask_rcnn.ops.runtime.parallel import available_cpus
from mask_rcnn.ops.runtime.transfer import read_scalars
from mask_rcnn.training import sharing
from mask_rcnn.training.failures import describe_error
from mask_rcnn.weights import WeightFileError, load_arrays

_logger = logging.getLogger(__name__)

_Result = TypeVar('_Result')

#: ChainerMN's communicators that :func:`create_communicator` supports: MPI between CPUs, and NCCL between GPUs.
NAMES = ('naive', 'pure_nccl')

#: Environment variables with the number of processes: Open MPI; MPICH and Intel MPI; MVAPICH.
_SIZE_VARIABLES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'MV2_COMM_WORLD_SIZE')
#: Environment variables with the index of this process.
_RANK_VARIABLES = ('OMPI_COMM_WORLD_RANK', 'PMI_RANK', 'MV2_COMM_WORLD_RANK')


class DistributedError(RuntimeError):
    """Distributed training cannot start or continue; ``str()`` is one line that states the reason."""


class ProcessError(DistributedError):
    """A process has failed; ``str()`` is one line with the number of the process and its error.

    Args:
        rank: The process.
        reason: Its error as one line.
    """

    def __init__(self, rank: int, reason: str):
        super().__init__(f'process {rank}: {reason}')
        self.rank, self.reason = rank, reason


class Notes:
    """The lines that processes print about an item of shared work, which process 0 prints before its result.

    By default, there are none.
    """

    def take(self) -> str:
        """Return the lines that this process has printed since the last call."""
        return ''

    def print(self, text: str) -> None:
        """Print the lines of another process."""


class Communicator:
    """Communication between the processes of a run.  This base class implements a run with a single process.

    Every process must call all methods, except :meth:`guard`, in the same order.

    Attributes:
        rank (int): Index of this process, from 0.
        size (int): Number of processes.
        intra_rank (int): Index of this process on its host, which is also its CUDA device id.
        failed_together (bool): True after :meth:`agree` has raised, so that all processes do the same.
        notes (Notes): The lines about the items of :meth:`map_in_order`.
    """

    rank = 0
    size = 1
    intra_rank = 0
    failed_together = False
    notes = Notes()

    @property
    def is_main(self) -> bool:
        """True for process 0, which writes files and prints."""
        return self.rank == 0

    def broadcast(self, link: chainer.Link) -> None:
        """Copy the parameters and persistent values of process 0's link to all processes.

        Raises:
            DistributedError: The links of two processes have different parameters.
        """

    def mean_gradients(self, link: chainer.Link) -> None:
        """Replace the gradient of every trained parameter by its mean over the processes.

        Frozen parameters (``requires_grad`` false, or a disabled update rule) are skipped.  A gradient that is
        missing in one process but present in another counts as zero.

        Raises:
            DistributedError: The communicator does not support the link's device.
        """

    def mean_persistents(self, link: chainer.Link) -> None:
        """Replace the floating point persistent values (running statistics) by their mean."""

    def mean(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Return, in all processes, the mean of each value over the processes that pass it."""
        return dict(zip(values, read_scalars([*values.values()]), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return bool(flag)

    def agree(self, error: BaseException | None) -> None:
        """Raise in all processes if any of them has failed, so that none waits for another one.

        Args:
            error: The error of this process, or ``None``.

        Raises:
            BaseException: ``error``.
            ProcessError: Another process has failed.
        """
        if error is not None:
            self.failed_together = True
            raise error

    def gather(self, obj: Any) -> list | None:
        """Return the objects of all processes, by rank, in process 0 and ``None`` in the others."""
        return [obj]

    def broadcast_object(self, obj: Any) -> Any:
        """Return process 0's object."""
        return obj

    @contextlib.contextmanager
    def map_in_order(
        self, compute: Callable[[Sequence[int]], Generator[_Result, None, None]], n: int, *, block: int = 1
    ) -> Iterator[Iterator[_Result]]:
        """Share the items 0 to ``n - 1`` among the processes; process 0 gets the results of all in order.

        Args:
            compute: Called with the items of this process, in ascending order; yields a result for each.
            n: Number of items.
            block: Number of consecutive items for one process.  The value of process 0 holds.

        Yields:
            iterator: The results in process 0; nothing in the others, which compute when the context ends.

        Raises:
            ProcessError: In all processes: ``compute`` has failed, for the first of the items that fail.  (In a single
                process, its error propagates.)
        """
        with contextlib.closing(compute(range(n))) as results:
            yield results

    def n_cpus(self) -> int:
        """Return the number of CPUs of this process: those of the machine, divided among the processes on it."""
        return len(available_cpus())

    def barrier(self) -> None:
        """Wait for all processes."""

    def wait(self) -> None:
        """Wait for all processes without occupying a CPU, for a process that may have to wait long."""

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """End all processes if the context raises in this one.

        Otherwise the other processes would wait for the failed one forever.  With several processes, an exception is
        written to stderr and ends all of them with exit status 1, or with the status of a ``SystemExit``.  In a
        single process, exceptions propagate.
        """
        yield


def create_communicator(name: str | None) -> Communicator:
    """Return the communicator of this process.

    Args:
        name: ``'naive'`` (models on the CPU), ``'pure_nccl'`` (one GPU per process), or ``None`` for one
            process.

    Raises:
        DistributedError: MPI, mpi4py or NCCL does not work, or the number of started processes contradicts ``name``.
        ValueError: ``name`` is unknown.
    """
    started = n_launched()
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
        _logger.warning('communicator %s: there is only one process; start with "mpiexec -n N"', name)
    return communicator


def n_launched() -> int:
    """Return the number of processes that a launcher started, from its environment variables; 1 without a launcher."""
    return _read_environment(_SIZE_VARIABLES, 1)


def launched_rank() -> int:
    """Return the index of this process, from a launcher's environment variables; 0 without a launcher."""
    return _read_environment(_RANK_VARIABLES, 0) if n_launched() > 1 else 0


def _read_environment(variables: tuple[str, ...], default: int) -> int:
    values = [os.environ.get(variable, '') for variable in variables]
    return max([int(value) for value in values if value.isdecimal()], default=default)


def _import_chainermn() -> ModuleType:
    try:
        import chainermn
        import mpi4py.MPI  # noqa: F401  (initialises MPI, so it is imported only if several processes are used)

        patch_chainermn()
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DistributedError(
            f'several processes need mpi4py and MPI, which do not work here ({reason}); {DOCTOR}'
        ) from error
    return chainermn


def _check_nccl(name: str, chainermn: ModuleType) -> None:
    """Raise in all processes if one of them lacks NCCL; if it raised alone, the others would wait forever."""
    from mpi4py import MPI

    lacks_nccl = name == 'pure_nccl' and not (cuda_device_count() and chainermn.nccl._available)
    hosts = MPI.COMM_WORLD.allgather(MPI.Get_processor_name() if lacks_nccl else None)
    for host in filter(None, hosts):
        raise DistributedError(
            'communicator pure_nccl needs CUDA, CuPy and NCCL, which do not work on '
            f'{host} (naive works on CPUs); {DOCTOR}'
        )


class _MPICommunicator(Communicator):
    """Communication between several processes, over ChainerMN's communicators."""

    def __init__(self, name: str, chainermn: ModuleType):
        self._name = name
        self._chainermn = chainermn.create_communicator(name)
        self._mpi = self._chainermn.mpi_comm
        self.rank = self._chainermn.rank
        self.size = self._chainermn.size
        self.intra_rank = self._chainermn.intra_rank

    def broadcast(self, link: chainer.Link) -> None:
        arrays = self.broadcast_object(collect_arrays(link) if self.is_main else None)
        if not self.is_main:
            try:
                load_arrays(link, arrays, source='the model of process 0')
            except WeightFileError as error:
                raise DistributedError(f'the processes have different models: {error}') from error

    def mean_gradients(self, link: chainer.Link) -> None:
        trained = [(path, param) for path, param in link.namedparams() if _is_trained(param)]
        param: Any  # Chainer declares its gradient read-only
        for _, param in trained:
            self._check_device(param)
            # ChainerMN works in place on C-contiguous arrays, but on a copy of others, which it discards.
            if param.grad is not None and not param.grad.flags.c_contiguous:
                param.grad = param.xp.ascontiguousarray(param.grad)
        self._chainermn.multi_node_mean_grad(_Parameters(trained), zero_fill=True)

    def mean_persistents(self, link: chainer.Link) -> None:
        params = {path.lstrip('/') for path, _ in link.namedparams()}
        means = {
            path: self._mean_array(array)
            for path, array in sorted(collect_arrays(link).items())
            if path not in params and array.dtype.kind == 'f'
        }
        load_arrays(link, means, source='the means over the processes', partial=True)

    def mean(self, values: Mapping[str, Any]) -> dict[str, float]:
        gathered = self._mpi.allgather(super().mean(values))
        names = dict.fromkeys(name for process in gathered for name in process)
        return {name: float(np.mean([process[name] for process in gathered if name in process])) for name in names}

    def any(self, flag: bool) -> bool:
        return any(self._mpi.allgather(bool(flag)))

    def agree(self, error: BaseException | None) -> None:
        lines = self._mpi.allgather(None if error is None else describe_error(error))
        super().agree(error)
        for rank, line in enumerate(lines):
            if line is not None:
                self.failed_together = True
                raise ProcessError(rank, line)

    def gather(self, obj: Any) -> list | None:
        return self._mpi.gather(obj)

    def broadcast_object(self, obj: Any) -> Any:
        # ChainerMN's bcast_obj splits objects larger than an MPI message, but does not accept None.
        return self._chainermn.bcast_obj((obj,) if self.is_main else None)[0]

    @contextlib.contextmanager
    def map_in_order(
        self, compute: Callable[[Sequence[int]], Generator[_Result, None, None]], n: int, *, block: int = 1
    ) -> Iterator[Iterator[_Result]]:
        block = self.broadcast_object(block)
        indices = sharing.indices_of(self.rank, self.size, n, block)
        try:
            with contextlib.closing(compute(indices)) as results:
                if not self.is_main:
                    yield iter(())
                    sharing.Sender(self._mpi, self.notes.take).send(results)
                    return
                receiver = sharing.Receiver(self._mpi, self.size, results, self.notes.print)
                try:
                    yield receiver.in_order(n, block)
                except Exception:  # after an interrupt, the others may have ended
                    receiver.finish()
                    raise
                receiver.finish()
        except sharing.PartFailedError as error:
            raise ProcessError(error.rank, str(error)) from error.__cause__

    def n_cpus(self) -> int:
        from mpi4py import MPI

        cpus = available_cpus()
        neighbours = self._mpi.Split_type(MPI.COMM_TYPE_SHARED).allgather(cpus)
        return max(int(sum(Fraction(1, sum(cpu in others for others in neighbours)) for cpu in cpus)), 1)

    def barrier(self) -> None:
        self._mpi.barrier()

    def wait(self) -> None:
        sharing.wait_for(self._mpi.Ibarrier().Test)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
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
                f'communicator {self._name} does not support models on '
                f'{"GPUs; use pure_nccl" if on_gpu else "CPUs; use naive"}'
            )

    def _mean_array(self, array: np.ndarray) -> np.ndarray:
        total = np.empty_like(array, np.float64)
        self._mpi.Allreduce(array.astype(np.float64), total)
        return (total / self.size).astype(array.dtype)


class _AgreeingCommunicator(Communicator):
    """A communicator whose collective operations raise if another process has failed; see :func:`run_together`."""

    def __init__(self, communicator: Communicator):
        self._communicator = communicator
        self.rank, self.size, self.intra_rank = communicator.rank, communicator.size, communicator.intra_rank

    def gather(self, obj: Any) -> list | None:
        _wait_and_agree(self._communicator, None)
        return self._communicator.gather(obj)

    def broadcast_object(self, obj: Any) -> Any:
        _wait_and_agree(self._communicator, None)
        return self._communicator.broadcast_object(obj)

    @contextlib.contextmanager
    def map_in_order(
        self, compute: Callable[[Sequence[int]], Generator[_Result, None, None]], n: int, *, block: int = 1
    ) -> Iterator[Iterator[_Result]]:
        _wait_and_agree(self._communicator, None)
        with self._communicator.map_in_order(compute, n, block=block) as results:
            yield results

    def barrier(self) -> None:
        _wait_and_agree(self._communicator, None)


def run_together(communicator: Communicator, action: Callable[[Communicator], _Result]) -> _Result:
    """Return the result of an action of all processes; if it fails in one process, it fails in all of them.

    Args:
        communicator: The communicator.
        action: Called with a communicator that has :meth:`Communicator.gather`, :meth:`Communicator.broadcast_object`,
            :meth:`Communicator.map_in_order` and :meth:`Communicator.barrier`.

    Raises:
        ProcessError: The action has failed in any of several processes.  (In a single process, its error propagates.)
    """
    if communicator.size == 1:
        return action(communicator)
    try:
        return fail_together(communicator, action)
    except ProcessError:
        raise
    except Exception as error:
        raise ProcessError(communicator.rank, describe_error(error)) from error


def fail_together(communicator: Communicator, action: Callable[[Communicator], _Result]) -> _Result:
    """Return the result of an action; see :func:`run_together`.

    Raises:
        ProcessError: The action has failed in another process.
        Exception: It has failed in this one.
    """
    try:
        try:
            result = action(_AgreeingCommunicator(communicator))
        except ProcessError:
            raise
        except Exception as error:
            _wait_and_agree(communicator, error)
            raise
        _wait_and_agree(communicator, None)
        return result
    finally:
        communicator.failed_together = False  # the run goes on


def _wait_and_agree(communicator: Communicator, error: Exception | None) -> None:
    communicator.wait()
    communicator.agree(error)


class _Parameters:
    """A collection of parameters with the part of a link's interface that ChainerMN's gradient averaging uses."""

    def __init__(self, named_params: list[tuple[str, chainer.Parameter]]):
        self._named_params = named_params

    def namedparams(self) -> list[tuple[str, chainer.Parameter]]:
        return self._named_params


def _is_trained(param: chainer.Parameter) -> bool:
    rule = param.update_rule
    return param.array is not None and param.requires_grad and (rule is None or rule.enabled)
