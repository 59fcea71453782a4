"""The findings of ``mask-rcnn doctor`` before it judges them: results of probes and programs, versions, variables."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from mask_rcnn.cli.doctor import probes
from mask_rcnn.cli.doctor.children import Program, run_probes, run_program, run_together
from mask_rcnn.cli.doctor.report import shorten

#: The name of this distribution.
DISTRIBUTION = 'mask-rcnn-chainer'

#: Time limits in seconds: of a process that imports libraries (on a slow disk), of one that also compiles for a GPU, of
#: nvidia-smi (seconds for each GPU without its persistence mode), and of programs that print their version.
_IMPORT_TIME, _GPU_TIME, _SMI_TIME, _VERSION_TIME = 60, 120, 20, 10

_PCI_DEVICES = Path('/sys/bus/pci/devices')
_NVIDIA_VENDOR = '0x10de'
#: The first digits of the PCI classes of displays and of 3D controllers.
_DISPLAY_CLASS = '0x03'


@dataclass
class Findings:
    """The facts that sections describe and judge.

    Args:
        probes: Name -> the facts of a probe, or ``{'error': reason}``; see :mod:`mask_rcnn.cli.doctor.probes`.
        smi: The list of nvidia-smi: lines ``name, memory in MiB, driver``; ``None`` if the program is not found.
        smi_banner: Its table, which states the CUDA version of the driver.
        mpiexec: The version of mpiexec; ``None`` if it is not found.
        ffmpeg: The version of ffmpeg; ``None`` if it is not found.
        paths: Program -> its path; ``'scripts'`` -> the folder of this environment, if it contains mpiexec.
        distributions: Normalised name -> version of the installed distributions.
        environment: The environment variables.
        system: ``'Linux'``, ``'Darwin'`` or ``'Windows'``.
        has_nvidia_device: True if the system lists an NVIDIA GPU, with or without a driver.
        pip: The command that installs packages into this environment.
    """

    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    smi: Program | None = None
    smi_banner: Program | None = None
    mpiexec: Program | None = None
    ffmpeg: Program | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    system: str = 'Linux'
    has_nvidia_device: bool = False
    pip: str = 'pip'

    def facts(self, name: str) -> Mapping[str, Any]:
        """Return the facts of a probe."""
        return self.probes.get(name, {'error': 'not checked'})

    def error(self, name: str) -> str | None:
        """Return the reason why a probe has failed; ``None`` if it has returned facts."""
        return self.facts(name).get('error')

    def is_missing(self, name: str) -> bool:
        """Return whether a module is not installed."""
        return self.error(name) is not None and self.facts(name).get('missing') == name

    def version(self, name: str) -> str:
        """Return the version of a module, or ``'not installed'``, or ``'broken'``."""
        if self.error(name) is None:
            return str(self.facts(name).get('version'))
        return 'not installed' if self.is_missing(name) else 'broken'

    def install(self, *extras: str) -> str:
        """Return the command that installs extras of this distribution, or those of the checkout without one.

        It names their packages: no package index has this distribution, and pip could read the installed one's
        requirements only while the wheels of Chainer, from which it was installed, are in the cache of the user.
        """
        targets = extra_requirements(extras) if DISTRIBUTION in self.distributions else []
        return ' '.join([self.pip, 'install', *(f'"{target}"' for target in targets or [f'.[{",".join(extras)}]'])])


def gather() -> Findings:
    """Run all probes and programs at the same time.  A part that fails leaves its field at its default."""
    smi = find_smi()
    paths = {name: path for name in ('mpiexec', 'ffmpeg') if (path := shutil.which(name))}
    scripts = os.path.dirname(sys.executable)
    if shutil.which('mpiexec', path=scripts):
        paths['scripts'] = scripts
    tasks: dict[str, Callable[[], Any]] = {
        'core': partial(run_probes, probes.CORE, _IMPORT_TIME),
        'packages': partial(run_probes, probes.PACKAGES, _IMPORT_TIME),
        'gpu': partial(run_probes, probes.GPU, _GPU_TIME),
        'distributions': installed_distributions,
        'has_nvidia_device': has_nvidia_device,
        'pip': pip_command,
    }
    if smi is not None:
        query = [smi, '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader,nounits']
        tasks |= {'smi': partial(run_program, query, _SMI_TIME), 'smi_banner': partial(run_program, [smi], _SMI_TIME)}
    if 'mpiexec' in paths:
        tasks['mpiexec'] = partial(run_program, [paths['mpiexec'], '--version'], _VERSION_TIME)
    if 'ffmpeg' in paths:
        tasks['ffmpeg'] = partial(run_program, [paths['ffmpeg'], '-version'], _VERSION_TIME)
    results = run_together(tasks)
    found: dict[str, Any] = {}
    for group, names in (('core', probes.CORE), ('packages', probes.PACKAGES), ('gpu', probes.GPU)):
        result = results.pop(group)
        if isinstance(result, Exception):
            result = {name: {'error': f'cannot be checked: {shorten(result)}'} for name in names}
        found |= result
    good = {name: result for name, result in results.items() if not isinstance(result, Exception)}
    return Findings(found, paths=paths, environment=dict(os.environ), system=platform.system(), **good)


def find_smi() -> str | None:
    """Return the path of nvidia-smi, which WSL does not have in its search path."""
    return shutil.which('nvidia-smi') or shutil.which('nvidia-smi', path='/usr/lib/wsl/lib')


def installed_distributions() -> dict[str, str]:
    """Return normalised name -> version of all installed distributions; a damaged one is left out."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        with contextlib.suppress(Exception):
            found.setdefault(re.sub(r'[-_.]+', '-', distribution.metadata['Name']).lower(), distribution.version)
    return found


def has_nvidia_device(folder: Path = _PCI_DEVICES) -> bool:
    """Return whether Linux lists an NVIDIA GPU, with or without a driver."""
    for device in folder.glob('*'):
        with contextlib.suppress(OSError):
            is_display = (device / 'class').read_text(encoding='ascii').startswith(_DISPLAY_CLASS)
            if is_display and (device / 'vendor').read_text(encoding='ascii').strip() == _NVIDIA_VENDOR:
                return True
    return False


def extra_requirements(extras: Sequence[str]) -> list[str]:
    """Return the requirements, such as ``'onnx>=1.17'``, of extras of this distribution on this system."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # not installed, or a damaged packaging
        from packaging.requirements import Requirement

        for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
            marker, requirement.marker = requirement.marker, None
            if marker and 'extra' in str(marker) and any(marker.evaluate({'extra': extra}) for extra in extras):
                found.append(str(requirement))
    return found


def pip_command() -> str:
    """Return the command for this environment: that of pipx in its folders, and of uv in an environment without pip.

    The program ``pip`` of the user's search path can be that of another environment.
    """
    if 'pipx' in Path(sys.prefix).parts:
        return f'pipx runpip {DISTRIBUTION}'
    if importlib.util.find_spec('pip'):
        pip, executable = shutil.which('pip'), sys.executable
        is_active = pip is not None and os.path.dirname(pip) == os.path.dirname(executable)
        return 'pip' if is_active else f'{_quoted(executable)} -m pip'
    is_active = os.name != 'posix' or os.environ.get('VIRTUAL_ENV') == sys.prefix
    return 'uv pip' if is_active else f'VIRTUAL_ENV={_quoted(sys.prefix)} uv pip'


def _quoted(path: str) -> str:
    """Return a path as a word of a command line."""
    if os.name == 'posix':
        return shlex.quote(path)
    return f'"{path}"' if ' ' in path else path
