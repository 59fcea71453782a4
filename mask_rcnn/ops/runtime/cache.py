"""What is computed once for many predictions, from parameters, or once an image, from its feature maps."""

from __future__ import annotations

import chainer

_BY_IDENTITY = (chainer.Link, *chainer.get_array_types())

chainer.global_config.weight_cache = None
chainer.global_config.feature_cache = None


def cache_weights():
    """Return a context in which no parameter changes, so that what is derived from them is computed once.

    Filters in another layout or type, or with a scale folded into them, are kept for its duration, on this
    thread: open it around predictions that belong together, not around updates.  An inner one adds to what the
    outer one keeps.

        with cache_weights():
            for image in images:
                model.detect([image])
    """
    known = chainer.config.weight_cache
    return chainer.using_config('weight_cache', {} if known is None else known)


def cache_features():
    """Return a context in which :func:`cached` remembers what depends on feature maps; open it for each image."""
    return chainer.using_config('feature_cache', {})


def cached(make, *sources, scope: str = 'weights'):
    """Return ``make(*sources)``; inside :func:`cache_weights` the same object for the same sources.

    Args:
        make: A function without any other input.
        sources: Arrays and links, which are told apart by identity and kept alive, or hashable constants.
        scope: ``'weights'`` remembers inside :func:`cache_weights`; ``'features'``, for sources among which there is
            a feature map, inside :func:`cache_features`.
    """
    known = chainer.config.feature_cache if scope == 'features' else chainer.config.weight_cache
    if known is None:
        return make(*sources)
    key = (make, *(id(source) if isinstance(source, _BY_IDENTITY) else source for source in sources))
    if key not in known:
        known[key] = sources, make(*sources)
    return known[key][1]
