"""The sections on NVIDIA GPUs: the GPUs, CUDA with CuPy, and cuDNN with NCCL."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mask_rcnn.cli.doctor.findings import Findings
from mask_rcnn.cli.doctor.gpu_advice import (
    cuda_advice,
    cudnn_advice,
    cupy_works,
    driver_advice,
    gpus_of_smi,
    has_gpu,
    nccl_advice,
)
from mask_rcnn.cli.doctor.report import Section

_GIB = 2**30


def describe_gpus(findings: Findings) -> Section:
    """Return the section on the GPUs and the driver."""
    found = [_gpu_text(gpu) for gpu in gpus(findings)]
    texts = [text if count == 1 else f'{count} x {text}' for text, count in Counter(found).items()]
    if not texts:
        texts = ['an NVIDIA GPU that does not work' if has_gpu(findings) else 'no NVIDIA GPU; commands run on the CPU']
    driver = driver_version(findings)
    if driver:
        texts.append(f'driver {driver}')
    return Section('GPU', ', '.join(texts), driver_advice(findings), {'gpus': gpus(findings), 'driver': driver})


def gpus(findings: Findings) -> list[dict[str, Any]]:
    """Return the GPUs that the driver's library finds, or those of nvidia-smi, without their capability."""
    return list(findings.facts('driver').get('gpus') or gpus_of_smi(findings))


def _gpu_text(gpu: dict[str, Any]) -> str:
    text = f'{gpu["name"]}, {gpu["memory"] / _GIB:.0f} GiB'
    if gpu.get('capability'):
        text += ', compute capability {}.{}'.format(*gpu['capability'])
    return text


def driver_version(findings: Findings) -> str:
    """Return the versions of the driver and of its CUDA, such as ``'550.54.14 (CUDA 12.4)'``, or an empty text."""
    banner = findings.smi_banner.text if findings.smi_banner else ''
    driver = re.search(r'Driver Version:\s*([\d.]+)', banner)
    cuda = re.search(r'CUDA Version:\s*([\d.]+)', banner)
    version = cuda_text(findings.facts('driver').get('version')) or (cuda[1] if cuda else '')
    parts = [driver[1] if driver else '', f'(CUDA {version})' if version else '']
    return ' '.join(filter(None, parts))


def cuda_text(version: int | None) -> str:
    """Return ``'12.4'`` for 12040, CUDA's form of a version, and an empty text for an unknown one."""
    return f'{version // 1000}.{version % 1000 // 10}' if version else ''


def describe_cuda(findings: Findings) -> Section:
    """Return the section on CuPy, the compiler, the headers and cuBLAS."""
    cupy, texts = findings.facts('cupy'), []
    if findings.error('cupy') is None:
        runtime = cuda_text(cupy.get('runtime'))
        texts.append(f'CuPy {cupy["version"]}' + (f' for CUDA {runtime}' if runtime else ''))
        if findings.error('compiler') is None:
            texts.append(f'NVRTC {findings.facts("compiler")["version"]} and headers')
        if findings.error('cublas') is None:
            texts.append('cuBLAS')
    else:
        texts.append('CuPy not installed' if findings.is_missing('cupy') else 'CuPy fails')
    names = [name for name in findings.distributions if name.startswith(('cupy', 'nvidia-', 'cuda-'))]
    facts = {
        'gpu_works': cupy_works(findings),
        'cupy': findings.version('cupy'),
        'packages': {name: findings.distributions[name] for name in names},
    }
    return Section('CUDA', ', '.join(texts), cuda_advice(findings), facts)


def describe_cudnn(findings: Findings) -> Section:
    """Return the section on cuDNN, its Frontend and NCCL."""
    facts, texts = findings.facts('cudnn'), []
    if facts.get('is_usable'):
        texts.append(f'cuDNN {library_text(facts["version"])}, Frontend {facts["frontend"]}')
    else:
        packages = [name for name in findings.distributions if name.startswith('nvidia-cudnn')]
        texts.append(f'cuDNN {"not used" if packages or "version" in facts else "not installed"}')
    if findings.error('nccl') is None:
        texts.append(f'NCCL {library_text(findings.facts("nccl")["version"])}')
    else:
        texts.append('NCCL not installed' if findings.is_missing('cupy') else 'NCCL not found')
    advice = cudnn_advice(findings) + nccl_advice(findings)
    return Section('cuDNN', ', '.join(texts), advice, {'cudnn': dict(facts), 'nccl': dict(findings.facts('nccl'))})


def library_text(version: int) -> str:
    """Return ``'9.28.0'`` for 92800, the form of versions of cuDNN 9 and NCCL."""
    return f'{version // 10000}.{version // 100 % 100}.{version % 100}'
