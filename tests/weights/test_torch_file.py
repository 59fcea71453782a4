"""PyTorch's zip and legacy formats, read without PyTorch."""

import base64
import io
import pickle
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.readers import torch_file
from mask_rcnn.weights.readers.inert_pickle import InertUnpickler
from tests.support import torch_bytes as tb
from tests.support.damage import bit_flips, truncations
from tests.support.watching import watch, write_numbered

#: The output of PyTorch 2.13 for ``OrderedDict(w=t.t(), n=torch.tensor(7))`` with the tensor ``t``
#: ``[[1, 2, 3], [4, 5, 6]]``.
WRITTEN_BY_PYTORCH = {
    'zip': (
        'c-o~@&ui0A9Dhl=G^X9$W@Q@#PaZm^ZPGRAI#@S@<PyO;5r!T@mc}-iC4K4Z#yl0of#Ai9coOga0eaJaK}1hpL`1yk!GFN_lC~zP'
        '>zsS^@o4+~{K)rxKdEa>3IL7+BWn_z2gr60iVXu9h4wv1Rc65L<m%C;={b&NBHMF2{B^%!`BvkqZ6Y3mr7cM1w<%1v4`~y5zS%11'
        'U1U2QUiYn?uI)5*WVs#B*Y`?1Wb*m#G%oJoN~3APR0!c!$1~8)@JAj_1cU-)w;6nz?Ji7fEP~t(4QPx;AHp*lr7?$)f7BudG6-h3'
        ';A8-D;ZzHYv<Af2JhwUIJsXsWaJrS&C<JFP-_laZF^k~2Etu;T>ROt6^ZxPj4_rxh{mAa+z;xKX!d=hbHITk%`5oLMRmsMhC=$w7'
        'KR-Pn;?!8mIk48J>^Dd^9J}f6S}sx*dGu=jX~|_`U}GPCr?CV**1!}{LIXPo$nwZdt4i%ZbqC9_5ppcz;o<t11s1EYV?AWRl|NHi'
        '6jWvXbOr$EZD86>{K312_Y1t=ZW2cqzg8FK@t^a@I4VXQiK?=E5=ZGi3(;$T{N@n>ZmeDw)Iz=CM6I2o1uHyJe)qh2>-hU$1X6zh'
        'gGcRHzKtjFzCog|+YMC_Pi{nzWKk4WrP7KlR^^Hym8xY?5-XBik}9i0xg^O|L9PTbx$^;h&SM|>z$Hb@4t+*bIXU7y_8v<@qv^}V'
        'U^NQ-HN;7VXnf{k3{Qp(BbiN-MCX4hMlwr-MDCK<=%i+1*rzmz<|PS?j$9m=XQDtc35-rmHU@k)03Ok-=q)bBpECu<%~xGx*-QP>'
        '3(Vyqj7yxqsPKH98bpf?QudM!zlU$x2{y!VL48>J8?<JCQ~'
    ),
    'legacy': (
        'c-n1{yH3L}6ozwa1BODmENqPFQnk>k$wUX##azqc1w|#XnxH7|Nt_~(DrKsGXJBCDF?byw0f~W=USO%^W6S3p|KD%t+AE2E-g@7M'
        '_a9dW^;|pu(s7-DVzH{CD5FG3;fcr{^CS&L3@SFT3Ra>}%80u>_QOF8+A|}Vl#e6srr{G$L7#wOu@WZJKqL}MRAV}x!dOC?8q6p('
        'L_7qO8d-)+4>1w<BvMjxnfN^6{%Pn*0!pn9s>M{i@c^19MdAf@H<MwM5;x&@Ss3}Q<Z&tzcYH)Zw=8BBVC)<WIT-URq!)>SyqPBn'
        'l-L&bIITvz+37g8-F6x+D9=24qYQ18FC?s8Q-$hOo5DI(sXhhr5)^heBy9GfGV>I}R)EN0i8;ep{ZY36DR#>~cG^v(R0ET$sJ?^h'
        'wc1>9SHfN&_KTmmEq;H6Idzqm#_MHeIr0-+x;Qa%jCYLBuDYn2i~See;ec}'
    ),
}

ARRAYS = {
    'weight': np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    'double': np.array([1.5, np.pi]),
    'half': np.array([[0.5], [-2]], np.float16),
    'num_batches_tracked': np.array(2**40),
    'bool': np.array([True, False]),
    'nothing': np.empty((0, 3), np.float32),
}


def read_bytes(tmp_path, data):
    path = tmp_path / 'file.pth'
    path.write_bytes(data)
    return torch_file.read(path)


@pytest.mark.parametrize('name', WRITTEN_BY_PYTORCH)
def test_files_written_by_pytorch(tmp_path, name):
    data = zlib.decompress(base64.b85decode(''.join(WRITTEN_BY_PYTORCH[name])))
    arrays = read_bytes(tmp_path, data)
    assert list(arrays) == ['w', 'n']
    assert arrays['w'].tolist() == [[1, 4], [2, 5], [3, 6]] and arrays['w'].dtype == np.float32
    assert arrays['n'].shape == () and arrays['n'] == 7 and arrays['n'].dtype == np.int64


@pytest.mark.parametrize('as_legacy', [False, True])
def test_arrays(tmp_path, as_legacy):
    arrays = read_bytes(tmp_path, tb.state_dict(ARRAYS, as_legacy))
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape


def test_views_and_parameters(tmp_path):
    """Several tensors share one storage, as in files of PyTorch."""
    stored = tb.storage('FloatStorage', '0', 12)
    part = tb.tensor(stored, 5, (2, 3), (4, 1))
    items = {
        'part': part,
        'turned': tb.tensor(stored, 0, (4, 3), (1, 4)),
        'same': tb.tensor(stored, 0, (12,), (1,)),
        'old': tb.tensor(stored, 0, (12,), (1,), rebuild='_rebuild_tensor'),
        'parameter': b'ctorch._utils\n_rebuild_parameter\n' + tb.sequence(part, b'\x88', tb.ORDERED_DICT) + b'R',
    }
    numbers = np.arange(12, dtype='<f4')
    arrays = read_bytes(tmp_path, tb.zipped(tb.dictionary(items), {'0': numbers.tobytes()}))
    table = numbers.reshape(3, 4)
    np.testing.assert_array_equal(arrays['part'], table[1:, 1:])
    np.testing.assert_array_equal(arrays['parameter'], table[1:, 1:])
    np.testing.assert_array_equal(arrays['turned'], table.T)
    assert np.shares_memory(arrays['same'], arrays['turned'])


def test_bfloat16_and_big_endian(tmp_path):
    tensor = tb.tensor(tb.storage('BFloat16Storage', '0', 3), 0, (3,), (1,))
    numbers = np.array([1.5, -2, 1e30], '<f4')
    upper = numbers.view('<u2')[1::2]
    pickled = tb.dictionary({'a': tensor})
    for order, data in ('little', upper.tobytes()), ('big', upper.byteswap().tobytes()):
        array = read_bytes(tmp_path, tb.zipped(pickled, {'0': data}, byteorder=order))['a']
        assert array.dtype.kind == 'f' and array.itemsize == 4
        np.testing.assert_allclose(array, numbers, rtol=2**-7)
        assert array[:2].tolist() == [1.5, -2]


@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_checkpoints_and_data_parallel(tmp_path, key):
    inner = tb.dictionary({'module.a': tb.of_array(np.ones(2, np.float32), '0')})[2:-1]
    pickled = b'\x80\x02}(' + tb.text('epoch') + b'K\x03' + tb.text(key) + inner + b'u.'
    arrays = read_bytes(tmp_path, tb.zipped(pickled, {'0': np.ones(2, '<f4').tobytes()}))
    assert list(arrays) == ['a'] and arrays['a'].tolist() == [1, 1]


def packed_again(data, compression, rename=str, more=()):
    """Return an archive whose members were unpacked and packed again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, 'w', compression) as target:
        for name in source.namelist():
            target.writestr(rename(name), source.read(name))
        for name in more:
            target.writestr(name, b'x')
    return file.getvalue()


@pytest.mark.parametrize(
    'changes',
    [
        {'compression': zipfile.ZIP_DEFLATED},
        {'compression': zipfile.ZIP_STORED, 'rename': lambda name: name.split('/', 1)[1]},
        {'compression': zipfile.ZIP_DEFLATED, 'more': ['archive/data/', '__MACOSX/archive/data.pkl']},
    ],
    ids=['compressed', 'without a folder', 'on macOS'],
)
def test_files_that_were_unpacked_and_packed_again(tmp_path, changes):
    weights = np.random.RandomState(0).rand(40, 50).astype('<f4')
    arrays = read_bytes(tmp_path, packed_again(tb.state_dict({'a': weights}), **changes))
    np.testing.assert_array_equal(arrays['a'], weights)


@pytest.mark.parametrize('as_legacy', [False, True])
def test_a_state_dict_of_numpy_arrays(tmp_path, as_legacy):
    """Arrays are used only if the file has no tensors: results and random states are arrays, too."""
    names = [f'layer{k}.weight' for k in range(4)]
    values = {name: np.full((2, 3), k, np.float32) for k, name in enumerate(names)}

    def read_pickled(pickled, storages):
        lengths = {key: len(data) // 4 for key, data in storages.items()}
        return read_bytes(
            tmp_path, tb.legacy(pickled, storages, lengths) if as_legacy else tb.zipped(pickled, storages)
        )

    arrays = read_pickled(pickle.dumps({'epoch': 3, 'state_dict': values}, 2), {})
    assert list(arrays) == names and all(np.array_equal(arrays[name], values[name]) for name in names)
    state = tb.dictionary({'a': tb.tensor(tb.storage('FloatStorage', '0', 4, as_legacy), 0, (4,), (1,))})[2:-1]
    results = pickle.dumps(values, 2)[2:-1]
    pickled = b'\x80\x02}(' + tb.text('results') + results + tb.text('net') + state + b'u.'
    assert list(read_pickled(pickled, {'0': ONES})) == ['a']


# Hostile files

STORED = tb.storage('FloatStorage', '0', 4)
ONES = np.ones(4, '<f4').tobytes()


def zipped_tensor(offset=0, shape=(4,), strides=(1,), stored=STORED, data=ONES, **more):
    pickled = tb.dictionary({'a': tb.tensor(stored, offset, shape, strides)})
    return tb.zipped(pickled, {'0': data}, **more)


def zipped_value(value):
    return tb.zipped(tb.dictionary({'a': value}), {})


def legacy_tensor(length=4, data=ONES, key='0'):
    pickled = tb.dictionary({'a': tb.tensor(tb.storage('FloatStorage', '0', 4, True), 0, (4,), (1,))})
    return tb.legacy(pickled, {key: data}, {key: length})


def swollen_directory():
    """Return an archive with a huge directory."""
    entry = b'PK\x01\x02' + bytes(42)
    count = (1 << 22) // len(entry) + 1
    return (
        b'PK\x03\x04'
        + entry * count
        + b'PK\x05\x06'
        + struct.pack('<4H2IH', 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 4, 0)
    )


HOSTILE = {
    'runs a command': (
        zipped_value(b'cposix\nsystem\n' + tb.sequence(tb.text('touch executed')) + b'R'),
        'it refers to posix.system; only state dicts are supported',
    ),
    'a saved model': (
        zipped_value(b'ctorch.nn.modules.container\nSequential\n)\x81'),
        'torch.nn.modules.container.Sequential',
    ),
    'legacy, runs': (tb.MAGIC + b'cposix\nsystem\n(X\x10\x00\x00\x00touch executed  tR.', 'it refers to posix.system'),
    'builds': (zipped_value(tb.text('x') + b'}b'), 'it sets the state of a value'),
    'state of a dictionary': (tb.zipped(b'\x80\x02}}X\x01\x00\x00\x00aK\x01sb.', {}), 'sets the state of a value'),
    'another reference': (
        zipped_value(tb.sequence(tb.text('module')) + b'Q'),
        'an object other than a storage of numbers',
    ),
    'text as reference': (zipped_value(b'Pabc\n'), 'outside of the file'),
    'storage of another type': (zipped_tensor(stored=tb.storage('UntypedStorage', '0', 4)), 'torch.UntypedStorage'),
    'storage class as text': (
        zipped_tensor(stored=tb.sequence(*map(tb.text, ('storage', 'FloatStorage', '0', 'cpu')), b'K\x04') + b'Q'),
        'a storage without type',
    ),
    'reads beyond the storage': (zipped_tensor(offset=1), 'does not fit into its storage'),
    'strides beyond it': (zipped_tensor(shape=(2, 2), strides=(3, 2)), 'does not fit'),
    'repeats a number': (zipped_tensor(shape=(1 << 30,), strides=(0,)), 'does not fit'),
    'huge and empty': (zipped_tensor(shape=(1 << 40, 1 << 40, 0), strides=(0, 0, 0)), 'does not fit'),
    'negative offset': (zipped_tensor(offset=-1), 'without proper storage'),
    'negative stride': (zipped_tensor(strides=(-1,)), 'without proper storage'),
    'shape without strides': (zipped_tensor(strides=()), 'without proper storage'),
    'many axes': (zipped_tensor(shape=(1,) * 9, strides=(1,) * 9), 'without proper storage'),
    'a storage that is missing': (
        zipped_tensor(stored=tb.storage('FloatStorage', '../../etc/passwd', 4)),
        'is missing',
    ),
    'a storage of another length': (zipped_tensor(data=ONES[:8]), 'does not have the length its tensors declare'),
    'a storage that declares more': (
        zipped_tensor(stored=tb.storage('FloatStorage', '0', 1 << 30)),
        'not have the length',
    ),
    'compressed members': (zipped_tensor(compression=zipfile.ZIP_BZIP2), 'members are compressed'),
    'growing members': (
        zipped_tensor(data=bytes(1 << 20), compression=zipfile.ZIP_DEFLATED),
        'members are larger than the file can hold',
    ),
    'no byte order': (zipped_tensor(byteorder='none'), 'byte order'),
    'no pickle': (tb.zipped(b'', {}).replace(b'data.pkl', b'data.xyz'), 'without a data.pkl'),
    'an empty archive': (b'PK\x05\x06' + bytes(18), 'without a data.pkl'),
    'a huge directory': (swollen_directory(), 'directory is too large'),
    'a single tensor': (
        tb.zipped(b'\x80\x02' + tb.tensor(STORED, 0, (4,), (1,)) + b'.', {'0': ONES}),
        'not a state dict',
    ),
    'no tensors': (tb.zipped(b'\x80\x02}.', {}), 'has no tensors'),
    'a plain pickle': (pickle.dumps({'a': 1}, 2), 'is not a PyTorch file'),
    'legacy of another version': (
        tb.MAGIC + pickle.dumps(1000, 2) + pickle.dumps({}, 2) * 2 + pickle.dumps([], 2),
        'format version is 1000',
    ),
    'legacy, other length': (legacy_tensor(length=5), 'not have the length'),
    'legacy, other key': (legacy_tensor(key='1'), 'storage 1 does not have the length'),
    'legacy, truncated': (legacy_tensor()[:-1], 'is truncated'),
    'legacy, more follows': (legacy_tensor() + b'x', '1 byte follows its end'),
    'empty': (b'', 'is not a PyTorch file'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files_raise_a_one_line_error(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, reason = HOSTILE[name]
    with pytest.raises(WeightFileError, match=reason) as caught:
        read_bytes(tmp_path, data)
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']


@pytest.mark.parametrize('objects', [b'}', b'\x8f', b'(t\x85', b')0P1\n', b'cx\ny\n'])
def test_the_number_of_objects_is_limited(tmp_path, monkeypatch, objects):
    """A set takes 216 bytes for an opcode of one byte, and each object is visited by the search for a state dict."""
    monkeypatch.setattr(InertUnpickler, 'max_objects', 100)
    with pytest.raises(WeightFileError, match='has more than 100 objects'):
        read_bytes(tmp_path, tb.zipped(b'\x80\x02(' + objects * 100 + b'l.', {}))


def test_damaged_files_do_nothing(tmp_path, root):
    """Truncated, bit-flipped and hostile files only raise an error and need little memory."""
    good = [tb.state_dict(ARRAYS, as_legacy) for as_legacy in (False, True)]
    bad = [truncated for data in good for truncated in truncations(data)]
    n_truncated, generator = len(bad), random.Random(0)
    for data in good:
        bad += bit_flips(data, 200, generator)
    bad += [data for data, _ in HOSTILE.values()]
    write_numbered(tmp_path, good, bad)
    outcomes, kilobytes = watch(tmp_path, root, 'readers.torch_file.read')
    loaded = [i for i, outcome in enumerate(outcomes.values()) if outcome.startswith('loaded')]
    assert len(outcomes) == len(bad)
    assert not [i for i in loaded if i < n_truncated or i >= n_truncated + 400]
    assert kilobytes < 30_000
