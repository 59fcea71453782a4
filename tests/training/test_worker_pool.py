"""Worker processes: errors in examples, and the end of the workers with their run."""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.training.iterator import ExampleIterator
from mask_rcnn.training.worker_pool import ExampleError, WorkerError
from tests.support.environment import subprocess_environment

SHAPES = ShapesDataset(7, size=32)


def index_and_seed(example, seed):
    """A transform that returns its arguments."""
    return example, seed


class BrokenAt:
    """A dataset with one bad image, at module level so that worker processes can import it."""

    def __init__(self, index, error):
        self.index, self.error = index, error

    def __len__(self):
        return 6

    def __getitem__(self, i):
        if i == self.index:
            raise self.error
        return i

    def image_name(self, i):
        return f'image{i}.jpg'


class KillsItself(BrokenAt):
    """A dataset whose bad image kills the process."""

    def __getitem__(self, i):
        if i == self.index:
            os.kill(os.getpid(), signal.SIGKILL)
        return i


def test_workers_ignore_stop_signals_that_cannot_be_blocked(monkeypatch):
    """Windows has no masks of signals, and its terminals send Ctrl-C and Ctrl-Break to all processes."""
    monkeypatch.setattr('mask_rcnn.training.worker_pool._stop_signals_blocked', contextlib.nullcontext)
    iterator = ExampleIterator(BrokenAt(-1, None), index_and_seed, 2, workers=1, shuffle=False)
    iterator.next()
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert len(iterator.next()) == 2 and worker.is_alive()
    iterator.finalize()


DAMAGED = ValueError('image4.jpg: the image is damaged'), 'image4.jpg: the image is damaged'
NO_KEY = KeyError('some\nthing'), r"image4.jpg: KeyError: 'some\nthing'"


@pytest.mark.parametrize(
    ('workers', 'error', 'message'),
    [(0, *DAMAGED), (0, *NO_KEY), *(pytest.param(1, *error, marks=pytest.mark.slow) for error in (DAMAGED, NO_KEY))],
)
def test_errors_name_the_image(workers, error, message):
    iterator = ExampleIterator(BrokenAt(4, error), index_and_seed, 2, workers=workers, shuffle=False)
    iterator.next(), iterator.next()
    with pytest.raises(ExampleError) as caught:
        iterator.next()
    assert str(caught.value) == message
    assert 'Traceback' in caught.value.details and '__getitem__' in caught.value.details
    iterator.finalize()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_batch_can_be_requested_again_after_an_error(workers):
    iterator = ExampleIterator(BrokenAt(1, ValueError('broken')), index_and_seed, 2, workers=workers, shuffle=False)
    for _ in range(2):
        with pytest.raises(ExampleError, match='image1.jpg: broken'):
            iterator.next()
    iterator.finalize()


def test_a_killed_worker_is_reported():
    iterator = ExampleIterator(KillsItself(2, None), index_and_seed, 2, workers=1, shuffle=False)
    iterator.next()
    with pytest.raises(WorkerError, match='ended unexpectedly'):
        iterator.next()
    iterator.finalize()


def test_a_dataset_that_cannot_be_pickled_is_rejected():
    with pytest.raises(ValueError, match='cannot be sent to worker processes'):
        ExampleIterator([lambda: None], index_and_seed, 1, workers=1)


def test_finalize_ends_the_workers():
    iterator = ExampleIterator(SHAPES, index_and_seed, 2, workers=1)
    iterator.next()
    assert [p.name for p in multiprocessing.active_children()] == ['mask_rcnn examples']
    iterator.finalize()
    iterator.finalize()
    assert multiprocessing.active_children() == []


def test_workers_end_when_the_iterator_is_collected():
    iterator = ExampleIterator(SHAPES, index_and_seed, 2, workers=1)
    del iterator
    assert multiprocessing.active_children() == []


# The end of a run, in separate processes, because they are killed.

needs_proc = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')

PROGRAM = textwrap.dedent("""
    import multiprocessing
    import signal
    import sys

    import mask_rcnn
    from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
    from mask_rcnn.datasets.transforms import TrainingTransform
    from mask_rcnn.training.iterator import ExampleIterator

    if __name__ == '__main__':
        interrupts = []
        if sys.argv[1] == 'continues':  # an interrupt ends it between two batches, as it ends a run
            signal.signal(signal.SIGINT, lambda *arguments: interrupts.append(arguments))
        else:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
        config = mask_rcnn.PRESETS['resnet50'].replace(min_size=32, max_size=64)
        iterator = ExampleIterator(ShapesDataset(9, size=32), TrainingTransform(config), 4, workers=2)
        if 'immediately' not in sys.argv[1]:
            iterator.next()
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        if 'fails' in sys.argv[1]:
            raise RuntimeError('the run fails')
        while 'continues' in sys.argv[1]:
            iterator.next()
            if interrupts:
                raise KeyboardInterrupt
""")


@pytest.fixture
def start(tmp_path, root):
    """Start the program in its own process group; return the process and the ids of its workers."""
    started = []

    def start_program(mode):
        (tmp_path / 'program.py').write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / 'program.py'), mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=root,
            env=subprocess_environment(root),
        )
        started.append(process)
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        return process, workers

    yield start_program
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_gone(pids, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = [pid for pid in pids if is_running(pid)]
        if not pids:
            return True
        time.sleep(0.05)
    return False


def count_uncaught_errors(errors):
    """Return the number of uncaught errors on stderr; a chained error prints one traceback per link."""
    links = re.findall('^During handling of the above|^The above exception was the direct cause', errors, re.M)
    return errors.count('Traceback (most recent call last)') - len(links)


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def pending_and_blocked(pid):
    """Return the signals that have arrived at a process and are blocked."""
    with open(f'/proc/{pid}/status') as file:
        fields = dict(line.split(':', 1) for line in file)
    bits = int(fields['ShdPnd'], 16) & int(fields['SigBlk'], 16)
    return {number for number in signal.valid_signals() if bits >> (number - 1) & 1}


@needs_proc
@pytest.mark.parametrize(
    ('mode', 'status'), [pytest.param('ends', 0, marks=pytest.mark.slow), ('fails immediately', 1)]
)
def test_a_run_without_finalize_ends(start, mode, status):
    process, workers = start(mode)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    assert count_uncaught_errors(errors) == status
    assert wait_until_gone(workers)


@pytest.mark.slow
@needs_proc
def test_workers_end_when_the_parent_is_killed(start):
    process, workers = start('continues')
    assert all(map(is_running, workers))
    process.kill()
    assert wait_until_gone(workers)
    assert process.communicate(timeout=120)[1] == ''


@needs_proc
@pytest.mark.parametrize('mode', [pytest.param('continues', marks=pytest.mark.slow), 'continues immediately'])
def test_only_the_parent_handles_signals_to_the_group(start, mode):
    """Ctrl-C or a scheduler's SIGTERM reaches all processes; only the parent may print or end."""
    process, workers = start(mode)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    assert process.poll() is None
    for pid in workers:
        assert is_running(pid) and signal.SIGTERM in pending_and_blocked(pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    # Without a handler, it may interrupt an exception handler.
    assert count_uncaught_errors(errors) == 1 and errors.endswith('KeyboardInterrupt\n')
    assert wait_until_gone(workers)
