"""The warning of a run whose loss grows."""

import pytest

from mask_rcnn.cli import train
from mask_rcnn.training import plots
from mask_rcnn.training.divergence import DivergenceWarning, window_means
from mask_rcnn.training.extensions import IntervalTrigger, TrainingLog
from tests.support.small_train import NETWORK, RUN
from tests.support.tiny_training import make_trainer


def warnings_of(tmp_path, losses, *, every=1):
    """Return the iterations of the warnings and their texts in a run with the given losses."""
    trainer, warnings = make_trainer(tmp_path, stop=(len(losses), 'iteration'), rate=0), []
    log = TrainingLog(trigger=IntervalTrigger(every), plot_trigger=IntervalTrigger(0), write=False, warn=pytest.fail)

    def report(trainer):
        trainer.observation['main/loss'] = losses[trainer.updater.iteration - 1]

    trainer.extend(report, name='report', priority=400, trigger=(1, 'iteration'))
    trainer.extend(log, trigger=(1, 'iteration'))
    extension = DivergenceWarning(log, lambda line: warnings.append((trainer.updater.iteration, line)))
    trainer.extend(extension, trigger=(1, 'iteration'))
    trainer.run()
    return warnings


def test_a_loss_that_grows_to_three_times_its_minimum_is_one_warning(tmp_path):
    """20 iterations at 2, 20 at 1, then 5: the mean of the last 20 exceeds 3 after 11 of them (0.45 + 2.75)."""
    ((iteration, line),) = warnings_of(tmp_path, [2.0] * 20 + [1.0] * 20 + [5.0] * 30)
    assert iteration == 51
    assert line.startswith('the loss grows: it was 1, and is 3.2 after 51 iterations; ')
    assert '--lr' in line and '--clip-gradient' in line


@pytest.mark.parametrize(
    'losses',
    [
        [2.0] * 20 + [1.0] * 20 + [2.9] * 40,  # less than three times
        [0.1] * 40 + [0.9] * 40,  # more, but a small loss
        [1.0, 9.0] * 30,  # single batches differ
        [1.0] * 10 + [9.0] * 9,  # too few iterations to tell
        [150.0] * 10,  # a large loss that does not grow
    ],
)
def test_no_warning(tmp_path, losses):
    assert warnings_of(tmp_path, losses) == []


def test_a_huge_loss_is_reported_at_once(tmp_path):
    ((iteration, line),) = warnings_of(tmp_path, [2.0, 3.0, 4.0, 150.0, 200.0])
    assert iteration == 4 and 'it was 2, and is 150 after 4 iterations' in line


def test_an_entry_of_the_log_may_be_the_mean_of_many_iterations(tmp_path):
    """The window is then an entry, or two of 10 iterations."""
    assert [n for n, _ in warnings_of(tmp_path, [1.0] * 40 + [4.0] * 40, every=20)] == [60]
    log = [{'iteration': n, 'main/loss': n / 10} for n in (10, 20, 30)]
    assert window_means(log) == [1.5, 2.5] and window_means(log[:1]) == []


def test_a_run_with_a_high_rate_warns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, 'plot_losses', lambda path, log: None)
    command = [*RUN, *NETWORK, '--lr', '0.1', '--lr-initialchange', '0', '--iteration', '40', '--snapshot', '0']
    train.main([*command, '--out', str(tmp_path)])  # it may stop with a loss that is not finite
    assert capsys.readouterr().err.count('warning: the loss grows') == 1
