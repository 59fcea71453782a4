"""The section on MPI, which several processes need."""

from __future__ import annotations

import re

from mask_rcnn.cli.doctor.findings import Findings
from mask_rcnn.cli.doctor.report import Advice, Section, shorten

#: Implementation of MPI -> texts in the version that its ``mpiexec`` prints and its library returns.
_IMPLEMENTATIONS = {
    'Open MPI': ('Open MPI', 'OpenRTE', 'open-mpi', 'PRRTE', 'prterun'),
    'MPICH': ('MPICH', 'HYDRA'),
    'Intel MPI': ('Intel(R) MPI',),
    'Microsoft MPI': ('Microsoft MPI',),
}


def implementation(text: str) -> str | None:
    """Return the implementation of MPI that a text of its programs or libraries names."""
    return next((name for name, marks in _IMPLEMENTATIONS.items() if any(mark in text for mark in marks)), None)


def describe_mpi(findings: Findings) -> Section:
    """Return the section on mpi4py, the library of MPI and mpiexec."""
    facts, launcher, path = findings.facts('mpi4py'), findings.mpiexec, findings.paths.get('mpiexec')
    texts = [f'mpi4py {findings.version("mpi4py")}']
    if 'library' in facts:
        texts.append(facts['library'])
    if launcher is None:
        texts.append('no mpiexec')
    else:
        version = re.search(r'\d+\.\d+[\w.]*', launcher.text)
        name = implementation(launcher.text)
        is_known = name and version and launcher.status == 0
        texts.append(f'mpiexec of {name} {version[0]}' if is_known and version else f'mpiexec {path}')
    text = _fault(findings)
    advice = [] if text is None else [Advice('note' if findings.is_missing('mpi4py') else 'warning', text)]
    return Section('MPI', ', '.join(texts), advice, {'mpi4py': findings.version('mpi4py'), 'mpiexec': path})


def _fault(findings: Findings) -> str | None:
    reason, launcher, install = findings.error('mpi4py'), findings.mpiexec, findings.install('mpi')
    if findings.is_missing('mpi4py'):
        return f'mpi4py, for several processes, is not installed: {install}'
    if reason is not None:
        if 'MPI library' in reason or 'libmpi' in reason:
            system = 'install Microsoft MPI' if findings.system == 'Windows' else 'sudo apt install openmpi-bin'
            return f'mpi4py finds no library of MPI ({reason}): {install}; or {system}'
        return f'mpi4py fails ({reason}): {findings.pip} install --force-reinstall --no-deps mpi4py'
    if launcher is None:
        folder = findings.paths.get('scripts')
        remedy = f'activate the environment, which contains it ({folder})' if folder else install
        return f'mpiexec is not found, and mpi4py works: {remedy}'
    path = findings.paths.get('mpiexec', 'mpiexec')
    if launcher.status != 0:
        return (
            f'{path} fails ({shorten(launcher.text.splitlines()[0] if launcher.text else launcher.status)}): {install}'
        )
    library, program = implementation(str(findings.facts('mpi4py').get('library'))), implementation(launcher.text)
    if library and program and library != program:
        fault = f'mpi4py loads {library}, and {path} starts processes of {program}'
        return f'{fault}: put the mpiexec of {library} first in PATH'
    return None
