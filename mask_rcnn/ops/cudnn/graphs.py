"""From the description of a convolution to a compiled cuDNN graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.ops.cudnn.library import library

#: Numbers by which a graph knows its tensors.
X, W, B, RESIDUAL, Y = 1, 2, 3, 4, 5
#: Which of them a kind of convolution computes.
OUTPUT = {'forward': Y, 'data': X, 'filter': W}

#: Engines may not ask for more scratch memory than this; each problem here has one that needs none.
_MAX_WORKSPACE = 256 << 20


@dataclass(frozen=True)
class Convolution:
    """A convolution ``y = relu(conv(x, w) + residual + b)``, or one of its gradients, for certain shapes.

    Args:
        kind: ``'forward'`` (x, w to y), ``'data'`` (y, w to x) or ``'filter'`` (x, y to w).
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``, of all arrays.
        x: ``(N, C, H, W)``.
        w: ``(O, C / groups, kh, kw)``.
        stride: Vertical and horizontal.
        pad: Zeros ``((above, below), (left, right))``.
        tensor_cores: Whether engines may round float32 factors.
        bias, residual, relu: What follows the product; of a forward convolution only.
    """

    kind: str
    dtype: str
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    tensor_cores: bool = True
    bias: bool = False
    residual: bool = False
    relu: bool = False

    @property
    def y(self) -> tuple[int, int, int, int]:
        """``(N, O, oh, ow)``."""
        return (self.x[0], self.w[0], *(
            (side + sum(pad) - window) // stride + 1
            for side, window, stride, pad in zip(self.x[2:], self.w[2:], self.stride, self.pad)))

    @property
    def out(self) -> tuple[int, int, int, int]:
        """Shape of what is computed."""
        return {'forward': self.y, 'data': self.x, 'filter': self.w}[self.kind]


class Graph:
    """A compiled graph.

    Args:
        graph: ``cudnn.pygraph`` with its plan built.

    Attributes:
        workspace_size (int): Bytes of scratch memory that it needs.
    """

    def __init__(self, graph):
        self._graph = graph
        self.workspace_size = graph.get_workspace_size()

    def run(self, pointers: dict[int, int], workspace: int, handle) -> None:
        """Start it on the handle's stream; device addresses by tensor number."""
        self._graph.execute(pointers, workspace, handle=handle)


def build(convolution: Convolution, handle) -> Graph | None:
    """Compile a graph; ``None`` if no engine computes it on the handle's device."""
    cudnn = library()
    graph = describe(convolution, cudnn, handle=handle)
    try:
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes(_unwanted_notes(cudnn, convolution.tensor_cores))
        graph.deselect_workspace_greater_than(_MAX_WORKSPACE)
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError:
        return None
    return Graph(graph)


def describe(convolution: Convolution, cudnn, **options):
    """Return an uncompiled, valid ``cudnn.pygraph``; ``options`` go to its constructor."""
    types = {'float32': cudnn.data_type.FLOAT, 'float16': cudnn.data_type.HALF,
             'bfloat16': cudnn.data_type.BFLOAT16}
    io_type = types[convolution.dtype]
    graph = cudnn.pygraph(io_data_type=io_type, intermediate_data_type=cudnn.data_type.FLOAT,
                          compute_data_type=cudnn.data_type.FLOAT, **options)
    operation = {'forward': _forward, 'data': _data, 'filter': _filter}[convolution.kind]
    out = operation(graph, convolution, _tensor_maker(graph, io_type))
    out.set_output(True).set_data_type(io_type)
    out.set_dim(list(convolution.out)).set_stride(strides(convolution.out)).set_uid(OUTPUT[convolution.kind])
    graph.validate()
    return graph


def strides(shape) -> list[int]:
    """Return the steps, in elements, of ``(N, C, H, W)`` with the channels innermost."""
    _, channels, height, width = shape
    return [channels * height * width, 1, width * channels, channels]


def _tensor_maker(graph, io_type):
    def tensor(name, uid, shape):
        return graph.tensor(name=name, dim=list(shape), stride=strides(shape), data_type=io_type).set_uid(uid)
    return tensor


def _geometry(convolution):
    return {'pre_padding': [pad[0] for pad in convolution.pad],
            'post_padding': [pad[1] for pad in convolution.pad],
            'stride': list(convolution.stride), 'dilation': [1, 1]}


def _forward(graph, convolution, tensor):
    y = graph.conv_fprop(image=tensor('x', X, convolution.x), weight=tensor('w', W, convolution.w),
                         **_geometry(convolution))
    # First the residual, then the bias, in the type of the rest: the order of cuDNN's own fused convolution
    # ("ConvBiasAct").  For any other order its heuristics (9.28, asked for an H200) offer only the slower
    # engines that are compiled at run time.
    if convolution.residual:
        y = graph.add(a=y, b=tensor('residual', RESIDUAL, convolution.y))
    if convolution.bias:
        y = graph.bias(input=y, bias=tensor('b', B, (1, convolution.w[0], 1, 1)))
    if convolution.relu:
        y = graph.relu(input=y)
    return y


def _data(graph, convolution, tensor):
    return graph.conv_dgrad(loss=tensor('gy', Y, convolution.y), filter=tensor('w', W, convolution.w),
                            **_geometry(convolution))


def _filter(graph, convolution, tensor):
    return graph.conv_wgrad(image=tensor('x', X, convolution.x), loss=tensor('gy', Y, convolution.y),
                            **_geometry(convolution))


def _unwanted_notes(cudnn, tensor_cores: bool) -> list:
    """What an engine must not do to the numbers.

    Products in less than the storage's precision and sums in less than float32 never; without tensor cores
    no TF32 (PyTorch sorts engines by the same notes, ``aten/src/ATen/native/cudnn/Conv_v8.cpp``) and no
    Winograd transform of large tiles, which amplifies rounding errors (Lavin and Gray 2016, section 5.3).
    """
    note = cudnn.numerical_note
    unwanted = [note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION]
    if not tensor_cores:
        unwanted += [note.TENSOR_CORE, note.WINOGRAD_TILE_6x6, note.WINOGRAD_TILE_13x13]
    return unwanted


def dtype_name(storage: np.dtype) -> str:
    """Return the name that :class:`Convolution` has for a storage type (uint16 holds bfloat16)."""
    return {'f2': 'float16', 'f4': 'float32', 'u2': 'bfloat16'}[storage.str[1:]]
