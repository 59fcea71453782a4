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
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

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
        self._memory: GraphMemory | None = None
        self._has_failed = False

    def __reduce__(self) -> tuple:
        return TrainingGraphs, (self._max_graphs,)

    def __deepcopy__(self, memo: dict) -> TrainingGraphs:
        return TrainingGraphs(self._max_graphs)

    def run(
        self, function: Function, inputs: Sequence[Any], links: Sequence[chainer.Link], key: Hashable
    ) -> Sequence[Any]:
        """Return ``function(*inputs)``; from the second call with a key on, replay CUDA graphs.

        The backward pass of a call must run before the next call with the same :class:`TrainingGraphs`, whose
        intermediate results overwrite those of this call.  On the CPU, without backprop, in Chainer's debug mode and
        without ``chainer.config.training_graphs`` and ``cuda_graphs``, the function always runs itself.

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

        Raises:
            MemoryError: The function does not fit in memory without graphs.
        """
        if not self.is_active(inputs):
            return function(*inputs)
        self._n_calls += 1
        # The graphs keep the arrays, so that no other array gets the identity of one of them.
        key = (key, _signature(inputs), tuple(id(weight) for link in links for weight in weights_of(link)))
        graph = self._graphs.get(key) or self._capture_if_recurring(function, inputs, links, key)
        if graph is None:
            return self._run_without_graphs(function, inputs)
        self._last_use[key] = self._n_calls
        self._graphs.move_to_end(key)
        return graph(inputs)

    def is_active(self, inputs: Sequence[Any]) -> bool:
        """Return whether calls with these inputs may replay graphs."""
        config = chainer.config
        if self._has_failed or not (config.training_graphs and config.cuda_graphs and config.enable_backprop):
            return False
        if chainer.is_debug():
            return False
        return all(isinstance(chainer.as_array(value), cuda.ndarray) for value in inputs)

    def release(self) -> None:
        """Delete all graphs and their memory."""
        self._graphs.clear()
        self._last_use.clear()
        self._seen.clear()
        self._memory = None

    def _run_without_graphs(self, function: Function, inputs: Sequence[Any]) -> Sequence[Any]:
        """Call the function; if memory is short, release that of the graphs and try again."""
        try:
            return function(*inputs)
        except MemoryError:
            if self._memory is None:
                raise
        self.release()
        return function(*inputs)

    def _capture_if_recurring(
        self, function: Function, inputs: Sequence[Any], links: Sequence[chainer.Link], key: Hashable
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
            self._memory = self._memory or GraphMemory()
            self._graphs[key] = CapturedGradient(function, inputs, links, self._memory)
        except Exception as error:
            self._has_failed = not isinstance(error, MemoryError)
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

    Raises:
        Exception: The function cannot be captured, or memory is short.
    """

    def __init__(self, function: Function, inputs: Sequence[Any], links: Sequence[chainer.Link], memory: GraphMemory):
        self._memory = memory  # lives as long as the graphs
        self._weights = [weight for link in links for weight in weights_of(link)]  # likewise
        self._parameters = [parameter for link in links for parameter in link.params() if parameter.requires_grad]
        self._has_gradient = [isinstance(value, chainer.Variable) for value in inputs]
        stream = memory.stream
        submitted = cuda.cupy.cuda.get_current_stream().record()
        with contextlib.ExitStack() as stack:
            stack.enter_context(cuda.cupy.cuda.using_allocator(memory.pool.malloc))
            stack.enter_context(stream)
            self._retained = stack.enter_context(retained_values())
            stream.wait_event(submitted)
            self._inputs = [chainer.as_array(value).copy(order='K') for value in inputs]
            # CuPy and cuDNN allocate memory per stream, and kernels are compiled, better before the capture.
            with _unchanged(links):
                variables, outputs = self._run(function)
                self._differentiate(variables, outputs, [cuda.cupy.zeros_like(y.array) for y in _variables_of(outputs)])
                del variables, outputs
            self._retained.clear()
            stack.enter_context(without_host_copies())
            self._record(function, stream)
        cuda.cupy.cuda.get_current_stream().wait_event(stream.record())

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
        self._backward, self._gradients = record(
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
    ) -> _Gradients:
        """Compute the gradients of a pass."""
        gradients = chainer.grad(
            _variables_of(outputs), [*variables, *self._parameters], [chainer.Variable(array) for array in grad_outputs]
        )
        arrays = [None if gradient is None else gradient.array for gradient in gradients]
        n = len(variables)
        return _Gradients(arrays[:n], *_pack(arrays[n:]))

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs for other inputs of the same shapes, computed on the current stream."""
        for copy, value in zip(self._inputs, inputs, strict=True):
            _assign(copy, chainer.as_array(value))
        node = _Replay(self)
        found = iter(node.apply([*_variables_of(inputs), *self._parameters]))
        return [
            next(found) if is_variable else array
            for array, is_variable in zip(self._outputs, self._is_variable, strict=True)
        ]

    def replay_forward(self) -> tuple[Array, ...]:
        """Run the forward pass on the copies of the inputs; return the outputs that have a gradient."""
        self._memory.pass_number += 1
        self._forward.launch()
        return tuple(array for array, is_variable in zip(self._outputs, self._is_variable, strict=True) if is_variable)

    def replay_backward(self, pass_number: int, grad_outputs: Sequence[Array | None]) -> list[Array | None]:
        """Run the backward pass of the last forward pass; return the gradients of the variables and the parameters."""
        if pass_number != self._memory.pass_number:
            raise RuntimeError('a later forward pass has overwritten the intermediate results of this backward pass')
        for copy, gradient in zip(self._grad_outputs, grad_outputs, strict=True):
            if gradient is None:
                copy.fill(0)
            else:
                _assign(copy, gradient)
        self._backward.launch()
        return [*self._gradients.inputs, *self._gradients.unpack()]

    @property
    def pass_number(self) -> int:
        """The number of the last forward pass of all functions that share the memory."""
        return self._memory.pass_number


class _Gradients(NamedTuple):
    """The gradients that a graph computes.

    Attributes:
        inputs: The gradient of each input variable, or ``None``.
        parameters: The gradients of all parameters as one vector, float32.
        places: The slice and the shape of each parameter's gradient in it, or ``None``.
    """

    inputs: list[Array | None]
    parameters: Array
    places: list[tuple[slice, tuple[int, ...]] | None]

    def unpack(self) -> list[Array | None]:
        """Return copies of the gradients of the parameters, because those of several passes may be accumulated."""
        vector = self.parameters.copy()
        return [None if place is None else vector[place[0]].reshape(place[1]) for place in self.places]


class _Replay(chainer.FunctionNode):
    """The function of the input variables and the parameters that replays a pair of graphs."""

    def __init__(self, graph: CapturedGradient):
        self._graph = graph

    def forward(self, inputs):
        outputs = self._graph.replay_forward()
        self._pass_number = self._graph.pass_number
        return outputs

    def backward(self, indexes, grad_outputs):
        arrays = [None if gradient is None else gradient.array for gradient in grad_outputs]
        gradients = self._graph.replay_backward(self._pass_number, arrays)
        return tuple(None if gradients[i] is None else chainer.as_variable(gradients[i]) for i in indexes)


@contextlib.contextmanager
def _unchanged(links: Sequence[chainer.Link]) -> Iterator[None]:
    """Restore the persistent arrays of links at the end of a ``with`` block."""
    values = [child.__dict__[name] for link in links for child in link.links() for name in child._persistent]
    arrays = [value for value in values if isinstance(value, cuda.ndarray)]
    copies = [array.copy() for array in arrays]
    yield
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


def _pack(gradients: Sequence[Array | None]) -> tuple[Array, list[tuple[slice, tuple[int, ...]] | None]]:
    """Copy gradients into one float32 vector; return it with the slice and the shape of each gradient."""
    places: list[tuple[slice, tuple[int, ...]] | None] = []
    start = 0
    for gradient in gradients:
        if gradient is None:
            places.append(None)
            continue
        places.append((slice(start, start + gradient.size), gradient.shape))
        start += math.ceil(gradient.size / _ALIGNMENT) * _ALIGNMENT
    vector = cuda.cupy.empty(start, np.float32)
    for place, gradient in zip(places, gradients, strict=True):
        if place is not None and gradient is not None:
            vector[place[0]].reshape(place[1])[...] = gradient
    return vector, places
