"""The module ``cudnn``: ``tests/support/cudnn_stand_in.py`` on the streams of the stand-in for CuPy.

Its sums are float64; with ``CUPY_STAND_IN_SUMS=float32`` they take half the time and round more than those of cuDNN.
"""

from __future__ import annotations

import functools
import os
import types

import numpy as np

from tests.support.cupy_stand_in import streams


@functools.cache
def _names() -> types.SimpleNamespace:
    from tests.support import cudnn_stand_in  # imports Chainer

    class Pygraph(cudnn_stand_in.NewPygraph):
        def _execute(self, pointers, workspace, handle):
            cudnn_stand_in.STAND_IN.stream = streams.get_current_stream().ptr
            (out,) = [tensor for tensor in self.tensors if tensor.output]

            execute = super()._execute

            def run():
                cudnn_stand_in.STAND_IN.stream = handle.stream
                execute(pointers, workspace, handle)

            assert handle.stream == cudnn_stand_in.STAND_IN.stream
            streams.submit(run, [streams.target(out.memory(pointers[out.uid]))])

    cudnn_stand_in.StandIn.sum_type = np.dtype(os.environ.get('CUPY_STAND_IN_SUMS', 'float64')).type
    return cudnn_stand_in.module(Pygraph)


class _Module(types.ModuleType):
    """The module, whose names are made when one of them is read."""

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)
        return getattr(_names(), name)


MODULE = _Module('cudnn')
