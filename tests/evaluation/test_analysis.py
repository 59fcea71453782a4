"""The numbers of an analysis against independent computations and cases that are computed by hand."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.evaluation import COCOEvaluator
from mask_rcnn.evaluation.analysis import analyse
from mask_rcnn.evaluation.analysis.average_precision import average_precision
from mask_rcnn.evaluation.analysis.confusion import ConfusionMatrix
from mask_rcnn.evaluation.analysis.report import make_report
from mask_rcnn.inference.detections import Detections
from tests.evaluation.test_coco_metrics import masks_of, noisy, perfect
from tests.support.box_evaluation import box_evaluator, random_case

A, B, C = (0, 0, 100, 100), (300, 0, 100, 100), (600, 0, 100, 100)
NOWHERE = (300, 500, 100, 100)


def overlap(first, second):
    """Return the IoU of two boxes ``(x, y, width, height)``."""
    sides = [
        min(a + w, b + v) - max(a, b) for a, w, b, v in zip(first[:2], first[2:], second[:2], second[2:], strict=True)
    ]
    inside = max(sides[0], 0) * max(sides[1], 0)
    return inside / (first[2] * first[3] + second[2] * second[3] - inside)


def precision_by_hand(objects, detections, label, threshold):
    """Return the interpolated precision of one class at 101 recalls; the case has neither crowds nor equal scores."""
    wanted = [entry for entry in objects if entry[1] == label]
    found, hits = set(), []
    for image, _, box, _ in sorted((d for d in detections if d[1] == label), key=lambda d: -d[3]):
        rivals = [(overlap(box, o[2]), i) for i, o in enumerate(wanted) if o[0] == image and i not in found]
        best, i = max(rivals, default=(0, 0))
        hits.append(best >= threshold)
        if hits[-1]:
            found.add(i)
    points = [(sum(hits[:n]) / len(wanted), sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    return [max((p for r, p in points if r >= recall), default=0) for recall in np.linspace(0, 1, 101)]


def case_without_ties(rng, n_images=12):
    objects, detections = random_case(rng, n_images=n_images)
    objects = [entry for entry in objects if len(entry) == 3]
    scores = rng.permutation(len(detections)) / 1000 + 0.1
    return objects, [(*entry[:3], float(score)) for entry, score in zip(detections, scores, strict=True)]


def test_curves_equal_an_independent_computation(rng):
    objects, detections = case_without_ties(rng)
    analysis = analyse(box_evaluator(objects, detections, n_classes=3, n_images=12))
    curves = analysis.kinds[0].curves
    assert curves.recalls.tolist() == np.linspace(0, 1, 101).tolist()
    thresholds = np.linspace(0.5, 0.95, 10)
    for label in range(3):
        expected = np.array([precision_by_hand(objects, detections, label, t) for t in thresholds])
        assert 0 < expected.mean() < 1
        np.testing.assert_allclose(curves.precision_per_class[label, 0], expected[0], atol=1e-12)
        np.testing.assert_allclose(curves.precision_per_class[label, 1], expected[5], atol=1e-12)
        np.testing.assert_allclose(curves.precision_per_class[label, 2], expected.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(curves.precision, curves.precision_per_class.mean(axis=0), atol=1e-12)


def assert_equal_to_metrics(analysis, evaluator):
    """The metrics are those of the evaluator, and the AP of curves and errors are those of pycocotools."""
    metrics = evaluator.evaluate()
    assert analysis.metrics == metrics
    for kind in analysis.kinds:
        ap, ap50, ap75 = getattr(metrics, kind.kind.plural)[:3]
        np.testing.assert_allclose(kind.curves.ap, [ap50, ap75, ap], atol=1e-12)
        per_class = metrics.ap_per_class()[kind.kind.name]
        np.testing.assert_allclose(np.nan_to_num(kind.curves.ap_per_class[:, 2], nan=-1), per_class, atol=1e-12)
        assert kind.costs.ap50 == pytest.approx(ap50, abs=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_ap_equals_that_of_pycocotools_for_boxes(seed):
    """With crowds, equal scores and a class without objects."""
    objects, detections = random_case(np.random.RandomState(seed))
    assert any(len(entry) == 4 for entry in objects)
    evaluator = box_evaluator(objects, detections, n_classes=4, n_images=12)
    analysis = analyse(evaluator)
    assert analysis.n_images == 12 and analysis.main_kind.name == 'bbox'
    assert_equal_to_metrics(analysis, evaluator)
    assert np.isnan(analysis.kinds[0].curves.ap_per_class[3]).all() and 0.1 < analysis.metrics.boxes[1] < 0.9


def test_ap_equals_that_of_pycocotools_for_masks(rng):
    shapes = ShapesDataset(4, size=64)
    truth = shapes.ground_truth()
    evaluator = COCOEvaluator(truth, class_names=shapes.class_names, category_ids=shapes.category_ids)
    for example in shapes:
        detections = noisy(example.annotations, (64, 64), rng)
        detections.labels %= 3
        evaluator.add(example.image_id, detections)
    analysis = analyse(evaluator)
    assert [kind.kind.name for kind in analysis.kinds] == ['bbox', 'segm'] and analysis.main_kind.name == 'segm'
    assert_equal_to_metrics(analysis, evaluator)
    worst = analysis.worst_images[0]
    assert len(worst.masks) == len(worst.boxes) and len(worst.object_masks) == worst.n_objects
    annotations = shapes[worst.image_id - 1].annotations
    masks = np.array([coco_mask.decode(rle) for rle in worst.object_masks], bool)
    expected = masks_of(annotations, (64, 64))
    assert {mask.tobytes() for mask in masks} == {mask.tobytes() for mask in expected}


def test_average_precision_of_ranks():
    """Ranks 1 and 3 of two objects: precision 1 up to the recall 1/2, 2/3 above; one found of two: 0 above."""
    assert average_precision(np.array([1, 3]), 2, 3) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(np.array([2]), 2, 5) == pytest.approx(51 / 2 / 101)
    assert average_precision(np.array([], int), 2, 5) == 0
    assert average_precision(np.array([], int), 0, 5) == 0
    assert average_precision(np.array([], int), 0, 0) == 1


# Sizes.


def test_recall_by_size():
    """Two objects of 10 pixels that are found with IoU 0.8 and 0.72; one of 32 pixels that is missed; a crowd."""
    objects = [(1, 0, (0, 0, 10, 10)), (1, 0, (100, 0, 10, 10)), (1, 0, (300, 0, 32, 32))]
    objects.append((1, 0, (500, 0, 9, 9), 'crowd'))
    analysis = analyse(box_evaluator(objects, [(1, 0, (0, 0, 10, 8), 0.9), (1, 0, (100, 0, 10, 7.2), 0.9)]))
    sizes = analysis.kinds[0].size_recall
    assert sizes.limits == (8, 16, 24, 32, 48) and sizes.n_objects.tolist() == [2, 0, 0, 1]
    # The thresholds are 0.5, 0.55, ... 0.95: seven are below 0.8 or equal to it, five below 0.72.
    np.testing.assert_allclose(sizes.recall[:, 0], [1, 0.5, 12 / 20])
    np.testing.assert_array_equal(sizes.recall[:, 3], [0, 0, 0])
    assert np.isnan(sizes.recall[:, 1:3]).all()
    # 32 x 32 pixels are the limit of small and medium objects, which belongs to both.
    assert analysis.kinds[0].size_counts == {'small': 3, 'medium': 1, 'large': 0}


def test_the_last_size_has_no_limit():
    analysis = analyse(box_evaluator([(1, 0, (0, 0, 2000, 2000))], []))
    assert analysis.kinds[0].size_recall.limits == (1024, float('inf'))


# The confusion matrix.


def confusion_of(objects, detections, n_classes=2, threshold=0.5):
    analysis = analyse(box_evaluator(objects, detections, n_classes=n_classes), score_threshold=threshold)
    return analysis.confusion


def test_confusions_by_hand():
    objects = [(1, 0, A), (1, 0, B), (1, 1, C)]
    detections = [
        (1, 0, A, 0.9),
        (1, 0, (5, 0, 100, 100), 0.8),  # a duplicate: no object is left for it
        (1, 1, B, 0.7),  # a wrong class
        (1, 1, C, 0.5),  # not above the threshold
        (1, 1, NOWHERE, 0.6),
    ]
    matrix = confusion_of(objects, detections)
    assert matrix.counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert [(c.label, c.predicted, c.count, c.fraction) for c in matrix.confusions(9)] == [(0, 1, 1, 0.5)]
    lower = confusion_of(objects, detections, threshold=0.4)
    assert lower.counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]


def test_a_detection_is_matched_with_its_own_class_first():
    """A detection of class 1 with a higher score lies on an object of class 0, which a detection of class 0 matches."""
    matrix = confusion_of([(1, 0, A)], [(1, 1, A, 0.9), (1, 0, A, 0.6)])
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_an_object_that_is_found_with_a_low_score_can_be_confused():
    matrix = confusion_of([(1, 0, A)], [(1, 1, A, 0.9), (1, 0, A, 0.3)])
    assert matrix.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_best_overlap_is_confused():
    """The detection with the higher score chooses first: the object of class 0 at its place, not the moved one."""
    moved = (20, 0, 100, 100)
    matrix = confusion_of([(1, 0, moved), (1, 1, A)], [(1, 2, A, 0.9), (1, 2, moved, 0.8)], n_classes=3)
    assert matrix.counts[0].tolist() == [0, 0, 1, 0] and matrix.counts[1].tolist() == [0, 0, 1, 0]


def test_the_detection_with_the_highest_score_is_confused():
    matrix = confusion_of([(1, 0, A)], [(1, 1, A, 0.8), (1, 2, A, 0.9)], n_classes=3)
    assert matrix.counts.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_crowds_are_not_confused():
    objects = [(1, 0, A, 'crowd')]
    assert confusion_of(objects, [(1, 0, A, 0.9)]).counts.sum() == 0
    assert confusion_of(objects, [(1, 1, A, 0.9)]).counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_every_object_and_detection_is_in_the_matrix(rng):
    objects, detections = random_case(rng)
    objects = [entry for entry in objects if len(entry) == 3]
    evaluator = box_evaluator(objects, detections, n_classes=3, n_images=12)
    counts = analyse(evaluator, score_threshold=0.35).confusion.counts
    assert counts[:-1].sum() == len(objects)
    assert counts[:, :-1].sum() == sum(score > 0.35 for *_, score in detections)


def test_the_most_confused_classes_are_shown():
    counts = np.zeros((6, 6), int)
    counts[1, 3] = 5
    counts[np.arange(5), np.arange(5)] = 10
    counts[0, 5], counts[5, 2] = 4, 3
    labels, reduced = ConfusionMatrix(counts, 0.5).reduce(3)
    assert labels == [0, 1, 3]
    # Class 0, class 1, class 3, the other two, background.
    assert reduced.tolist() == [[10, 0, 0, 0, 4], [0, 10, 5, 0, 0], [0, 0, 10, 0, 0], [0, 0, 0, 20, 0], [0, 0, 0, 3, 0]]
    labels, whole = ConfusionMatrix(counts, 0.5).reduce(5)
    assert labels == [0, 1, 2, 3, 4] and whole.tolist() == counts.tolist()


# The worst images.


def test_losses_of_images_by_hand():
    """Image 1 misses one of two objects, image 2 has a false positive before the only other true positive.

    All: ranks 1 and 3 of three objects: precision 1 at 34 recalls up to 1/3, 2/3 at 33 up to 2/3, then 0.  Without the
    missed object: of two objects, 51 recalls with 1 and 50 with 2/3.  Without the false positive: 67 recalls with 1.
    """
    objects = [(1, 0, A), (1, 0, B), (2, 0, A), (3, 1, A)]
    detections = [(1, 0, A, 0.9), (2, 0, NOWHERE, 0.8), (2, 0, A, 0.7), (3, 1, A, 0.9)]
    detections += [(2, 0, NOWHERE, 0.1), (4, 0, NOWHERE, 0.2)]  # after the last true positive: without effect
    analysis = analyse(box_evaluator(objects, detections, n_classes=2, n_images=4))
    before = (34 + 33 * 2 / 3) / 101
    losses = {image.image_id: image.loss for image in analysis.worst_images}
    assert losses == {
        1: pytest.approx(((51 + 50 * 2 / 3) / 101 - before) / 2),
        2: pytest.approx((67 / 101 - before) / 2),
    }
    assert analysis.n_images_with_loss == 2
    first = analysis.worst_images[0]
    assert (first.image_id, first.n_objects, first.n_detected) == (1, 2, 1)
    assert first.object_states == ('correct', 'missed') and first.kinds == ('correct',)
    assert first.boxes.tolist() == [[0, 0, 100, 100]] and first.object_boxes[1].tolist() == [0, 300, 100, 400]
    assert analysis.worst_images[1].kinds == ('background', 'correct', 'background')


def without_errors(objects, detections, image):
    """Return the case without the false positives and the lost objects of an image."""
    kept = [
        (o[2], o[1]) for o, s in zip(objects_of(image), image.object_states, strict=True) if s in ('correct', 'crowd')
    ]
    right = [
        (tuple(box.tolist()), label, round(score, 3))
        for box, label, score, kind in zip(image.boxes, image.labels.tolist(), image.scores, image.kinds, strict=True)
        if kind in ('correct', 'ignored')
    ]

    def corners(box):
        return (box[1], box[0], box[1] + box[3], box[0] + box[2])

    return (
        [o for o in objects if o[0] != image.image_id or (corners(o[2]), o[1]) in kept],
        [d for d in detections if d[0] != image.image_id or (corners(d[2]), d[1], round(d[3], 3)) in right],
    )


def objects_of(image):
    return [
        (image.image_id, label, tuple(box.tolist()))
        for box, label in zip(image.object_boxes, image.object_labels.tolist(), strict=True)
    ]


def test_losses_of_images_equal_a_second_evaluation(rng):
    """The errors of each image are removed, and pycocotools evaluates the rest."""
    objects, detections = case_without_ties(rng)
    analysis = analyse(box_evaluator(objects, detections, n_classes=3, n_images=12), n_worst=12)
    losses = [image.loss for image in analysis.worst_images]
    assert len(losses) == analysis.n_images_with_loss > 5 and losses == sorted(losses, reverse=True)
    for image in analysis.worst_images:
        rest = without_errors(objects, detections, image)
        assert len(rest[0]) + len(rest[1]) < len(objects) + len(detections)
        ap50 = box_evaluator(*rest, n_classes=3, n_images=12).evaluate().boxes[1]
        assert image.loss == pytest.approx(ap50 - analysis.metrics.boxes[1], abs=1e-12)


def test_the_number_of_worst_images_is_limited(rng):
    case = random_case(rng)
    analysis = analyse(box_evaluator(*case, n_classes=3, n_images=12), n_worst=2)
    assert len(analysis.worst_images) == 2 < analysis.n_images_with_loss


def test_an_object_has_the_state_of_the_error_with_the_highest_score():
    objects = [(1, 0, A), (1, 0, B), (1, 0, C, 'crowd')]
    bad_a, bad_b = (50, 0, 100, 100), (350, 0, 100, 100)
    detections = [(1, 1, A, 0.6), (1, 0, bad_a, 0.7), (1, 0, bad_b, 0.9), (1, 0, B, 0.5), (1, 0, C, 0.9)]
    (image,) = analyse(box_evaluator(objects, detections, n_classes=2)).worst_images
    assert image.object_states == ('localisation', 'correct', 'crowd') and image.n_objects == 2
    kinds = dict(zip(image.scores.round(1).tolist(), image.kinds, strict=True))
    assert kinds[0.6] == 'classification' and sorted(image.kinds) == sorted(
        ['classification', 'localisation', 'localisation', 'correct', 'ignored']
    )


# Special cases.


def test_perfect_detections_have_no_errors():
    shapes = ShapesDataset(2, size=64)
    evaluator = COCOEvaluator(shapes.ground_truth(), class_names=shapes.class_names, category_ids=shapes.category_ids)
    for example in shapes:
        evaluator.add(example.image_id, perfect(example.annotations, (64, 64)))
    analysis = analyse(evaluator)
    assert analysis.worst_images == () and analysis.n_images_with_loss == 0
    for kind in analysis.kinds:
        assert [item.count for item in (*kind.costs.kinds, *kind.costs.totals)] == [0] * 8
    assert analysis.confusion.confusions(5) == []


@pytest.mark.parametrize(('objects', 'detections'), [([], []), ([(1, 0, A)], []), ([], [(1, 0, A, 0.9)])])
def test_without_objects_or_detections(objects, detections):
    evaluator = box_evaluator(objects, detections)
    analysis = analyse(evaluator)
    assert analysis.metrics == evaluator.evaluate()
    assert analysis.confusion.counts.tolist() == [[0, len(objects)], [len(detections), 0]]
    assert len(analysis.worst_images) == len(objects)  # false positives of a class without objects cost nothing
    assert analysis.kinds[0].size_recall.limits == ((96, 128) if objects else ())
    assert np.isnan(analysis.kinds[0].curves.ap).all() == (not objects)


def test_an_evaluation_without_images_is_refused():
    evaluator = COCOEvaluator(ShapesDataset(1, size=64).ground_truth(), class_names=['a'], category_ids=[1])
    with pytest.raises(ValueError, match='no image was added'):
        analyse(evaluator)


def test_categories_in_another_order(rng):
    """The classes keep their order whatever their ids are."""
    case = random_case(rng)
    ordered, shuffled = (
        analyse(box_evaluator(*case, n_classes=3, n_images=12, category_ids=ids)) for ids in ((1, 2, 3), (7, 3, 5))
    )
    assert ordered.confusion.counts.tolist() == shuffled.confusion.counts.tolist()
    np.testing.assert_array_equal(
        ordered.kinds[0].curves.precision_per_class, shuffled.kinds[0].curves.precision_per_class
    )
    assert ordered.kinds[0].objects_per_class.tolist() == shuffled.kinds[0].objects_per_class.tolist()
    assert len(set(ordered.kinds[0].objects_per_class.tolist())) == 3


def test_keypoints_have_curves_and_sizes_but_no_kinds_of_errors():
    points = [coordinate for k in range(17) for coordinate in (10 + 4 * k, 20 + 3 * k, 2)]
    annotation = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 90, 90], 'area': 8100, 'iscrowd': 0}
    truth = {
        'images': [{'id': 1, 'height': 100, 'width': 100}],
        'categories': [{'id': 1, 'name': 'person'}],
        'annotations': [{**annotation, 'keypoints': points, 'num_keypoints': 17}],
    }
    evaluator = COCOEvaluator(truth, class_names=['person'], category_ids=[1], masks=False, keypoints=True)
    keypoints = np.zeros((1, 17, 4), np.float32)
    keypoints[0, :, :2] = np.array(points).reshape(17, 3)[:, 1::-1]
    box = np.float32([[0, 0, 89, 89]])
    detections = Detections(
        boxes=box, labels=np.int32([0]), scores=np.float32([0.9]), size=(100, 100), keypoints=keypoints
    )
    evaluator.add(1, detections)
    analysis = analyse(evaluator)
    boxes, keypoints = analysis.kinds
    assert keypoints.kind.name == 'keypoints' and keypoints.costs is None and boxes.costs is not None
    np.testing.assert_allclose(keypoints.curves.ap, 1)
    assert keypoints.size_counts == {'medium': 1, 'large': 0} and analysis.main_kind.name == 'bbox'
    document = make_report(analysis, pytest.fail, title='t').to_html()
    assert '<td>keypoints</td><td class="number">100.0</td>' in document and 'keypoint AP' in document


@pytest.mark.parametrize(
    ('options', 'reason'),
    [({'n_worst': -1}, 'n_worst must be 0 or more'), ({'score_threshold': 1.5}, 'score_threshold must be from 0 to 1')],
)
def test_numbers_out_of_range(options, reason):
    with pytest.raises(ValueError, match=reason):
        analyse(box_evaluator([], [], n_images=1), **options)
