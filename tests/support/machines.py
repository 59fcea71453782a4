"""Machines for the tests of ``mask-rcnn doctor``: a complete one with GPUs, one without, and changes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from mask_rcnn.cli.doctor import probes
from mask_rcnn.cli.doctor.children import Program
from mask_rcnn.cli.doctor.findings import Findings

H200 = {'name': 'NVIDIA H200', 'memory': 150 * 2**30, 'capability': [9, 0]}

SMI_BANNER = """\
Fri Nov 28 12:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+"""

_FACTS: dict[str, dict[str, Any]] = {
    **{name: {'version': '1.2.3'} for name in probes.PROBES},
    'numpy': {'version': '2.4.6'},
    'cv2': {'version': '4.13.0', 'gui': 'QT5'},
    'numba': {'version': '0.68.1', 'is_disabled': False, 'cpu': 'znver4', 'features': ['AVX2', 'FMA']},
    'blas': {'name': 'scipy-openblas', 'version': '0.3.31.188.0', 'core': 'SkylakeX'},
    'threads': {'cpus': 8, 'available': 8, 'threads': 8, 'blas_threads': 8},
    'kernels': {
        'n_kernels': 78,
        'n_stored': 70,
        'folders': ['/p/a/__pycache__', '/p/b/__pycache__'],
        'no_folder': None,
    },
    'weights': {
        'folders': {'/c/models': None, 'modelfiles': ['a.npz']},
        'default': 'modelfiles/d.npz',
        'has_default': True,
        'advice': 'save it',
    },
    'mpi4py': {'version': '4.1.2', 'library': 'Open MPI 5.0.11'},
    'driver': {'version': 12040, 'status': 0, 'gpus': [H200]},
    'cupy': {'version': '14.2.0', 'is_rocm': False, 'n_gpus': 1, 'runtime': 12090},
    'compiler': {'version': '12.9'},
    'cublas': {'version': 120900},
    'cudnn': {'is_usable': True, 'reason': None, 'version': 92800, 'frontend': '1.32.0'},
    'nccl': {'version': 23203},
}

_DISTRIBUTIONS = {
    'mask-rcnn-chainer': '0.2.0',
    'opencv-python-headless': '4.13.0.92',
    'cupy-cuda12x': '14.2.0',
    'nvidia-cudnn-cu12': '9.28.0.42',
    'nvidia-cudnn-frontend': '1.32.0',
    'nvidia-nccl-cu12': '2.32.3',
}


def complete_machine() -> Findings:
    """Return a machine with a GPU on which everything works."""
    return Findings(
        probes={name: dict(facts) for name, facts in _FACTS.items()},
        smi=Program(0, 'NVIDIA H200, 153600, 550.54.14'),
        smi_banner=Program(0, SMI_BANNER),
        mpiexec=Program(0, 'mpiexec (OpenRTE) 5.0.11'),
        ffmpeg=Program(0, 'ffmpeg version 7.1'),
        paths={'mpiexec': '/usr/bin/mpiexec', 'ffmpeg': '/usr/bin/ffmpeg'},
        distributions=dict(_DISTRIBUTIONS),
        environment={'DISPLAY': ':0'},
        system='Linux',
        has_nvidia_device=True,
    )


def machine_without_gpu() -> Findings:
    """Return a machine without a GPU, its driver and its libraries on which everything else works."""
    machine = with_probes(
        complete_machine(),
        driver={'error': 'OSError: libcuda.so.1: cannot open shared object file'},
        **{name: missing('cupy') for name in ('cupy', 'compiler', 'cublas', 'cudnn', 'nccl')},
    )
    names = {name: version for name, version in _DISTRIBUTIONS.items() if not name.startswith(('cupy', 'nvidia'))}
    return dataclasses.replace(machine, smi=None, smi_banner=None, has_nvidia_device=False, distributions=names)


def with_probes(machine: Findings, **facts: dict[str, Any]) -> Findings:
    """Return a machine on which probes return other facts."""
    return dataclasses.replace(machine, probes={**machine.probes, **facts})


def with_distributions(machine: Findings, **versions: str | None) -> Findings:
    """Return a machine with other packages: name, with underscores, -> version, or ``None`` for none."""
    changed = dict(machine.distributions) | {name.replace('_', '-'): version for name, version in versions.items()}
    return dataclasses.replace(
        machine, distributions={name: version for name, version in changed.items() if version is not None}
    )


def missing(name: str) -> dict[str, Any]:
    """Return the result of a probe that imports a module which is not installed."""
    return {'error': f'No module named {name!r}', 'missing': name}
