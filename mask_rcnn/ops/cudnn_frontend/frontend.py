"""Loading of cuDNN Frontend, and a handle and a graph cache per thread and device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from chainer.backends import cuda

from mask_rcnn.ops.cudnn_frontend.libraries import find_in_packages, library_name
from mask_rcnn.ops.runtime.device import DOCTOR

logger = logging.getLogger(__name__)

#: The version number of cuDNN 9.0.0; the graphs are made for its engines.
_MIN_VERSION = 90000
#: Maximum number of graphs per thread and device.  A network has about 60 per input size, so this is enough for 136
#: sizes.  Most take 0.06 to 0.17 MB (Frontend 1.32, cuDNN 9.28), all together about 1.5 GB; building one takes 1 ms.
_MAX_GRAPHS = 8192
#: The same if each graph keeps all engines that the heuristics return (:mod:`.graphs`): up to 1.9 MB.
_MAX_DEFAULT_GRAPHS = 1024
#: The environment variable with the path that cuDNN Frontend opens as the CUDA runtime.
_CUDART_VARIABLE = 'CUDNN_FRONTEND_CUDART_LIB_NAME'


@functools.cache
def load_frontend() -> Any:
    """Import NVIDIA's module ``cudnn``; return ``None``, after one warning, if it or cuDNN 9 is missing."""
    try:
        with contextlib.suppress(Exception):  # no CuPy, for example; Frontend may find the CUDA runtime without help
            _preload_cudart(cuda.cupy.cuda.driver.get_build_version() // 1000)
        cudnn = importlib.import_module('cudnn')
        version = cudnn.backend_version()
    except Exception as error:  # ImportError; OSError or RuntimeError where libcudnn is missing or too old
        warn_fallback(error)
        return None
    if version < _MIN_VERSION:
        warn_fallback(f'cuDNN is older than version 9 ({version})')
        return None
    return cudnn


def warn_fallback(reason: Exception | str) -> None:
    """Log the reason why cuDNN is not used."""
    if isinstance(reason, Exception):
        reason = ' '.join(f'{type(reason).__name__}: {reason}'.split())[:200]
    logger.warning(
        'convolutions run without cuDNN and take several times as long: %s '
        '(the packages nvidia-cudnn-frontend and nvidia-cudnn-cu12 or -cu13 are needed; %s)',
        reason,
        DOCTOR,
    )


def _preload_cudart(major: int) -> None:
    """Load the CUDA runtime of CuPy's CUDA version, unless the user has set its path or it is not found.

    cuDNN Frontend (1.32) opens it by name when it builds the first graph, but searches neither pip's folders
    (``nvidia/cuda_runtime/lib``, ``nvidia/cu13/lib``) nor ``CUDA_PATH``.
    """
    path = None if _CUDART_VARIABLE in os.environ else _find_cudart(library_name('cudart', major))
    if path is not None:
        ctypes.CDLL(path)
        os.environ[_CUDART_VARIABLE] = path


def _find_cudart(name: str) -> str | None:
    path = find_in_packages(name)
    if path is not None:
        return path
    try:
        ctypes.CDLL(name)  # cuDNN Frontend finds it the same way
    except OSError:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # comes with CuPy 14

        path = load_nvidia_dynamic_lib('cudart').abs_path
        return path if name in path else None
    return None


class GraphCache:
    """A cuDNN handle and the graphs compiled with it, for one device and one thread.

    Two threads must not use a handle or the buffers of a graph at once.  A cache belongs to its thread and therefore
    needs no lock.

    Args:
        handle: From ``cudnn.create_handle``.
        max_graphs: Maximum number of graphs; the least recently used graph is evicted.

    Attributes:
        stream: The address of the stream of the handle; ``None`` before the first use.
        engines: Engines that cuDNN's heuristics returned; see :func:`mask_rcnn.ops.cudnn_frontend.graphs.build`.
    """

    def __init__(self, handle: Any, max_graphs: int = _MAX_GRAPHS):
        self.handle = handle
        self.stream: int | None = None
        self.engines: dict[Hashable, list[tuple]] = {}
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._max_graphs = max_graphs

    def graph(self, description: Hashable, build: Callable, *arguments: Any) -> Any:
        """Return the graph of a description, built by ``build(*arguments)`` if it is new.

        If ``build`` raises an exception, nothing is stored.
        """
        if description in self._graphs:
            self._graphs.move_to_end(description)
        else:
            self._graphs[description] = build(*arguments)
            if len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
        return self._graphs[description]

    def __len__(self) -> int:
        return len(self._graphs)


class _GraphCaches(threading.local):
    def __init__(self):
        self.by_device: dict[int, GraphCache] = {}


_graph_caches = _GraphCaches()


def graph_cache() -> GraphCache:
    """Return the cache of this thread and CuPy's current device; its work runs on CuPy's current stream."""
    cudnn, device = load_frontend(), _current_device()
    cache = _graph_caches.by_device.get(device)
    if cache is None:
        max_graphs = _MAX_GRAPHS if supports_engine_query(cudnn) else _MAX_DEFAULT_GRAPHS
        cache = _graph_caches.by_device[device] = GraphCache(cudnn.create_handle(), max_graphs)
    stream = _current_stream()
    if stream != cache.stream:
        cudnn.set_stream(handle=cache.handle, stream=stream)
        cache.stream = stream
    return cache


def supports_engine_query(cudnn: Any) -> bool:
    """Return whether this Frontend can list engines and build a graph with one of them: 1.32 can, 1.10 cannot."""
    return all(hasattr(cudnn.pygraph, name) for name in ('get_engine_and_knobs_at_index', 'select_plan'))


def _current_device() -> int:
    return cuda.cupy.cuda.runtime.getDevice()


def _current_stream() -> int:
    return cuda.cupy.cuda.get_current_stream().ptr
