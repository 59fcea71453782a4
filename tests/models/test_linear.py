"""Linear layers with cuDNN's stand-in on the CPU, for all memory layouts of their features."""

import chainer
import numpy as np
import pytest

from mask_rcnn.models import layers
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.cudnn_frontend import cublas
from mask_rcnn.ops.runtime.cache import cache_weights
from tests.support import cudnn_stand_in

#: Axes of ``(R, C, H, W)`` in memory order, the outermost first.
LAYOUTS = {'channels first': (0, 1, 2, 3), 'channels last': (0, 2, 3, 1), 'RoIs last': (1, 2, 3, 0)}


@pytest.fixture
def stand_in(monkeypatch, emulator):
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel) as stand_in:
        monkeypatch.setattr(layers, 'convolve', cudnn_frontend.convolve)
        monkeypatch.setattr(
            layers, 'select_path', lambda x: 'cudnn_graph' if chainer.config.enable_backprop else 'cudnn'
        )
        yield stand_in


def lay_out(array, axes):
    """Return an equal array with another memory order."""
    return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))


@pytest.fixture
def layer():
    np.random.seed(0)
    layer = layers.Linear(24, 5)
    layer.b.array[...] = np.random.uniform(-1, 1, 5)
    return layer


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('relu', [False, True])
def test_outputs_and_gradients_of_all_layouts(stand_in, rng, layer, layout, relu):
    x = rng.uniform(-1, 1, (3, 4, 2, 3)).astype('f')
    gy = rng.uniform(-1, 1, (3, 5)).astype('f')
    results = []
    for forward in (
        lambda v: layer(v, relu=relu),
        lambda v: (chainer.functions.relu if relu else chainer.as_variable)(chainer.links.Linear.forward(layer, v)),
    ):
        layer.cleargrads()
        image = chainer.Variable(lay_out(x, LAYOUTS[layout]))
        y = forward(image)
        y.grad = gy
        y.backward()
        results.append((y.array, image.grad, layer.W.grad, layer.b.grad))
    with chainer.no_backprop_mode():
        results.append((layer(lay_out(x, LAYOUTS[layout]), relu=relu).array,))
    for outputs in (results[0], results[2]):
        for actual, expected in zip(outputs, results[1], strict=False):  # without backprop, only the output
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))
    assert stand_in.runs == [['matmul']] * 4


@pytest.mark.parametrize('layout', ['channels first', 'channels last'])
def test_features_are_not_copied_and_weights_are_cached(stand_in, rng, layer, layout, monkeypatch):
    x = lay_out(rng.uniform(-1, 1, (3, 4, 2, 3)).astype('f'), LAYOUTS[layout])
    seen = []
    monkeypatch.setattr(cublas, 'matmul', lambda a, b, out, **_: seen.extend([a, b]))
    with chainer.no_backprop_mode(), cache_weights():
        layer(x), layer(x)
    images, weights = ([array for array in seen if array.shape == shape] for shape in ((3, 24), (5, 24)))
    assert len(images) == len(weights) == 2
    assert all(np.shares_memory(x, array) for array in images)
    assert np.shares_memory(*weights)
    assert np.shares_memory(weights[0], layer.W.array) == (layout == 'channels first')


@pytest.mark.parametrize('shape', [(3, 24), (0, 24), (0, 4, 2, 3), (1, 24, 1, 1)])
def test_number_of_rows(stand_in, rng, layer, shape):
    x = rng.uniform(-1, 1, shape).astype('f')
    expected = x.reshape(shape[0], 24) @ layer.W.array.T + layer.b.array
    with chainer.no_backprop_mode():
        np.testing.assert_allclose(layer(x).array, expected, atol=1e-6)
    np.testing.assert_allclose(layer(x).array, expected, atol=1e-6)


def test_output_layers_are_one_convolution_in_float32(stand_in, rng):
    """Without backprop; the number of outputs is padded to a multiple of eight."""
    np.random.seed(0)
    links = [chainer.links.Linear(24, n) for n in (3, 12)]
    for link in links:
        link.b.array[...] = rng.uniform(-1, 1, link.b.shape)
    x = rng.uniform(-1, 1, (5, 24)).astype('f')
    expected = [link(x).array for link in links]
    with cudnn_frontend.using_precision('fp16'), chainer.no_backprop_mode(), cache_weights():
        outputs = layers.output_layers(x, *links), layers.output_layers(x, *links)
    assert stand_in.runs == [['matmul']] * 2 and outputs[0][0].array.base.shape[-1] == 16
    for variables in outputs:
        for y, link_output in zip(variables, expected, strict=True):
            np.testing.assert_allclose(y.array, link_output, rtol=0, atol=1e-6)


def test_output_layers_have_float32_gradients_in_every_precision(stand_in, rng):
    """By this package's calls of cuBLAS, because CuPy's cannot be captured in a CUDA graph."""
    np.random.seed(0)
    links = [chainer.links.Linear(24, n) for n in (3, 12)]
    x, *upstream = (rng.uniform(-1, 1, shape).astype('f') for shape in ((5, 24), (5, 3), (5, 12)))
    x = chainer.Variable(x)
    parameters = [parameter for link in links for parameter in (link.W, link.b)]
    expected = chainer.grad([link(x) for link in links], [x, *parameters], [chainer.Variable(g) for g in upstream])
    with cudnn_frontend.using_precision('fp16'):
        outputs = layers.output_layers(x, *links)
        found = chainer.grad(outputs, [x, *parameters], [chainer.Variable(g) for g in upstream])
    assert stand_in.runs == [['matmul']] * 6
    for y, link in zip(outputs, links, strict=True):
        np.testing.assert_allclose(y.array, link(x).array, rtol=0, atol=1e-6)
    for gradient, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient.array, other.array, rtol=0, atol=1e-6)
