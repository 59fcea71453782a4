"""Differentiable functions as two CUDA graphs, of the forward and of the backward pass.

A training step of Mask R-CNN starts some 1400 kernels.  Python and Chainer's graph of functions need about 0.1 ms for
each convolution and its gradients, several times as long as the kernels run.  Here the first and the second half of a
function's work are recorded once and then replayed with one call of the driver each.

A function can be captured under the conditions of :mod:`mask_rcnn.ops.runtime.cuda_graph`.  In addition, the parameters
that it reads stay the same arrays, which optimizers and loaders update in place.  It may update persistent arrays of
its links in place, like the statistics of a batch normalisation.
"""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.cache import retained_values
from mask_rcnn.ops.runtime.cuda_graph import GraphMemory, record, without_host_copies
from mask_rcnn.ops.runtime.memory_layout import memory_axis_order
from mask_rcnn.ops.runtime.weight_cache import weights_of

logger = logging.getLogger(__name__)

#: Whether functions may run as CUDA graphs: whether a backward pass follows each forward pass.
chainer.global_config.training_graphs = False  # type: ignore[attr-defined]  # Chainer accepts any entry

#: Maximum number of pairs of graphs of a function.  They share the memory of their temporary arrays; each has its
#: inputs, its outputs and their gradients.
_MAX_GRAPHS = 16
#: Calls after which an unused pair of graphs may be replaced by another.
_MAX_IDLE = 256
#: Maximum number of keys that are remembered after their first call.
_MAX_SEEN = 64
#: Least fraction of the GPU's memory that is free before a capture: sizes without graphs and other programs need some.
_MIN_FREE_MEMORY = 0.5
#: Elements; gradients start at multiples of it, 512 bytes like the arrays of CuPy's memory pool.
_ALIGNMENT = 128

#: A function of arrays and variables that returns variables with a gradient and arrays without.
Function = Callable[..., Sequence[Any]]


class TrainingGraphs:
    """The CUDA graphs of one function of a network, for inputs of various shapes.

    Copies and pickles are empty.

    Args:
        max_graphs: Maximum number of pairs of graphs.
    """

    def __init__(self, max_graphs: int = _MAX_GRAPHS):
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, CapturedGradient] = OrderedDict()
        self._last_use: dict[Hashable, int] = {}
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._n_calls = 0
        self._memory: TrainingGraphMemory | None = None
        self._gradients: ParameterGradients | None = None
        self._has_failed = False

    def __reduce__(self) -> tuple:
        return TrainingGraphs, (self._max_graphs,)

    def __deepcopy__(self, memo: dict) -> TrainingGraphs:
        return TrainingGraphs(self._max_graphs)

    def run(
        self, function: Function, inputs: Sequence[Any], links: Sequence[chainer.Link], key: Hashable
    ) -> Sequence[Any]:
        """Return ``function(*inputs)``; the second and later calls with a key replay CUDA graphs.

        The intermediate results of a replay overwrite those of the last one.  The function therefore runs itself while
        the backward pass of the last replay is pending.  It always does on the CPU, without backprop, in Chainer's
        debug mode and without ``chainer.config.training_graphs`` and ``cuda_graphs``.

        Args:
            function: The function; see the module.  It is differentiable once, with respect to its inputs that are
                variables and to the parameters of ``links``.
            inputs: CuPy arrays, and variables of CuPy arrays.  The graphs read copies.
            links: Contain all parameters that the function reads.
            key: Everything, apart from the inputs and the values of the parameters, that determines the function's
                kernels and their scalars.  The shapes and types of the inputs are added.

        Returns:
            The variables and arrays of the function.  The next call overwrites their values and the gradients of its
            inputs.
        """
        if not self.is_active(inputs):
            return function(*inputs)
        self._n_calls += 1
        parameters = [parameter for link in links for parameter in link.params() if parameter.requires_grad]
        if not parameters and not any(value.requires_grad for value in _variables_of(inputs)):
            return function(*inputs)  # there is nothing to differentiate
        weights = [weight for link in links for weight in weights_of(link)]
        # The graphs keep these objects, so that no other object gets the identity of one of them.
        key = (key, _signature(inputs), tuple(map(id, parameters)), tuple(map(id, weights)))
        graph = self._graphs.get(key) or self._capture_if_recurring(function, inputs, links, parameters, key)
        if graph is None:
            return function(*inputs)
        self._last_use[key] = self._n_calls
        self._graphs.move_to_end(key)
        return graph(inputs)

    def is_active(self, inputs: Sequence[Any]) -> bool:
        """Return whether calls with these inputs may replay graphs."""
        config = chainer.config
        if self._has_failed or not (config.training_graphs and config.cuda_graphs and config.enable_backprop):
            return False
        if chainer.is_debug() or (self._memory is not None and self._memory.is_pending):
            return False
        return all(isinstance(chainer.as_array(value), cuda.ndarray) for value in inputs)

    def disable(self) -> bool:
        """Delete all graphs and capture no more; return whether there were any."""
        had_graphs = bool(self._graphs)
        self._max_graphs = 0
        self.release()
        return had_graphs

    def release(self) -> None:
        """Delete all graphs and their memory."""
        self._graphs.clear()
        self._last_use.clear()
        self._seen.clear()
        self._memory = self._gradients = None

    def _capture_if_recurring(
        self,
        function: Function,
        inputs: Sequence[Any],
        links: Sequence[chainer.Link],
        parameters: list[chainer.Parameter],
        key: Hashable,
    ) -> CapturedGradient | None:
        """Capture the function if the key has been seen and there is a place; remember the key otherwise."""
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
            return None
        if not self._make_room():
            return None
        del self._seen[key]
        try:
            # The arrays of the calls without graphs would be kept for nothing.
            cuda.cupy.get_default_memory_pool().free_all_blocks()
            free, total = cuda.cupy.cuda.runtime.memGetInfo()
            if free < _MIN_FREE_MEMORY * total:
                raise MemoryError
            self._memory = self._memory or TrainingGraphMemory()
            if self._gradients is None or list(map(id, self._gradients.parameters)) != list(map(id, parameters)):
                self._gradients = ParameterGradients(parameters)
            self._graphs[key] = CapturedGradient(function, inputs, links, self._memory, self._gradients)
        except MemoryError:
            self._max_graphs = len(self._graphs)  # no further attempts, each of which takes as long as several steps
            if not self._graphs:
                self.release()
            return None
        except Exception as error:
            self._has_failed = True
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            logger.warning('training runs without CUDA graphs, which takes longer: the capture failed: %s', reason)
            logger.debug('the capture of a CUDA graph failed', exc_info=True)
            self.release()
            return None
        return self._graphs[key]

    def _make_room(self) -> bool:
        """Return whether there is a place for another pair of graphs; evict one that has been idle for long."""
        if len(self._graphs) < self._max_graphs:
            return True
        if not self._graphs:
            return False
        oldest = next(iter(self._graphs))
        if self._n_calls - self._last_use[oldest] <= _MAX_IDLE:
            return False
        del self._graphs[oldest], self._last_use[oldest]
        return True


class CapturedGradient:
    """The CUDA graphs of the forward and the backward pass of a function.

    Args:
        function: The function; see :meth:`TrainingGraphs.run`.
        inputs: Its inputs.
        links: Contain the parameters with respect to which it is differentiated.
        memory: Provides the memory of the function's arrays.
        gradients: The arrays into which the backward pass writes the gradients of the parameters.

    Raises:
        Exception: The function cannot be captured, or memory is short.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Any],
        links: Sequence[chainer.Link],
        memory: TrainingGraphMemory,
        gradients: ParameterGradients,
    ):
        self._memory = memory  # lives as long as the graphs
        self._weights = [weight for link in links for weight in weights_of(link)]  # likewise
        self._parameter_gradients = gradients
        self._has_gradient = [isinstance(value, chainer.Variable) for value in inputs]
        with memory.use_stream(), retained_values() as self._retained:
            with cuda.cupy.cuda.using_allocator(memory.pool.malloc):
                self._inputs = [chainer.as_array(value).copy(order='K') for value in inputs]
            with _unchanged(links):
                self._run_both_passes(function)
            self._retained.clear()
            cuda.cupy.get_default_memory_pool().free_all_blocks(stream=memory.stream)
            with cuda.cupy.cuda.using_allocator(memory.pool.malloc), without_host_copies():
                self._record(function, memory.stream)

    def _run_both_passes(self, function: Function) -> None:
        """Run the passes before they are recorded, so that kernels are compiled and caches are filled.

        The memory of the graphs is not used: the values that remain in caches must not lie where another graph has its
        temporary arrays.
        """
        variables, outputs = self._run(function)
        self._differentiate(variables, outputs, [cuda.cupy.zeros_like(y.array) for y in _variables_of(outputs)])

    def _record(self, function: Function, stream: Any) -> None:
        """Record both passes; the arrays of the forward pass exist until the backward pass has been recorded."""
        variables: list[chainer.Variable] = []
        outputs: list[Any] = []

        def run_forward() -> list[Array]:
            nonlocal variables, outputs
            variables, outputs = self._run(function)
            return [chainer.as_array(output) for output in outputs]

        self._forward, self._outputs = record(stream, run_forward)
        self._is_variable = [isinstance(output, chainer.Variable) for output in outputs]
        self._grad_outputs = [cuda.cupy.zeros_like(output.array) for output in _variables_of(outputs)]
        self._backward, (self._input_gradients, self._is_differentiated) = record(
            stream, lambda: self._differentiate(variables, outputs, self._grad_outputs)
        )

    def _run(self, function: Function) -> tuple[list[chainer.Variable], list[Any]]:
        """Run the function on the copies of its inputs; return the inputs with a gradient, and the outputs."""
        inputs = [
            chainer.Variable(array) if has_gradient else array
            for array, has_gradient in zip(self._inputs, self._has_gradient, strict=True)
        ]
        return _variables_of(inputs), list(function(*inputs))

    def _differentiate(
        self, variables: Sequence[chainer.Variable], outputs: Sequence[Any], grad_outputs: Sequence[Array]
    ) -> tuple[list[Array | None], list[bool]]:
        """Compute the gradients of a pass.

        Returns:
            tuple: The gradients of the inputs with a gradient, and for each parameter whether it has one.
        """
        targets = [*variables, *self._parameter_gradients.parameters]
        upstream = [chainer.Variable(array) for array in grad_outputs]
        gradients = chainer.grad(_variables_of(outputs), targets, upstream)
        arrays = [None if gradient is None else gradient.array for gradient in gradients]
        n = len(variables)
        self._parameter_gradients.assign(arrays[n:])
        return arrays[:n], [array is not None for array in arrays[n:]]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs for other inputs of the same shapes, computed on the current stream."""
        for copy, value in zip(self._inputs, inputs, strict=True):
            _assign(copy, chainer.as_array(value))
        node = _Replay(self)
        found = iter(node.apply([*_variables_of(inputs), *self._parameter_gradients.parameters]))
        return [
            next(found) if is_variable else array
            for array, is_variable in zip(self._outputs, self._is_variable, strict=True)
        ]

    def replay_forward(self, node: chainer.FunctionNode) -> tuple[Array, ...]:
        """Run the forward pass of a node on the copies of the inputs; return the outputs that have a gradient."""
        self._memory.begin_pass(node)
        self._forward.launch()
        return tuple(array for array, is_variable in zip(self._outputs, self._is_variable, strict=True) if is_variable)

    def replay_backward(self, node: chainer.FunctionNode, grad_outputs: Sequence[Array | None]) -> list[Array | None]:
        """Run the backward pass of a node; return the gradients of the variables and the parameters."""
        self._memory.end_pass(node)
        for copy, gradient in zip(self._grad_outputs, grad_outputs, strict=True):
            if gradient is None:
                copy.fill(0)
            else:
                _assign(copy, gradient)
        self._backward.launch()
        return [*self._input_gradients, *self._parameter_gradients.copies(self._is_differentiated)]


class TrainingGraphMemory(GraphMemory):
    """The memory of the graphs of a function, which holds the intermediate results of one forward pass at a time."""

    def __init__(self):
        super().__init__()
        self._last_node: Any = None  # a weak reference
        self.is_backward_done = True

    @property
    def is_pending(self) -> bool:
        """True if the backward pass of the last forward pass has not run and may still do so."""
        return not self.is_backward_done and self._last_node() is not None

    def begin_pass(self, node: chainer.FunctionNode) -> None:
        """Register the forward pass of a node, which overwrites the last one."""
        self._last_node, self.is_backward_done = weakref.ref(node), False

    def end_pass(self, node: chainer.FunctionNode) -> None:
        """Register the backward pass of a node.

        Raises:
            RuntimeError: Another forward pass has run since that of the node.
        """
        if self._last_node is None or self._last_node() is not node:
            raise RuntimeError('a later forward pass has overwritten the intermediate results of this backward pass')
        self.is_backward_done = True


class ParameterGradients:
    """The gradients of parameters as one vector, into which all graphs of a function write.

    Args:
        parameters: The parameters.
    """

    def __init__(self, parameters: Sequence[chainer.Parameter]):
        self.parameters = list(parameters)
        self._places = []
        start = 0
        for parameter in parameters:
            self._places.append((slice(start, start + parameter.size), parameter.shape, parameter.dtype))
            start += math.ceil(parameter.size / _ALIGNMENT) * _ALIGNMENT
        self._vector = cuda.cupy.empty(start, np.float32)

    def assign(self, gradients: Sequence[Array | None]) -> None:
        """Copy the gradient of each parameter that has one."""
        for (place, shape, _), gradient in zip(self._places, gradients, strict=True):
            if gradient is not None:
                self._vector[place].reshape(shape)[...] = gradient

    def copies(self, is_present: Sequence[bool]) -> list[Array | None]:
        """Return copies, because the gradients of several passes may be accumulated; one kernel for all.

        Args:
            is_present: For each parameter, whether it has a gradient; if not, the result is ``None``.
        """
        vector = self._vector.copy()
        return [
            vector[place].reshape(shape).astype(dtype, copy=False) if present else None
            for (place, shape, dtype), present in zip(self._places, is_present, strict=True)
        ]


class _Replay(chainer.FunctionNode):
    """The function of the input variables and the parameters that replays a pair of graphs."""

    def __init__(self, graph: CapturedGradient):
        self._graph = graph

    def forward(self, inputs):
        return self._graph.replay_forward(self)

    def backward(self, indexes, grad_outputs):
        arrays = [None if gradient is None else gradient.array for gradient in grad_outputs]
        gradients = self._graph.replay_backward(self, arrays)
        return tuple(None if gradients[i] is None else chainer.as_variable(gradients[i]) for i in indexes)


@contextlib.contextmanager
def _unchanged(links: Sequence[chainer.Link]) -> Iterator[None]:
    """Restore the persistent arrays of links, such as running statistics, after a ``with`` block, also if it fails."""
    values = [child.__dict__[name] for link in links for child in link.links() for name in child._persistent]
    arrays = [value for value in values if isinstance(value, cuda.ndarray)]
    copies = [array.copy() for array in arrays]
    try:
        yield
    finally:
        for array, copy in zip(arrays, copies, strict=True):
            array[...] = copy


def _variables_of(values: Sequence[Any]) -> list[chainer.Variable]:
    return [value for value in values if isinstance(value, chainer.Variable)]


def _signature(inputs: Sequence[Any]) -> tuple:
    """Return the shapes and the types of the inputs, and where they are."""
    arrays = [(isinstance(value, chainer.Variable), value.shape, value.dtype.str) for value in inputs]
    return tuple(arrays), *_device_and_stream(chainer.as_array(inputs[0]))


def _device_and_stream(array: Array) -> tuple[int, int]:
    return array.device.id, cuda.cupy.cuda.get_current_stream().ptr


def _assign(target: Array, values: Array) -> None:
    """Copy an array into another one of its shape, which is faster if their memory layouts are equal."""
    order = memory_axis_order(target)
    target.transpose(order)[...] = values.transpose(order)
