"""ResNeXt: its structure, and a stage against plain convolutions of the groups."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, PRESETS, RESNET_BLOCKS
from mask_rcnn.models.backbones.resnet import Bottleneck, ResNet, ResNetStage
from mask_rcnn.models.box_head import Res5BoxHead
from mask_rcnn.models.initializers import he_normal, no_initial_weights
from mask_rcnn.models.layers import ConvNorm, Convolution2D
from mask_rcnn.training.freezing import _freeze_parameters
from mask_rcnn.weights.converters.mapping import resnet_convolutions

#: Shapes of the 3x3 convolutions of res2 to res5 (Xie et al. 2017, table 1, with the widths of the network).
GROUPED_SHAPES = {
    'resnext50_32x4d': [(128, 4), (256, 8), (512, 16), (1024, 32)],
    'resnext101_32x8d': [(256, 8), (512, 16), (1024, 32), (2048, 64)],
    'resnext101_64x4d': [(256, 4), (512, 8), (1024, 16), (2048, 32)],
    'resnext152_32x8d': [(256, 8), (512, 16), (1024, 32), (2048, 64)],
    'resnet152': [(64, 64), (128, 128), (256, 256), (512, 512)],
}


@pytest.fixture(params=GROUPED_SHAPES)
def network(request, monkeypatch):
    """The name and the link of a network with two blocks per stage."""
    monkeypatch.setitem(RESNET_BLOCKS, request.param, (2, 2, 2, 2))
    with no_initial_weights():
        return request.param, ResNet(request.param, norm='affine', outputs=(2, 3, 4, 5), stride_in_3x3=True)


def test_shapes_of_the_weights(network):
    name, net = network
    for number, (width, group_width) in enumerate(GROUPED_SHAPES[name], start=2):
        out_channels, stride = 64 << number, 1 if number == 2 else 2
        for i, block in enumerate((net[f'res{number}'].block0, net[f'res{number}'].block1)):
            n_in = out_channels if i else (64 if number == 2 else out_channels // 2)
            assert block.conv1.conv.W.shape == (width, n_in, 1, 1)
            assert block.conv2.conv.W.shape == (width, group_width, 3, 3)
            assert block.conv3.conv.W.shape == (out_channels, width, 1, 1)
            strides = [conv.conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)]
            assert strides == [1, 1 if i else stride, 1]
        assert net[f'res{number}'].block0.shortcut.conv.W.shape == (
            out_channels,
            64 if number == 2 else n_in // 2,
            1,
            1,
        )
    assert net.out_channels == (256, 512, 1024, 2048)


def test_converters_expect_the_shapes_of_the_network(network):
    name, net = network
    for conv in resnet_convolutions(name):
        assert net[f'res{conv.stage}'][f'block{conv.block}'][conv.name].conv.W.shape == conv.shape


def test_res5_of_a_c4_network_has_groups(monkeypatch):
    monkeypatch.setitem(RESNET_BLOCKS, 'resnext50_32x4d', (1, 1, 1, 2))
    config = PRESETS['resnext50_32x4d'].replace(dialect=DETECTRON, n_fg_class=3)
    with no_initial_weights():
        head = Res5BoxHead(1024, strides=(16,), config=config)
    assert head.res5.block1.conv2.conv.W.shape == (1024, 32, 3, 3)
    assert head.res5.block1.conv3.conv.W.shape == (2048, 1024, 1, 1)


def randomize(link, rng):
    for parameter in link.params():
        parameter.array[...] = rng.uniform(-1, 1, parameter.shape) / np.sqrt(max(np.prod(parameter.shape[1:]), 1))
    return link


def compose(stage, x, groups):
    """Return the output of a stage from a plain convolution of each group, in float64, and its weights as variables."""
    weights = {}

    def layer(path, x, relu=True, groups=1):
        conv, norm = stage[path[0]][path[1]].conv, stage[path[0]][path[1]].norm
        W = weights[path] = chainer.Variable(conv.W.array.astype(np.float64))
        parts = zip(F.split_axis(x, groups, axis=1), F.split_axis(W, groups, axis=0), strict=True)
        y = F.concat([F.convolution_2d(part, w, None, conv.stride[0], conv.pad[0]) for part, w in parts])
        y = F.scale(y, norm.scale.array.astype(np.float64), axis=1)
        y = F.bias(y, norm.bias.array.astype(np.float64), axis=1)
        return F.relu(y) if relu else y

    for i in range(stage.n_blocks):
        name = f'block{i}'
        h = layer((name, 'conv2'), layer((name, 'conv1'), x), groups=groups)
        shortcut = layer((name, 'shortcut'), x, relu=False) if i == 0 else x
        x = F.relu(layer((name, 'conv3'), h, relu=False) + shortcut)
    return x, weights


@pytest.mark.parametrize('device', ['cpu', 'on_gpu'])
@pytest.mark.parametrize('n_in', [4, 8])
def test_a_stage_equals_plain_convolutions_of_its_groups(rng, request, device, n_in):
    """Without and with backprop, on the CPU and in the graphs of a GPU."""
    stage = randomize(
        ResNetStage(2, 8, 4 * n_in, out_channels=32, groups=4, stride=2, norm='affine', stride_in_3x3=True), rng
    )
    for link in stage.links():
        if isinstance(link, ConvNorm):
            _freeze_parameters(link.norm)
    x = rng.uniform(-1, 1, (2, 8, 11, 14)).astype(np.float32)
    image = chainer.Variable(x.astype(np.float64))
    expected, weights = compose(stage, image, 4)
    gy = rng.uniform(-1, 1, expected.shape)
    expected.grad = gy
    expected.backward()
    if device == 'on_gpu':
        request.getfixturevalue('on_gpu')
    with chainer.no_backprop_mode():
        np.testing.assert_allclose(stage(x).array, expected.array, rtol=0, atol=1e-5)
    features = chainer.Variable(x)
    y = stage(features)
    np.testing.assert_allclose(y.array, expected.array, rtol=0, atol=1e-5)
    y.grad = gy.astype(np.float32)
    y.backward()
    np.testing.assert_allclose(features.grad, image.grad, rtol=0, atol=1e-5 * np.abs(image.grad).max())
    for (block, name), weight in weights.items():
        scale = np.abs(weight.grad).max()
        np.testing.assert_allclose(stage[block][name].conv.W.grad, weight.grad, rtol=0, atol=1e-5 * scale)


def test_float16_uses_chainers_functions(rng):
    conv = randomize(Convolution2D(8, 12, 3, pad=1, groups=4), rng)
    x = rng.uniform(-1, 1, (2, 8, 5, 6)).astype(np.float16)
    expected = F.convolution_2d(x.astype('f'), conv.W.array, conv.b.array, 1, 1, groups=4).array
    for parameter in conv.params():
        parameter.array = parameter.array.astype(np.float16)
    y = conv(x)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.array, expected, rtol=0, atol=5e-3)


def test_default_width_of_a_bottleneck():
    block = Bottleneck(16, 4, groups=2, project=True, norm='affine')
    assert block.conv2.conv.W.shape == (4, 2, 3, 3)
    assert block.conv3.conv.W.shape == block.shortcut.conv.W.shape[:1] + (4, 1, 1) == (16, 4, 1, 1)


@pytest.mark.parametrize(('n_in', 'n_out'), [(6, 8), (8, 6)])
def test_channels_that_do_not_form_groups_raise_one_line(n_in, n_out):
    with pytest.raises(
        ValueError, match=r'^the number of (in|out)put channels must be divisible by the number of groups$'
    ):
        ConvNorm(n_in, n_out, 3, groups=4, norm='affine')


def test_initial_weights_of_a_group_have_its_fan(rng):
    """He et al. 2015, equation 14: the variance is 2 / (filter positions times output channels per group)."""
    weights = np.empty((256, 8, 3, 3), np.float32)
    he_normal('fan_out', groups=8)(weights)
    for group in np.split(weights, 8):
        assert abs(group.std() / np.sqrt(2 / (9 * 32)) - 1) < 0.1
    assert len({group.tobytes() for group in np.split(weights, 8)}) == 8
