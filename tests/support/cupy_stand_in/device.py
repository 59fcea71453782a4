"""``cupy.cuda.Device`` and the functions of CUDA's runtime and driver."""

from __future__ import annotations

import os
import types

from tests.support.cupy_stand_in import memory, streams
from tests.support.cupy_stand_in.streams import CUDARuntimeError

#: Compute capability times ten.
CAPABILITY = os.environ.get('CUPY_STAND_IN_CAPABILITY', '90')
_VERSION = 13000


class Device:
    """``cupy.cuda.Device``; there is one."""

    compute_capability = CAPABILITY
    pci_bus_id = '0000:00:00.0'

    def __init__(self, device: int | Device | None = None):
        self.id = 0 if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    @property
    def attributes(self) -> dict[str, int]:
        return {'MaxSharedMemoryPerBlock': 48 << 10, 'MultiProcessorCount': 132, 'MaxThreadsPerBlock': 1024}

    def _check(self) -> None:
        if self.id != 0:
            raise CUDARuntimeError('cudaErrorInvalidDevice: invalid device ordinal')

    def __enter__(self) -> Device:
        self._check()
        return self

    def __exit__(self, *_) -> None:
        pass

    def __eq__(self, other) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f'<CUDA Device {self.id}>'

    def use(self) -> Device:
        self._check()
        return self

    def synchronize(self) -> None:
        streams.wait()

    @property
    def mem_info(self) -> tuple[int, int]:
        return memory.mem_get_info()

    @property
    def cublas_handle(self) -> int:
        from tests.support.cupy_stand_in import cublas

        return cublas.handle()


def get_device_properties(device: int) -> dict:
    return {
        'name': b'Stand-in',
        'major': int(CAPABILITY[:-1]),
        'minor': int(CAPABILITY[-1]),
        'totalGlobalMem': memory.TOTAL,
        'multiProcessorCount': 132,
        'sharedMemPerBlock': 48 << 10,
    }


def _set_device(device: int) -> None:
    Device(device).use()


RUNTIME = {
    'CUDARuntimeError': CUDARuntimeError,
    'cudaGraphDebugDotFlagsVerbose': 1,
    'deviceSynchronize': streams.wait,
    'driverGetVersion': lambda: _VERSION,
    'getDevice': lambda: 0,
    'getDeviceCount': lambda: 1,
    'getDeviceProperties': get_device_properties,
    'is_hip': False,
    'memGetInfo': memory.mem_get_info,
    'runtimeGetVersion': lambda: _VERSION,
    'setDevice': _set_device,
    'streamCaptureModeRelaxed': 2,
}
DRIVER = {
    'CUDADriverError': type('CUDADriverError', (RuntimeError,), {}),
    'ctxGetCurrent': lambda: 1,
    'get_build_version': lambda: _VERSION,
}


def module(name: str, values: dict) -> types.ModuleType:
    """Return a module of values."""
    result = types.ModuleType(name)
    vars(result).update(values)
    return result
