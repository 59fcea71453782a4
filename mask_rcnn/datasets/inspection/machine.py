"""The memory of the machine that trains."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.inspection.suggestions import Machine
from mask_rcnn.ops.runtime.device import get_device

#: Files with the memory limit of a container, in bytes: control groups of version 2 and 1.
_LIMIT_FILES = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')
#: The memory of a system that does not state its own.
_DEFAULT_MEMORY = 8 * 2**30


def find_machine(gpu: int) -> Machine:
    """Return the machine with a CUDA device id; a negative id selects the CPU.

    Raises:
        ValueError: The GPU does not exist, or CUDA or CuPy does not work.
    """
    if gpu < 0:
        return Machine(_main_memory(), has_gpu=False)
    device: Any = get_device(gpu)
    return Machine(int(device.device.mem_info[1]), has_gpu=True)


def _main_memory() -> int:
    """Return the main memory in bytes, or the limit of the container if it is smaller."""
    try:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        memory = _DEFAULT_MEMORY
    for path in _LIMIT_FILES:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the text "max"
            memory = min(memory, int(Path(path).read_text(encoding='ascii')))
    return memory
