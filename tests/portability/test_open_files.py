"""Windows neither replaces nor removes open files: every file is closed before it is written again."""

import contextlib
import http.server
import os
import threading

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import Config
from mask_rcnn.io.atomic_file import FileError, check_writable, open_for_writing, path_for_writing
from mask_rcnn.training.earlier_run import set_aside_run
from mask_rcnn.training.snapshot import Snapshots, read_snapshot
from mask_rcnn.weights import ModelMeta, download, formats, read_weights, write_weights
from tests.support import other_systems
from tests.support.tiny_training import META, make_trainer

pytestmark = pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='finds the open files in /proc')


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    """Refuse to change open files."""
    other_systems.refuse_open_files(monkeypatch)


def test_open_and_mapped_files_are_refused(tmp_path):
    path, other = tmp_path / 'a.npy', tmp_path / 'b'
    np.save(path, np.zeros(1000))
    other.touch()
    mapped = np.load(path, mmap_mode='r')
    with pytest.raises(PermissionError):
        os.replace(other, path)
    del mapped
    with open(path, 'rb'), pytest.raises(PermissionError):
        path.unlink()
    os.replace(other, path)
    path.unlink()


def test_files_are_replaced_or_removed(tmp_path):
    path = tmp_path / 'a'
    for content in (b'1', b'22'):
        check_writable(path)
        with open_for_writing(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    with contextlib.suppress(RuntimeError), open_for_writing(path) as file:
        file.write(b'333')
        raise RuntimeError
    with path_for_writing(path) as temporary:
        temporary.write_bytes(b'4444')
    assert path.read_bytes() == b'4444' and os.listdir(tmp_path) == ['a']


def test_an_unwritten_buffer_does_not_keep_a_temporary_file(tmp_path):
    """The disk is full while the file is closed."""
    path = tmp_path / 'a'
    with contextlib.suppress(FileError), open_for_writing(path) as file:
        file.write(b'1')
        os.close(file.fileno())
    assert os.listdir(tmp_path) == []


def test_weights_are_written_to_the_file_that_was_read(tmp_path):
    path, meta = tmp_path / 'a.npz', ModelMeta('model', Config(n_fg_class=1), ('a',), (1,))
    write_weights(path, {'a': np.ones(2, np.float32)}, meta)
    for n in (2, 3):
        weights = read_weights(path)
        write_weights(path, {**weights.arrays, f'a{n}': np.ones(n, np.float32)}, meta)
    assert set(read_weights(path).arrays) == {'a', 'a2', 'a3'}


def test_a_model_is_saved_to_its_own_file(tmp_path):
    path = tmp_path / 'a.npz'
    small = {'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 16, 'mask_channels': 16, 'width': 0.25}
    mask_rcnn.save(path, mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=1, **small))
    mask_rcnn.save(path, mask_rcnn.load(path))
    assert os.listdir(tmp_path) == ['a.npz']


def test_snapshots_replace_older_ones(tmp_path):
    trainer = make_trainer(tmp_path, stop=(2, 'iteration'))
    snapshots = Snapshots(META, {}, keep=1, warn=pytest.fail, print_line=pytest.fail)
    trainer.extend(snapshots, trigger=(1, 'iteration'))
    trainer.run()
    assert read_snapshot(snapshots.last).iteration == 2
    assert snapshots.last.name == 'snapshot_iter_2.npz' and not (tmp_path / 'snapshot_iter_1.npz').exists()
    assert set_aside_run(tmp_path) == tmp_path / 'run_1'
    assert sorted(os.listdir(tmp_path)) == ['run_1']


def test_a_file_of_another_program_is_renamed(tmp_path):
    path = tmp_path / 'snapshot_model.npz'
    np.savez(path, a=np.ones(2))
    with formats.keep_source_file(path) as kept:
        path.write_bytes(b'new')
    assert path.read_bytes() == b'new' and kept.name == 'snapshot_model.old.npz'


def test_a_download_gets_its_name(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Length', '4')
            self.end_headers()
            self.wfile.write(b'1234')

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = download.fetch(f'http://127.0.0.1:{server.server_port}/a', tmp_path / 'a')
        server.shutdown()
    assert path.read_bytes() == b'1234' and os.listdir(tmp_path) == ['a']
