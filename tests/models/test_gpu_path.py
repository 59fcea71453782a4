"""The GPU's path through the network on the CPU: padded arrays, cuDNN's stand-in and emulated kernels."""

import copy
import pickle

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON, DETECTRON2, PRESETS
from mask_rcnn.inference import predictor
from mask_rcnn.models import layers
from mask_rcnn.models.backbones import resnet
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.masks import paste_masks
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy
from mask_rcnn.training.freezing import _freeze_parameters
from tests.support.models import shallow_model

#: Limits for the emulated GPU, which is slow.
FEW = {'rpn_pre_nms': 50, 'rpn_post_nms': 5, 'max_detections': 3, 'score_threshold': 0.05}


@pytest.fixture(params=['resnet50', pytest.param('resnet50_fpn', marks=pytest.mark.slow), 'mobilenet_v1_fpn'])
def model(request):
    return shallow_model(request.param, width=0.25 if 'mobile' in request.param else 1.0, **FEW)


def test_detections_equal_those_of_the_cpu(model, rng, request):
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    stand_in = request.getfixturevalue('on_gpu')
    with cache_weights():
        found = model.detect(images, batch_size=1)
    for gpu, cpu in zip(found, expected, strict=True):
        assert_same(gpu, cpu)
    # The second image used the graphs of the first: no shape depends on the detections.
    half = len(stand_in.runs) // 2
    assert half > 0 and stand_in.runs[:half] == stand_in.runs[half:]
    assert len(stand_in.graphs) <= half


@pytest.mark.parametrize('roi_size', [7, pytest.param(14, marks=pytest.mark.slow)])
def test_detections_without_a_limit_equal_those_of_the_cpu(rng, request, roi_size):
    """In the dialect of DeNA's program, the number of rows depends on the detections."""
    config = PRESETS['resnet50'].in_dialect(DENA)
    fields = {name: getattr(config, name) for name in ('dialect', 'sampling_ratio', 'rpn_min_size', 'max_detections')}
    model = shallow_model('resnet50', **{**FEW, **fields}, roi_size=roi_size)
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    request.getfixturevalue('on_gpu')
    for gpu, cpu in zip(model.detect(images, batch_size=2), expected, strict=True):
        assert_same(gpu, cpu)


def assert_same(gpu, cpu):
    """Compare detections from the stand-in, whose convolutions are exact, with detections from float32 sums.

    Measured with five kinds of BLAS: boxes 2.5e-5 pixels, scores 4.5e-6, masks 3e-7, keypoints 4e-5.
    """
    assert len(gpu) == len(cpu) > 0 and gpu.size == cpu.size
    np.testing.assert_array_equal(gpu.labels, cpu.labels)
    for name, tolerance in (('boxes', 1e-4), ('scores', 1e-5), ('mask_probs', 1e-6), ('keypoints', 1e-4)):
        array, expected = getattr(gpu, name), getattr(cpu, name)
        assert (array is None) == (expected is None)
        if array is not None:
            assert array.dtype == expected.dtype == np.float32
            np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    'model',
    ['resnet50_fpn', *(pytest.param(name, marks=pytest.mark.slow) for name in ('resnet50', 'mobilenet_v1_fpn'))],
    indirect=True,
)
def test_batches_equal_those_of_the_cpu(model, rng, request, monkeypatch):
    """Images of one size use each graph together, and their results are copied to the host together."""
    images = [rng.uniform(0, 255, (3, 64, side)).astype('f') for side in (90, 90, 50)]
    expected = model.detect(images)
    stand_in = request.getfixturevalue('on_gpu')
    waits, wait = [], AsyncHostCopy.wait
    monkeypatch.setattr(AsyncHostCopy, 'wait', lambda self: waits.append(len(self._rows)) or wait(self))
    found = model.detect(images, batch_size=2)
    assert waits == [2, 1]
    n_runs = len(stand_in.runs)
    for gpu, cpu in zip(found, expected, strict=True):
        assert_same(gpu, cpu)
    model.detect(images[:1])
    assert 2 * (len(stand_in.runs) - n_runs) == n_runs


@pytest.mark.slow
@pytest.mark.parametrize('in_input', [False, True])
def test_keypoints_equal_those_of_the_cpu(rng, request, in_input):
    changes = {'keypoints': DETECTRON2.keypoints, 'detections': {'postprocess_in_input_space': True}}
    dialect = DETECTRON.replace(**changes) if in_input else DETECTRON
    model = shallow_model('keypoint_resnet50_fpn', n_fg_class=1, dialect=dialect, **FEW)
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    request.getfixturevalue('on_gpu')
    for gpu, cpu in zip(model.detect(images), expected, strict=True):
        assert gpu.mask_probs is None
        assert_same(gpu, cpu)


@pytest.mark.slow
@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_a_batch_starts_before_the_previous_one_is_finished(model, rng, on_gpu, monkeypatch):
    """Images are read when their batch is started."""
    events = []
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    for owner, name in ((model, 'forward'), (predictor.Predictor, 'postprocess'), (AsyncHostCopy, 'wait')):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, name=name, method=method: events.append(name) or method(*args))

    def images():
        for _ in range(5):
            events.append('image')
            yield image

    assert len(model.detect(images(), batch_size=2)) == 5
    start, finish = ['image', 'image', 'forward'], ['wait', 'postprocess', 'postprocess']
    assert events == [*start, *start, *finish, 'image', 'forward', *finish, 'wait', 'postprocess']
    events.clear()
    assert len(model.detect(images())) == 5
    assert events == ['image'] * 4 + ['forward', 'image', 'forward', 'wait'] + ['postprocess'] * 4 + [
        'wait',
        'postprocess',
    ]


@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_masks_are_encoded_on_the_models_device(model, rng, on_gpu, monkeypatch):
    """The GPU's kernels find the runs of detections that are not copied or pickled; the CPU pastes the masks."""
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    (found,) = model.detect([image])
    assert found.paste_device == model.device
    kept = pickle.loads(pickle.dumps(found))
    assert kept.paste_device is None and copy.copy(found).paste_device is None
    expected = kept.masks, kept[:0].encode_masks(), kept.encode_masks()
    used, runs_gpu = [], paste_masks.runs_gpu
    monkeypatch.setattr(
        paste_masks, 'runs_cpu', lambda spec, *size: used.append(len(spec.probs)) or runs_gpu(spec, *size)
    )
    assert found[1:].paste_device == found.paste_device
    pasted = found.masks, found[:0].encode_masks(), model.detect([image])[0].encode_masks()
    for gpu, cpu in zip(pasted, expected, strict=True):
        np.testing.assert_array_equal(gpu, cpu)
    assert used == [len(found)]


@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_an_image_must_be_finite(model, value, on_gpu):
    image = np.zeros((3, 64, 90), np.float32)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match='an image array must not contain NaN or infinity'):
        model.detect([image])


@pytest.mark.parametrize('model', ['resnet50_fpn'], indirect=True)
def test_half_precision_ends_in_float32_detections(model, rng, request, on_gpu):
    image = rng.uniform(0, 255, (3, 64, 90)).astype('f')
    (full,) = model.detect([image])
    with cudnn_frontend.using_precision('fp16'):
        x, _ = predictor.Predictor(model).prepare(image)
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            maps = model.extractor(x)
        (half,) = model.detect([image])
    assert {features.dtype for features in maps} == {np.dtype('f2')}
    assert half.boxes.dtype == half.scores.dtype == half.mask_probs.dtype == np.float32
    assert len(half) == len(full) > 0
    np.testing.assert_array_equal(half.labels, full.labels)
    # Measured: scores 9e-4, boxes 0.008, masks 2e-4.
    np.testing.assert_allclose(half.scores, full.scores, rtol=0, atol=2e-3)
    np.testing.assert_allclose(half.boxes, full.boxes, rtol=0, atol=0.02)
    np.testing.assert_allclose(half.mask_probs, full.mask_probs, rtol=0, atol=5e-4)


@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 5e-7), ('fp16', 1.2e-3), ('bf16', 1e-2)])
def test_gradients_of_layers(on_gpu, rng, precision, tolerance, monkeypatch):
    """Parameters and gradients are float32 in every precision (measured relative errors: 2e-7, 5e-4, 4e-3)."""
    from mask_rcnn.ops.conv import convolution as ops_convolution

    for node in (
        ops_convolution.Convolution2DFunction,
        ops_convolution.ConvolutionGradX,
        ops_convolution.ConvolutionGradW,
    ):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    np.random.seed(0)
    x = rng.uniform(-1, 1, (2, 4, 4, 4)).astype('f')
    links = [
        layers.Convolution2D(4, 6, 3, pad=1),
        layers.Deconvolution2D(4, 6, 2, stride=2),
        layers.Linear(64, 6),
    ]
    plain = [chainer.links.Convolution2D, chainer.links.Deconvolution2D, chainer.links.Linear]
    for layer, kind in zip(links, plain, strict=True):
        gradients = []
        for is_chainers in (False, True):
            layer.cleargrads()
            image = chainer.Variable(x)
            with cudnn_frontend.using_precision(precision):
                y = chainer.functions.relu(kind.forward(layer, image)) if is_chainers else layer(image, relu=True)
                y.grad = np.ones_like(y.array)
                y.backward()
            gradients.append((y.array, image.grad, layer.W.grad, layer.b.grad))
            assert {array.dtype for array in (layer.W.array, *gradients[-1])} == {np.dtype('f4')}
        for array, expected in zip(*gradients, strict=True):
            np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        with chainer.no_backprop_mode(), cudnn_frontend.using_precision(precision):
            np.testing.assert_allclose(
                layer(x, relu=True).array, gradients[1][0], rtol=0, atol=tolerance * np.abs(gradients[1][0]).max()
            )


@pytest.mark.parametrize(
    ('norm', 'residual', 'relu'),
    [('affine', True, True), ('affine', False, False), ('bn', True, True), ('bn', False, True)],
)
def test_frozen_normalisation_is_fused_into_the_convolution(rng, request, norm, residual, relu):
    """Forward and backward are one graph each, with the results of the single links."""
    np.random.seed(0)
    link = layers.ConvNorm(4, 6, 3, stride=2, pad=1, norm=norm)
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
        x, shortcut = map(chainer.Variable, inputs)
        y = link(x, relu=relu, residual=shortcut if residual else None)
        y.grad = gy
        y.backward()
        return [y.array, x.grad, link.conv.W.grad] + [shortcut.grad] * residual

    expected = run()
    stand_in = request.getfixturevalue('on_gpu')
    for gpu, cpu in zip(run(), expected, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=2e-6)  # measured: 7e-7 for values up to 6
    assert stand_in.runs == [['conv'] + ['add'] * residual + ['bias'] + ['relu'] * relu, ['dgrad'], ['wgrad']]


@pytest.mark.parametrize('relu', [False, True])
def test_frozen_normalisation_after_pooling(rng, request, monkeypatch, relu):
    """The scale is part of the convolution; one kernel adds the bias, and one computes the derivative of ReLU."""
    np.random.seed(0)
    link = layers.ConvNorm(4, 8, 1, stride=2, norm='affine')
    for parameter in link.norm.params():
        parameter.array[...] = rng.uniform(-1.5, 1.5, parameter.shape)
    _freeze_parameters(link.norm)
    inputs, gy = rng.uniform(-1, 1, (2, 4, 9, 10)).astype('f'), rng.uniform(-1, 1, (3, 8, 4, 4)).astype('f')
    rois, indices = np.array([[0, 0, 60, 70], [9, 30, 80, 90], [3, 3, 20, 60]], 'f'), np.array([0, 1, -1], 'i')

    def run():
        link.cleargrads()
        x = chainer.Variable(inputs)
        pool = lambda features, *args, **epilogue: roi_align(  # noqa: E731
            features[0], *args, output_size=4, spatial_scale=1 / 16, **epilogue
        )
        y = resnet.PoolAfterConv(pool, rois[:n_rois], indices[:n_rois])(link, x, relu=relu)
        y.grad = gy[:n_rois]
        y.backward()
        return [y.array, x.grad, link.conv.W.grad]

    n_rois = 2
    expected = run()
    stand_in = request.getfixturevalue('on_gpu')
    monkeypatch.setattr(link, 'normalize', None)  # not called
    for gpu, cpu in zip(run(), expected, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=2e-6)
    n_rois = 3
    (padding,) = run()[0][2:]  # its features are 0 before the bias
    bias = link.norm.bias.array[:, None, None]
    np.testing.assert_array_equal(padding, np.broadcast_to(np.maximum(bias, 0) if relu else bias, padding.shape))
    assert stand_in.runs == [['matmul']] * 6  # three of each run


def test_fixed_statistics_with_trained_scale_and_offset(rng, request):
    """The convolution is one graph; gamma and beta get their gradients from the affine channel after it."""
    np.random.seed(0)
    link = layers.ConvNorm(4, 6, 3, stride=2, pad=1, norm='bn')
    for array in (*(parameter.array for parameter in link.norm.params()), link.norm.avg_mean, link.norm.avg_var):
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    link.bn_frozen = True
    inputs, gy = rng.uniform(-1, 1, (2, 4, 5, 6)).astype('f'), rng.uniform(-1, 1, (2, 6, 3, 3)).astype('f')

    def run():
        link.cleargrads()
        x = chainer.Variable(inputs)
        y = link(x, relu=True)
        y.grad = gy
        y.backward()
        return [y.array, x.grad, link.conv.W.grad, link.norm.gamma.grad, link.norm.beta.grad]

    expected = run()
    stand_in = request.getfixturevalue('on_gpu')
    for gpu, cpu in zip(run(), expected, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=5e-6)
    assert stand_in.runs == [['conv'], ['dgrad'], ['wgrad']]


@pytest.mark.gpu
def test_gpu_detections_equal_cpu_detections(model, rng):
    """With relative noise of 3e-6 after every convolution, as in float32 Winograd, the stand-in gives errors of 4e-4
    (boxes), 2e-5 (scores) and 2e-6 (masks).
    """
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    images = [rng.uniform(0, 255, (3, 64, 90)).astype('f') for _ in range(2)]
    expected = model.detect(images)
    model.to_device('@cupy:0')
    for gpu, cpu in zip(model.detect(images), expected, strict=True):
        assert len(gpu) == len(cpu) > 0
        np.testing.assert_allclose(gpu.boxes, cpu.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(gpu.scores, cpu.scores, rtol=0, atol=5e-5)
        np.testing.assert_allclose(gpu.mask_probs, cpu.mask_probs, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(gpu.labels, cpu.labels)


@pytest.mark.parametrize('precision', ['fp32', 'tf32'])
def test_the_stem_with_blocks_of_pixels_as_channels(rng, request, precision):
    x = rng.uniform(-1, 1, (1, 3, 64, 96)).astype('f')
    stem = resnet.Stem(64, pool_pad=1, norm='affine')
    with chainer.no_backprop_mode():
        expected = stem(x).array
        stand_in = request.getfixturevalue('on_gpu')
        with cudnn_frontend.using_precision(precision):
            np.testing.assert_allclose(stem(x).array, expected, rtol=0, atol=1e-5)
    (graph,) = stand_in.graphs
    assert graph.tensors[0].dim[1] == (3 if precision == 'fp32' else 12)
