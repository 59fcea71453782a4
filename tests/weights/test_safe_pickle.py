"""The restricted unpickler: supported data, refused data, and proof that nothing is executed."""

import collections
import copyreg
import functools
import io
import json
import os
import pickle
import random
import re
import struct
import subprocess

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.readers import safe_pickle
from tests.support.damage import bit_flips, truncations
from tests.support.watching import WATCHED, run_script, watch, write_numbered

PROTOCOLS = range(6)

ARRAYS = {
    'float32': np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    'fortran': np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    'strided': np.arange(20, dtype=np.int16)[::3],
    'big endian': np.arange(5, dtype='>f4'),
    'every byte': np.arange(256, dtype=np.uint8),
    'bool': np.array([[True, False]]),
    'half': np.array([1.5, -2], np.float16),
    'int64': np.array([-1, 2**62]),
    'no axes': np.array(2.5, np.float32),
    'no items': np.empty((3, 0), np.float32),
}

PLAIN = {
    'text': 'Gr\xfc\xdfe, \u4e16\u754c \U0001f600\n\\',
    'long': 'x' * 300,
    'bytes': bytes(range(256)),
    'empty': b'',
    'numbers': [0, -1, 255, 65535, -(2**31), 2**70, -(2**70), 1.5, float('inf')],
    'constants': (None, True, False),
    'tuples': ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    'nested': {'a': [{'b': {}}, []]},
    'set': {1, 'b', None},
    7: 'integer key',
}

#: The output of Python 2.7's cPickle for ``{'a': numpy.array([1, 2], 'f4')}`` with protocols 0 and 2.
PYTHON2 = {
    0: (
        b"(dp1\nS'a'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntS'b'\ntRp5\n"
        b"(I1\n(I2\ntcnumpy\ndtype\np6\n(S'f4'\nI0\nI1\ntRp7\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntbs."
    ),
    2: (
        b'\x80\x02}q\x01U\x01aq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85'
        b'U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNN'
        b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs.'
    ),
}


def load_bytes(tmp_path, data):
    path = tmp_path / 'file.pkl'
    path.write_bytes(data)
    return safe_pickle.load(path)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('name', ARRAYS)
def test_arrays_of_every_protocol(tmp_path, protocol, name):
    array = ARRAYS[name]
    got = load_bytes(tmp_path, pickle.dumps({'x': array, 'again': array}, protocol))
    assert got['x'].dtype == array.dtype and got['x'].shape == array.shape
    np.testing.assert_array_equal(got['x'], array)
    assert got['again'] is got['x']


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_plain_data_of_every_protocol(tmp_path, protocol):
    assert load_bytes(tmp_path, pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_numpy_scalars_and_ordered_dictionaries(tmp_path, protocol):
    data = collections.OrderedDict([('b', np.float32(0.1)), ('a', np.int64(-3)), ('c', np.bool_(True))])
    got = load_bytes(tmp_path, pickle.dumps(data, protocol))
    assert list(got.items()) == list(data.items()) and type(got) is dict
    assert [type(v) for v in got.values()] == [type(v) for v in data.values()]


@pytest.mark.parametrize('protocol', PYTHON2)
def test_python_2_strings_are_latin_1_text(tmp_path, protocol):
    got = load_bytes(tmp_path, PYTHON2[protocol])
    assert list(got) == ['a'] and got['a'].dtype == '<f4' and got['a'].tolist() == [1, 2]
    assert load_bytes(tmp_path, b"S'caf\\xe9'\n.") == 'caf\xe9'


def test_python_2_ordered_dictionary(tmp_path):
    data = b"ccollections\nOrderedDict\n((l(lS'b'\naI1\naa(lS'a'\naI2\naatR."
    assert list(load_bytes(tmp_path, data).items()) == [('b', 1), ('a', 2)]


@pytest.mark.parametrize(
    ('data', 'reason'),
    [(b'Fabc\n.', 'is damaged at byte 5:'), (b'U\x09abc', 'is truncated or damaged: 9 bytes expected at byte 7')],
)
def test_positions_count_from_the_beginning_of_the_file(data, reason):
    """The legacy format of PyTorch has several pickles in one file."""
    file = io.BytesIO(b'start' + data)
    file.seek(5)
    with pytest.raises(safe_pickle.UnpicklingError, match=reason):
        safe_pickle.SafeUnpickler(file, 5 + len(data)).load()


# Hostile files


class Calls:
    """An object whose pickle calls ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Slots:
    pass


def global_(name):
    module, _, name = name.rpartition('.')
    return f'c{module}\n{name}\n'.encode()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def wide_text(length):
    """Encode text that needs four bytes per character because of its first one."""
    data = ('\U0001f600' + 'x' * length).encode()
    return b'X' + struct.pack('<I', len(data)) + data + b'.'


def array_bytes(shape=b'K\x02\x85', code=b'f4', data=b'U\x08\x00\x00\x80?\x00\x00\x00@', state=b'NNN'):
    """Encode an array of two float32 values in protocol 2; the arguments replace parts of it."""
    return (
        b'\x80\x02'
        + global_('numpy.core.multiarray._reconstruct')
        + global_('numpy.ndarray')
        + b'K\x00\x85U\x01b\x87R(K\x01'
        + shape
        + global_('numpy.dtype')
        + b'U'
        + bytes([len(code)])
        + code
        + b'K\x00K\x01\x87R(K\x03U\x01<'
        + state
        + b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89'
        + data
        + b'tb.'
    )


#: The file that a hostile file creates in the current folder if it is executed.
MARKER = 'executed'


@functools.cache
def hostile():
    """Return the hostile files: name -> (bytes, regular expression of the reason)."""
    command = f'touch {MARKER}'
    system = Calls(os.system, command)
    shell = text(command) + b'\x85R.'
    nested = {'blobs': {'conv1_w': [ARRAYS['float32'], (1, system)]}}
    popen = Calls(subprocess.Popen, ['touch', MARKER])
    files = {}
    for p in PROTOCOLS:
        files[f'system, protocol {p}'] = pickle.dumps(system, p), 'refers to posix.system'
        files[f'nested, protocol {p}'] = pickle.dumps(nested, p), 'refers to posix.system'
        objects = np.array([system], object)
        files[f'object array, protocol {p}'] = pickle.dumps(objects, p), 'posix.system|arrays of'
        files[f'Popen, protocol {p}'] = pickle.dumps(popen, p), 'refers to (subprocess|commands).Popen'
    for p in (0, 1):
        files[f'copyreg, protocol {p}'] = pickle.dumps(Slots(), p), 'refers to copy_?reg._reconstructor'
    for name in (
        'os.system',
        'os.popen',
        'builtins.eval',
        '__builtin__.eval',
        'builtins.getattr',
        'builtins.exec',
        'numpy.load',
        'numpy.core.multiarray.fromfile',
        'numpy.ndarray.tofile',
        'numpy.frombuffer',
        'numpy.ma.core._mareconstruct',
        'pickle.loads',
        'importlib.import_module',
        'functools.partial',
        'copyreg.__newobj__',
        '_codecs.decode',
        'torch._utils._rebuild_tensor',
    ):
        hint = ', which is only read from files of torch.save' if name.startswith('torch.') else ''
        files[name] = global_(name) + shell, f'refers to {name}{hint}$'
        module, _, attribute = name.rpartition('.')
        files[f'{name} from the stack'] = (
            b'\x80\x04' + text(module) + text(attribute) + b'\x93' + shell,
            f'refers to {name}{hint}$',
        )
    return files | opcode_tricks(command) | bad_arrays() | bombs() | broken_files()


def opcode_tricks(command):
    shell = text(command) + b'\x85R'
    return {
        'INST': (b"(S'" + command.encode() + b"'\nios\nsystem\n.", 'object of os.system'),
        'OBJ': (b'(' + global_('os.system') + shell + b'o.', 'refers to os.system'),
        'OBJ of an allowed global': (b'(' + global_('numpy.dtype') + b'o.', 'opcode OBJ'),
        'NEWOBJ': (b'\x80\x02' + global_('numpy.ndarray') + b')\x81.', 'opcode NEWOBJ'),
        'NEWOBJ_EX': (b'\x80\x04' + global_('numpy.dtype') + b')}\x92.', 'opcode NEWOBJ_EX'),
        'EXT1': (b'\x80\x02\x82\x01.', 'opcode EXT1'),
        'EXT2': (b'\x80\x02\x83\x01\x00.', 'opcode EXT2'),
        'EXT4': (b'\x80\x02\x84\x01\x00\x00\x00.', 'opcode EXT4'),
        'PERSID': (b'Pabc\n.', 'opcode PERSID'),
        'BINPERSID': (b'U\x01aQ.', 'opcode BINPERSID'),
        'NEXT_BUFFER': (b'\x80\x05\x97.', 'opcode NEXT_BUFFER'),
        'READONLY_BUFFER': (b'\x80\x05N\x98.', 'opcode READONLY_BUFFER'),
        'protocol 9': (b'\x80\x09N.', 'protocol 9'),
        'BUILD of a dictionary': (b'}}b.', 'sets the state of a value'),
        'BUILD of OrderedDict': (global_('collections.OrderedDict') + b')R}b.', 'sets the state of a value'),
        'BUILD of a global': (global_('numpy.ndarray') + b'}b.', 'sets the state of a value'),
        'BUILD of an array, twice': (array_bytes()[:-1] + b'Nb.', 'sets the state of a value'),
        'call of a value': (b'K\x01)R.', r'calls a value \(int\)'),
        'call of ndarray': (global_('numpy.ndarray') + b')R.', 'calls numpy.ndarray'),
        'bytes(n)': (global_('builtins.bytes') + b'J\xff\xff\xff\x7f\x85R.', 'builtins.bytes with arguments'),
        'another codec': (global_('_codecs.encode') + text('a') + text('zip') + b'\x86R.', '_codecs.encode'),
        'a global as data': (b'}' + text('a') + global_('numpy.ndarray') + b'\x85s.', 'has a class'),
        'control characters': (b'cos\x1b[31m\r\nsystem\x00\n)R.', r'refers to os\\x1b\[31m\\r.system\\x00$'),
    }


def bad_arrays():
    reconstruct = global_('numpy.core.multiarray._reconstruct')
    enormous = b'\x8a\x06\x00\x00\x00\x00\x00\x40'
    return {
        'subclass of array': (reconstruct + b'NK\x00\x85U\x01b\x87R.', 'unknown class'),
        'array without data': (array_bytes().split(b'(K\x01')[0] + b'\x85.', 'before its data'),
        'object array': (array_bytes(code=b'O8', data=b'](K\x01K\x02e'), "arrays of type 'O8'"),
        'void array': (array_bytes(code=b'V4'), "arrays of type 'V4'"),
        'text array': (array_bytes(code=b'S4'), "arrays of type 'S4'"),
        'type by expression': (array_bytes(code=b'f4,O'), "arrays of type 'f4,O'"),
        'structured array': (array_bytes(state=b'N' + text('f0') + b'\x85}'), 'structured'),
        'data as list': (array_bytes(data=b'](K\x01K\x02e'), 'array of Python objects'),
        'huge shape': (array_bytes(enormous + b'\x85'), 'needs .* bytes, not 8'),
        'overflowing shape': (array_bytes(b'J\x00\x00\x00\x40J\x00\x00\x00\x40K\x10\x87'), 'needs .* bytes'),
        'negative shape': (array_bytes(b'J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86'), 'proper shape'),
        'empty but huge shape': (array_bytes(enormous + enormous + b'K\x00\x87', data=b'U\x00'), 'damaged'),
    }


def bombs():
    puts = b''.join(b'r' + struct.pack('<I', i) for i in range(600_000))
    encode = global_('_codecs.encode') + b'h\x00' + text('latin1') + b'\x86R'
    ordered = global_('collections.OrderedDict') + b'h\x00\x85R'
    return {
        'BINBYTES8': (b'\x80\x04\x8e' + struct.pack('<Q', 1 << 60) + b'abc.', 'truncated or damaged'),
        'BINUNICODE8': (b'\x80\x04\x8d' + struct.pack('<Q', 1 << 63) + b'abc.', 'truncated or damaged'),
        'BYTEARRAY8': (b'\x80\x05\x96' + struct.pack('<Q', 1 << 40) + b'abc.', 'truncated or damaged'),
        'BINSTRING': (b'T' + struct.pack('<i', 2**31 - 1) + b'abc.', 'truncated or damaged'),
        'negative BINSTRING': (b'T' + struct.pack('<i', -1) + b'abc.', 'truncated or damaged'),
        'LONG4': (b'\x8b' + struct.pack('<i', 2**31 - 1) + b'abc.', 'integer of'),
        'negative LONG4': (b'\x8b' + struct.pack('<i', -5) + b'abc.', 'integer of'),
        'digits': (b'L' + b'9' * 100_000 + b'L\n.', 'line does not end'),
        'FRAME': (b'\x80\x04\x95' + struct.pack('<Q', 1 << 62) + b'N.', 'frame'),
        'memo index': (b'Np' + b'9' * 30 + b'\n.', 'memo index'),
        'memo': (b'N' + puts + b'.', 'more than'),
        'marks': (b'(' * 600_000 + b'.', 'more than'),
        'lists': (b']' * 600_000 + b'.', 'more than'),
        'encode': (text('x' * 500_000) + b'q\x000' + encode * 1000 + b'.', 'twice its size'),
        'dictionaries': (b'](' + b'](NNe' * 20_000 + b'eq\x000' + ordered * 1000 + b'.', 'twice its size'),
        'wide text': (wide_text(2_000_000), 'twice its size'),
        'tuple key': (b'}' + b')' + b'\x85' * 100_000 + b'Ns.', 'key or set element of type tuple'),
        'float key': (b'}G' + struct.pack('>d', 0.5) + b'Ns.', 'type float'),
        'large integer key': (b'}\x8a\x10' + b'\xff' * 15 + b'\x7f' + b'Ns.', 'type int'),
    }


def broken_files():
    return {
        'no memo entry': (b'h\x05.', 'memo entry 5'),
        'odd items': (b'}(Nu.', 'key without a value'),
        'items of a list': (b']NNs.', 'a dictionary expected'),
        'append to a number': (b'K\x01Na.', 'a list expected'),
        'stack underflow': (b'a.', 'value is missing'),
        'below the mark': (b']K\x01(a.', 'value is missing'),
        'no mark': (b'e.', 'mark is missing'),
        'nothing': (b'.', 'value is missing'),
        'left over': (b'NN.', 'left over'),
        'after the end': (b'N.N.', '2 bytes follow the end'),
        'bad float': (b'Fabc\n.', 'damaged at byte 0'),
        'bad utf-8': (b'X\x01\x00\x00\x00\xff.', 'damaged at byte 0'),
        'bad escape': (b"S'\\xZZ'\n.", 'damaged at byte 0'),
        'no quotes': (b'Sabc\n.', 'without quotes'),
    }


def is_large(data):
    """Return whether a hostile file takes long to refuse; only :func:`test_hostile_files_do_nothing` reads it."""
    return len(data) > 100_000


@pytest.mark.parametrize('name', [name for name, (data, _) in hostile().items() if not is_large(data)])
def test_hostile_files_raise_a_one_line_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, reason = hostile()[name]
    with pytest.raises(WeightFileError, match=reason) as caught:
        load_bytes(tmp_path, data)
    assert str(caught.value) == f'{tmp_path / "file.pkl"}: {caught.value.reason}'
    assert str(caught.value).isprintable() and len(caught.value.reason) < 300
    assert not (tmp_path / MARKER).exists()


def test_the_extension_registry_is_not_used(tmp_path):
    copyreg.add_extension('os', 'system', 240)
    try:
        with pytest.raises(WeightFileError, match='EXT1'):
            load_bytes(tmp_path, b'\x80\x02\x82\xf0' + text('true') + b'\x85R.')
    finally:
        copyreg.remove_extension('os', 'system', 240)


NESTED = {
    'lists': b']' * 100_000 + b'a' * 99_999 + b'.',
    'tuples': b')' + b'\x85' * 100_000 + b'.',
    'dictionaries': b'}' + (b'K\x01}' * 100_000) + b's' * 100_000 + b'.',
    'billion laughs': b']q\x00' + (b'0](' + b'h\x00' * 10 + b'eq\x00') * 100 + b'.',
    'itself': b']q\x00h\x00a.',
}


@pytest.mark.parametrize(
    'data',
    [
        pytest.param(data, id=name, marks=[pytest.mark.slow] if name == 'dictionaries' else [])
        for name, data in NESTED.items()
    ],
)
def test_deep_and_shared_nesting_is_harmless(tmp_path, data):
    assert isinstance(load_bytes(tmp_path, data), (list, tuple, dict))


@pytest.mark.parametrize(
    ('start', 'reason'),
    [
        (b'', 'is empty'),
        (b'\x1f\x8b\x08', 'gzip'),
        (b'PK\x03\x04\x14', 'zip archive'),
        (b'\x89HDF\r\n', 'HDF5'),
        (b'\x93NUMPY\x01', 'NumPy array'),
        (b'BZh9', 'bzip2'),
        (b'\xfd7zXZ\x00', 'xz'),
        (b'<!DOCTYPE html>', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
        (b'\xff\xd8\xff\xe0', 'unknown opcode'),
        (bytes(1000), 'unknown opcode'),
    ],
)
def test_other_files_are_named(tmp_path, start, reason):
    with pytest.raises(WeightFileError, match=reason):
        load_bytes(tmp_path, start)


def test_folders_pipes_and_missing_files(tmp_path):
    with pytest.raises(WeightFileError, match='No such file'):
        safe_pickle.load(tmp_path / 'missing.pkl')
    with pytest.raises(WeightFileError, match='is a folder'):
        safe_pickle.load(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(WeightFileError, match='not a regular file'):
        safe_pickle.load(tmp_path / 'pipe')


# Damaged files, in a process that records its own actions


def small_files():
    """Return valid files of every protocol, about 1 to 4 kB each."""
    data = {'cfg': 'MODEL: {}', 'blobs': dict(ARRAYS.items()), 'more': PLAIN}
    files = {f'protocol {p}': pickle.dumps(data, p) for p in PROTOCOLS}
    return files | {f'Python 2, protocol {p}': data for p, data in PYTHON2.items()}


def test_truncated_files(tmp_path, root):
    good = list(small_files().values())
    bad = [truncated for data in good for truncated in truncations(data)]
    write_numbered(tmp_path, good, bad)
    outcomes, _ = watch(tmp_path, root)
    assert len(outcomes) == len(bad)
    assert not [o for o in outcomes.values() if o.startswith('loaded')]


@pytest.mark.slow
def test_bit_flipped_files(tmp_path, root):
    good, generator = list(small_files().values()), random.Random(0)
    bad = [flipped for data in good for flipped in bit_flips(data, 200, generator)]
    write_numbered(tmp_path, good, bad)
    outcomes, kilobytes = watch(tmp_path, root)
    assert len(outcomes) == len(bad)
    refused = [o for o in outcomes.values() if not o.startswith('loaded')]
    assert 0 < len(refused) < len(bad)  # a flipped bit in the data of an array cannot be detected
    assert kilobytes < 20_000


def test_hostile_files_do_nothing(tmp_path, root):
    bad = [data for data, _ in hostile().values()]
    write_numbered(tmp_path, small_files().values(), bad)
    outcomes, kilobytes = watch(tmp_path, root)
    for (name, (data, reason)), outcome in zip(hostile().items(), outcomes.values(), strict=True):
        assert not outcome.startswith('loaded'), name
        if is_large(data):
            assert re.search(reason, outcome) and len(outcome) < 300 + len(str(tmp_path)), name
    assert not (tmp_path / MARKER).exists()
    assert kilobytes < 150_000  # the 600,000 opcodes of some hostile files


def test_the_watched_process_detects_execution(tmp_path, root):
    """The audit hook records the actions of a reader that executes."""
    (tmp_path / 'bad.pkl').write_bytes(pickle.dumps(Calls(os.system, f'touch {MARKER}')))
    start = "importlib.import_module('mask_rcnn.weights.READER').LOAD"
    assert start in WATCHED
    unsafe = WATCHED.replace(start, "lambda path: __import__('pickle').load(open(path, 'rb'))")
    done = run_script(unsafe, tmp_path, root)
    assert (tmp_path / MARKER).exists() and 'os.system' in json.loads(done.stdout)[0]
