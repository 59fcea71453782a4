"""cuDNN Frontend: whether it is there, and one handle for each thread and device."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections import OrderedDict

from chainer.backends import cuda

logger = logging.getLogger(__name__)

#: cuDNN's own number of 9.0.0; the graphs here are made for its engines.
_MIN_VERSION = 90000
#: Graphs that a thread keeps for each device.  A network has about 60 for each size of its input.
_MAX_GRAPHS = 1024


@functools.lru_cache(maxsize=None)
def library():
    """Return the module ``cudnn``, or ``None`` after one warning if it or cuDNN 9 itself is missing."""
    try:
        module = importlib.import_module('cudnn')
        version = module.backend_version()
    except Exception as error:  # ImportError; OSError or RuntimeError where libcudnn is missing or too old
        return _missing(' '.join(f'{type(error).__name__}: {error}'.split())[:200])
    if version < _MIN_VERSION:
        return _missing(f'cuDNN is older than version 9 ({version})')
    return module


def _missing(reason: str) -> None:
    logger.warning('convolutions run without cuDNN and take several times as long: %s '
                   '(the packages nvidia-cudnn-frontend and nvidia-cudnn-cu12 or -cu13 are needed)', reason)


def is_available() -> bool:
    """Whether CuPy works and cuDNN 9 can be used through cuDNN Frontend; warns once if the latter cannot."""
    return cuda.available and library() is not None


class Session:
    """cuDNN on one device for one thread: its handle, and the graphs compiled with it.

    Neither a handle nor a graph's buffers may be used by two threads at once; a session belongs to its
    thread, so no lock is needed.

    Args:
        handle: From ``cudnn.create_handle``.
        max_graphs: How many graphs are kept; the one used longest ago goes first.
    """

    def __init__(self, handle, max_graphs: int = _MAX_GRAPHS):
        self.handle = handle
        self._graphs = OrderedDict()
        self._max_graphs = max_graphs

    def graph(self, description, build):
        """Return the graph of a description, from ``build(description, handle)`` if it is new.

        An exception of ``build`` passes; nothing is kept then.
        """
        if description in self._graphs:
            self._graphs.move_to_end(description)
        else:
            self._graphs[description] = build(description, self.handle)
            if len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
        return self._graphs[description]

    def __len__(self) -> int:
        return len(self._graphs)


class _Sessions(threading.local):

    def __init__(self):
        self.by_device = {}


_sessions = _Sessions()


def session() -> Session:
    """Return this thread's session on CuPy's current device, whose work goes to CuPy's current stream."""
    cudnn, device = library(), _current_device()
    if device not in _sessions.by_device:
        _sessions.by_device[device] = Session(cudnn.create_handle())
    own = _sessions.by_device[device]
    cudnn.set_stream(handle=own.handle, stream=_current_stream())
    return own


def _current_device() -> int:
    return cuda.cupy.cuda.runtime.getDevice()


def _current_stream() -> int:
    return cuda.cupy.cuda.get_current_stream().ptr
