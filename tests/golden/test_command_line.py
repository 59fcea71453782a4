"""Convert Detectron's pickle and detect the instances of a photo, with two commands."""

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn import Detections
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS
from tests.support.golden import MAX_SCORE_ROUNDING, Case, compare_pasted, match, rebuild_pickle


def run(root, *arguments):
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.command
def test_parser_and_demo_reproduce_the_detections_of_detectron(golden, gpu, root, tmp_path):
    case = Case(golden, 'R-50-C4_seed0')
    pickle = rebuild_pickle(golden, case.settings['recipe'], tmp_path)
    weights, results = tmp_path / 'model.npz', tmp_path / 'results.json'
    report = run(root, 'utils/detectron_parser.py', '--input', pickle, '--output', weights)
    assert 'R-50-C4' in report and 'momentum' in report
    run(
        root,
        'demo.py',
        '--bn2affine',
        '--modelfile',
        weights,
        '--image',
        case.photo,
        '--gpu',
        gpu,
        '--output',
        tmp_path / 'picture.png',
        '--json',
        results,
    )
    found = json.loads(results.read_text())
    assert {entry['image_id'] for entry in found} == {case.photo.stem}

    x, y, width, height = np.array([entry['bbox'] for entry in found], np.float32).T
    detections = Detections(
        boxes=np.stack([y, x, y + height - 1, x + width - 1], axis=1),
        labels=[COCO_CATEGORY_IDS.index(entry['category_id']) for entry in found],
        scores=[entry['score'] for entry in found],
        size=tuple(case.arrays['im_shape'][:2]),
        masks=np.stack([np.asarray(coco_mask.decode(entry['segmentation'])).astype(bool) for entry in found]),
    )
    partners = match(case, detections, min_iou=0.9995, max_score_difference=MAX_SCORE_ROUNDING)
    assert len(detections) == len(case.arrays['boxes'])
    compare_pasted(case, detections.masks[partners])
