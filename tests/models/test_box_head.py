"""The C4 networks' box head against its definition."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, Config
from mask_rcnn.models.box_head import Res5BoxHead
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling

ROIS = np.array([[3, 5, 190, 260], [40, 30, 90, 120], [0, 0, 255, 319]], np.float32)
INDICES = np.array([0, 1, 1], np.int32)

SLOW = pytest.mark.slow


class Spy:
    """A RoI pooler that records the number of channels of its input."""

    def __init__(self, pool, seen):
        self.pool, self.seen, self.config = pool, seen, pool.config

    def __call__(self, maps, rois, roi_indices):
        self.seen.append(maps[0].shape[1])
        return self.pool(maps, rois, roi_indices)


def randomise_norms(head, rng):
    """Give every affine channel a random scale and bias, so that the order of operations matters."""
    for path, parameter in head.namedparams():
        if path.endswith(('norm/scale', 'norm/bias')):
            parameter.array[...] = rng.uniform(0.5, 1.5, parameter.shape)


def strided_res5(head, pooled):
    """Apply res5 by its definition: to the whole RoI grid, with stride 2 in the first block's 1x1 convolutions."""
    first = head.res5.block0
    for link in (first.conv1.conv, first.shortcut.conv):
        link.stride = (2, 2)
    out = head.res5(pooled)
    for link in (first.conv1.conv, first.shortcut.conv):
        link.stride = (1, 1)
    return out


@pytest.mark.parametrize(
    'map_size',
    [pytest.param((16, 20), id='more locations than bins'), pytest.param((8, 9), id='fewer locations', marks=SLOW)],
)
@pytest.mark.parametrize(('align', 'pooling'), [(True, roi_align), pytest.param(False, roi_max_pooling, marks=SLOW)])
def test_optimised_features_equal_the_definition(rng, align, pooling, map_size):
    """Features and gradients equal those of the 14 x 14 grid with stride 2, pooled before res5.

    Measured with five kinds of BLAS, relative to the standard deviation: up to 1e-5.  In a twentieth of the networks,
    the input of a ReLU is nearly zero and changes its sign, and gradients differ by up to 1.3e-3.
    """
    np.random.seed(0)
    head = Res5BoxHead(8, strides=(16,), config=Config(n_fg_class=2, roi_align=align))
    randomise_norms(head, rng)
    x = chainer.Parameter(rng.uniform(-1, 1, (2, 8, *map_size)).astype(np.float32))
    pooled = pooling(x, ROIS, INDICES, output_size=14, spatial_scale=1 / 16)
    expected = strided_res5(head, pooled)
    gy = rng.uniform(-1, 1, expected.shape).astype(np.float32)
    expected.grad = gy
    expected.backward()
    expected_gradient = x.grad
    x.cleargrad()
    features = head.roi_features((x,), ROIS, INDICES)
    assert features.shape == (3, 2048, 7, 7)
    np.testing.assert_allclose(features.array, expected.array, rtol=0, atol=2e-5 * expected.array.std())
    features.grad = gy
    features.backward()
    off = np.abs(x.grad - expected_gradient) / expected_gradient.std()
    assert off.max() < (4e-3 if (features.array != expected.array).any() else 2e-5) and np.median(off) < 5e-7
    with chainer.no_backprop_mode():
        fused = head.roi_features((x,), ROIS, INDICES)
    np.testing.assert_allclose(fused.array, expected.array, rtol=0, atol=2e-5 * expected.array.std())


@pytest.mark.parametrize(('map_size', 'pooled_channels'), [((16, 20), [8]), ((8, 9), [512, 2048])])
def test_small_feature_maps_are_convolved_before_pooling(rng, monkeypatch, map_size, pooled_channels):
    head = Res5BoxHead(8, strides=(16,), config=Config(n_fg_class=2))
    seen = []
    monkeypatch.setattr(head, 'pool', Spy(head.pool, seen))
    head.roi_features((rng.uniform(-1, 1, (2, 8, *map_size)).astype(np.float32),), ROIS, INDICES)
    assert seen == pooled_channels


@pytest.mark.parametrize(('align', 'pooling'), [pytest.param(True, roi_align, marks=SLOW), (False, roi_max_pooling)])
def test_roi_size_7_computes_every_bin(rng, align, pooling):
    head = Res5BoxHead(8, strides=(16,), config=Config(n_fg_class=2, roi_size=7, roi_align=align))
    x = rng.uniform(-1, 1, (2, 8, 16, 20)).astype(np.float32)
    expected = head.res5(pooling(x, ROIS, INDICES, output_size=7, spatial_scale=1 / 16))
    np.testing.assert_array_equal(head.roi_features((x,), ROIS, INDICES).array, expected.array)


@pytest.mark.parametrize('roi_size', [14, pytest.param(7, marks=SLOW)])
def test_a_stride_in_the_3x3_convolution_reads_every_bin(rng, roi_size):
    """The first block by its definition: stride 2 of a grid of 14 x 14 in the 3x3 convolution and in the shortcut."""
    dialect = DETECTRON.replace(backbone={'stride_in_3x3': True})
    head = Res5BoxHead(8, strides=(16,), config=Config(n_fg_class=2, roi_size=roi_size, dialect=dialect))
    randomise_norms(head, rng)
    x = rng.uniform(-1, 1, (2, 8, 8, 9)).astype(np.float32)
    pooled = roi_align(x, ROIS, INDICES, output_size=roi_size, spatial_scale=1 / 16)
    first, stride = head.res5.block0, roi_size // 7

    def apply(layer, h, stride, pad):
        y = F.convolution_2d(h, layer.conv.W, stride=stride, pad=pad)
        scale, bias = (v.array[:, None, None] for v in (layer.norm.scale, layer.norm.bias))
        return y * F.broadcast_to(scale, y.shape) + F.broadcast_to(bias, y.shape)

    h = F.relu(apply(first.conv1, pooled, 1, 0))
    h = apply(first.conv3, F.relu(apply(first.conv2, h, stride, 1)), 1, 0)
    expected = F.relu(h + apply(first.shortcut, pooled, stride, 0))
    for i in (1, 2):
        expected = head.res5[f'block{i}'](expected)
    features = head.roi_features((x,), ROIS, INDICES)
    assert features.shape == (3, 2048, 7, 7)
    np.testing.assert_allclose(features.array, expected.array, rtol=0, atol=2e-5 * expected.array.std())


def test_outputs_are_linear_in_the_mean_features(rng):
    head = Res5BoxHead(8, strides=(16,), config=Config(n_fg_class=5))
    features = rng.uniform(-1, 1, (4, 2048, 7, 7)).astype(np.float32)
    scores, deltas = head(features)
    assert scores.shape == (4, 6) and deltas.shape == (4, 24)
    mean = F.linear(features.mean(axis=(2, 3)), head.score.W, head.score.b)
    np.testing.assert_allclose(scores.array, mean.array, atol=1e-6)
