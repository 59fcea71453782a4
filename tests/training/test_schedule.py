"""Learning rate schedules."""

import pytest

from mask_rcnn.training.schedule import Schedule, detectron_schedule, step_schedule


def test_the_schedule_of_the_command_line():
    schedule = step_schedule(1e-4, warmup=800, first_decay=400000, second_decay=480000)
    expected = {0: 1e-4, 799: 1e-4, 800: 1e-3, 399999: 1e-3, 400000: 1e-4, 479999: 1e-4, 480000: 1e-5, 799999: 1e-5}
    assert {i: schedule.rate(i) for i in expected} == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_rate_is_unchanged():
    assert step_schedule(0.01, warmup=0, first_decay=10, second_decay=20).rate(0) == 0.01


@pytest.mark.parametrize(
    ('name', 'batch', 'rate', 'iterations', 'steps'),
    [
        ('detectron-1x', 8, 0.01, 180000, (120000, 160000)),  # R-50-C4, 8 GPUs x 1 image
        ('detectron-1x', 16, 0.02, 90000, (60000, 80000)),  # R-50-FPN, 8 GPUs x 2 images
        ('detectron-2x', 16, 0.02, 180000, (120000, 160000)),
        ('detectron-2x', 2, 0.0025, 1440000, (960000, 1280000)),
    ],
)
def test_detectron_schedules(name, batch, rate, iterations, steps):
    schedule, n = detectron_schedule(name, batch)
    assert n == iterations and schedule.steps == steps
    assert schedule.rate(500) == pytest.approx(rate, rel=1e-12)
    assert schedule.rate(steps[0] - 1) == pytest.approx(rate, rel=1e-12)
    assert schedule.rate(steps[0]) == pytest.approx(rate / 10, rel=1e-12)
    assert schedule.rate(iterations - 1) == pytest.approx(rate / 100, rel=1e-12)


def test_the_linear_warm_up_equals_detectron():
    schedule, _ = detectron_schedule('detectron-1x', 16)
    for iteration in (0, 1, 250, 499):
        alpha = iteration / 500  # detectron/utils/lr_policy.py
        assert schedule.rate(iteration) == pytest.approx(0.02 * (1 / 3 * (1 - alpha) + alpha), rel=1e-12)


def test_a_decay_within_the_warm_up_takes_effect_after_it():
    schedule = Schedule(peak=1, start=0.5, warmup=10, steps=(5,))
    assert [schedule.rate(i) for i in (4, 9)] == [0.5, 0.5]
    assert schedule.rate(10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    'changes',
    [
        {'peak': float('nan')},
        {'peak': float('inf')},
        {'start': -1.0},
        {'warmup': -1},
        {'steps': (-5,)},
        {'decay': float('nan')},
    ],
)
def test_values_out_of_range_are_rejected(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f'^{name} must be'):
        Schedule(**{'peak': 0.1, 'start': 0.1, 'warmup': 0, **changes})
