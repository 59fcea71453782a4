"""Snapshots: exact resuming, damaged files and full disks."""

import builtins
import errno
import json
import os
import zipfile

import chainer
import numpy as np
import pytest

from mask_rcnn.training import snapshot as snapshot_module
from mask_rcnn.training.extensions import IntervalTrigger, TrainingLog
from mask_rcnn.training.snapshot import (
    Snapshots,
    is_snapshot,
    list_snapshots,
    read_model_meta,
    read_options,
    read_snapshot,
    write_snapshot,
)
from mask_rcnn.weights import WeightFileError, read_weights
from tests.support.tiny_training import META, TinyTrainChain, arrays, make_trainer

OPTIONS = {'seed': 0, 'batch_size': 4}


def run(out, n, *, resume=None, every=0, keep=2, warn=pytest.fail, print_line=pytest.fail, data=None):
    """Train a tiny chain until iteration ``n``; return the trainer, its snapshots and its log."""
    trainer = make_trainer(out, stop=(n, 'iteration'), data=data)
    log = TrainingLog(trigger=IntervalTrigger(3), plot_trigger=IntervalTrigger(0), write=True, warn=warn)
    snapshots = Snapshots(META, OPTIONS, keep=keep, warn=warn, print_line=print_line)
    trainer.extend(log, trigger=(1, 'iteration'))
    trainer.extend(snapshots, trigger=IntervalTrigger(every))
    if resume:
        read_snapshot(resume).restore(trainer)
    trainer.run(show_loop_exception_msg=False)
    return trainer, snapshots, log


def chain_of(trainer):
    return trainer.updater.get_optimizer('main').target


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    """Momentum, position in the data and pending values of the log are restored as well."""
    whole, _, whole_log = run(tmp_path / 'whole', 12)
    run(tmp_path / 'first', 7, every=7)
    resumed, _, log = run(tmp_path / 'second', 12, resume=tmp_path / 'first' / 'snapshot_iter_7.npz')
    expected = arrays(chain_of(whole))
    for path, array in arrays(chain_of(resumed)).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert resumed.updater.iteration == 12 and resumed.updater.epoch == whole.updater.epoch

    def without_time(entries):
        return [{name: value for name, value in entry.items() if name != 'elapsed_time'} for entry in entries]

    assert without_time(log.log) == without_time(whole_log.log) and len(log.log) == 4
    assert json.loads((tmp_path / 'second' / 'log').read_text()) == log.log


def test_a_snapshot_describes_its_network_and_contains_no_pickle(tmp_path):
    run(tmp_path, 4, every=4)
    path = tmp_path / 'snapshot_iter_4.npz'
    assert is_snapshot(path) and not is_snapshot(tmp_path / 'model_iter_4.npz')
    snapshot = read_snapshot(path)
    assert (snapshot.iteration, snapshot.model, snapshot.options) == (4, META, OPTIONS)
    assert read_options(path) == OPTIONS and read_model_meta(path) == META
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
    model = read_weights(tmp_path / 'model_iter_4.npz')
    assert model.meta.class_names == ('a', 'b')
    for name, array in model.arrays.items():
        np.testing.assert_array_equal(array, snapshot.arrays[f'updater/model:main/model/{name}'])


def test_old_snapshots_are_removed_and_other_files_kept(tmp_path):
    for name in ('snapshot_iter_99.npz', 'snapshot_iter_x.npz', 'other.npz'):
        (tmp_path / name).write_bytes(b'')
    run(tmp_path, 9, every=2, keep=2)
    assert {path.name for path in tmp_path.glob('*.npz')} == {
        'snapshot_iter_6.npz',
        'snapshot_iter_8.npz',
        'model_iter_6.npz',
        'model_iter_8.npz',
        'snapshot_model.npz',
        'snapshot_iter_99.npz',
        'snapshot_iter_x.npz',
        'other.npz',
    }
    assert [n for n, _ in list_snapshots(tmp_path)] == [6, 8, 99]


def test_the_best_score_is_restored(tmp_path):
    trainer, snapshots, _ = run(tmp_path, 1)
    for score, is_better in ((0.2, True), (0.1, False), (float('nan'), False), (0.3, True)):
        chain_of(trainer).model.out.b.array[0] = score
        snapshots.save_if_best(trainer, score)
        stored = read_weights(tmp_path / 'model_best.npz').arrays['out/b'][0]
        assert (stored == np.float32(score)) == is_better
    snapshots.write(trainer)
    resumed, after, _ = run(tmp_path / 'more', 2, resume=tmp_path / 'snapshot_iter_1.npz')
    after.save_if_best(resumed, 0.25)
    assert not (tmp_path / 'more' / 'model_best.npz').exists()
    after.save_if_best(resumed, 0.35)
    assert (tmp_path / 'more' / 'model_best.npz').exists()


class FullDisk:
    """A replacement of ``open`` for a disk with a number of free bytes."""

    def __init__(self, free):
        self.free, self.open = free, builtins.open

    def __call__(self, path, mode='r', *args, **kwargs):
        file = self.open(path, mode, *args, **kwargs)
        if 'w' in mode and str(path).endswith('.part'):
            write = file.write

            class Limited:
                def __getattr__(_, name):
                    return getattr(file, name)

                def __enter__(_):
                    return _

                def __exit__(_, *error):
                    file.close()

                def write(_, data):
                    self.free -= len(data)
                    if self.free < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(data)

            return Limited()
        return file


@pytest.mark.parametrize('free', [0, 2000, 12000])
def test_a_full_disk_keeps_the_old_snapshot(tmp_path, monkeypatch, free):
    """The free bytes hold nothing, a part of the model, or the model but not the snapshot."""
    trainer, _, _ = run(tmp_path, 4, every=2, keep=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lines = []
    snapshots = Snapshots(META, OPTIONS, keep=1, warn=lines.append, print_line=pytest.fail)
    trainer.updater.iteration = 5
    monkeypatch.setattr(builtins, 'open', FullDisk(free))
    assert not snapshots.write(trainer)
    monkeypatch.undo()
    assert len(lines) == 1 and 'No space left on device' in lines[0] and '\n' not in lines[0]
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    after.pop('model_iter_5.npz', None)
    assert after == before and snapshots.last is None
    assert snapshots.write(trainer) and snapshots.last == tmp_path / 'snapshot_iter_5.npz'
    assert not (tmp_path / 'snapshot_iter_4.npz').exists()


@pytest.mark.parametrize('n', [2, 5, 6])
def test_the_newest_model_has_its_own_name(tmp_path, n):
    run(tmp_path, n, every=2)
    newest = tmp_path / 'snapshot_model.npz'
    assert newest.read_bytes() == (tmp_path / f'model_iter_{n // 2 * 2}.npz').read_bytes()
    assert not list(tmp_path.glob('*.old*'))


def test_a_newest_model_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / 'snapshot_model.npz').mkdir()
    lines = []
    _, snapshots, _ = run(tmp_path, 2, every=2, warn=lines.append)
    (line,) = lines
    assert line.startswith('the newest model is not saved: ') and 'is a folder' in line
    assert snapshots.last == tmp_path / 'snapshot_iter_2.npz' and (tmp_path / 'model_iter_2.npz').exists()


def foreign_files(folder):
    """Write files that are not native models under the name of the newest model; yield their contents."""
    path = folder / 'snapshot_model.npz'
    np.savez_compressed(path, **{'extractor/conv1/W': np.ones((2, 3), np.float32)})
    yield path.read_bytes()
    path.write_bytes(b'')
    yield b''
    (folder / 'a').mkdir()
    run(folder / 'a', 1, every=1)
    path.write_bytes((folder / 'a' / 'snapshot_iter_1.npz').read_bytes())
    yield path.read_bytes()


def test_the_only_result_of_the_old_program_is_kept(tmp_path):
    """At the first write, not before; a kept file is not replaced by a later one."""
    path, lines = tmp_path / 'snapshot_model.npz', []
    contents, names = [], ['snapshot_model.old.npz', 'snapshot_model.old.2.npz', 'snapshot_model.old.3.npz']
    for n, (content, name) in enumerate(zip(foreign_files(tmp_path), names, strict=True), start=1):
        run(tmp_path, n, every=5, print_line=lines.append)
        assert path.read_bytes() == content and len(lines) == n - 1
        run(tmp_path, 2 * n, every=n, print_line=lines.append)  # writes twice
        contents.append(content)
        assert [(tmp_path / kept).read_bytes() for kept in names[:n]] == contents
        assert lines[n - 1 :] == [f'{path} was not a model of this program and is kept as {tmp_path / name}']
        assert path.read_bytes() == (tmp_path / f'model_iter_{2 * n}.npz').read_bytes()
    assert len(list(tmp_path.glob('*.old*'))) == 3


def test_a_foreign_file_stays_if_no_snapshot_can_be_written(tmp_path, monkeypatch):
    trainer, snapshots, _ = run(tmp_path, 1, warn=lambda line: None)
    path = tmp_path / 'snapshot_model.npz'
    path.write_bytes(b'irreplaceable')
    monkeypatch.setattr(builtins, 'open', FullDisk(0))
    assert not snapshots.write(trainer)
    monkeypatch.undo()
    assert path.read_bytes() == b'irreplaceable'


def test_a_snapshot_is_not_written_twice(tmp_path):
    trainer, snapshots, _ = run(tmp_path, 2, every=2)
    stamp = os.stat(snapshots.last).st_mtime_ns
    assert snapshots.write(trainer)
    assert os.stat(snapshots.last).st_mtime_ns == stamp


def test_damaged_and_other_files_are_rejected_in_one_line(tmp_path):
    run(tmp_path, 2, every=2)
    good = (tmp_path / 'snapshot_iter_2.npz').read_bytes()
    path = tmp_path / 'bad.npz'
    for content in (b'', good[:-100], good[: len(good) // 2], b'PK' + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(WeightFileError) as error:
            read_snapshot(path)
        assert str(error.value).startswith(f'{path}: is not a snapshot') and '\n' not in str(error.value)
    with pytest.raises(WeightFileError, match='is not a snapshot'):
        read_snapshot(tmp_path / 'model_iter_2.npz')
    with pytest.raises(WeightFileError, match='No such file'):
        read_snapshot(tmp_path / 'none.npz')
    assert not is_snapshot(tmp_path / 'none.npz') and not is_snapshot(path)
    np.savez(path, snapshot=np.array([{}], object))
    with pytest.raises(WeightFileError, match='is not a snapshot'):
        read_snapshot(path)


@pytest.mark.parametrize(
    'header',
    [
        "{'descr': '<f4', 'shape': (2,",
        "{'descr': '<,f4', 'fortran_order': False, 'shape': (2, )}",
        "{'descr': (), 'fortran_order': False, 'shape': (2, )}",
        "{1: 2, 'a': 3}",
    ],
)
def test_damaged_headers_are_rejected_in_one_line(tmp_path, header):
    path = tmp_path / 'bad.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('snapshot.npy', b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode())
    assert is_snapshot(path)
    for read in (read_snapshot, read_options, read_model_meta):
        with pytest.raises(WeightFileError, match='is not a snapshot') as error:
            read(path)
        assert str(error.value).isprintable()


@pytest.mark.parametrize('compression', [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_archives_are_rejected(tmp_path, compression):
    run(tmp_path, 2, every=2)
    with (
        zipfile.ZipFile(tmp_path / 'snapshot_iter_2.npz') as archive,
        zipfile.ZipFile(tmp_path / 'packed.npz', 'w', compression) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    for read in (read_snapshot, read_options, read_model_meta):
        with pytest.raises(WeightFileError, match='its members are compressed'):
            read(tmp_path / 'packed.npz')


def test_archives_of_an_unknown_version_are_not_snapshots(tmp_path):
    run(tmp_path, 2, every=2)
    path = tmp_path / 'snapshot_iter_2.npz'
    data = bytearray(path.read_bytes())
    data[data.rindex(b'PK\x01\x02') + 6] = 99  # version needed to extract
    path.write_bytes(data)
    assert not is_snapshot(path)


def test_a_snapshot_of_another_network_is_rejected(tmp_path):
    class Wider(TinyTrainChain):
        def __init__(self):
            super().__init__()
            with self.model.init_scope():
                self.model.more = chainer.links.Linear(2, 2)

    run(tmp_path, 2, every=2)
    trainer = make_trainer(tmp_path, chain=Wider())
    with pytest.raises(WeightFileError, match='model/more'):
        read_snapshot(tmp_path / 'snapshot_iter_2.npz').restore(trainer)


def test_none_is_restored_as_none(tmp_path):
    class Memory(chainer.training.Extension):
        value = None

        def __call__(self, trainer):
            pass

        def serialize(self, serializer):
            self.value = serializer('value', self.value)

    trainer = make_trainer(tmp_path, stop=(1, 'iteration'))
    trainer.extend(Memory(), name='memory')
    trainer.run()
    write_snapshot(tmp_path / 'x.npz', trainer, META, OPTIONS)
    resumed = make_trainer(tmp_path)
    memory = Memory()
    memory.value = 3
    resumed.extend(memory, name='memory')
    read_snapshot(tmp_path / 'x.npz').restore(resumed)
    assert memory.value is None


def test_newer_snapshots_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot_module, 'FORMAT_VERSION', 2)
    run(tmp_path, 2, every=2)
    monkeypatch.undo()
    for read in (read_snapshot, read_options, read_model_meta):
        with pytest.raises(WeightFileError, match='newer'):
            read(tmp_path / 'snapshot_iter_2.npz')
    with zipfile.ZipFile(tmp_path / 'snapshot_iter_2.npz') as archive:
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def test_a_snapshot_that_lacks_the_state_of_an_extension_is_rejected(tmp_path):
    """Chainer only warns, and guesses the state of the trigger."""
    trainers = [make_trainer(tmp_path, stop=(1, 'iteration')) for _ in range(2)]
    for trainer in trainers:
        trainer.extend(lambda trainer: None, name='periodic', trigger=(3, 'epoch'))
    trainers[0].run()
    write_snapshot(tmp_path / 'x.npz', trainers[0], META, OPTIONS)
    snapshot = read_snapshot(tmp_path / 'x.npz')
    snapshot.restore(trainers[1])
    (name,) = [name for name in snapshot.arrays if name.endswith('periodic/previous_epoch_detail')]
    del snapshot.arrays[name]
    with pytest.raises(WeightFileError, match='is not a complete snapshot: .*epoch_detail'):
        snapshot.restore(trainers[1])
