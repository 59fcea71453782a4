"""Inference as a CUDA graph on a GPU: the same bits as without, in any order of images."""

import re

import chainer
import numpy as np
import pytest

from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.runtime import cuda_graph
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.ops.runtime.cuda_graph import CapturedFunction
from tests.support.models import small_model

pytestmark = pytest.mark.gpu

MODELS = ['resnet50', 'resnet50_fpn', 'mobilenet_v1_fpn', 'keypoint_resnet50_fpn']
FIELDS = ('boxes', 'labels', 'scores', 'mask_probs', 'keypoints')


@pytest.fixture(params=MODELS)
def model(request, caplog):
    """A network on the GPU; a failed capture, which only logs a warning, is an error."""
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    options = {'n_fg_class': 1} if 'keypoint' in request.param else {}
    if 'mobile' in request.param:
        options['width'] = 0.25
    model = small_model(request.param, rpn_pre_nms=300, rpn_post_nms=50, score_threshold=0.01, **options)
    model.to_device('@cupy:0')
    yield model
    failures = [record.message for record in caplog.get_records('call') if 'the capture failed' in record.message]
    assert failures == []


@pytest.fixture
def replays(monkeypatch):
    """Shapes of the replayed inputs."""
    shapes, replay = [], CapturedFunction.__call__
    monkeypatch.setattr(CapturedFunction, '__call__', lambda self, x: shapes.append(x.shape) or replay(self, x))
    return shapes


def make_images(rng, n, size=(64, 90)):
    return [rng.uniform(0, 255, (3, *size)).astype('f') for _ in range(n)]


def detect_without_graphs(model, images, **options):
    with chainer.using_config('cuda_graphs', False):
        return model.detect(images, **options)


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for detections, other in zip(found, expected, strict=True):
        assert len(detections) == len(other)
        for name in FIELDS:
            array, other_array = getattr(detections, name), getattr(other, name)
            assert (array is None) == (other_array is None)
            if array is not None:
                np.testing.assert_array_equal(array, other_array, err_msg=name)


def capture(model, image):
    """Capture without the fallback, so that the traceback names the operation that cannot be captured."""
    predictor = Predictor(model)
    x, transform = predictor.prepare(image)
    graph = None

    def run(function, x, key, owner):
        nonlocal graph
        with cache_weights():
            result = function(x)
            graph = CapturedFunction(function, x, cuda_graph.GraphMemory())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mask_rcnn.inference.predictor.run_as_graph', run)
        list(predictor._submit_batch([x], [transform]))
    return graph


@pytest.mark.parametrize('precision', ['fp32', 'tf32', 'fp16', 'bf16'])
def test_network_can_be_captured(model, rng, precision):
    """No node copies from or to the host: the graph would read memory of the host that may have changed."""
    (image,) = make_images(rng, 1)
    with cudnn_frontend.using_precision(precision):
        graph = capture(model, image)
    description = graph._graph.debug_dot_str(chainer.backends.cuda.cupy.cuda.runtime.cudaGraphDebugDotFlagsVerbose)
    assert description.count('KERNEL') > 50
    assert re.search('HtoD|DtoH|HostToDevice|DeviceToHost', description) is None


def test_replays_equal_runs_without_graphs(model, rng, replays):
    images = make_images(rng, 6)
    expected = detect_without_graphs(model, images, batch_size=1)
    assert replays == []
    assert_equal(model.detect(images, batch_size=1), expected)
    assert len(replays) == 4  # after the first image and the capture


@pytest.mark.parametrize('model', MODELS[:2], indirect=True)
def test_sizes_may_alternate(model, rng, replays):
    """The anchors of a graph survive images of other sizes, and graphs of different sizes share memory."""
    images = [*make_images(rng, 3), *make_images(rng, 1, (90, 64)), *make_images(rng, 3)] * 3
    images += [*make_images(rng, 2), *make_images(rng, 2, (90, 64)), *make_images(rng, 1, (64, 64))]
    expected = detect_without_graphs(model, images, batch_size=1)
    assert_equal(model.detect(images, batch_size=1), expected)
    assert len(set(replays)) >= 2


@pytest.mark.parametrize('model', MODELS[:2], indirect=True)
def test_batches_in_flight(model, rng, replays):
    """A batch is replayed before the detections of the previous one are read."""
    images = make_images(rng, 16)
    expected = detect_without_graphs(model, images, batch_size=2)
    with cache_weights():
        detections = model.iter_detections(iter(images), batch_size=2)
        found = [next(detections) for _ in range(5)]
        assert_equal(model.detect(images[:2]), expected[:2])
        found += detections
    assert_equal(found, expected)
    assert {shape[0] for shape in replays} == {2}


@pytest.mark.parametrize('model', MODELS[:2], indirect=True)
def test_single_images_are_replayed(model, rng, replays):
    """Graphs outlive a call of ``detect``."""
    images = make_images(rng, 5)
    expected = detect_without_graphs(model, images, batch_size=1)
    assert_equal([model.detect([image])[0] for image in images], expected)
    assert len(replays) == 3


@pytest.mark.parametrize('model', MODELS[:2], indirect=True)
def test_changed_weights_are_used(model, rng, replays):
    images = make_images(rng, 4)
    before = model.detect(images, batch_size=1)
    assert len(replays) == 2
    for parameter in model.box_head.params():
        parameter.array *= 1.5
    found = [model.detect([image])[0] for image in images]
    assert len(replays) == 4
    assert any(len(new) != len(old) or (new.scores != old.scores).any() for new, old in zip(found, before, strict=True))
    assert_equal(found, detect_without_graphs(model, images, batch_size=1))
    model.detect(images, batch_size=1)
    model.to_device('@numpy')
    model.to_device('@cupy:0')
    assert_equal(model.detect(images[:1]), found[:1])
    assert len(replays) == 6


@pytest.mark.parametrize('model', MODELS[:1], indirect=True)
def test_precision_is_part_of_the_key(model, rng, replays):
    images = make_images(rng, 3)
    with cache_weights():
        model.detect(images, batch_size=1)
        assert len(replays) == 1
        with cudnn_frontend.using_precision('fp16'):
            half = model.detect(images[:1])
        assert len(replays) == 1
        with cudnn_frontend.using_precision('fp16'):
            assert_equal(half, detect_without_graphs(model, images[:1]))


@pytest.mark.parametrize('model', MODELS[:1], indirect=True)
def test_memory_does_not_grow(model, rng):
    """A replay allocates the input, and the copy on the host.

    The memory of other processes on the GPU counts as well, but only a leak grows in each of several rounds.
    """
    cupy = chainer.backends.cuda.cupy
    images = make_images(rng, 4)

    def used_memory(n_calls):
        for _ in range(n_calls):
            model.detect(images, batch_size=2)
        cupy.cuda.Device().synchronize()
        free, total = cupy.cuda.runtime.memGetInfo()
        return total - free, cupy.get_default_memory_pool().total_bytes()

    with cache_weights():
        growth = []
        used, pool = used_memory(n_calls=6)
        while len(growth) < 5 and (not growth or growth[-1] > 0):
            before = used
            used, pool_after = used_memory(n_calls=44)
            assert pool_after <= pool
            growth.append(used - before)
    assert growth[-1] <= 0, f'{growth} bytes more in successive rounds'


@pytest.mark.parametrize('model', MODELS[:1], indirect=True)
def test_work_on_another_stream(model, rng):
    images = make_images(rng, 4)
    expected = detect_without_graphs(model, images, batch_size=1)
    with chainer.backends.cuda.cupy.cuda.Stream(non_blocking=True):
        found = model.detect(images, batch_size=1)
    assert_equal(found, expected)
