"""Every role of anchors, in a case whose overlaps are computed by hand."""

import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON
from mask_rcnn.datasets.example import Annotations, TrainingExample
from mask_rcnn.inspect.training.anchor_roles import ANCHOR_ROLES, anchor_roles
from mask_rcnn.inspect.training.record import LossTerms, TrainingRecord
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import Sampling, rpn_targets

#: The object has 10 x 10 pixels; an anchor of 10 x n pixels inside of it has the IoU n / 10.
OBJECT = (0, 0, 9, 9)
ANCHORS = np.array(
    [
        (0, 0, 9, 9),  # 1
        (0, 0, 9, 7),  # 0.8
        (0, 0, 9, 4),  # 0.5
        (0, 0, 9, 0),  # 0.1
        (20, 20, 29, 29),  # 0
        (20, 0, 29, 9),  # 0
        (-1, 0, 9, 9),  # above the image
    ],
    np.float32,
)
IOU = [1, 0.8, 0.5, 0.1, 0, 0, -1]
STRIDES = (8, 16)


def roles_of(boxes, *, sampling, anchors=ANCHORS, crowd=None, dialect=DETECTRON, seed=0):
    """Return the roles of anchors on two levels, the first with one location."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
    annotations = Annotations(boxes, np.zeros(len(boxes), np.int32), crowd, ((),) * len(boxes))
    transform = ImageTransform.top_left((40, 40), 1.0)
    example = TrainingExample(np.zeros((3, 40, 40), np.float32), transform, annotations, 'a.jpg', 1, seed)
    targets = rpn_targets(
        anchors,
        transform.apply_boxes(boxes[~crowd]),
        (40, 40),
        sampling=sampling,
        dialect=dialect,
        rng=np.random.RandomState(seed),
    )
    nothing = LossTerms(0.0, np.zeros(0), np.zeros(0), np.zeros(0))
    record = TrainingRecord(
        feature_sizes=[(1, 1), (1, len(anchors) - 1)],
        anchors=targets,
        losses={'rpn_cls_loss': nothing, 'rpn_loc_loss': nothing},
    )
    return anchor_roles(record, example, anchors, STRIDES, sampling=sampling, dialect=dialect)


def names(roles):
    return [ANCHOR_ROLES[role] for role in roles.roles]


@pytest.mark.parametrize('dialect', [DETECTRON, DENA], ids=['redraws negatives', 'spares the best'])
def test_all_anchors_are_sampled(dialect):
    """DENA's boxes have no offset, so anchors are compared by their roles only; one that ends outside is outside."""
    roles = roles_of([OBJECT], sampling=Sampling(rpn_batch=2000), dialect=dialect)
    assert names(roles)[:3] == ['positive', 'positive', 'ignored']
    assert set(names(roles)[3:6]) <= {'negative', 'negative_not_sampled'} and names(roles)[6] == 'outside'
    assert 'negative' in names(roles)


def test_overlaps_levels_and_counts():
    roles = roles_of([OBJECT], sampling=Sampling(rpn_batch=2000))
    np.testing.assert_allclose(roles.best_iou, IOU)
    np.testing.assert_array_equal(roles.best_object, [0, 0, 0, 0, -1, -1, -1])
    np.testing.assert_array_equal(roles.levels, [0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(roles.positives_of_object, [[1, 1]])
    np.testing.assert_array_equal(roles.best_iou_of_object, [1])
    assert roles.objects_without_positive == {}
    counts = dict(zip(ANCHOR_ROLES, roles.counts.T.tolist(), strict=True))
    assert counts['positive'] == [1, 1] and counts['ignored'] == [0, 1] and counts['outside'] == [0, 1]
    assert counts['negative'][0] == 0 and counts['negative'][1] + counts['negative_not_sampled'][1] == 3
    assert roles.counts.sum() == len(ANCHORS)


def test_surplus_anchors_are_not_sampled():
    """Two are sampled: one of two positive anchors, and one of three negative ones."""
    roles = roles_of([OBJECT], sampling=Sampling(rpn_batch=2))
    assert sorted(names(roles)[:2]) == ['positive', 'positive_not_sampled']
    assert sorted(names(roles)[3:6]) == ['negative', 'negative_not_sampled', 'negative_not_sampled']
    assert len(roles.indices) == 2
    np.testing.assert_array_equal(roles.with_role('positive'), roles.indices[roles.labels == 1])


def test_images_without_objects_have_negative_anchors_only():
    roles = roles_of([], sampling=Sampling(rpn_batch=2000))
    assert set(names(roles)[:6]) <= {'negative', 'negative_not_sampled'} and names(roles)[6] == 'outside'
    assert roles.positives_of_object.shape == (0, 2) and roles.objects_without_positive == {}
    assert (roles.best_object == -1).all()


def test_crowd_regions_are_no_objects():
    """The object after the crowd region keeps its index in the annotations."""
    roles = roles_of([(0, 0, 39, 39), OBJECT], crowd=[True, False], sampling=Sampling(rpn_batch=2000))
    np.testing.assert_array_equal(roles.best_object, [1, 1, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(roles.best_iou_of_object, [np.nan, 1])
    np.testing.assert_array_equal(roles.positives_of_object, [[0, 0], [1, 1]])
    only_crowd = roles_of([(0, 0, 39, 39)], crowd=[True], sampling=Sampling(rpn_batch=2000))
    assert only_crowd.objects_without_positive == {}


FAR = (30, 30, 35, 35)  # overlaps no anchor


@pytest.mark.parametrize(
    ('boxes', 'anchors', 'sampling', 'reasons'),
    [
        ([OBJECT, FAR], ANCHORS, Sampling(), {1: 'no anchor inside the image overlaps it'}),
        # The small object's best anchor has the IoU 0.04, and 1 with the large object.
        ([OBJECT, (0, 0, 1, 1)], ANCHORS[:1], Sampling(), {1: 'its best anchor overlaps another object more'}),
        # One of two objects: at most one positive anchor is sampled.
        ([OBJECT, (20, 20, 29, 29)], ANCHORS[[0, 4]], Sampling(rpn_batch=2), {'one': 'were not sampled'}),
        # The best anchor has the IoU 0.1, and is the only negative one.
        ([OBJECT], ANCHORS[3:4], Sampling(), {0: 'its best anchor was sampled as a negative one'}),
    ],
    ids=['no overlap', 'another object', 'not sampled', 'negative'],
)
def test_reasons_without_positive_anchor(boxes, anchors, sampling, reasons):
    found = roles_of(boxes, anchors=anchors, sampling=sampling).objects_without_positive
    if 'one' in reasons:
        (reason,) = found.values()
        assert reasons['one'] in reason
    else:
        assert found == reasons


def test_a_pass_must_be_recorded():
    image = TrainingExample(np.zeros((3, 8, 8), np.float32), ImageTransform.top_left((8, 8), 1.0), None, 'a.jpg', 1, 0)
    with pytest.raises(ValueError, match='^no training pass is recorded$'):
        anchor_roles(TrainingRecord(), image, ANCHORS, STRIDES, sampling=Sampling(), dialect=DETECTRON)
