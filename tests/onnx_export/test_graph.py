"""The builder of ONNX graphs, in ONNX Runtime against NumPy."""

import numpy as np
import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

import onnx

from tests.support.onnx_graphs import build, run_graph

X = np.arange(-3, 9, dtype=np.float32).reshape(3, 4)
Y = np.full((3, 4), 2, np.float32)

OPERATIONS = {
    'arithmetic': (lambda g, x, y: (1 - x) * y / 4 + -x, lambda x, y: (1 - x) * y / 4 - x),
    'comparisons': (lambda g, x, y: ((x < y) | (x >= 7)) & ~x.equal(0), lambda x, y: ((x < y) | (x >= 7)) & (x != 0)),
    'limits': (lambda g, x, y: x.minimum(y).maximum(-1), lambda x, y: np.clip(x, -1, y)),
    'selection': (lambda g, x, y: (x > y).where(x, 0), lambda x, y: np.where(x > y, x, 0)),
    'matmul': (lambda g, x, y: x @ y.transpose(1, 0), lambda x, y: x @ y.T),
    'slices': (lambda g, x, y: x.slice(1, axis=1, step=2), lambda x, y: x[:, 1::2]),
    'rows': (lambda g, x, y: x.compress(x.take(0, axis=1) > 0), lambda x, y: x[x[:, 0] > 0]),
    'shapes': (lambda g, x, y: x.reshape(1, x.size(1), -1).squeeze(0), lambda x, y: x.reshape(4, 3)),
    'range': (lambda g, x, y: g.arange(x.size(1)), lambda x, y: np.arange(4)),
    'concatenation': (lambda g, x, y: g.concat([x, y], axis=1), lambda x, y: np.hstack([x, y])),
    'cast': (lambda g, x, y: (x / 2).cast(np.int64), lambda x, y: (x / 2).astype(np.int64)),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations(name):
    function, expected = OPERATIONS[name]
    (found,) = run_graph(function, X, Y)
    np.testing.assert_array_equal(found, expected(X, Y))
    assert found.dtype == expected(X, Y).dtype


def test_a_loop_uses_outer_tensors():
    def rows(g, x, y):
        return g.loop(x.size(0), lambda i: [x.take(i.reshape(1)).squeeze(0) * y.take(0), y])

    products, copies = run_graph(rows, X, Y)
    np.testing.assert_array_equal(products, X * Y)
    np.testing.assert_array_equal(copies, np.stack([Y] * 3))


def test_a_loop_has_a_state():
    def sums(g, x):
        start = g.constant(np.zeros(4, np.float32))
        return g.loop(x.size(0), lambda i, total: [total + x.take(i), total], initial=[start])

    total, before = run_graph(sums, X)
    np.testing.assert_array_equal(total, X.sum(axis=0))
    np.testing.assert_array_equal(before, np.vstack([np.zeros(4), X.cumsum(axis=0)[:-1]]))


def test_empty_tensors_are_reshaped():
    (found,) = run_graph(lambda g, x: x.reshape(x.size(0), 2, 3), np.zeros((0, 6), np.float32))
    assert found.shape == (0, 2, 3)


def test_names_are_unique_and_equal_constants_are_shared():
    def function(g, x):
        with g.scope('head'):
            return (x + 1) * (x + 1) @ np.eye(4) @ np.eye(4)

    graph = build(function, X).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names) and 'head/Add' in names and 'head/Add_1' in names
    assert len(graph.initializer) == 2


def test_nodes_and_constants_without_use_are_left_out():
    def function(g, x):
        unused = x * 5
        (products,) = g.loop(x.size(0), lambda i: [x.take(i) * 7])
        return [products, (unused + 3, x + 1)[1]]

    graph = build(function, X).graph
    assert {node.op_type for node in graph.node} == {'Shape', 'Reshape', 'Loop', 'Add', 'Identity'}
    assert {float(onnx.numpy_helper.to_array(a).item()) for a in graph.initializer if a.data_type == 1} == {1, 7}
