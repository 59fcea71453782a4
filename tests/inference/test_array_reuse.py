"""Predictions on the CPU reuse the memory of their activations."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DENA, MATTERPORT, TORCHVISION
from mask_rcnn.inference import predictor
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.host_memory import _Lease
from tests.support import models

FIELDS = ('boxes', 'labels', 'scores', 'mask_probs', 'keypoints')


@pytest.fixture
def reused(monkeypatch):
    """The number of reused blocks, as a list.  Small arrays are reused as well, and unused memory is overwritten."""
    sizes, take, put = [], array_pool.ArrayPool._take, array_pool.ArrayPool._return

    def counting_take(pool, n_bytes):
        block = take(pool, n_bytes)
        if block is not None:
            sizes.append(n_bytes)
        return block

    def overwriting_return(pool, block):
        block.fill(0xFF)  # NaN
        put(pool, block)

    monkeypatch.setattr(array_pool, '_MIN_BYTES', 1)
    monkeypatch.setattr(array_pool.ArrayPool, '_take', counting_take)
    monkeypatch.setattr(array_pool.ArrayPool, '_return', overwriting_return)
    return sizes


@pytest.fixture
def images(rng):
    return [rng.uniform(0, 255, (3, *size)).astype(np.float32) for size in ((48, 60), (48, 60), (70, 50))]


def without_pool(detect, monkeypatch):
    """Return the result of ``detect`` with NumPy's arrays only."""
    with monkeypatch.context() as patch:
        patch.setattr(predictor, 'reuse_arrays', nullcontext)
        patch.setattr(array_pool, '_aligned_empty', np.empty)
        return detect()


def assert_equal(found, expected):
    """Compare lists of detections to the bit."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def owner(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize(
    ('preset', 'changes'),
    [
        pytest.param('resnet50', {}, marks=pytest.mark.slow),
        ('resnet50', {'dialect': DENA}),
        ('resnet50_fpn', {'dialect': TORCHVISION}),
        ('resnet50_fpn', {'dialect': MATTERPORT, 'max_size': 128}),
        pytest.param('resnext50_32x4d_fpn', {}, marks=pytest.mark.slow),
        ('mobilenet_v1_fpn', {}),
        pytest.param('keypoint_resnet50_fpn', {}, marks=pytest.mark.slow),
    ],
)
def test_detections_are_those_without_reuse(preset, changes, images, reused, monkeypatch):
    """To the bit; they do not change while the memory of their prediction is reused by the next ones."""
    model = models.small_model(preset, **{**models.VERY_NARROW, **changes})
    expected = without_pool(lambda: model.detect(images), monkeypatch)
    assert not reused and sum(map(len, expected)) > 0
    found = model.detect(images)
    assert len(reused) > 20
    model.detect(images[::-1])
    assert_equal(found, expected)
    # The fields keep no more memory than they need.
    for detections in found:
        for field in FIELDS:
            assert not isinstance(owner(getattr(detections, field)), _Lease), field


def test_a_stream_of_batches(small_fpn_model, images, reused, monkeypatch):
    """The caller's code between the batches does not run in the context, and earlier results do not change."""
    stream = images * 2
    expected = without_pool(lambda: list(Predictor(small_fpn_model).iter_detections(stream, batch_size=2)), monkeypatch)
    found = []
    for detections in Predictor(small_fpn_model).iter_detections(stream, batch_size=2):
        assert chainer.config.array_pool is None
        found.append(detections)
        small_fpn_model.detect(images[:1])
    assert reused
    assert_equal(found, expected)


def test_submitted_batches_do_not_share_memory(small_fpn_model, images, reused):
    """As on a GPU, where a batch is submitted before the detections of the previous one are read."""
    predictor_ = Predictor(small_fpn_model)
    expected = [predictor_.detect([image])[0] for image in images]
    submitted = []
    for image in images:
        x, transform = predictor_.prepare(image)
        submitted.extend(predictor_._submit_batch([x], [transform]))
    found = [detections for batch in submitted for detections in predictor_._finish_batch(*batch)]
    assert_equal(found, expected)


def test_threads_of_the_user(small_fpn_model, images, reused):
    expected = [small_fpn_model.detect([image])[0] for image in images]
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            found = list(threads.map(lambda image: small_fpn_model.detect([image])[0], images))
            assert_equal(found, expected)


def test_a_failed_prediction_keeps_no_memory(small_fpn_model, images, reused, monkeypatch):
    pools, head = [], small_fpn_model.box_head

    def fail(*args, **kwargs):
        pools.append(chainer.config.array_pool)
        raise MemoryError('no memory')

    monkeypatch.setattr(head, 'forward', fail)
    with pytest.raises(MemoryError):
        small_fpn_model.detect(images[:2], batch_size=2)
    assert len(set(map(id, pools))) == len(pools) >= 2  # the whole batch and its first half
    assert all(not pool._unused for pool in pools) and chainer.config.array_pool is None
