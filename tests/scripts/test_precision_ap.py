"""What a precision costs in AP: nothing if it finds the same, something if it does not."""

import importlib
import json

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset

SHAPES = ShapesDataset(4, size=64)
#: A mean of ones, as pycocotools computes it.
ONE = pytest.approx(1, abs=1e-9)


@pytest.fixture
def precision_ap(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'benchmarks'))
    return importlib.import_module('precision_ap')


@pytest.fixture(scope='module')
def model():
    np.random.seed(0)
    model = mask_rcnn.build(
        'mobilenet_v1_fpn',
        class_names=SHAPES.class_names,
        n_fg_class=3,
        min_size=64,
        max_size=96,
        rpn_pre_nms=200,
        rpn_post_nms=16,
        score_threshold=0.01,
        max_detections=5,
        width=0.25,
        fpn_channels=16,
        rpn_channels=16,
        head_channels=32,
        mask_channels=16,
    )
    model.rpn.delta.W.array[...] *= 0.1
    return model


def test_fp32_against_itself_is_perfect(precision_ap, model):
    result = precision_ap.compare(model, SHAPES, ['fp32'], n_images=3, min_score=0)
    row = result['precisions']['fp32']
    assert result['images'] == 3 and row['detections'] > 0
    assert row['as_fp32']['bbox/AP'] == ONE and row['as_fp32']['segm/AP'] == ONE
    assert 'fp32' in precision_ap.table(result) and '100.00' in precision_ap.table(result)


@pytest.fixture
def detections(precision_ap, model):
    return precision_ap.detect_and_evaluate(model, SHAPES, 'fp32', range(4))[1]


def test_what_is_missed_or_moved_or_invented_counts(precision_ap, detections):
    def ap(truth, found, **options):
        return precision_ap.agreement(truth, found, SHAPES, min_score=0, **options).summary()

    assert {'bbox', 'segmentation', 'score', 'category_id', 'image_id'} <= set(detections[0])
    missed = ap(detections, detections[1:])
    assert missed['bbox/AP'] < 0.99 and missed['segm/AP'] < 0.99
    moved = [{**result, 'bbox': [x + 0.2 * w, y, w, h]} for result in detections for x, y, w, h in [result['bbox']]]
    assert ap(detections, moved)['bbox/AP'] < 0.99 and ap(detections, moved)['segm/AP'] == ONE
    invented = [{**result, 'bbox': [0, 0, 1, 1], 'score': 1.0} for result in detections]
    assert ap(detections, detections + invented)['bbox/AP'] < 0.99
    assert ap(detections, [])['bbox/AP'] == 0


def test_truths_have_a_least_score_and_less_likely_ones_do_no_harm(precision_ap, detections):
    scores = sorted(result['score'] for result in detections)
    middle = scores[len(scores) // 2]
    assert precision_ap.agreement(detections, detections, SHAPES, min_score=middle).summary()['bbox/AP'] == ONE
    # Nothing is a truth: no number at all.
    assert precision_ap.agreement(detections, detections, SHAPES, min_score=2).summary() == {}


def test_empty_masks_are_ignored(precision_ap, detections):
    from pycocotools import mask as coco_mask

    nothing = coco_mask.encode(np.zeros((64, 64), np.uint8, order='F'))
    empty = {**detections[0], 'segmentation': {**nothing, 'counts': nothing['counts'].decode()}}
    results = [empty, *detections[1:]]
    summary = precision_ap.agreement(results, results, SHAPES, min_score=0).summary()
    assert summary['bbox/AP'] == ONE and summary['segm/AP'] == ONE


def test_keypoints_are_compared_as_well(precision_ap):
    class People:
        class_names, category_ids = ('person',), (1,)

        @staticmethod
        def ground_truth():
            return {
                'images': [{'id': 7, 'height': 90, 'width': 90}],
                'annotations': [],
                'categories': [{'id': 1, 'name': 'person', 'keypoints': ['a'] * 17, 'skeleton': []}],
            }

    found = [
        {
            'image_id': 7,
            'category_id': 1,
            'score': 0.9,
            'bbox': [0, 0, 50, 80],
            'keypoints': [float(value) for i in range(17) for value in (3 * i, 4 * i, 1)],
        }
    ]
    moved = [{**found[0], 'keypoints': [value + 5 for value in found[0]['keypoints']]}]
    same, other = (
        precision_ap.agreement(found, results, People, min_score=0.5).summary() for results in (found, moved)
    )
    assert same['bbox/AP'] == ONE and same['keypoints/AP'] == ONE and other['keypoints/AP'] < 0.99
    assert not any(name.startswith('segm') for name in same)


def test_command(precision_ap, model, tmp_path, monkeypatch, capsys):
    mask_rcnn.save(tmp_path / 'model.npz', model)
    monkeypatch.setitem(precision_ap.dataset_options.N_GENERATED, 'shapes', {'val': 4})
    arguments = ['--dataset', 'shapes', '--modelfile', str(tmp_path / 'model.npz'), '--gpu', '-1']
    assert (
        precision_ap.main(
            [
                *arguments,
                '--precisions',
                'fp32',
                '--images',
                '2',
                '--min-score',
                '0',
                '--json',
                str(tmp_path / 'cost.json'),
            ]
        )
        == 0
    )
    result, text = json.loads((tmp_path / 'cost.json').read_text()), capsys.readouterr().out
    assert result['images'] == 2 and result['precisions']['fp32']['as_fp32']['bbox/AP'] == ONE
    assert 'bbox AP' in text and 'as fp32' in text
    assert precision_ap.main(arguments) == 2
    assert capsys.readouterr().err == 'error: --precision tf32: tf32 needs a GPU; the CPU supports only fp32\n'
    arguments[3] = str(tmp_path / 'missing.npz')
    assert precision_ap.main([*arguments, '--precisions', 'fp32']) == 1
    with pytest.raises(SystemExit):
        precision_ap.main([*arguments, '--images', '0'])
