"""Caches of values derived from weights (for a series of predictions) and from feature maps (for one batch)."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal

import chainer

#: Sources of these types are compared by identity.
_BY_IDENTITY = (chainer.Link, *chainer.get_array_types())

chainer.global_config.weight_cache = None  # type: ignore[attr-defined]  # Chainer accepts any entry
chainer.global_config.feature_cache = None  # type: ignore[attr-defined]
chainer.global_config.retained_values = None  # type: ignore[attr-defined]


def cache_weights():
    """Return a context that caches values derived from weights, during which no parameter may change.

    The cache keeps weights with another memory layout or type, or with a folded scale, on this thread and for the
    duration of the context.  Open it around predictions, not around updates.  A nested context shares the cache of the
    outer one.

        with cache_weights():
            for image in images:
                model.detect([image])
    """
    cache = chainer.config.weight_cache
    return chainer.using_config('weight_cache', {} if cache is None else cache)


def cache_features():
    """Return a context that caches values derived from the feature maps of one batch; open it for each batch."""
    return chainer.using_config('feature_cache', {})


def cached(make: Callable, *sources: Any, scope: Literal['weights', 'features'] = 'weights') -> Any:
    """Return ``make(*sources)``, cached inside of :func:`cache_weights`.

    Args:
        make: A function that depends only on ``sources``.
        sources: Arrays and links, compared by identity and kept alive by the cache, and hashable constants.
        scope: ``'features'`` if a source is a feature map: the value is cached inside of :func:`cache_features`.
    """
    cache = chainer.config.feature_cache if scope == 'features' else chainer.config.weight_cache
    if cache is None:
        return make(*sources)
    key = (make, *[id(source) if _is_by_identity(source.__class__) else source for source in sources])
    entry = cache.get(key)
    if entry is None:
        entry = cache[key] = sources, make(*sources)
    return entry[1]


@functools.cache
def _is_by_identity(source_type: type) -> bool:
    return issubclass(source_type, _BY_IDENTITY)


class LastValue(threading.local):
    """A value that each thread computes for itself, kept until the thread needs it for another key.

    Threads cannot evict the values of each other: a CUDA graph is captured without computing any.  Copies and pickles
    are empty.
    """

    _entry: tuple[Any, Any] | None = None

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key; it is that of ``make()`` if the last key of this thread was another one."""
        entry = self._entry
        if entry is None or entry[0] != key:
            entry = self._entry = key, make()
        return entry[1]

    def __reduce__(self) -> tuple:
        return type(self), ()


@contextlib.contextmanager
def retained_values() -> Iterator[list]:
    """Collect the values passed to :func:`retain` in a ``with`` block, on this thread."""
    values: list = []
    with chainer.using_config('retained_values', values):
        yield values


def retain(value: Any) -> Any:
    """Return ``value``, kept alive by the CUDA graph that is being captured, if any.

    For arrays on the GPU in a cache that may evict them while the graph still reads them.
    """
    if chainer.config.retained_values is not None:
        chainer.config.retained_values.append(value)
    return value
