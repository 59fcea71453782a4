"""Caffe's ``.caffemodel``: files written by the protocol buffer library, and damaged ones."""

import random
import struct

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.readers import caffemodel
from tests.support.damage import bit_flips, truncations
from tests.support.protobuf_bytes import bytes_field, varint

pytest.importorskip('google.protobuf', reason='a dependency of Chainer, which works without it')

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_OPTIONAL, _REPEATED = 1, 3
_DOUBLE, _FLOAT, _INT64, _INT32, _STRING, _MESSAGE = 1, 2, 3, 5, 9, 11

#: The part of caffe.proto that ResNets use: (field, number, label, type, message type).
_SCHEMA = {
    'BlobShape': [('dim', 1, _REPEATED, _INT64, None)],
    'BlobProto': [
        ('num', 1, _OPTIONAL, _INT32, None),
        ('channels', 2, _OPTIONAL, _INT32, None),
        ('height', 3, _OPTIONAL, _INT32, None),
        ('width', 4, _OPTIONAL, _INT32, None),
        ('data', 5, _REPEATED, _FLOAT, None),
        ('diff', 6, _REPEATED, _FLOAT, None),
        ('shape', 7, _OPTIONAL, _MESSAGE, 'BlobShape'),
        ('double_data', 8, _REPEATED, _DOUBLE, None),
    ],
    'BatchNormParameter': [('eps', 3, _OPTIONAL, _FLOAT, None)],
    'LayerParameter': [
        ('name', 1, _OPTIONAL, _STRING, None),
        ('type', 2, _OPTIONAL, _STRING, None),
        ('bottom', 3, _REPEATED, _STRING, None),
        ('blobs', 7, _REPEATED, _MESSAGE, 'BlobProto'),
        ('batch_norm_param', 139, _OPTIONAL, _MESSAGE, 'BatchNormParameter'),
    ],
    'V1LayerParameter': [
        ('bottom', 2, _REPEATED, _STRING, None),
        ('name', 4, _OPTIONAL, _STRING, None),
        ('type', 5, _OPTIONAL, _INT32, None),
        ('blobs', 6, _REPEATED, _MESSAGE, 'BlobProto'),
    ],
    'NetParameter': [
        ('name', 1, _OPTIONAL, _STRING, None),
        ('layers', 2, _REPEATED, _MESSAGE, 'V1LayerParameter'),
        ('input_dim', 4, _REPEATED, _INT32, None),
        ('layer', 100, _REPEATED, _MESSAGE, 'LayerParameter'),
    ],
}


def messages(packed=True):
    """Return the message classes of the schema."""
    file = descriptor_pb2.FileDescriptorProto(name='caffe.proto', package='caffe', syntax='proto2')
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, type_name in fields:
            entry = message.field.add(name=field, number=number, label=label, type=kind)
            if type_name:
                entry.type_name = f'.caffe.{type_name}'
            if label == _REPEATED and kind in (_DOUBLE, _FLOAT, _INT64):
                entry.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}')) for name in _SCHEMA}


def network(layers, *, packed=True, v1=False, old_shape=False, doubles=False, eps=None):
    """Encode a network of blobs (arrays) by layer name."""
    net = messages(packed)['NetParameter'](name='ResNet', input_dim=[1, 3, 224, 224])
    for name, blobs in layers.items():
        layer = (net.layers if v1 else net.layer).add(name=name, bottom=['below'])
        layer.type = 4 if v1 else 'Convolution'
        if eps is not None and name.startswith('bn'):
            layer.batch_norm_param.eps = eps
        for array in blobs:
            blob = layer.blobs.add()
            if old_shape:
                sizes = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sizes
            else:
                blob.shape.dim.extend(array.shape)
            (blob.double_data if doubles else blob.data).extend(array.ravel().tolist())
            blob.diff.extend([1.0, 2.0])
    return net.SerializeToString()


def example_layers():
    rng = np.random.RandomState(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    layers = {'data': []}
    for conv, suffix, width_in, width, k in [
        ('conv1', '_conv1', 3, 4, 7),
        ('res2a_branch1', '2a_branch1', 4, 5, 1),
        ('res3b12_branch2b', '3b12_branch2b', 4, 4, 3),
    ]:
        layers |= {
            conv: [array(width, width_in, k, k)],
            f'bn{suffix}': [array(width), array(width) ** 2 + 1, np.float32([4])],
            f'scale{suffix}': [array(width), array(width)],
            f'{conv}_relu': [],
        }
    layers['conv1'].append(array(4))
    layers['fc1000'] = [array(7, 5), array(7)]
    return layers


def expected(layers, eps=1e-5):
    arrays = {'conv1/b': layers['conv1'][1]}
    for conv, suffix in [('conv1', '_conv1'), ('res2a_branch1', '2a_branch1'), ('res3b12_branch2b', '3b12_branch2b')]:
        mean, var, factor = layers[f'bn{suffix}']
        gamma, beta = layers[f'scale{suffix}']
        arrays |= {
            f'{conv}/W': layers[conv][0],
            f'bn{suffix}/gamma': gamma,
            f'bn{suffix}/beta': beta,
            f'bn{suffix}/mean': mean / factor,
            f'bn{suffix}/var': var / factor + np.float32(eps - 1e-5),
        }
    return arrays


def check(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-6, err_msg=name, strict=True)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'packed': False},
        {'v1': True},
        {'old_shape': True},
        {'v1': True, 'old_shape': True, 'packed': False},
        {'doubles': True},
        {'doubles': True, 'packed': False},
    ],
    ids=str,
)
def test_all_variants_of_the_format(tmp_path, options):
    layers, path = example_layers(), tmp_path / 'net.caffemodel'
    path.write_bytes(network(layers, **options))
    check(caffemodel.read(path), expected(layers))


def test_long_unpacked_lists(tmp_path):
    layers, path = example_layers(), tmp_path / 'net.caffemodel'
    layers['conv1'][0] = np.random.RandomState(1).normal(size=(100, 3, 7, 7)).astype(np.float32)
    path.write_bytes(network(layers, packed=False))
    np.testing.assert_array_equal(caffemodel.read(path)['conv1/W'], layers['conv1'][0])


def test_a_different_epsilon_is_added_to_the_variance(tmp_path):
    layers, path = example_layers(), tmp_path / 'net.caffemodel'
    path.write_bytes(network(layers, eps=1e-3))
    check(caffemodel.read(path), expected(layers, eps=1e-3))
    path.write_bytes(network(layers, eps=1e-5))
    check(caffemodel.read(path), expected(layers))


def test_a_scale_factor_of_zero(tmp_path):
    """BatchNormLayer::Forward_cpu sets mean and variance to 0."""
    layers, path = example_layers(), tmp_path / 'net.caffemodel'
    layers['bn_conv1'][2][...] = 0
    path.write_bytes(network(layers))
    got = caffemodel.read(path)
    assert not got['bn_conv1/mean'].any() and not got['bn_conv1/var'].any()


def layer(name, *blobs):
    return bytes_field(100, bytes_field(1, name.encode()) + b''.join(bytes_field(7, blob) for blob in blobs))


ONE = bytes_field(5, struct.pack('<f', 1))

DAMAGED = {
    'empty': (b'', 'does not contain a ResNet'),
    'another network': (layer('conv1_1', ONE), 'does not contain a ResNet'),
    'text': (b'layer { name: "conv1" }', 'damaged'),
    'pickle': (b'\x80\x04cos\nsystem\n(S"true"\ntR.', 'damaged'),
    'no batch normalisation': (layer('conv1', ONE), 'layer bn_conv1 is missing'),
    'too many blobs': (layer('conv1', ONE, ONE, ONE), 'conv1 has 3 blobs, not 1 or 2'),
    'twice': (layer('conv1', ONE) * 2, 'two layers conv1'),
    'shape too large': (
        layer('conv1', bytes_field(7, bytes_field(1, varint(1 << 62) * 3)) + ONE),
        'has 1 value, which does not match its shape',
    ),
    'no values, with a dimension beyond NumPy': (
        layer('conv1', bytes_field(7, bytes_field(1, varint(0) + varint(1 << 63)))),
        r'0 values, .* \(0, 9223372036854775808\)',
    ),
    'many axes': (
        layer('conv1', bytes_field(7, bytes_field(1, b'\x01' * 5000)) + ONE),
        'which does not match its shape',
    ),
    'broken float': (layer('conv1', bytes_field(5, b'abc')), 'ends within a value'),
    'group': (b'\x0b', 'unknown wire type 3'),
    'length past the end': (b'\xa2\x06\xff\xff\xff\xff\x0f', '4294967295 bytes where 0 are left'),
    'endless number': (b'\x80' * 20, 'more than 64 bits'),
    'truncated fixed number': (b'\x0d\x00', 'ends within a field'),
    'name that is not text': (bytes_field(100, bytes_field(1, b'\xff') + bytes_field(7, ONE)), 'damaged'),
    'a million fields': (b'\x08\x00' * 1_000_001, 'more than 1000000 fields'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_and_foreign_files(tmp_path, name):
    data, reason = DAMAGED[name]
    path = tmp_path / 'net.caffemodel'
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match=reason) as caught:
        caffemodel.read(path)
    assert str(caught.value).isprintable() and str(caught.value).startswith(str(path))


def test_truncated_and_bit_flipped_files_only_raise_weight_file_errors(tmp_path):
    data = network(example_layers())
    path = tmp_path / 'net.caffemodel'
    errors = []
    for damaged in [*truncations(data, 100), *bit_flips(data, 200, random.Random(0))]:
        path.write_bytes(damaged)
        try:
            caffemodel.read(path)
        except WeightFileError as error:
            errors.append(str(error))
    assert len(errors) > 90 and all(map(str.isprintable, errors))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(WeightFileError, match='No such file'):
        caffemodel.read(tmp_path / 'no.caffemodel')
    with pytest.raises(WeightFileError, match='is a folder'):
        caffemodel.read(tmp_path)
