import functools
import http.server
import io
import os
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

PARTS = {
    'train': ('zips/train2017.zip', 'train2017'),
    'val': ('zips/val2017.zip', 'val2017'),
    'annotations': ('annotations/annotations_trainval2017.zip', 'annotations'),
}

pytestmark = pytest.mark.skipif(
    not (shutil.which('sh') and (shutil.which('curl') or shutil.which('wget'))), reason='needs sh and curl or wget'
)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``site.files`` as COCO's server does: with ranges; ``site`` can break it in several ways."""

    def __init__(self, site, *args):
        self.site = site
        super().__init__(*args)

    def do_GET(self):
        data = self.site.files.get(self.path)
        self.site.requests.append((self.path, self.headers.get('Range')))
        if data is None:
            self.send_error(404)
            return
        start = 0
        if self.headers.get('Range') and self.site.ranges:
            start = int(self.headers['Range'].split('=')[1].split('-')[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.site.cut_after])

    def log_message(self, *args):
        pass


class Site:
    """What the server has and how it behaves."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.ranges, self.cut_after = True, None


@pytest.fixture
def site():
    site = Site()
    for part, (path, name) in PARTS.items():
        site.files[f'/{path}'] = make_zip(name, 6 if part == 'annotations' else 4)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Server, site))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f'http://127.0.0.1:{server.server_port}'
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def make_zip(name, count):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        for i in range(count):
            suffix = f'{i}_val2017.json' if name == 'annotations' else f'{i:012}.jpg'
            archive.writestr(f'{name}/{suffix}', os.urandom(20000))
    return buffer.getvalue()


@pytest.fixture
def coco(root, tmp_path, site):
    """Run a copy of the script in tmp_path; gives a function ``(*arguments, **environment) -> process``."""
    shutil.copy(root / 'getcoco.sh', tmp_path)
    settings = {f'COCO_{part.upper()}_SIZE': str(len(site.files[f'/{path}'])) for part, (path, _) in PARTS.items()}
    settings.update(
        COCO_TRAIN_FILES='4',
        COCO_VAL_FILES='4',
        COCO_URL=site.url,
        COCO_PAUSE='0',
        COCO_TRIES='3',
        no_proxy='127.0.0.1',
    )

    def run(*arguments, cwd='/', **environment):
        return subprocess.run(
            ['sh', str(tmp_path / 'getcoco.sh'), *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **settings, **environment},
        )

    return run


def one_line(process, status=1):
    assert process.returncode == status
    assert process.stderr.startswith('getcoco.sh: ') and process.stderr.count('\n') == 1, process.stderr
    return process.stderr


def test_everything_beside_the_script_from_another_folder(coco, tmp_path, site):
    done = coco()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert sorted(os.listdir(tmp_path / 'COCO')) == ['annotations', 'train2017', 'val2017']
    assert len(os.listdir(tmp_path / 'COCO/train2017')) == 4
    with zipfile.ZipFile(io.BytesIO(site.files['/zips/val2017.zip'])) as archive:
        for name in archive.namelist():
            assert (tmp_path / 'COCO' / name).read_bytes() == archive.read(name)
    site.requests.clear()
    assert coco().returncode == 0
    assert site.requests == []  # all of it is there


def test_one_part_in_a_chosen_folder_with_the_zip_kept(coco, tmp_path):
    target = tmp_path / 'a folder'
    assert coco('--dir', 'a folder', '--keep', 'val', cwd=tmp_path).returncode == 0
    assert sorted(os.listdir(target)) == ['val2017', 'val2017.zip']
    assert not (tmp_path / 'COCO').exists()


def test_an_interrupted_download_goes_on(coco, tmp_path, site):
    site.cut_after = 30000
    done = coco('val')
    assert done.returncode == 0, done.stderr  # three tries of 30000 bytes bring 80000
    assert site.requests[1:] == [('/zips/val2017.zip', f'bytes={30000 * i}-') for i in (1, 2)]


def test_what_arrived_is_kept_for_the_next_run(coco, tmp_path, site):
    site.cut_after = 10000
    assert '30000 of ' in one_line(coco('val'))
    assert os.listdir(tmp_path / 'COCO') == ['val2017.zip.part']
    site.cut_after = None
    site.requests.clear()
    assert coco('val').returncode == 0
    assert site.requests == [('/zips/val2017.zip', 'bytes=30000-')]
    assert os.listdir(tmp_path / 'COCO') == ['val2017']


def test_a_server_that_cannot_resume(coco, tmp_path, site):
    (tmp_path / 'COCO').mkdir()
    (tmp_path / 'COCO/val2017.zip.part').write_bytes(b'x' * 5000)
    site.ranges = False
    assert coco('val').returncode == 0
    assert len(os.listdir(tmp_path / 'COCO/val2017')) == 4


def test_a_part_that_is_too_long_is_begun_again(coco, tmp_path, site):
    (tmp_path / 'COCO').mkdir()
    (tmp_path / 'COCO/val2017.zip.part').write_bytes(b'x' * 10**6)
    assert coco('val').returncode == 0


def test_a_complete_part_is_not_fetched_again(coco, tmp_path, site):
    (tmp_path / 'COCO').mkdir()
    (tmp_path / 'COCO/val2017.zip.part').write_bytes(site.files['/zips/val2017.zip'])
    assert coco('val').returncode == 0
    assert site.requests == []


def test_a_damaged_zip_is_deleted_and_leaves_no_folder(coco, tmp_path, site):
    data = bytearray(site.files['/zips/val2017.zip'])
    data[len(data) // 2] ^= 255
    site.files['/zips/val2017.zip'] = bytes(data)
    assert 'damaged' in one_line(coco('val'))
    assert not (tmp_path / 'COCO').exists()


def test_a_tool_that_fails_does_not_cost_the_download(coco, tmp_path):
    tools = tmp_path / 'tools'
    tools.mkdir()
    (tools / 'unzip').write_text('#!/bin/sh\nexit 50\n')  # its status for a full disk
    (tools / 'unzip').chmod(0o755)
    assert 'cannot be unpacked' in one_line(coco('val', PATH=f'{tools}{os.pathsep}{os.environ["PATH"]}'))
    assert os.listdir(tmp_path / 'COCO') == ['val2017.zip']


def test_a_zip_with_too_few_files_leaves_no_folder(coco, tmp_path):
    assert 'holds 4 files val2017/*.jpg instead of 5' in one_line(coco('val', COCO_VAL_FILES='5'))
    assert os.listdir(tmp_path / 'COCO') == ['val2017.zip']


def test_an_incomplete_folder_is_neither_taken_nor_touched(coco, tmp_path, site):
    (tmp_path / 'COCO/val2017').mkdir(parents=True)
    (tmp_path / 'COCO/val2017/1.jpg').write_bytes(b'mine')
    assert 'val2017 holds 1 of 4 files' in one_line(coco('val'))
    assert (tmp_path / 'COCO/val2017/1.jpg').read_bytes() == b'mine' and site.requests == []


def test_a_zip_of_another_size_is_not_touched(coco, tmp_path):
    (tmp_path / 'COCO').mkdir()
    (tmp_path / 'COCO/val2017.zip').write_bytes(b'mine')
    assert 'has 4 bytes instead of' in one_line(coco('val'))
    assert (tmp_path / 'COCO/val2017.zip').read_bytes() == b'mine'


def test_a_missing_file_and_a_missing_server(coco, site, tmp_path):
    del site.files['/zips/val2017.zip']
    line = one_line(coco('val'))
    assert 'zips/val2017.zip: 0 of ' in line and f'tries: {site.url.removeprefix("http://")} refuses the file;' in line
    line = one_line(coco('val', COCO_URL='http://127.0.0.1:1'))
    assert '0 of ' in line and 'tries: 127.0.0.1:1 cannot be reached (' in line
    assert not (tmp_path / 'COCO').exists()


#: What the script needs in addition to curl or wget, and unzip or python3.
TOOLS = (
    'sh',
    'basename',
    'dirname',
    'cat',
    'find',
    'wc',
    'tr',
    'df',
    'awk',
    'mkdir',
    'rmdir',
    'rm',
    'mv',
    'sleep',
    'env',
)


def make_path(folder, *programs, **scripts):
    """Return a folder for PATH with the tools, other programs, if they are installed, and shell scripts."""
    folder.mkdir()
    for name in filter(shutil.which, (*TOOLS, *programs)):
        (folder / name).symlink_to(shutil.which(name))
    for name, text in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\n{text}\n')
        (folder / name).chmod(0o755)
    return str(folder)


PYTHON = f'exec {shlex.quote(sys.executable)} "$@"'


@pytest.mark.parametrize(
    ('tool', 'status', 'cause'),
    [
        ('curl', 6, 'the host images.example.org is not found (no network?)'),
        ('curl', 28, 'images.example.org does not answer in time'),
        ('curl', 60, 'no secure connection to images.example.org (TLS)'),
        ('curl', 99, 'curl to images.example.org ended with status 99'),
        ('wget', 4, 'the host images.example.org is not found or cannot be reached (no network?)'),
        ('wget', 8, 'images.example.org refuses the file'),
    ],
)
@pytest.mark.parametrize('folder', ['data', 'new/data'])
def test_the_last_line_names_the_host_and_the_cause_and_nothing_is_left(tool, status, cause, folder, coco, tmp_path):
    # wget creates its output before it connects.
    write = 'for word; do case $word in --output-document=*) : > "${word#*=}" ;; esac; done; '
    path = make_path(tmp_path / 'tools', python3=PYTHON, **{tool: f'{write}exit {status}'})
    url = 'https://someone@images.example.org/mirror'
    line = one_line(coco('val', '--dir', folder, cwd=tmp_path, PATH=path, COCO_URL=url))
    assert f'bytes arrived in 3 tries: {cause}; run this again to resume' in line
    assert sorted(os.listdir(tmp_path)) == ['getcoco.sh', 'tools']


def test_a_folder_that_existed_is_kept(coco, tmp_path):
    (tmp_path / 'data').mkdir()
    path = make_path(tmp_path / 'tools', python3=PYTHON, curl='exit 6')
    one_line(coco('val', '--dir', 'data', cwd=tmp_path, PATH=path))
    assert os.listdir(tmp_path / 'data') == []


def test_a_full_disk_is_noticed_before_the_download(coco, site, tmp_path):
    assert 'disk space' in one_line(coco('train', COCO_TRAIN_SIZE=str(10**16)))
    assert site.requests == [] and not (tmp_path / 'COCO').exists()


def test_without_unzip_python_unpacks(coco, tmp_path, site):
    tools = tmp_path / 'tools'
    make_path(tools, 'curl', 'wget', python3=PYTHON)
    done = coco('val', PATH=str(tools))
    assert done.returncode == 0, done.stderr
    data = bytearray(site.files['/zips/train2017.zip'])
    data[len(data) // 2] ^= 255
    site.files['/zips/train2017.zip'] = bytes(data)
    assert 'damaged' in one_line(coco('train', PATH=str(tools)))
    (tools / 'curl').unlink(missing_ok=True)
    if (tools / 'wget').exists():
        site.cut_after = 50000
        assert coco('annotations', PATH=str(tools)).returncode == 0
        (tools / 'wget').unlink()
    assert 'needs curl or wget' in one_line(coco('val', PATH=str(tools)))


@pytest.mark.parametrize('arguments', [['test'], ['--nonsense'], ['--dir'], ['']])
def test_bad_arguments(coco, arguments):
    one_line(coco(*arguments), 2)


def test_help(coco):
    done = coco('--help')
    assert done.returncode == 0 and '--keep' in done.stdout and done.stderr == ''
