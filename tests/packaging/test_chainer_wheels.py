"""Wheels of source archives: small archives in place of those of Chainer and ChainerCV, and a pip that copies them."""

import dataclasses
import email.parser
import hashlib
import io
import subprocess
import tarfile
import zipfile

import pytest

CONTENTS = {
    'PKG-INFO': b'Metadata-Version: 1.0\n',
    'LICENSE': b'the licence',
    'setup.py': b'raise SystemExit("setup.py ran")',
    'small/__init__.py': b'x = 1\n',
    'small/py.typed': b'',
    'small/fast.c': b'int x;',
    'tests/test_small.py': b'assert False',
}


def write_archive(path, contents):
    with tarfile.open(path, 'w:gz') as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f'small-1.2/{name}')
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo('small-1.2/small/link.py')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/hosts'
        tar.addfile(link)


@pytest.fixture
def archive(chainer_wheels, tmp_path, monkeypatch):
    """A source archive on the package index of this test, the only one that a wheel is made of."""
    path = tmp_path / 'small-1.2.tar.gz'
    write_archive(path, CONTENTS)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    small = chainer_wheels.SourceArchive('small', '1.2', checksum, 'N. N.', 'Two words', ('small',), ('numpy>=1.9.0',))
    monkeypatch.setattr(chainer_wheels, 'ARCHIVES', (small,))
    return small


@pytest.fixture
def downloads(archive, tmp_path, monkeypatch):
    """The commands of pip; each copies the archive to the folder of ``-d``."""
    commands = []

    def run(command, **options):
        commands.append((command, options['env']))
        folder = command[command.index('-d') + 1]
        with open(f'{folder}/small-1.2.tar.gz', 'wb') as file:
            file.write((tmp_path / 'small-1.2.tar.gz').read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, 'run', run)
    return commands


def test_a_wheel_contains_the_packages_and_the_metadata_only(chainer_wheels, downloads, tmp_path):
    (wheel,) = chainer_wheels.make_wheels(tmp_path / 'wheels').values()
    assert wheel == tmp_path / 'wheels' / 'small-1.2-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as files:
        contents = {name: files.read(name) for name in files.namelist()}
    metadata = email.parser.BytesParser().parsebytes(contents.pop('small-1.2.dist-info/METADATA'))
    assert dict(metadata.items()) == {
        'Metadata-Version': '2.1',
        'Name': 'small',
        'Version': '1.2',
        'Summary': 'Two words',
        'Author': 'N. N.',
        'License': 'MIT',
        'Requires-Dist': 'numpy>=1.9.0',
    }
    assert set(contents) == {
        'small/__init__.py',
        'small/py.typed',
        'small-1.2.dist-info/WHEEL',
        'small-1.2.dist-info/RECORD',
        'small-1.2.dist-info/licenses/LICENSE',
    }
    assert contents['small/__init__.py'] == CONTENTS['small/__init__.py']


def test_pip_checks_the_hash_and_downloads_once(chainer_wheels, archive, downloads, tmp_path):
    for _ in range(2):
        chainer_wheels.make_wheels(tmp_path / 'wheels')
    ((command, _),) = downloads
    assert '--no-deps' in command and command[command.index('--no-binary') + 1] == ':all:'
    assert [path.name for path in (tmp_path / 'wheels').iterdir()] == ['small-1.2-py3-none-any.whl']


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'other file', 'other content', 'other version'])
def test_a_damaged_wheel_is_made_again(chainer_wheels, archive, downloads, damage, monkeypatch, tmp_path):
    (wheel,) = chainer_wheels.make_wheels(tmp_path / 'wheels').values()
    good = wheel.read_bytes()
    if damage == 'truncated':
        wheel.write_bytes(good[:-100])
    elif damage == 'empty':
        wheel.write_bytes(b'')
    elif damage == 'other version':  # of this project, which writes other metadata
        monkeypatch.setattr(chainer_wheels, 'ARCHIVES', (dataclasses.replace(archive, requirements=('numpy>=2',)),))
    else:
        with zipfile.ZipFile(wheel) as source:
            files = {name: source.read(name) for name in source.namelist()}
        files['small/__init__.py' if damage == 'other content' else 'small/more.py'] = b'x = 2\n'
        with zipfile.ZipFile(wheel, 'w') as target:
            for name, content in files.items():
                target.writestr(name, content)
    chainer_wheels.make_wheels(tmp_path / 'wheels')
    assert len(downloads) == 2
    assert (wheel.read_bytes() == good) == (damage != 'other version')


def test_a_folder_that_contains_the_wheels_need_not_be_writable(chainer_wheels, downloads, monkeypatch, tmp_path):
    made = chainer_wheels.make_wheels(tmp_path / 'wheels')

    def refuse(**options):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(chainer_wheels.tempfile, 'TemporaryDirectory', refuse)
    assert chainer_wheels.make_wheels(tmp_path / 'wheels') == made


def test_the_requirements_of_pip_contain_the_hash(chainer_wheels, archive, monkeypatch, tmp_path):
    texts = []

    def run(command, **options):
        with open(command[command.index('-r') + 1]) as file:
            texts.append(file.read())
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, 'run', run)
    with pytest.raises(chainer_wheels.BuildError, match=r'could not download small==1\.2 \(see above\); check'):
        chainer_wheels.make_wheels(tmp_path / 'wheels')
    assert texts == [f'small==1.2 --hash=sha256:{archive.sha256}\n']
    assert list((tmp_path / 'wheels').iterdir()) == []


def test_a_changed_archive_is_refused(chainer_wheels, archive, downloads, monkeypatch, tmp_path):
    changed = dataclasses.replace(archive, sha256='0' * 64)
    monkeypatch.setattr(chainer_wheels, 'ARCHIVES', (changed,))
    with pytest.raises(chainer_wheels.BuildError, match=r'^small-1\.2\.tar\.gz: the SHA-256 checksum differs'):
        chainer_wheels.make_wheels(tmp_path / 'wheels')
    assert list((tmp_path / 'wheels').iterdir()) == []


def test_pip_uses_the_index_of_uv(chainer_wheels, downloads, monkeypatch, tmp_path):
    monkeypatch.setenv('UV_DEFAULT_INDEX', 'https://index.example/simple')
    monkeypatch.setenv('UV_FIND_LINKS', 'a,b')
    for name in ('PIP_INDEX_URL', 'PIP_FIND_LINKS'):
        monkeypatch.delenv(name, raising=False)
    chainer_wheels.make_wheels(tmp_path / 'wheels')
    ((_, environment),) = downloads
    assert environment['PIP_INDEX_URL'] == 'https://index.example/simple' and environment['PIP_FIND_LINKS'] == 'a b'


def test_pip_keeps_its_own_index(chainer_wheels, downloads, monkeypatch, tmp_path):
    monkeypatch.setenv('UV_DEFAULT_INDEX', 'https://index.example/simple')
    monkeypatch.setenv('PIP_INDEX_URL', 'https://own.example/simple')
    chainer_wheels.make_wheels(tmp_path / 'wheels')
    ((_, environment),) = downloads
    assert environment['PIP_INDEX_URL'] == 'https://own.example/simple'


def test_pip_downloads_these_requirements_only(chainer_wheels, downloads, monkeypatch, tmp_path):
    for name in ('PIP_CONSTRAINT', 'PIP_EDITABLE', 'PIP_GROUP', 'PIP_REQUIREMENT', 'PIP_PROXY'):
        monkeypatch.setenv(name, 'x')
    chainer_wheels.make_wheels(tmp_path / 'wheels')
    ((_, environment),) = downloads
    assert environment['PIP_PROXY'] == 'x' and 'PATH' in environment
    assert not {'PIP_CONSTRAINT', 'PIP_EDITABLE', 'PIP_GROUP', 'PIP_REQUIREMENT'} & set(environment)


@pytest.mark.parametrize('name', ['_PYPROJECT_HOOKS_BACKEND_PATH_JSON', 'PEP517_BACKEND_PATH'])
def test_pip_does_not_take_this_backend_for_that_of_chainer(chainer_wheels, downloads, name, monkeypatch, tmp_path):
    """Frontends and the pip of the download that have the same name for the variable: pip 26.3, for example."""
    monkeypatch.setenv(name, '["build_backend"]')
    chainer_wheels.make_wheels(tmp_path / 'wheels')
    ((_, environment),) = downloads
    assert name not in environment


@pytest.mark.parametrize('folder', ['~/.cache/mask-rcnn-chainer', 'cache'])
def test_a_relative_cache_is_refused(chainer_wheels, folder, monkeypatch):
    """Without a home folder, that of the user is ``~`` itself."""
    monkeypatch.setattr(chainer_wheels.platformdirs, 'user_cache_dir', lambda *args, **options: folder)
    with pytest.raises(chainer_wheels.BuildError, match=r'wheels: the cache of the user is not an absolute path; make'):
        chainer_wheels.cache_folder()


def test_a_folder_that_cannot_be_made_is_named(chainer_wheels, downloads, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(
        chainer_wheels.BuildError, match=r'file/wheels: the wheels of Chainer and .* \(.+\); make space there'
    ):
        chainer_wheels.make_wheels(tmp_path / 'file' / 'wheels')


def test_the_archives_are_the_requirements(root):
    """The backend replaces these two lines of the metadata."""
    lines = (root / 'build_backend' / 'dependencies.txt').read_text(encoding='utf-8').splitlines()
    assert [line for line in lines if line.startswith('chainer')] == ['chainer==7.8.1', 'chainercv==0.13.1']
