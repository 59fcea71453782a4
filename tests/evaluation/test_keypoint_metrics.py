"""COCO's metrics for keypoints."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.evaluation import KEYPOINT_METRIC_NAMES, COCOEvaluator, Metrics
from mask_rcnn.inference.detections import Detections

SIZE = 240, 320


def person(rng, number, image_id):
    """Return a COCO annotation; every sixth is a crowd, every fifth has no labelled keypoint."""
    width, height = rng.uniform(20, 150, 2)
    x, y = rng.uniform(0, (SIZE[1] - width, SIZE[0] - height))
    visibility = rng.randint(0, 3, 17) * (number % 5 > 0) * (number % 6 > 0)
    points = np.stack([x + rng.uniform(0, width, 17), y + rng.uniform(0, height, 17)], axis=1).round()
    points *= visibility[:, None] > 0
    return {
        'id': number,
        'image_id': image_id,
        'category_id': 1,
        'iscrowd': int(number % 6 == 0),
        'bbox': [x, y, width, height],
        'area': 0.6 * width * height,
        'segmentation': [[x, y, x + width, y, x, y + height]],
        'keypoints': np.column_stack([points, visibility]).astype(int).ravel().tolist(),
        'num_keypoints': int(np.count_nonzero(visibility)),
    }


@pytest.fixture
def dataset(tmp_path, rng):
    """Six images with persons in the format of ``person_keypoints_val2017.json``."""
    images = [{'id': 3 + i, 'file_name': f'{i}.png', 'height': SIZE[0], 'width': SIZE[1]} for i in range(6)]
    persons = [person(rng, number, images[number % 6]['id']) for number in range(1, 40)]
    content = {
        'images': images,
        'annotations': persons,
        'categories': [{'id': 1, 'name': 'person', 'keypoints': list(COCO_KEYPOINT_NAMES)}],
    }
    for image in images:
        cv2.imwrite(str(tmp_path / image['file_name']), np.full((*SIZE, 3), 90, np.uint8))
    (tmp_path / 'persons.json').write_text(json.dumps(content))
    return COCODataset(tmp_path / 'persons.json', tmp_path, only_annotated=False, keypoints=True)


def noisy(annotations, rng, noise):
    """Return detections with shifted keypoints and boxes, missed persons, duplicates and one false positive."""
    chosen = np.repeat(np.arange(len(annotations)), rng.randint(0, 3, len(annotations)))
    keypoints = np.zeros((len(chosen) + 1, 17, 4), np.float32)
    keypoints[:-1, :, :2] = annotations.keypoints[chosen, :, :2] + rng.normal(0, noise, (len(chosen), 17, 2))
    keypoints[-1, :, :2] = rng.uniform(0, 200, (17, 2))
    boxes = np.concatenate(
        [annotations.boxes[chosen] + rng.normal(0, noise, (len(chosen), 4)), [[0, 0, 199, 199]]]
    ).astype(np.float32)
    return Detections(
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int32),
        size=SIZE,
        keypoints=keypoints,
        scores=(rng.randint(1, 100, len(boxes)) / 100).astype(np.float32),
    )  # with ties


def evaluator_of(dataset, **options):
    return COCOEvaluator(
        dataset.ground_truth(),
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        masks=False,
        keypoints=True,
        **options,
    )


def evaluate_with_pycocotools(annotation_file, results_file, kind):
    """Evaluate a file of results in the usual way."""
    truth = COCO(str(annotation_file))
    evaluation = COCOeval(truth, truth.loadRes(str(results_file)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return tuple(evaluation.stats)


def test_metrics_equal_pycocotools_on_the_written_files(dataset, tmp_path, rng):
    evaluator = evaluator_of(dataset)
    for i, image_id in enumerate(dataset.image_ids):
        evaluator.add(image_id, noisy(dataset[i].annotations, rng, noise=4))
    metrics = evaluator.evaluate()
    files = evaluator.write_results(tmp_path / 'results.json')
    assert [path.name for path in files] == ['results.bbox.json', 'results.keypoints.json']
    assert metrics.boxes == evaluate_with_pycocotools(dataset.annotation_file, files[0], 'bbox')
    assert metrics.keypoints == evaluate_with_pycocotools(dataset.annotation_file, files[1], 'keypoints')
    assert len(metrics.keypoints) == len(KEYPOINT_METRIC_NAMES) == 10 and 0.1 < metrics.keypoints[0] < 0.9
    assert metrics.keypoint_ap_per_class == pytest.approx(metrics.keypoints[:1])
    assert metrics.masks == metrics.mask_ap_per_class == ()
    entry = json.loads(files[1].read_text())[0]
    assert set(entry) == {'image_id', 'category_id', 'score', 'keypoints'} and len(entry['keypoints']) == 51


def test_perfect_detections(dataset, rng):
    evaluator = evaluator_of(dataset)
    for i, image_id in enumerate(dataset.image_ids):
        truth = dataset[i].annotations
        keypoints = np.concatenate([truth.keypoints, truth.keypoints[:, :, :1]], axis=2)
        is_visible = keypoints[:, :, 2].any(axis=1)
        scores = np.where(is_visible, 0.9, 0.1).astype(np.float32)
        evaluator.add(
            image_id, Detections(boxes=truth.boxes, labels=truth.labels, scores=scores, keypoints=keypoints, size=SIZE)
        )
    metrics = evaluator.evaluate()
    assert metrics.keypoints[0] == pytest.approx(1) and metrics.keypoints[5] == pytest.approx(1)
    assert metrics.summary()['keypoints/AR75'] == pytest.approx(1) and 'segm/AP' not in metrics.summary()


def test_no_detections(dataset):
    evaluator = evaluator_of(dataset)
    for image_id in dataset.image_ids:
        evaluator.add(
            image_id,
            Detections(
                boxes=np.zeros((0, 4)),
                labels=np.zeros(0, int),
                size=SIZE,
                scores=np.zeros(0),
                keypoints=np.zeros((0, 17, 4)),
            ),
        )
    assert evaluator.evaluate().keypoints[0] == 0


def test_missing_or_other_keypoints_are_rejected(dataset, rng):
    evaluator = evaluator_of(dataset)
    good = noisy(dataset[0].annotations, rng, noise=1)
    bare = dict(boxes=good.boxes, labels=good.labels, scores=good.scores, size=SIZE)
    with pytest.raises(ValueError, match='the detections of image 3 have no keypoints'):
        evaluator.add(3, Detections(**bare))
    with pytest.raises(ValueError, match="image 3 have 4 keypoints; COCO's metrics need 17"):
        evaluator.add(3, Detections(**bare, keypoints=good.keypoints[:, :4]))
    truth = dataset.ground_truth()
    for annotation in truth['annotations']:
        del annotation['num_keypoints']
    with pytest.raises(ValueError, match='the model predicts keypoints, but the ground truth contains none'):
        COCOEvaluator(truth, class_names=['person'], category_ids=[1], masks=False, keypoints=True)


def test_table():
    metrics = Metrics(
        boxes=tuple(i / 100 for i in range(12)),
        masks=(),
        class_names=('person',),
        box_ap_per_class=(0.25,),
        mask_ap_per_class=(),
        keypoints=(0.5,) * 9 + (-1.0,),
        keypoint_ap_per_class=(0.75,),
    )
    lines = metrics.table().splitlines()
    assert lines[1].split() == ['boxes'] + [f'{i}.0' for i in range(12)]
    assert lines[2].split() == list(KEYPOINT_METRIC_NAMES)
    assert lines[3].split() == ['keypoints'] + ['50.0'] * 9 + ['-']
    assert [line.split() for line in lines[5:]] == [
        ['class', 'box', 'AP', 'keypoint', 'AP'],
        ['person', '25.0', '75.0'],
    ]
    assert len({len(line) for line in lines[:2]}) == len({len(line) for line in lines[2:4]}) == 1
    assert len({len(line) for line in lines[5:]}) == 1
    assert metrics.ap_per_class() == {'bbox': (0.25,), 'keypoints': (0.75,)}
