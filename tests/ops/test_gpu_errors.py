"""Errors of CUDA and its libraries: which of them report a lack of memory, and their lines."""

import gc
import weakref

import numpy as np
import pytest

from mask_rcnn.cli.command import run_and_report_errors
from mask_rcnn.ops.runtime.gpu_errors import clear_frames, describe_gpu_error, is_gpu_error, memory_errors


def gpu_error(name, text, module='cupy_backends.cuda.api.runtime', base=RuntimeError):
    """Return an error as a library of CUDA raises it; their types exist only where CuPy is installed."""
    return type(name, (base,), {'__module__': module})(text)


NO_MEMORY = [
    gpu_error('CUDARuntimeError', 'cudaErrorMemoryAllocation: out of memory'),
    gpu_error('CUDADriverError', 'CUDA_ERROR_OUT_OF_MEMORY: out of memory', 'cupy_backends.cuda.api.driver'),
    gpu_error('CUBLASError', 'CUBLAS_STATUS_ALLOC_FAILED', 'cupy_backends.cuda.libs.cublas'),
    RuntimeError('[cudnn_frontend] ERROR: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED'),
]
OTHERS = [
    gpu_error('CUDARuntimeError', 'cudaErrorIllegalAddress: an illegal memory access was encountered'),
    gpu_error('CompileException', 'nvrtc: error:\n  a.cu(3)', 'cupy.cuda.compiler', Exception),
    gpu_error('cudnnGraphNotSupportedError', 'no engine', 'cudnn._compiled_module'),
]


@pytest.mark.parametrize('error', NO_MEMORY, ids=str)
def test_a_lack_of_memory_is_a_memory_error(error):
    with pytest.raises(MemoryError) as caught, memory_errors():
        raise error
    assert str(caught.value) == str(error) and caught.value.__cause__ is error


@pytest.mark.parametrize('error', [*OTHERS, RuntimeError('x'), ValueError('out of memory')], ids=repr)
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as caught, memory_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize('error', [*NO_MEMORY, *OTHERS], ids=str)
def test_commands_end_with_one_line(capsys, error):
    def action():
        raise error

    assert run_and_report_errors(action, ()) == 1
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    text = ' '.join(str(error).split())
    if error in NO_MEMORY:
        assert line == f'error: not enough memory: {text}\n'
    else:
        assert line.startswith(f'error: the GPU has failed: {type(error).__name__}: {text}; "mask-rcnn doctor" states')


@pytest.mark.parametrize('error', [ZeroDivisionError('x'), RuntimeError('a bug'), ImportError('out of memory')])
def test_a_bug_keeps_its_traceback(error):
    def action():
        raise error

    assert describe_gpu_error(error) is None and not is_gpu_error(error)
    with pytest.raises(type(error)):
        run_and_report_errors(action, ())


def test_a_long_text_is_cut():
    error = gpu_error('CompileException', 'x' * 100_000, 'cupy.cuda.compiler', Exception)
    assert len(describe_gpu_error(error)) < 500


def test_a_kept_error_keeps_no_arrays():
    arrays = []

    def allocate():
        array = np.zeros(3)
        arrays.append(weakref.ref(array))
        raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')

    def convert():
        array = np.zeros(3)
        arrays.append(weakref.ref(array))
        with memory_errors():
            allocate()

    try:
        convert()
    except MemoryError as error:
        kept = error
    gc.collect()
    assert all(array() is not None for array in arrays) and len(arrays) == 2
    clear_frames(kept)
    gc.collect()
    assert not any(array() is not None for array in arrays)
    assert [kept.__traceback__.tb_next.tb_frame.f_code.co_name] == ['convert']
