"""COCO's metrics for boxes and masks, and the evaluation of a model."""

import contextlib
import itertools
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import chainer
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.evaluation import METRIC_NAMES, COCOEvaluator, Metrics, evaluate_model
from mask_rcnn.evaluation.coco import ResultsFileError
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import FileError
from tests.support.models import VERY_NARROW, small_model

SHAPES = ShapesDataset(4, size=64)


def masks_of(annotations, size):
    rles = [
        shape
        if isinstance(shape, dict)
        else coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in shape], *size))
        for shape in annotations.segmentations
    ]
    return np.array([coco_mask.decode(rle) for rle in rles], bool).reshape(-1, *size)


def perfect(annotations, size):
    return Detections(
        boxes=annotations.boxes,
        labels=annotations.labels,
        size=size,
        scores=np.linspace(0.9, 0.5, len(annotations), dtype=np.float32),
        masks=masks_of(annotations, size),
    )


def noisy(annotations, size, rng):
    """Return detections with shifted boxes and masks, missed objects, wrong classes and duplicates."""
    chosen = np.repeat(np.arange(len(annotations)), rng.randint(0, 3, len(annotations)))
    boxes = annotations.boxes[chosen] + rng.normal(0, 3, (len(chosen), 4)).astype(np.float32)
    wrong = rng.rand(len(chosen)) < 0.1
    labels = np.where(wrong, rng.randint(0, 80, len(chosen)), annotations.labels[chosen])
    masks = masks_of(annotations, size)[chosen]
    for mask, shift in zip(masks, rng.randint(-3, 4, (len(chosen), 2)), strict=True):
        mask[...] = np.roll(mask, shift, axis=(0, 1))
    scores = rng.randint(1, 100, len(chosen)) / 100  # with ties
    return Detections(
        boxes=boxes, labels=labels.astype(np.int32), scores=scores.astype(np.float32), size=size, masks=masks
    )


def evaluate_with_pycocotools(annotation_file, results_file, kind):
    """Evaluate a file of results in the usual way."""
    truth = COCO(str(annotation_file))
    evaluation = COCOeval(truth, truth.loadRes(str(results_file)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.fixture
def truth_file(shared, tmp_path_factory):
    """The annotations of every third image of COCO-mini, with those of crowds."""
    content = json.loads((shared / 'coco-mini/annotations/instances_val2017.json').read_text())
    content['images'] = content['images'][::3]
    chosen = {image['id'] for image in content['images']}
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] in chosen]
    assert any(entry['iscrowd'] for entry in content['annotations'])
    path = tmp_path_factory.mktemp('truth') / 'truth.json'
    path.write_text(json.dumps(content))
    return path


def test_metrics_equal_pycocotools_on_the_written_files(shared, truth_file, tmp_path, rng):
    dataset = COCODataset(truth_file, shared / 'coco-mini/val2017', only_annotated=False)
    evaluator = COCOEvaluator(
        dataset.ground_truth(), class_names=dataset.class_names, category_ids=dataset.category_ids
    )
    for i, image_id in enumerate(dataset.image_ids):
        evaluator.add(image_id, noisy(dataset._objects.get_annotations(i), dataset.image_size(i), rng))
    metrics = evaluator.evaluate()
    files = evaluator.write_results(tmp_path / 'results.json')
    assert [path.name for path in files] == ['results.bbox.json', 'results.segm.json']
    assert sorted(tmp_path.iterdir()) == sorted(files)
    for path, kind, values, per_class in zip(
        files,
        ('bbox', 'segm'),
        (metrics.boxes, metrics.masks),
        (metrics.box_ap_per_class, metrics.mask_ap_per_class),
        strict=True,
    ):
        reference = evaluate_with_pycocotools(truth_file, path, kind)
        assert values == tuple(reference.stats)
        assert 0.1 < values[0] < 0.9 and values[0] != values[3]
        precision = reference.eval['precision'][:, :, :, 0, 2]
        for label, category in enumerate(dataset.category_ids):
            k = reference.params.catIds.index(category)
            expected = precision[:, :, k]
            assert per_class[label] == (expected[expected > -1].mean() if (expected > -1).any() else -1)
    classes = [ap for ap in metrics.box_ap_per_class if ap >= 0]
    assert np.mean(classes) == pytest.approx(metrics.boxes[0])


def evaluator_of_shapes(**options):
    return COCOEvaluator(
        SHAPES.ground_truth(), class_names=SHAPES.class_names, category_ids=SHAPES.category_ids, **options
    )


def test_perfect_detections():
    evaluator = evaluator_of_shapes()
    for example in SHAPES:
        evaluator.add(example.image_id, perfect(example.annotations, (64, 64)))
    metrics = evaluator.evaluate()
    for values in (metrics.boxes, metrics.masks):
        assert values[:3] == pytest.approx([1] * 3) and values[8] == 1
    assert metrics.summary()['segm/AP'] == pytest.approx(1)


def no_detections(size=(64, 64)):
    return Detections(
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, int),
        scores=np.zeros(0),
        size=size,
        masks=np.zeros((0, *size), bool),
    )


def test_no_detections():
    evaluator = evaluator_of_shapes()
    for image_id in SHAPES.image_ids:
        evaluator.add(image_id, no_detections())
    metrics = evaluator.evaluate()
    assert metrics.boxes[0] == 0 and metrics.masks[8] == 0 and evaluator.results() == []


def test_the_size_of_a_mask_is_its_area():
    """A thin diagonal mask in a large box is a small object."""
    thin = np.zeros((128, 128), bool)
    np.fill_diagonal(thin, True)
    rle = coco_mask.encode(np.asfortranarray(thin, np.uint8))
    truth = {
        'images': [{'id': 1, 'height': 128, 'width': 128}],
        'categories': [{'id': 1, 'name': 'line'}],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 1,
                'iscrowd': 0,
                'area': 128,
                'bbox': [0, 0, 128, 128],
                'segmentation': rle,
            }
        ],
    }
    evaluator = COCOEvaluator(truth, class_names=['line'], category_ids=[1])
    masks = np.stack([thin, np.roll(thin, 64, axis=1)])  # the second one is wrong and equally thin
    evaluator.add(
        1,
        Detections(
            boxes=np.float32([[0, 0, 127, 127]] * 2),
            labels=np.int32([0, 0]),
            scores=np.float32([0.5, 0.9]),
            size=(128, 128),
            masks=masks,
        ),
    )
    small = METRIC_NAMES.index('APs')
    assert evaluator.evaluate().masks[small] == pytest.approx(0.5)  # the wrong detection counts, because it is small


def test_only_added_images_are_evaluated():
    evaluator = evaluator_of_shapes()
    example = SHAPES[1]
    evaluator.add(example.image_id, perfect(example.annotations, (64, 64)))
    assert evaluator.evaluate().boxes[0] == pytest.approx(1)


def squares_truth(counts, side=100):
    """Return the ground truth of images with ``counts[i]`` squares of 100 x 100 pixels in a row; ids start at 1."""
    boxes = [(image, [side * i, 0, side, side]) for image, count in enumerate(counts, 1) for i in range(count)]
    return {
        'images': [{'id': i, 'height': side, 'width': 1000} for i in range(1, len(counts) + 1)],
        'categories': [{'id': 1, 'name': 'square'}],
        'annotations': [
            {'id': n, 'image_id': image, 'category_id': 1, 'iscrowd': 0, 'area': side * side, 'bbox': box}
            for n, (image, box) in enumerate(boxes, 1)
        ],
    }


def squares(count, score, first=0, side=100):
    """Return detections of squares ``first`` to ``first + count - 1`` of a row."""
    x = side * np.arange(first, first + count, dtype=np.float32)
    zeros = np.zeros(count, np.float32)
    boxes = np.stack([zeros, x, zeros + side - 1, x + side - 1], axis=1)
    return Detections(boxes=boxes, labels=zeros.astype(int), scores=zeros + np.float32(score), size=(side, 1000))


def square_evaluator(counts):
    return COCOEvaluator(squares_truth(counts), class_names=['square'], category_ids=[1], masks=False)


def test_ap_per_class_uses_all_detections_of_an_image():
    """Five objects, five correct detections: AP is 1.  With one detection per image the recall would be 0.2."""
    evaluator = square_evaluator([5])
    evaluator.add(1, squares(5, 0.9))
    metrics = evaluator.evaluate()
    assert metrics.boxes[METRIC_NAMES.index('AR1')] == pytest.approx(0.2)
    assert metrics.boxes[METRIC_NAMES.index('AP')] == pytest.approx(1)
    assert metrics.box_ap_per_class == pytest.approx((1,))


@pytest.mark.parametrize(('count', 'expected'), [(150, 1), (100, 100 / 150), (5, 5 / 150), (1, 1 / 150)])
def test_max_detections(count, expected):
    """An image with 150 objects that are all found: the recall is the fraction of the detections that count."""
    evaluator = COCOEvaluator(
        squares_truth([150], side=40), class_names=['square'], category_ids=[1], masks=False, max_detections=count
    )
    detections = squares(150, 0.9, side=40)
    detections.scores[:] = np.linspace(0.9, 0.5, 150)
    evaluator.add(1, detections)
    metrics = evaluator.evaluate()
    # Precision is 1 at the recalls 0, 0.01, ... up to the recall that is reached, and 0 at the others of the 101.
    ap = (np.floor(100 * expected + 1e-9) + 1) / 101
    assert metrics.boxes[0] == pytest.approx(ap) and metrics.box_ap_per_class == pytest.approx((ap,))
    assert metrics.boxes[METRIC_NAMES.index('AR10')] == pytest.approx(min(10, count) / 150)
    assert metrics.boxes[METRIC_NAMES.index('AR100')] == pytest.approx(expected)
    assert metrics.summary()[f'bbox/AR{count}'] == pytest.approx(expected)
    assert f'AR{count}' in metrics.table().splitlines()[0].split()


def test_max_detections_is_positive():
    with pytest.raises(ValueError, match='max_detections must be at least 1, got 0'):
        COCOEvaluator(squares_truth([1]), class_names=['square'], category_ids=[1], max_detections=0)


def test_false_positives_in_an_image_without_objects_count():
    """The false positive has the highest score, so precision is 1/2 at every recall: AP is 0.5."""
    evaluator = square_evaluator([1, 0])
    evaluator.add(1, squares(1, 0.5))
    evaluator.add(2, squares(1, 0.9))
    metrics = evaluator.evaluate()
    assert metrics.boxes[0] == pytest.approx(0.5)
    assert metrics.box_ap_per_class == pytest.approx((0.5,))


def test_false_positives_in_an_image_without_objects_count_from_another_evaluator():
    first, second = square_evaluator([1, 0]), square_evaluator([1, 0])
    first.add(1, squares(1, 0.5))
    first.add_results(2, second.convert(2, squares(1, 0.9)))
    assert first.evaluate().boxes[0] == pytest.approx(0.5)


def test_objects_in_an_image_without_detections_count_from_another_evaluator():
    """One of two objects is found: precision is 1 at the 51 recalls up to 1/2, and 0 at the other 50."""
    first, second = square_evaluator([1, 1]), square_evaluator([1, 1])
    first.add(1, squares(1, 0.9))
    first.add_results(2, second.convert(2, squares(0, 0.9)))
    assert first.evaluate().boxes[0] == pytest.approx(51 / 101)


def test_evaluating_twice_returns_the_same():
    evaluator = evaluator_of_shapes()
    for example in SHAPES:
        evaluator.add(example.image_id, perfect(example.annotations, (64, 64)))
    before = json.dumps(evaluator.results())
    assert evaluator.evaluate() == evaluator.evaluate()
    assert json.dumps(evaluator.results()) == before


def test_results_have_the_category_ids_of_the_dataset():
    truth = SHAPES.ground_truth()
    for entry in truth['categories']:
        entry['id'] += 40
    for entry in truth['annotations']:
        entry['category_id'] += 40
    evaluator = COCOEvaluator(truth, class_names=SHAPES.class_names, category_ids=(41, 42, 43))
    for example in SHAPES:
        evaluator.add(example.image_id, perfect(example.annotations, (64, 64)))
    assert {result['category_id'] for result in evaluator.results()} <= {41, 42, 43}
    assert evaluator.evaluate().masks[0] == pytest.approx(1)


def test_classes_are_matched_by_name():
    """The model has more classes, in another order."""
    evaluator = evaluator_of_shapes(model_class_names=('triangle', 'star', 'circle', 'square'), n_model_classes=4)
    to_model = np.int32([3, 2, 0])
    for example in SHAPES:
        detections = perfect(example.annotations, (64, 64))
        detections.labels = to_model[detections.labels]
        detections.labels[-1:] = 1 if example.image_id == 1 else detections.labels[-1:]  # one star
        evaluator.add(example.image_id, detections)
    n_objects = sum(len(example.annotations) for example in SHAPES)
    assert len(evaluator.results()) == n_objects - 1
    assert 0.8 < evaluator.evaluate().boxes[0] <= 1


def test_classes_are_matched_by_order_otherwise(caplog):
    evaluator = evaluator_of_shapes(model_class_names=('a', 'b', 'c'), n_model_classes=3)
    assert 'matching by their order' in caplog.text
    evaluator.add(1, perfect(SHAPES[0].annotations, (64, 64)))
    assert evaluator.evaluate().boxes[0] == pytest.approx(1)


def test_classes_that_do_not_match():
    message = "the model has 2 classes, the dataset 3; the model has no class 'circle'"
    with pytest.raises(ValueError, match=message):
        evaluator_of_shapes(model_class_names=('square', 'triangle'), n_model_classes=2)
    with pytest.raises(ValueError, match='the model has 80 classes, the dataset 3$'):
        evaluator_of_shapes(n_model_classes=80)


def test_invalid_images_and_detections():
    evaluator = evaluator_of_shapes()
    detections = perfect(SHAPES[0].annotations, (64, 64))
    with pytest.raises(ValueError, match='no image was added'):
        evaluator.evaluate()
    with pytest.raises(ValueError, match='image 77 is not in the ground truth'):
        evaluator.add(77, detections)
    with pytest.raises(ValueError, match='have no masks'):
        evaluator.add(
            1,
            Detections(boxes=detections.boxes, labels=detections.labels, scores=detections.scores, size=(64, 64)),
        )
    detections.labels[:] = 3
    with pytest.raises(ValueError, match='label 3 of image 1 is not below the number of classes, 3'):
        evaluator.add(1, detections)
    evaluator.add(1, perfect(SHAPES[0].annotations, (64, 64)))
    with pytest.raises(ValueError, match='image 1 has been added before'):
        evaluator.add(1, perfect(SHAPES[0].annotations, (64, 64)))


def test_unwritable_results(tmp_path):
    evaluator = evaluator_of_shapes()
    with pytest.raises(FileError, match='no.such.folder.*results.bbox.json: cannot be written'):
        evaluator.write_results(tmp_path / 'no such folder' / 'results.json')


def test_table_and_summary():
    metrics = Metrics(
        boxes=tuple(i / 100 for i in range(12)),
        masks=(0.5,) * 11 + (-1.0,),
        class_names=('cat', 'hot dog'),
        box_ap_per_class=(0.25, -1.0),
        mask_ap_per_class=(0.125, 1.0),
    )
    lines = metrics.table().splitlines()
    assert lines[0].split() == list(METRIC_NAMES)
    assert lines[1].split() == ['boxes'] + [f'{i}.0' for i in range(12)]
    assert lines[2].split() == ['masks'] + ['50.0'] * 11 + ['-']
    assert [line.split() for line in lines[4:]] == [
        ['class', 'box', 'AP', 'mask', 'AP'],
        ['cat', '25.0', '12.5'],
        ['hot', 'dog', '-', '100.0'],
    ]
    assert len({len(line) for line in lines[4:]}) == len({len(line) for line in lines[:3]}) == 1
    summary = metrics.summary()
    assert summary['bbox/AP75'] == 0.02 and summary['segm/AR1'] == 0.5
    assert 'segm/ARl' not in summary and len(summary) == 23


# evaluate_model, with a randomly initialised network.


def make_model(norm):
    return small_model('mobilenet_v1_fpn', class_names=SHAPES.class_names, norm=norm, width=0.25, **VERY_NARROW)


@pytest.fixture(scope='module')
def model():
    return make_model('affine')


def state_of(model):
    state = {path: param.array.copy() for path, param in model.namedparams()}
    for path, link in model.namedlinks():
        state.update({f'{path}/{name}': np.copy(getattr(link, name)) for name in link._persistent})
    return state


def test_evaluation_changes_no_state():
    model = make_model('bn')  # running statistics could change
    before, random_state = state_of(model), np.random.get_state()[1].copy()
    with chainer.using_config('train', True):  # as during training
        evaluate_model(model, SHAPES, progress=False, indices=[0])
        assert chainer.config.train and chainer.config.enable_backprop
    after = state_of(model)
    assert before.keys() == after.keys() and len(before) > 150
    for path in before:
        assert before[path].tobytes() == after[path].tobytes(), path
    assert all(param.grad is None or np.isnan(param.grad).all() for param in model.params())
    np.testing.assert_array_equal(np.random.get_state()[1], random_state)


def test_results_are_the_detections_of_the_model(model, tmp_path, capfd):
    evaluate_model(model, SHAPES, indices=[2, 3], results_file=tmp_path / 'results.json')
    output, progress = capfd.readouterr()
    assert output == '' and 'evaluating' in progress and '2/2' in progress
    boxes = json.loads((tmp_path / 'results.bbox.json').read_text())
    masks = json.loads((tmp_path / 'results.segm.json').read_text())
    expected = []
    for i in (2, 3):
        (detections,) = model.detect([SHAPES[i].image])
        expected += detections.to_coco(SHAPES.image_ids[i])
    assert len(expected) > 0
    assert boxes == [{k: v for k, v in result.items() if k != 'segmentation'} for result in expected]
    assert masks == [{k: v for k, v in result.items() if k != 'bbox'} for result in expected]


def test_images_are_streamed_in_batches(model, tmp_path, monkeypatch):
    """Each image is read when its batch needs it, and each result belongs to its image."""
    evaluate_model(model, SHAPES, progress=False, indices=[2, 0, 1], results_file=tmp_path / 'alone.json')
    read, iter_detections = [], model.iter_detections

    def recorded(self, i):
        read.append(i)
        return get(self, i)

    def in_pairs(images):
        read.clear()  # discard the reads for the ground truth
        for i, detections in enumerate(iter_detections(images, batch_size=2)):
            assert len(read) == (2, 2, 3)[i]
            yield detections

    get = ShapesDataset.__getitem__
    monkeypatch.setattr(ShapesDataset, '__getitem__', recorded)
    monkeypatch.setattr(model, 'iter_detections', in_pairs)
    evaluate_model(model, SHAPES, progress=False, indices=[2, 0, 1], results_file=tmp_path / 'pairs.json')
    assert read == [2, 0, 1]
    alone, pairs = (json.loads((tmp_path / f'{name}.bbox.json').read_text()) for name in ('alone', 'pairs'))
    for key in ('image_id', 'category_id'):
        assert [result[key] for result in alone] == [result[key] for result in pairs]
    np.testing.assert_allclose(
        [result['bbox'] for result in alone], [result['bbox'] for result in pairs], rtol=0, atol=1e-3
    )


class FakeCommunicator:
    """Process ``rank`` of two that run one after the other, the main process last."""

    size = 2

    def __init__(self, rank, shared):
        self.rank, self._shared = rank, shared

    @contextlib.contextmanager
    def map_in_order(self, compute, n, *, block):
        assert block == 1  # on the CPU
        results = list(compute(range(self.rank, n, 2)))
        if self.rank == 1:
            self._shared.extend(results)
        pairs = itertools.zip_longest(results, self._shared)
        yield iter([result for pair in pairs for result in pair if result is not None] if self.rank == 0 else [])

    def broadcast_object(self, value):
        return value


def test_two_processes_evaluate_like_one(model, tmp_path, capfd):
    indices, shared = [0, 1, 2], []
    alone = evaluate_model(model, SHAPES, progress=False, results_file=tmp_path / 'one.json', indices=indices)
    for rank in (1, 0):
        together = evaluate_model(
            model, SHAPES, results_file=tmp_path / 'two.json', indices=indices, comm=FakeCommunicator(rank, shared)
        )
        assert ('evaluating' in capfd.readouterr().err) == (rank == 0)
    assert together == alone
    for kind in ('bbox', 'segm'):
        assert (tmp_path / f'one.{kind}.json').read_text() == (tmp_path / f'two.{kind}.json').read_text()


def test_evaluation_needs_images_and_matching_classes(model):
    with pytest.raises(ValueError, match='no image to evaluate'):
        evaluate_model(model, SHAPES, indices=[])

    class Other(ShapesDataset):
        class_names, category_ids = ('square', 'circle', 'cat', 'triangle'), (1, 2, 3, 4)

    with pytest.raises(ValueError, match="the model has 3 classes, the dataset 4; the model has no class 'cat'"):
        evaluate_model(model, Other(1, size=64))


def test_results_that_cannot_be_written_do_not_lose_the_metrics(model, tmp_path):
    """Both processes get the metrics; the main process raises the error after it has sent them."""
    sent = []

    class Recording(FakeCommunicator):
        def broadcast_object(self, value):
            sent.append(value)
            return value

    shared = []
    indices, file = [0, 1], tmp_path / 'missing' / 'results.json'
    for rank in (1, 0):
        comm = Recording(rank, shared)
        if rank == 0:
            with pytest.raises(ResultsFileError, match='missing') as caught:
                evaluate_model(model, SHAPES, results_file=file, indices=indices, comm=comm)
        else:
            evaluate_model(model, SHAPES, results_file=file, indices=indices, comm=comm)
    assert sent == [None, caught.value.metrics]
    assert caught.value.metrics == evaluate_model(model, SHAPES, progress=False, indices=indices)


def test_evaluations_in_threads_leave_stdout_alone(monkeypatch, capsys, caplog):
    """Before, two evaluations that overlapped left stdout redirected, and lines of other threads were lost."""
    before, seen, interval = sys.stdout, set(), sys.getswitchinterval()
    size, annotations = (64, 64), SHAPES[0].annotations
    ground_truth = SHAPES.ground_truth()
    image_id = SHAPES[0].image_id

    def evaluate(_):
        evaluator = COCOEvaluator(ground_truth, class_names=SHAPES.class_names, category_ids=SHAPES.category_ids)
        evaluator.add(image_id, perfect(annotations, size))
        seen.add(sys.stdout)
        return evaluator.evaluate()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.DEBUG, logger='mask_rcnn'):
            futures = [pool.submit(evaluate, i) for i in range(8)]
            while not all(future.done() for future in futures):
                seen.add(sys.stdout)
    finally:
        sys.setswitchinterval(interval)
    assert seen == {before} and sys.stdout is before and capsys.readouterr() == ('', '')
    assert len({future.result() for future in futures}) == 1
    assert 'Running per image evaluation...' in [record.getMessage() for record in caplog.records]
