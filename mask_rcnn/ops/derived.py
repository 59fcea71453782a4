"""What is computed from parameters, once for many predictions."""

from __future__ import annotations

import chainer

_BY_IDENTITY = (chainer.Link, *chainer.get_array_types())

chainer.global_config.derived_arrays = None


def constant_parameters():
    """Return a context in which no parameter changes, so that what is derived from them is computed once.

    Filters in another layout or type, or with a scale folded into them, are kept for its duration, on this
    thread: open it around predictions that belong together, not around updates.

        with constant_parameters():
            for image in images:
                model.detect([image])
    """
    return chainer.using_config('derived_arrays', {})


def derived(make, *sources):
    """Return ``make(*sources)``; inside :func:`constant_parameters` the same object for the same sources.

    Args:
        make: A function without any other input.
        sources: Arrays and links, which are told apart by identity and kept alive, or hashable constants.
    """
    known = chainer.config.derived_arrays
    if known is None:
        return make(*sources)
    key = (make, *(id(source) if isinstance(source, _BY_IDENTITY) else source for source in sources))
    if key not in known:
        known[key] = sources, make(*sources)
    return known[key][1]
