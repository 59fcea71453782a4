"""The native weight file format."""

import copy
import errno
import io
import json
import os
import random
import zipfile

import chainer
import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.io import temporary_file
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, load_arrays, read_weights, write_weights
from tests.support.damage import bit_flips, truncations

META = ModelMeta(
    kind='model',
    config=Config(extractor='resnet101', n_fg_class=2, min_size=600, anchor_sizes=(16, 32.5)),
    class_names=('cat', 'gro\xdfer Hund'),
    category_ids=(17, 18),
    source=Source('model_final.pkl', 'ab' * 32, 'detectron-pickle'),
    skipped={'momentum': 3},
    notes=('a note',),
)

ARRAYS = {
    'a/W': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    'a/b': np.float16([1, 2]),
    'n': np.array(7),
    'empty': np.empty((0, 3), np.float32),
    'transposed': np.arange(6.0).reshape(2, 3).T,
}


def test_round_trip(tmp_path):
    path = tmp_path / 'w.npz'
    write_weights(path, ARRAYS, META)
    got = read_weights(path)
    assert got.meta == META
    assert list(got.arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert got.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(got.arrays[name], array, strict=True)
    assert os.listdir(tmp_path) == ['w.npz']


def test_numpy_reads_the_file_and_equal_weights_make_equal_files(tmp_path):
    for name, arrays in (('1.npz', ARRAYS), ('2.npz', dict(reversed(ARRAYS.items())))):
        write_weights(tmp_path / name, arrays, META)
    assert (tmp_path / '1.npz').read_bytes() == (tmp_path / '2.npz').read_bytes()
    with np.load(tmp_path / '1.npz', allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive['a/W'], ARRAYS['a/W'])
        meta = json.loads(archive['meta'].tobytes())
    assert meta['format_version'] == 1 and meta['config']['extractor'] == 'resnet101'


def test_meta_of_a_backbone_without_source():
    meta = ModelMeta('backbone', Config())
    assert ModelMeta.from_json(meta.to_json()) == meta


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'kind': 'other'}, 'kind must be'),
        ({'class_names': ('one',)}, '1 class_names for 2'),
        ({'category_ids': ()}, '0 category_ids for 2'),
    ],
)
def test_inconsistent_meta_is_refused(changes, reason):
    fields = {
        'kind': 'model',
        'config': META.config,
        'class_names': META.class_names,
        'category_ids': META.category_ids,
    }
    with pytest.raises(ValueError, match=reason):
        ModelMeta(**{**fields, **changes})


def changed_meta(**changes):
    return json.dumps(json.loads(META.to_json()) | changes)


def changed_config(**changes):
    return changed_meta(config=META.config.to_dict() | changes)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('[]', 'not the metadata'),
        ('{}', 'not the metadata'),
        ('{', 'Expecting'),
        ('[' * 100_000, 'nested too deeply'),
        (changed_meta(format_version=2), 'version 2 is newer'),
        (changed_meta(format_version='1'), 'not the metadata'),
        (changed_meta(more=1), "unknown: \\['more'\\]"),
        (changed_meta(class_names='ab'), 'field class_names must be a list of strings'),
        (changed_meta(category_ids=[1, 2.5]), 'field category_ids must be a list of integers'),
        (changed_meta(source={'file': 1}), 'field source must be null or an object with the strings file'),
        (changed_meta(left=[1]), 'field left must be an object of integers'),
        (changed_meta(notes=[1]), 'field notes'),
        (changed_meta(config=5), 'field config must be an object'),
        (changed_config(min_size='x'), 'field config'),
        (changed_config(anchor_sizes=[]), 'field config'),
        (changed_config(roi_align=1), 'field config'),
        (changed_config(nms_threshold=float('nan')), 'field config'),
        (changed_config(dialect='x'), 'dialect'),
        (changed_config(extractor='x'), 'extractor must be'),
        (changed_config(new=1), 'unknown'),
    ],
)
def test_bad_meta_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        ModelMeta.from_json(text)


@pytest.mark.parametrize(
    ('arrays', 'reason'),
    [
        ({'meta': np.zeros(1, np.float32)}, 'cannot be the name'),
        ({'': np.zeros(1, np.float32)}, 'cannot be'),
        ({'a': np.array([None])}, 'a is object'),
        ({'a': np.array(['text'])}, 'a is <U4'),
    ],
)
def test_unsupported_arrays_are_refused(tmp_path, arrays, reason):
    with pytest.raises(ValueError, match=reason):
        write_weights(tmp_path / 'w.npz', arrays, META)
    assert not os.listdir(tmp_path)


class FullDisk(io.RawIOBase):
    """A file on a disk with 1000 free bytes."""

    def __init__(self, path, mode, **options):
        self._file = open(path, mode, **options)  # noqa: SIM115  (close() closes it)

    def fileno(self):
        return self._file.fileno()

    def writable(self):
        return True

    def write(self, data):
        if self._file.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return self._file.write(data)

    def tell(self):
        return self._file.tell()

    def truncate(self, size=None):
        return self._file.truncate(size)

    def close(self):
        self._file.close()
        super().close()


def test_a_full_disk_leaves_the_old_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / 'w.npz'
    path.write_text('old')
    monkeypatch.setattr(temporary_file, 'open', FullDisk, raising=False)
    with pytest.raises(WeightFileError, match='w.npz: cannot be written: No space left on device'):
        write_weights(path, ARRAYS, META)
    assert os.listdir(tmp_path) == ['w.npz'] and path.read_text() == 'old'


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(WeightFileError, match='No such file or directory'):
        write_weights(tmp_path / 'no' / 'w.npz', ARRAYS, META)
    with pytest.raises(WeightFileError, match='is a folder'):
        write_weights(tmp_path, ARRAYS, META)


# Damaged and foreign files


def archive_with(path, members, compression=zipfile.ZIP_STORED):
    """Write an ``.npz`` with valid metadata and members that are arrays or raw ``.npy`` bytes."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, data in {'meta': np.frombuffer(META.to_json().encode(), np.uint8), **members}.items():
            if isinstance(data, np.ndarray):
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, data)
                data = buffer.getvalue()
            archive.writestr(f'{name}.npy', data)


def npy(header, data=b''):
    header = header.encode().ljust(117) + b'\n'
    return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + data


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"

FOREIGN = {
    'object array': (np.array([print], object), 'not a plain array'),
    'text': (np.array(['a']), 'not a plain array'),
    'structured': (np.zeros(2, 'f4,i4'), 'not a plain array'),
    'uint8': (np.zeros(2, np.uint8), 'x is uint8'),
    'fortran order': (np.asfortranarray(np.zeros((2, 3))), 'not a plain array'),
    'many axes': (npy(FLOATS % ('(' + '1, ' * 33 + ')'), bytes(4)), 'not a plain array'),
    'unknown type': (npy(FLOATS.replace('<f4', '|f1') % '(3,)', bytes(3)), 'not a plain array'),
    'digits': (npy(FLOATS % ('(' + '1' * 60 + ')'), bytes(4)), 'not a plain array'),
    'huge': (npy(FLOATS % '(1099511627776, 1024)'), 'size that its header'),
    'negative': (npy(FLOATS % '(-1, -2)', bytes(8)), 'not a plain array'),
    'too short': (npy(FLOATS % '(3,)', bytes(8)), 'size that its header'),
    'too long': (npy(FLOATS % '(1,)', bytes(8)), 'size that its header'),
    'expression': (npy("__import__('os').system('true')"), 'not a plain array'),
    'nested header': (npy('[' * 100), 'not a plain array'),
    'no magic': (b'abc', 'not a plain array'),
    'version 3': (b'\x93NUMPY\x03\x00' + bytes(20), 'not a plain array'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign_members_are_refused(tmp_path, name):
    data, reason = FOREIGN[name]
    archive_with(tmp_path / 'w.npz', {'x': data})
    with pytest.raises(WeightFileError, match=reason) as caught:
        read_weights(tmp_path / 'w.npz')
    assert str(caught.value).isprintable()


def test_compressed_and_overlapping_archives_are_refused(tmp_path):
    archive_with(tmp_path / 'w.npz', {'x': np.zeros(10**6, np.float32)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightFileError, match='compressed'):
        read_weights(tmp_path / 'w.npz')
    np.savez(tmp_path / 'other.npz', a=np.zeros(3))
    with pytest.raises(WeightFileError, match='needs the member meta'):
        read_weights(tmp_path / 'other.npz')
    with zipfile.ZipFile(tmp_path / 'twice.npz', 'w') as archive:
        archive.writestr('meta.npy', bytes(500_000))
        for i in range(5):  # five more names for the same bytes
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[-1].filename = f'x{i}.npy'
    with pytest.raises(WeightFileError, match='larger than the file'):
        read_weights(tmp_path / 'twice.npz')


@pytest.mark.parametrize('content', [b'', b'abc', b'PK\x03\x04', b'PK\x05\x06' + bytes(18), bytes(1000)])
def test_files_of_other_formats_are_refused(tmp_path, content):
    (tmp_path / 'w.npz').write_bytes(content)
    with pytest.raises(WeightFileError, match='not a weight file'):
        read_weights(tmp_path / 'w.npz')
    with pytest.raises(WeightFileError, match='No such file'):
        read_weights(tmp_path / 'missing.npz')


def test_damaged_files_are_detected(tmp_path):
    path = tmp_path / 'w.npz'
    write_weights(path, ARRAYS, META)
    data = path.read_bytes()
    for truncated in truncations(data):
        path.write_bytes(truncated)
        with pytest.raises(WeightFileError):
            read_weights(path)
    errors = []
    for flipped in bit_flips(data, 200, random.Random(0)):
        path.write_bytes(flipped)
        try:
            got = read_weights(path)  # the flip is in a field of the archive that the reader does not use
        except WeightFileError as error:
            errors.append(str(error))
        else:
            assert got.meta == META
            for name, array in got.arrays.items():
                np.testing.assert_array_equal(array, ARRAYS[name])
    assert errors and all(map(str.isprintable, errors))


# Loading into a network


class Network(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(3, 4, 1)
            self.norm = L.BatchNormalization(4)
            self.late = L.Linear(None, 2)

    @staticmethod
    def arrays():
        shapes = {
            'conv/W': (4, 3, 1, 1),
            'conv/b': (4,),
            'norm/gamma': (4,),
            'norm/beta': (4,),
            'norm/avg_mean': (4,),
            'norm/avg_var': (4,),
            'late/W': (2, 5),
            'late/b': (2,),
        }
        arrays = {name: np.full(shape, i + 0.5, np.float32) for i, (name, shape) in enumerate(shapes.items())}
        return arrays | {'norm/N': np.array(9)}


def test_load_arrays_copies_parameters_and_persistent_values():
    network, arrays = Network(), Network.arrays()
    load_arrays(network, arrays, source='file')
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(network)
    assert set(serializer.target) == set(arrays)
    for name, value in serializer.target.items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)
    arrays['conv/W'][...] = 0
    assert network.conv.W.array.all()


def test_load_arrays_lists_all_mismatches():
    network, arrays = Network(), Network.arrays()
    before = network.conv.W.array.copy()
    del arrays['conv/b'], arrays['norm/avg_var']
    arrays |= {'conv/more': np.zeros(1), 'norm/beta': np.zeros((2, 2), np.float32)}
    with pytest.raises(WeightFileError) as caught:
        load_arrays(network, arrays, source='w.npz')
    message = str(caught.value)
    assert message.startswith('w.npz: does not fit the network') and message.isprintable()
    for part in ('missing conv/b, norm/avg_var', 'unexpected conv/more', 'norm/beta has the shape (2, 2), not (4,)'):
        assert part in message
    np.testing.assert_array_equal(network.conv.W.array, before)


def test_load_arrays_partial():
    network = Network()
    load_arrays(network, {'conv/b': np.ones(4, np.float32)}, source='w.npz', partial=True)
    assert network.conv.b.array.tolist() == [1, 1, 1, 1]
    with pytest.raises(WeightFileError, match='unexpected conv/x'):
        load_arrays(network, {'conv/x': np.ones(4, np.float32)}, source='w.npz', partial=True)


@pytest.mark.gpu
@pytest.mark.skipif(not chainer.backends.cuda.available, reason='needs CuPy and a CUDA device')
def test_load_arrays_to_the_gpu():
    network, arrays = Network(), Network.arrays()
    network.to_gpu()
    load_arrays(network, arrays, source='file')
    np.testing.assert_array_equal(chainer.cuda.to_cpu(network.norm.avg_mean), arrays['norm/avg_mean'])
    np.testing.assert_array_equal(chainer.cuda.to_cpu(network.conv.W.array), arrays['conv/W'])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'class_names': ('a', 5)}, 'class_names must be a list of names'),
        ({'class_names': 'ab'}, "class_names must be a list of names, not 'ab'"),
        ({'class_names': ('a',)}, '1 class_names for 2 classes'),
        ({'category_ids': (1, 1)}, 'two classes have the same category id'),
        ({'category_ids': (1, '2')}, 'category_ids must be a list of integers'),
        ({'category_ids': (1, float('nan'))}, 'category_ids must be a list of integers'),
        ({'category_ids': (1, 2**63)}, 'category_ids must be a list of integers'),
        ({'notes': (None,)}, 'notes must be a list of lines'),
        ({'config': None}, 'config must be a Config, not None'),
    ],
)
def test_metadata_that_could_not_be_read_is_not_made(fields, message):
    valid = {'kind': 'model', 'config': Config(n_fg_class=2), 'class_names': ('a', 'b'), 'category_ids': (1, 2)}
    with pytest.raises(ValueError, match=message):
        ModelMeta(**{**valid, **fields})


def test_category_ids_of_numpy_become_plain_integers():
    meta = ModelMeta('model', Config(n_fg_class=2), ['a', 'b'], np.array([3, 9], np.uint8))
    assert meta.category_ids == (3, 9) and type(meta.category_ids[0]) is int and meta.class_names == ('a', 'b')
    assert ModelMeta.from_json(meta.to_json()) == meta
