"""In which numbers the GPU multiplies; sums are always float32.

The precision is an entry of Chainer's thread-local configuration, ``chainer.config.precision``, like
``chainer.config.train``: it changes how functions compute, not what the parameters are.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import chainer
import numpy as np


@dataclass(frozen=True)
class Precision:
    """One way to multiply.

    Args:
        name: What ``--precision`` calls it.
        storage: Type of the arrays that cuDNN reads and writes: float32, float16, or uint16 for the bits of
            bfloat16, which NumPy and CuPy do not know.
        result: Type of what a convolution returns when no gradient is wanted.  Float16 stays float16 until a
            layer needs more; bfloat16 becomes float32, because nobody but cuDNN could read it.
        tensor_cores: Whether float32 factors may be rounded to TF32 (10 bits of mantissa).
        capability: Least compute capability (times ten) of a device with such products.
    """

    name: str
    storage: np.dtype
    result: np.dtype
    tensor_cores: bool
    capability: int


_F4, _F2, _U2 = np.dtype('f4'), np.dtype('f2'), np.dtype('u2')

#: By name.  ``fp32`` is true float32: no tensor cores, and no Winograd transform that would cost digits.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision('fp32', _F4, _F4, tensor_cores=False, capability=0),
        Precision('tf32', _F4, _F4, tensor_cores=True, capability=80),
        Precision('fp16', _F2, _F2, tensor_cores=True, capability=70),
        Precision('bf16', _U2, _F4, tensor_cores=True, capability=80),
    )
}

chainer.global_config.precision = 'fp32'


def current_precision() -> Precision:
    """Return the precision that the configuration names."""
    return PRECISIONS[chainer.config.precision]


@contextlib.contextmanager
def using_precision(name: str):
    """Multiply in another precision inside a ``with`` block, on this thread.

    Args:
        name: One of :data:`PRECISIONS`.

    Raises:
        ValueError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise ValueError(f'unknown precision {name!r}; there are {", ".join(PRECISIONS)}')
    with chainer.using_config('precision', name):
        yield


def precision_error(name: str, capability: int | None) -> str | None:
    """Say why a device cannot multiply so; ``None`` if it can.

    Args:
        name: One of :data:`PRECISIONS`.
        capability: Compute capability of the GPU, times ten; ``None`` for the CPU.
    """
    if capability is None:
        return None if name == 'fp32' else f'{name} needs a GPU; on the CPU there is fp32 only'
    needed = PRECISIONS[name].capability
    if capability < needed:
        return f'{name} needs a GPU of compute capability {needed / 10:.1f}; this one has {capability / 10:.1f}'
    return None
