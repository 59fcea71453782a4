"""Stop signals: a run stops after its iteration, in all processes."""

import contextlib
import io
import signal
import sys
import threading

import pytest

from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.extensions import IntervalTrigger
from mask_rcnn.training.signals import STOP_SIGNALS, SignalHandler, StopTrigger
from mask_rcnn.training.snapshot import Snapshots
from tests.support.tiny_training import META, make_trainer


@pytest.mark.parametrize('number', sorted({*STOP_SIGNALS, signal.SIGALRM}))
def test_a_signal_stops_the_run_after_its_iteration(tmp_path, number):
    trainer = make_trainer(tmp_path)
    signal_handler = SignalHandler()
    trainer.stop_trigger = stop = StopTrigger(100, signal_handler, Communicator())
    trainer.extend(lambda t: signal.raise_signal(number), name='sender', trigger=IntervalTrigger(3))
    snapshots = Snapshots(META, {}, keep=1, warn=pytest.fail, print_line=pytest.fail)
    trainer.extend(snapshots, trigger=IntervalTrigger(0, also=stop))
    outer = signal.getsignal(number)
    try:
        if outer == signal.SIG_IGN:  # the tests were started with nohup
            signal.signal(number, signal.SIG_DFL)
        before = signal.getsignal(number)
        with signal_handler.installed():
            trainer.run()
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, outer)
    assert trainer.updater.iteration == 3 and stop.interrupted and signal_handler.signal == number
    assert snapshots.last == tmp_path / 'snapshot_iter_3.npz'


def test_the_first_signal_is_announced_at_once(capfd):
    signal_handler = SignalHandler()
    with signal_handler.installed():
        signal.raise_signal(signal.SIGTERM)
        first = capfd.readouterr()
        signal.raise_signal(signal.SIGUSR1)
    assert first.out == '' and first.err.startswith('SIGTERM: the run stops after this iteration;')
    assert first.err.count('\n') == 1 and capfd.readouterr() == ('', '')
    with (silent := SignalHandler(announces=False)).installed():  # another process than the main one
        signal.raise_signal(signal.SIGTERM)
    assert silent.signal == signal.SIGTERM and capfd.readouterr() == ('', '')


def test_a_signal_may_interrupt_a_print(monkeypatch, capfd):
    """The stream is locked while it writes; a print of the handler would raise an error."""

    class Raw(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            signal.raise_signal(signal.SIGTERM)
            return len(data)

    with SignalHandler().installed(), io.TextIOWrapper(io.BufferedWriter(Raw()), 'utf-8') as stream:
        monkeypatch.setattr(sys, 'stderr', stream)
        print('a line', file=stream, flush=True)
    monkeypatch.undo()
    assert capfd.readouterr().err.startswith('SIGTERM: ')


@pytest.mark.parametrize('count', [1, 2, 3])
def test_a_number_of_signals_stops_immediately(count):
    """The third signal does so at any place."""
    signal_handler, sent = SignalHandler(), []
    interruptible = signal_handler.interruptible(count) if count < 3 else contextlib.nullcontext()
    with signal_handler.installed(), pytest.raises(KeyboardInterrupt), interruptible:  # noqa: PT012  (any of them raises)
        for _ in range(5):
            sent.append(signal.raise_signal(signal.SIGTERM))
    assert len(sent) == count - 1


def test_a_signal_before_interruptible_work_prevents_it():
    signal_handler = SignalHandler()
    with signal_handler.installed():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), signal_handler.interruptible():
            pytest.fail('the work was started')


@pytest.mark.parametrize(('number', 'handles'), [(signal.SIGHUP, False), (signal.SIGINT, True)])
def test_an_ignored_signal_stays_ignored(number, handles):
    """As nohup expects; but shells ignore Ctrl-C in background jobs, which kill -INT must stop."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        signal_handler = SignalHandler()
        with signal_handler.installed():
            signal.raise_signal(number)
        assert (signal_handler.signal == number) == handles
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_timer_of_the_caller_keeps_its_handler():
    before = signal.signal(signal.SIGALRM, handler := lambda *arguments: None)
    try:
        with SignalHandler().installed():
            assert signal.getsignal(signal.SIGALRM) == handler
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGALRM, before)


def test_signals_are_left_alone_outside_of_the_main_thread():
    def run():
        with SignalHandler().installed():
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


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
