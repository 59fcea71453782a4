"""Weight caches that outlive a prediction: when they are kept, and the hash of the weights."""

import gc
import threading
import weakref

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import weight_cache
from mask_rcnn.ops.runtime.cache import cache_weights, cached
from mask_rcnn.ops.runtime.weight_cache import drop_weight_cache, keep_weight_cache


@pytest.fixture
def on_gpu(monkeypatch, emulated_kernels):
    """Take NumPy arrays for CuPy arrays."""
    monkeypatch.setattr(weight_cache, '_is_hashable', lambda array: array.itemsize == 4)
    monkeypatch.setattr(weight_cache, '_address', lambda array: array.ctypes.data)


def make_link():
    return chainer.Sequential(
        chainer.links.Linear(300, 200), chainer.links.BatchNormalization(200), chainer.links.Linear(200, 1)
    )


@pytest.fixture
def link():
    return make_link()


def derive(array):
    return [array.copy()]


def is_kept(link, change):
    """Return whether a value is still cached after a change of the link."""
    values = []
    for _ in range(2):
        with keep_weight_cache(link):
            values.append(cached(derive, link[0].W.array))
        if len(values) == 1:
            change()
    return values[0] is values[1]


def test_cache_is_kept_while_the_weights_have_the_same_values(on_gpu, link):
    assert is_kept(link, lambda: None)
    assert chainer.config.weight_cache is None
    assert is_kept(link, lambda: link[0].W.array.__setitem__(..., link[0].W.array.copy()))


def swap(array):
    """Swap two values, which keeps every sum."""
    flat = array.reshape(-1)
    flat[[7, 20000]] = flat[[20000, 7]]


@pytest.mark.parametrize(
    'change',
    [
        lambda link: link[2].b.array.__setitem__(0, 1e-30),
        lambda link: swap(link[0].W.array),
        lambda link: np.negative(link[0].W.array[-1:], out=link[0].W.array[-1:]),
        lambda link: link[1].avg_var.__setitem__(199, 2),
        lambda link: setattr(link[2].W, 'array', link[2].W.array.copy()),
        lambda link: link.append(chainer.links.Linear(1, 1)),
        drop_weight_cache,
    ],
)
def test_cache_is_deleted_after_a_change(on_gpu, link, change):
    assert not is_kept(link, lambda: change(link))
    assert is_kept(link, lambda: None)


def test_cache_is_deleted_with_the_link(on_gpu):
    link = make_link()
    with keep_weight_cache(link):
        weight = weakref.ref(cached(derive, link[0].W.array)[0])
    assert weight() is not None
    del link
    gc.collect()
    assert weight() is None


def test_cache_of_an_outer_context_is_used(on_gpu, link):
    with cache_weights():
        outer = chainer.config.weight_cache
        with keep_weight_cache(link):
            assert chainer.config.weight_cache is outer


def test_threads_have_separate_caches(on_gpu, link):
    caches = []

    def open_cache():
        with keep_weight_cache(link):
            caches.append(chainer.config.weight_cache)

    threads = [threading.Thread(target=open_cache) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    open_cache()
    assert caches[0] is not caches[1] is not caches[2] is not caches[0]


def test_nothing_is_kept_on_the_cpu_or_without_graphs(link, request):
    assert not is_kept(link, lambda: None)
    request.getfixturevalue('on_gpu')
    assert is_kept(link, lambda: None)
    with chainer.using_config('cuda_graphs', False):
        assert not is_kept(link, lambda: None)
    assert not weight_cache._kept.by_link


@pytest.mark.gpu
def test_changes_on_a_gpu_are_found(link):
    link.to_device('@cupy:0')
    assert is_kept(link, lambda: None)
    for array, value in ((link[2].b.array, 1e-30), (link[0].W.array[199], 1), (link[1].avg_mean, 1e-38)):
        assert not is_kept(link, lambda array=array, value=value: array.__setitem__(-1, value))
    assert is_kept(link, lambda: None)
    link.to_device('@numpy')
    assert not is_kept(link, lambda: None)
