"""The way through the network that a GPU takes, on the CPU: padded arrays, cuDNN's stand-in, emulated
kernels.
"""

import copy
import pickle

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.models.backbones import mobilenet_v1
from mask_rcnn.models.layers import conv_norm, convolution, roi_pooling
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.boxes import nms, top_k
from mask_rcnn.ops.masks import paste_masks
from mask_rcnn.ops.roi import roi_align
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy
from mask_rcnn.training.freezing import _freeze_parameters
from tests.support import cudnn_stand_in
from tests.support.cuda_emulator import CudaEmulator


class ArrayModule:
    """NumPy under another name: it is not the CPU's array module."""

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    return CudaEmulator(tmp_path_factory.mktemp('kernels'))


@pytest.fixture
def on_gpu(monkeypatch, kernels):
    """NumPy's arrays go the way of CuPy's."""
    module = ArrayModule()
    with cudnn_stand_in.installed(monkeypatch, kernels.kernel) as stand_in:
        monkeypatch.setattr(cudnn_frontend, 'supports', lambda *arrays: True)
        for name, ours in (
            ('convolve', lambda *args, overwrite_residual=False, **options: cudnn_frontend.convolve(*args, **options)),
            ('deconvolve', cudnn_frontend.deconvolve),
            ('is_forward_only', lambda x: not chainer.config.enable_backprop),
        ):
            for owner in (conv_norm, convolution, mobilenet_v1):
                if hasattr(owner, name):
                    monkeypatch.setattr(owner, name, ours)
        monkeypatch.setattr(
            mobilenet_v1,
            'depthwise_convolve',
            lambda x, W, b, *, stride, pad, clip_max: cudnn_frontend.convolve(
                x, W, b, stride=stride, pad=pad, relu=True, clip_max=clip_max
            ),
        )
        monkeypatch.setattr(roi_pooling, 'get_array_module', lambda *_: module)
        monkeypatch.setattr(
            roi_align,
            'check_arguments',
            lambda x, rois, indices, step: (np.ascontiguousarray(rois, 'f'), np.ascontiguousarray(indices, 'i')),
        )
        monkeypatch.setattr(roi_align._RoIAlign, 'forward_cpu', roi_align._RoIAlign.forward_gpu)
        monkeypatch.setattr(nms, 'nms_cpu', nms.nms_gpu)
        monkeypatch.setattr(top_k, 'top_k_indices_cpu', top_k.top_k_indices_gpu)
        monkeypatch.setattr(MaskRCNN, '_padded', True)
        yield stand_in


@pytest.fixture(params=['resnet50', 'resnet50_fpn', 'mobilenet_v1_fpn'])
def model(request):
    np.random.seed(0)
    model = mask_rcnn.build(
        request.param,
        n_fg_class=3,
        min_size=64,
        max_size=96,
        rpn_pre_nms=50,
        rpn_post_nms=5,
        max_detections=3,
        width=0.25 if 'mobile' in request.param else 1.0,
    )
    for path, parameter in model.namedparams():
        if path.endswith('conv3/norm/scale'):
            parameter.array[...] = 0.2
    model.rpn.delta.W.array[...] *= 0.1
    return model


def test_detections_are_those_of_the_cpu(model, rng, request):
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    stand_in = request.getfixturevalue('on_gpu')
    with cache_weights():
        found = model.detect(images, batch_size=1)
    for ours, theirs in zip(found, expected):
        assert_same(ours, theirs)
    # The second image ran the graphs of the first: no shape depends on what is found.
    half = len(stand_in.runs) // 2
    assert half > 0 and stand_in.runs[:half] == stand_in.runs[half:]
    assert len(stand_in.graphs) <= half


def assert_same(ours, theirs):
    """Hold the stand-in's detections, whose convolutions are exact, against those of float32 sums.

    Measured with five kinds of BLAS: 2.5e-5 pixels, 4.5e-6, 3e-7, and 4e-5 of keypoints.
    """
    assert len(ours) == len(theirs) > 0 and ours.size == theirs.size
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    for name, tolerance in (('boxes', 1e-4), ('scores', 1e-5), ('mask_probs', 1e-6), ('keypoints', 1e-4)):
        own, other = getattr(ours, name), getattr(theirs, name)
        assert (own is None) == (other is None)
        if own is not None:
            assert own.dtype == other.dtype == np.float32
            np.testing.assert_allclose(own, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    'model',
    ['resnet50_fpn', *(pytest.param(name, marks=pytest.mark.slow) for name in ('resnet50', 'mobilenet_v1_fpn'))],
    indirect=True,
)
def test_batches_are_those_of_the_cpu(model, rng, request, monkeypatch):
    """Images of one size run through each graph together; all that is found comes back at once."""
    images = [rng.uniform(0, 255, (3, 64, side)).astype('f') for side in (90, 90, 50)]
    expected = model.detect(images)
    stand_in = request.getfixturevalue('on_gpu')
    waits, wait = [], AsyncHostCopy.wait
    monkeypatch.setattr(AsyncHostCopy, 'wait', lambda self: waits.append(len(self._rows)) or wait(self))
    found = model.detect(images, batch_size=2)
    assert waits == [2, 1]
    n_runs = len(stand_in.runs)
    for ours, theirs in zip(found, expected):
        assert_same(ours, theirs)
    model.detect(images[:1])
    assert 2 * (len(stand_in.runs) - n_runs) == n_runs


@pytest.mark.slow
def test_keypoints_come_back_too(rng, request):
    np.random.seed(0)
    model = mask_rcnn.build(
        'keypoint_resnet50_fpn', min_size=64, max_size=96, rpn_pre_nms=50, rpn_post_nms=5, max_detections=3
    )
    for path, parameter in model.namedparams():
        if path.endswith('conv3/norm/scale'):
            parameter.array[...] = 0.2
    model.rpn.delta.W.array[...] *= 0.1
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    request.getfixturevalue('on_gpu')
    for ours, theirs in zip(model.detect(images), expected):
        assert ours.mask_probs is None
        assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_the_next_batch_is_begun_before_the_last_is_waited_for(model, rng, on_gpu, monkeypatch):
    """And no image is taken before it is needed for that."""
    events = []
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    for owner, name in ((model, 'extract'), (model, 'postprocess'), (AsyncHostCopy, 'wait')):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, name=name, method=method: events.append(name) or method(*args))

    def images():
        for _ in range(5):
            events.append('image')
            yield image

    assert len(model.detect(images(), batch_size=2)) == 5
    begin, finish = ['image', 'image', 'extract'], ['wait', 'postprocess', 'postprocess']
    assert events == [*begin, *begin, *finish, 'image', 'extract', *finish, 'wait', 'postprocess']
    events.clear()
    assert len(model.detect(images())) == 5
    assert events == ['image'] * 4 + ['extract', 'image', 'extract', 'wait'] + ['postprocess'] * 4 + [
        'wait',
        'postprocess',
    ]


@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_masks_are_pasted_where_the_model_is(model, rng, on_gpu, monkeypatch):
    """By the GPU's kernels, as long as the detections stay with it."""
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    (found,) = model.detect([image])
    assert found.device == model.device
    kept = pickle.loads(pickle.dumps(found))
    assert kept.device is None and copy.copy(found).device is None
    expected = kept.masks, kept[:0].encode_masks(), kept.encode_masks()
    used = []
    for ours, theirs in (('paste_cpu', paste_masks.paste_gpu), ('runs_cpu', paste_masks.runs_gpu)):
        monkeypatch.setattr(
            paste_masks, ours, lambda *args, theirs=theirs: used.append(len(args[0].probs)) or theirs(*args)
        )
    assert found[1:].device == found.device
    for ours, theirs in zip((found.masks, found[:0].encode_masks(), model.detect([image])[0].encode_masks()), expected):
        np.testing.assert_array_equal(ours, theirs)
    assert used == [len(found)] * 2


@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_half_precision_stays_half_until_the_end(model, rng, request, on_gpu):
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    (full,) = model.detect([image])
    with cudnn_frontend.using_precision('fp16'):
        x, transform = model.prepare(image)
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            maps = model.extract(x)
        (half,) = model.detect([image])
    assert {features.dtype for features in maps} == {np.dtype('f2')}
    assert half.boxes.dtype == half.scores.dtype == half.mask_probs.dtype == np.float32
    assert len(half) == len(full) > 0
    np.testing.assert_array_equal(half.labels, full.labels)
    # Measured: 9e-4, 0.008 and 2e-4.
    np.testing.assert_allclose(half.scores, full.scores, rtol=0, atol=2e-3)
    np.testing.assert_allclose(half.boxes, full.boxes, rtol=0, atol=0.02)
    np.testing.assert_allclose(half.mask_probs, full.mask_probs, rtol=0, atol=5e-4)


@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 5e-7), ('fp16', 1.2e-3), ('bf16', 1e-2)])
def test_gradients_of_layers(on_gpu, rng, precision, tolerance, monkeypatch):
    """Parameters and gradients stay float32 in every precision (measured, of the largest number: 2e-7, 5e-4, 4e-3)."""
    from mask_rcnn.ops.conv import convolution as ops_convolution

    for node in (
        ops_convolution.Convolution2DFunction,
        ops_convolution.ConvolutionGradX,
        ops_convolution.ConvolutionGradW,
    ):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    np.random.seed(0)
    x = rng.uniform(-1, 1, (2, 4, 4, 4)).astype('f')
    layers = [
        convolution.Convolution2D(4, 6, 3, pad=1),
        convolution.Deconvolution2D(4, 6, 2, stride=2),
        convolution.Linear(64, 6),
    ]
    plain = [chainer.links.Convolution2D, chainer.links.Deconvolution2D, chainer.links.Linear]
    for layer, kind in zip(layers, plain):
        gradients = []
        for forward in (layer.forward, lambda v: chainer.functions.relu(kind.forward(layer, v))):
            layer.cleargrads()
            image = chainer.Variable(x)
            with cudnn_frontend.using_precision(precision):
                y = layer(image, relu=True) if forward == layer.forward else forward(image)
                y.grad = np.ones_like(y.array)
                y.backward()
            gradients.append((y.array, image.grad, layer.W.grad, layer.b.grad))
            assert {array.dtype for array in (layer.W.array, *gradients[-1])} == {np.dtype('f4')}
        for ours, expected in zip(*gradients):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        with chainer.no_backprop_mode(), cudnn_frontend.using_precision(precision):
            np.testing.assert_allclose(
                layer(x, relu=True).array, gradients[1][0], rtol=0, atol=tolerance * np.abs(gradients[1][0]).max()
            )


@pytest.mark.parametrize(
    ('norm', 'residual', 'relu'),
    [('affine', True, True), ('affine', False, False), ('bn', True, True), ('bn', False, True)],
)
def test_a_frozen_normalisation_is_part_of_the_convolution(rng, request, norm, residual, relu):
    """Forward and backward in one node each; the same numbers as link after link."""
    np.random.seed(0)
    link = conv_norm.ConvNorm(4, 6, 3, stride=2, pad=1, norm=norm)
    for parameter in link.norm.params():
        parameter.array[...] = rng.uniform(0.5, 1.5, parameter.shape)
    _freeze_parameters(link.norm)
    if norm == 'bn':
        link.norm.avg_mean[...], link.norm.avg_var[...] = rng.uniform(0.5, 1.5, (2, 6))
        link.bn_frozen = True
    inputs = [rng.uniform(-1, 1, shape).astype('f') for shape in ((2, 4, 5, 6), (2, 6, 3, 3))]
    gy = rng.uniform(-1, 1, (2, 6, 3, 3)).astype('f')

    def run():
        link.cleargrads()
        x, other = map(chainer.Variable, inputs)
        y = link(x, relu=relu, residual=other if residual else None)
        y.grad = gy
        y.backward()
        return [y.array, x.grad, link.conv.W.grad] + [other.grad] * residual

    expected = run()
    stand_in = request.getfixturevalue('on_gpu')
    for ours, theirs in zip(run(), expected):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)  # measured: 7e-7 of numbers up to 6
    assert stand_in.runs == [['conv'] + ['add'] * residual + ['bias'] + ['relu'] * relu, ['dgrad'], ['wgrad']]


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(model, rng):
    """Noise of 3e-6 of the deviation after every convolution, as Winograd in float32 has it, gives 4e-4, 2e-5
    and 2e-6 (calculated with the stand-in).
    """
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    model.to_device('@cupy:0')
    for ours, theirs in zip(model.detect(images), expected):
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=5e-5)
        np.testing.assert_allclose(ours.mask_probs, theirs.mask_probs, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
