"""MobileNetV1 against a NumPy implementation of Howard et al. 2017, table 1."""

import chainer
import numpy as np
import pytest

from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.models.backbones.mobilenet_v1 import MobileNetV1

EPS = 1e-3
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVING = (2, 4, 6, 12)


def same(x, side, stride):
    """Return the windows ``(N, C, h, w, side, side)`` of an image with TensorFlow's ``'SAME'`` padding."""
    zeros = []
    for n in x.shape[2:]:
        total = max((-(-n // stride) - 1) * stride + side - n, 0)
        zeros.append((total // 2, total - total // 2))
    x = np.pad(x, ((0, 0), (0, 0), *zeros))
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]


def reference(arrays, x):
    """Return the outputs of blocks 3, 5, 11 and 13 with running statistics, in float64."""

    def norm_and_relu6(y, layer):
        gamma, beta, mean, var = (
            arrays[f'{layer}/norm/{name}'].reshape(-1, 1, 1) for name in ('gamma', 'beta', 'avg_mean', 'avg_var')
        )
        return np.clip(gamma * (y - mean) / np.sqrt(var + EPS) + beta, 0, 6)

    def convolution(x, layer, stride=1):
        W = arrays[f'{layer}/conv/W']
        return norm_and_relu6(np.einsum('nchwij,ocij->nohw', same(x, W.shape[2], stride), W), layer)

    x, outputs = convolution(x, 'conv0', 2), []
    for block in range(1, 14):
        layer = f'block{block}/depthwise'
        windows = same(x, 3, 2 if block in HALVING else 1)
        x = norm_and_relu6(np.einsum('nchwij,cij->nchw', windows, arrays[f'{layer}/conv/W'][:, 0]), layer)
        x = convolution(x, f'block{block}/pointwise')
        if block in (3, 5, 11, 13):
            outputs.append(x)
    return outputs


@pytest.fixture
def backbone(rng):
    """A narrow network with random normalisations, in which ReLU6 clips at 0 and at 6."""
    backbone = MobileNetV1(width=0.25, norm='bn')
    for link in backbone.links():
        if isinstance(link, chainer.links.BatchNormalization):
            link.eps = EPS
            n = link.avg_mean.size
            link.gamma.array[...] = rng.uniform(0.5, 1.5, n)
            link.beta.array[...] = rng.uniform(-1, 4, n)
            link.avg_mean[...] = rng.uniform(-1, 1, n)
            link.avg_var[...] = rng.uniform(1, 3, n)
    return backbone


@pytest.mark.parametrize('size', [(64, 96), (61, 47)])
@pytest.mark.parametrize('backprop', [False, True])
def test_backbone_equals_the_reference(backbone, rng, size, backprop):
    """With and without backprop, for sizes that are and are not multiples of 32."""
    x = rng.uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    arrays = {name: np.asarray(array, np.float64) for name, array in collect_arrays(backbone).items()}
    expected = reference(arrays, x.astype('d'))
    assert expected[0].max() == 6 and expected[3].max() == 6
    with chainer.using_config('train', False), chainer.using_config('enable_backprop', backprop):
        maps = backbone(x)
    for y, e, stride in zip(maps, expected, backbone.strides, strict=True):
        assert y.dtype == np.float32 and y.shape[2:] == tuple(-(-side // stride) for side in size)
        np.testing.assert_allclose(y.array, e, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('width', 'channels'),
    [(1.0, CHANNELS), (0.5, [c // 2 for c in CHANNELS]), (0.1, [max(int(c / 10), 8) for c in CHANNELS])],
)
def test_width_scales_the_channels(width, channels):
    backbone = MobileNetV1(width=width, norm='affine')
    assert [backbone[f'block{i}'].pointwise.conv.W.shape[0] for i in range(1, 14)] == list(channels)
    assert backbone.out_channels == tuple(channels[i] for i in (2, 4, 10, 12))
    n_parameters = sum(link.W.size for link in backbone.links() if isinstance(link, chainer.links.Convolution2D))
    if width == 1:  # the paper's 4.2 million (table 8) without the last layer and the normalisations
        assert n_parameters == 3_185_088


def test_stages_are_in_the_order_of_execution(backbone):
    names = [stage.name for stage in backbone.stages]
    assert names == ['conv0', *(f'block{i}' for i in range(1, 14))]


def backward_from_all(backbone, x):
    sum(chainer.functions.sum(y * y) for y in backbone(x.astype(np.float32))).backward()


def test_frozen_stages_get_no_gradient(backbone, rng):
    backbone.frozen_stages = 3
    backbone.cleargrads()
    backward_from_all(backbone, rng.uniform(-1, 1, (2, 3, 32, 32)))
    has_gradient = {
        stage.name: any(p.grad is not None and p.grad.any() for p in stage.params()) for stage in backbone.stages
    }
    assert not any(has_gradient[name] for name in ('conv0', 'block1', 'block2'))
    assert all(has_gradient[f'block{i}'] for i in range(3, 14))


def test_all_parameters_get_gradients(rng):
    backbone = MobileNetV1(width=0.25, norm='bn')
    backbone.cleargrads()
    backward_from_all(backbone, rng.uniform(-1, 1, (2, 3, 64, 64)))
    assert all(np.isfinite(p.grad).all() and p.grad.any() for p in backbone.params())
