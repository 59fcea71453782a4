"""The remedies for GPUs that do not work: the driver, CuPy, the compiler, cuDNN and NCCL.

Each rule states one cause.  Faults of the driver come first: while they last, CuPy cannot work, and is not judged.
"""

from __future__ import annotations

import re
from typing import Any

from mask_rcnn.cli.doctor.findings import Findings
from mask_rcnn.cli.doctor.report import Advice, shorten
from mask_rcnn.io.wording import counted

#: The major version of CUDA -> the first driver of Linux that supports it.
_DRIVERS = {12: '525', 13: '580'}
_MIN_CUDA = 12
#: The oldest CuPy of the extras.
_MIN_CUPY = (13, 6)
#: Turing; kernels and convolutions are tested for this and newer ones.
_MIN_CAPABILITY = (7, 5)
_MIB = 2**20

#: The status of the driver's library -> the remedy (CUDA Driver API, ``CUresult``).
_STATUS_REMEDIES = {
    34: 'it is the stub for compilers; remove the folder "stubs" from LD_LIBRARY_PATH',
    100: 'the driver finds no GPU that this user may use; check the permissions of /dev/nvidia*, or the options of the '
    'container (docker run --gpus all)',
    802: 'start the service of the NVSwitches: sudo systemctl start nvidia-fabricmanager',
    803: 'the library and the kernel module have different versions; reboot',
    804: 'remove the package cuda-compat, or its folder from LD_LIBRARY_PATH',
    999: 'load the kernel module: sudo modprobe nvidia_uvm; or reboot',
}


def gpus_of_smi(findings: Findings) -> list[dict[str, Any]]:
    """Return the GPUs that nvidia-smi lists: name and memory in bytes."""
    if findings.smi is None or findings.smi.status != 0:
        return []
    rows = [line.split(', ') for line in findings.smi.text.splitlines()]
    return [
        {'name': row[0], 'memory': int(row[1]) * _MIB} for row in rows if len(row) == 3 and row[1].strip().isdecimal()
    ]


def has_gpu(findings: Findings) -> bool:
    """Return whether this machine has an NVIDIA GPU, which need not work."""
    return bool(findings.facts('driver').get('gpus') or gpus_of_smi(findings) or findings.has_nvidia_device)


def driver_advice(findings: Findings) -> list[Advice]:
    """Return the advice on the driver and the GPUs; CuPy cannot work before it is followed."""
    text = _smi_fault(findings) or _library_fault(findings) or _version_fault(findings) or _capability_fault(findings)
    if text is not None:
        return [Advice('warning', text)]
    if _cupy_packages(findings) and not has_gpu(findings):
        remedy = 'install the NVIDIA driver; start a container with --gpus all'
        return [Advice('note', f'CuPy is installed, and there is no NVIDIA GPU or no driver: {remedy}')]
    return []


def _smi_fault(findings: Findings) -> str | None:
    """Return the fault that nvidia-smi states."""
    smi = findings.smi_banner
    if smi is None or smi.status == 0:
        return None
    fault = f'nvidia-smi fails ({shorten(smi.text.splitlines()[0] if smi.text else smi.status)})'
    if 'version mismatch' in smi.text:
        return f'{fault}: the driver was updated; reboot'
    if "couldn't communicate" in smi.text or 'No devices' in smi.text:
        remedy = 'load the kernel module (sudo modprobe nvidia) or reboot'
        return f'{fault}: {remedy}; after an update of the kernel, install the driver again'
    if findings.facts('driver').get('gpus') or not (findings.has_nvidia_device or findings.error('driver') is None):
        return None  # the library works, or there is no GPU
    return f'{fault}: install the NVIDIA driver again'


def _library_fault(findings: Findings) -> str | None:
    """Return the fault of the driver's library."""
    driver, reason = findings.facts('driver'), findings.error('driver')
    if reason is not None:
        if gpus_of_smi(findings):
            remedy = (
                'in a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility; in WSL, add /usr/lib/wsl/lib to '
                'LD_LIBRARY_PATH; otherwise install the NVIDIA driver again'
            )
            return f"nvidia-smi works, but the driver's library fails ({reason}): {remedy}"
        if findings.has_nvidia_device:
            remedy = f'install NVIDIA driver {_DRIVERS[_MIN_CUDA]} or newer; start a container with --gpus all'
            return f'there is an NVIDIA GPU without a driver ({reason}): {remedy}'
        return None
    visible = findings.environment.get('CUDA_VISIBLE_DEVICES')
    if visible is not None and driver.get('status') in (0, 100) and not driver.get('gpus') and has_gpu(findings):
        return f'CUDA_VISIBLE_DEVICES={visible} hides all GPUs: unset it'
    status = driver.get('status')
    if status and (has_gpu(findings) or status != 100):
        remedy = _STATUS_REMEDIES.get(status, 'reboot, or install the NVIDIA driver again')
        return f'the driver fails ({driver.get("status_name")}): {remedy}'
    return None


def _version_fault(findings: Findings) -> str | None:
    major = _driver_major(findings)
    if major is None or major >= _MIN_CUDA or not has_gpu(findings):
        return None
    return (
        f'the driver is too old: it supports CUDA {major}, and CuPy needs {_MIN_CUDA}: '
        f'install NVIDIA driver {_DRIVERS[_MIN_CUDA]} or newer'
    )


def _driver_major(findings: Findings) -> int | None:
    """Return the major version of CUDA that the driver supports."""
    version = findings.facts('driver').get('version')
    if version:
        return version // 1000
    found = re.search(r'CUDA Version:\s*(\d+)', findings.smi_banner.text if findings.smi_banner else '')
    return int(found[1]) if found else None


def _capability_fault(findings: Findings) -> str | None:
    """Return the fault of GPUs that are too old, if none is new enough."""
    known = [tuple(gpu['capability']) for gpu in findings.facts('driver').get('gpus') or ()]
    if not known or max(known) >= _MIN_CAPABILITY:
        return None
    return 'the GPU has compute capability {}.{}, and {}.{} is needed: run on the CPU with --gpu -1'.format(
        *max(known), *_MIN_CAPABILITY
    )


def cuda_advice(findings: Findings) -> list[Advice]:
    """Return the advice on CuPy, if there is a GPU with a working driver."""
    if not has_gpu(findings) or driver_advice(findings):
        return []
    text = (
        _package_fault(findings)
        or _cupy_fault(findings)
        or _compiler_fault(findings)
        or _library_of_cupy_fault(findings, 'cublas', 'cuBLAS')
    )
    return [] if text is None else [Advice('warning', text)]


def _cupy_packages(findings: Findings) -> list[str]:
    return sorted(name for name in findings.distributions if re.fullmatch(r'cupy(?:-cuda\w+|-rocm[\w-]+)?', name))


def _extra(findings: Findings) -> str:
    """Return the extra that fits the driver."""
    return 'cuda12' if (_driver_major(findings) or _MIN_CUDA) < 13 else 'cuda13'


def _reinstall(findings: Findings) -> str:
    """Return the commands that replace all packages of CuPy by that of the extra."""
    packages = _cupy_packages(findings)
    removal = f'{findings.pip} uninstall -y {" ".join(packages)}; ' if packages else ''
    return removal + findings.install(_extra(findings))


def _package_fault(findings: Findings) -> str | None:
    """Return the fault of CuPy's packages: several, or one for a CUDA that the driver or this program lacks."""
    packages, driver = _cupy_packages(findings), _driver_major(findings)
    if len(packages) > 1:
        return (
            f'{counted(len(packages), "package")} of CuPy are installed ({", ".join(packages)}): {_reinstall(findings)}'
        )
    if not packages:
        return None
    found = re.fullmatch(r'cupy-cuda(\d\d)\w+', packages[0])
    if 'rocm' in packages[0] or (found and int(found[1]) < _MIN_CUDA):
        return f'{packages[0]} is installed, and CuPy for CUDA {_MIN_CUDA} or 13 is needed: {_reinstall(findings)}'
    if found and driver is not None and int(found[1]) > driver:
        needed = int(found[1])
        newer = f'; or install NVIDIA driver {_DRIVERS[needed]} or newer' if needed in _DRIVERS else ''
        fault = f'{packages[0]} needs a driver for CUDA {needed}, and this one supports CUDA {driver}'
        return f'{fault}: {_reinstall(findings)}{newer}'
    return None


def _cupy_fault(findings: Findings) -> str | None:
    reason = findings.error('cupy')
    if findings.is_missing('cupy'):
        return f'CuPy is not installed, so commands run on the CPU: {findings.install(_extra(findings))}'
    if reason is not None:
        return f'CuPy cannot be imported ({reason}): {_reinstall(findings)}'
    facts = findings.facts('cupy')
    if facts.get('is_rocm'):
        return f'CuPy is built for ROCm, and CuPy for CUDA is needed: {_reinstall(findings)}'
    if not facts.get('n_gpus'):
        reason = facts.get('device_error', '0 devices')
        return f'the driver works, but CuPy finds no GPU ({reason}): {_reinstall(findings)}'
    version = tuple(int(number) for number in re.findall(r'\d+', facts['version'])[:2])
    if version < _MIN_CUPY:
        return f'CuPy {facts["version"]} is too old: {_reinstall(findings)}'
    return None


def _compiler_fault(findings: Findings) -> str | None:
    """Return the fault of the compiler NVRTC and the headers."""
    reason = findings.error('compiler')
    if reason is None:
        return None
    if 'gpu-architecture' in reason or 'no kernel image' in reason:
        remedy = f'{findings.pip} install --upgrade {" ".join(_cupy_packages(findings)) or "cupy"}'
        return f'CuPy does not know this GPU, which is newer ({reason}): {remedy}'
    if re.search(r'\.h\b|header|CUDA_PATH', reason):
        return f"CUDA's headers are not found ({reason}): {findings.install(_extra(findings))}; or set CUDA_PATH"
    if 'nvrtc' in reason.lower():
        return f"CUDA's compiler NVRTC is not found ({reason}): {findings.install(_extra(findings))}; or set CUDA_PATH"
    return f'CUDA kernels fail ({reason}): {_reinstall(findings)}'


def _library_of_cupy_fault(findings: Findings, probe: str, name: str) -> str | None:
    reason = findings.error(probe)
    return None if reason is None else f'{name} fails ({reason}): {findings.install(_extra(findings))}'


def cupy_works(findings: Findings) -> bool:
    """Return whether there is a GPU, and nothing that CuPy needs is missing or broken."""
    return has_gpu(findings) and not driver_advice(findings) and not cuda_advice(findings)


def cudnn_advice(findings: Findings) -> list[Advice]:
    """Return the advice on cuDNN and its Frontend, if CuPy works."""
    facts = findings.facts('cudnn')
    if not cupy_works(findings) or facts.get('is_usable'):
        return []
    extra = _extra(findings)
    cudnn, number = 'nvidia-cudnn-cu' + extra.removeprefix('cuda'), extra.removeprefix('cuda')
    if 'nvidia-cudnn-frontend' not in findings.distributions:
        fault = 'cuDNN Frontend is not installed'
    elif cudnn not in findings.distributions:
        fault = f'cuDNN 9 for CUDA {number} is not installed'
    else:
        reason = findings.error('cudnn') or facts.get('reason') or 'unknown reason'
        remedy = f'{findings.pip} install --force-reinstall --no-deps {cudnn} nvidia-cudnn-frontend'
        return [Advice('warning', f'cuDNN is not used, so convolutions are slow ({shorten(reason)}): {remedy}')]
    return [Advice('warning', f'{fault}, so convolutions are slow: {findings.install(extra)}')]


def nccl_advice(findings: Findings) -> list[Advice]:
    """Return the advice on NCCL, if CuPy works and there are several GPUs."""
    reason, n_gpus = findings.error('nccl'), len(findings.facts('driver').get('gpus') or ())
    if reason is None or n_gpus < 2 or not cupy_works(findings):
        return []
    fault = f'NCCL is not found ({reason}), and training on {counted(n_gpus, "GPU")} needs it'
    return [Advice('warning', f'{fault}: {findings.install(_extra(findings))}')]
