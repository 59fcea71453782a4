"""Convert Matterport's ``.h5`` file, detect its instances and fine-tune the network, with three commands."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mask_rcnn import Detections
from mask_rcnn.config import MATTERPORT
from mask_rcnn.weights import read_weights
from tests.support.golden import match
from tests.support.matterport import MatterportCase

CASE = 'shapes_resnet50_shapes7'

pytestmark = pytest.mark.command


def run(root, *arguments):
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope='module')
def case(matterport_golden):
    return MatterportCase(matterport_golden, CASE)


@pytest.fixture(scope='module')
def weights(case, h5_file, root, tmp_path_factory):
    """The ``.npz`` file, converted from the ``.h5`` file, a JSON file of the settings and a file of class names."""
    folder = tmp_path_factory.mktemp('commands')
    h5 = h5_file(case.settings['recipe'])
    (folder / 'config.json').write_text(json.dumps(case.settings['matterport']))
    (folder / 'names.txt').write_text('square\ncircle\ntriangle\n')
    report = run(
        root,
        'utils/matterport_parser.py',
        h5,
        '--config',
        folder / 'config.json',
        '--class-names',
        folder / 'names.txt',
        '--output',
        folder / 'shapes.npz',
    )
    assert 'R-50-FPN Mask R-CNN, 3 classes' in report and 'matterport' in report and 'WARNING' not in report
    return folder / 'shapes.npz'


@pytest.mark.slow
def test_demo_reproduces_the_detections_of_matterport(case, weights, root, tmp_path):
    picture = tmp_path / 'shapes7.png'
    cv2.imwrite(str(picture), case.arrays['image'][:, :, ::-1])
    run(
        root,
        'demo.py',
        '--modelfile',
        weights,
        '--image',
        picture,
        '--gpu',
        '-1',
        '--output',
        tmp_path / 'out.png',
        '--json',
        tmp_path / 'results.json',
    )
    found = json.loads((tmp_path / 'results.json').read_text())
    x, y, width, height = np.array([entry['bbox'] for entry in found], np.float32).T
    detections = Detections(
        boxes=np.stack([y, x, y + height, x + width], axis=1),
        size=(128, 128),
        dialect=MATTERPORT,
        labels=[entry['category_id'] - 1 for entry in found],
        scores=[entry['score'] for entry in found],
    )
    partners = match(case, detections, min_iou=0.9999, max_score_difference=1e-4)
    np.testing.assert_array_equal(detections.boxes[partners], case.arrays['rois'][case.arrays['stable']])


@pytest.mark.slow
def test_training_continues_from_the_converted_network(weights, root, tmp_path):
    """After 30 iterations the dialect and the backbone's statistics are the same, and the loss is lower."""
    out = run(
        root,
        'train.py',
        '--dataset',
        'shapes',
        '--resume',
        weights,
        '--freeze_bn',
        '--gpu',
        '-1',
        '--iteration',
        30,
        '--batchsize',
        2,
        '--lr',
        '1e-3',
        '--lr_initialchange',
        10**6,
        '--roi-batch',
        64,
        '--train-proposals',
        200,
        '--clip-gradient',
        5,
        '--workers',
        0,
        '--validation',
        0,
        '--out',
        tmp_path,
    )
    rows = [line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    losses = np.array([float(row[3]) for row in rows])
    assert len(losses) == 30 and losses[-10:].mean() < losses[:10].mean()
    before, after = read_weights(weights), read_weights(tmp_path / 'model_iter_30.npz')
    assert after.meta.config.dialect == MATTERPORT
    assert after.meta.class_names == ('square', 'circle', 'triangle')
    name = 'extractor/body/res4/block2/conv2'
    np.testing.assert_array_equal(after.arrays[f'{name}/norm/avg_var'], before.arrays[f'{name}/norm/avg_var'])
    assert (after.arrays[f'{name}/conv/W'] != before.arrays[f'{name}/conv/W']).any()
