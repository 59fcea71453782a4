"""Vectors of floats as variables, for loops that Numba compiles.

LLVM vectorises the innermost loop of a function and keeps one vector of it in a register.  A matrix multiplication
needs a dozen vectors of sums in registers at once, so that each value is loaded once for several products.  Here a
vector is a value that a compiled function can name.

The functions are called from functions compiled by :func:`mask_rcnn.ops.runtime.parallel.jit`.  An index counts the
elements in memory from the first one of a contiguous array of any shape, and is not checked: a row of an array would be
a view, whose count of references costs more than the vector.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import errors, types
from numba.core.cgutils import get_or_insert_function
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import models
from numba.extending import register_model


def _vector_bytes() -> int:
    """Return the size of a vector: that of a register of AVX-512 or AVX2.

    Where registers are smaller, a vector takes several.  The size is part of a compiled kernel, and the key of a cached
    kernel contains the features for which Numba compiles.  Environment variables can select other features than those
    of this processor: those that the computers with a common cache have, for example.
    """
    config: Any = numba.config
    features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return 64 if '+avx512f' in features.split(',') else 32


#: Size of a vector.
VECTOR_BYTES = _vector_bytes()

_INT32 = ir.IntType(32)
#: Without Numba's annotation, which has the parameter of the compiler that a call does not have.
intrinsic: Any = numba.extending.intrinsic


def lanes(dtype: Any) -> int:
    """Return the number of elements of a vector of a floating-point type."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


class Vector(types.Type):
    """The type of a vector.

    Args:
        dtype: Numba's type of the elements, a floating-point type.
    """

    def __init__(self, dtype: Any):
        self.dtype, self.lanes = dtype, VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f'Vector({dtype}, {self.lanes})')


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


@intrinsic
def load(typingctx, array, index):
    """Return the vector of the elements that begin at an index."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        return builder.load(_pointer(context, builder, array, *args), align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic
def store(typingctx, array, index, vector):
    """Write a vector to the elements that begin at an index."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, array, *args[:2])
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def fill(typingctx, value):
    """Return the vector whose elements have one value."""

    def generate(context, builder, signature, args):
        vector = context.get_value_type(signature.return_type)
        undefined = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(undefined, args[0], ir.Constant(_INT32, 0))
        return builder.shuffle_vector(first, undefined, _indices([0] * vector.count))

    return Vector(value)(value), generate


@intrinsic
def add(typingctx, a, b):
    """Return ``a + b`` of two vectors."""

    def generate(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, a), generate


@intrinsic
def maximum(typingctx, a, b):
    """Return the larger elements of two vectors, and NaN where ``a`` is NaN."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered('<', *args), args[1], args[0])

    return a(a, a), generate


@intrinsic
def multiply_add(typingctx, a, b, c):
    """Return ``a * b + c`` of three vectors, rounded once on CPUs that have such an instruction."""

    def generate(context, builder, signature, args):
        vector = args[0].type
        name = f'llvm.fmuladd.v{vector.count}f{c.dtype.bitwidth}'
        function = get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        return builder.call(function, args)

    return c(c, c, c), generate


@intrinsic
def even_lanes(typingctx, a, b):
    """Return the elements with an even index of two vectors, one after the other."""

    def generate(context, builder, signature, args):
        return builder.shuffle_vector(*args, _indices(list(range(0, 2 * a.lanes, 2))))

    return a(a, a), generate


@intrinsic
def sum_lanes(typingctx, vector):
    """Return the sum of the elements: each half is added to the other until one element is left."""

    def generate(context, builder, signature, args):
        (value,) = args
        undefined, n = ir.Constant(value.type, ir.Undefined), vector.lanes
        while n > 1:
            n //= 2
            upper = builder.shuffle_vector(value, undefined, _indices([*range(n, 2 * n)] + [0] * (vector.lanes - n)))
            value = builder.fadd(value, upper)
        return builder.extract_element(value, ir.Constant(_INT32, 0))

    return vector.dtype(vector), generate


def _check_contiguous(array_type: Any) -> None:
    """Raise a TypingError unless the elements of an array follow each other in memory."""
    if array_type.layout != 'C':
        raise errors.TypingError(f'a vector needs a contiguous array, not {array_type}')


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of the vector that begins at an index of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = context.get_value_type(Vector(array_type.dtype))
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _indices(values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, len(values)), values)
