"""Running of small ONNX graphs in the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime

from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.transform import GraphTransform
from mask_rcnn.preprocessing.image_transform import ImageTransform


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return the session of a model on the CPU; ONNX Runtime checks the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def build(function: Callable, *arrays: np.ndarray) -> onnx.ModelProto:
    """Return a graph of a function.

    Args:
        function: Called with a :class:`~mask_rcnn.onnx_export.graph.GraphBuilder` and a tensor for each array; returns
            a tensor or several.
        arrays: The inputs; all lengths of the graph's inputs are variable.
    """
    graph = GraphBuilder()
    inputs = [graph.input(f'input{i}', array.dtype) for i, array in enumerate(arrays)]
    results = function(graph, *inputs)
    results = [results] if isinstance(results, Tensor) else results
    outputs = [graph.output(f'result{i}', tensor) for i, tensor in enumerate(results)]
    declared = [
        (tensor, [f'{tensor.name}_{axis}' for axis in range(array.ndim)], '')
        for tensor, array in zip(inputs, arrays, strict=True)
    ]
    return graph.build('test', declared, [(tensor, None, '') for tensor in outputs])


def run_graph(function: Callable, *arrays: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of a function's graph (:func:`build`) in ONNX Runtime."""
    feeds = {f'input{i}': array for i, array in enumerate(arrays)}
    return session(build(function, *arrays)).run(None, feeds)


def constant_transform(graph: GraphBuilder, transform: ImageTransform, *, divisor: int = 1) -> GraphTransform:
    """Return the transform of images of one size.

    Args:
        graph: The graph.
        transform: The transform of these images.
        divisor: The height and width of the network input are multiples of it.
    """
    integers = (transform.size, transform.window[:2], transform.resized)
    size, origin, resized = (graph.constant(np.array(values, np.int64)) for values in integers)
    sides = np.array(transform.input_size, np.int64)
    return GraphTransform(
        size=size,
        scale=graph.constant(np.float64(transform.scale)),
        factors=graph.constant(np.array(transform.factors)),
        origin=origin,
        resized=resized,
        padded=graph.constant(sides + -sides % divisor),
    )
