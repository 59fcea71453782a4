"""Every command that runs a network, on the CPU and on a GPU: its files and answers are those of the API on the CPU.

The bundled model has a small network input: on a GPU, a test takes about a second.  On the CPU, where other tests cover
the commands, they check the tests themselves.
"""

import contextlib
import gc
import importlib
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

import mask_rcnn

# Chainer is importable only after mask_rcnn.
# isort: split
import chainer

from mask_rcnn import cli
from mask_rcnn.cli.dataset_options import N_GENERATED
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inference.save import save
from mask_rcnn.inspect import activations, dead_channels, trace, trace_training, weight_table, why
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.cudnn_frontend import is_available
from mask_rcnn.ops.runtime import weight_cache
from mask_rcnn.ops.runtime.device import cuda_device_count, get_device
from mask_rcnn.training.snapshot import read_snapshot
from mask_rcnn.visualization.pictures import encode_picture
from tests.support.bundled_model import load_model
from tests.support.mpi import lines_of_program, run_processes
from tests.support.scenes import Scenes
from tests.support.small_train import NETWORK, RUN

#: Minimum score of the detections that a GPU must find again; the rank of lower ones depends on rounding.
MIN_SCORE = 0.6
#: Two sizes; 13 images of one size are three batches of 4, the third of which replays a CUDA graph, and a smaller one.
N_IMAGES, N_SMALLER = 13, 2


@pytest.fixture(
    params=[pytest.param(-1, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.gpu)], ids=['cpu', 'gpu']
)
def gpu(request):
    """The value of ``--gpu``."""
    return request.param


@pytest.fixture(scope='module')
def pixels():
    """Scenes of the kind that the bundled model was trained on, ``(H, W, 3)`` uint8."""
    dataset = RichShapesDataset(N_IMAGES + N_SMALLER, size=96, seed=5)
    scenes = [dataset[i].image.transpose(1, 2, 0).astype(np.uint8) for i in range(N_IMAGES + N_SMALLER)]
    return scenes[:N_IMAGES] + [scene[:64] for scene in scenes[N_IMAGES:]]


@pytest.fixture(scope='module')
def folder(tmp_path_factory, pixels):
    """The folder of the model ``model.npz`` and of the folder ``images``."""
    folder = tmp_path_factory.mktemp('devices')
    save(folder / 'model.npz', load_model())
    (folder / 'images').mkdir()
    for i, scene in enumerate(pixels):
        (folder / 'images' / f'{i:02}.png').write_bytes(encode_picture(scene, '.png'))
    return folder


@pytest.fixture(scope='module')
def expected(folder, pixels):
    """The detections of the model on the CPU."""
    return mask_rcnn.load(folder / 'model.npz').detect(pixels)


@pytest.fixture(autouse=True)
def _current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    if chainer.backends.cuda.available:
        chainer.backends.cuda.get_device_from_id(0).use()


def run_command(*words):
    """Run a command in this process."""
    assert cli.main([*map(str, words)]) == 0


def assert_found(results, detections):
    """Compare results in COCO's format with the detections of the CPU above :data:`MIN_SCORE`."""
    certain = detections.to_coco(0)
    certain = [result for result in certain if result['score'] > MIN_SCORE]
    for result in certain:
        others = [other for other in results if other['category_id'] == result['category_id']]
        assert others, (result, results)
        ious = box_iou(*(as_boxes(items) for items in ([result], others)), offset=0)[0]
        other = others[int(ious.argmax())]
        assert ious.max() > 0.9 and abs(other['score'] - result['score']) < 0.02
        assert other['segmentation']['size'] == result['segmentation']['size']


def as_boxes(results):
    x, y, width, height = np.array([result['bbox'] for result in results], np.float32).T
    return np.stack([y, x, y + height, x + width], axis=1)


def assert_same(found, detections):
    """Compare detections with those of the CPU."""
    assert found.size == detections.size
    assert_found(found.to_coco(0), detections)


def test_demo_on_images(gpu, folder, expected, tmp_path):
    files = ['--json', 'r.json', '--jsonl', 'r.jsonl', '--csv', 'r.csv', '--masks', 'masks', '--annotations', 'a.json']
    model = ['--modelfile', folder / 'model.npz', '--gpu', gpu]
    run_command('demo', '--image', folder / 'images', *model, '--output', 'out/', *files)
    results = json.loads(Path('r.json').read_text())
    assert sum(result['score'] > MIN_SCORE for result in results) > 20
    for i, detections in enumerate(expected):
        assert_found([result for result in results if result['image_id'] == i], detections)
    assert len(list(Path('out').iterdir())) == len(Path('r.jsonl').read_text().splitlines()) == N_IMAGES + N_SMALLER


def test_demo_on_a_video(gpu, folder, pixels, expected):
    writer = cv2.VideoWriter('clip.avi', cv2.VideoWriter.fourcc(*'png '), 10.0, (96, 96))
    if not writer.isOpened():
        pytest.skip('OpenCV cannot write lossless video')
    for scene in pixels[:N_IMAGES]:
        writer.write(scene[:, :, ::-1])
    writer.release()
    model = ['--modelfile', folder / 'model.npz', '--gpu', gpu, '--score-thresh', MIN_SCORE]
    run_command(
        'demo', '--image', 'clip.avi', *model, '--track', '--every', '2', '--output', 'o.mp4', '--jsonl', 'r.jsonl'
    )
    lines = [json.loads(line) for line in Path('r.jsonl').read_text().splitlines()]
    assert len(lines) == 7 and all('track' in found for line in lines for found in line['detections'])
    for line, detections in zip(lines, expected[:N_IMAGES:2], strict=True):
        n_certain = int((detections.scores > MIN_SCORE + 0.02).sum())
        assert n_certain <= len(line['detections']) <= int((detections.scores > MIN_SCORE - 0.02).sum())


@pytest.fixture
def serving():
    """The module with the servers of the tests, whose packages a machine with a GPU may lack."""
    for name in ('httpx', 'prometheus_client', 'python_multipart', 'starlette', 'uvicorn'):
        pytest.importorskip(name)
    return importlib.import_module('tests.support.serving')


def post(server, scene):
    """Send an image to a server and return its answer."""
    import httpx

    return httpx.post(f'{server.url}v1/detect', content=encode_picture(scene, '.png'), timeout=60)


def test_the_server_with_concurrent_requests(gpu, serving, pixels, expected):
    model = load_model(gpu=gpu)
    with serving.RunningServer(model, batch_size=4) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda scene: post(server, scene), pixels * 2))
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    for answer, detections in zip(answers, expected * 2, strict=True):
        names = dict(zip(detections.class_names, detections.category_ids, strict=True))
        found = answer.json()['detections']
        assert_found([{**result, 'category_id': names[result['class']]} for result in found], detections)


@contextlib.contextmanager
def full_memory(model):
    """Let the memory of a model's device be full in a ``with`` block."""
    if model.xp is np:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), 'forward', no_memory)
            yield
        return
    pool = model.xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 1)
    try:
        yield
    finally:
        pool.set_limit(size=0)


def no_memory(*arguments):
    raise MemoryError('full')


def test_the_server_survives_a_full_memory(gpu, serving, pixels, expected, caplog):
    model = load_model(gpu=gpu)
    with serving.RunningServer(model) as server:
        assert post(server, pixels[0]).status_code == 200
        with full_memory(model), ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda scene: post(server, scene), [pixels[1], pixels[-1], pixels[2]]))
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()['error']['message'] for answer in answers} == {'not enough memory for this image'}
        answer = post(server, pixels[0])
        assert answer.status_code == 200 and urllib.request.urlopen(f'{server.url}healthz').status == 200
    assert len(answer.json()['detections']) >= int((expected[0].scores > MIN_SCORE).sum()) > 0
    assert not [record for record in caplog.records if record.exc_info]


def test_a_command_with_a_full_memory_ends_with_one_line(gpu, folder, capsys, monkeypatch):
    loaded = mask_rcnn.load(folder / 'model.npz', gpu=gpu)
    loaded.detect([folder / 'images' / '01.png'])  # cuDNN's own test needs memory as well
    monkeypatch.setattr('mask_rcnn.cli.network_options.load', lambda *arguments, **options: loaded)
    monkeypatch.setattr('mask_rcnn.cli.demo.choose_shared_device', lambda number, communicator: number)  # also needs it
    with full_memory(loaded):
        words = ['--image', folder / 'images' / '00.png', '--modelfile', folder / 'model.npz', '--gpu', gpu]
        assert cli.main([*map(str, ['demo', *words])]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert errors == [f'error: {folder}/images/00.png: not enough memory']


def test_an_error_keeps_no_memory(gpu, pixels):
    """After a batch that did not fit, its images and features are free."""
    model = load_model(gpu=gpu)
    model.detect(pixels[:1])
    used = used_bytes(model)
    with full_memory(model), pytest.raises(MemoryError):
        model.detect(pixels[1:3])
    gc.collect()
    assert used_bytes(model) <= used
    assert len(model.detect(pixels[:3], batch_size=3)) == 3


def used_bytes(model):
    """Return the memory of a GPU that arrays occupy; 0 for the CPU."""
    return 0 if model.xp is np else model.xp.get_default_memory_pool().used_bytes()


def test_evaluate(gpu, folder, monkeypatch):
    monkeypatch.setitem(N_GENERATED['shapes-rich'], 'val', 6)
    found = {}
    for number in sorted({gpu, -1}):
        words = ['--modelfile', folder / 'model.npz', '--gpu', number, '--out', f'out{number}', '--report', 'r.html']
        run_command('evaluate', *words)
        found[number] = json.loads(Path(f'out{number}', 'metrics.json').read_text())
    metrics, on_cpu = (dict(flat(found[number])) for number in (gpu, -1))
    assert metrics.keys() == on_cpu.keys() and max(on_cpu.values()) > 0.3
    for name, value in on_cpu.items():
        assert metrics[name] == pytest.approx(value, abs=0.05), name


def flat(content, prefix=''):
    """Yield the names and values of the numbers in JSON data."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}/')
        elif isinstance(value, float):
            yield f'{prefix}{name}', value


def read_losses(folder):
    log = json.loads(Path(folder, 'log').read_text())
    return {entry['iteration']: entry['main/loss'] for entry in log}


def train(gpu, out, *words):
    options = [*RUN, *NETWORK, '--gpu', gpu, '--out', out, '--snapshot', '2', *words]
    run_command('train', *options)


PRECISIONS = ['fp32', *(pytest.param(name, marks=pytest.mark.gpu) for name in ('tf32', 'fp16', 'bf16'))]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_train_and_resume(gpu, precision, monkeypatch):
    """Two iterations with an evaluation, two more from the snapshot: the losses are those of four at once.

    On a GPU, only the later iterations of the second run replay CUDA graphs.
    """
    if gpu < 0 and precision != 'fp32':
        pytest.skip('the CPU supports fp32 only')
    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 2)
    words = ['--precision', precision, '--validation', '2']
    train(gpu, 'a', '--iteration', '2', *words)
    train(gpu, 'b', '--iteration', '4', *words, '--resume', 'a/snapshot_iter_2.npz')
    losses = read_losses('b')
    assert Path('b/results_iter_4.bbox.json').exists()
    assert [*losses] == [1, 2, 3, 4] and np.isfinite([*losses.values()]).all()
    if precision != 'fp32':
        return
    train(gpu, 'c', '--iteration', '4', *words)
    resumed, whole = (read_snapshot(f'{name}/snapshot_iter_4.npz').arrays for name in 'bc')
    for iteration, loss in read_losses('c').items():
        assert losses[iteration] == pytest.approx(loss, rel=1e-6 if gpu < 0 else 0.05), iteration
    for name in whole:
        if name.startswith('updater/model:main/') and resumed[name].dtype == np.float32:
            tolerance = 1e-6 if gpu < 0 else 1e-4
            np.testing.assert_allclose(resumed[name], whole[name], rtol=0, atol=tolerance, err_msg=name)


def test_train_with_tensorboard_and_auto(gpu, monkeypatch, tmp_path):
    """The options of ``--auto`` depend on the memory of the device."""
    pytest.importorskip('tensorboardX')
    from tests.support.scenes import write_coco

    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 2)
    data = write_coco(Scenes(), tmp_path)
    words = ['--auto', '--train-annotations', data, '--train-images', tmp_path, '--val-annotations', data]
    words += ['--val-images', tmp_path, '--iteration', '1', '--batchsize', '2', '--min-size', '64', '--max-size', '64']
    words += [*NETWORK, '--roi-batch', '16', '--workers', '0', '--tensorboard', '--gpu', gpu, '--out', 'out']
    run_command('train', *words)
    assert list(Path('out').rglob('events.*')) and Path('out/snapshot_iter_1.npz').exists()


def test_train_from_python(gpu):
    """The model stays on its device, and its evaluation runs there."""
    model = small_network()
    model.to_device(get_device(gpu))
    model.detect([Scenes().image(0)])
    assert (model in weight_cache._kept.by_link) == (gpu >= 0)  # derived weights, on a GPU only
    options = {'iterations': 2, 'eval_interval': 1, 'workers': 0, 'roi_batch': 16}
    result = mask_rcnn.train(model, Scenes(), out='run', val=Scenes(), **options)
    assert result.iteration == 2 and np.isfinite(result.losses).all() and 'bbox/AP' in result.metrics
    assert model.device == get_device(gpu) and isinstance(model.rpn.conv.W.array, model.xp.ndarray)
    assert model not in weight_cache._kept.by_link


def small_network():
    np.random.seed(0)
    options = {'fpn_channels': 16, 'head_channels': 32, 'mask_channels': 16, 'min_size': 64, 'max_size': 96}
    return mask_rcnn.build('mobilenet_v1_fpn', width=0.25, n_fg_class=2, class_names=Scenes.class_names, **options)


def test_inspection_of_a_model_whose_graphs_are_replayed(gpu, pixels, expected):
    """A CUDA graph runs no Python code, which records the steps."""
    model = load_model(gpu=gpu)
    for _ in range(3):
        (found,) = model.detect(pixels[:1])
    steps = trace(model, pixels[0], layers=['rpn'])
    assert_same(steps.detections, expected[0])
    assert_same(found, expected[0])
    assert str(why(steps, 0)) and len(steps.activations['rpn']) == len(activations(model, pixels[0], ['rpn'])['rpn'])
    (again,) = model.detect(pixels[:1])
    np.testing.assert_array_equal(again.boxes, found.boxes)
    assert model.device == get_device(gpu)


def test_inspection_of_training(gpu):
    model, dataset = load_model(), RichShapesDataset(1, size=96, seed=5)
    example = TrainingTransform(model.config)(dataset[0], 1)
    (on_cpu,) = trace_training(model, [example])
    model.to_device(get_device(gpu))
    (found,) = trace_training(model, [example])
    for name, value in on_cpu.losses.items():
        assert found.losses[name] == pytest.approx(value, rel=0.05, abs=0.01), name
    assert found.anchors.roles.shape == on_cpu.anchors.roles.shape


def test_inspect_data(gpu):
    words = ['--dataset', 'shapes', '--min-size', '64', '--max-size', '64', *NETWORK[:2], *NETWORK[4:], '--limit', '1']
    run_command('inspect', 'data', *words, '--gpu', gpu, '--out', 'r.html')
    assert Path('r.html').stat().st_size > 10_000


def test_files_of_a_model_are_those_of_the_cpu(gpu):
    """Weights, the ONNX graph and the statistics of the weights."""
    export = pytest.importorskip('mask_rcnn.onnx_export.export')
    model, contents = load_model(), []
    for number in (-1, gpu):
        model.to_device(get_device(number))
        save('model.npz', model)
        contents.append((Path('model.npz').read_bytes(), export.serialize(export.export_model(model))))
        contents[-1] += str([vars(row) for row in weight_table(model)][:3]), str(dead_channels(model))
    assert contents[0] == contents[1]


@pytest.mark.gpu
def test_the_doctor_finds_the_gpu(capsys):
    cli.main(['doctor', '--json'])
    report = json.loads(capsys.readouterr().out)
    sections = report['sections']
    assert sections['CUDA']['gpu_works'] and sections['GPU']['gpus'][0]['capability'] >= [7, 5]
    assert sections['cuDNN']['cudnn']['is_usable'] == is_available(), sections['cuDNN']
    assert not [advice for advice in report['advice'] if advice['level'] == 'warning' and 'GPU' in advice['text']]


@pytest.mark.gpu
def test_processes_share_a_gpu(folder, root, tmp_path, expected):
    words = ['-m', 'mask_rcnn.cli', 'demo', '--image', folder / 'images', '--modelfile', folder / 'model.npz']
    done = run_processes([*map(str, words), '--json', 'r.json', '--output', 'out/'], root, 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'r.json').read_text())
    for i, detections in enumerate(expected):
        assert_found([result for result in results if result['image_id'] == i], detections)


@pytest.mark.gpu
def test_nccl_with_more_processes_than_gpus_is_one_line(root, tmp_path):
    nccl = pytest.importorskip('cupy.cuda.nccl', exc_type=ImportError)
    if not getattr(nccl, 'available', True):
        pytest.skip('needs NCCL')
    n_gpus = cuda_device_count()
    words = ['-m', 'mask_rcnn.cli', 'train', *RUN[:-4], *NETWORK, '--communicator', 'pure_nccl', '--iteration', '1']
    done = run_processes([*words, '--workers', '0', '--out', 'out'], root, n_gpus + 1, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in lines_of_program(done.stderr) if line.startswith('error')]
    assert lines[0].startswith(f'error: --communicator pure_nccl: process {n_gpus} needs GPU {n_gpus}: there ')
    assert 'Traceback' not in done.stderr
