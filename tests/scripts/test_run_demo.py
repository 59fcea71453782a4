"""``make demo`` and ``make demo-coco``; a local server stands in for the model zoo and for COCO."""

import functools
import http.server
import importlib.util
import json
import re
import sys
import threading
import types

import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import demo, demo_sinks, network_options
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inference.detections import Detections
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

    monkeypatch.setattr(network_options, 'load', lambda path, **options: Model())
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
    """A folder with untrained networks of the same architecture as the bundled models."""
    save_model(tmp_path / run_demo.DEMO_MODEL, RichShapesDataset.class_names, n_proposals=10)
    save_model(tmp_path / run_demo.NUCLEI_MODEL, ['nucleus'], n_proposals=200)
    return tmp_path


def save_model(path, class_names, n_proposals):
    """The detections take most of the time: without a limit, each proposal is one of every class."""
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
        n_fg_class=len(class_names),
        class_names=class_names,
        score_threshold=0.0,
        rpn_post_nms=n_proposals,
    )
    mask_rcnn.save(path, model)


@pytest.fixture
def cells(monkeypatch, tmp_path):
    """A picture in the place of mahotas's."""
    pixels = np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8)
    folder = tmp_path / 'mahotas'
    folder.mkdir()
    cv2.imwrite(str(folder / 'nuclear.png'), pixels[:, :, ::-1])
    demos = types.ModuleType('mahotas.demos')
    demos.image_path = lambda name: str(folder / name)
    monkeypatch.setitem(sys.modules, 'mahotas', types.ModuleType('mahotas'))
    monkeypatch.setitem(sys.modules, 'mahotas.demos', demos)
    return pixels


@pytest.fixture
def no_mahotas(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mahotas', None)  # its import fails
    monkeypatch.setitem(sys.modules, 'mahotas.demos', None)


def test_every_scene_gets_a_picture_and_results(run_demo, demo_model, no_mahotas, tmp_path, capsys):
    output = tmp_path / 'out.png'
    assert run_demo.main(['--scenes', '2', '--output', str(output)], demo_model) == 0
    for number in (1, 2):
        assert cv2.imread(str(tmp_path / f'out_scene_{number}.png')).shape == (512, 512, 3)
    results = json.loads((tmp_path / 'out.json').read_text())
    assert {result['image_id'] for result in results} == {'scene_1', 'scene_2'}
    lines, notes = capsys.readouterr()
    *lines, last = lines.splitlines()
    scenes = [tmp_path / f'out_scene_{number}.png' for number in (1, 2)]
    assert last == f'pictures: {scenes[0]} to {scenes[1]}; detections: {tmp_path / "out.json"}'
    lines = '\n'.join(lines)
    assert "the picture of nuclei needs mahotas: pip install -e '.[demo]'\n" in notes
    assert not list(tmp_path.glob('*nuclei*.png'))
    assert [lines.count(f'scene_{number}.png') for number in (1, 2)] == [2, 2]  # the image and the picture
    images = [cv2.imread(str(tmp_path / 'out_scenes' / f'scene_{number}.png')) for number in (1, 2)]
    assert all(image.shape == (512, 512, 3) for image in images)


def test_the_nuclei_of_cells_are_counted(run_demo, demo_model, cells, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(demo, 'VISUALIZE_SCORE_THRESHOLD', 0.0)
    monkeypatch.setattr(Detections, 'draw', lambda self, image, **options: (seen.append((self, image)), image)[1])
    monkeypatch.setattr(demo_sinks, 'encode_picture', lambda picture, suffix: b'picture')
    output = tmp_path / 'out.png'
    assert run_demo.main(['--scenes', '1', '--output', str(output)], demo_model) == 0
    (scene, _), (nuclei, image) = seen
    assert set(scene.names) <= set(RichShapesDataset.class_names)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), cells)
    assert set(nuclei.names) == {'nucleus'} and len(nuclei) > 100  # no limit: a picture has many nuclei
    assert (tmp_path / 'out_nuclei.png').exists()
    results = json.loads((tmp_path / 'out_nuclei.json').read_text())
    assert {result['image_id'] for result in results} == {'out_cells'}
    *_, line, last = capsys.readouterr().out.splitlines()
    source, _, rest = line.partition(': ')
    np.testing.assert_array_equal(cv2.imread(source)[:, :, ::-1], cells)  # the line names a file that remains
    assert rest.endswith(f' -> {tmp_path / "out_nuclei.png"}')
    pictures, results = re.fullmatch('pictures: (.+); detections: (.+)', last).groups()
    assert pictures.split(', ') == [str(tmp_path / f'out_{name}.png') for name in ('scene_1', 'nuclei')]
    assert results.split(', ') == [str(tmp_path / f'{name}.json') for name in ('out', 'out_nuclei')]


def test_a_missing_model_of_nuclei_is_an_error(run_demo, demo_model, cells, tmp_path, capsys):
    (demo_model / run_demo.NUCLEI_MODEL).unlink()
    assert run_demo.main(['--scenes', '1', '--output', str(tmp_path / 'out.png')], demo_model) == 1
    captured = capsys.readouterr()
    assert 'nuclei_mobilenet_v1_fpn.npz: no such file' in captured.err and 'pictures: ' not in captured.out
    assert (tmp_path / 'out_scene_1.png').exists()


def test_the_picture_of_mahotas_is_installed(run_demo, tmp_path):
    pytest.importorskip('mahotas')
    assert run_demo.copy_cells(tmp_path / 'cells.png')
    assert cv2.imread(str(tmp_path / 'cells.png')).shape == (1024, 1344, 3)


def test_the_bundled_model_runs_on_a_given_image(run_demo, demo_model, tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.full((40, 50, 3), 128, np.uint8))
    output = tmp_path / 'out.png'
    assert run_demo.main(['--image', str(tmp_path / 'image.png'), '--output', str(output)], demo_model) == 0
    assert cv2.imread(str(output)).shape == (40, 50, 3)


def test_scenes_are_images_of_the_dataset(run_demo, tmp_path):
    run_demo.write_scenes(tmp_path, 2, 5, size=64)
    written = cv2.imread(str(tmp_path / 'scene_2.png'))[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(written, RichShapesDataset(2, size=64, seed=5)[1].image)


def test_scenes_replace_earlier_ones(run_demo, tmp_path):
    folder = tmp_path / 'scenes'
    run_demo.write_scenes(folder, 3, 5, size=64)
    (folder / 'mine.png').write_bytes(b'')
    run_demo.write_scenes(folder, 1, 5, size=64)
    assert sorted(path.name for path in folder.iterdir()) == ['mine.png', 'scene_1.png']


def test_the_object_that_the_page_asks_for_is_in_the_scene(root, run_demo):
    expected = re.compile(r'inspect why output_scenes/scene_(\d+)\.png --box ([\d,]+) --class (\w+) ')
    page = (root / 'docs' / 'inspect.md').read_text(encoding='utf-8')
    number, box, name = expected.search(page).groups()
    x0, y0, x1, y1 = map(int, box.split(','))
    scenes = RichShapesDataset(int(number), size=512, seed=run_demo.SCENE_SEED)
    annotations = scenes[int(number) - 1].annotations
    objects = zip(annotations.boxes.round().tolist(), annotations.labels, strict=True)
    assert ([y0, x0, y1, x1], scenes.class_names.index(name)) in list(objects)
