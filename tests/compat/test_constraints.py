"""constraints.txt: one version of every package that the extras install, for each Python."""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.compat.test_matrix import NO_NETWORK, VERSIONS, find_python

#: The extras without the GPU libraries, whose CUDA packages follow from CuPy.
EXTRAS = ('demo', 'dist', 'docs', 'lint', 'mpi', 'notebooks', 'onnx', 'serve', 'tensorboard', 'test')


def read_requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a text file."""
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def read_constraints(root) -> list[Requirement]:
    return read_requirements(root / 'constraints.txt')


def applies(requirement: Requirement, version: str, extra: str = '') -> bool:
    """Return whether a requirement is one of a version of Python."""
    return requirement.marker is None or requirement.marker.evaluate({'python_version': version, 'extra': extra})


def pins(root, version: str) -> dict[str, str]:
    """Return name -> version for a version of Python."""
    chosen = [line for line in read_constraints(root) if applies(line, version)]
    return {canonicalize_name(line.name): str(line.specifier).removeprefix('==') for line in chosen}


def requirements(root, version: str, *names: str) -> list[Requirement]:
    """Return the requirements of the package and of extras on a version of Python, as the project declares them."""
    text = (root / 'pyproject.toml').read_text()
    extras = [re.search(rf'^{name} = \[(.*)\]', text, re.MULTILINE)[1] for name in names]
    words = [word for extra in extras for word in re.findall(r'"([^"]+)"', extra)]
    base = read_requirements(root / 'build_backend' / 'dependencies.txt')
    return [line for line in [*base, *map(Requirement, words)] if applies(line, version)]


def test_every_line_pins_one_version(root):
    lines = read_constraints(root)
    assert len(lines) > 100
    assert [str(line) for line in lines if not re.fullmatch(r'==[\w.]+', str(line.specifier))] == []


@pytest.mark.parametrize('version', VERSIONS)
def test_a_package_has_one_version_for_each_python(root, version):
    names = [canonicalize_name(line.name) for line in read_constraints(root) if applies(line, version)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize('version', VERSIONS)
def test_the_versions_are_those_that_the_extras_allow(root, version):
    # The exact versions of Chainer and ChainerCV are in pyproject.toml itself.
    found = pins(root, version) | {'chainer': '7.8.1', 'chainercv': '0.13.1'}
    declared = requirements(root, version, *EXTRAS, 'cuda12', 'cuda13')
    names = {line.name for line in declared}
    assert {'jupyterlab', 'ruff', 'numba', 'nvidia-nccl-cu13'} <= names
    assert ({'h5py', 'mahotas', 'onnxruntime'} & names == set()) == (version == '3.15')  # no wheels
    assert [str(line) for line in declared if not line.specifier.contains(found[canonicalize_name(line.name)])] == []


def _installed(line: Requirement, version: str, seen: set[tuple]) -> Iterator[str]:
    """Yield the names of a requirement and of all that it requires, as far as they are installed."""
    key = canonicalize_name(line.name), frozenset(line.extras)
    if key in seen:
        return
    seen.add(key)
    yield key[0]
    try:
        distribution = importlib.metadata.distribution(line.name)
    except importlib.metadata.PackageNotFoundError:
        return
    for word in distribution.requires or ():
        required = Requirement(word)
        if any(applies(required, version, extra) for extra in ('', *line.extras)):
            yield from _installed(required, version, seen)


def test_the_installed_packages_are_pinned(root):
    version = '.'.join(map(str, sys.version_info[:2]))
    names = {name for line in requirements(root, version, *EXTRAS) for name in _installed(line, version, set())}
    assert len(names) > 60
    assert names - pins(root, version).keys() <= {'chainer', 'chainercv'}


@pytest.mark.slow
@pytest.mark.parametrize('version', VERSIONS)
def test_pip_installs_no_other_package(root, version, tmp_path):
    """Nor does it compile one; Chainer and ChainerCV, which have no wheels, are left out."""
    python = find_python(version)
    if python is None:
        pytest.skip(f'no Python {version}')
    lines = [str(line) for line in requirements(root, version, *EXTRAS) if not line.name.startswith('chainer')]
    report = tmp_path / 'report.json'
    subprocess.run([python, '-m', 'venv', tmp_path / 'env'], check=True)  # Debian's Python has no pip outside one
    command = [tmp_path / 'env' / 'bin' / 'python', '-m', 'pip', '--disable-pip-version-check', 'install', '-q']
    command += ['--dry-run', '--ignore-installed', '--only-binary', ':all:', '-c', str(root / 'constraints.txt')]
    command += ['--report', str(report), *lines]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and any(words in result.stderr for words in NO_NETWORK):
        pytest.skip('pip cannot reach a package index')
    assert result.returncode == 0, result.stderr[-3000:]
    items = [item['metadata'] for item in json.loads(report.read_text())['install']]
    found = {canonicalize_name(item['name']): item['version'] for item in items}
    assert {'jupyterlab', 'nbconvert', 'pytest', 'mypy'} <= found.keys()
    assert found.items() <= pins(root, version).items()
