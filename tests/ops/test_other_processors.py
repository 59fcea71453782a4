"""Compiled CPU kernels on processors and systems that this computer does not have: Apple's, and Windows."""

import re

import numpy as np
import pytest

from mask_rcnn.ops.runtime import vectors
from mask_rcnn.ops.runtime.parallel import jit
from tests.ops import test_vectors
from tests.support.cross_compilation import TARGETS, assembly_of, called_functions, optimized_code

VALUES = np.zeros(256, np.float32)
ROWS = np.zeros((5, vectors.lanes('f')), np.float32)
KERNELS = {
    'compute': (test_vectors.compute, (VALUES, VALUES, vectors.lanes('f'), ROWS)),
    'rearrange': (test_vectors.rearrange, (VALUES, VALUES, vectors.lanes('f'), ROWS)),
    'prefetch': (test_vectors.prefetch_around, (VALUES,)),
    'masked': (test_vectors.copy_first, (VALUES, 0, 3, VALUES, 0)),
}
FUSED = re.compile(r'\b(?:fmla|fmadd|vfmadd\w+)\b')


@jit
def multiply_and_add(a, b, c, out):
    for i in range(len(out)):
        out[i] = a[i] * b[i] + c[i]


@pytest.fixture(scope='module')
def codes():
    return {name: optimized_code(kernel, *arguments) for name, (kernel, arguments) in KERNELS.items()}


@pytest.mark.parametrize('target', TARGETS)
def test_vectors_are_legal_on_other_processors(codes, target):
    """A vector that is longer than the registers takes several; no function of another library is called."""
    assemblies = {name: assembly_of(code, target) for name, code in codes.items()}
    for name, assembly in assemblies.items():
        assert called_functions(assembly) == set(), name
    assert ('prfm' in assemblies['prefetch']) == ('arm64' in TARGETS[target][0] or 'aarch64' in TARGETS[target][0])
    assert bool(FUSED.search(assemblies['compute'])) == (target != 'Windows, SSE2')


@pytest.mark.parametrize('target', TARGETS)
def test_plain_loops_round_products_and_sums_on_all_processors(target):
    """A product that a sum contains is rounded on arm64 as well, where compilers of C would fuse both."""
    code = optimized_code(multiply_and_add, *[VALUES] * 4)
    assembly = assembly_of(code, target)
    assert not FUSED.search(assembly) and re.search(r'\bv?(?:fmul|mulps)\b', assembly)
