"""``why_not`` names the right step in a constructed case for each step, and ``why`` the origin of a detection."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON2, TORCHVISION
from mask_rcnn.inspect import Fate, Step, trace, why, why_not
from tests.inspect.networks import anchor_box, make_network, scripted_network

IMAGE = np.zeros((128, 128, 3), np.uint8)
CAT, DOG, NOTHING = [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.98, 0.01, 0.01]
CELL, OTHER = (3, 3), (6, 6)

#: Deltas (dy, dx, dh, dw) that move a box of 32 pixels by 4.6 or 8 pixels: IoU 0.75 or 0.6 with the box itself.
BY_4, BY_8 = (4.6 / 32, 0, 0, 0), (8 / 32, 0, 0, 0)


def lose(model, label='cat', *, min_iou=0.5, box=None):
    """Return the rejection of the object at the anchor :data:`CELL`."""
    return why_not(trace(model, IMAGE), anchor_box(model, *CELL) if box is None else box, label, min_iou=min_iou)


def counts_of(rejection):
    return [count for _, count, _ in rejection.counts]


def test_a_detected_object():
    rejection = lose(scripted_network({CELL: 5}, scores={0: CAT}))
    assert rejection.step is Step.DETECTED and (rejection.table, rejection.index) == ('detections', 0)
    assert counts_of(rejection) == [1] * 7
    assert all(iou == pytest.approx(1) for _, _, iou in rejection.counts)
    assert rejection.counts[5][0] == '... with a score above 0.01, before NMS'
    assert len({line.index(' with IoU') for line in str(rejection).splitlines()[1:]}) == 1  # aligned


def test_a_trace_has_a_short_text():
    """A notebook shows it at the end of a cell."""
    steps = trace(scripted_network({CELL: 5}, scores={0: CAT}, rpn_pre_nms=9, rpn_post_nms=1), IMAGE[:, :64])
    text = f'{len(steps.anchors)} anchors, 9 proposals before NMS, 1 RoI, {len(steps.detections)} detections'
    assert repr(steps) == f'Trace(64 x 128 pixels: {text})'


def test_no_anchor_is_regressed_to_it():
    rejection = lose(scripted_network({CELL: 5}, scores={0: CAT}), box=(50, 50, 54, 54))
    assert rejection.step is Step.ANCHORS
    assert counts_of(rejection) == [0] * 7
    rejection = lose(scripted_network({CELL: 5}, deltas={CELL: (2, 2, 0, 0)}))
    assert rejection.step is Step.ANCHORS and counts_of(rejection) == [1, 0, 0, 0, 0, 0, 0]


def test_too_many_anchors_have_a_higher_objectness():
    rejection = lose(scripted_network({CELL: 1, OTHER: 5, (0, 6): 4}, rpn_pre_nms=2))
    assert rejection.step is Step.OBJECTNESS
    assert 'objectness 0.731, rank 3 of 64' in rejection.reason and 'rpn_pre_nms keeps 2' in rejection.reason
    assert (rejection.table, rejection.index) == ('anchors', 8 * CELL[0] + CELL[1])


def test_a_proposal_is_too_small():
    rejection = lose(scripted_network({CELL: 5}, rpn_min_size=40.0))
    assert rejection.step is Step.SIZE and 'too small' in rejection.reason and rejection.table == 'proposals'


def test_a_better_proposal_suppresses_it():
    model = scripted_network({CELL: 4, (3, 4): 5}, deltas={(3, 4): (BY_4[0], -0.5, 0, 0)}, scores={0: CAT})
    rejection = lose(model, min_iou=0.9)
    assert rejection.step is Step.PROPOSAL_NMS
    assert 'IoU 0.75 suppresses it (threshold 0.7)' in rejection.reason
    assert counts_of(rejection) == [1, 1, 1, 0, 0, 0, 0]


def test_too_many_proposals_have_a_higher_objectness():
    rejection = lose(scripted_network({CELL: 1, OTHER: 5}, rpn_post_nms=1))
    assert rejection.step is Step.PROPOSAL_LIMIT and 'rpn_post_nms is 1' in rejection.reason


def test_its_class_has_a_low_score():
    rejection = lose(scripted_network({CELL: 5}, scores={0: [0.05, 0.02, 0.93]}, score_threshold=0.05))
    assert rejection.step is Step.CLASSIFICATION and (rejection.table, rejection.index) == ('rois', 0)
    assert '0.020 for cat (threshold 0.05); its best classes are dog 0.930' in rejection.reason
    assert 'detected as another class: dog 0.930' in rejection.reason and list(rejection.others) == [0]


def test_its_box_moves_away():
    rejection = lose(scripted_network({CELL: 5}, scores={0: CAT}, box_deltas={0: (10, 0, 0, 0)}))
    assert rejection.step is Step.REFINEMENT and 'IoU 1.00, 0.00 after regression' in rejection.reason


def test_a_better_detection_suppresses_it():
    model = scripted_network(
        {CELL: 4, (3, 4): 5},
        deltas={(3, 4): (BY_8[0], -0.5, 0, 0)},
        scores={0: [0.05, 0.9, 0.05], 1: CAT},
        nms_threshold=0.5,
    )
    rejection = lose(model, min_iou=0.9)
    assert rejection.step is Step.DETECTION_NMS and rejection.table == 'candidates'
    assert '0.900 and IoU 0.60 suppresses it (threshold 0.5)' in rejection.reason
    assert rejection.reason.endswith('the closest detection of cat has the score 0.900 and IoU 0.60')
    assert counts_of(rejection) == [1, 1, 1, 1, 1, 1, 0]


def test_too_many_detections_have_a_higher_score():
    rejection = lose(scripted_network({CELL: 4, OTHER: 5}, scores={0: [0, 1, 0], 1: CAT}, max_detections=1))
    assert rejection.step is Step.DETECTION_LIMIT and 'max_detections is 1' in rejection.reason


@pytest.fixture(scope='module')
def matterport_steps():
    return trace(make_network('matterport'), np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8))


def test_a_proposal_is_too_small_without_a_rule_for_its_centre():
    rejection = lose(scripted_network({CELL: 5}, rpn_min_size=40.0, dialect=TORCHVISION))
    assert rejection.step is Step.SIZE and rejection.reason.endswith('but it is too small')


def test_a_detection_is_too_small_in_torchvision():
    """Its sides are 0.005 pixels of the input; the box of another class has its place."""
    shrink = 5 * np.log(0.005 / 32)
    model = scripted_network(
        {CELL: 5},
        scores={0: CAT},
        box_deltas={0: [(0, 0, 0, 0), (0, 0, shrink, shrink), (0, 0, 0, 0)]},
        dialect=TORCHVISION,
    )
    steps = trace(model, IMAGE)
    (row,) = np.flatnonzero(steps.candidates.labels == 0)
    assert steps.candidates.fates[row] == Fate.INVALID and (steps.detections.labels == 1).all()
    rejection = why_not(steps, steps.candidates.boxes[row], 'cat')
    assert rejection.step is Step.BOX_SIZE and (rejection.table, rejection.index) == ('candidates', row)
    assert 'but it has a side of less than 0.01 pixels of the network input' in rejection.reason


def test_an_empty_detection_is_dropped_in_detectron2():
    """The RoI moves out of the image, whose border clips it."""
    model = scripted_network({CELL: 5}, scores={0: CAT}, box_deltas={0: (90, 0, 0, 0)}, dialect=DETECTRON2)
    steps = trace(model, IMAGE)
    is_cat = steps.candidates.labels == 0
    assert len(steps.detections) == 0 and is_cat.any()
    np.testing.assert_array_equal(steps.candidates.boxes[is_cat][:, 0], 128)
    np.testing.assert_array_equal(steps.candidates.fates[is_cat], Fate.INVALID)
    np.testing.assert_array_equal(steps.candidates.detections, -1)


def areas(boxes):
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def test_rounding_moves_its_box(matterport_steps):
    table, rows = matterport_steps.candidates, matterport_steps.candidate_of_detection
    row = rows[np.argmax(areas(table.boxes[rows]))]
    box, label = table.boxes[row], int(table.labels[row])
    assert why_not(matterport_steps, box, label).step is Step.DETECTED
    assert why_not(matterport_steps, box, label, min_iou=0.9999).step is Step.ROUNDING


def test_the_best_class_alone_counts_in_matterports_dialect(matterport_steps):
    rois = matterport_steps.rois
    second = np.argsort(-rois.probs, axis=1)[:, 1]
    scores = rois.probs[np.arange(len(rois)), second]
    roi = int(np.argmax(scores * (second > 0) * (areas(rois.class_boxes).min(axis=1) > 100)))
    rejection = why_not(matterport_steps, rois.class_boxes[roi, second[roi]], int(second[roi]) - 1, min_iou=0.99)
    assert rejection.step is Step.CLASSIFICATION and 'only its best class counts' in rejection.reason
    assert rejection.counts[5][0] == '... with a score of at least 0.01, before NMS'


def test_the_steps_are_tested_in_their_order():
    """One object, and a network that loses it one step later each time."""
    cell = {CELL: 5}
    cases = [
        (scripted_network({OTHER: 5}, rpn_pre_nms=1), Step.OBJECTNESS),
        (scripted_network(cell, rpn_min_size=40.0), Step.SIZE),
        (scripted_network(cell), Step.CLASSIFICATION),
        (scripted_network(cell, scores={0: CAT}), Step.DETECTED),
    ]
    assert [lose(model).step for model, _ in cases] == [step for _, step in cases]


def test_bad_questions():
    steps = trace(scripted_network({CELL: 5}), IMAGE)
    with pytest.raises(ValueError, match=r"unknown class 'cow'; the classes are cat, dog"):
        why_not(steps, (0, 0, 9, 9), 'cow')
    with pytest.raises(ValueError, match='label 2 is not from 0 to 1'):
        why_not(steps, (0, 0, 9, 9), 2)
    for box in ((9, 0, 0, 9), (0, 0, 9), (0, 0, np.nan, 9)):
        with pytest.raises(ValueError, match='increasing numbers'):
            why_not(steps, box, 'cat')
    with pytest.raises(ValueError, match='min_iou'):
        why_not(steps, (0, 0, 9, 9), 'cat', min_iou=0)
    with pytest.raises(IndexError, match='detection 3 does not exist: there are 0'):
        why(steps, 3)


@pytest.mark.parametrize('index', [0.0, '0', None, True, np.True_, [0], np.array([0])])
def test_an_index_that_is_not_an_integer(index):
    """A fraction would be truncated, and a truth value is the result of a comparison."""
    steps = trace(scripted_network({CELL: 5}, scores={0: CAT}), IMAGE)
    with pytest.raises(TypeError, match='a detection must be an index, not'):
        why(steps, index)
    with pytest.raises((TypeError, ValueError), match=r'a label must be an index or the name|unknown class'):
        why_not(steps, (0, 0, 9, 9), index)


@pytest.mark.parametrize('integer', [np.int64(0), np.uint8(0), np.array(0)])
def test_integers_of_numpy(integer):
    steps = trace(scripted_network({CELL: 5}, scores={0: CAT}), IMAGE)
    assert why(steps, integer).name == 'cat'
    assert why_not(steps, why(steps, 0).box, integer).step is Step.DETECTED


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('box', ['abcd', {1, 2}, [1, 2, 3j, 4], [0, 0, 10**400, 9], [[1], 2, 3, 4], [0, 0, 1e300, 9]])
def test_boxes_that_are_no_four_numbers(box):
    with pytest.raises(ValueError, match='a box must be .* increasing numbers, not'):
        lose(scripted_network({CELL: 5}), box=box)


def test_a_minimum_iou_that_is_not_a_number():
    with pytest.raises(TypeError, match=r"min_iou must be a number, not '0\.5'"):
        lose(scripted_network({CELL: 5}), min_iou='0.5')


@pytest.mark.parametrize('objectness', [5, np.nan])
def test_proposals_with_the_same_objectness_at_the_limit(objectness):
    """The reason does not claim that the other proposals have a higher one."""
    model = scripted_network(dict.fromkeys([(0, 0), OTHER, CELL], objectness), rpn_post_nms=1)
    rejection = lose(model, box=anchor_box(model, *OTHER))
    assert rejection.step is Step.PROPOSAL_LIMIT
    assert 'rpn_post_nms is 1, and no proposal has a lower one' in rejection.reason


def test_the_origin_of_a_detection():
    model = scripted_network(
        {CELL: 4, (3, 4): 5, OTHER: 2},
        deltas={(3, 4): (BY_8[0], -0.5, 0, 0)},
        scores={0: [0.05, 0.9, 0.05], 1: CAT, 2: DOG},
        box_deltas={2: (1, 0, 0, 0)},
    )
    steps = trace(model, IMAGE)
    first, second = why(steps, 0), why(steps, 1)
    assert (first.name, first.roi, first.anchor_cell, first.anchor_rank) == ('cat', 0, (3, 4), 1)
    assert first.objectness == pytest.approx(1 / (1 + np.exp(-5)))
    np.testing.assert_allclose(first.anchor_box, anchor_box(model, 3, 4))
    np.testing.assert_allclose(first.roi_box, anchor_box(model, 3, 4) + [8, -16, 8, -16])
    assert first.suppressed_scores.tolist() == pytest.approx([0.8])
    assert (second.name, second.roi, second.anchor_cell, second.anchor_rank) == ('dog', 2, OTHER, 3)
    np.testing.assert_allclose(second.box - second.roi_box, [3.2, 0, 3.2, 0], atol=1e-4)  # a tenth of 32 pixels
    assert [name for name, _ in second.class_scores] == ['dog', 'cat', 'background']
    assert second.suppressed.size == 0
    text = str(first)
    assert 'P4' not in text and 'C4, row 3, column 4' in text and 'suppresses 1 box of the class' in text
