"""The kinds of errors of TIDE and their costs, against cases that are computed by hand.

Objects are squares of 100 pixels far from each other.  AP50 is the mean of the highest precision at any recall that is
at least 0, 0.01, ... 1: a class with one of two objects found first has the precision 1 at the 51 recalls up to 1/2,
and 0 at the other 50.
"""

import pytest

from mask_rcnn.evaluation.analysis import analyse
from tests.support.box_evaluation import box_evaluator

A, B, C = (0, 0, 100, 100), (300, 0, 100, 100), (600, 0, 100, 100)
NOWHERE = (300, 500, 100, 100)
HALF = 51 / 101


def moved(box, pixels):
    """Move a square; its IoU with its old place is (100 - p) / (100 + p)."""
    x, y, width, height = box
    return x + pixels, y, width, height


BAD = 50  # pixels: IoU 1/3


def costs_of(objects, detections, n_classes=1, n_images=1):
    """Return AP50 before the correction, and name -> (number, cost) of the kinds with errors."""
    analysis = analyse(box_evaluator(objects, detections, n_classes=n_classes, n_images=n_images))
    (kind,) = analysis.kinds
    kinds = {item.name: (item.count, item.cost) for item in kind.costs.kinds}
    assert len(kinds) == 6 and all(cost == 0 for count, cost in kinds.values() if count == 0)
    totals = {item.name: (item.count, item.cost) for item in kind.costs.totals}
    return kind.costs.ap50, {name: item for name, item in kinds.items() if item[0]}, totals


def test_a_bad_location():
    """One of two objects is found; the detection of the other one is moved.  Removing it changes nothing."""
    ap50, kinds, totals = costs_of([(1, 0, A), (1, 0, B)], [(1, 0, A, 0.9), (1, 0, moved(B, BAD), 0.8)])
    assert ap50 == pytest.approx(HALF)
    assert kinds == {'localisation': (1, pytest.approx(1 - HALF))}  # B is not missed
    assert totals == {'false positives': (1, pytest.approx(0)), 'false negatives': (1, pytest.approx(1 - HALF))}


def test_a_wrong_class():
    """Class 0: one of two objects.  Class 1: a false positive before its only object, so the precision is 1/2."""
    objects = [(1, 0, A), (1, 0, B), (1, 1, C)]
    ap50, kinds, totals = costs_of(objects, [(1, 0, A, 0.9), (1, 1, B, 0.95), (1, 1, C, 0.9)], n_classes=2)
    assert ap50 == pytest.approx((HALF + 0.5) / 2)
    assert kinds == {'classification': (1, pytest.approx(1 - (HALF + 0.5) / 2))}
    assert totals == {
        'false positives': (1, pytest.approx(0.5 / 2)),
        'false negatives': (1, pytest.approx((1 - HALF) / 2)),
    }


def test_a_wrong_class_and_a_bad_location():
    """The detection is removed; its object counts as missed.  Without it, class 0 has neither objects nor errors."""
    objects = [(1, 0, A), (1, 1, C)]
    ap50, kinds, _ = costs_of(objects, [(1, 1, moved(A, BAD), 0.9), (1, 1, C, 0.5)], n_classes=2)
    assert ap50 == pytest.approx((0 + 0.5) / 2)
    assert kinds == {'both': (1, pytest.approx(0.25)), 'missed': (1, pytest.approx(0.5))}


@pytest.mark.parametrize(('kind', 'box'), [('duplicate', moved(A, 5)), ('background', NOWHERE)])
def test_a_false_positive_between_two_true_ones(kind, box):
    """The precision is 1 up to the recall 1/2 and 2/3 above."""
    ap50, kinds, totals = costs_of([(1, 0, A), (1, 0, B)], [(1, 0, A, 0.9), (1, 0, box, 0.8), (1, 0, B, 0.7)])
    assert ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert kinds == {kind: (1, pytest.approx(50 / 3 / 101))}
    assert totals == {'false positives': (1, pytest.approx(50 / 3 / 101)), 'false negatives': (0, 0)}


def test_a_missed_object():
    ap50, kinds, totals = costs_of([(1, 0, A), (1, 0, B)], [(1, 0, A, 0.9)])
    assert ap50 == pytest.approx(HALF)
    assert kinds == {'missed': (1, pytest.approx(1 - HALF))}
    assert totals == {'false positives': (0, 0), 'false negatives': (1, pytest.approx(1 - HALF))}


def test_missed_objects_leave_the_false_positives():
    """The only object of the class is missed: without it, the detection in the background is still wrong."""
    ap50, kinds, totals = costs_of([(1, 0, A)], [(1, 0, NOWHERE, 0.9)])
    assert ap50 == 0 and kinds == {'background': (1, 0), 'missed': (1, 0)}
    assert totals == {'false positives': (1, 0), 'false negatives': (1, 0)}


def test_a_corrected_detection_replaces_one_with_a_lower_score():
    """Ranks: bad, background, A; B is missed.  Precision 1/3 at 51 recalls; corrected, it is 1, and one A goes."""
    detections = [(1, 0, moved(A, BAD), 0.9), (1, 0, NOWHERE, 0.85), (1, 0, A, 0.8)]
    ap50, kinds, _ = costs_of([(1, 0, A), (1, 0, B)], detections)
    assert ap50 == pytest.approx(HALF / 3)
    assert kinds['localisation'] == (1, pytest.approx(HALF - HALF / 3))


def test_a_corrected_detection_with_a_lower_score_is_removed():
    """Ranks: A, bad, B.  Nothing is found twice after the correction."""
    detections = [(1, 0, A, 0.9), (1, 0, moved(A, BAD), 0.85), (1, 0, B, 0.8)]
    ap50, kinds, _ = costs_of([(1, 0, A), (1, 0, B)], detections)
    assert ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert kinds == {'localisation': (1, pytest.approx(1 - ap50))}


def test_one_of_several_corrected_detections_of_an_object_stays():
    detections = [(1, 0, A, 0.9), (1, 0, moved(B, BAD), 0.8), (1, 0, moved(B, -BAD), 0.7)]
    ap50, kinds, _ = costs_of([(1, 0, A), (1, 0, B)], detections)
    assert ap50 == pytest.approx(HALF) and kinds == {'localisation': (2, pytest.approx(1 - HALF))}


def test_only_one_kind_is_corrected():
    """Class 0: a bad location, then background.  Correcting the location leaves the precision 1."""
    detections = [(1, 0, moved(A, BAD), 0.9), (1, 0, NOWHERE, 0.8)]
    ap50, kinds, _ = costs_of([(1, 0, A)], detections)
    assert ap50 == 0 and kinds == {'localisation': (1, pytest.approx(1)), 'background': (1, 0)}


@pytest.mark.parametrize(
    ('height', 'label', 'kind'),
    [
        (50, 0, None),  # IoU 0.5: found
        (49, 0, 'localisation'),
        (10, 0, 'localisation'),
        (9, 0, 'background'),
        (50, 1, 'classification'),
        (49, 1, 'both'),
        (10, 1, 'both'),
        (9, 1, 'background'),
    ],
)
def test_limits_of_the_kinds(height, label, kind):
    """The IoU is ``height / 100``; the limits 0.1 and 0.5 belong to the higher interval, as in COCO's matching."""
    _, kinds, _ = costs_of([(1, 0, A)], [(1, label, (0, 0, 100, height), 0.9)], n_classes=2)
    assert set(kinds) - {'missed'} == ({kind} if kind else set())


def test_the_location_is_tested_before_the_class():
    """A detection of class 0 has IoU 1/3 with an object of class 0 and 1 with one of class 1."""
    _, kinds, _ = costs_of([(1, 0, A), (1, 1, moved(A, BAD))], [(1, 0, moved(A, BAD), 0.9)], n_classes=2)
    assert {name: count for name, (count, _) in kinds.items()} == {'localisation': 1, 'missed': 1}


def test_crowds_are_no_objects_and_detections_on_them_do_not_count():
    objects = [(1, 0, A), (1, 0, B, 'crowd')]
    ap50, kinds, totals = costs_of(objects, [(1, 0, B, 0.95), (1, 0, moved(B, 5), 0.94), (1, 0, A, 0.9)])
    assert ap50 == pytest.approx(1) and kinds == {} and [count for count, _ in totals.values()] == [0, 0]
    # On the crowd of another class, a detection is in the background.
    _, kinds, _ = costs_of(objects, [(1, 1, B, 0.95), (1, 0, A, 0.9)], n_classes=2)
    assert kinds == {'background': (1, 0)}


def test_an_object_beside_a_crowd_is_missed():
    """The detection covers half of the object and lies on the crowd, so it does not count."""
    objects = [(1, 0, A), (1, 0, (0, 0, 400, 100), 'crowd')]
    _, kinds, _ = costs_of(objects, [(1, 0, moved(A, BAD), 0.9)])
    assert kinds == {'missed': (1, 1)}


def test_objects_of_other_images_are_no_targets():
    _, kinds, _ = costs_of([(1, 0, A)], [(2, 0, A, 0.9)], n_images=2)
    assert {name: count for name, (count, _) in kinds.items()} == {'background': 1, 'missed': 1}


def test_without_objects_or_detections():
    ap50, kinds, totals = costs_of([], [(1, 0, A, 0.9)])
    assert ap50 == -1 and kinds == {'background': (1, 0)} and totals['false positives'] == (1, 0)
    ap50, kinds, _ = costs_of([(1, 0, A)], [])
    assert ap50 == 0 and kinds == {'missed': (1, 1)}
    assert costs_of([], [])[:2] == (-1, {})
