"""Errors during a run as one line, and the state that an update which fails must leave unchanged."""

from __future__ import annotations

import traceback
from typing import Any

import chainer
import chainer.links as L
import numpy as np
from chainer import serializers

from mask_rcnn.io.console import escape
from mask_rcnn.ops.runtime.array import get_array_module

_MAX_CHARACTERS = 500


def describe_error(error: BaseException) -> str:
    """Return an error as one line.

    The messages of this package's errors are complete; those of other errors get their type and the place in this
    package.
    """
    text = escape(' '.join(str(error).split())[:_MAX_CHARACTERS])
    if isinstance(error, MemoryError):  # also CuPy's OutOfMemoryError
        return 'not enough memory (more --subdivisions or a smaller --min-size need less)' + f': {text}' * bool(text)
    if isinstance(error, OSError) and error.strerror:
        return escape(f'{error.filename}: {error.strerror}' if error.filename else error.strerror)
    if type(error).__module__.startswith('mask_rcnn.') and text:
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if 'mask_rcnn' in f.filename]
    place = f' (at {frames[-1].filename}:{frames[-1].lineno})' if frames else ''
    return f'{type(error).__name__}{f": {text}" if text else ""}{place}'


class StateBeforeUpdate:
    """The state that the computation of a gradient changes: the iterator's position and running statistics.

    Args:
        iterator: The iterator.
        link: The link whose batch normalisations have the statistics.
    """

    def __init__(self, iterator: chainer.dataset.Iterator, link: chainer.Link):
        self._iterator = iterator
        fixed = {id(child.norm) for child in link.links() if getattr(child, 'bn_frozen', False)}
        self._norms = [
            child for child in link.links() if isinstance(child, L.BatchNormalization) and id(child) not in fixed
        ]
        self._position: dict[str, np.ndarray] = {}
        self._statistics: Any = None  # all running statistics in one array, which a GPU copies with one kernel

    def save(self) -> None:
        """Copy the state."""
        serializer = serializers.DictionarySerializer()
        serializer.save(self._iterator)
        self._position = serializer.target
        statistics = [array.reshape(-1) for array in self._running_statistics()]
        self._statistics = get_array_module(statistics[0]).concatenate(statistics) if statistics else None

    def restore(self) -> None:
        """Restore the last copy."""
        serializers.NpzDeserializer(self._position).load(self._iterator)
        self.restore_statistics()

    def restore_statistics(self) -> None:
        """Restore the last copy of the running statistics, but not the iterator."""
        stop = 0
        for array in self._running_statistics():
            start, stop = stop, stop + array.size
            array[...] = self._statistics[start:stop].reshape(array.shape)

    def _running_statistics(self) -> list[Any]:
        return [array for norm in self._norms for array in (norm.avg_mean, norm.avg_var)]
