"""Evaluation with annotations in the forms that labelling tools write: a twin has the metrics of the original."""

import copy
import json
import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.coco_annotations import clean_ground_truth
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.evaluation import COCOEvaluator
from mask_rcnn.inference.detections import Detections

SIZE = HEIGHT, WIDTH = 60, 80
N_IMAGES = 4
N_OBJECTS = 4


def make_content():
    """Return annotations of quadrilaterals with integer vertices, whose boxes and areas are those of the outlines."""
    rng = np.random.RandomState(0)
    images = [{'id': i, 'file_name': f'sub/{i}.png', 'height': HEIGHT, 'width': WIDTH} for i in range(1, N_IMAGES + 1)]
    annotations = []
    for number in range(N_IMAGES * N_OBJECTS):
        x, y = 20 * (number % N_OBJECTS), int(rng.randint(0, 20))
        width, height = int(rng.randint(8, 19)), int(rng.randint(10, 40))
        annotations.append(
            {
                'id': number + 1,
                'image_id': number // N_OBJECTS + 1,
                'category_id': int(rng.randint(1, 3)),
                'iscrowd': 0,
                'bbox': [x, y, width, height],
                'area': width * height,
                'segmentation': [[x, y, x + width, y, x + width, y + height, x, y + height]],
            }
        )
    return {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
    }


CONTENT = make_content()


def detections_of(image_number):
    """Return imperfect detections with equal scores in different images, and one that matches annotation 1 last."""
    rng = np.random.RandomState(image_number)
    chosen = [a for a in CONTENT['annotations'] if a['image_id'] == image_number and rng.rand() < 0.9]
    x, y, width, height = np.float32([a['bbox'] for a in chosen]).reshape(-1, 4).T
    boxes = np.stack([y, x, y + height - 1, x + width - 1], axis=1)
    boxes += rng.randint(-2, 3, boxes.shape).astype(np.float32)
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, box in zip(masks, boxes.clip(0).astype(int), strict=True):
        mask[box[0] : box[2] + 1, box[1] : box[3] + 1] = True
    labels = np.int32([a['category_id'] - 1 for a in chosen])
    labels[rng.rand(len(labels)) < 0.2] = 0
    return Detections(
        boxes=boxes, labels=labels, scores=np.float32(rng.randint(5, 10, len(boxes)) / 10), size=SIZE, masks=masks
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    (path / 'sub').mkdir()
    for i in range(1, N_IMAGES + 1):
        cv2.imwrite(str(path / f'sub/{i}.png'), np.zeros((*SIZE, 3), np.uint8))
    return path


@pytest.fixture
def evaluate(folder, tmp_path):
    """A function that writes an annotation file and returns the metrics of the detections."""

    def evaluate_file(content, encoding='utf-8'):
        path = tmp_path / 'annotations.json'
        path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        assert len(COCODataset(path, folder)) == N_IMAGES  # it can be trained
        dataset = COCODataset(path, folder, only_annotated=False)
        assert dataset.warnings == []
        evaluator = COCOEvaluator(
            dataset.ground_truth(), class_names=dataset.class_names, category_ids=dataset.category_ids
        )
        for i, image_id in enumerate(dataset.image_ids):
            evaluator.add(image_id, detections_of(int(re.search(r'(\d+)\.png', dataset.image_name(i))[1])))
        json.dumps(evaluator.results())
        return evaluator.evaluate()

    return evaluate_file


@pytest.fixture(scope='module')
def original():
    """The metrics of the detections with the untouched annotations, as pycocotools computes them."""
    evaluator = evaluator_of(CONTENT)
    for image_id in range(1, N_IMAGES + 1):
        evaluator.add(image_id, detections_of(image_id))
    truth = COCO()
    truth.dataset = copy.deepcopy({'info': {}, **CONTENT})
    truth.createIndex()
    metrics = evaluator.evaluate()
    results = [{k: v for k, v in result.items() if k != 'segmentation'} for result in evaluator.results()]
    evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert metrics.boxes == tuple(evaluation.stats)
    return metrics


def change_ids(image=lambda i: i, category=lambda i: i, annotation=lambda i: i):
    def change(content):
        for entry in content['images']:
            entry['id'] = image(entry['id'])
        for entry in content['categories']:
            entry['id'] = category(entry['id'])
        for entry in content['annotations']:
            entry['id'] = annotation(entry['id'])
            entry['image_id'], entry['category_id'] = image(entry['image_id']), category(entry['category_id'])

    return change


def change_entries(key, **changes):
    """Set fields to values or to functions of the entry, or remove them if the value is ``...``."""

    def change(content):
        for entry in content[key]:
            for name, value in changes.items():
                if value is ...:
                    del entry[name]
                else:
                    entry[name] = value(entry) if callable(value) else value

    return change


def points_of(annotation):
    return np.reshape(annotation['segmentation'][0], (-1, 2)).tolist()


def run_lengths_of(annotation):
    (rle,) = coco_mask.frPyObjects(annotation['segmentation'], HEIGHT, WIDTH)
    return {'size': [HEIGHT, WIDTH], 'counts': rle['counts'].decode('ascii')}


TWINS = {
    'annotations from 0': change_ids(annotation=lambda i: i - 1),
    'all ids from 0': change_ids(*[lambda i: i - 1] * 3),
    'text ids': change_ids(*[lambda i: f'item {i}'] * 3),
    'digits as ids': change_ids(*[str] * 3),
    'floats as ids': change_ids(*[float] * 3),
    'floats in images only': change_ids(annotation=lambda i: f'{i}.0'),
    'lists as annotation ids': change_ids(annotation=lambda i: [i]),
    'equal annotation ids': change_ids(annotation=lambda i: 5),
    'large ids': change_ids(*[lambda i: i + 10**30] * 3),
    'zero boxes': change_entries('annotations', bbox=[0, 0, 0, 0]),
    'null boxes': change_entries('annotations', bbox=None),
    'missing boxes': change_entries('annotations', bbox=...),
    'empty boxes': change_entries('annotations', bbox=[]),
    'missing areas': change_entries('annotations', area=...),
    'zero areas': change_entries('annotations', area=0),
    'null areas': change_entries('annotations', area=None),
    'null iscrowd': change_entries('annotations', iscrowd=None),
    'false iscrowd': change_entries('annotations', iscrowd=False),
    'float iscrowd': change_entries('annotations', iscrowd=0.0),
    'flat polygons': change_entries('annotations', segmentation=lambda a: a['segmentation'][0]),
    'points': change_entries('annotations', segmentation=points_of),
    'nested points': change_entries('annotations', segmentation=lambda a: [points_of(a)]),
    'polygons of VIA': change_entries(
        'annotations',
        segmentation=lambda a: {'all_points_x': a['segmentation'][0][::2], 'all_points_y': a['segmentation'][0][1::2]},
    ),
    'run lengths in a list': change_entries('annotations', segmentation=lambda a: [run_lengths_of(a)]),
    'rectangles': change_entries('annotations', segmentation=lambda a: [points_of(a)[0] + points_of(a)[2]]),
    'sizes as text': change_entries('images', height=str(HEIGHT), width=float(WIDTH)),
    'no sizes': change_entries('images', height=None, width=...),
    'backslashes': change_entries('images', file_name=lambda i: i['file_name'].replace('/', '\\')),
}


def test_the_original_is_not_perfect(original):
    assert 0.1 < original.boxes[0] < 0.9 and 0.1 < original.masks[0] < 0.9


@pytest.mark.parametrize('change', TWINS.values(), ids=TWINS)
def test_a_twin_has_the_metrics_of_the_original(evaluate, original, change):
    content = copy.deepcopy(CONTENT)
    change(content)
    assert json.dumps(content) != json.dumps(CONTENT)
    assert evaluate(content) == original


@pytest.mark.parametrize('changes', [{'bbox': [0, 0, 0, 0]}, {'bbox': None, 'area': None}], ids=['box', 'box and area'])
def test_boxes_of_pixels_are_restored(changes):
    """The generated shapes are annotated with the boxes and the areas of the pixels of their polygons."""
    truth = ShapesDataset(4).ground_truth()
    odd = [{**annotation, **changes} for annotation in truth['annotations']]
    restored = clean_ground_truth({**truth, 'annotations': odd})['annotations']
    assert [(a['bbox'], a['area']) for a in restored] == [(a['bbox'], a['area']) for a in truth['annotations']]


def test_boxes_of_vertices_are_restored():
    """COCO annotates the boxes of the vertices and the areas of the polygons."""
    polygon = [10.25, 10.5, 30.75, 12.25, 20.5, 40.25]
    x, y = polygon[0::2], polygon[1::2]
    area = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(3)) / 2
    annotation = {**CONTENT['annotations'][0], 'segmentation': [polygon], 'area': area, 'bbox': [0, 0, 0, 0]}
    (restored,) = clean_ground_truth({**CONTENT, 'annotations': [annotation]})['annotations']
    assert (restored['bbox'], restored['area']) == ([10.25, 10.5, 20.5, 29.75], area)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_byte_order_marks(evaluate, original, encoding):
    assert evaluate(CONTENT, encoding) == original


def evaluator_of(content, **options):
    return COCOEvaluator(content, class_names=('cat', 'dog'), category_ids=(1, 2), **options)


def test_python_ground_truth_is_checked():
    """The twins of ground truth that does not come from a dataset, and values that would crash pycocotools."""
    results = []
    for name in (None, 'annotations from 0', 'zero boxes', 'null areas', 'flat polygons'):
        content = copy.deepcopy(CONTENT)
        if name:
            TWINS[name](content)
        evaluator = evaluator_of(content)
        for image_id in range(1, N_IMAGES + 1):
            evaluator.add(np.int64(image_id), detections_of(image_id))
        results.append(evaluator.evaluate())
        json.dumps(evaluator.results())
    assert results == results[:1] * len(results)
    for segmentation in ([[0, 0, 1e8, 0, 1e8, 1e8]], {'size': [HEIGHT, WIDTH], 'counts': 'o'}, [[float('nan')] * 6]):
        content['annotations'][3]['segmentation'] = segmentation
        with pytest.raises(ValueError, match="the ground truth cannot be used: the 'segmentation' of annotation 4 "):
            evaluator_of(content)


@pytest.mark.parametrize('annotations', [[], [{**CONTENT['annotations'][0], 'iscrowd': 1}]], ids=['none', 'crowd'])
def test_ground_truth_without_a_usable_object(annotations):
    evaluator = evaluator_of({**CONTENT, 'annotations': annotations})
    for image_id in range(1, N_IMAGES + 1):
        evaluator.add(image_id, detections_of(image_id))
    metrics = evaluator.evaluate()
    assert set(metrics.boxes + metrics.masks + metrics.box_ap_per_class) == {-1} and metrics.summary() == {}
    assert metrics.table().splitlines()[1].split() == ['boxes'] + ['-'] * 12


def test_masks_are_not_evaluated_without_outlines(tmp_path):
    annotations = [{k: v for k, v in a.items() if k != 'segmentation'} for a in CONTENT['annotations']]
    evaluator, full = evaluator_of({**CONTENT, 'annotations': annotations}), evaluator_of(CONTENT)
    for image_id in range(1, N_IMAGES + 1):
        evaluator.add(image_id, detections_of(image_id))
        full.add(image_id, detections_of(image_id))
    metrics = evaluator.evaluate()
    assert metrics.masks == () and metrics.boxes == full.evaluate().boxes
    assert list(metrics.ap_per_class()) == ['bbox'] and 'masks' not in metrics.table()
    assert [path.name for path in evaluator.write_results(tmp_path / 'r.json')] == ['r.bbox.json']


@pytest.mark.parametrize('keypoints', [False, True])
@pytest.mark.parametrize('content', [None, {}, [], {**CONTENT, 'annotations': {}}, {**CONTENT, 'annotations': [5]}])
def test_ground_truth_of_another_kind_is_refused(content, keypoints):
    with pytest.raises(ValueError, match="not COCO's format: there is no list|annotation number 0 is 5, not an object"):
        evaluator_of(content, keypoints=keypoints)


def test_detections_of_another_size_are_refused():
    detections = detections_of(1)
    content = copy.deepcopy(CONTENT)
    content['images'][0]['height'] = 61
    with pytest.raises(ValueError, match=r'image 1 have the size \(60, 80\), but the ground truth declares \(61, 80\)'):
        evaluator_of(content).add(1, detections)


def test_two_classes_of_the_same_name_are_matched_by_order():
    content = copy.deepcopy(CONTENT)
    evaluators = [
        COCOEvaluator(content, class_names=names, category_ids=(1, 2), model_class_names=names, n_model_classes=2)
        for names in (('cat', 'dog'), ('cat', 'cat'))
    ]
    for evaluator in evaluators:
        for image_id in range(1, N_IMAGES + 1):
            evaluator.add(image_id, detections_of(image_id))
    assert evaluators[0].evaluate().boxes == evaluators[1].evaluate().boxes
