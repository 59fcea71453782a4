"""ResNet: its structure, its sizes and its memory."""

import chainer
import numpy as np
import pytest

from mask_rcnn.models.backbones.resnet import Bottleneck, ResNet


@pytest.mark.parametrize(
    ('name', 'n_conv'),
    [('resnet50', 1 + 3 * 13 + 3), pytest.param('resnet101', 1 + 3 * 30 + 3, marks=pytest.mark.slow)],
)
def test_number_of_convolutions(name, n_conv):
    convolutions = [
        link for link in ResNet(name, norm='affine').links() if isinstance(link, chainer.links.Convolution2D)
    ]
    assert len(convolutions) == n_conv


def test_stride_is_in_the_first_convolution_of_each_stage():
    net = ResNet('resnet50', norm='affine')
    for stage, stride in ((net.res2, 1), (net.res3, 2), (net.res4, 2)):
        block = stage.block0
        assert [conv.conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)] == [stride, 1, 1]
        assert block.shortcut.conv.stride[0] == stride
        assert stage.block1.conv1.conv.stride[0] == 1


@pytest.mark.parametrize('size', [pytest.param((64, 96), marks=pytest.mark.slow), (65, 33), (1, 1)])
def test_feature_map_sizes_are_rounded_up(size):
    with chainer.no_backprop_mode():
        (features,) = ResNet('resnet50', norm='affine')(np.zeros((1, 3, *size), np.float32))
    assert features.shape == (1, 1024, -(-size[0] // 16), -(-size[1] // 16))


def test_bottleneck_is_the_sum_of_branch_and_shortcut(rng):
    block = Bottleneck(4, 2, stride=2, project=True, norm='affine')
    x = rng.uniform(-1, 1, (1, 4, 5, 5)).astype(np.float32)

    def convolve(conv, x, pad=0):
        weights = conv.W.array
        side = weights.shape[2]
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))[:, :, ::1]
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
        step = conv.stride[0]
        return np.einsum('nchwij,ocij->nohw', windows[:, :, ::step, ::step], weights)

    h = np.maximum(convolve(block.conv1.conv, x), 0)
    h = np.maximum(convolve(block.conv2.conv, h, 1), 0)
    expected = np.maximum(convolve(block.conv3.conv, h) + convolve(block.shortcut.conv, x), 0)
    np.testing.assert_allclose(block(x).array, expected, rtol=1e-5, atol=1e-6)


def test_only_intermediate_feature_maps_are_overwritten(rng):
    """Without backprop, blocks overwrite their inputs, except for the image and the outputs of stages."""
    net = ResNet('resnet50', norm='affine', outputs=(2, 3, 4, 5))
    x = rng.uniform(-1, 1, (2, 3, 64, 32)).astype(np.float32)
    expected = [features.array for features in net(x)]
    with chainer.no_backprop_mode():
        image = x.copy()
        maps = net(image)
        np.testing.assert_array_equal(image, x)
        for features, reference in zip(maps, expected, strict=True):
            np.testing.assert_allclose(features.array, reference, rtol=1e-4, atol=1e-4 * reference.std())
        before = maps[0].array.copy()
        net.res2.block1(maps[0])
        np.testing.assert_array_equal(maps[0].array, before)
