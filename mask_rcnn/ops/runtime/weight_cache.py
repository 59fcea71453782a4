"""Values derived from weights that are kept between predictions, as long as the weights have the same values.

Optimizers, loaders and users change weights in place, and Chainer keeps no record of it.  Therefore the weights are
hashed on the GPU before the values are used again; the 140 MB of R-50-C4 take about 0.1 ms.
"""

from __future__ import annotations

import contextlib
import operator
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.cache import cache_weights

#: Elements that a block hashes, and its threads (hash.cu).
_SEGMENT_SIZE, _THREADS = 1 << 14, 256


@contextlib.contextmanager
def keep_weight_cache(link: Any) -> Iterator[None]:
    """Return a context like :func:`~mask_rcnn.ops.runtime.cache.cache_weights` that keeps its cache for the next one.

    The next context of the link on this thread opens the same cache if all weights of the link have the same values.
    The cache is deleted with the link, and by :func:`drop_weight_cache`.  It keeps up to as much memory as the weights,
    in the precision ``fp32`` also four times that of the 3x3 weights (for Winograd convolution), and that of CUDA
    graphs.  On the CPU, without ``chainer.config.cuda_graphs`` and inside of another context, this is
    :func:`~mask_rcnn.ops.runtime.cache.cache_weights`.

    Args:
        link: A :class:`chainer.Link`, the network.
    """
    arrays = weights_of(link) if chainer.config.weight_cache is None and chainer.config.cuda_graphs else []
    kept = _kept.by_link.get(link)
    is_same = kept is not None and kept.has_arrays(arrays)  # and therefore hashable
    if not is_same and (not arrays or not all(map(_is_hashable, arrays))):
        if chainer.config.weight_cache is None:
            drop_weight_cache(link)
        with cache_weights():
            yield
        return
    if kept is None or not is_same or not kept.is_valid():
        drop_weight_cache(link)  # first, because it may hold much memory
        kept = _kept.by_link[link] = _KeptCache(arrays)
    with chainer.using_config('weight_cache', kept.cache):
        yield


def drop_weight_cache(link: Any) -> None:
    """Delete the cache of a link that :func:`keep_weight_cache` has kept on this thread."""
    _kept.by_link.pop(link, None)


class _KeptCaches(threading.local):
    def __init__(self):
        self.by_link: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


_kept = _KeptCaches()


class _KeptCache:
    """A weight cache, and the identities and the hash of the weights for which it is valid."""

    def __init__(self, arrays: list[Array]):
        self.cache: dict = {}
        self._arrays = arrays
        self._segments = _Segments(arrays)
        self._hash = self._segments.hash()

    def has_arrays(self, arrays: list[Array]) -> bool:
        """Return whether the weights are the same arrays."""
        return len(arrays) == len(self._arrays) and all(map(operator.is_, arrays, self._arrays))

    def is_valid(self) -> bool:
        """Return whether the weights have the same values; synchronises."""
        return np.array_equal(self._segments.hash(), self._hash)


class _Segments:
    """The weights in segments of at most ``_SEGMENT_SIZE`` elements.

    Args:
        arrays: Contiguous arrays of elements of 4 bytes on one GPU, which must outlive the object.
    """

    def __init__(self, arrays: list[Array]):
        self._device = chainer.backend.get_device_from_array(*arrays)
        segments = [
            (_address(array) + 4 * start, min(_SEGMENT_SIZE, array.size - start))
            for array in arrays
            for start in range(0, array.size, _SEGMENT_SIZE)
        ]
        with chainer.using_device(self._device):
            self._addresses, self._sizes = (
                self._device.send(np.array(column, dtype))
                for column, dtype in zip(zip(*segments, strict=True), (np.uint64, np.int32), strict=True)
            )

    def hash(self) -> np.ndarray:
        """Return the hash of each segment, uint64; synchronises."""
        with chainer.using_device(self._device):
            hashes = self._device.xp.empty(self._sizes.shape, np.uint64)
            cuda_kernels.kernel('runtime/hash.cu', 'hash_segments')(
                (len(hashes),), (_THREADS,), (self._addresses, self._sizes, hashes)
            )
            return cuda.to_cpu(hashes)


def weights_of(link: Any) -> list[Array]:
    """Return the initialised parameters and the persistent arrays of a link, in an order fixed for the process."""
    array_types = chainer.get_array_types()
    values, links = [], [link]
    for child in links:  # a loop, because Chainer's recursive generators take several times as long
        entries = child.__dict__
        for name in child._params:
            values.append(entries[name].raw_array)
        for name in child._persistent:
            values.append(entries[name])
        children = entries.get('_children', ())
        links.extend(children if type(children) is list else map(entries.__getitem__, children))
    return [value for value in values if isinstance(value, array_types)]


def _is_hashable(array: Array) -> bool:
    return isinstance(array, cuda.ndarray) and array.itemsize == 4 and array.flags.c_contiguous


def _address(array: Array) -> int:
    return array.data.ptr
