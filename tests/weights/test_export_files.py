"""The bytes of other programs' files, read back by Python's own tools."""

import collections
import io
import json
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.exporters import array_pickle, safetensors_file, torch_file
from mask_rcnn.weights.readers import safe_pickle
from mask_rcnn.weights.readers import safetensors_file as safetensors_reader
from mask_rcnn.weights.readers import torch_file as torch_reader

ARRAYS = {
    'a.weight': np.arange(12, dtype=np.float32).reshape(3, 4).T,
    'a.num_batches_tracked': np.array(7, np.int64),
    'b': np.array([1.5, -2.25], np.float64),
    'half': np.array([[0.5]], np.float16),
    'flag': np.array([True, False, True]),
    'empty': np.empty((0, 3), np.float32),
}


def assert_equal_arrays(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(actual[name], array)


# PyTorch


class _Unpickler(pickle.Unpickler):
    """Python's unpickler with stand-ins for the three globals of PyTorch."""

    def __init__(self, archive):
        super().__init__(io.BytesIO(archive.read('archive/data.pkl')))
        self.archive = archive

    def find_class(self, module, name):
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return lambda storage, offset, shape, strides, grad, hooks: np.lib.stride_tricks.as_strided(
                storage[offset:], shape, [n * storage.itemsize for n in strides]
            )
        assert module == 'torch'
        return {'FloatStorage': '<f4', 'DoubleStorage': '<f8', 'HalfStorage': '<f2', 'LongStorage': '<i8'}.get(
            name, '|b1'
        )

    def persistent_load(self, reference):
        word, dtype, key, device, length = reference
        assert (word, device) == ('storage', 'cpu')
        items = np.frombuffer(self.archive.read(f'archive/data/{key}'), dtype)
        assert len(items) == length
        return items


def test_a_state_dict_for_pytorch(tmp_path):
    path = tmp_path / 'model.pth'
    torch_file.write(path, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = [f'archive/data/{i}' for i in range(len(ARRAYS))]
        assert archive.namelist() == ['archive/data.pkl', 'archive/byteorder', *names, 'archive/version']
        assert archive.read('archive/byteorder') == b'little' and archive.read('archive/version') == b'3\n'
        state = _Unpickler(archive).load()
        assert type(state) is collections.OrderedDict
        assert_equal_arrays(state, ARRAYS)
        data = path.read_bytes()
        for member in archive.infolist():
            n_name, n_extra = struct.unpack('<HH', data[member.header_offset + 26 : member.header_offset + 30])
            start = member.header_offset + 30 + n_name + n_extra
            assert start % 64 == 0 and member.compress_type == zipfile.ZIP_STORED
            assert data[start : start + member.file_size] == archive.read(member)
    assert_equal_arrays(torch_reader.read(path), ARRAYS)


def test_equal_arrays_make_equal_files(tmp_path):
    for name in ('first', 'second'):
        torch_file.write(tmp_path / name, ARRAYS)
    assert (tmp_path / 'first').read_bytes() == (tmp_path / 'second').read_bytes()


def test_a_state_dict_that_cannot_be_written(tmp_path):
    with pytest.raises(WeightFileError, match='missing/model.pth: No such file|cannot be written'):
        torch_file.write(tmp_path / 'missing' / 'model.pth', ARRAYS)


# NumPy's arrays

TREE = {
    'model': {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.full((), 2.5, np.float32)},
    'large': np.arange(300, dtype=np.float32),
    '__author__': 'me',
    'matching_heuristics': False,
}


@pytest.mark.parametrize('python2', [False, True])
def test_a_pickle_of_arrays(tmp_path, python2):
    path = tmp_path / 'model.pkl'
    with path.open('wb') as file:
        array_pickle.ArrayPickle(file, python2=python2).write(TREE)
    data = path.read_bytes()
    opcodes = list(pickletools.genops(data))
    assert max(opcode.proto for opcode, _, _ in opcodes) == (2 if python2 else 3)
    named = {argument for opcode, argument, _ in opcodes if opcode.name == 'GLOBAL'}
    assert named == {'numpy.core.multiarray _reconstruct', 'numpy ndarray', 'numpy dtype'}
    if python2:  # text is the byte string of Python 2, which has no other name for bytes
        assert 'BINUNICODE' not in {opcode.name for opcode, _, _ in opcodes}
    for read in (pickle.loads(data, encoding='latin1' if python2 else 'ASCII'), safe_pickle.load(path)):
        assert list(read) == list(TREE)
        assert_equal_arrays(read['model'], TREE['model'])
        np.testing.assert_array_equal(read['large'], TREE['large'])
        assert (read['__author__'], read['matching_heuristics']) == ('me', False)
    assert pickle.loads(data, encoding='latin1')['large'].flags.writeable


def test_a_pickle_of_other_values(tmp_path):
    with pytest.raises(TypeError, match='cannot write a set'):
        array_pickle.ArrayPickle(io.BytesIO(), python2=False).write({'a': {1, 2}})


# safetensors


def parse_safetensors(data):
    """Return the header and the bytes after it."""
    (length,) = struct.unpack_from('<Q', data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_a_safetensors_file(tmp_path):
    path = tmp_path / 'model.safetensors'
    safetensors_file.write(path, ARRAYS, {'note': 'text \xe4'})
    header, data = parse_safetensors(path.read_bytes())
    assert next(iter(header)) == '__metadata__' and header.pop('__metadata__') == {'note': 'text \xe4'}
    assert (len(path.read_bytes()) - len(data)) % 64 == 0
    kinds = {'F32': '<f4', 'F64': '<f8', 'F16': '<f2', 'I64': '<i8', 'BOOL': '|b1'}
    for name, array in ARRAYS.items():
        entry = header[name]
        start, end = entry['data_offsets']
        items = np.frombuffer(data[start:end], kinds[entry['dtype']]).reshape(entry['shape'])
        np.testing.assert_array_equal(items, array)
        assert start % array.itemsize == 0
    ranges = sorted(entry['data_offsets'] for entry in header.values())
    assert [start for start, _ in ranges] == [0, *[end for _, end in ranges[:-1]]] and ranges[-1][1] == len(data)
    arrays, metadata = safetensors_reader.read(path)
    assert metadata == {'note': 'text \xe4'}
    assert_equal_arrays({name: arrays[name] for name in ARRAYS}, ARRAYS)


def test_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / 'model.safetensors'
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack('<Q', len(header)) + header + b'\xc0\x3f\x00\xc0')
    (array,) = safetensors_reader.read(path).arrays.values()
    assert array.dtype == np.float32 and array.tolist() == [1.5, -2.0]


def safetensors(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def entry(start=0, end=8, shape=(2,), dtype='F32', **more):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end], **more}


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (safetensors({'a': entry()}, length=1 << 40), 'a header of 1099511627776 bytes in a file of'),
        (safetensors(b'{"a":'), 'its header is not JSON text'),
        (safetensors(b'{"\xff":1}'), 'its header is not JSON text'),
        (safetensors(b'[]'), 'its header is not an object'),
        (safetensors(b'{"a":' * 100_000), 'not JSON text|nested too deeply'),
        (safetensors(b'{"a":1,"a":2}'), 'two entries of one name'),
        (safetensors({'a': 1}), 'a does not have dtype, shape and data_offsets'),
        (safetensors({'a': entry(extra=1)}), 'a does not have dtype'),
        (safetensors({'a': entry(dtype='F8_E4M3', shape=(8,))}), 'a has the type F8_E4M3, not one of F64'),
        (safetensors({'a': entry(shape=(-2,))}), 'a has no valid shape'),
        (safetensors({'a': entry(shape=(1 << 60,))}), 'a has no valid shape'),
        (safetensors({'a': entry(0, 0, (1 << 40, 1 << 40, 0))}, b''), 'a has no valid shape'),
        (safetensors(b'{' + b' ' * (1 << 22) + b'}'), 'a header of 4194306 bytes in a file of .*at most 4194304'),
        (safetensors({'a': entry(shape=(True, 2))}), 'a has no valid shape'),
        (safetensors({'a': entry(shape=(3,))}), 'a has 8 bytes; its shape and type need 12'),
        (safetensors({'a': entry(8, 0, (0,))}), 'a has -8 bytes; its shape and type need 0'),
        (safetensors({'a': entry(), 'b': entry()}), 'b at byte 0 overlaps with another tensor'),
        (safetensors({'a': entry(4, 12)}, bytes(12)), 'a at byte 4 does not follow another tensor'),
        (safetensors({'a': entry()}, bytes(9)), 'its tensors have 8 bytes, but 9 follow the header'),
        (safetensors({'a': entry()}, bytes(7)), 'its tensors have 8 bytes, but 7 follow'),
        (safetensors({'__metadata__': {'a': 1}}, b''), '__metadata__ is not an object of strings'),
        (b'\x02\0\0\0', 'a header of 2 bytes in a file of 4'),
    ],
)
def test_damaged_safetensors_files(tmp_path, content, reason):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=reason) as error:
        safetensors_reader.read(path)
    assert '\n' not in str(error.value) and str(path) in str(error.value)
