"""The order of training examples, their seeds, and resuming."""

import io

import chainer
import numpy as np
import pytest

from mask_rcnn.config import PRESETS
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.training.iterator import ExampleIterator, example_seed

CONFIG = PRESETS['resnet50'].replace(min_size=32, max_size=64)
SHAPES = ShapesDataset(7, size=32)


def index_and_seed(example, seed):
    """A transform that returns its arguments."""
    return example, seed


def iterate(n_batches, batch_size=2, dataset=range(7), transform=index_and_seed, **options):
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


def test_without_repeat_there_is_one_epoch():
    iterator = ExampleIterator(range(7), index_and_seed, 3, repeat=False, shuffle=False)
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
    iterator = ExampleIterator(range(7), index_and_seed, 3)
    reference = chainer.iterators.SerialIterator(list(range(7)), 3)
    for _ in range(8):
        iterator.next(), reference.next()
        for name in ('epoch', 'is_new_epoch', 'epoch_detail', 'previous_epoch_detail'):
            assert getattr(iterator, name) == pytest.approx(getattr(reference, name))
    iterator = ExampleIterator(range(7), index_and_seed, 3)
    assert iterator.epoch == 0 and iterator.epoch_detail == 0 and iterator.previous_epoch_detail is None


@pytest.mark.parametrize('repeat', [True, False])
def test_the_shards_of_all_processes_are_the_batch_of_one(repeat):
    whole = iterate(2, batch_size=6, repeat=repeat)
    parts = [iterate(2, batch_size=2, repeat=repeat, shard=(rank, 3)) for rank in range(3)]
    for batch, *shards in zip(whole, *parts, strict=True):
        assert flat(shards) == batch


def save(iterator):
    """Return a file with the iterator's state."""
    file = io.BytesIO()
    chainer.serializers.save_npz(file, iterator)
    file.seek(0)
    return file


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_continues_exactly(workers):
    def make(seed=5):
        return ExampleIterator(range(7), index_and_seed, 3, seed=seed, workers=workers)

    first = make()
    [first.next() for _ in range(4)]
    saved = save(first)
    expected = [first.next() for _ in range(4)]
    second = make(seed=6)  # the saved seed replaces it
    second.next()  # pending examples are discarded
    chainer.serializers.load_npz(saved, second)
    assert second.epoch_detail == 12 / 7 and second.previous_epoch_detail == 9 / 7
    assert not second.is_new_epoch and second.epoch == 1
    assert [second.next() for _ in range(4)] == expected
    first.finalize(), second.finalize()


def test_another_dataset_cannot_resume():
    saved = save(ExampleIterator(range(7), index_and_seed, 3))
    with pytest.raises(ValueError, match='had 7 training images, this one has 8'):
        chainer.serializers.load_npz(saved, ExampleIterator(range(8), index_and_seed, 3))


def test_the_state_before_the_first_batch_can_be_saved():
    iterator = ExampleIterator(range(7), index_and_seed, 3)
    chainer.serializers.load_npz(save(iterator), iterator)
    assert iterator.previous_epoch_detail is None


def test_workers_return_the_same_examples():
    transform = TrainingTransform(CONFIG)
    alone, with_workers = (iterate(5, 3, SHAPES, transform, workers=workers) for workers in (0, 2))
    assert [len(batch) for batch in with_workers] == [3] * 5
    for a, b in zip(flat(alone), flat(with_workers), strict=True):
        assert (a.name, a.seed, a.image_transform) == (b.name, b.seed, b.image_transform)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.annotations.boxes, b.annotations.boxes)


@pytest.mark.filterwarnings('error')  # an incomplete object must be collected without warnings
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(batch_size=0), 'batch_size >= 1.* got 0,'),
        (dict(workers=-1), 'workers >= 0.* got 2, -1,'),
        (dict(seed=-1), '0 <= seed.* got 2, 0, -1,'),
        (dict(seed=2**32), 'got 2, 0, 4294967296,'),
        (dict(shard=(2, 2)), 'rank < size, got 2, 0, 0, 2 and 2'),
        (dict(shard=(-1, 2)), 'rank < size, got 2, 0, 0, -1 and 2'),
        (dict(dataset=[]), 'the dataset is empty'),
    ],
)
def test_invalid_arguments_are_rejected(options, message):
    arguments = {'dataset': range(7), 'transform': index_and_seed, 'batch_size': 2, **options}
    with pytest.raises(ValueError, match=message):
        ExampleIterator(**arguments)
