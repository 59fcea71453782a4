"""PyTorch checkpoints with neighbours: the choice of the state dict, and unknown objects that are never built."""

import argparse
import array
import collections
import datetime
import decimal
import enum
import fractions
import functools
import os
import pathlib
import pickle
import random
import struct
import types

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.converters import detectron
from mask_rcnn.weights.readers import torch_file
from mask_rcnn.weights.readers.state_dicts import rename_parameters
from tests.support import torch_bytes as tb

ONES = np.ones(2, '<f4')
SCALAR = tb.tensor(tb.storage('FloatStorage', 'best', 1), 0, (), ())


class Unbuildable:
    """An object whose pickle calls a function with a side effect."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Colour(enum.Enum):
    RED = 1


class Dictionary(collections.OrderedDict):
    pass


class Slots:
    __slots__ = ('a',)

    def __init__(self):
        self.a = 1


class Versions(str):
    """A text with attributes, like ``torch.torch_version.TorchVersion``."""

    __slots__ = ('more',)


Point = collections.namedtuple('Point', 'x y')


def neighbours():
    """Return objects of many kinds that checkpoints have beside the weights, by name."""
    defaults = collections.defaultdict(list, {'a': [1], (1, 2): [2]})
    masked = np.ma.masked_array([1, 2], [0, 1])
    return {
        'counter': collections.Counter('abca'),
        'keys of other types': {(0, 1): 2, 0.5: 3, Colour.RED: 4, frozenset({1}): 5, 10**30: 6, np.int64(3): 7},
        'namespace': argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath('/data')),
        'simple namespace': types.SimpleNamespace(a=1),
        'defaultdict': defaults,
        'dictionaries': collections.defaultdict(collections.OrderedDict, a=Dictionary(b=1)),
        'paths': [pathlib.PurePosixPath('/a/b'), pathlib.PureWindowsPath('c:/x')],
        'text with attributes': Versions('2.1.0'),
        'numpy scalars': [np.float64(1.5), np.int64(3), np.bool_(True), np.str_('x'), np.datetime64('2020-01-01')],
        'object array': np.array([1, 'a', None], object),
        'structured array': np.zeros(2, [('a', 'f4')]),
        'other arrays': [masked, np.array(['ab', 'c']), np.arange(5), np.array([1j]), np.zeros(3).view(np.recarray)],
        'dates': [datetime.datetime(2020, 1, 2), datetime.timedelta(3), datetime.timezone.utc],
        'enum': Colour.RED,
        'functions': [functools.partial(print, 1), print, os.system, len, Slots, dict, collections.OrderedDict],
        'numbers': [1j, decimal.Decimal('1.5'), fractions.Fraction(1, 2), 10**50, float('nan'), range(5), slice(1, 2)],
        'bytes': [b'abc', bytearray(b'abc'), array.array('d', [1.0])],
        'sets': [{1, (2, 3)}, frozenset({1, 2}), {Colour.RED}],
        'random states': [np.random.RandomState(1), np.random.default_rng(1), random.Random(1), random.getstate()],
        'slots': Slots(),
        'tuple': Point(1, 2),
        'constants': [Ellipsis, NotImplemented, None, True, ValueError('x')],
        'deque': collections.deque([1, 2], 3),
        'nested': [[argparse.Namespace(a=[argparse.Namespace(b=Slots())])]],
        'a command': Unbuildable(os.system, 'touch executed'),
    }


def weights(*names):
    """Encode a state dict of tensors of two elements."""
    items = {name: tb.tensor(tb.storage('FloatStorage', '0', 2), 0, (2,), (1,)) for name in names}
    return tb.dictionary(items)[2:-1]


def encode(value):
    """Encode a dictionary of values: encoded ones (bytes) and dictionaries."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return b'](' + b''.join(map(encode, value)) + b'e'
    return b'}(' + b''.join(tb.text(name) + encode(item) for name, item in value.items()) + b'u'


def write(tmp_path, value, as_legacy=False):
    pickled = b'\x80\x02' + encode(value) + b'.'
    storages = {key: array.tobytes() for key, array in {'0': ONES, 'best': ONES[:1]}.items() if tb.text(key) in pickled}
    path = tmp_path / 'checkpoint.pth'
    if as_legacy:
        path.write_bytes(tb.legacy(pickled, storages, {'0': 2, 'best': 1}))
    else:
        path.write_bytes(tb.zipped(pickled, storages))
    return path


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('name', neighbours())
def test_unknown_objects_are_neither_imported_nor_built(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    neighbour = pickle.dumps(neighbours()[name], protocol)[2:-1]
    for as_legacy in (False, True):
        path = write(tmp_path, {'epoch': b'K\x01', 'more': neighbour, 'state_dict': weights('a', 'b')}, as_legacy)
        arrays = torch_file.read(path)
        assert list(arrays) == ['a', 'b'] and arrays['a'].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ['checkpoint.pth']


OPCODES = {
    'INST': b"(S'touch executed'\nios\nsystem\n",
    'OBJ': b'(cos\nsystem\n' + tb.text('touch executed') + b'o',
    'NEWOBJ': b'cos\nsystem\n' + tb.text('touch executed') + b'\x85\x81',
    'NEWOBJ_EX': b'cos\nsystem\n' + tb.text('touch executed') + b'\x85}\x92',
    'EXT1': b'\x82\x01',
    'EXT2': b'\x83\x01\x02)R',
    'EXT4': b'\x84\x01\x02\x03\x04',
    'PERSID': b'Psomething\n',
    'BINPERSID': tb.sequence(tb.text('module'), b'cm\nNet\n', tb.text('net.py'), tb.text('source')) + b'Q)\x81}b',
    'NEXT_BUFFER': b'\x97\x98',
    'untyped storage': b'ctorch\nUntypedStorage\n(K\x08tR',
    'a call of a call': b'cos\nsystem\n' + tb.text('touch executed') + b'\x85R)R}b(K\x01K\x02u',
    'elements': b'ccollections\ndeque\n)R(K\x01K\x02e',
}


@pytest.mark.parametrize('name', OPCODES)
def test_opcodes_that_make_objects_make_placeholders(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arrays = torch_file.read(write(tmp_path, {'more': OPCODES[name], 'model': weights('a')}))
    assert list(arrays) == ['a'] and not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('protocol', range(2, 6))
def test_legacy_files_of_every_protocol(tmp_path, protocol):
    parts = [pickle.dumps(part, protocol) for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})]
    pickled = b'\x80\x02' + weights('a') + b'.'
    path = tmp_path / 'legacy.pth'
    items = struct.pack('<q', 2) + ONES.tobytes()
    path.write_bytes(b''.join([*parts, pickled, pickle.dumps(['0'], protocol), items]))
    assert torch_file.read(path)['a'].tolist() == [1, 1]


def network(prefix='', n=10):
    return weights(*(f'{prefix}w{i}' for i in range(n)))


NAMES = [f'w{i}' for i in range(10)]

CHOICES = {
    'a lone tensor': ({'best_acc1': SCALAR, 'state_dict': weights('w0')}, ['w0'], ['state_dict']),
    'many lone tensors': (
        {**{f'loss{i}': SCALAR for i in range(30)}, 'state_dict': network()},
        NAMES,
        ['state_dict'],
    ),
    'lone vectors': (
        {'a': tb.tensor(tb.storage('FloatStorage', '0', 2), 0, (2,), (1,)), 'weights': network()},
        NAMES,
        ['weights'],
    ),
    'the whole file': (network(), NAMES, []),
    'an unusual key': ({'generator': network(n=3), 'my_weights': network()}, NAMES, ['my_weights']),
    'the largest': ({'model': network('x', 3), 'detector': network()}, NAMES, ['detector']),
    'nested': ({'checkpoint': {'trainer': {'net': network()}}}, NAMES, ['checkpoint.trainer.net']),
    'in lists': ({'models': [weights('x'), [network()]]}, NAMES, ['models.1.0']),
    'an optimizer of named parameters': (
        {'optimizer': {'state': network('x', 20)}, 'model': network()},
        NAMES,
        ['model'],
    ),
    'an average first': ({'ema': network('ema.'), 'model': network()}, NAMES, ['model', 'ema']),
    'an average with a counter': (
        {'state_dict_ema': weights('n', *NAMES), 'state_dict': network()},
        NAMES,
        ['state_dict', 'state_dict_ema'],
    ),
    'only an average': ({'ema': network(), 'epoch': b'K\x01'}, NAMES, ['ema']),
    'two usual keys': ({'net': network('x'), 'state_dict': network()}, NAMES, ['state_dict', 'net']),
    'an unknown dictionary': ({'ema': b'cadict\nAdict\n)\x81' + network()[len(tb.ORDERED_DICT) :]}, NAMES, ['ema']),
    'an attribute': (
        {'trainer': b'cmy\nTrainer\n)\x81' + encode({'model': network()}) + b'b'},
        NAMES,
        ['trainer.model'],
    ),
    'an argument': (b'cargparse\nNamespace\n(' + network() + b'tR', NAMES, ['0']),
}


@pytest.mark.parametrize('name', CHOICES)
def test_the_largest_state_dict_is_used_and_named(tmp_path, name):
    value, expected, keys = CHOICES[name]
    for as_legacy in (False, True):
        arrays = torch_file.read(write(tmp_path, value, as_legacy))
        assert list(arrays) == expected
        notes = ' '.join(arrays.notes)
        assert [key for key in keys if f"'{key}'" in notes] == keys
        assert ('not used' in notes) == (len(keys) > 1) and bool(notes) == bool(keys)


@pytest.mark.parametrize('names', [['a.x', 'model.y'], ['module', 'module.']])
def test_names_without_a_common_prefix_stay(names):
    assert set(rename_parameters(dict.fromkeys(names))) >= {names[0]}


@pytest.mark.parametrize(
    'prefix', ['module.', 'model.', '_orig_mod.', 'net.', 'network.', 'module._orig_mod.', 'model.module.model.', '']
)
def test_the_prefixes_of_wrappers_are_removed(prefix):
    names = [f'{prefix}fpn.C1.0.weight', f'{prefix}fpn._orig_mod.C1.1.weight', f'{prefix}mask._fsdp_wrapped_module.b']
    assert list(rename_parameters(dict.fromkeys([*names, 'loss.weight']))) == [
        *('fpn.C1.0.weight', 'fpn.C1.1.weight', 'mask.b'),
        'loss.weight',
    ]


def test_a_saved_model_is_named(tmp_path):
    parameters = encode({'_parameters': weights('weight'), '_modules': b'}'})
    for value in (
        b'ctorch.nn\nLinear\n)\x81' + parameters + b'b',
        {'model': b'cnet\nNet\n)\x81' + parameters + b'b', 'epoch': b'K\x01'},
    ):
        with pytest.raises(WeightFileError, match=r'saved model \((torch.nn.Linear|net.Net)\), which .*state_dict'):
            torch_file.read(write(tmp_path, value))


def test_unknown_objects_beside_the_blobs_of_detectron(tmp_path):
    """The network is refused because blobs are missing, not because of the counter; a file without blobs by name."""
    path = tmp_path / 'model.pkl'
    blobs = {'conv1_w': np.ones((64, 3, 7, 7), 'f4'), 'res2_0_branch2a_w': ONES, 'cls_score_w': np.ones((3, 2), 'f4')}
    path.write_bytes(pickle.dumps({'blobs': blobs, 'counter': collections.Counter('ab')}, 2))
    with pytest.raises(WeightFileError, match='a ResNet with 0 blocks in res4|which is not supported'):
        detectron.read(path)
    path.write_bytes(pickle.dumps({'blobs': {}, 'counter': collections.Counter('ab')}, 2))
    with pytest.raises(WeightFileError, match='is refused: it refers to collections.Counter'):
        detectron.read(path)
