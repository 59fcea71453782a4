"""Training in half precision on the GPU's path, on the CPU with cuDNN's stand-in and emulated kernels."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON2, TORCHVISION
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv import convolution as ops_convolution
from mask_rcnn.ops.roi import roi_align
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import NonFiniteLossError, SubdivisionUpdater
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example

NARROW = dict(rpn_channels=64, fpn_channels=64, head_channels=128, mask_channels=64)


@pytest.fixture
def training_on_gpu(on_gpu, monkeypatch):
    """NumPy arrays use the CuPy path in the backward pass as well."""
    monkeypatch.setattr(ops_convolution, 'choose_backend', lambda *arrays: ops_convolution.Backend.CUDNN)
    for node in (
        ops_convolution.Convolution2DFunction,
        ops_convolution.ConvolutionGradX,
        ops_convolution.ConvolutionGradW,
        roi_align._RoIAlignGrad,
    ):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    return on_gpu


def make_chain(extractor, monkeypatch, *, stages, **changes):
    """Return a narrow network, whose first ``stages`` stages are frozen."""
    use_narrow_resnet(monkeypatch)
    np.random.seed(0)
    model = mask_rcnn.build(extractor, n_fg_class=3, rpn_pre_nms=100, rpn_post_nms=20, **NARROW, **changes)
    freeze(model, stages=stages)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


def update(chain, precision, loss_scale=None, sizes=((64, 64), (64, 64)), n_updates=1):
    """Make updates with images of the sizes; return the optimizer and the parameters before the updates."""
    optimizer = make_optimizer(chain)
    set_learning_rate(optimizer, 0.001)
    examples = [example(*size, seed=seed) for seed, size in enumerate(sizes, start=1)]
    iterator = chainer.iterators.SerialIterator(examples, len(examples), shuffle=False)
    updater = SubdivisionUpdater(iterator, optimizer, loss_scale=loss_scale)
    before = {path: param.array.copy() for path, param in chain.namedparams()}
    reporter = chainer.Reporter()
    reporter.add_observer('main', chain)
    with cudnn_frontend.using_precision(precision), reporter:
        if loss_scale == 'dynamic':
            optimizer._loss_scale = 2.0**15  # the value after some iterations
        for _ in range(n_updates):
            updater.update()
    return optimizer, before


def share_rois(source, target):
    """Let two chains train with the RoIs that the first one samples; the second one still samples its own."""
    sampled, sample, sample_own = [], source.roi_targets, target.roi_targets

    def record(*arguments):
        sampled.append(sample(*arguments))
        return sampled[-1]

    def replay(*arguments):
        own, shared = sample_own(*arguments), sampled.pop(0)
        assert [len(rois) for rois in own] == [len(rois) for rois in shared]
        return shared

    source.roi_targets, target.roi_targets = record, replay


@pytest.mark.parametrize(
    ('extractor', 'norm', 'stages', 'side', 'tolerance'),
    [
        ('resnet50_fpn', 'affine', 2, 64, 0.12),
        pytest.param('mobilenet_v1_fpn', 'affine', 0, 64, 0.2, marks=pytest.mark.slow),
        pytest.param('resnet50_fpn', 'affine', 2, 128, 0.12, marks=pytest.mark.slow),
        pytest.param('resnet50', 'affine', 2, 80, 0.06, marks=pytest.mark.slow),
        pytest.param('resnet50', 'bn', 0, 80, 0.25, marks=pytest.mark.slow),
        pytest.param('resnet50_fpn', 'bn', 0, 128, 0.25, marks=pytest.mark.slow),
    ],
)
def test_an_update_is_close_to_float32(extractor, norm, stages, side, tolerance, monkeypatch, training_on_gpu):
    """With the same RoIs, because rounded scores select others.  Statistics of few locations amplify rounding."""
    check_update(extractor, monkeypatch, side, tolerance, stages=stages, norm=norm)


@pytest.mark.parametrize('dialect', [TORCHVISION, DETECTRON2], ids=['torchvision', 'detectron2'])
def test_an_update_in_other_dialects(dialect, monkeypatch, training_on_gpu):
    """With soft masks and smooth L1 (torchvision), and with polygons and L1 (detectron2)."""
    check_update('resnet50_fpn', monkeypatch, 64, 0.12, stages=2, norm='affine', dialect=dialect)


def check_update(extractor, monkeypatch, side, tolerance, **changes):
    """Compare an update in half precision with one in single precision."""
    single, half = (make_chain(extractor, monkeypatch, **changes) for _ in range(2))
    share_rois(single, half)
    sizes = [(side, side)] * 2
    _, before = update(single, 'fp32', sizes=sizes)
    update(half, 'fp16', loss_scale=128.0, sizes=sizes)
    expected = dict(single.namedparams())
    for path, param in half.namedparams():
        change, expected_change = param.array - before[path], expected[path].array - before[path]
        assert param.dtype == np.float32, path
        assert np.linalg.norm(change - expected_change) <= tolerance * np.linalg.norm(expected_change), path
        if param.requires_grad:
            assert param.grad.dtype == np.float32, path
        else:
            assert not change.any(), path
    assert any((param.array != before[path]).any() for path, param in half.namedparams())


def test_the_gradient_of_a_map_may_start_at_any_address(monkeypatch, training_on_gpu):
    """The gradient of P6, 2 x 1 locations after 510 others, is a slice at no multiple of 16 bytes; cuDNN rejects it."""
    chain = make_chain('resnet50_fpn', monkeypatch, stages=2)
    _, before = update(chain, 'fp16', loss_scale=128.0, sizes=[(96, 64)])
    assert any((param.array != before[path]).any() for path, param in chain.namedparams())


@pytest.mark.parametrize('stages', [0, 2])
def test_activations_are_float16_with_and_without_frozen_stages(stages, monkeypatch, training_on_gpu):
    chain = make_chain('resnet50_fpn', monkeypatch, stages=stages)
    images = [example(64, 64)]
    for precision, dtype in (('fp16', np.float16), ('bf16', np.float32), ('tf32', np.float32)):
        with cudnn_frontend.using_precision(precision):
            assert {features.dtype for features in chain.model.extractor(chain._input(images))} == {np.dtype(dtype)}


@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
def test_an_overflow_skips_the_update_and_halves_the_scale(extractor, monkeypatch, caplog, training_on_gpu):
    chain = make_chain(extractor, monkeypatch, stages=2)
    chain.gamma = 1e4  # multiplied by the loss scale, the gradient overflows in float16
    with np.errstate(all='ignore'):
        optimizer, before = update(chain, 'fp16', loss_scale='dynamic')
    assert optimizer.last_update_skipped and optimizer._loss_scale == 2.0**14
    assert all((param.array == before[path]).all() for path, param in chain.namedparams())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == 'iteration 1 is skipped: its gradient has overflowed; the loss scale is now 16384'


def test_dynamic_scaling_recovers_from_the_overflow_of_a_tiny_network(monkeypatch, caplog, training_on_gpu):
    """Batch normalisation over 2 x 1 locations multiplies gradients; times a fixed loss scale, float16 overflows."""
    with np.errstate(all='ignore'):
        chain = make_chain('resnet50_fpn', monkeypatch, stages=0, norm='bn')
        with pytest.raises(
            NonFiniteLossError, match='^iteration 1: the gradient is (nan|inf) with the loss scale 32768;'
        ):
            update(chain, 'fp16', loss_scale=2.0**15, sizes=[(32, 64)])
        chain = make_chain('resnet50_fpn', monkeypatch, stages=0, norm='bn')
        optimizer, before = update(chain, 'fp16', loss_scale='dynamic', sizes=[(32, 64)], n_updates=6)
    n_skipped = len(caplog.records)
    assert 0 < n_skipped < 6 and not optimizer.last_update_skipped
    assert 2.0 ** (15 - n_skipped) <= optimizer._loss_scale < 2.0 ** (15 - n_skipped) * 1.01
    after = {path: param.array for path, param in chain.namedparams()}
    assert all(np.isfinite(array).all() for array in after.values())
    assert any((after[path] != array).any() for path, array in before.items())
