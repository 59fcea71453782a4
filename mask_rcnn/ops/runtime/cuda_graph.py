"""Functions of one array as CUDA graphs: recorded once, then started with a single call of the driver.

Python needs about 10 microseconds to start a kernel, which for a batch of one image is longer than most kernels run.  A
graph starts all of them in about 20 microseconds.  It repeats its kernels with the addresses and the scalars of the
recording, so a function can be captured if

* the shapes of all its arrays depend only on its key (:func:`run_as_graph`),
* the host neither reads a result nor copies a value to the GPU while it runs: such values come from caches
  (:func:`mask_rcnn.ops.runtime.cache.cached`), and
* arrays that it reads and does not allocate exist as long as the graph: weights, the values of the weight cache, and
  those passed to :func:`mask_rcnn.ops.runtime.cache.retain`.

Otherwise the capture fails; the function then runs as usual, after a warning with the reason.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import chainer
from chainer.backends import cuda

from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.cache import cached, retained_values

logger = logging.getLogger(__name__)

#: Whether networks on a GPU use CUDA graphs.
chainer.global_config.cuda_graphs = True  # type: ignore[attr-defined]  # Chainer accepts any entry

#: The entries of ``chainer.config`` that select kernels.
_SETTINGS = ('precision', 'autotune', 'cudnn_deterministic', 'use_cudnn', 'train')

#: Maximum number of graphs of a network.  They share the memory of their temporary arrays; each has its input and
#: output and about 0.3 MB for 300 kernels.
_MAX_GRAPHS = 8
#: Maximum number of keys that are remembered after their first call.
_MAX_SEEN = 64

#: Owners whose function could not be captured.
_failed: weakref.WeakSet = weakref.WeakSet()
#: A capture replaces CuPy's allocator of pinned memory, which all threads share.
_capture_lock = threading.Lock()


def graph_settings(network: Any) -> tuple:
    """Return the settings that select kernels, a part of the key of a graph.

    They are entries of ``chainer.config``, and ``config`` of the network and of its parts.
    """
    configs = [link.config for link in (network, *network.children()) if hasattr(link, 'config')]
    return (*configs, *(getattr(chainer.config, name) for name in _SETTINGS))


def run_as_graph(function: Callable[[Array], Any], x: Array, key: Hashable, owner: Any) -> Any:
    """Return ``function(x)``; later calls with the same key replay a CUDA graph.

    The first call with a key runs the function.  The second call runs it, which fills all caches, and then captures it.
    Images of ever new sizes are therefore never captured.  Graphs exist inside of
    :func:`~mask_rcnn.ops.runtime.cache.cache_weights`, during which no weight changes, and for the current stream.
    Elsewhere, for NumPy arrays, in Chainer's debug mode and without ``chainer.config.cuda_graphs``, the function always
    runs.

    Args:
        function: A function that can be captured; see the module.
        x: Its argument.  The graph reads a copy.
        key: Everything, apart from the values of ``x`` and the weights, that determines the function's kernels and
            their scalars.  The shape and the type of ``x`` are added.
        owner: The network; its graphs share their memory.

    Returns:
        The result of the function.  Its arrays are overwritten by the next call with the same key: the caller submits
        all work on them to the current stream before that.
    """
    is_active = chainer.config.cuda_graphs and chainer.config.weight_cache is not None and not chainer.is_debug()
    if not is_active or not isinstance(x, cuda.ndarray) or owner in _failed:
        return function(x)
    with x.device:
        stream = cuda.cupy.cuda.get_current_stream().ptr
        # The cache may outlive the owner and must not keep it alive.
        graphs = cached(_make_graph_cache, weakref.ref(owner), x.device.id, stream)
        return graphs.run(function, x, (x.shape, x.dtype.str, key))


def _make_graph_cache(owner: weakref.ref, device: int, stream: int) -> GraphCache:
    return GraphCache(owner)


class GraphCache:
    """The graphs of a network on one stream; the least recently used graph is evicted.

    Args:
        owner: A reference to the network.
        max_graphs: Maximum number of graphs.
    """

    def __init__(self, owner: weakref.ref, max_graphs: int = _MAX_GRAPHS):
        self._owner = owner
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, CapturedFunction] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._memory: Any = None

    def run(self, function: Callable[[Array], Any], x: Array, key: Hashable) -> Any:
        """Return ``function(x)``; see :func:`run_as_graph`."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key](x)
        result = self._run_without_graph(function, x)
        if key in self._seen:
            del self._seen[key]
            self._capture(function, x, key)
        else:
            self._seen[key] = None
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
        return result

    def _run_without_graph(self, function: Callable[[Array], Any], x: Array) -> Any:
        """Call the function; if memory is short, release that of the graphs and try again."""
        try:
            return function(x)
        except MemoryError:
            if self._memory is None:
                raise
        self._release()
        return function(x)

    def _capture(self, function: Callable[[Array], Any], x: Array, key: Hashable) -> None:
        """Capture the function; if that fails, warn and use no more graphs for the owner."""
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        try:
            self._memory = self._memory or GraphMemory()
            self._graphs[key] = CapturedFunction(function, x, self._memory)
        except Exception as error:  # the function has just run without a graph, so it is the capture that fails
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            logger.warning('inference runs without CUDA graphs, which takes longer: the capture failed: %s', reason)
            logger.debug('the capture of a CUDA graph failed', exc_info=True)
            _failed.add(self._owner())
            self._release()

    def _release(self) -> None:
        """Delete the graphs and their memory."""
        self._graphs.clear()
        self._memory = None


class GraphMemory:
    """The stream that captures the graphs of a network, and the memory of their arrays.

    Their memory must not come from CuPy's pool: each replay writes the arrays that the captured function has deleted.
    Graphs that are replayed one after the other can share the memory of temporary arrays.  CuPy's pools manage memory
    per stream, so all captures use the same stream.
    """

    def __init__(self):
        self.stream = cuda.cupy.cuda.Stream(non_blocking=True)
        self.pool = cuda.cupy.cuda.MemoryPool()

    @contextlib.contextmanager
    def use_stream(self) -> Iterator[None]:
        """Run the GPU work of a ``with`` block on the stream: after that of the outer stream, which then waits for it.

        It also waits if the block fails, because values that the block has computed may remain in caches.
        """
        outer = cuda.cupy.cuda.get_current_stream()
        submitted = outer.record()
        try:
            with self.stream:
                self.stream.wait_event(submitted)
                yield
        finally:
            outer.wait_event(self.stream.record())


class CapturedFunction:
    """A CUDA graph of a function.

    Args:
        function: A function of one array, for which all caches are filled; see the module.
        x: An argument of the function.
        memory: Provides the memory of the function's arrays.

    Raises:
        Exception: The function cannot be captured, or memory is short.
    """

    def __init__(self, function: Callable[[Array], Any], x: Array, memory: GraphMemory):
        self._memory = memory  # lives as long as the graph
        with contextlib.ExitStack() as stack:
            stack.enter_context(cuda.cupy.cuda.using_allocator(memory.pool.malloc))
            stack.enter_context(memory.use_stream())
            # A value that is derived on this stream exists only while the function runs.
            stack.enter_context(chainer.using_config('weight_cache', dict(chainer.config.weight_cache)))
            self._retained = stack.enter_context(retained_values())
            self._x = x.copy()
            function(self._x)  # CuPy and cuDNN allocate memory per stream, better before the capture
            self._retained.clear()
            stack.enter_context(without_host_copies())
            self._graph, self._result = record(memory.stream, lambda: function(self._x))

    def __call__(self, x: Array) -> Any:
        """Return the result of the function for another argument of the same shape, computed on the current stream."""
        self._x[...] = x
        self._graph.launch()
        return self._result


def record(stream: Any, function: Callable[[], Any]) -> tuple[Any, Any]:
    """Capture the work that a function submits to a stream.

    Args:
        stream: The current stream.
        function: A function that can be captured; see the module.

    Returns:
        tuple: The CUDA graph and the result of the function, whose arrays each launch of the graph fills.
    """
    stream.begin_capture()
    try:
        result = function()
    except BaseException:
        with contextlib.suppress(Exception):  # an invalid capture ends with an error
            stream.end_capture()
        raise
    return stream.end_capture(), result


class HostCopyError(Exception):
    """A captured function copies values from the host to the GPU."""


@contextlib.contextmanager
def without_host_copies() -> Iterator[None]:
    """Raise :class:`HostCopyError` if CuPy copies values to the GPU on this thread.

    The graph would read the values from a buffer that CuPy reuses: the copy itself succeeds, and replays read anything.
    """
    thread, pool = threading.get_ident(), cuda.cupy.get_default_pinned_memory_pool()

    def allocate(size):
        if threading.get_ident() == thread:
            raise HostCopyError(f'{size} bytes are copied from the host to the GPU in each run')
        return pool.malloc(size)

    with _capture_lock:
        cuda.cupy.cuda.set_pinned_memory_allocator(allocate)
        try:
            yield
        finally:
            cuda.cupy.cuda.set_pinned_memory_allocator(pool.malloc)
