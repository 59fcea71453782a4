"""Learning rate schedules."""

import dataclasses

import pytest

from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.config.schedules import RATE_PER_IMAGE, decay_steps, warmup_length
from mask_rcnn.training.schedule import Schedule, detectron_schedule, run_schedule, step_schedule
from tests.support.contracts import parser_of


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


def test_runs_of_any_length_have_the_proportions_of_detectron():
    assert RATE_PER_IMAGE == 0.00125 and detectron_schedule('detectron-1x', 8)[0].peak == 8 * RATE_PER_IMAGE
    assert decay_steps(90000) == detectron_schedule('detectron-1x', 16)[0].steps
    assert [warmup_length(n) for n in (0, 3, 90, 1999, 2000, 90000)] == [0, 0, 22, 499, 500, 500]
    assert run_schedule(0.3, 90) == Schedule(peak=0.3, start=0.3 / 3, warmup=22, linear=True, steps=(60, 80))


def test_the_help_states_the_defaults_of_the_schedule():
    options = {action.dest: action.help for action in parser_of('train')._actions}
    defaults = {field.name: field.default for field in dataclasses.fields(TrainArguments)}
    for name, value in {'lr': 0.0001, 'lr_initialchange': 800, 'step_size': 400000, 'lr_step': 480000}.items():
        assert defaults[name] == value and options[name].endswith(f'(default: {value})')
    assert "(default: 800000, or the schedule's)" in options['iteration']


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
