"""Keypoints in the commands: training, evaluation, and the JSON of the demo."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import demo, evaluate, initial_model, train
from mask_rcnn.cli.command import ArgumentParser
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.models.keypoint_head import KeypointHead
from tests.support.small_resnet import use_narrow_resnet

TINY = [
    '--min-size',
    '64',
    '--max-size',
    '96',
    '--anchor-sizes',
    '8',
    '16',
    '32',
    '64',
    '128',
    '--set',
    'width=0.25',
    'fpn_channels=8',
    'rpn_channels=8',
    'head_channels=8',
    'score_threshold=0.01',
    'max_detections=5',
]
RUN = ['--roi-batch', '16', '--batchsize', '2', '--workers', '0', '--gpu', '-1']
NEW = ['--keypoints', '--pretrained', 'none', '--extractor', 'mobilenet_v1_fpn', *RUN, *TINY, '--train-proposals', '50']


@pytest.fixture(autouse=True)
def small_network(monkeypatch, tmp_path):
    use_narrow_resnet(monkeypatch)
    monkeypatch.setattr(KeypointHead, 'n_conv', 1)
    monkeypatch.setattr(KeypointHead, 'channels', 8)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def persons(tmp_path):
    """A folder with a ``COCO/`` of four images of a bright rectangle with keypoints on its diagonal."""
    images, annotations = [], []
    for part in ('train2017', 'val2017', 'annotations'):
        (tmp_path / 'COCO' / part).mkdir(parents=True)
    for i in range(1, 5):
        x, y, width, height = 5 * i, 8, 30, 40
        picture = np.full((64, 96, 3), 40, np.uint8)
        picture[y : y + height, x : x + width] = 220
        for part in ('train2017', 'val2017'):
            cv2.imwrite(str(tmp_path / 'COCO' / part / f'{i:012}.jpg'), picture)
        points = [[x + width * k // 17, y + height * k // 17, 2] for k in range(17)]
        images.append({'id': i, 'file_name': f'{i:012}.jpg', 'height': 64, 'width': 96})
        annotations.append(
            {
                'id': i,
                'image_id': i,
                'category_id': 1,
                'iscrowd': 0,
                'area': width * height,
                'bbox': [x, y, width, height],
                'num_keypoints': 17,
                'keypoints': [number for point in points for number in point],
                'segmentation': [[x, y, x + width, y, x + width, y + height, x, y + height]],
            }
        )
    content = {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'person', 'keypoints': list(COCO_KEYPOINT_NAMES)}],
    }
    for part in ('train', 'val'):
        file = tmp_path / 'COCO' / 'annotations' / f'person_keypoints_{part}2017.json'
        file.write_text(json.dumps(content))
    return tmp_path


@pytest.mark.slow
def test_keypoint_training_evaluation_and_demo(persons, capsys):
    """coco2017 is person_keypoints_*2017.json; the metrics, results, log, table and model contain keypoints."""
    assert train.main([*NEW, '--iteration', '2', '--validation', '2', '--snapshot', '2'], persons) == 0
    output = capsys.readouterr().out
    assert 'keypts' in output and 'keypt AP' in output and 'mask AP' not in output
    log = json.loads((persons / 'result' / 'log').read_text())
    assert 'main/roi_keypoint_loss' in log[-1] and 'validation/keypoints/AP' in log[-1]
    assert {path.name for path in (persons / 'result').glob('results*')} == {
        'results_iter_2.bbox.json',
        'results_iter_2.keypoints.json',
    }
    model = mask_rcnn.load(persons / 'result' / 'model_best.npz')
    config = model.config
    assert (config.n_keypoint, config.masks, config.extractor) == (17, False, 'mobilenet_v1_fpn')
    assert model.class_names == ('person',) and model.category_ids == (1,)

    weights = str(persons / 'result' / 'model_iter_2.npz')
    newest = str(persons / 'result' / 'snapshot_model.npz')  # the same model
    assert evaluate.main(['--modelfile', newest, '--gpu', '-1', '--out', 'measured'], persons) == 0
    metrics = json.loads((persons / 'measured' / 'metrics.json').read_text())
    assert metrics['keypoints/AP'] == log[-1]['validation/keypoints/AP']
    assert set(metrics['classes']['person']) == {'bbox/AP', 'keypoints/AP'}
    assert sum(name.startswith('keypoints/') for name in metrics) == 8  # there are no large objects
    assert (persons / 'measured' / 'results.keypoints.json').exists()
    assert 'results.bbox.json, results.keypoints.json and metrics.json' in capsys.readouterr().out

    # --resume needs no --keypoints: the snapshot and the model determine it.
    assert (
        train.main(['--resume', 'result/snapshot_iter_2.npz', '--iteration', '3', '--validation', '0', *RUN], persons)
        == 0
    )
    assert (
        train.main(
            ['--lr', '0', '--iteration', '1', '--validation', '1', '--resume', weights, '--out', 'again', *RUN], persons
        )
        == 0
    )
    assert (persons / 'again' / 'results.keypoints.json').read_bytes() == (
        persons / 'measured' / 'results.keypoints.json'
    ).read_bytes()

    photo = persons / 'COCO' / 'val2017' / '000000000002.jpg'
    assert (
        demo.main(
            [
                '--modelfile',
                weights,
                '--image',
                str(photo),
                '--gpu',
                '-1',
                '--json',
                'found.json',
                '--output',
                'found.png',
            ]
        )
        == 0
    )
    entries = json.loads((persons / 'found.json').read_text())
    assert entries and all(len(entry['keypoints']) == 51 and entry['image_id'] == 2 for entry in entries)
    (found,) = mask_rcnn.load(weights).detect([photo])
    np.testing.assert_allclose(
        np.array(entries[0]['keypoints']).reshape(17, 3)[:, [1, 0]], found.keypoints[0, :, :2], rtol=0, atol=1e-4
    )


def test_the_default_is_resnet50_fpn_without_masks():
    parser = ArgumentParser()
    train.configure(parser)
    words = ['--keypoints', '--pretrained', 'none', '--gpu', '-1']
    args = TrainArguments.from_namespace(parser.parse_args(words))
    data = SimpleNamespace(class_names=('person',), category_ids=(1,))
    with no_initial_weights():
        model, _ = initial_model.make_model(args, data, is_main=True)
    assert (model.config.n_keypoint, model.config.masks, model.config.extractor) == (17, False, 'resnet50_fpn')


def refused(capsys, persons, *arguments):
    assert train.main([*map(str, arguments), '--gpu', '-1', '--workers', '0'], persons) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    return error


def test_contradictions(persons, capsys):
    new = ['--keypoints', '--pretrained', 'none', '--validation', '0']
    assert '--dataset shapes has no keypoints' in refused(capsys, persons, *new, '--dataset', 'shapes')
    assert 'keypoint networks need an FPN extractor' in refused(capsys, persons, *new, '--extractor', 'resnet50')
    assert '--gamma 2: the network has no mask head' in refused(
        capsys, persons, *NEW, '--validation', '0', '--gamma', '2'
    )
    mask_rcnn.save('masks.npz', mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=1, width=0.25, head_channels=8))
    error = refused(capsys, persons, '--keypoints', '--resume', 'masks.npz', '--validation', '0')
    assert '--keypoints and --resume masks.npz contradict each other' in error


def test_data_without_keypoints(persons, capsys):
    file = persons / 'COCO' / 'annotations' / 'person_keypoints_train2017.json'
    content = json.loads(file.read_text())
    del content['categories'][0]['keypoints']
    file.write_text(json.dumps(content))
    assert train.main(NEW + ['--validation', '0'], persons) == 1
    assert "no category has 'keypoints'" in capsys.readouterr().err
