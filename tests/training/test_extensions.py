"""Trainer extensions: triggers, learning rate, log, console table, plots and evaluation."""

import contextlib
import errno
import json
import os
import re
import signal
from types import SimpleNamespace

import cv2
import pytest

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.training import plots
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.extensions import (
    ConsoleTable,
    Evaluation,
    IntervalTrigger,
    LearningRateScheduler,
    TrainingLog,
    format_duration,
)
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.signals import SignalHandler, StopTrigger
from mask_rcnn.training.snapshot import Snapshots
from tests.support.tiny_training import META, make_trainer


def optimizer_of(trainer):
    return trainer.updater.get_optimizer('main')


def test_every_iteration_has_its_learning_rate(tmp_path):
    trainer = make_trainer(tmp_path, rate=0, stop=(6, 'iteration'))
    schedule = Schedule(peak=0.1, start=0.01, warmup=2, steps=(4,))
    used = []
    update = optimizer_of(trainer).update
    optimizer_of(trainer).update = lambda: (used.append(optimizer_of(trainer).lr), update())
    reported = []
    trainer.extend(LearningRateScheduler(schedule, optimizer_of(trainer)))
    trainer.extend(lambda t: reported.append(t.observation['lr']), name='reader')
    trainer.run()
    assert used == reported == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01, 0.01])


def test_interval_triggers():
    def at(iteration, trigger):
        return trigger(type('Trainer', (), {'updater': type('Updater', (), {'iteration': iteration})}))

    assert [i for i in range(1, 10) if at(i, IntervalTrigger(3))] == [3, 6, 9]
    assert not any(at(i, IntervalTrigger(0)) for i in range(1, 10))
    also = IntervalTrigger(4, also=lambda trainer: trainer.updater.iteration == 7)
    assert [i for i in range(1, 10) if at(i, also)] == [4, 7, 8]


def log_of(trainer, *, every=2, plot=0, warn=pytest.fail, write=True):
    log = TrainingLog(trigger=IntervalTrigger(every), plot_trigger=IntervalTrigger(plot), write=write, warn=warn)
    trainer.extend(log, trigger=(1, 'iteration'))
    return log


def test_the_log_contains_means(tmp_path):
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    losses = []
    trainer.extend(lambda t: losses.append(t.observation['main/loss']), name='losses', priority=500)
    log_of(trainer)
    trainer.run()
    entries = json.loads((tmp_path / 'log').read_text())
    assert [entry['iteration'] for entry in entries] == [2, 4]
    assert entries[0]['main/loss'] == pytest.approx((losses[0] + losses[1]) / 2)
    assert entries[1]['main/loss'] == pytest.approx((losses[2] + losses[3]) / 2)
    assert {'main/twice', 'grad_norm', 'epoch', 'elapsed_time'} <= set(entries[0])


def test_an_unwritable_log_does_not_stop_the_run(tmp_path, monkeypatch):
    lines = []
    trainer = make_trainer(tmp_path, stop=(6, 'iteration'))
    log = log_of(trainer, plot=6, warn=lines.append)

    @contextlib.contextmanager
    def full(path):
        raise FileError(errno.ENOSPC, 'cannot be written: No space left on device', os.fspath(path))
        yield

    for module in ('extensions', 'plots'):
        monkeypatch.setattr(f'mask_rcnn.training.{module}.open_for_writing', full)
    trainer.run(show_loop_exception_msg=False)
    assert len(log.log) == 3 and len(lines) == 4  # one of them for loss.png; there is no AP to plot
    assert all('No space left' in line for line in lines)


def test_other_processes_keep_the_log_but_write_no_files(tmp_path):
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    log = log_of(trainer, plot=2, write=False)
    trainer.run()
    assert len(log.log) == 2 and not os.listdir(tmp_path)


def test_the_table_has_a_heading_and_a_line_per_entry(tmp_path):
    lines = []
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    trainer.extend(ConsoleTable(log_of(trainer), iterations=4, print_line=lines.append))
    trainer.run()
    assert len(lines) == 3
    heading, first, last = lines
    assert heading.split()[:4] == ['iteration', 'epoch', 'rate', 'loss'] and heading.endswith('time left')
    assert first.split()[:3] == ['2', '0', '1.00e-01'] or first.split()[0] == '2'
    assert re.search(r'\d\.\d\d +\d+:\d\d$', first) and last.endswith('0:00')


def test_evaluations_are_part_of_the_time_left_only(tmp_path, monkeypatch):
    """Two iterations take 3 s each, and their evaluation 10 s: 16 s for two iterations remain 16 s for two more."""
    now, lines = [0.0], []
    monkeypatch.setattr('mask_rcnn.training.extensions.time', SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds):
        now[0] += seconds

    trainer = make_trainer(tmp_path, stop=(2, 'iteration'))
    evaluation = add_evaluation(trainer, lambda file: (wait(10), Metrics(0.3))[1])
    trainer.extend(lambda trainer: wait(3), name='work', priority=500, trigger=(1, 'iteration'))
    table = ConsoleTable(log_of(trainer), iterations=4, print_line=lines.append, evaluation=evaluation)
    trainer.extend(table)
    trainer.run()
    assert lines[1].split()[-2:] == ['3.00', '0:16']


@pytest.mark.parametrize(('seconds', 'text'), [(4.6, '0:05'), (65, '1:05'), (7800, '2:10:00'), (274000, '3 d 4 h')])
def test_durations_as_text(seconds, text):
    assert format_duration(seconds) == text


def history(n=40):
    """Return a log with decreasing losses, one decay of the learning rate and four evaluations."""
    entries = []
    for i in range(1, n + 1):
        entry = {'iteration': 100 * i, 'lr': 0.02 if i < 30 else 0.002}
        for j, (key, _, _) in enumerate(plots.LOSSES):
            entry[key] = (7 - j) * (0.1 + 1 / i) * (1 + 0.2 * (-1) ** i)
        if i % 10 == 0:
            entry.update(
                {
                    'validation/bbox/AP': 0.01 * i,
                    'validation/bbox/AP50': 0.018 * i,
                    'validation/segm/AP': 0.008 * i,
                    'validation/segm/AP50': 0.016 * i,
                }
            )
        entries.append(entry)
    return entries


def test_the_curves_are_plotted(tmp_path):
    plots.plot_losses(tmp_path / 'loss.png', history())
    plots.plot_ap(tmp_path / 'ap.png', history())
    for name in ('loss.png', 'ap.png'):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[0] > 400 and picture.shape[1] > 800
        assert len({tuple(c) for c in picture.reshape(-1, 3)[::7]}) > 20
    assert sorted(os.listdir(tmp_path)) == ['ap.png', 'loss.png']


def test_plots_of_almost_empty_logs(tmp_path):
    """A single entry, a value that is not finite, and no evaluation."""
    plots.plot_losses(tmp_path / 'loss.png', [{'iteration': 1, 'lr': 0.1, 'main/loss': 2.0}])
    plots.plot_losses(tmp_path / 'loss.png', [{'iteration': 1, 'lr': 0.1, 'main/loss': float('nan')}])
    plots.plot_ap(tmp_path / 'ap.png', [{'iteration': 1}])
    assert os.listdir(tmp_path) == ['loss.png']


def test_smoothing_is_unbiased():
    assert plots.smooth([3.0] * 50) == pytest.approx([3] * 50)
    values = [float(i % 2) for i in range(200)]
    assert all(abs(value - 0.5) < 0.1 for value in plots.smooth(values)[20:])
    assert plots.smooth([1.0, 5.0]) == [1.0, 5.0]


class Metrics:
    def __init__(self, ap, kind='segm'):
        self.ap, self.kind = ap, kind

    def summary(self):
        return {'bbox/AP': self.ap + 0.1, f'{self.kind}/AP': self.ap}

    def table(self):
        return f'AP {self.ap}'


def add_evaluation(trainer, evaluate, signal_handler=None, lines=None, warn=pytest.fail):
    evaluation = Evaluation(
        evaluate,
        Snapshots(META, {}, keep=1, warn=pytest.fail, print_line=pytest.fail),
        signal_handler=signal_handler or SignalHandler(),
        warn=warn,
        communicator=Communicator(),
        print_line=(lines if lines is not None else []).append,
    )
    trainer.extend(evaluation, trigger=IntervalTrigger(2))
    return evaluation


def test_evaluations_are_reported_and_the_best_is_kept(tmp_path):
    trainer = make_trainer(tmp_path, stop=(4, 'iteration'))
    log, lines, files, scores = log_of(trainer), [], [], iter([0.3, 0.2])
    add_evaluation(trainer, lambda file: (files.append(file), Metrics(next(scores)))[1], lines=lines)
    trainer.run()
    assert [entry['validation/segm/AP'] for entry in log.log] == [0.3, 0.2]
    assert [entry['validation/bbox/AP'] for entry in log.log] == pytest.approx([0.4, 0.3])
    assert files == [tmp_path / 'results_iter_2.json', tmp_path / 'results_iter_4.json']
    assert lines[1] == 'AP 0.3' and (tmp_path / 'model_best.npz').exists()


@pytest.mark.parametrize('kind', ['keypoints', 'segm', 'bbox'])
def test_the_best_model_is_selected_by_keypoints_then_masks_then_boxes(tmp_path, kind):
    trainer, offered = make_trainer(tmp_path, stop=(2, 'iteration')), []
    snapshots = Snapshots(META, {}, keep=1, warn=pytest.fail, print_line=pytest.fail)
    snapshots.save_if_best = lambda trainer, score: offered.append(score)
    trainer.extend(
        Evaluation(
            lambda file: Metrics(0.25, kind),
            snapshots,
            signal_handler=SignalHandler(),
            communicator=Communicator(),
            print_line=str,
            warn=pytest.fail,
        ),
        trigger=IntervalTrigger(2),
    )
    trainer.run()
    assert offered == [0.25]


def test_unwritable_results_do_not_stop_the_run(tmp_path):
    def evaluate(file):
        raise FileError(errno.ENOSPC, 'cannot be written: No space left on device', os.fspath(file))

    trainer, lines = make_trainer(tmp_path, stop=(4, 'iteration')), []
    add_evaluation(trainer, evaluate, warn=lines.append)
    trainer.run(show_loop_exception_msg=False)
    assert trainer.updater.iteration == 4 and len(lines) == 2 and 'No space left' in lines[0]


def test_a_signal_ends_an_evaluation_and_then_the_run(tmp_path):
    signal_handler = SignalHandler()

    def evaluate(file):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail('the evaluation continued')

    trainer = make_trainer(tmp_path)
    trainer.stop_trigger = StopTrigger(100, signal_handler, Communicator())
    add_evaluation(trainer, evaluate, signal_handler)
    with signal_handler.installed():
        trainer.run()
    assert trainer.updater.iteration == 2 and not any('validation' in key for key in trainer.observation)


@pytest.mark.parametrize('error', [ValueError('a\nb'), MemoryError(), OSError(5, 'Input/output error', 'x.jpg')])
def test_an_evaluation_that_fails_is_a_warning(tmp_path, error):
    def evaluate(file):
        raise error

    trainer, warnings = make_trainer(tmp_path, stop=(4, 'iteration')), []
    add_evaluation(trainer, evaluate, warn=warnings.append)
    trainer.run()
    assert trainer.updater.iteration == 4
    assert len(warnings) == 2 and warnings[0].startswith('the evaluation after 2 iterations has failed: ')
    assert '\n' not in warnings[0]


def test_a_snapshot_that_could_not_be_written_is_tried_again(tmp_path):
    trainer, lines = make_trainer(tmp_path, stop=(9, 'iteration')), []
    snapshots = Snapshots(META, {}, keep=2, warn=lines.append, print_line=pytest.fail)
    blocked = tmp_path / 'snapshot_iter_5.npz'
    blocked.mkdir()
    retrying = IntervalTrigger(2)
    trainer.extend(snapshots, trigger=IntervalTrigger(5, also=lambda t: snapshots.has_failed and retrying(t)))
    trainer.run()
    assert len(lines) == 1 and snapshots.last == tmp_path / 'snapshot_iter_6.npz' and not snapshots.has_failed
    assert not (tmp_path / 'model_iter_5.npz').exists(), 'the model without a snapshot takes room'
