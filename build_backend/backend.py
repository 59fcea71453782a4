"""The build backend: setuptools, with wheels of Chainer and ChainerCV and reproducible archives.

Chainer and ChainerCV are requirements that pip cannot build (:mod:`chainer_wheels`).  The metadata that this backend
gives to pip, uv or pipx therefore refers to wheels of them in the user's cache, which it makes there first:
``chainer @ file:///...``.  Such a reference is valid on this machine only.  The setting ``portable=true`` keeps the
plain requirements, for wheels that are published beside those of Chainer and ChainerCV:

    python -m build --config-setting portable=true
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from archives import normalise_sdist, normalise_wheel
from chainer_wheels import BuildError, cache_folder, make_wheels
from setuptools import build_meta

__all__ = [
    'build_editable',
    'build_sdist',
    'build_wheel',
    'get_requires_for_build_editable',
    'get_requires_for_build_sdist',
    'get_requires_for_build_wheel',
    'prepare_metadata_for_build_editable',
    'prepare_metadata_for_build_wheel',
]

_Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    """Return the requirements of setuptools for a wheel."""
    with _clean_checkout():
        return build_meta.get_requires_for_build_wheel(_split(config_settings)[0])


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    """Return the requirements of setuptools for an editable wheel."""
    with _clean_checkout():
        return build_meta.get_requires_for_build_editable(_split(config_settings)[0])


def get_requires_for_build_sdist(config_settings: _Settings = None) -> list[str]:
    """Return the requirements of setuptools for a source archive."""
    with _clean_checkout():
        return build_meta.get_requires_for_build_sdist(_split(config_settings)[0])


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: _Settings = None) -> str:
    """Write the folder ``.dist-info`` of the wheel; return its name."""
    return _prepare_metadata(build_meta.prepare_metadata_for_build_wheel, metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: _Settings = None) -> str:
    """Write the folder ``.dist-info`` of the editable wheel; return its name."""
    return _prepare_metadata(build_meta.prepare_metadata_for_build_editable, metadata_directory, config_settings)


def _prepare_metadata(prepare: Callable[..., str], metadata_directory: str, config_settings: _Settings) -> str:
    settings, portable = _split(config_settings)
    with _clean_checkout():
        name = prepare(metadata_directory, settings)
    if not portable:
        _refer_to_wheels(Path(metadata_directory, name, 'METADATA'))
    return name


def build_wheel(wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None) -> str:
    """Build the wheel; return its file name."""
    settings, _ = _split(config_settings)
    with tempfile.TemporaryDirectory() as folder, _clean_checkout():
        if metadata_directory is None:
            metadata_directory = str(Path(folder, prepare_metadata_for_build_wheel(folder, config_settings)))
        name = build_meta.build_wheel(wheel_directory, settings, metadata_directory)
    normalise_wheel(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the editable wheel; return its file name."""
    settings, _ = _split(config_settings)
    with tempfile.TemporaryDirectory() as folder, _clean_checkout():
        if metadata_directory is None:
            prepare_metadata_for_build_editable(folder, config_settings)
        else:
            # setuptools expects the parent of the folder, although frontends give the folder itself
            shutil.copytree(metadata_directory, Path(folder, Path(metadata_directory).name))
        return build_meta.build_editable(wheel_directory, settings, folder)


def build_sdist(sdist_directory: str, config_settings: _Settings = None) -> str:
    """Build the source archive; return its file name."""
    settings, _ = _split(config_settings)
    with _clean_checkout():
        name = build_meta.build_sdist(sdist_directory, settings)
    normalise_sdist(Path(sdist_directory, name), _declare_requirements_dynamic)
    return name


def _declare_requirements_dynamic(name: str, content: bytes) -> bytes:
    """Return a file of the source archive, whose ``PKG-INFO`` would let uv rely on requirements that do not build."""
    if name.count('/') != 1 or not name.endswith('/PKG-INFO'):
        return content
    return content.replace(b'\nRequires-Dist: ', b'\nDynamic: Requires-Dist\nRequires-Dist: ', 1)


@contextlib.contextmanager
def _clean_checkout() -> Iterator[None]:
    """Let setuptools write its folders ``build`` and ``.egg-info`` elsewhere.

    It would otherwise take deleted modules from those of an earlier build, and could not build in a read-only checkout.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = Path(folder, 'options.cfg')
        options.write_text(f'[build]\nbuild_base = {folder}/build\n[egg_info]\negg_base = {folder}\n', encoding='utf-8')
        before = os.environ.get('DIST_EXTRA_CONFIG')
        os.environ['DIST_EXTRA_CONFIG'] = str(options)
        try:
            yield
        finally:
            os.environ.pop('DIST_EXTRA_CONFIG')
            if before is not None:
                os.environ['DIST_EXTRA_CONFIG'] = before


def _split(config_settings: _Settings) -> tuple[dict[str, Any], bool]:
    """Return the settings of setuptools and the value of ``portable``."""
    settings = dict(config_settings or {})
    value = str(settings.pop('portable', 'false')).lower()
    if value not in ('true', 'false'):
        raise SystemExit(f'mask-rcnn-chainer: the setting "portable" is "true" or "false", not "{value}"')
    return settings, value == 'true'


def _refer_to_wheels(metadata: Path) -> None:
    """Replace the requirements of Chainer and ChainerCV by references to their wheels."""
    try:
        wheels = make_wheels(cache_folder())
    except BuildError as error:
        raise SystemExit(f'mask-rcnn-chainer: {error}') from error
    text = metadata.read_text(encoding='utf-8')
    for requirement, wheel in wheels.items():
        line, reference = f'Requires-Dist: {requirement}\n', f'{requirement.split("==")[0]} @ {wheel.as_uri()}'
        if line not in text:
            raise SystemExit(f'mask-rcnn-chainer: the metadata does not require {requirement}')
        text = text.replace(line, f'Requires-Dist: {reference}\n')
    metadata.write_text(text, encoding='utf-8', newline='\n')
