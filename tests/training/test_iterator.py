import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import chainer
import numpy as np
import pytest

from mask_rcnn.config import PRESETS
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.training.iterator import ExampleError, ExampleIterator, WorkerError, example_seed

CONFIG = PRESETS['resnet50'].replace(min_size=32, max_size=64)
SHAPES = ShapesDataset(7, size=32)


def name_and_seed(example, seed):
    """A transform without work: what the order consists of."""
    return example, seed


class BrokenAt:
    """A data set with one bad image; at module level, so that worker processes find it."""

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


class Suicidal(BrokenAt):
    def __getitem__(self, i):
        if i == self.index:
            os.kill(os.getpid(), signal.SIGKILL)
        return i


def iterate(n_batches, batch_size=2, dataset=range(7), transform=name_and_seed, **options):
    iterator = ExampleIterator(dataset, transform, batch_size, **options)
    try:
        return [iterator.next() for _ in range(n_batches)]
    finally:
        iterator.finalize()


def flat(batches):
    return [example for batch in batches for example in batch]


def test_every_epoch_is_a_permutation():
    examples = flat(iterate(14, batch_size=3))
    epochs = [[index for index, _ in examples[7 * e : 7 * e + 7]] for e in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({seed for _, seed in examples}) == len(examples)
    assert all(0 <= seed < 2**32 for _, seed in examples)


def test_order_without_shuffling():
    assert [[i for i, _ in batch] for batch in iterate(4, shuffle=False)] == [[0, 1], [2, 3], [4, 5], [6, 0]]


def test_one_epoch():
    iterator = ExampleIterator(range(7), name_and_seed, 3, repeat=False, shuffle=False)
    for _ in range(2):
        assert [[i for i, _ in batch] for batch in iterator] == [[0, 1, 2], [3, 4, 5], [6]]
        assert iterator.epoch == 1 and iterator.is_new_epoch
        with pytest.raises(StopIteration):
            iterator.next()
        iterator.reset()


def test_examples_do_not_depend_on_the_batch_size():
    assert flat(iterate(12, batch_size=1)) == flat(iterate(3, batch_size=4))


def test_examples_depend_on_the_seed_of_the_run():
    a, b = flat(iterate(4, seed=0)), flat(iterate(4, seed=1))
    assert [i for i, _ in a] != [i for i, _ in b] and not {s for _, s in a} & {s for _, s in b}
    assert example_seed(3, 4) == example_seed(3, 4) != example_seed(4, 3)


def test_epochs_are_counted_as_in_chainer():
    ours = ExampleIterator(range(7), name_and_seed, 3)
    theirs = chainer.iterators.SerialIterator(list(range(7)), 3)
    for _ in range(8):
        ours.next(), theirs.next()
        for name in ('epoch', 'is_new_epoch', 'epoch_detail', 'previous_epoch_detail'):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name))
    ours = ExampleIterator(range(7), name_and_seed, 3)
    assert ours.epoch == 0 and ours.epoch_detail == 0 and ours.previous_epoch_detail is None


@pytest.mark.parametrize('repeat', [True, False])
def test_parts_of_processes_make_up_the_batch_of_one(repeat):
    whole = iterate(2, batch_size=6, repeat=repeat)
    parts = [iterate(2, batch_size=2, repeat=repeat, shard=(rank, 3)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts):
        assert flat(shares) == batch


def make_saved(iterator):
    file = io.BytesIO()
    chainer.serializers.save_npz(file, iterator)
    file.seek(0)
    return file


@pytest.mark.parametrize('workers', [0, 1])
def test_resumed_run_continues_exactly(workers):
    def make(seed=5):
        return ExampleIterator(range(7), name_and_seed, 3, seed=seed, workers=workers)

    first = make()
    [first.next() for _ in range(4)]
    saved = make_saved(first)
    expected = [first.next() for _ in range(4)]
    second = make(seed=6)  # the saved seed wins
    second.next()  # ... over what was prepared as well
    chainer.serializers.load_npz(saved, second)
    assert second.epoch_detail == 12 / 7 and second.previous_epoch_detail == 9 / 7
    assert not second.is_new_epoch and second.epoch == 1
    assert [second.next() for _ in range(4)] == expected
    first.finalize(), second.finalize()


def test_another_data_set_cannot_resume():
    saved = make_saved(ExampleIterator(range(7), name_and_seed, 3))
    with pytest.raises(ValueError, match='had 7 training images, this one has 8'):
        chainer.serializers.load_npz(saved, ExampleIterator(range(8), name_and_seed, 3))


def test_state_before_the_first_batch_can_be_saved():
    iterator = ExampleIterator(range(7), name_and_seed, 3)
    chainer.serializers.load_npz(make_saved(iterator), iterator)
    assert iterator.previous_epoch_detail is None


def test_workers_make_the_same_examples():
    transform = TrainingTransform(CONFIG)
    alone, with_help = (iterate(5, 3, SHAPES, transform, workers=workers) for workers in (0, 2))
    assert [len(batch) for batch in with_help] == [3] * 5
    for a, b in zip(flat(alone), flat(with_help)):
        assert (a.name, a.seed, a.image_transform) == (b.name, b.seed, b.image_transform)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.annotations.boxes, b.annotations.boxes)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (ValueError('image4.jpg: the image is damaged'), 'image4.jpg: the image is damaged'),
        (KeyError('some\nthing'), r"image4.jpg: KeyError: 'some\nthing'"),
    ],
)
def test_errors_name_the_image(workers, error, message):
    iterator = ExampleIterator(BrokenAt(4, error), name_and_seed, 2, workers=workers, shuffle=False)
    iterator.next(), iterator.next()
    with pytest.raises(ExampleError) as caught:
        iterator.next()
    assert str(caught.value) == message
    assert 'Traceback' in caught.value.details and '__getitem__' in caught.value.details
    iterator.finalize()


@pytest.mark.parametrize('workers', [0, 1])
def test_batch_can_be_asked_for_again_after_an_error(workers):
    iterator = ExampleIterator(BrokenAt(1, ValueError('broken')), name_and_seed, 2, workers=workers, shuffle=False)
    for _ in range(2):
        with pytest.raises(ExampleError, match='image1.jpg: broken'):
            iterator.next()
    iterator.finalize()


def test_worker_that_dies_is_reported():
    iterator = ExampleIterator(Suicidal(2, None), name_and_seed, 2, workers=1, shuffle=False)
    iterator.next()
    with pytest.raises(WorkerError, match='ended unexpectedly'):
        iterator.next()
    iterator.finalize()


def test_data_set_that_cannot_be_sent():
    with pytest.raises(ValueError, match='cannot be sent to worker processes'):
        ExampleIterator([lambda: None], name_and_seed, 1, workers=1)


def test_finalize_ends_the_workers():
    import multiprocessing

    iterator = ExampleIterator(SHAPES, name_and_seed, 2, workers=1)
    iterator.next()
    assert [p.name for p in multiprocessing.active_children()] == ['mask_rcnn examples']
    iterator.finalize()
    iterator.finalize()
    assert multiprocessing.active_children() == []


def test_workers_end_with_an_iterator_that_nobody_uses():
    import multiprocessing

    iterator = ExampleIterator(SHAPES, name_and_seed, 2, workers=1)
    del iterator
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings('error')  # what is half made must still go quietly
@pytest.mark.parametrize(
    'options',
    [
        dict(batch_size=0),
        dict(workers=-1),
        dict(seed=-1),
        dict(seed=2**32),
        dict(shard=(2, 2)),
        dict(shard=(-1, 2)),
        dict(dataset=[]),
    ],
)
def test_bad_arguments(options):
    arguments = {'dataset': range(7), 'transform': name_and_seed, 'batch_size': 2, **options}
    with pytest.raises(ValueError):
        ExampleIterator(**arguments)


# How a run ends.  In processes of their own, because they are killed.

needs_proc = pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')

PROGRAM = textwrap.dedent("""
    import multiprocessing
    import signal
    import sys
    import time

    import mask_rcnn
    from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
    from mask_rcnn.datasets.transforms import TrainingTransform
    from mask_rcnn.training.iterator import ExampleIterator

    if __name__ == '__main__':
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        config = mask_rcnn.PRESETS['resnet50'].replace(min_size=32, max_size=64)
        iterator = ExampleIterator(ShapesDataset(9, size=32), TrainingTransform(config), 4, workers=2)
        if 'at once' not in sys.argv[1]:
            iterator.next()
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        if 'fails' in sys.argv[1]:
            raise RuntimeError('the run fails')
        while 'goes on' in sys.argv[1]:
            iterator.next()
            time.sleep(0.01)
""")


@pytest.fixture
def start(tmp_path, root):
    """Start the program in a process group of its own; returns it and its workers."""
    started = []

    def start_program(manner):
        (tmp_path / 'program.py').write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / 'program.py'), manner],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=root,
            env={**os.environ, 'PYTHONPATH': str(root)},
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


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = [pid for pid in pids if is_running(pid)]
        if not pids:
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@needs_proc
@pytest.mark.parametrize(('manner', 'status'), [('ends', 0), ('fails at once', 1)])
def test_run_that_forgets_to_finalize_ends(start, manner, status):
    process, workers = start(manner)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors.count('Traceback') == status
    assert wait_until_gone(workers)


@needs_proc
def test_workers_end_when_the_parent_is_killed(start):
    process, workers = start('goes on')
    assert all(map(is_running, workers))
    process.kill()
    assert wait_until_gone(workers)
    assert process.communicate(timeout=10)[1] == ''


@needs_proc
@pytest.mark.parametrize('manner', ['goes on', 'goes on at once'])
def test_signals_to_the_whole_group_are_the_parents_affair(start, manner):
    """Ctrl-C, or a scheduler's SIGTERM, reaches all processes; only the parent may say or do something."""
    process, workers = start(manner)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None and all(map(is_running, workers))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert errors.count('Traceback') == 1 and 'KeyboardInterrupt' in errors
    assert wait_until_gone(workers)
