"""``make demo`` and ``make demo-coco``; a local server stands in for the model zoo and for COCO."""

import functools
import http.server
import importlib.util
import json
import threading

import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import demo
from mask_rcnn.datasets import RichShapesDataset
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
    """The folder and the address of a local web server."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def ready_model(tmp_path, monkeypatch):
    """A folder with an empty weight file; loading it returns a model with one fixed detection."""
    folder = tmp_path / 'modelfiles'
    folder.mkdir()
    (folder / 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz').write_bytes(b'')

    class Model:
        config = mask_rcnn.Config()

        def set_thresholds(self, *, nms):
            assert nms == self.config.nms_threshold

        def iter_detections(self, images):
            for image in images:
                size = image.shape[1:]
                yield mask_rcnn.Detections(
                    boxes=np.array([[2, 3, 20, 30]]),
                    labels=[0],
                    scores=[0.9],
                    size=size,
                    masks=np.ones((1, *size), bool),
                    class_names=('cat',),
                    category_ids=(17,),
                )

    monkeypatch.setattr(demo, 'load', lambda path, **options: Model())
    return folder


def test_the_photo_is_downloaded_and_its_detections_are_written(run_demo, server, ready_model, tmp_path, capsys):
    served, address = server
    cv2.imwrite(str(served / '000000000139.jpg'), np.full((40, 50, 3), 128, np.uint8))
    output = tmp_path / 'out.png'
    assert run_demo.main(['--coco', '--output', str(output)], ready_model, f'{address}/000000000139.jpg') == 0
    assert cv2.imread(str(output)).shape == (40, 50, 3)
    (result,) = json.loads(output.with_suffix('.json').read_text())
    assert result['image_id'] == 139 and result['category_id'] == 17
    assert '1 cat' in capsys.readouterr().out


def test_a_failed_download_of_the_photo_names_the_option(run_demo, server, ready_model, tmp_path, capsys):
    _, address = server
    output = str(tmp_path / 'o.png')
    assert run_demo.main(['--coco', '--output', output], ready_model, f'{address}/no.jpg') == 1
    message = capsys.readouterr().err
    assert 'make demo-coco IMAGE=photo.jpg' in message and message.count('\n') == 1


def test_a_failed_download_of_the_weights_names_the_file(run_demo, tmp_path, monkeypatch, capsys):
    def no_network(url, path, **options):
        raise download.DownloadError(f'{url}: no network')

    monkeypatch.setattr(download, 'fetch', no_network)
    folder = tmp_path / 'modelfiles'
    assert run_demo.main(['--coco'], folder) == 1
    message = capsys.readouterr().err
    assert str(folder / 'model_final.pkl') in message and message.count('\n') == 1


def test_damaged_weights_are_named(run_demo, tmp_path, capsys):
    (tmp_path / 'model_final.pkl').write_bytes(b'nonsense')
    assert run_demo.main(['--coco'], tmp_path) == 1
    message = capsys.readouterr().err
    assert 'model_final.pkl' in message and message.count('\n') == 1


@pytest.fixture
def demo_model(run_demo, tmp_path):
    """A folder with an untrained network of the same architecture as the bundled model."""
    model = mask_rcnn.build(
        'mobilenet_v1_fpn',
        width=0.25,
        fpn_channels=8,
        rpn_channels=8,
        head_channels=8,
        mask_channels=8,
        min_size=64,
        max_size=64,
        anchor_sizes=(8, 16, 32, 64, 128),
        n_fg_class=8,
        class_names=RichShapesDataset.class_names,
        score_threshold=0.0,
    )
    mask_rcnn.save(tmp_path / run_demo.DEMO_MODEL, model)
    return tmp_path


def test_every_scene_gets_a_picture_and_results(run_demo, demo_model, tmp_path, capsys):
    output = tmp_path / 'out.png'
    assert run_demo.main(['--scenes', '2', '--output', str(output)], demo_model) == 0
    for number in (1, 2):
        assert cv2.imread(str(tmp_path / f'out_scene_{number}.png')).shape == (512, 512, 3)
    results = json.loads((tmp_path / 'out.json').read_text())
    assert {result['image_id'] for result in results} == {'scene_1', 'scene_2'}
    lines = capsys.readouterr().out
    assert [lines.count(f'scene_{number}.png') for number in (1, 2)] == [2, 2]  # the image and the picture
    assert not list(tmp_path.glob('scene_*'))


def test_the_bundled_model_runs_on_a_given_image(run_demo, demo_model, tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.full((40, 50, 3), 128, np.uint8))
    output = tmp_path / 'out.png'
    assert run_demo.main(['--image', str(tmp_path / 'image.png'), '--output', str(output)], demo_model) == 0
    assert cv2.imread(str(output)).shape == (40, 50, 3)


def test_scenes_are_images_of_the_dataset(run_demo, tmp_path):
    run_demo.write_scenes(tmp_path, 2, 5, size=64)
    written = cv2.imread(str(tmp_path / 'scene_2.png'))[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(written, RichShapesDataset(2, size=64, seed=5)[1].image)
