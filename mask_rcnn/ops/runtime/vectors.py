"""Vectors of floats as variables, for loops that Numba compiles.

LLVM vectorises the innermost loop of a function and keeps one vector of it in a register.  A matrix multiplication
needs a dozen vectors of sums in registers at once, so that each value is loaded once for several products.  Here a
vector is a value that a compiled function can name.

The functions are called from functions compiled by :func:`mask_rcnn.ops.runtime.parallel.jit`.  An index counts the
elements in memory from the first one of a contiguous array of any shape, and is not checked: a row of an array would be
a view, whose count of references costs more than the vector.
"""

from __future__ import annotations

from collections.abc import Iterator
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
#: For functions that need the values of constants.
constant_intrinsic: Any = numba.extending.intrinsic(prefer_literal=True)


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
def load_first(typingctx, array, index, n):
    """Return the vector of the ``n`` elements that begin at an index, followed by zeros; no others are read."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        pointer, mask = (
            _pointer(context, builder, array, *args[:2]),
            _first_lanes(builder, args[2], signature.return_type.lanes),
        )
        vector = pointer.type.pointee
        name = f'llvm.masked.load.v{vector.count}f{array.dtype.bitwidth}.p0'
        function_type = ir.FunctionType(vector, [pointer.type, _INT32, mask.type, vector])
        function = get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, [pointer, _alignment(array), mask, ir.Constant(vector, None)])

    return Vector(array.dtype)(array, types.intp, types.intp), generate


@intrinsic
def store_first(typingctx, array, index, n, vector):
    """Write the first ``n`` elements of a vector to those that begin at an index."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        pointer, mask = _pointer(context, builder, array, *args[:2]), _first_lanes(builder, args[2], vector.lanes)
        name = f'llvm.masked.store.v{vector.lanes}f{array.dtype.bitwidth}.p0'
        function_type = ir.FunctionType(ir.VoidType(), [args[3].type, pointer.type, _INT32, mask.type])
        function = get_or_insert_function(builder.module, function_type, name)
        builder.call(function, [args[3], pointer, _alignment(array), mask])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, vector), generate


@intrinsic
def prefetch(typingctx, array, index):
    """Begin to load the cache line of the element at an index, to read or write it; it may lie outside of the array."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(_element_pointer(context, builder, array, *args), byte)
        function_type = ir.FunctionType(ir.VoidType(), [byte, *[_INT32] * 3])
        function = get_or_insert_function(builder.module, function_type, 'llvm.prefetch.p0')
        builder.call(function, [pointer, *(ir.Constant(_INT32, value) for value in (1, 3, 1))])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@intrinsic
def fill(typingctx, value):
    """Return the vector whose elements have one value."""

    def generate(context, builder, signature, args):
        return _fill(builder, args[0], context.get_value_type(signature.return_type))

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
        return _multiply_add(builder, *args)

    return c(c, c, c), generate


@constant_intrinsic
def repeat(typingctx, value, n):
    """Return a tuple that contains a vector or a tuple ``n`` times; ``n`` is a constant."""
    if not isinstance(n, types.IntegerLiteral):
        raise errors.TypingError(f'the length of a tuple of vectors must be a constant, not {n}')

    def generate(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, [args[0]] * n.literal_value)

    return types.UniTuple(value, n.literal_value)(value, n), generate


@intrinsic
def add_outer_product(typingctx, sums, factors, first_factor, array, index):
    """Return sums to which the products of factors and vectors are added, each factor times each vector.

    ``sums`` contains a tuple of vectors for each factor.  The factors are elements of the array ``factors``, beginning
    at ``first_factor``; the vectors are adjacent in ``array``, beginning at ``index``.
    """
    _check_contiguous(factors)
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        totals, *place, vectors, first = args
        vector, row_type = sums.dtype.dtype, sums.dtype
        value_type, element_bytes = context.get_value_type(vector), array.dtype.bitwidth // 8
        steps = [first.type(v * vector.lanes) for v in range(row_type.count)]
        pointers = [_pointer(context, builder, array, vectors, builder.add(first, step)) for step in steps]
        values = [builder.load(pointer, align=element_bytes) for pointer in pointers]
        rows = []
        for c in range(sums.count):
            index = builder.add(place[1], first.type(c))
            factor = builder.load(_element_pointer(context, builder, factors, place[0], index))
            row = builder.extract_value(totals, c)
            products = [
                _multiply_add(builder, _fill(builder, factor, value_type), value, builder.extract_value(row, v))
                for v, value in enumerate(values)
            ]
            rows.append(context.make_tuple(builder, row_type, products))
        return context.make_tuple(builder, signature.return_type, rows)

    return sums(sums, factors, types.intp, array, types.intp), generate


@intrinsic
def store_rows(typingctx, array, index, step, rows):
    """Write tuples of vectors to an array: row ``i`` begins at the element ``index + i * step``."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        for pointer, vector in _row_pointers(context, builder, signature, args):
            builder.store(vector, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, rows), generate


@intrinsic
def add_to_rows(typingctx, array, index, step, rows):
    """Add tuples of vectors to an array; see :func:`store_rows`."""
    _check_contiguous(array)

    def generate(context, builder, signature, args):
        for pointer, vector in _row_pointers(context, builder, signature, args):
            total = builder.load(pointer, align=array.dtype.bitwidth // 8)
            builder.store(builder.fadd(total, vector), pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, rows), generate


@intrinsic
def even_lanes(typingctx, a, b):
    """Return the elements with an even index of two vectors, one after the other."""

    def generate(context, builder, signature, args):
        return builder.shuffle_vector(*args, _indices(list(range(0, 2 * a.lanes, 2))))

    return a(a, a), generate


@intrinsic
def odd_lanes(typingctx, a, b):
    """Return the elements with an odd index of two vectors, one after the other."""

    def generate(context, builder, signature, args):
        return builder.shuffle_vector(*args, _indices(list(range(1, 2 * a.lanes, 2))))

    return a(a, a), generate


@intrinsic
def interleave_lower(typingctx, a, b):
    """Return the elements of the lower halves of two vectors in turns: ``a[0], b[0], a[1], b[1]`` ..."""

    def generate(context, builder, signature, args):
        return builder.shuffle_vector(*args, _indices([i + j for i in range(a.lanes // 2) for j in (0, a.lanes)]))

    return a(a, a), generate


@intrinsic
def interleave_upper(typingctx, a, b):
    """Return the elements of the upper halves of two vectors in turns."""

    def generate(context, builder, signature, args):
        halves = range(a.lanes // 2, a.lanes)
        return builder.shuffle_vector(*args, _indices([i + j for i in halves for j in (0, a.lanes)]))

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
    vector = context.get_value_type(Vector(array_type.dtype))
    return builder.bitcast(_element_pointer(context, builder, array_type, array, index), vector.as_pointer())


def _row_pointers(context: Any, builder: Any, signature: Any, args: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the address and the value of each vector of :func:`store_rows`."""
    array_type, _, _, rows_type = signature.args
    array, index, step, rows = args
    for i in range(rows_type.count):
        row, row_index = builder.extract_value(rows, i), builder.add(index, builder.mul(step, index.type(i)))
        for v in range(rows_type.dtype.count):
            place = builder.add(row_index, index.type(v * rows_type.dtype.dtype.lanes))
            yield _pointer(context, builder, array_type, array, place), builder.extract_value(row, v)


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of an element of an array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _fill(builder: Any, value: Any, vector: Any) -> Any:
    """Return the vector of LLVM's type ``vector`` whose elements have one value."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, _indices([0] * vector.count))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` of three vectors."""
    vector = a.type
    name = f'llvm.fmuladd.v{vector.count}{"f32" if vector.element == ir.FloatType() else "f64"}'
    function = get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
    return builder.call(function, [a, b, c])


def _indices(values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT32, len(values)), values)


def _alignment(array_type: Any) -> ir.Constant:
    return ir.Constant(_INT32, array_type.dtype.bitwidth // 8)


def _first_lanes(builder: Any, n: Any, n_lanes: int) -> Any:
    """Return the mask of the first ``n`` of ``n_lanes`` lanes."""
    indices = ir.Constant(ir.VectorType(n.type, n_lanes), list(range(n_lanes)))
    undefined = ir.Constant(indices.type, ir.Undefined)
    first = builder.insert_element(undefined, n, ir.Constant(_INT32, 0))
    return builder.icmp_signed('<', indices, builder.shuffle_vector(first, undefined, _indices([0] * n_lanes)))
