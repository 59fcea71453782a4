"""Compiled CPU kernels on processors and systems that this computer does not have: Apple's, and Windows."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn.ops.runtime import vectors
from mask_rcnn.ops.runtime.parallel import jit
from tests.ops import test_vectors
from tests.support.cross_compilation import TARGETS, assembly_of, called_functions, optimized_code
from tests.support.environment import subprocess_environment

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


#: Compiles the kernels of a convolution without those in the cache, for a processor of x86 without extensions.
CONVOLVE = """
import json, numpy as np
from mask_rcnn.ops.conv import winograd
from tests.support.cross_compilation import TARGETS, assembly_of, called_functions, recorded_modules

images, weight = np.ones((8, 1, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
with recorded_modules() as modules:
    y = winograd.convolve(images, weight, 1, None, None, True)
assemblies = {target: [assembly_of(code, target) for code in modules] for target in TARGETS}
calls = {target: sorted(set().union(*map(called_functions, codes))) for target, codes in assemblies.items()}
print(json.dumps([float(y.max()), len(modules), calls]))
"""


@pytest.mark.slow
def test_a_convolution_is_legal_on_other_processors(root, tmp_path):
    """The environment variables are those that a computer with a common cache sets."""
    variables = {'NUMBA_CPU_NAME': 'generic', 'NUMBA_CPU_FEATURES': '', 'NUMBA_CACHE_DIR': str(tmp_path)}
    command, environment = [sys.executable, '-c', CONVOLVE], subprocess_environment(root, **variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    largest, n_modules, calls = json.loads(done.stdout)
    assert abs(largest - 72) < 1e-4 and n_modules >= 3
    assert set(calls) == set(TARGETS)
    of_every_c_library = {'memset', 'memcpy', 'bzero', 'pow', '_pow'}
    assert set().union(*calls.values()) <= of_every_c_library
