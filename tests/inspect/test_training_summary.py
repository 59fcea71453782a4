"""Summaries of the training of objects and classes, from hand-made objects."""

import math

import numpy as np
import pytest

from mask_rcnn.inspect.names import level_names, names_of_classes
from mask_rcnn.inspect.training.pictures import draw_anchors, draw_keypoints, draw_masks, draw_rois
from mask_rcnn.inspect.training.summary import (
    TrainedObject,
    describe_training,
    summarize_classes,
    summarize_objects,
)
from mask_rcnn.inspect.training.tables import class_table, missing_table, object_table
from mask_rcnn.inspect.training.trace import trace_training
from mask_rcnn.targets import Sampling
from tests.inspect.test_targets import SAMPLING, small_keypoint_model, with_squares
from tests.training.test_keypoint_training import example as keypoint_example

NAMES = ('cat', 'dog')


def trained(
    label=0, size=20.0, *, missing='', best_anchor=0.4, best_proposal=0.8, losses=(1.0, 2.0, 0.5), n_positive=3
):
    classification, regression, mask = losses
    return TrainedObject(
        image='a.jpg',
        number=7,
        label=label,
        size=size,
        n_positive=0 if missing else n_positive,
        best_anchor=best_anchor,
        missing=missing,
        n_foreground=4,
        n_proposals=3,
        best_proposal=best_proposal,
        classification=classification,
        regression=regression,
        mask=mask,
    )


NO_LOSSES = (math.nan,) * 3


def test_classes_are_means_of_their_objects():
    objects = [
        trained(1, 10.0, missing='reason', best_proposal=0.2, losses=NO_LOSSES),
        trained(1, 30.0, n_positive=4, losses=(3.0, 1.0, math.nan)),
        trained(0),
    ]
    cat, dog = summarize_classes(objects, 0.5)
    assert (cat.label, cat.n_objects, cat.n_without_positive, cat.n_without_proposal) == (0, 1, 0, 0)
    assert (dog.label, dog.n_objects, dog.n_without_positive, dog.n_without_proposal) == (1, 2, 1, 1)
    assert (dog.size, dog.n_positive, dog.n_foreground) == (20, 2, 4)
    assert (dog.classification, dog.regression) == (3, 1) and math.isnan(dog.mask)


def test_the_summary_counts_reasons_and_names_sizes():
    objects = [trained(size=8.0, missing='too small'), trained(size=12.0, missing='too small'), trained()]
    first, second = describe_training(objects, (32, 64), Sampling(), NAMES)
    assert first == (
        '2 of 3 objects have no positive anchor (too small: 2), sizes 8 to 12 pixels in the network input (median 10); '
        'anchors have 32 to 64'
    )
    assert second == '0 of 3 objects have no proposal with IoU >= 0.5'


@pytest.mark.parametrize(
    ('objects', 'expected'),
    [
        ([], '0 of 0 objects have no proposal with IoU >= 0.5'),
        (
            [trained(size=9.0, best_proposal=0.1)],
            '1 of 1 object has no proposal with IoU >= 0.5, size 9 pixels in the network input',
        ),
        (
            [trained(size=8.9, best_proposal=0.1), trained(size=9.1, best_proposal=0.1)],
            '2 of 2 objects have no proposal with IoU >= 0.5, size 9 pixels in the network input',
        ),
    ],
)
def test_summaries_of_few_objects(objects, expected):
    assert describe_training(objects, (32,), Sampling(), NAMES)[1] == expected


def test_the_summary_names_the_classes_that_no_anchor_fits():
    """Their best anchors are positive with any IoU, so that they do not lack positive anchors."""
    objects = [trained(1, 6.0, best_anchor=0.04), trained(1, 8.0, best_anchor=0.29), trained(1), trained(0)]
    first, second, _ = describe_training(objects, (32, 64), Sampling(), NAMES)
    assert first == '0 of 4 objects have no positive anchor'
    assert second == (
        '2 of 4 objects have no anchor with IoU >= 0.3, sizes 6 to 8 pixels in the network input (median 7); anchors '
        'have 32 to 64: dog 2 of 3; "mask-rcnn data stats" suggests --anchor-sizes and --min-size'
    )
    many = [trained(label, best_anchor=0.1) for label in range(7)]
    assert '4 1 of 1 and 2 more classes;' in describe_training(many, (32,), Sampling(), [str(i) for i in range(7)])[1]


def test_tables_have_a_cell_for_each_column():
    objects = [trained(1, missing='reason', losses=NO_LOSSES), trained(0), trained(1)]
    for header, rows in (
        class_table(objects, NAMES, 0.5),
        missing_table(objects, NAMES),
        object_table(objects, NAMES, has_masks=True),
        object_table(objects, NAMES, has_masks=False),
    ):
        assert rows and {len(row) for row in rows} == {len(header)}
    header, rows = class_table(objects, NAMES, 0.5)
    assert [row[0] for row in rows] == ['dog', 'cat']  # the most frequent class first
    assert dict(zip(header, rows[0], strict=True))['no anchor'] == 1
    header, rows = object_table(objects, NAMES, has_masks=True)
    assert rows[0][-3:] == ['-', '-', '-'] and rows[1][-3:] == [1, 2, 0.5]


def test_levels_have_their_usual_names():
    assert level_names((16,)) == ('C4',)
    assert level_names((4, 8, 16, 32, 64)) == ('P2', 'P3', 'P4', 'P5', 'P6')


def test_objects_of_a_trace_and_its_pictures():
    """Numbers and means are those of the sampled anchors and RoIs of each object."""
    model = small_keypoint_model()
    image = with_squares(keypoint_example())
    (trace,) = trace_training(model, [image], sampling=SAMPLING)
    objects = summarize_objects(trace)
    assert [obj.number for obj in objects] == [0, 1] and {obj.image for obj in objects} == {'1.jpg'}
    np.testing.assert_allclose([obj.size for obj in objects], [(42 * 32) ** 0.5, (42 * 34) ** 0.5])
    owners, n = trace.rois.best_object[: trace.rois.n_foreground], trace.rois.n_foreground
    for obj in objects:
        rows = np.flatnonzero(owners == obj.number)
        assert obj.n_foreground == len(rows)
        assert obj.n_proposals == len(rows) - trace.rois.is_annotated[:n][rows].sum()
        positive = trace.anchors.indices[trace.anchors.labels == 1]
        assert obj.n_positive == (trace.anchors.best_object[positive] == obj.number).sum()
        if len(rows):
            assert obj.classification == pytest.approx(trace.rois.classification.losses[:n][rows].mean())
            assert obj.mask == pytest.approx(trace.masks.terms.losses[rows].mean())
    assert draw_anchors(trace).axes and draw_rois(trace).axes
    for picture in (draw_masks(trace), draw_keypoints(trace)):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_classes_without_names_have_numbers():
    assert names_of_classes(None, 2) == ('class 0', 'class 1') and names_of_classes(['cat'], 1) == ('cat',)


def test_images_without_objects_have_no_masks_to_draw():
    (trace,) = trace_training(small_keypoint_model(), [with_squares(keypoint_example(boxes=()))], sampling=SAMPLING)
    assert summarize_objects(trace) == []
    assert draw_masks(trace) is None and draw_keypoints(trace) is None
    assert draw_anchors(trace) is not None and draw_rois(trace) is not None
