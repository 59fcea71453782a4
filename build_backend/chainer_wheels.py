"""Make wheels of Chainer and ChainerCV from their source archives, without a compiler and without running their code.

    python build_backend/chainer_wheels.py FOLDER

Both are published as source archives only, whose ``setup.py`` needs a setuptools that is older than 81.  ChainerCV's
also compiles a C extension, which fails on Python 3.11 and later and which :mod:`mask_rcnn.compat` replaces, and
installs its tests as a package ``tests``.  Their wheels here contain the Python files of the archives, unchanged, and
their metadata.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import platformdirs
from archives import is_intact, write_wheel

#: What to do about a folder of the user that cannot be used.
_REMEDY = 'make space there that you can write to'
if sys.platform != 'win32':
    _REMEDY += ', or set XDG_CACHE_HOME to the absolute path of another folder'

#: Variables that would add requirements, or restrict those of this download: a constraint of the user can name another
#: version of Chainer, which pip reports for the installation itself, or a file relative to another current folder.
_VARIABLES_OF_OTHER_REQUIREMENTS = ('PIP_CONSTRAINT', 'PIP_EDITABLE', 'PIP_GROUP', 'PIP_REQUIREMENT')


#: The beginnings of variables in which a frontend names this build backend: pip would take it for that of Chainer.
_VARIABLES_OF_THE_FRONTEND = ('_PYPROJECT_HOOKS_', 'PEP517_')


class BuildError(Exception):
    """A wheel cannot be made; the message contains the remedy."""


@dataclasses.dataclass(frozen=True)
class SourceArchive:
    """A source archive of the package index.

    Attributes:
        name: Name of the distribution.
        version: Its version.
        sha256: The checksum of the archive, in hexadecimal digits.
        author: Its authors.
        summary: A description of one line; ChainerCV's ``PKG-INFO`` has one that is not valid.
        packages: Its top-level packages.
        requirements: The distributions that it needs.
    """

    name: str
    version: str
    sha256: str
    author: str
    summary: str
    packages: tuple[str, ...]
    requirements: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The requirement that this archive satisfies."""
        return f'{self.name}=={self.version}'

    @property
    def wheel(self) -> str:
        """The file name of its wheel."""
        return f'{self.name}-{self.version}-py3-none-any.whl'


#: Chainer also names setuptools, for ``pkg_resources``, which :mod:`mask_rcnn.compat` supplies.
ARCHIVES = (
    SourceArchive(
        name='chainer',
        version='7.8.1',
        sha256='179f06176f8d7a42385bc7811956db04e68213cfe30f5081491b9e2b6ff70de8',
        author='Seiya Tokui',
        summary='A flexible framework of neural networks',
        packages=('chainer', 'chainermn', 'chainerx', 'onnx_chainer'),
        requirements=('filelock', 'numpy>=1.9.0', 'protobuf>=3.0.0', 'six>=1.9.0', 'typing_extensions'),
    ),
    SourceArchive(
        name='chainercv',
        version='0.13.1',
        sha256='84214bd2fc191dacd73a95342ac45ded36232fc588825458752ec57df5e97ded',
        author='Yusuke Niitani, Toru Ogawa',
        summary='Collection of Deep Learning Computer Vision Algorithms implemented in Chainer',
        packages=('chainercv',),
        requirements=('chainer>=6.0', 'Pillow'),
    ),
)


def cache_folder() -> Path:
    """Return the folder of the user that keeps the wheels.

    Raises:
        BuildError: The user has no home folder, or a variable names a relative one.
    """
    folder = Path(platformdirs.user_cache_dir('mask-rcnn-chainer', appauthor=False)) / 'wheels'
    if not folder.is_absolute():
        raise BuildError(f'{folder}: the cache of the user is not an absolute path; {_REMEDY}')
    return folder


def make_wheels(folder: Path) -> dict[str, Path]:
    """Make the wheels that a folder does not contain, or only with damage or of an earlier version of this module.

    Args:
        folder: The folder, which is created if it is missing.

    Returns:
        Requirement, such as ``chainer==7.8.1`` -> wheel.

    Raises:
        BuildError: An archive cannot be downloaded, or the folder cannot be written.
    """
    wheels = {archive.requirement: folder / archive.wheel for archive in ARCHIVES}
    missing = [archive for archive in ARCHIVES if not is_intact(wheels[archive.requirement], _metadata_files(archive))]
    if not missing:  # the folder need not be writable
        return wheels
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            sources = _download(missing, Path(temporary))
            for archive in missing:
                unfinished = Path(temporary) / archive.wheel
                write_wheel(unfinished, wheel_files(archive, sources[archive.name]))
                os.replace(unfinished, wheels[archive.requirement])
    except OSError as error:
        reason = error.strerror or error
        raise BuildError(
            f'{folder}: the wheels of Chainer and ChainerCV cannot be written to this folder ({reason}); {_REMEDY}'
        ) from error
    return wheels


def _download(archives: list[SourceArchive], folder: Path) -> dict[str, Path]:
    """Download source archives with pip, which knows the index, the proxy and the certificates of the user.

    pip reads the metadata of an archive by its ``setup.py``, which this environment's setuptools can run.
    """
    lines = [f'{archive.requirement} --hash=sha256:{archive.sha256}\n' for archive in archives]
    requirements = folder / 'requirements.txt'
    requirements.write_text(''.join(lines), encoding='utf-8')
    options = ['--no-deps', '--no-build-isolation', '--no-binary', ':all:', '--disable-pip-version-check', '-q']
    command = [sys.executable, '-m', 'pip', 'download', *options, '-d', str(folder), '-r', str(requirements)]
    if subprocess.run(command, check=False, stdout=sys.stderr, env=_environment()).returncode:
        names = ' and '.join(archive.requirement for archive in archives)
        raise BuildError(
            f'pip could not download {names} (see above); check the network, and name a proxy or another index in '
            'PIP_PROXY or PIP_INDEX_URL, or by "pip config": command-line options do not reach this download'
        )
    return {archive.name: _find(archive, folder) for archive in archives}


def _environment() -> dict[str, str]:
    """Return the environment of pip, with the index of uv if uv runs this backend."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _VARIABLES_OF_OTHER_REQUIREMENTS and not name.startswith(_VARIABLES_OF_THE_FRONTEND)
    }
    for uv_name, pip_name in (
        ('UV_DEFAULT_INDEX', 'PIP_INDEX_URL'),
        ('UV_INDEX_URL', 'PIP_INDEX_URL'),
        ('UV_INDEX', 'PIP_EXTRA_INDEX_URL'),
        ('UV_EXTRA_INDEX_URL', 'PIP_EXTRA_INDEX_URL'),
        ('UV_FIND_LINKS', 'PIP_FIND_LINKS'),
    ):
        if uv_name in environment:
            environment.setdefault(pip_name, environment[uv_name].replace(',', ' '))
    return environment


def _find(archive: SourceArchive, folder: Path) -> Path:
    path = folder / f'{archive.name}-{archive.version}.tar.gz'
    if hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
        raise BuildError(f'{path.name}: the SHA-256 checksum differs from that of the published archive')
    return path


def wheel_files(archive: SourceArchive, path: Path) -> dict[str, bytes]:
    """Return the files of the wheel of a source archive.

    Args:
        archive: Its description.
        path: The ``.tar.gz`` file.

    Returns:
        Path in the wheel -> content, without ``RECORD``.
    """
    root, files = f'{archive.name}-{archive.version}', {}
    with tarfile.open(path) as source:
        for member in source:
            inner, file = member.name.removeprefix(f'{root}/'), source.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            if inner.split('/')[0] in archive.packages and inner.endswith(('.py', '.pyi', '/py.typed')):
                files[inner] = file.read()
            elif inner == 'LICENSE':
                files[f'{root}.dist-info/licenses/LICENSE'] = file.read()
    return {**files, **_metadata_files(archive)}


def _metadata_files(archive: SourceArchive) -> dict[str, bytes]:
    """Return the files of a wheel that describe it."""
    fields = [
        ('Metadata-Version', '2.1'),
        ('Name', archive.name),
        ('Version', archive.version),
        ('Summary', archive.summary),
        ('Author', archive.author),
        ('License', 'MIT'),
        *(('Requires-Dist', requirement) for requirement in archive.requirements),
    ]
    folder = f'{archive.name}-{archive.version}.dist-info'
    return {
        f'{folder}/METADATA': ''.join(f'{name}: {value}\n' for name, value in fields).encode(),
        f'{folder}/WHEEL': (
            b'Wheel-Version: 1.0\nGenerator: mask-rcnn-chainer\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        ),
    }


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        for made in make_wheels(Path(sys.argv[1])).values():
            print(made)
    except BuildError as failure:
        sys.exit(f'chainer_wheels: {failure}')
