"""Layers of ONNX graphs in ONNX Runtime, compared with the links that they are made from."""

import chainer
import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.models.backbones.mobilenet_v1 import DepthwiseConvNorm, ReLU6ConvNorm, SeparableBlock
from mask_rcnn.models.backbones.resnet import ResNetStage, Stem
from mask_rcnn.models.keypoint_head import upsample_bilinear_2x
from mask_rcnn.models.layers import ConvNorm, Convolution2D, Deconvolution2D, Linear
from mask_rcnn.models.norms import GroupNormalization
from mask_rcnn.onnx_export import backbones, heads, layers
from mask_rcnn.onnx_export.joined_rois import convolve_joined
from tests.support.onnx_graphs import build, run_graph

X = np.random.default_rng(0).standard_normal((2, 8, 13, 18)).astype(np.float32)


@pytest.fixture(autouse=True)
def inference():
    np.random.seed(0)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield


def randomize(link):
    """Give all parameters and statistics of a link random values, variances positive ones."""
    rng = np.random.default_rng(1)
    for path, parameter in link.namedparams():
        if not path.endswith('/W'):
            parameter.array[...] = rng.uniform(-1, 1, parameter.shape)
    for norm in link.links():
        if hasattr(norm, 'avg_var'):
            norm.avg_mean[...] = rng.standard_normal(norm.avg_mean.shape)
            norm.avg_var[...] = rng.uniform(0.5, 2, norm.avg_var.shape)
    return link


def compare(function, expected, *arrays):
    (found,) = run_graph(lambda graph, *inputs: function(*inputs), *arrays)
    np.testing.assert_allclose(found, chainer.as_array(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('norm', ['affine', 'bn', 'gn'])
@pytest.mark.parametrize('options', [{'stride': 2, 'pad': 1}, {'groups': 4}])
def test_convolution_and_its_normalisation(norm, options):
    link = randomize(ConvNorm(8, 64, 3, norm=norm, **options))
    compare(lambda x: layers.convolve(x, link), link(X), X)


def test_convolution():
    link = randomize(Convolution2D(8, 5, 3, stride=2, pad=1))
    compare(lambda x: layers.convolve(x, link), link(X), X)


@pytest.mark.parametrize('options', [{'ksize': 2, 'stride': 2}, {'ksize': 4, 'stride': 2, 'pad': 1}])
def test_deconvolution(options):
    link = randomize(Deconvolution2D(8, 5, **options))
    compare(lambda x: layers.deconvolve(x, link), link(X), X)


def test_linear_layer():
    link = randomize(Linear(18, 5))
    rows = X[0, 0]
    compare(lambda x: layers.linear(x, link), link(rows), rows)


def test_normalisation_is_folded():
    link = randomize(ConvNorm(8, 4, 1, norm='bn'))
    assert [node.op_type for node in build(lambda graph, x: layers.convolve(x, link), X).graph.node[:-1]] == ['Conv']


@pytest.mark.parametrize('pool_pad', [0, 1])
@pytest.mark.parametrize('size', [(20, 23), (21, 32)])
def test_stem(pool_pad, size):
    image = np.random.default_rng(2).standard_normal((1, 3, *size)).astype(np.float32)
    stem = randomize(Stem(8, pool_pad=pool_pad, norm='affine'))
    compare(lambda x: backbones._stem(x, stem), stem(image), image)


@pytest.mark.parametrize('stride_in_3x3', [False, True])
def test_stage_of_a_resnet(stride_in_3x3):
    stage = randomize(ResNetStage(2, 8, 4, groups=2, stride=2, norm='affine', stride_in_3x3=stride_in_3x3))
    compare(lambda x: backbones.resnet_stage(x, stage), stage(X), X)


@pytest.mark.parametrize('size', [(13, 18), (18, 13)])
def test_stages_of_a_mobilenet(size):
    """With ReLU6, and more padding at the end of even sides."""
    x = 20 * X[:, :, : size[0], : size[1]]
    block = randomize(SeparableBlock(8, 16, stride=2, norm='bn'))
    assert isinstance(block.depthwise, DepthwiseConvNorm)
    expected = block(x)
    assert expected.array.max() == 6
    compare(lambda x: backbones._mobilenet_stage(x, block), expected, x)
    first = randomize(ReLU6ConvNorm(8, 16, 3, stride=2, norm='bn'))
    compare(lambda x: backbones._mobilenet_stage(x, first), first(x), x)


@pytest.mark.parametrize('border', ['zero', 'repeat'])
def test_upsampling(border):

    compare(
        lambda x: heads.upsample_bilinear_2x(x, 8, 13, 18, border=border), upsample_bilinear_2x(X, border=border), X
    )
    compare(layers.upsample_nearest_2x, X.repeat(2, axis=2).repeat(2, axis=3), X)


def test_the_sums_of_group_normalisation_are_precise():
    """The sum of all values in single precision would give differences of 2e-5."""
    x = np.random.default_rng(3).normal(3, 1, (1, 8, 256, 256)).astype(np.float32)
    norm = GroupNormalization(8, groups=1)
    (found,) = run_graph(lambda graph, x: layers.group_norm(x, norm), x)
    np.testing.assert_allclose(found, norm(x).array, rtol=0, atol=8e-6)


@pytest.mark.parametrize('count', [1, 3])
def test_convolution_of_joined_rois(count):
    """The padding of each RoI is zero, also after a layer with a bias."""
    links = [randomize(Convolution2D(8, 8, 3, pad=1)) for _ in range(2)]
    rois = np.random.default_rng(4).standard_normal((count, 8, 5, 6)).astype(np.float32)

    def convolve(x, clear_gaps):
        return layers.convolve(clear_gaps(layers.convolve(x, links[0])), links[1])

    compare(lambda x: convolve_joined(x, 5, convolve), links[1](links[0](rois)), rois)
