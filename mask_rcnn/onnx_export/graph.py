"""A builder of ONNX graphs: tensors with operators, named nodes, constants and loops."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Version of the operators: the first one with the antialiasing of ``Resize``.  Its IR version is read by all runtimes.
OPSET = 18
IR_VERSION = 8


class Tensor:
    """A tensor of a graph, with Python's arithmetic operators.

    The other operand is a tensor of the same dtype, or a number or array, which is converted to this dtype.
    Comparisons with ``<``, ``<=``, ``>`` and ``>=`` give tensors of booleans; equality is :meth:`equal`, because ``==``
    compares the tensors' names.

    Args:
        graph: The graph.
        name: The name in the graph.
        dtype: The dtype of the elements.
    """

    def __init__(self, graph: GraphBuilder, name: str, dtype: Any):
        self.graph = graph
        self.name = name
        self.dtype = np.dtype(dtype)

    def __repr__(self) -> str:
        return f'Tensor({self.name}, {self.dtype})'

    def _apply(self, op_type: str, *operands: Any, dtype: Any = None) -> Tensor:
        return self.graph.op(op_type, *(self.like(operand) for operand in operands), dtype=dtype or self.dtype)

    def like(self, value: Any) -> Tensor:
        """Return a tensor as it is, and a number or an array as a constant of this tensor's dtype."""
        return value if isinstance(value, Tensor) else self.graph.constant(np.asarray(value, self.dtype))

    def __add__(self, other: Any) -> Tensor:
        return self._apply('Add', self, other)

    def __radd__(self, other: Any) -> Tensor:
        return self._apply('Add', other, self)

    def __sub__(self, other: Any) -> Tensor:
        return self._apply('Sub', self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._apply('Sub', other, self)

    def __mul__(self, other: Any) -> Tensor:
        return self._apply('Mul', self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._apply('Mul', other, self)

    def __truediv__(self, other: Any) -> Tensor:
        """Divide; integers are truncated towards zero, as ONNX does."""
        return self._apply('Div', self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._apply('Div', other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return self._apply('MatMul', self, other)

    def __neg__(self) -> Tensor:
        return self._apply('Neg', self)

    def __lt__(self, other: Any) -> Tensor:
        return self._apply('Less', self, other, dtype=bool)

    def __le__(self, other: Any) -> Tensor:
        return self._apply('LessOrEqual', self, other, dtype=bool)

    def __gt__(self, other: Any) -> Tensor:
        return self._apply('Greater', self, other, dtype=bool)

    def __ge__(self, other: Any) -> Tensor:
        return self._apply('GreaterOrEqual', self, other, dtype=bool)

    def __and__(self, other: Any) -> Tensor:
        return self._apply('And', self, other)

    def __or__(self, other: Any) -> Tensor:
        return self._apply('Or', self, other)

    def __invert__(self) -> Tensor:
        return self._apply('Not', self)

    def equal(self, other: Any) -> Tensor:
        """Return a tensor of booleans, true where the elements are equal."""
        return self._apply('Equal', self, other, dtype=bool)

    def minimum(self, other: Any) -> Tensor:
        """Return the smaller elements."""
        return self._apply('Min', self, other)

    def maximum(self, other: Any) -> Tensor:
        """Return the larger elements."""
        return self._apply('Max', self, other)

    def where(self, if_true: Any, if_false: Any) -> Tensor:
        """Select elements by this tensor of booleans; at least one of the others must be a tensor."""
        reference = if_true if isinstance(if_true, Tensor) else if_false
        values = reference.like(if_true), reference.like(if_false)
        return self.graph.op('Where', self, *values, dtype=reference.dtype)

    def cast(self, dtype: Any) -> Tensor:
        """Convert the elements; floats are truncated to integers."""
        if np.dtype(dtype) == self.dtype:
            return self
        return self.graph.op('Cast', self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dtype=dtype)

    def shape(self) -> Tensor:
        """Return the shape, ``(ndim,)`` int64."""
        return self.graph.op('Shape', self, dtype=np.int64)

    def size(self, axis: int) -> Tensor:
        """Return the length of an axis that is counted from the first one, ``(1,)`` int64."""
        return self.graph.op('Shape', self, start=axis, end=axis + 1, dtype=np.int64)

    def reshape(self, *shape: int | Tensor) -> Tensor:
        """Reshape; a length is an integer (``-1`` for the one that follows) or a ``(1,)`` int64 tensor."""
        # Without allowzero, an empty tensor could not be reshaped: 0 would stand for the length of the input.
        allow_zero = int(-1 not in shape)
        return self.graph.op('Reshape', self, self.graph.shape_of(*shape), allowzero=allow_zero)

    def transpose(self, *axes: int) -> Tensor:
        """Permute the axes."""
        return self.graph.op('Transpose', self, perm=list(axes))

    def expand_dims(self, *axes: int) -> Tensor:
        """Insert axes of length 1."""
        return self.graph.op('Unsqueeze', self, self.graph.constant(np.array(axes, np.int64)))

    def squeeze(self, *axes: int) -> Tensor:
        """Remove axes of length 1."""
        return self.graph.op('Squeeze', self, self.graph.constant(np.array(axes, np.int64)))

    def slice(self, start: int | Tensor, end: int | Tensor | None = None, *, axis: int = 0, step: int = 1) -> Tensor:
        """Return a slice of an axis; the limits are integers (``None`` for the end) or ``(1,)`` int64 tensors."""
        limits = [np.iinfo(np.int64).max if limit is None else limit for limit in (start, end)]
        arrays = [self.graph.shape_of(limit) for limit in limits]
        return self.graph.op(
            'Slice', self, *arrays, *(self.graph.constant(np.array([i], np.int64)) for i in (axis, step))
        )

    def take(self, indices: int | Sequence[int] | Tensor, *, axis: int = 0) -> Tensor:
        """Return the elements at indices of an axis; an integer removes the axis."""
        if not isinstance(indices, Tensor):
            indices = self.graph.constant(np.array(indices, np.int64))
        return self.graph.op('Gather', self, indices, axis=axis)

    def compress(self, condition: Tensor, *, axis: int = 0) -> Tensor:
        """Return the elements of an axis where a ``(n,)`` tensor of booleans is true."""
        return self.graph.op('Compress', self, condition, axis=axis)


class GraphBuilder:
    """Collects the nodes of an ONNX graph."""

    def __init__(self) -> None:
        self._counters: dict[str, Iterator[int]] = {}
        self._scopes: list[str] = []
        self._shared: dict[tuple, Tensor] = {}
        #: The nodes of the graph, then those of the loops that are being built; nodes are added to the last list.
        self._nodes: list[list[onnx.NodeProto]] = [[]]
        self._initializers: list[onnx.TensorProto] = []

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes and tensors with ``name/``."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def unique_name(self, name: str) -> str:
        """Return a name in the current scope that no other tensor has."""
        path = '/'.join([*self._scopes, name])
        number = next(self._counters.setdefault(path, itertools.count()))
        return path if number == 0 else f'{path}_{number}'

    def constant(self, value: Any, name: str = 'constant') -> Tensor:
        """Return a constant; equal constants are one, which is stored once.

        Args:
            value: Array, or a number with a dtype.
            name: The name in the current scope.
        """
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        key = array.dtype.str, array.shape, hashlib.sha256(array).digest()
        if key in self._shared:
            return self._shared[key]
        tensor = Tensor(self, self.unique_name(name), array.dtype)
        self._initializers.append(numpy_helper.from_array(array, tensor.name))
        self._shared[key] = tensor
        return tensor

    def op(
        self, op_type: str, *inputs: Tensor | None, dtype: Any = None, name: str | None = None, **attributes: Any
    ) -> Tensor:
        """Add a node with one output.

        Args:
            op_type: The operator.
            inputs: Its inputs; ``None`` for an optional one that is left out.
            dtype: The dtype of the output; ``None`` for that of the first input.
            name: The name of the node and its output in the current scope; ``None`` for that of the operator.
            attributes: The attributes of the operator; ``None`` for one that is left out.
        """
        return self.multi_op(op_type, *inputs, dtypes=[dtype], name=name, **attributes)[0]

    def multi_op(
        self, op_type: str, *inputs: Tensor | None, dtypes: Sequence[Any], name: str | None = None, **attributes: Any
    ) -> list[Tensor]:
        """Add a node with several outputs; see :meth:`op`.

        Args:
            op_type: The operator.
            *inputs: Its inputs.
            dtypes: The dtype of each output; ``None`` for that of the first input.
            name: The name of the node and of its outputs.
            **attributes: The attributes of the operator.
        """
        node_name = self.unique_name(name or op_type)
        names = [node_name, *(self.unique_name(f'{name or op_type}_output{i}') for i in range(1, len(dtypes)))]
        input_names = ['' if tensor is None else tensor.name for tensor in inputs]
        self._nodes[-1].append(helper.make_node(op_type, input_names, names, name=node_name, **attributes))
        first = inputs[0].dtype if inputs and inputs[0] is not None else None
        return [Tensor(self, n, first if dtype is None else dtype) for n, dtype in zip(names, dtypes, strict=True)]

    def shape_of(self, *lengths: int | Tensor) -> Tensor:
        """Return a shape ``(n,)`` int64 of integers and ``(1,)`` int64 tensors."""
        if all(not isinstance(length, Tensor) for length in lengths):
            return self.constant(np.array(lengths, np.int64))
        tensors = [n if isinstance(n, Tensor) else self.constant(np.array([n], np.int64)) for n in lengths]
        return tensors[0] if len(tensors) == 1 else self.concat(tensors)

    def concat(self, tensors: Sequence[Tensor], *, axis: int = 0) -> Tensor:
        """Join tensors along an axis."""
        return self.op('Concat', *tensors, axis=axis)

    def arange(self, n: Tensor) -> Tensor:
        """Return the integers from 0 to ``n - 1``, int64, for a ``(1,)`` int64 tensor."""
        start, step = (self.constant(np.array(i, np.int64)) for i in (0, 1))
        return self.op('Range', start, n.reshape(), step)

    def loop(
        self, count: Tensor, body: Callable[..., Sequence[Tensor]], *, initial: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Return the outputs of a loop: its final state, and the outputs of all iterations.

        Args:
            count: Number of iterations, ``(1,)`` int64.  Without iterations, runtimes disagree on the other lengths of
                the outputs.
            body: Computes the outputs of an iteration from its number, a scalar int64, the tensors of the state, and
                any other tensors.  The first outputs are the state of the next iteration; the others are stacked along
                a new first axis.
            initial: The state of the first iteration.
        """
        iteration = Tensor(self, self.unique_name('iteration'), np.int64)
        condition = Tensor(self, self.unique_name('condition'), bool)
        state = [Tensor(self, self.unique_name('state'), tensor.dtype) for tensor in initial]
        self._nodes.append([])
        # An output of a loop must come from one of its nodes.
        outputs = [self.op('Identity', output) for output in body(iteration, *state)]
        proceed = self.op('Identity', condition)
        proto = helper.make_graph(
            self._nodes.pop(),
            self.unique_name('body'),
            [_declare(iteration, ()), _declare(condition, ()), *(_declare(tensor, None) for tensor in state)],
            [_declare(proceed, ()), *(_declare(output, None) for output in outputs)],
        )
        dtypes = [output.dtype for output in outputs]
        return self.multi_op('Loop', count.reshape(), None, *initial, dtypes=dtypes, body=proto)

    def input(self, name: str, dtype: Any) -> Tensor:
        """Return an input of the graph; :meth:`build` declares it."""
        return Tensor(self, name, dtype)

    def output(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor under the name of an output of the graph; :meth:`build` declares it."""
        self._nodes[-1].append(helper.make_node('Identity', [tensor.name], [name], name=f'output/{name}'))
        return Tensor(self, name, tensor.dtype)

    def build(
        self,
        name: str,
        inputs: Sequence[tuple[Tensor, Sequence[str | int], str]],
        outputs: Sequence[tuple[Tensor, Sequence[str | int], str]],
    ) -> onnx.ModelProto:
        """Return the model, without the nodes and constants that none of its outputs needs.

        Runtimes warn of constants that no node uses.

        Args:
            name: The name of the graph.
            inputs: Tensor, shape (a name for a length that varies) and description of each input.
            outputs: The same for each output.
        """
        needed = {tensor.name for tensor, *_ in outputs}
        nodes = []
        for node in reversed(self._nodes[0]):
            if not needed.isdisjoint(node.output):
                nodes.append(node)
                needed.update(_names_read(node))
        graph = helper.make_graph(
            nodes[::-1],
            name,
            [_declare(*declaration) for declaration in inputs],
            [_declare(*declaration) for declaration in outputs],
            [array for array in self._initializers if array.name in needed],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Return the names of the tensors that a node and the nodes of its loop read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)


def _declare(tensor: Tensor, shape: Sequence[str | int] | None, description: str = '') -> onnx.ValueInfoProto:
    element_type: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(tensor.name, element_type, shape, description)
