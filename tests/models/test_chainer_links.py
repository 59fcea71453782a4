"""Gradients of the Chainer links and functions that the network uses, under mask_rcnn.compat."""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.models import layers
from mask_rcnn.models.norms import AffineChannel2D

FUNCTIONS = {
    'relu': (F.relu, (2, 3, 5, 4)),
    'sigmoid': (F.sigmoid, (2, 3, 4)),
    'softmax': (F.softmax, (3, 7)),
    'mean': (lambda x: F.mean(x, axis=(2, 3)), (2, 3, 5, 4)),
    'add': (lambda x: x + x * 2, (2, 3)),
    'max_pooling_2d': (lambda x: F.max_pooling_2d(x, 3, 2, 1, cover_all=False), (2, 3, 7, 8)),
}

LINKS = {
    'convolution 1x1, stride 2': (lambda: L.Convolution2D(4, 3, 1, 2, nobias=True), (2, 4, 6, 5)),
    'convolution 3x3': (lambda: L.Convolution2D(3, 4, 3, 1, 1), (2, 3, 5, 6)),
    'convolution 7x7, stride 2': (lambda: L.Convolution2D(3, 2, 7, 2, 3), (1, 3, 9, 8)),
    'deconvolution 2x2, stride 2': (lambda: L.Deconvolution2D(4, 3, 2, 2), (2, 4, 3, 3)),
    'linear': (lambda: L.Linear(6, 5), (3, 6)),
    'batch normalisation': (lambda: L.BatchNormalization(3, dtype=np.float64), (4, 3, 2, 2)),
    'affine channel': (lambda: AffineChannel2D(3), (2, 3, 4, 4)),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_function_gradient(name, rng):
    function, shape = FUNCTIONS[name]
    # Distinct numbers with gaps: the finite difference must not change a sign or the position of a maximum.
    x = (rng.permutation(int(np.prod(shape))).reshape(shape) - np.prod(shape) / 2 + 0.25) / 10
    gy = rng.uniform(-1, 1, function(x).shape)
    gradient_check.check_backward(function, x, gy, eps=1e-4, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', LINKS)
def test_link_gradient(name, rng):
    make, shape = LINKS[name]
    link = make()
    for param in link.params():
        param.array = rng.uniform(-1, 1, param.shape)
    x = rng.uniform(-1, 1, shape)
    gy = rng.uniform(-1, 1, link(x).shape)
    gradient_check.check_backward(link, x, gy, tuple(link.params()), eps=1e-4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['Convolution2D', 'Deconvolution2D', 'Linear'])
def test_the_first_gradient_needs_no_clearing(name, rng):
    """The weight has no gradient before the first backward pass; Chainer's link must be cleared."""
    arguments = (6, 4) if name == 'Linear' else (6, 4, 3)
    link, expected = getattr(layers, name)(*arguments), getattr(L, name)(*arguments)
    assert link.W.grad is None and np.isnan(expected.W.grad).all()
    expected.copyparams(link)
    expected.cleargrads()
    x = rng.uniform(-1, 1, (2, 6) if name == 'Linear' else (2, 6, 5, 5)).astype(np.float32)
    for each in (link, expected):
        F.sum(each(chainer.Variable(x)) ** 2).backward()
    np.testing.assert_allclose(link.W.grad, expected.W.grad, rtol=1e-5, atol=1e-5)
