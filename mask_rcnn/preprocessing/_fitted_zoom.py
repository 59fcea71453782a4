"""The positions at which scikit-image 0.17 reads a resized image, to the last bit.

It does not write down the map from one size to another (``factor * (i + 0.5) - 0.5``): it fits an affine map
to three pairs of corners (``skimage/transform/_warps.py`` ``resize``, ``_geometric.py`` ``estimate``), as the
null vector of a 6 x 7 matrix that a singular value decomposition gives.  So positions are wrong by some
1e-14, and where an image's number ought to be whole, that decides whether it is cut off to the one below.

The decomposition is LAPACK's ``dgesdd``, and its sums round as OpenBLAS's kernels for processors with AVX2
add them up (``kernel/x86_64/dgemv_n_4.c``, ``dgemv_t_4.c``, ``dger.c``); others have other last bits.
This is their arithmetic, in plain Python: it has the same bits everywhere.
"""

from __future__ import annotations

import decimal
import functools
import math
import operator
from fractions import Fraction

import numpy as np


@functools.lru_cache(maxsize=1024)
def skimage_affine(size_in: tuple[int, int], size_out: tuple[int, int]):
    """Return how positions in an image follow from those in a resized one: ``factor * i + offset``.

    Args:
        size_in: Height and width of the image.
        size_out: Height and width of the resized image.

    Returns:
        tuple: For rows and for columns, the pair ``(factor, offset)`` of floats.
    """
    rows, columns = size_out
    factors = size_in[1] / columns, size_in[0] / rows
    if rows == 1 or columns == 1:  # three corners in a line: nothing to fit
        return tuple((factor, factor * 0.5 - 0.5) for factor in reversed(factors))
    theirs = [(0.0, 0.0), (0.0, rows - 1.0), (columns - 1.0, rows - 1.0)]  # x, y
    ours = [tuple(factor * (place + 0.5) - 0.5 for factor, place in zip(factors, corner)) for corner in theirs]
    source, source_points = _normalised(theirs)
    target, target_points = _normalised(ours)
    matrix = [[x, y, 1.0, 0.0, 0.0, 0.0, to_x] for (x, y), (to_x, _) in zip(source_points, target_points)]
    matrix += [[0.0, 0.0, 0.0, x, y, 1.0, to_y] for (x, y), (_, to_y) in zip(source_points, target_points)]
    vector = _null_vector(np.array(matrix))
    fit = [-value / vector[6] for value in vector[:6]]
    x, y = (_denormalised(fit[3 * axis : 3 * axis + 3], axis, source, target) for axis in (0, 1))
    return y, x


def _normalised(points):
    """Move points around their centroid and scale them to a mean distance of the root of 2.

    Returns:
        The scale and the two offsets that do so, and the points.
    """
    centroid = [_in_turn(values) / 3 for values in zip(*points)]
    distances = [value - middle for point in points for value, middle in zip(point, centroid)]
    scale = math.sqrt(2) / math.sqrt(_in_turn([distance * distance for distance in distances]) / 3)
    offsets = [-scale * middle for middle in centroid]
    return (scale, offsets), [[scale * value + offset for value, offset in zip(point, offsets)] for point in points]


def _denormalised(fit, axis: int, source, target):
    """Return one row's factor and offset, ``inverse(target) @ fit @ source``."""
    (scale, offsets), (target_scale, target_offsets) = source, target
    factor = fit[axis] * scale
    offset = _fma(fit[1], offsets[1], fit[0] * offsets[0]) + fit[2]
    inverse = 1 / target_scale
    return inverse * factor, inverse * offset - target_offsets[axis] * inverse


def _null_vector(a: np.ndarray) -> list[float]:
    """Return the last right singular vector of a wide matrix, one column wider than high.

    Of the decomposition only the reflectors matter that make the matrix bidiagonal from the right
    (LAPACK ``dgebd2``): the vector is the last unit vector, sent through them backwards.
    """
    m, n = a.shape
    reflectors = []
    for i in range(m):
        v, tau = _reflector(a[i, i:])
        reflectors.append((v, tau))
        _reflect_rows(a[i + 1 :, i:], v, tau)
        if i < m - 1:
            _reflect_columns(a[i + 1 :, i + 1 :], *_reflector(a[i + 1 :, i]))
    vector = np.zeros((1, n))
    vector[0, -1] = 1
    for i in reversed(range(m)):
        _reflect_rows(vector[:, i:], *reflectors[i])
    return vector[0].tolist()


def _reflector(x) -> tuple[np.ndarray, float]:
    """Return ``v`` and ``tau`` of the reflection that leaves of a vector its first number (``dlarfg``)."""
    norm = _norm(x[1:].tolist())
    if norm == 0:
        return np.array([1.0, *[0.0] * (len(x) - 1)]), 0.0
    first = float(x[0])
    large, small = max(abs(first), norm), min(abs(first), norm)
    beta = -math.copysign(large * math.sqrt(1 + (small / large) ** 2), first)
    return np.array([1.0, *(x[1:] * (1 / (first - beta)))]), (beta - first) / beta


def _norm(values) -> float:
    """``dnrm2``, which is x87 code: extended precision, rounded at the end."""
    with decimal.localcontext() as context:
        context.prec = 40
        return float(sum((decimal.Decimal(value) ** 2 for value in values), decimal.Decimal(0)).sqrt())


def _reflect_rows(c: np.ndarray, v: np.ndarray, tau: float) -> None:
    """``c -= tau * (c @ v) v'`` (``dlarf``, right), without the zeros at the end of ``v`` and ``c``."""
    c = c[:, : _end(v != 0)]
    c = c[: _end(c.any(axis=1))]
    sums = _matrix_times_vector(c.tolist(), v.tolist())
    for j in range(c.shape[1] if tau else 0):
        c[:, j] += -tau * v[j] * np.array(sums)


def _reflect_columns(c: np.ndarray, v: np.ndarray, tau: float) -> None:
    """``c -= tau * v (c' @ v)'`` (``dlarf``, left), without the zeros at the end of ``v`` and ``c``."""
    c = c[: _end(v != 0)]
    c = c[:, : _end(c.any(axis=0))]
    sums = [_dot(column, v.tolist()) for column in c.T.tolist()]
    for j in range(c.shape[1] if tau else 0):
        c[:, j] += -tau * sums[j] * v[: len(c)]


def _end(present: np.ndarray) -> int:
    """Return the number of entries up to the last that is true."""
    return int(np.flatnonzero(present)[-1]) + 1 if present.any() else 0


def _matrix_times_vector(c, v) -> list[float]:
    """``dgemv``: four rows at a time take four columns at once; what is left over is added up in turn."""
    by_four = len(c) & -4
    return [_row_in_fours(row, v) if i < by_four else _in_turn(map(operator.mul, row, v)) for i, row in enumerate(c)]


def _row_in_fours(row, v) -> float:
    total, begin = 0.0, 0
    if len(row) >= 4:
        total, begin = (_fma(row[2], v[2], row[0] * v[0]) + _fma(row[3], v[3], row[1] * v[1])), 4
    return _in_turn(map(operator.mul, row[begin:], v[begin:]), total)


def _in_turn(values, total: float = 0.0) -> float:
    """Add up, each sum rounded (from Python 3.12 on, :func:`sum` is more exact)."""
    for value in values:
        total += value
    return total


def _dot(column, v) -> float:
    """``dgemv`` with the transposed matrix: four numbers at a time, then what is left over."""
    total, begin = 0.0, 0
    if len(column) >= 4:
        total = (column[0] * v[0] + column[2] * v[2]) + (column[1] * v[1] + column[3] * v[3])
        begin = 4
    a, x = column[begin:], v[begin:]
    if len(a) == 1:
        return _fma(a[0], x[0], total)
    if len(a) == 2:
        return total + _fma(a[0], x[0], a[1] * x[1])
    if len(a) == 3:
        return total + _fma(a[2], x[2], _fma(a[0], x[0], a[1] * x[1]))
    return total


def _fma(a: float, b: float, c: float) -> float:
    """Return ``a * b + c``, rounded once (:func:`math.fma` is there from Python 3.13 on)."""
    return float(Fraction(a) * Fraction(b) + Fraction(c))
