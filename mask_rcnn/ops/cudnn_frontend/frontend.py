"""cuDNN Frontend: whether it is there, and one handle for each thread and device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from chainer.backends import cuda

logger = logging.getLogger(__name__)

#: cuDNN's own number of 9.0.0; the graphs here are made for its engines.
_MIN_VERSION = 90000
#: Graphs that a thread keeps for each device.  A network has about 60 for each size of its input, so these are 136
#: sizes.  Most take 0.06 to 0.17 MB (Frontend 1.32, cuDNN 9.28), in all some 1.5 GB; a new one takes 1 ms.
_MAX_GRAPHS = 8192
#: The same where each graph keeps all engines that the heuristics named (:mod:`.graphs`): up to 1.9 MB.
_MAX_DEFAULT_GRAPHS = 1024
#: Names to cuDNN Frontend the file that it opens as the CUDA runtime.
_CUDART_VARIABLE = 'CUDNN_FRONTEND_CUDART_LIB_NAME'


@functools.cache
def load_frontend():
    """Return the module ``cudnn``, or ``None`` after one warning if it or cuDNN 9 itself is missing."""
    try:
        with contextlib.suppress(Exception):  # without CuPy, say; Frontend may find the CUDA runtime on its own
            _preload_cudart(cuda.cupy.cuda.driver.get_build_version() // 1000)
        module = importlib.import_module('cudnn')
        version = module.backend_version()
    except Exception as error:  # ImportError; OSError or RuntimeError where libcudnn is missing or too old
        return warn_fallback(error)
    if version < _MIN_VERSION:
        return warn_fallback(f'cuDNN is older than version 9 ({version})')
    return module


def warn_fallback(reason) -> None:
    """Say why cuDNN is not used: an exception, or words."""
    if isinstance(reason, Exception):
        reason = ' '.join(f'{type(reason).__name__}: {reason}'.split())[:200]
    logger.warning(
        'convolutions run without cuDNN and take several times as long: %s '
        '(the packages nvidia-cudnn-frontend and nvidia-cudnn-cu12 or -cu13 are needed)',
        reason,
    )


def _preload_cudart(major: int) -> None:
    """Load the CUDA runtime of CuPy's CUDA version, unless the user has named a file; do nothing if none is found.

    cuDNN Frontend (1.32) opens it by name when it makes its first graph, but looks neither where pip puts it
    (``nvidia/cuda_runtime/lib``, ``nvidia/cu13/lib``) nor under ``CUDA_PATH``.
    """
    path = None if _CUDART_VARIABLE in os.environ else _find_cudart(f'libcudart.so.{major}')
    if path is not None:
        ctypes.CDLL(path)
        os.environ[_CUDART_VARIABLE] = path


def _find_cudart(name: str) -> str | None:
    for folder in sys.path:
        for path in sorted(Path(folder).glob(f'nvidia/*/lib/{name}')):
            return str(path)
    try:
        ctypes.CDLL(name)  # cuDNN Frontend will find it, too
    except OSError:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # comes with CuPy 14

        path = load_nvidia_dynamic_lib('cudart').abs_path
        return path if name in path else None
    return None


class GraphCache:
    """cuDNN on one device for one thread: its handle, and the graphs compiled with it.

    Neither a handle nor a graph's buffers may be used by two threads at once; a cache belongs to its
    thread, so no lock is needed.

    Args:
        handle: From ``cudnn.create_handle``.
        max_graphs: How many graphs are kept; the one used longest ago goes first.

    Attributes:
        engines (dict): What cuDNN's heuristics have answered; see :func:`mask_rcnn.ops.cudnn_frontend.graphs.build`.
    """

    def __init__(self, handle, max_graphs: int = _MAX_GRAPHS):
        self.handle = handle
        self.engines = {}
        self._graphs = OrderedDict()
        self._max_graphs = max_graphs

    def graph(self, description, build: Callable):
        """Return the graph of a description, from ``build()`` if it is new.

        An exception of ``build`` passes; nothing is kept then.
        """
        if description in self._graphs:
            self._graphs.move_to_end(description)
        else:
            self._graphs[description] = build()
            if len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
        return self._graphs[description]

    def __len__(self) -> int:
        return len(self._graphs)


class _GraphCaches(threading.local):
    def __init__(self):
        self.by_device = {}


_graph_caches = _GraphCaches()


def graph_cache() -> GraphCache:
    """Return this thread's cache on CuPy's current device, whose work goes to CuPy's current stream."""
    cudnn, device = load_frontend(), _current_device()
    if device not in _graph_caches.by_device:
        max_graphs = _MAX_GRAPHS if supports_engine_query(cudnn) else _MAX_DEFAULT_GRAPHS
        _graph_caches.by_device[device] = GraphCache(cudnn.create_handle(), max_graphs)
    cache = _graph_caches.by_device[device]
    cudnn.set_stream(handle=cache.handle, stream=_current_stream())
    return cache


def supports_engine_query(cudnn) -> bool:
    """Whether this Frontend says which engine computes a graph and makes one of it: 1.32 does, 1.10 does not."""
    return all(hasattr(cudnn.pygraph, name) for name in ('get_engine_and_knobs_at_index', 'select_plan'))


def _current_device() -> int:
    return cuda.cupy.cuda.runtime.getDevice()


def _current_stream() -> int:
    return cuda.cupy.cuda.get_current_stream().ptr
