"""Detections on a GPU in every dialect: those of the CPU, with and without CUDA graphs."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.runtime.cuda_graph import CapturedFunction
from tests.support.gpu_networks import NETWORKS, make_network

#: Maximum absolute and relative differences of float32 sums in another order, for each field of detections.  With
#: relative noise of 3e-6 after every convolution, as in float32 Winograd, the stand-in gives errors of 4e-5 (boxes),
#: 2e-5 (scores), 1e-6 (masks) and 1e-2 (keypoints, whose logits and probabilities may be large).
TOLERANCES = {'boxes': (1e-3, 0), 'scores': (5e-5, 0), 'mask_probs': (1e-5, 0), 'keypoints': (1e-3, 1e-3)}


@pytest.fixture
def gpu():
    """Return a function that moves a network to the GPU."""
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')

    def move(model):
        model.to_device('@cupy:0')
        return model

    return move


def make_images(rng, n, size=(64, 90)):
    return [rng.uniform(0, 255, (3, *size)).astype('f') for _ in range(n)]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for gpu, cpu in zip(found, expected, strict=True):
        assert len(gpu) == len(cpu) > 0 and gpu.size == cpu.size
        np.testing.assert_array_equal(gpu.labels, cpu.labels)
        for name, (atol, rtol) in TOLERANCES.items():
            array, other = getattr(gpu, name), getattr(cpu, name)
            assert (array is None) == (other is None)
            if array is not None:
                assert array.dtype == other.dtype == np.float32
                np.testing.assert_allclose(array, other, rtol=rtol, atol=atol, err_msg=name)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for detections, others in zip(found, expected, strict=True):
        for name in ('boxes', 'labels', 'scores', 'mask_probs', 'keypoints'):
            np.testing.assert_array_equal(getattr(detections, name), getattr(others, name), err_msg=name)


#: Those with the fewest parts in common.
FAST = ('dena', 'keypoints_torchvision')


@pytest.mark.parametrize(
    'name', [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in FAST)]
)
def test_detections_of_the_emulated_gpu_equal_those_of_the_cpu(name, rng, request):
    model, images = make_network(name), make_images(rng, 2)
    expected = model.detect(images)
    request.getfixturevalue('on_gpu')
    assert_close(model.detect(images, batch_size=2), expected)


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_detections_equal_those_of_the_cpu(name, rng, gpu):
    model, images = make_network(name), make_images(rng, 2)
    expected = model.detect(images)
    with chainer.using_config('cuda_graphs', False):
        assert_close(gpu(model).detect(images, batch_size=2), expected)


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_graphs_change_no_detection(name, rng, gpu, caplog, monkeypatch):
    """For two sizes that alternate; without a limit, the number of detections cannot be captured."""
    replayed, replay = [], CapturedFunction.__call__
    monkeypatch.setattr(CapturedFunction, '__call__', lambda self, x: replayed.append(id(self)) or replay(self, x))
    model, images = gpu(make_network(name)), make_images(rng, 8)
    images[1::3] = make_images(rng, 3, (80, 50))
    with chainer.using_config('cuda_graphs', False):
        expected = model.detect(images, batch_size=1)
    assert replayed == []
    assert_equal(model.detect(images, batch_size=1), expected)
    assert [record.message for record in caplog.records if 'without CUDA graphs' in record.message] == []
    assert len(set(replayed)) == (2 if model.config.max_detections else 0)


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['detectron', 'dena', 'keypoints_torchvision'])
def test_sixteen_images_in_one_pass(name, rng, gpu):
    """To join more than eight arrays, CuPy copies their addresses to the GPU."""
    model, images = make_network(name), make_images(rng, 16)
    expected = model.detect(images)
    assert_close(gpu(model).detect(images, batch_size=16), expected)
