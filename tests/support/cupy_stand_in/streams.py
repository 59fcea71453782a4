"""Streams, events and graphs.  All work is done at once; a graph repeats the operations of its capture."""

from __future__ import annotations

import itertools
import threading
import time
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.support.cupy_stand_in import memory


class CUDARuntimeError(RuntimeError):
    """``cupy.cuda.runtime.CUDARuntimeError``."""


#: The number of times that the host has waited for the GPU.
n_waits = 0

_addresses = itertools.count(0x5000, 16)
_thread = threading.local()


class Capture:
    """The operations of a capture, and the values from before it of what they have overwritten."""

    def __init__(self):
        self.operations: list[tuple[str, Callable[[], None]]] = []
        self.is_valid = True
        self._first_serial = memory.Memory(0).serial
        self._overwritten: list[tuple[np.ndarray, np.ndarray]] = []
        self._memories: weakref.WeakSet = weakref.WeakSet()

    def add(self, operation: Callable[[], None], targets: Sequence[Any], label: str = 'KERNEL') -> None:
        for target in targets:
            if target.data.mem.serial < self._first_serial:
                self._overwritten.append((target._array, target._array.copy()))
            else:
                self._memories.add(target.data.mem)
        self.operations.append((label, operation))

    def end(self) -> None:
        """Undo the operations: a capture runs none."""
        for array, values in reversed(self._overwritten):
            array[...] = values
        for written in self._memories:
            written.poison()
        self._overwritten.clear()
        self._memories.clear()


class Graph:
    """``cupy.cuda.Graph``; it holds the arrays of its operations."""

    graph = graphExec = 1

    def __init__(self, operations: list[tuple[str, Callable[[], None]]]):
        self._operations = operations

    def launch(self, stream: Stream | None = None) -> None:
        for label, operation in self._operations:
            submit(operation, label=label)

    def upload(self, stream: Stream | None = None) -> None:
        """Do nothing."""

    def debug_dot_str(self, flags: int | None = None) -> str:
        nodes = (f'"{i}" [label="{label}"]' for i, (label, _) in enumerate(self._operations))
        return '\n'.join(['digraph {', *nodes, '}'])


class Stream:
    """``cupy.cuda.Stream``."""

    null: Stream
    ptds: Stream

    def __init__(self, null=False, non_blocking=False, ptds=False, *, priority=None, device_id=None):
        self.ptr = 0 if null else next(_addresses)
        self.device_id, self.is_non_blocking, self.priority = 0, non_blocking, priority or 0
        self.capture: Capture | None = None

    def __enter__(self) -> Stream:
        _streams().append(self)
        return self

    def __exit__(self, *_) -> None:
        _streams().pop()

    def __eq__(self, other) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def use(self) -> Stream:
        _streams()[-1] = self
        return self

    @property
    def done(self) -> bool:
        self._check_no_capture()
        return True

    def synchronize(self) -> None:
        wait(self)

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f'expected an event, not {type(event).__name__}')

    def launch_host_func(self, callback, arg) -> None:
        submit(lambda: callback(arg))

    def begin_capture(self, mode=None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError('cudaErrorStreamCaptureUnsupported: operation not permitted on the legacy stream')
        self._check_no_capture()
        self.capture = Capture()

    def is_capturing(self) -> bool:
        return self.capture is not None

    def end_capture(self) -> Graph:
        capture, self.capture = self.capture, None
        if capture is None:
            raise CUDARuntimeError('cudaErrorIllegalState: the stream is not capturing')
        capture.end()
        if not capture.is_valid:
            raise CUDARuntimeError('cudaErrorStreamCaptureInvalidated: a previous error has invalidated the capture')
        return Graph(capture.operations)

    def _check_no_capture(self) -> None:
        if self.capture is not None:
            self.capture.is_valid = False
            raise CUDARuntimeError(
                'cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing'
            )


Stream.null = Stream(null=True)


class Event:
    """``cupy.cuda.Event``."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.ptr, self._has_time, self.seconds = next(_addresses), not disable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        self.seconds = time.perf_counter()

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        global n_waits
        n_waits += 1


def _streams() -> list[Stream]:
    if not hasattr(_thread, 'streams'):
        _thread.streams = [Stream.null]
    return _thread.streams


def get_current_stream(device_id: int = -1) -> Stream:
    return _streams()[-1]


def get_elapsed_time(start: Event, end: Event) -> float:
    if not (start._has_time and end._has_time) or start.seconds is None or end.seconds is None:
        raise CUDARuntimeError('cudaErrorInvalidResourceHandle: invalid resource handle')
    return (end.seconds - start.seconds) * 1000


def submit(operation: Callable[[], None], targets: Sequence[Any] = (), label: str = 'KERNEL') -> None:
    """Run an operation on the current stream and record it if the stream is capturing.

    Args:
        operation: Reads and writes existing arrays.
        targets: The CuPy arrays that it writes.
        label: The label of its node in a graph.
    """
    capture = get_current_stream().capture
    if capture is not None:
        capture.add(operation, targets, label)
    operation()


def wait(stream: Stream | None = None) -> None:
    """Let the host wait for a stream, which a capture does not permit."""
    global n_waits
    n_waits += 1
    (get_current_stream() if stream is None else stream)._check_no_capture()


def target(array: np.ndarray) -> Any:
    """Return an array in the memory of the GPU as a target of :func:`submit`."""
    old = types.SimpleNamespace(serial=-1)
    return types.SimpleNamespace(_array=array, data=types.SimpleNamespace(mem=old))
