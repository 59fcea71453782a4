"""Stop signals: a run stops after its iteration, in all processes."""

import os
import signal
import threading

import pytest

from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.extensions import IntervalTrigger
from mask_rcnn.training.signals import SignalHandler, StopTrigger
from mask_rcnn.training.snapshot import Snapshots
from tests.support.tiny_training import META, make_trainer


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_run_after_its_iteration(tmp_path, number):
    trainer = make_trainer(tmp_path)
    signal_handler = SignalHandler()
    trainer.stop_trigger = stop = StopTrigger(100, signal_handler, Communicator())
    trainer.extend(lambda t: os.kill(os.getpid(), number), name='sender', trigger=IntervalTrigger(3))
    snapshots = Snapshots(META, {}, keep=1, warn=pytest.fail, print_line=pytest.fail)
    trainer.extend(snapshots, trigger=IntervalTrigger(0, also=stop))
    before = signal.getsignal(number)
    with signal_handler.installed():
        trainer.run()
    assert trainer.updater.iteration == 3 and stop.interrupted and signal_handler.signal == number
    assert snapshots.last == tmp_path / 'snapshot_iter_3.npz'
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_immediately():
    signal_handler = SignalHandler()
    with signal_handler.installed(), pytest.raises(KeyboardInterrupt):  # noqa: PT012  (the second signal raises)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(5)


def test_the_last_iteration_is_not_an_interruption(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.stop_trigger = stop = StopTrigger(3, SignalHandler(), Communicator())
    trainer.run()
    assert trainer.updater.iteration == 3 and not stop.interrupted


def test_all_processes_stop_together(tmp_path):
    class Partner(Communicator):
        calls = 0

        def any(self, flag):
            self.calls += 1
            return self.calls > 2  # the other process gets the signal in the second iteration

    trainer = make_trainer(tmp_path)
    communicator = Partner()
    trainer.stop_trigger = stop = StopTrigger(100, SignalHandler(), communicator)
    trainer.extend(lambda t: None, name='second caller', trigger=lambda t: stop(t))
    trainer.run()
    assert trainer.updater.iteration == 2 and stop.interrupted
    assert communicator.calls == 3  # once per iteration, for any number of callers
