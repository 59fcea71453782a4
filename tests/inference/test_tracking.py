"""Tracking of instances over the frames of a video, with constructed motion."""

import itertools
import pickle

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.inference import Detections, Tracker
from mask_rcnn.visualization.colors import track_colors

SIZE = 480, 640


def frame(*objects, dialect=DETECTRON):
    """Make the detections of a frame; an object is ``(label, y, x)`` or ``(label, y, x, side)``, its upper left."""
    boxes = [[y, x, y + side, x + side] for _, y, x, side in ((*item, 40)[:4] for item in objects)]
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([item[0] for item in objects], int),
        scores=np.full(len(objects), 0.9),
        size=SIZE,
        dialect=dialect,
    )


def track(frames, **options):
    """Return the ids of each frame as lists."""
    tracker = Tracker(**options)
    return [tracker.update(detections).tolist() for detections in frames]


def test_ids_and_colours_are_constant_over_300_frames(rng):
    """Three objects move on circles and a fourth stands still; their order among the detections changes."""
    expected = {}
    tracker = Tracker()
    for i in range(300):
        angle = i / 40
        objects = [(0, 100 + 60 * np.sin(angle), 100 + 60 * np.cos(angle)), (1, 300, 500)]
        objects += [(0, 300 + 60 * np.cos(angle), 300 + 80 * np.sin(angle)), (2, 60 + i, 560)]
        order = rng.permutation(4)
        jittered = [(objects[k][0], *(np.array(objects[k][1:]) + rng.uniform(-2, 2, 2))) for k in order]
        ids = tracker.update(frame(*jittered))
        assert ids.dtype == np.int64 and ids.shape == (4,)
        for k, number, color in zip(order.tolist(), ids.tolist(), track_colors(ids).tolist(), strict=True):
            assert expected.setdefault(k, (number, color)) == (number, color), i
    assert sorted(number for number, _ in expected.values()) == [1, 2, 3, 4]
    assert len({tuple(color) for _, color in expected.values()}) == 4


def test_ids_are_given_in_the_order_of_the_detections():
    assert track([frame((0, 10, 10), (0, 200, 200), (1, 10, 12))]) == [[1, 2, 3]]


def test_objects_of_different_classes_cross_at_the_same_place():
    frames = [frame((0, 100, 10 * i), (1, 100, 300 - 10 * i)) for i in range(31)]
    assert track(frames) == [[1, 2]] * 31


def test_objects_of_one_class_keep_their_velocity_when_they_cross():
    """In the middle, each box is where the other one was in the frame before."""
    frames = [frame((0, 100, 10 * i), (0, 100, 290 - 10 * i)) for i in range(30)]
    swapped = [detections[[1, 0]] if i % 2 else detections for i, detections in enumerate(frames)]
    assert track(swapped) == [[2, 1] if i % 2 else [1, 2] for i in range(30)]


def test_births_and_deaths():
    frames = [frame((0, 10, 10)), frame((0, 10, 10), (0, 200, 200)), frame((0, 200, 200)), frame()]
    frames += [frame((0, 10, 10), (0, 200, 200))]
    assert track(frames, max_age=1) == [[1], [1, 2], [2], [], [3, 2]]


@pytest.mark.parametrize('max_age', [0, 1, 5])
@pytest.mark.parametrize('velocity', [0, 3])
def test_an_object_gets_its_id_again_after_at_most_max_age_frames(max_age, velocity):
    seen = [frame((0, 50, 100 + velocity * i)) for i in range(8)]
    for n_missed, expected in ((max_age, 1), (max_age + 1, 2)):
        again = frame((0, 50, 100 + velocity * (7 + n_missed + 1)))
        assert track([*seen, *[frame()] * n_missed, again], max_age=max_age)[-1] == [expected], n_missed


def test_an_occluded_object_is_expected_where_its_velocity_leads():
    """After 10 frames, the object is 100 pixels from its last box, which has no overlap with the new one."""
    hidden = range(10, 20)
    frames = [frame(*([] if i in hidden else [(0, 50, 10 * i)]), (0, 300, 300)) for i in range(30)]
    ids = track(frames)
    still = ids[0][1]
    assert [found for found in ids if len(found) == 2] == [[1, still]] * 20
    assert [ids[i] for i in hidden] == [[still]] * 10


def test_an_object_that_stopped_while_it_was_occluded():
    frames = [frame((0, 50, 10 * i)) for i in range(10)] + [frame()] * 5 + [frame((0, 50, 95))]
    assert track(frames)[-1] == [1]


def test_an_id_is_never_used_twice():
    frames = [frame(*[(0, 400 * (i % 2), 100 * k) for k in range(i % 5)]) for i in range(100)]
    ids = track(frames, max_age=0)
    last_frame = {}
    for i, number in ((i, number) for i, found in enumerate(ids) for number in found):
        assert last_frame.get(number, i) >= i - 1
        last_frame[number] = i
    assert all(len(set(found)) == len(found) for found in ids)
    new = [number for i, found in enumerate(ids) for number in found if all(number not in old for old in ids[:i])]
    assert new == list(range(1, len(new) + 1))


def test_an_object_of_another_class_is_another_object():
    assert track([frame((0, 10, 10)), frame((1, 10, 10)), frame((0, 10, 10))]) == [[1], [2], [1]]


def test_the_pair_with_the_highest_overlap_matches_first():
    """Both boxes overlap with the first track; the better one gets its id, whatever the order."""
    near, far = (0, 100, 104), (0, 100, 112)
    for objects in itertools.permutations([near, far]):
        ids = track([frame((0, 100, 100)), frame(*objects)])[-1]
        assert ids[objects.index(near)] == 1 and ids[objects.index(far)] == 2


def test_the_least_overlap():
    """Squares of side 40 that are d apart have the IoU (40 - d) / (40 + d): 1 / 3 at 20, 0.29 at 22."""
    exact = DETECTRON.replace(boxes={'offset': 0.0})
    for distance, expected in ((20, 1), (22, 2)):
        frames = [frame((0, 100, 100), dialect=exact), frame((0, 100, 100 + distance), dialect=exact)]
        assert track(frames, min_iou=0.32)[-1] == [expected]
    touching = [frame((0, 100, 100, 0)), frame((0, 100, 100, 0))]  # boxes of one pixel with Detectron's offset
    assert track(touching, min_iou=1) == [[1], [1]]


def test_duplicates_of_an_object_have_different_ids():
    assert track([frame((0, 10, 10)), frame((0, 10, 10), (0, 10, 11)), frame((0, 10, 11), (0, 10, 10))]) == [
        [1],
        [1, 2],
        [2, 1],
    ]


def test_traces_are_the_centres_in_the_last_frames():
    exact = DETECTRON.replace(boxes={'offset': 0.0})
    tracker = Tracker(trace_length=4)
    for i in range(10):
        objects = [(1, 200, 300)] * (i != 8) + [(0, 100 + i, 200 + 2 * i)] * (i >= 4)
        ids = tracker.update(frame(*objects, dialect=exact))
    still, moving = tracker.traces(ids)
    np.testing.assert_allclose(still, [[220, 320]] * 3)  # not detected in one of the four frames
    np.testing.assert_allclose(moving, [[120 + i, 220 + 2 * i] for i in (6, 7, 8, 9)])
    assert tracker.traces([]) == []
    with pytest.raises(KeyError):
        tracker.traces([77])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'min_iou': 0}, 'min_iou must be above 0 and at most 1, not 0'),
        ({'min_iou': 1.5}, 'not 1.5'),
        ({'max_age': -1}, 'max_age must be 0 or more frames, not -1'),
        ({'trace_length': 0}, 'trace_length must be 1 or more frames, not 0'),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Tracker(**options)


def test_the_memory_does_not_grow_over_3000_frames():
    """In every frame, three objects vanish and three appear."""
    tracker = Tracker(max_age=3)
    frames = [frame(*[(0, 60 * i, 50 * k) for k in range(3)]) for i in range(7)]
    sizes = []
    for i in range(3000):
        ids = tracker.update(frames[3 * i % 7])
        if i in (500, 2999):
            sizes.append(len(pickle.dumps(tracker)))
    assert ids.tolist() == [8998, 8999, 9000]
    assert sizes[1] < 1.1 * sizes[0]
