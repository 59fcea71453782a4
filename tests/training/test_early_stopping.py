"""Early stopping: the run ends when the AP has not grown for a number of evaluations."""

import json

import pytest

from mask_rcnn.cli import train
from mask_rcnn.training import plots
from mask_rcnn.training.early_stopping import EarlyStopping, selection_score
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.trainer import TrainingOptions
from tests.support.small_train import NETWORK, RUN
from tests.support.tiny_training import make_trainer


def observe(early, scores):
    """Report a score after each iteration, ``None`` for an evaluation that failed; return the counts after each."""
    trainer, counts = make_trainer('unused', stop=(len(scores), 'iteration')), []
    for iteration, score in enumerate(scores, 1):
        trainer.updater.iteration = iteration
        trainer.observation = {'main/loss': 1.0}
        if score is not None:
            trainer.observation |= {'validation/segm/AP': score, 'validation/bbox/AP': 1.0}
        early(trainer)
        counts.append((early.best_iteration, early.n_worse, early.is_exhausted))
    return counts


def test_evaluations_without_a_better_ap_are_counted():
    counts = observe(EarlyStopping(2), [0.1, 0.3, 0.3, None, 0.2, 0.4])
    assert counts == [(1, 0, False), (2, 0, False), (2, 1, False), (2, 1, False), (2, 2, True), (6, 0, False)]


def test_the_ap_of_keypoints_or_masks_decides_before_that_of_boxes():
    assert selection_score({'bbox/AP': 0.1, 'segm/AP': 0.2, 'bbox/AP50': 0.9}) == 0.2
    assert selection_score({'keypoints/AP': 0.3, 'bbox/AP': 0.1}) == 0.3
    assert selection_score({'bbox/AP50': 0.9}) is None


def test_patience_needs_evaluations():
    with pytest.raises(ValueError, match='patience needs evaluations'):
        TrainingOptions(out='x', iterations=1, schedule=Schedule(0.1, 0.1, 0), patience=2)


class FakeMetrics:
    """The metrics of an evaluation: an AP of masks."""

    def __init__(self, score):
        self.score = score

    def summary(self):
        return {'segm/AP': self.score, 'bbox/AP': 0.5}

    def table(self):
        return f'AP {self.score}'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command with an evaluation after each iteration, whose AP depends on the iteration."""
    scores = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.4}

    def make_evaluator(model, val_set, communicator):
        return lambda results: FakeMetrics(scores.get(int(results.stem.rpartition('_')[2]), 0.0))

    monkeypatch.setattr(train, 'make_evaluator', make_evaluator)
    monkeypatch.setattr(plots, 'plot_losses', lambda path, log: None)
    monkeypatch.setattr(plots, 'plot_ap', lambda path, log: None)

    def run(*more):
        command = [*RUN, *NETWORK, '--lr', '1e-6', '--validation', '1', '--snapshot', '100', '--out', str(tmp_path)]
        status = train.main([*command, *map(str, more)])
        return status, capsys.readouterr()

    return run


def test_a_run_stops_early_and_goes_on_with_more_patience(run, tmp_path):
    status, output = run('--iteration', 400, '--early-stop', 2)
    assert status == 0
    last_line = output.out.splitlines()[-1]
    assert 'the last 2 evaluations were not better than that after iteration 2 (AP 0.300), whose model is' in last_line
    assert f'{tmp_path}/model_best.npz; done after 4 iterations; the model is {tmp_path}/model_iter_4.npz' in last_line
    assert (tmp_path / 'model_iter_4.npz').exists() and not (tmp_path / 'snapshot_iter_5.npz').exists()
    log = json.loads((tmp_path / 'log').read_text())
    assert [entry['validation/segm/AP'] for entry in log] == [pytest.approx(s) for s in (0.2, 0.25)]
    status, output = run('--iteration', 400, '--early-stop', 2, '--resume', 'last')
    assert status == 2 and output.err.endswith(
        f'error: --resume {tmp_path}/snapshot_iter_4.npz and --early-stop 2 contradict each other: 2 evaluations are '
        'done since the best one, after iteration 2\n'
    )
    status, output = run('--iteration', 400, '--early-stop', 3, '--resume', 'last')
    assert status == 0 and 'after iteration 5 (AP 0.400)' in output.out and 'done after 8 iterations' in output.out


def test_the_counts_are_part_of_a_snapshot(run):
    """A run that ends after one worse evaluation, and is continued, needs one more; without counts it needs two."""
    assert run('--iteration', 3, '--early-stop', 2)[0] == 0
    assert 'done after 4 iterations' in run('--iteration', 9, '--early-stop', 2, '--resume', 'last')[1].out


def test_a_run_without_early_stopping_goes_on_with_it(run):
    assert run('--iteration', 2)[0] == 0
    output = run('--iteration', 9, '--early-stop', 2, '--resume', 'last')[1].out
    assert 'after iteration 5 (AP 0.400)' in output and 'done after 7 iterations' in output
