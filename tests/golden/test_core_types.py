"""The golden cases with OpenBLAS's kernels for other processors, which add float32 numbers in other orders."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import common_files
from tests.support.golden_cases import CASES

CORE_TYPES = ('Haswell', 'Zen', 'SkylakeX')

#: The cases that run again, one of each program and of each kind of head.  OpenBLAS computes the linear layers, the
#: transposed convolutions and, in training, the gradients of convolutions; the other cases have the same ones.
SELECTED = {
    ('matterport', 'shapes_resnet50_shapes7'),
    ('detectron', 'R-50-C4_seed0_scale300_rois300'),
    ('detectron', 'R-50-FPN_seed0'),
    ('detectron', 'keypoint_R-50-FPN_seed0'),
    ('detectron_zoo', 'R-50-FPN_GN_seed0'),
    ('torchvision', 'maskrcnn_resnet50_fpn_seed0'),
    ('detectron2', 'keypoint_rcnn_R_50_FPN_3x_seed0'),
    ('dena', 'snapshot_R-50-C4_seed0_scale300'),
}

PRODUCT = 'import numpy as np; np.ones((99, 99), "f") @ np.ones((99, 99), "f")'


def run(arguments, root, **variables):
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope='module')
def kernels(root):
    """The name of the kernels that OpenBLAS selects for each core type, and for '' those of all other tests.

    ``None`` if this processor lacks their instructions; '' if the BLAS library is another one.
    """
    found = {}
    for core_type in ('', *CORE_TYPES):
        done = run(
            ['-c', PRODUCT], root, OPENBLAS_VERBOSE='2', **({'OPENBLAS_CORETYPE': core_type} if core_type else {})
        )
        found[core_type] = None if done.returncode < 0 else ''.join(re.findall('^Core: (.+)', done.stderr, re.M))
    return found


def test_a_case_of_each_program_is_selected():
    assert set(CASES) > SELECTED and {program for program, _ in SELECTED} == {program for program, _ in CASES}


@pytest.mark.slow
@pytest.mark.parametrize('core_type', CORE_TYPES)
def test_golden_cases_pass_with_other_kernels(golden, root, kernels, core_type, tmp_path_factory):
    """Each set of kernels once: builds of OpenBLAS contain one set for several core types."""
    if kernels[core_type] is None:
        pytest.skip(f'this processor lacks instructions of {core_type}')
    same = next(name for name in kernels if kernels[name] == kernels[core_type])
    if same != core_type:
        pytest.skip(f'{core_type} has the kernels of {same or "the other tests"}: {kernels[core_type] or "unknown"}')
    folder = root / 'tests' / 'golden'
    # Files that are written contain no sums of floats, and ONNX Runtime does not use OpenBLAS.
    ignored = (f'--ignore={folder / name}' for name in ('test_core_types.py', 'test_export.py', 'test_onnx.py'))
    others = ' or '.join(f'-{name}]' for program, name in CASES if (program, name) not in SELECTED)
    options = ['-q', '-p', 'no:cacheprovider', *ignored, '-m', 'not gpu and not command', '-k', f'not ({others})']
    files = {common_files.VARIABLE: str(common_files.find_folder(tmp_path_factory))}
    result = run(['-m', 'pytest', *options, str(folder)], root, OPENBLAS_CORETYPE=core_type, **files)
    assert result.returncode == 0, result.stdout[-5000:]
