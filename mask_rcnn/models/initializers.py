"""Initial weights of the layers: random, or none in a network whose weights are read from a file."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import chainer
import chainer.initializers as I

#: Whether random weights are left out; a context variable, so that other threads are not affected.
_left_out: contextvars.ContextVar[bool] = contextvars.ContextVar('left_out', default=False)


@contextlib.contextmanager
def no_initial_weights() -> Iterator[None]:
    """Leave the weights of the networks that are built in the context undefined.

    The 44 million random numbers of a ResNet-50 FPN network take longer than reading its weights.  Every weight must
    be assigned afterwards.  The random state of NumPy does not change.
    """
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


class _Random(chainer.Initializer):
    """An initializer of Chainer's that does nothing in :func:`no_initial_weights`.

    Args:
        fill: Writes random values to an array.
        groups: Number of groups of output channels that are filled one after the other.
    """

    def __init__(self, fill: Callable, groups: int = 1) -> None:
        super().__init__()
        self._fill, self._groups = fill, groups

    def __call__(self, array) -> None:
        if _left_out.get():
            return
        if self._groups == 1:
            self._fill(array)
            return
        n = len(array) // self._groups
        for start in range(0, len(array), n):
            self._fill(array[start : start + n])


def normal(scale: float) -> chainer.Initializer:
    """Return an initializer of normally distributed weights.

    Args:
        scale: Standard deviation.
    """
    return _Random(I.Normal(scale))


def he_normal(fan_option: str = 'fan_in', groups: int = 1) -> chainer.Initializer:
    """Return an initializer of normally distributed weights that keeps the variance of activations or of gradients.

    He et al., "Delving Deep into Rectifiers", 2015, equations 10 and 14.

    Args:
        fan_option: ``'fan_in'`` for activations, ``'fan_out'`` for gradients.
        groups: Number of groups of a grouped convolution, each of which has its own fan.
    """
    return _Random(I.HeNormal(fan_option=fan_option), groups)


def glorot_uniform() -> chainer.Initializer:
    """Return an initializer of uniformly distributed weights (Glorot and Bengio 2010, equation 16)."""
    return _Random(I.GlorotUniform())
