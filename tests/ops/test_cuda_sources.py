import re
import shutil
import subprocess

import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import _cuda

SOURCES = ('bfloat16.cu', 'crop_and_resize.cu', 'depthwise_convolution.cu', 'keypoints.cu', 'max_pooling.cu',
           'nms.cu', 'paste_masks.cu', 'roi_align.cu', 'roi_max_pooling.cu', 'top_k.cu')
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


def supported_architectures():
    listed = subprocess.run(['nvcc', '--list-gpu-code'], check=True, capture_output=True, text=True).stdout
    return [a for a in ARCHITECTURES if f'sm_{a}' in listed.split()]


def test_every_source_is_tested(root):
    folder = root / 'mask_rcnn' / 'ops' / 'cuda'
    assert sorted(path.name for path in folder.glob('*.cu')) == list(SOURCES)
    included = {name for source in SOURCES for name in re.findall(r'"(\w+\.cuh)"', (folder / source).read_text())}
    assert sorted(path.name for path in folder.glob('*.cuh')) == sorted(included)


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='no nvcc')
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_nvcc_compiles_for_every_architecture(root, tmp_path, source, dtype):
    if dtype == np.float64 and 'REAL' not in _cuda.read_source(source):
        pytest.skip('no REAL in this source')
    architectures = supported_architectures() if dtype == np.float32 else [80]
    assert architectures
    targets = [f'-gencode=arch=compute_{a},code=sm_{a}' for a in architectures]
    command = ['nvcc', '-fatbin', '-Werror', 'all-warnings', *_cuda.OPTIONS, f'-DREAL={_cuda.c_type(dtype)}',
               *targets, '-o', str(tmp_path / 'kernels.fatbin'),
               str(root / 'mask_rcnn' / 'ops' / 'cuda' / source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'kernels.fatbin').stat().st_size > 0


@pytest.mark.parametrize('source', SOURCES)
def test_what_a_source_includes_is_put_in_its_place(source):
    assert '#include' not in _cuda.read_source(source)


def test_launch_covers_every_element_and_nothing_for_none():
    calls = []
    for n in (0, 1, 256, 257, 1 << 40):
        _cuda.launch(lambda *arguments: calls.append(arguments), n, [n])
    assert calls == [((1,), (256,), (1,)), ((1,), (256,), (256,)), ((2,), (256,), (257,)),
                     ((1 << 20,), (256,), (1 << 40,))]


def test_no_cuda_is_a_clear_error():
    if cuda.available:
        pytest.skip('there is a CUDA device')
    with pytest.raises(RuntimeError, match='(?i)cu'):
        _cuda.kernel('nms.cu', 'nms_reduce')


@pytest.mark.gpu
@pytest.mark.parametrize('source', SOURCES)
def test_cupy_compiles(source):
    if not cuda.available:
        pytest.skip('no CUDA device')
    names = {'bfloat16.cu': 'float_to_bfloat16', 'crop_and_resize.cu': 'crop_and_resize_forward',
             'depthwise_convolution.cu': 'depthwise_forward', 'keypoints.cu': 'decode_heatmaps',
             'max_pooling.cu': 'max_pooling_4', 'nms.cu': 'nms_reduce', 'paste_masks.cu': 'paste_masks',
             'roi_align.cu': 'roi_align_forward_4', 'roi_max_pooling.cu': 'roi_max_pooling_forward',
             'top_k.cu': 'top_k_count'}
    assert _cuda.kernel(source, names[source]).attributes['max_threads_per_block'] >= 256
