"""Downloads from a server on this machine."""

import http.server
import os
import runpy
import socket
import sys
import threading

import pytest

from mask_rcnn.weights import download
from mask_rcnn.weights.download import DownloadError, fetch

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the manner named by the path."""

    def do_GET(self):
        manner = self.path[1:]
        self.server.requests.append((manner, self.headers.get('Range')))
        if manner in ('404', '500'):
            self.send_error(int(manner))
            return
        start = int(self.headers['Range'][6:-1]) if 'Range' in self.headers and manner != 'no-ranges' else 0
        if start >= len(CONTENT):
            self.answer(416, b'', {'Content-Range': f'bytes */{len(CONTENT)}'})
            return
        headers = {'Content-Type': 'text/html' if manner == 'page' else 'application/octet-stream'}
        if start:
            first = start + (manner == 'other-part')
            headers['Content-Range'] = f'bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}'
        content = CONTENT[start:]
        announced = None if manner == 'no-size' else len(content)
        if (manner == 'cut' and len(self.server.requests) < 3) or manner == 'always-cut':
            content = content[:300_000]
        self.answer(206 if start else 200, content, headers, announced)

    def answer(self, status, content, headers, announced=0):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if announced is not None:
            self.send_header('Content-Length', str(announced))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.requests = []
        server.handle_error = lambda *arguments: None  # a client may close the connection early
        server.url = f'http://127.0.0.1:{server.server_port}/'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetch(server, tmp_path):
    path = tmp_path / 'new' / 'file.pkl'
    assert fetch(server.url + 'file', path) == path
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ['file.pkl']
    fetch(server.url + 'file', path)
    assert len(server.requests) == 1  # the file exists


def test_lost_connections_are_resumed(server, tmp_path):
    path = tmp_path / 'file.pkl'
    fetch(server.url + 'cut', path, pause=0)
    assert path.read_bytes() == CONTENT
    assert server.requests == [('cut', None), ('cut', 'bytes=300000-'), ('cut', 'bytes=600000-')]


def test_interrupted_runs_are_resumed(server, tmp_path):
    path = tmp_path / 'file.pkl'
    with pytest.raises(DownloadError, match='ended after 300000 of 1024000 bytes; run again to continue'):
        fetch(server.url + 'always-cut', path, attempts=1)
    assert os.listdir(tmp_path) == ['file.pkl.part']
    fetch(server.url + 'file', path)
    assert server.requests[-1] == ('file', 'bytes=300000-')
    assert path.read_bytes() == CONTENT and os.listdir(tmp_path) == ['file.pkl']


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    path = tmp_path / 'file.pkl'
    (tmp_path / 'file.pkl.part').write_bytes(b'x' * 1000)
    fetch(server.url + 'no-ranges', path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(('partial', 'n_requests'), [(CONTENT, 1), (CONTENT + b'more', 2)])
def test_complete_and_overlong_partial_files(server, tmp_path, partial, n_requests):
    path = tmp_path / 'file.pkl'
    (tmp_path / 'file.pkl.part').write_bytes(partial)
    fetch(server.url + 'file', path)
    assert path.read_bytes() == CONTENT and len(server.requests) == n_requests


@pytest.mark.parametrize(
    ('manner', 'reason', 'attempts'),
    [
        ('404', 'the server answers 404 Not Found', 1),
        ('500', 'the server answers 500', 2),
        ('page', 'sends a web page', 1),
        ('no-size', 'does not announce the size of the file', 1),
    ],
)
def test_refusals(server, tmp_path, manner, reason, attempts):
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch(server.url + manner, tmp_path / 'file.pkl', attempts=2, pause=0)
    assert str(caught.value).startswith(server.url) and str(caught.value).isprintable()
    assert len(server.requests) == attempts and os.listdir(tmp_path) == []


def test_a_wrong_range_is_not_appended(server, tmp_path):
    (tmp_path / 'file.pkl.part').write_bytes(CONTENT[:10])
    with pytest.raises(DownloadError, match='another part'):
        fetch(server.url + 'other-part', tmp_path / 'file.pkl')
    assert (tmp_path / 'file.pkl.part').read_bytes() == CONTENT[:10]


def test_a_silent_server_times_out(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
        with pytest.raises(DownloadError, match='cannot be reached: timed out'):
            fetch(url, tmp_path / 'file.pkl', attempts=1, timeout=0.2)


def test_invalid_addresses_and_paths(server, tmp_path):
    for url in ('file:///etc/hostname', 'ftp://127.0.0.1/x'):
        with pytest.raises(DownloadError, match='not an http'):
            fetch(url, tmp_path / 'file.pkl')
    (tmp_path / 'blocked').touch()
    with pytest.raises(DownloadError, match='cannot be written'):
        fetch(server.url + 'file', tmp_path / 'blocked' / 'file.pkl')


def test_the_command_prints_where_to_put_the_file(server, tmp_path, capsys):
    assert download.main(tmp_path, server.url + '404') == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and server.url in error
    assert f'put it at {tmp_path / "model_final.pkl"}' in error
    assert download.main(tmp_path, server.url + 'file') == 0
    assert (tmp_path / 'model_final.pkl').read_bytes() == CONTENT


def test_the_script_runs_the_command(root, monkeypatch, capsys):
    def run(argument):
        monkeypatch.setattr(sys, 'argv', ['fetch_weights.py', argument])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / 'scripts' / 'fetch_weights.py'), run_name='__main__')
        return ended.value.code

    assert run('--help') == 0 and 'modelfiles/' in capsys.readouterr().out
    assert run('x') == 2
