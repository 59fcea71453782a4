"""The CUDA sources: complete lists, compilation with nvcc and NVRTC, and launches."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops.runtime import cuda_kernels

#: Source -> one of its kernels.
KERNELS = {
    'boxes/nms.cu': 'nms_reduce',
    'boxes/padded_selection.cu': 'decode_proposals',
    'boxes/top_k.cu': 'top_k_count',
    'conv/average_pooling.cu': 'average_pooling_half_8',
    'conv/depthwise.cu': 'depthwise_forward',
    'conv/group_norm.cu': 'group_norm_sums_half_8',
    'conv/max_pooling.cu': 'max_pooling_4',
    'conv/upsample_add.cu': 'upsample_add_half_8',
    'cudnn_frontend/bfloat16.cu': 'float_to_bfloat16',
    'cudnn_frontend/blocks.cu': 'blocks_float_half',
    'cudnn_frontend/epilogue.cu': 'epilogue_half_8',
    'cudnn_frontend/epilogue_gradient.cu': 'sum_pixels_half_8',
    'cudnn_frontend/winograd.cu': 'winograd_input',
    'images/network_input.cu': 'opencv_uint8',
    'losses/losses.cu': 'softmax_cross_entropy',
    'masks/class_masks.cu': 'class_masks',
    'masks/keypoints.cu': 'decode_heatmaps',
    'masks/paste_masks.cu': 'paste_masks',
    'roi/crop_and_resize.cu': 'crop_and_resize_forward',
    'roi/levels.cu': 'assign_levels',
    'roi/roi_align_backward.cu': 'roi_align_backward_4',
    'roi/roi_align_forward.cu': 'roi_align_forward_8',
    'roi/roi_max_pooling.cu': 'roi_max_pooling_forward',
    'runtime/hash.cu': 'hash_segments',
    'runtime/multi_array.cu': 'momentum_sgd',
}
#: Compute capabilities: the oldest and the newest, and those between.
ARCHITECTURES = 75, 80, 86, 89, 90, 100, 120


def supported_by_nvcc(architectures):
    """Return the architectures that the installed nvcc compiles for."""
    codes = subprocess.run(['nvcc', '--list-gpu-code'], check=True, capture_output=True, text=True).stdout
    return [a for a in architectures if f'sm_{a}' in codes.split()]


def test_every_source_is_tested(root):
    folder = root / 'mask_rcnn' / 'ops'
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob('*.cu')) == sorted(KERNELS)
    included = {name for source in KERNELS for name in re.findall(r'"([\w/]+\.cuh)"', (folder / source).read_text())}
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob('*.cuh')) == sorted(included)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is not installed')
@pytest.mark.parametrize('source', KERNELS)
@pytest.mark.parametrize(
    ('dtype', 'architectures'),
    [
        (np.float32, ARCHITECTURES),
        (np.float64, (80,)),
    ],
)
def test_nvcc_compiles_for_every_architecture(root, tmp_path, source, dtype, architectures):
    if dtype == np.float64 and 'REAL' not in cuda_kernels.read_source(source):
        pytest.skip('the source does not use REAL')
    architectures = supported_by_nvcc(architectures)
    assert architectures
    targets = [f'-gencode=arch=compute_{a},code=sm_{a}' for a in architectures]
    command = [
        'nvcc',
        '-fatbin',
        '-Werror',
        'all-warnings',
        *cuda_kernels.OPTIONS,
        f'-DREAL={cuda_kernels.c_type(dtype)}',
        *targets,
        '-o',
        str(tmp_path / 'kernels.fatbin'),
        '-I',
        str(root / 'mask_rcnn' / 'ops'),
        str(root / 'mask_rcnn' / 'ops' / source),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'kernels.fatbin').stat().st_size > 0


@pytest.mark.parametrize('source', KERNELS)
def test_headers_are_inserted(source):
    assert '#include' not in cuda_kernels.read_source(source)


def test_a_launch_covers_all_elements():
    calls = []
    for n in (0, 1, 256, 257, 1 << 40):
        cuda_kernels.launch(lambda *arguments: calls.append(arguments), n, [n])
    assert calls == [
        ((1,), (256,), (1,)),
        ((1,), (256,), (256,)),
        ((2,), (256,), (257,)),
        ((1 << 20,), (256,), (1 << 40,)),
    ]


def test_missing_cuda_is_a_clear_error():
    if cuda.available:
        pytest.skip('CUDA is available')
    with pytest.raises(RuntimeError, match='(?i)cu'):
        cuda_kernels.kernel('boxes/nms.cu', 'nms_reduce')


@pytest.mark.gpu
@pytest.mark.parametrize('source', KERNELS)
def test_cupy_compiles(source):
    if not cuda.available:
        pytest.skip('no CUDA device')
    n_threads = 224 if source == 'roi/roi_align_forward.cu' else 256  # of the largest block that is launched
    assert cuda_kernels.kernel(source, KERNELS[source]).attributes['max_threads_per_block'] >= n_threads
