"""Running of small ONNX graphs in the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime

from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor


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
