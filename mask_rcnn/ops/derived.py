"""What is computed once for many predictions, from parameters, or once an image, from its feature maps."""

from __future__ import annotations

import chainer

_BY_IDENTITY = (chainer.Link, *chainer.get_array_types())

chainer.global_config.derived_arrays = None
chainer.global_config.derived_of_image = None


def constant_parameters():
    """Return a context in which no parameter changes, so that what is derived from them is computed once.

    Filters in another layout or type, or with a scale folded into them, are kept for its duration, on this
    thread: open it around predictions that belong together, not around updates.  An inner one adds to what the
    outer one keeps.

        with constant_parameters():
            for image in images:
                model.detect([image])
    """
    known = chainer.config.derived_arrays
    return chainer.using_config('derived_arrays', {} if known is None else known)


def one_image():
    """Return a context in which :func:`derived` remembers what is ``of_image``; open it for each image."""
    return chainer.using_config('derived_of_image', {})


def derived(make, *sources, of_image: bool = False):
    """Return ``make(*sources)``; inside :func:`constant_parameters` the same object for the same sources.

    Args:
        make: A function without any other input.
        sources: Arrays and links, which are told apart by identity and kept alive, or hashable constants.
        of_image: Whether it is remembered inside :func:`one_image` instead, because a feature map is among the
            sources.
    """
    known = chainer.config.derived_of_image if of_image else chainer.config.derived_arrays
    if known is None:
        return make(*sources)
    key = (make, *(id(source) if isinstance(source, _BY_IDENTITY) else source for source in sources))
    if key not in known:
        known[key] = sources, make(*sources)
    return known[key][1]
