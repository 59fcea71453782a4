"""The build backend: metadata, settings, and a checkout that stays clean."""

import email.parser
import tarfile
import zipfile
from pathlib import Path

import pytest

import mask_rcnn


@pytest.fixture
def wheels(backend, monkeypatch, tmp_path):
    """The wheels of Chainer and ChainerCV, which are not made."""
    wheels = {'chainer==7.8.1': tmp_path / 'a b' / 'chainer.whl', 'chainercv==0.13.1': tmp_path / 'chainercv.whl'}
    monkeypatch.setattr(backend, 'make_wheels', lambda folder: wheels)
    return wheels


@pytest.fixture
def checkout(root, monkeypatch):
    """A frontend calls the backend in the checkout; setuptools leaves none of its folders there."""
    monkeypatch.chdir(root)
    before = {*root.glob('build'), *root.glob('*.egg-info')}
    yield root
    assert {*root.glob('build'), *root.glob('*.egg-info')} == before


def requirements(metadata: bytes) -> list[str]:
    return email.parser.BytesParser().parsebytes(metadata).get_all('Requires-Dist')


def test_the_metadata_refer_to_the_wheels(backend, wheels, checkout, tmp_path):
    name = backend.prepare_metadata_for_build_wheel(str(tmp_path))
    found = requirements((tmp_path / name / 'METADATA').read_bytes())
    assert f'chainer @ {wheels["chainer==7.8.1"].as_uri()}' in found and 'a%20b' in found[0]
    assert f'chainercv @ {wheels["chainercv==0.13.1"].as_uri()}' in found
    assert [line for line in found if line.startswith('chainer')] == found[:2]
    assert name == f'mask_rcnn_chainer-{mask_rcnn.__version__}.dist-info'


def test_a_portable_wheel_names_versions(backend, checkout, tmp_path):
    name = backend.build_wheel(str(tmp_path), {'portable': 'true'})
    with zipfile.ZipFile(tmp_path / name) as wheel:
        metadata = wheel.read(f'mask_rcnn_chainer-{mask_rcnn.__version__}.dist-info/METADATA')
        files = set(wheel.namelist())
    assert requirements(metadata)[:2] == ['chainer==7.8.1', 'chainercv==0.13.1']
    assert b'License-Expression: MIT' in metadata
    suffixes = ('.py', '.cu', '.cuh', '.js', '.css', '.html', '.svg', 'py.typed')
    package = {
        path.relative_to(checkout).as_posix()
        for path in (checkout / 'mask_rcnn').rglob('*')
        if path.is_file() and path.name.endswith(suffixes)
    }
    assert {name for name in files if '.dist-info/' not in name} == package


def test_the_metadata_of_a_wheel_are_those_that_the_frontend_was_given(backend, wheels, checkout, tmp_path):
    (tmp_path / 'metadata').mkdir()
    metadata = tmp_path / 'metadata' / backend.prepare_metadata_for_build_wheel(str(tmp_path / 'metadata'))
    name = backend.build_wheel(str(tmp_path), None, str(metadata))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith('METADATA')]
        assert wheel.read(member) == (metadata / 'METADATA').read_bytes()


def test_an_editable_wheel_refers_to_the_wheels_of_chainer(backend, wheels, checkout, tmp_path):
    (tmp_path / 'metadata').mkdir()
    metadata = tmp_path / 'metadata' / backend.prepare_metadata_for_build_editable(str(tmp_path / 'metadata'))
    name = backend.build_editable(str(tmp_path), None, str(metadata))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith('METADATA')]
        assert requirements(wheel.read(member))[0].startswith('chainer @ file:///')


def test_an_unknown_value_is_refused(backend, tmp_path):
    with pytest.raises(SystemExit, match='"portable" is "true" or "false", not "yes"'):
        backend.prepare_metadata_for_build_wheel(str(tmp_path), {'portable': 'yes'})


def test_a_failed_download_is_one_line(backend, checkout, monkeypatch, tmp_path):
    def fail(folder: Path):
        raise backend.BuildError('pip could not download chainer==7.8.1')

    monkeypatch.setattr(backend, 'make_wheels', fail)
    with pytest.raises(SystemExit, match=r'^mask-rcnn-chainer: pip could not download chainer==7\.8\.1$'):
        backend.prepare_metadata_for_build_wheel(str(tmp_path))


def test_a_source_archive_declares_that_its_requirements_depend_on_the_build(backend, checkout, tmp_path):
    """Otherwise, uv reads the requirements from ``PKG-INFO`` and does not call the backend."""
    name = backend.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as sdist:
        names = sdist.getnames()
        pkg_info = sdist.extractfile(f'{name.removesuffix(".tar.gz")}/PKG-INFO').read()
    assert email.parser.BytesParser().parsebytes(pkg_info).get_all('Dynamic').count('Requires-Dist') == 1
    folders = {path.split('/')[1] for path in names if path.count('/') > 1}
    assert folders == {'build_backend', 'mask_rcnn'}
