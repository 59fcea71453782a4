"""``make demo`` with the servers of the model zoo and of COCO played by one on this machine."""

import functools
import http.server
import importlib.util
import json
import threading

import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.weights import download


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def run_demo(root):
    spec = importlib.util.spec_from_file_location('run_demo', root / 'scripts' / 'run_demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(tmp_path):
    """Folder and address of a server."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def ready_model(tmp_path, monkeypatch):
    """Weights that are there already, and a model that loads from them at once."""
    folder = tmp_path / 'modelfiles'
    folder.mkdir()
    (folder / 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz').write_bytes(b'')

    class Model:
        def detect(self, images):
            size = images[0].shape[1:]
            return [mask_rcnn.Detections(
                boxes=np.array([[2, 3, 20, 30]]), labels=[0], scores=[0.9], size=size,
                masks=np.ones((1, *size), bool), class_names=('cat',), category_ids=(17,))]

    monkeypatch.setattr(mask_rcnn, 'load', lambda path, **options: Model())
    return folder


def test_photo_is_fetched_and_looked_at(run_demo, server, ready_model, tmp_path, capsys):
    served, address = server
    cv2.imwrite(str(served / '000000000139.jpg'), np.full((40, 50, 3), 128, np.uint8))
    output = tmp_path / 'seen.png'
    assert run_demo.main(['--output', str(output)], ready_model, f'{address}/000000000139.jpg') == 0
    assert cv2.imread(str(output)).shape == (40, 50, 3)
    result, = json.loads(output.with_suffix('.json').read_text())
    assert result['image_id'] == 139 and result['category_id'] == 17
    assert '1 cat' in capsys.readouterr().out


def test_without_a_photo_it_asks_for_one(run_demo, server, ready_model, tmp_path, capsys):
    _, address = server
    assert run_demo.main(['--output', str(tmp_path / 'o.png')], ready_model, f'{address}/no.jpg') == 1
    message = capsys.readouterr().err
    assert 'make demo IMAGE=photo.jpg' in message and message.count('\n') == 1


def test_without_weights_and_network_it_says_where_to_put_them(run_demo, tmp_path, monkeypatch, capsys):
    def no_network(url, path, **options):
        raise download.DownloadError(f'{url}: no network')
    monkeypatch.setattr(download, 'fetch', no_network)
    folder = tmp_path / 'modelfiles'
    assert run_demo.main([], folder) == 1
    message = capsys.readouterr().err
    assert str(folder / 'model_final.pkl') in message and message.count('\n') == 1


def test_damaged_weights_are_named(run_demo, tmp_path, capsys):
    (tmp_path / 'model_final.pkl').write_bytes(b'nonsense')
    assert run_demo.main([], tmp_path) == 1
    message = capsys.readouterr().err
    assert 'model_final.pkl' in message and message.count('\n') == 1
