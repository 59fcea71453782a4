"""The precision of multiplications on the GPU; sums are always float32.

The precision is an entry of Chainer's thread-local configuration, ``chainer.config.precision``, like
``chainer.config.train``: it determines how functions compute and does not change parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import chainer
import numpy as np


@dataclass(frozen=True, eq=False)
class Precision:
    """A precision of multiplications; one object per precision, compared by identity.

    Args:
        name: The value of ``--precision``.
        storage: Type of the arrays that cuDNN reads and writes: float32, float16, or uint16 for the bits of bfloat16,
            because NumPy and CuPy have no bfloat16.
        result: Type of the result of a convolution without a graph.  Float16 stays float16 until a layer needs
            float32; bfloat16 becomes float32, because only cuDNN can read it.
        tensor_cores: Whether float32 factors may be rounded to TF32 (10 bits of mantissa).
        capability: Minimum compute capability of the device, times ten.
    """

    name: str
    storage: np.dtype
    result: np.dtype
    tensor_cores: bool
    capability: int


_FLOAT32, _FLOAT16, _UINT16 = np.dtype('f4'), np.dtype('f2'), np.dtype('u2')

#: Precisions by name.  ``fp32`` is true float32: no tensor cores, and Winograd's algorithm only as on the CPU.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision('fp32', _FLOAT32, _FLOAT32, tensor_cores=False, capability=0),
        Precision('tf32', _FLOAT32, _FLOAT32, tensor_cores=True, capability=80),
        Precision('fp16', _FLOAT16, _FLOAT16, tensor_cores=True, capability=70),
        Precision('bf16', _UINT16, _FLOAT32, tensor_cores=True, capability=80),
    )
}

chainer.global_config.precision = 'fp32'  # type: ignore[attr-defined]  # Chainer accepts any entry


def current_precision() -> Precision:
    """Return the precision of the current configuration."""
    return PRECISIONS[chainer.config.precision]


@contextlib.contextmanager
def using_precision(name: str) -> Iterator[None]:
    """Use another precision inside a ``with`` block, on this thread.

    Args:
        name: A key of :data:`PRECISIONS`.

    Raises:
        ValueError: The precision does not exist.
    """
    if name not in PRECISIONS:
        raise ValueError(f'unknown precision {name!r}, expected one of {", ".join(PRECISIONS)}')
    with chainer.using_config('precision', name):
        yield


def precision_error(name: str, capability: int | None) -> str | None:
    """Return the reason why a device does not support a precision; ``None`` if it does.

    Args:
        name: A key of :data:`PRECISIONS`.
        capability: Compute capability of the GPU, times ten; ``None`` for the CPU.
    """
    if capability is None:
        return None if name == 'fp32' else f'{name} needs a GPU; the CPU supports only fp32'
    required = PRECISIONS[name].capability
    if capability < required:
        return f'{name} needs a GPU of compute capability {required / 10:.1f}; this one has {capability / 10:.1f}'
    return None
