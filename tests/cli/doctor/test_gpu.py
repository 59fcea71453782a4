"""The causes for which a GPU does not work, and their remedies, on simulated machines."""

import ctypes
import dataclasses
import sys
import types
from importlib import metadata

import pytest

from mask_rcnn.cli import doctor
from mask_rcnn.cli.doctor import probes
from mask_rcnn.cli.doctor.children import Program
from mask_rcnn.cli.doctor.findings import has_nvidia_device
from mask_rcnn.cli.doctor.gpu import describe_cuda, describe_cudnn, describe_gpus
from mask_rcnn.cli.doctor.report import exit_status
from tests.support.machines import (
    H200,
    complete_machine,
    machine_without_gpu,
    missing,
    with_distributions,
    with_probes,
)

CUDA12 = 'pip install "cupy-cuda12x[ctk]>=13.6" "nvidia-cudnn-cu12"'
CUDA13 = 'pip install "cupy-cuda13x[ctk]>=13.6"'


@pytest.fixture(autouse=True)
def requirements(monkeypatch):
    """Install this distribution with some requirements of its extras."""
    lines = [
        'cupy-cuda12x[ctk]>=13.6; extra == "cuda12"',
        'nvidia-cudnn-cu12; extra == "cuda12"',
        'cupy-cuda13x[ctk]>=13.6; extra == "cuda13"',
    ]
    monkeypatch.setattr(metadata, 'requires', lambda name: lines)


def gpu_advice(machine):
    """Return the lines of advice of the three sections on GPUs."""
    sections = [describe(machine) for describe in (describe_gpus, describe_cuda, describe_cudnn)]
    assert exit_status(sections) == 0  # commands run on the CPU
    return [item.text for section in sections for item in section.advice]


def the_advice(machine):
    """Return the only line of advice: a fault of the driver hides those that it causes."""
    (text,) = gpu_advice(machine)
    return text


def with_driver(machine, **facts):
    """Return a machine whose driver's library returns other facts."""
    return with_probes(machine, driver={**complete_machine().facts('driver'), **facts})


def without_cupy(machine):
    """Return a machine without CuPy, on which its probes fail."""
    lacking = {name: missing('cupy') for name in ('cupy', 'compiler', 'cublas', 'cudnn', 'nccl')}
    return with_distributions(with_probes(machine, **lacking), cupy_cuda12x=None)


def test_a_gpu_that_works():
    machine = complete_machine()
    assert describe_gpus(machine).text == ('NVIDIA H200, 150 GiB, compute capability 9.0, driver 550.54.14 (CUDA 12.4)')
    assert describe_cuda(machine).text == 'CuPy 14.2.0 for CUDA 12.9, NVRTC 12.9 and headers, cuBLAS'
    assert describe_cuda(machine).facts['gpu_works']
    assert describe_cudnn(machine).text == 'cuDNN 9.28.0, Frontend 1.32.0, NCCL 2.32.3'
    assert gpu_advice(machine) == []


def test_several_gpus_are_counted():
    old = {'name': 'Tesla T4', 'memory': 16 * 2**30, 'capability': [7, 5]}
    machine = with_driver(complete_machine(), gpus=[H200, H200, old])
    assert describe_gpus(machine).text.startswith(
        '2 x NVIDIA H200, 150 GiB, compute capability 9.0, Tesla T4, 16 GiB, compute capability 7.5, driver '
    )


def test_a_machine_without_a_gpu_needs_nothing():
    machine = machine_without_gpu()
    assert describe_gpus(machine).text == 'no NVIDIA GPU; commands run on the CPU'
    assert describe_cuda(machine).text == 'CuPy not installed' and not describe_cuda(machine).facts['gpu_works']
    assert gpu_advice(machine) == []


def test_cupy_without_a_gpu_is_a_note():
    machine = with_distributions(machine_without_gpu(), cupy_cuda12x='14.2.0')
    (advice,) = describe_gpus(machine).advice
    assert advice.level == 'note' and '--gpus all' in advice.text


def test_a_gpu_without_a_driver():
    text = the_advice(dataclasses.replace(machine_without_gpu(), has_nvidia_device=True))
    assert text.startswith('there is an NVIDIA GPU without a driver (OSError: libcuda.so.1: ')
    assert 'install NVIDIA driver 525 or newer' in text and '--gpus all' in text


@pytest.mark.parametrize(
    ('message', 'remedy'),
    [
        ('Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54', 'reboot'),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 'sudo modprobe nvidia'),
        ('No devices were found', 'sudo modprobe nvidia'),
        ('Failed to initialize NVML: Unknown Error', 'install the NVIDIA driver again'),
    ],
)
def test_a_driver_that_does_not_answer(message, remedy):
    machine = dataclasses.replace(machine_without_gpu(), has_nvidia_device=True)
    machine = dataclasses.replace(machine, smi=Program(9, message), smi_banner=Program(9, message))
    text = the_advice(machine)
    assert text.startswith(f'nvidia-smi fails ({message.splitlines()[0]}') and remedy in text


def test_a_tool_that_does_not_answer_matters_only_if_the_library_fails():
    machine = dataclasses.replace(complete_machine(), smi_banner=Program(None, 'no answer in 20 s'))
    assert gpu_advice(machine) == []


def test_the_tool_works_and_the_library_is_missing():
    machine = with_probes(complete_machine(), driver={'error': 'OSError: libcuda.so.1: cannot open'})
    text = the_advice(machine)
    assert text.startswith("nvidia-smi works, but the driver's library fails (OSError: libcuda.so.1: cannot open): ")
    assert 'NVIDIA_DRIVER_CAPABILITIES=compute,utility' in text and '/usr/lib/wsl/lib' in text
    assert describe_gpus(machine).text == 'NVIDIA H200, 150 GiB, driver 550.54.14 (CUDA 12.4)'


@pytest.mark.parametrize(
    ('status', 'name', 'remedy'),
    [
        (34, 'CUDA_ERROR_STUB_LIBRARY', 'LD_LIBRARY_PATH'),
        (100, 'CUDA_ERROR_NO_DEVICE', 'permissions of /dev/nvidia*'),
        (802, 'CUDA_ERROR_SYSTEM_NOT_READY', 'nvidia-fabricmanager'),
        (803, 'CUDA_ERROR_SYSTEM_DRIVER_MISMATCH', 'reboot'),
        (804, 'CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE', 'cuda-compat'),
        (999, 'CUDA_ERROR_UNKNOWN', 'sudo modprobe nvidia_uvm'),
        (46, 'CUDA_ERROR_DEVICE_UNAVAILABLE', 'reboot'),
    ],
)
def test_a_library_that_fails(status, name, remedy):
    text = the_advice(with_driver(complete_machine(), status=status, status_name=name, gpus=[]))
    assert text.startswith(f'the driver fails ({name}): ') and remedy in text


@pytest.mark.parametrize('value', ['', '-1', '7'])
def test_a_variable_that_hides_the_gpus(value):
    machine = with_driver(complete_machine(), status=100, status_name='CUDA_ERROR_NO_DEVICE', gpus=[])
    machine = dataclasses.replace(machine, environment={'CUDA_VISIBLE_DEVICES': value})
    assert the_advice(machine) == f'CUDA_VISIBLE_DEVICES={value} hides all GPUs: unset it'


def test_a_variable_that_selects_a_gpu_is_right():
    assert gpu_advice(dataclasses.replace(complete_machine(), environment={'CUDA_VISIBLE_DEVICES': '0'})) == []


def test_a_driver_that_is_too_old():
    assert the_advice(without_cupy(with_driver(complete_machine(), version=11040))) == (
        'the driver is too old: it supports CUDA 11, and CuPy needs 12: install NVIDIA driver 525 or newer'
    )


def test_a_gpu_that_is_too_old():
    gtx = {'name': 'GTX 1080', 'memory': 8 * 2**30, 'capability': [6, 1]}
    machine = with_driver(complete_machine(), gpus=[gtx])
    assert the_advice(machine) == (
        'the GPU has compute capability 6.1, and 7.5 is needed: run on the CPU with --gpu -1'
    )
    assert not describe_cuda(machine).facts['gpu_works']
    assert gpu_advice(with_driver(complete_machine(), gpus=[gtx, H200])) == []


@pytest.mark.parametrize(
    ('version', 'command'), [(12000, CUDA12), (12080, CUDA12), (13000, CUDA13), (13010, CUDA13), (14000, CUDA13)]
)
def test_cupy_is_not_installed(version, command):
    """The extra is that of the driver."""
    machine = without_cupy(with_driver(complete_machine(), version=version))
    assert the_advice(machine) == f'CuPy is not installed, so commands run on the CPU: {command}'


def test_commands_of_a_checkout_and_of_other_installers():
    machine = dataclasses.replace(without_cupy(complete_machine()), pip='uv pip')
    assert the_advice(machine).endswith('uv ' + CUDA12)
    assert the_advice(with_distributions(machine, mask_rcnn_chainer=None)).endswith('uv pip install ".[cuda12]"')


def test_two_packages_of_cupy():
    machine = with_distributions(complete_machine(), cupy_cuda13x='14.2.0')
    assert the_advice(machine) == (
        '2 packages of CuPy are installed (cupy-cuda12x, cupy-cuda13x): '
        f'pip uninstall -y cupy-cuda12x cupy-cuda13x; {CUDA12}'
    )


def test_cupy_for_a_newer_cuda_than_that_of_the_driver():
    machine = with_distributions(complete_machine(), cupy_cuda12x=None, cupy_cuda13x='14.2.0')
    machine = with_probes(machine, cupy={'error': 'ImportError: libcudart.so.13: cannot open shared object file'})
    assert the_advice(machine) == (
        'cupy-cuda13x needs a driver for CUDA 13, and this one supports CUDA 12: '
        f'pip uninstall -y cupy-cuda13x; {CUDA12}; or install NVIDIA driver 580 or newer'
    )


def test_cupy_for_an_older_cuda_than_that_of_the_driver_works():
    assert gpu_advice(with_driver(complete_machine(), version=13000)) == []


@pytest.mark.parametrize('package', ['cupy-cuda11x', 'cupy-cuda110', 'cupy-rocm-5-0'])
def test_cupy_for_a_wrong_platform(package):
    machine = with_distributions(complete_machine(), cupy_cuda12x=None, **{package.replace('-', '_'): '13.6.0'})
    assert the_advice(machine) == (
        f'{package} is installed, and CuPy for CUDA 12 or 13 is needed: pip uninstall -y {package}; {CUDA12}'
    )


REINSTALL = f'pip uninstall -y cupy-cuda12x; {CUDA12}'


@pytest.mark.parametrize(
    ('facts', 'start'),
    [
        (
            {'error': 'libcudart.so.12: cannot open shared object file'},
            'CuPy cannot be imported (libcudart.so.12: cannot open shared object file): ',
        ),
        ({'error': 'the process crashed: SIGSEGV, a memory fault'}, 'CuPy cannot be imported (the process crashed: '),
        ({'version': '14.2.0', 'is_rocm': True, 'n_gpus': 1}, 'CuPy is built for ROCm, '),
        ({'version': '12.3.0', 'n_gpus': 1}, 'CuPy 12.3.0 is too old: '),
        (
            {'version': '14.2.0', 'n_gpus': 0, 'device_error': 'cudaErrorInsufficientDriver'},
            'the driver works, but CuPy finds no GPU (cudaErrorInsufficientDriver): ',
        ),
    ],
)
def test_a_cupy_that_fails(facts, start):
    text = the_advice(with_probes(complete_machine(), cupy=facts))
    assert text.startswith(start) and text.endswith(REINSTALL)


@pytest.mark.parametrize(
    ('reason', 'start', 'end'),
    [
        ('cannot open source file "cuda_fp16.h"', "CUDA's headers are not found (", f'{CUDA12}; or set CUDA_PATH'),
        ('libnvrtc.so.12: cannot open', "CUDA's compiler NVRTC is not found (", f'{CUDA12}; or set CUDA_PATH'),
        (
            'nvrtc: error: invalid value for --gpu-architecture (-arch)',
            'CuPy does not know this GPU, which is newer (',
            'pip install --upgrade cupy-cuda12x',
        ),
        ('no answer in 120 s', 'CUDA kernels fail (', REINSTALL),
    ],
)
def test_a_compiler_that_fails(reason, start, end):
    text = the_advice(with_probes(complete_machine(), compiler={'error': reason}))
    assert text.startswith(f'{start}{reason}): ') and text.endswith(end)


def test_cublas_is_not_found():
    machine = with_probes(complete_machine(), cublas={'error': 'libcublas.so.12: cannot open'})
    assert the_advice(machine) == f'cuBLAS fails (libcublas.so.12: cannot open): {CUDA12}'
    assert describe_cuda(machine).text == 'CuPy 14.2.0 for CUDA 12.9, NVRTC 12.9 and headers'


@pytest.mark.parametrize(
    ('package', 'fault'),
    [
        ('nvidia_cudnn_frontend', 'cuDNN Frontend is not installed'),
        ('nvidia_cudnn_cu12', 'cuDNN 9 for CUDA 12 is not installed'),
    ],
)
def test_cudnn_is_not_installed(package, fault):
    machine = with_probes(complete_machine(), cudnn={'is_usable': False, 'reason': 'ImportError: libcudnn.so.9'})
    assert the_advice(with_distributions(machine, **{package: None})) == (
        f'{fault}, so convolutions are slow: {CUDA12}'
    )


def test_a_cudnn_that_fails():
    machine = with_probes(
        complete_machine(), cudnn={'is_usable': False, 'reason': 'cuDNN is older than version 9 (8907)'}
    )
    assert the_advice(machine) == (
        'cuDNN is not used, so convolutions are slow (cuDNN is older than version 9 (8907)): '
        'pip install --force-reinstall --no-deps nvidia-cudnn-cu12 nvidia-cudnn-frontend'
    )
    assert describe_cudnn(machine).text == 'cuDNN not used, NCCL 2.32.3'


def test_cudnn_of_the_system_needs_no_package():
    assert gpu_advice(with_distributions(complete_machine(), nvidia_cudnn_cu12=None)) == []


def test_nccl_is_needed_by_several_gpus_only():
    machine = with_probes(complete_machine(), nccl={'error': 'libnccl.so.2: cannot open'})
    assert gpu_advice(machine) == []
    assert the_advice(with_driver(machine, gpus=[H200, H200])) == (
        f'NCCL is not found (libnccl.so.2: cannot open), and training on 2 GPUs needs it: {CUDA12}'
    )


def test_a_gpu_that_the_system_lists_without_a_driver(tmp_path):
    for name, kind, vendor in (('a', '0x020000', '0x10de'), ('b', '0x030000', '0x1002')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'class').write_text(f'{kind}\n')
        (tmp_path / name / 'vendor').write_text(f'{vendor}\n')
    (tmp_path / 'c').mkdir()
    assert not has_nvidia_device(tmp_path) and not has_nvidia_device(tmp_path / 'absent')
    (tmp_path / 'c' / 'class').write_text('0x030200\n')
    (tmp_path / 'c' / 'vendor').write_text('0x10de\n')
    assert has_nvidia_device(tmp_path)


class FakeDriver:
    """The functions of libcuda that the probe calls, for two GPUs, or for an error."""

    def __init__(self, status=0):
        self._status = status

    def cuDriverGetVersion(self, version):
        version._obj.value = 12040
        return 0

    def cuInit(self, flags):
        return self._status

    def cuGetErrorName(self, status, name):
        name._obj.value = b'CUDA_ERROR_UNKNOWN'
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = f'GPU {device.value}'.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = (device.value + 1) * 2**35
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_the_facts_of_the_driver(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: FakeDriver())
    gpus = [{'name': f'GPU {n}', 'memory': (n + 1) * 2**35, 'capability': [9, 0]} for n in range(2)]
    assert probes.PROBES['driver']() == {'version': 12040, 'status': 0, 'gpus': gpus}
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: FakeDriver(999))
    facts = {'version': 12040, 'status': 999, 'gpus': [], 'status_name': 'CUDA_ERROR_UNKNOWN'}
    assert probes.PROBES['driver']() == facts


def fake_cupy(n_gpus):
    """Return a module cupy without kernels."""

    def count():
        if n_gpus is None:
            raise RuntimeError('cudaErrorNoDevice: no CUDA-capable device is detected')
        return n_gpus

    runtime = types.SimpleNamespace(getDeviceCount=count, runtimeGetVersion=lambda: 12090, is_hip=False)
    driver = types.SimpleNamespace(get_build_version=lambda: 12080)
    module = types.ModuleType('cupy')
    vars(module).update(__version__='14.2.0', cuda=types.SimpleNamespace(runtime=runtime, driver=driver))
    return module


def test_the_facts_of_cupy(monkeypatch):
    monkeypatch.setenv('CUPY_CACHE_IN_MEMORY', '0')  # restored after the test
    monkeypatch.setitem(sys.modules, 'cupy', fake_cupy(2))
    expected = {'version': '14.2.0', 'is_rocm': False, 'n_gpus': 2, 'runtime': 12090}
    assert probes.PROBES['cupy']() == expected
    monkeypatch.setitem(sys.modules, 'cupy', fake_cupy(None))
    assert probes.PROBES['cupy']() == expected | {
        'n_gpus': 0,
        'device_error': 'RuntimeError: cudaErrorNoDevice: no CUDA-capable device is detected',
    }
    monkeypatch.setitem(sys.modules, 'cupy', fake_cupy(0))
    for name in ('cublas', 'cudnn'):
        with pytest.raises(LookupError):
            probes.PROBES[name]()


def test_a_section_that_cannot_be_described_does_not_end_the_report(monkeypatch):
    machine = with_probes(complete_machine(), driver={'gpus': [{'unknown': 1}]})
    sections = {section.name: section for section in doctor.describe(machine)}
    assert list(sections) == list(doctor.SECTIONS)
    assert sections['GPU'].text == 'not described'
    assert 'KeyError' in sections['GPU'].advice[0].text
    assert exit_status(list(sections.values())) == 0


def test_a_missing_nccl_is_named(monkeypatch):
    """Then ``cupy.cuda.nccl`` of CuPy 14 is an empty module; the import from ``cupy_backends`` raises the reason."""

    class Libraries(types.ModuleType):
        def __getattr__(self, name):
            raise ImportError('Failure finding "libnccl.so.2"')

    empty, whole = (types.SimpleNamespace(available=available) for available in (False, True))
    whole.get_version = lambda: 22800
    cupy_cuda = types.ModuleType('cupy.cuda')
    monkeypatch.setitem(sys.modules, 'cupy', types.ModuleType('cupy'))
    monkeypatch.setitem(sys.modules, 'cupy.cuda', cupy_cuda)
    for name in ('cupy_backends', 'cupy_backends.cuda'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, 'cupy_backends.cuda.libs', Libraries('cupy_backends.cuda.libs'))
    cupy_cuda.nccl = whole
    assert probes.PROBES['nccl']() == {'version': 22800}
    cupy_cuda.nccl = empty
    with pytest.raises(ImportError, match='Failure finding'):
        probes.PROBES['nccl']()
