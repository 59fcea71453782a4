"""Runs that end with an error: the last complete state is saved, and a resumed run equals an uninterrupted one."""

import contextlib
import os
import signal
import tempfile

import chainer
import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.training import snapshot
from mask_rcnn.training.distributed import Communicator, ProcessError, run_together
from mask_rcnn.training.extensions import IntervalTrigger, Tolerant, TrainingLog
from mask_rcnn.training.failures import StateBeforeUpdate, describe_error
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.signals import SignalHandler, StopTrigger
from mask_rcnn.training.snapshot import Snapshots, list_snapshots, read_snapshot
from mask_rcnn.training.trainer import TrainingOptions, TrainingRun
from mask_rcnn.training.worker_pool import ExampleError
from tests.support.process_threads import Processes
from tests.support.tiny_training import META, TinyTrainChain, make_trainer


class NormalizedChain(TinyTrainChain):
    """A chain whose running statistics change in the forward pass, and which can fail after it."""

    def __init__(self):
        super().__init__()
        self.failure = lambda: None
        with self.init_scope():
            self.norm = L.BatchNormalization(4)

    def forward(self, batch):
        self.norm(np.stack([row.x for row in batch]).astype(np.float32))
        loss = super().forward(batch)
        self.failure()
        return loss


def make_run(out, n=12, *, resume=None, interval=100, communicator=None):
    """Return a run of a tiny chain, which is the target of its optimizer."""
    handler = SignalHandler()
    trainer = make_trainer(out, chain=NormalizedChain(), signal_handler=handler, communicator=communicator)
    communicator = communicator or Communicator()
    trainer.stop_trigger = stop = StopTrigger(n, handler, communicator)
    log = TrainingLog(trigger=IntervalTrigger(3), plot_trigger=IntervalTrigger(0), write=True, warn=pytest.fail)
    snapshots = Snapshots(META, {}, keep=2, warn=pytest.fail, print_line=pytest.fail)
    trainer.extend(log, trigger=(1, 'iteration'))
    trainer.extend(snapshots, trigger=IntervalTrigger(interval, also=stop))
    if resume:
        read_snapshot(resume).restore(trainer)
    options = TrainingOptions(str(out), n, Schedule(0.1, 0.1, 0), snapshot_interval=interval)
    return TrainingRun(options, trainer, stop, snapshots, handler, communicator)


def chain_of(run):
    return run.trainer.updater.get_optimizer('main').target


def fail_in_forward(run, raise_error):
    def failure():
        if run.trainer.updater.iteration == 7:
            raise_error()

    chain_of(run).failure = failure


def fail_in_iterator(run, raise_error):
    iterator = run.trainer.updater.get_iterator('main')
    following = iterator.next

    def next_batch():
        batch = following()
        if run.trainer.updater.iteration == 7:
            raise_error()
        return batch

    iterator.next = next_batch


def press_ctrl_c_twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def raiser(error):
    def raise_error(*arguments):
        raise error

    return raise_error


class RecordingDevice(chainer.backend.CpuDevice):
    """A device that counts how often it is the current one of a thread at the same time."""

    depth = 0

    @contextlib.contextmanager
    def create_context(self):
        type(self).depth += 1
        yield
        type(self).depth -= 1


def test_the_device_of_the_model_is_the_current_one_during_a_run(tmp_path):
    """A model can be on another GPU than the current one of its thread, which kernels would use."""
    run, depths = make_run(tmp_path, 2), []
    chain = chain_of(run)
    chain._device = RecordingDevice()
    chain.failure = lambda: depths.append(RecordingDevice.depth)
    run.start()
    assert depths == [1, 1] and RecordingDevice.depth == 0


FAILURES = {
    'image': (ExampleError('x.jpg: No such file'), raiser),
    'memory': (MemoryError(), raiser),
    'other': (ZeroDivisionError('x'), raiser),
    'interrupt': (KeyboardInterrupt(), lambda error: press_ctrl_c_twice),
}


@pytest.mark.parametrize('place', [fail_in_forward, fail_in_iterator])
@pytest.mark.parametrize('kind', FAILURES)
def test_the_state_before_a_failed_update_is_saved(tmp_path, place, kind):
    """The batch was drawn, and the running statistics have changed."""
    whole = make_run(tmp_path / 'whole')
    whole.start()
    error, make = FAILURES[kind]
    failed = make_run(tmp_path / 'failed')
    place(failed, make(error))
    with pytest.raises(type(error)):
        failed.start()
    assert failed.snapshots.last == tmp_path / 'failed' / 'snapshot_iter_7.npz'
    resumed = make_run(tmp_path / 'resumed', resume=failed.snapshots.last)
    resumed.start()
    expected, found = (read_snapshot(run.snapshots.last).arrays for run in (whole, resumed))
    assert expected.keys() == found.keys() and 'updater/model:main/norm/avg_mean' in found
    for name in expected:
        if 'elapsed_time' not in name and not name.endswith('_log'):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize('device', ['@numpy', pytest.param('@cupy:0', marks=pytest.mark.gpu)])
def test_all_running_statistics_are_restored(device):
    """The saved values are copies."""
    link = chainer.Sequential(L.BatchNormalization(3), L.Linear(4, 2), L.BatchNormalization((2, 4), axis=0))
    link.to_device(device)
    arrays = [array for norm in (link[0], link[2]) for array in (norm.avg_mean, norm.avg_var)]
    for i, array in enumerate(arrays):
        array[...] = link.xp.arange(array.size).reshape(array.shape) / 7 + i
    expected = [chainer.backends.cuda.to_cpu(array).copy() for array in arrays]
    state = StateBeforeUpdate(chainer.iterators.SerialIterator([1], 1), link)
    state.save()
    for array in arrays:
        array[...] = -1
    state.restore()
    for array, values in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(chainer.backends.cuda.to_cpu(array), values)


def test_an_error_between_updates_saves_the_completed_iteration(tmp_path):
    run = make_run(tmp_path)
    run.trainer.extend(lambda t: 1 / 0, name='failing', trigger=IntervalTrigger(5), priority=0)
    with pytest.raises(ZeroDivisionError):
        run.start()
    assert read_snapshot(run.snapshots.last).iteration == 5


def test_half_an_update_is_not_saved(tmp_path, capsys):
    run = make_run(tmp_path, interval=2)
    optimizer = run.trainer.updater.get_optimizer('main')
    update = optimizer.update
    optimizer.update = lambda: (update(), 1 / 0) if run.trainer.updater.iteration == 3 else update()
    with pytest.raises(ZeroDivisionError):
        run.start()
    assert [n for n, _ in list_snapshots(tmp_path)] == [2]
    assert 'warning: the error came during update 4' in capsys.readouterr().err


@pytest.mark.parametrize(('interval', 'iteration'), [(0, 7), (100, 0)])
def test_nothing_is_saved_without_snapshots_or_iterations(tmp_path, interval, iteration):
    run = make_run(tmp_path, interval=interval)

    def failure():
        if run.trainer.updater.iteration == iteration:
            raise MemoryError

    chain_of(run).failure = failure
    with pytest.raises(MemoryError):
        run.start()
    assert list_snapshots(tmp_path) == []


def test_a_failed_run_removes_no_snapshot(tmp_path):
    """The last state may be useless, as after a loss that is not finite."""
    run = make_run(tmp_path, interval=3)
    fail_in_forward(run, raiser(MemoryError()))
    with pytest.raises(MemoryError):
        run.start()
    assert [n for n, _ in list_snapshots(tmp_path)] == [3, 6, 7]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    run, lines = make_run(tmp_path, n=2, interval=1), []
    run.snapshots._warn = lines.append
    run.trainer.extend(
        lambda t: chain_of(run).model.out.b.array.fill(np.inf), trigger=lambda t: t.updater.iteration == 2, name='x'
    )
    run.start()
    assert [n for n, _ in list_snapshots(tmp_path)] == [1]
    assert lines == [
        'no snapshot of iteration 2: '
        f'{tmp_path}/model_iter_2.npz: is not written, because values of /out/b are not finite'
    ]


def test_a_deleted_folder_is_created_again(tmp_path):
    run = make_run(tmp_path / 'out', n=4, interval=2)

    def delete(trainer):
        for path in (tmp_path / 'out').iterdir():
            path.unlink()
        (tmp_path / 'out').rmdir()

    run.trainer.extend(delete, name='delete', trigger=lambda t: t.updater.iteration == 3, priority=-200)
    run.start()
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'snapshot_iter_4.npz',
        'model_iter_4.npz',
        'snapshot_model.npz',
    }


def replace_by_file(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text('x')


@pytest.mark.parametrize('fails', [False, True])
def test_the_last_state_is_saved_elsewhere_if_its_folder_cannot_be_written(tmp_path, monkeypatch, fails):
    """Ended or failed: the last snapshot is that of an uninterrupted run."""
    monkeypatch.setattr(tempfile, 'tempdir', os.fspath(tmp_path))
    run, lines = make_run(tmp_path / 'out', n=6, interval=2), []
    run.snapshots._warn = lines.append
    run.trainer.extend(
        lambda trainer: replace_by_file(tmp_path / 'out'), name='x', trigger=lambda t: t.updater.iteration == 3
    )
    run.trainer.get_extension('log')._write = False
    if fails:
        chain_of(run).failure = lambda: 1 / 0 if run.trainer.updater.iteration == 5 else None
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        run.start()
    last = run.snapshots.last
    assert last.name == f'snapshot_iter_{6 - fails}.npz' and last.parent.parent == tmp_path != last.parent
    assert len(lines) == 2 and all(line.startswith('no snapshot of iteration ') for line in lines)
    whole = make_run(tmp_path / 'whole', n=6 - fails)
    whole.start()
    expected, found = (read_snapshot(path).arrays for path in (whole.snapshots.last, last))
    names = [name for name in expected if name.startswith('updater/model:main/')]
    assert names
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_deleted_snapshot_is_not_named(tmp_path):
    run = make_run(tmp_path, n=2)
    run.start()
    assert run.snapshots.last == tmp_path / 'snapshot_iter_2.npz'
    run.snapshots.last.unlink()
    assert run.snapshots.last is None


def test_a_last_state_that_cannot_be_saved_anywhere_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', os.fspath(tmp_path))
    monkeypatch.setattr(snapshot, 'write_snapshot', raiser(OSError(28, 'No space left on device', 'x')))
    run, lines = make_run(tmp_path / 'out', n=2), []
    run.snapshots._warn = lines.append
    run.start()
    assert lines == [
        'no snapshot of iteration 2: x: No space left on device',
        'no snapshot in a temporary folder: x: No space left on device',
    ]
    assert run.snapshots.last is None and not list(tmp_path.glob('mask_rcnn_*'))


def test_an_extension_that_fails_is_a_warning(tmp_path):
    class Failing(chainer.training.Extension):
        name, priority = 'curves', 10

        def initialize(self, trainer):
            raise OSError(28, 'No space left on device', 'x')

        def __call__(self, trainer):
            raise ZeroDivisionError('a\nb')

        def finalize(self):
            raise ValueError

    run, lines = make_run(tmp_path, n=3), []
    run.trainer.extend(Tolerant(Failing(), lines.append, run.signal_handler))
    run.start()
    assert run.trainer.updater.iteration == 3
    assert lines[0] == 'curves: x: No space left on device' and len(lines) == 3
    assert lines[1].startswith('curves: ZeroDivisionError: a b') and lines[2].startswith('curves: ValueError')


# Several processes, as threads


def collective(communicator, fails_at=None, rank=None):
    """Do what an evaluation does; ``fails_at`` is the number of the step that fails in the process ``rank``."""

    def check(step):
        if step == fails_at and communicator.rank == rank:
            raise OSError(2, 'No such file or directory', 'x.jpg')

    check(0)
    parts = communicator.gather(communicator.rank)
    check(1)
    result = communicator.broadcast_object(sum(parts) if communicator.rank == 0 else None)
    check(2)
    return result


@pytest.mark.parametrize('fails_at', [0, 1, 2])
@pytest.mark.parametrize('rank', [0, 2])
def test_an_action_that_fails_in_one_process_fails_in_all(fails_at, rank):
    def act(communicator):
        with pytest.raises(ProcessError) as error:
            run_together(communicator, lambda comm: collective(comm, fails_at, rank))
        assert not communicator.failed_together
        return str(error.value), run_together(communicator, collective)  # the processes are still in step

    assert Processes(3).run(act) == [(f'process {rank}: x.jpg: No such file or directory', 3)] * 3


def test_a_process_that_fails_in_an_update_ends_the_run_in_all(tmp_path):
    """Each ends with its state of the same iteration, which the main process saves."""

    def train(communicator):
        communicator.mean_gradients = lambda link: None
        communicator.mean = lambda values: dict.fromkeys(values, 1.0)
        run = make_run(tmp_path / str(communicator.rank), communicator=communicator)
        run.signal_handler.installed = run.signal_handler.interruptible  # threads have no signals
        if communicator.rank == 1:
            fail_in_iterator(run, raiser(ExampleError('x.jpg: gone')))
        try:
            run.start()
        except Exception as error:
            return type(error), str(error), run.snapshots.last, communicator.failed_together

    assert Processes(2).run(train) == [
        (ProcessError, 'process 1: x.jpg: gone', tmp_path / '0' / 'snapshot_iter_7.npz', True),
        (ExampleError, 'x.jpg: gone', None, True),
    ]


# Messages


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(28, 'No space left on device', 'x'), 'x: No space left on device'),
        (ExampleError('a.jpg: gone'), 'a.jpg: gone'),
        (KeyError('x'), "KeyError: 'x'"),
        (RuntimeError('a\nb'), 'RuntimeError: a b'),
        (ZeroDivisionError(), 'ZeroDivisionError'),
        (MemoryError(), 'not enough memory (more --subdivisions or a smaller --min-size need less)'),
    ],
)
def test_errors_are_described_in_one_line(error, line):
    assert describe_error(error) == line


def test_an_unexpected_error_names_its_place():
    with pytest.raises(TypeError) as error:
        Schedule(0.1, 0.1, 5).rate('x')
    assert 'mask_rcnn/training/schedule.py:' in describe_error(error.value)
