"""MindSpore's checkpoints: files in the published format, names, and refused files."""

import random
import struct

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, MINDSPORE
from mask_rcnn.weights import WeightFileError, load_arrays
from mask_rcnn.weights.converters import mindspore
from tests.support.damage import bit_flips
from tests.support.models import constant_model
from tests.support.protobuf_bytes import bytes_field, varint
from tests.support.watching import watch, write_numbered
from tests.support.weight_arrays import zeros

TYPES = {'float32': 'Float32', 'float16': 'Float16', 'float64': 'Float64', 'int32': 'Int32', 'bool': 'Bool'}


# ``checkpoint.proto``, implemented independently


def value(name, array, *, kind=None, dims=None, packed=False):
    array = np.asarray(array)
    dims = (array.shape or (0,)) if dims is None else dims
    shape = bytes_field(1, b''.join(map(varint, dims))) if packed else b''.join(b'\x08' + varint(n) for n in dims)
    tensor = shape + bytes_field(2, (kind or TYPES[array.dtype.name]).encode()) + bytes_field(3, array.tobytes())
    return bytes_field(1, bytes_field(1, name.encode()) + bytes_field(2, tensor))


def checkpoint(arrays):
    return b''.join(value(name, array) for name, array in arrays.items())


# The names and shapes of the model zoo's networks


def convolution(name, n_out, n_in, size):
    return {f'{name}.weight': (n_out, n_in, size, size)}


def with_bias(name, n_out, n_in, size):
    return convolution(name, n_out, n_in, size) | {f'{name}.bias': (n_out,)}


def normalisation(name, width):
    return {f'{name}.{part}': (width,) for part in ('gamma', 'beta', 'moving_mean', 'moving_variance')}


def heads(n_classes, neck, widths):
    shapes = {}
    for i, width in enumerate(widths):
        shapes |= with_bias(f'{neck}.lateral_convs_list.{i}', 256, width, 1)
        shapes |= with_bias(f'{neck}.fpn_convs_list.{i}', 256, 256, 3)
    rpn = 'rpn_with_loss.rpn_convs_list.0'
    shapes |= with_bias(f'{rpn}.rpn_conv', 256, 256, 3) | with_bias(f'{rpn}.rpn_cls', 3, 256, 1)
    shapes |= with_bias(f'{rpn}.rpn_reg', 12, 256, 1)
    dense = {
        'shared_fc_0': (256 * 49, 1024),
        'shared_fc_1': (1024, 1024),
        'cls_scores': (1024, n_classes),
        'reg_scores': (1024, 4 * n_classes),
    }
    for name, shape in dense.items():
        shapes |= {f'rcnn_cls.fpn_cls.{name}.weight': shape, f'rcnn_cls.fpn_cls.{name}.bias': shape[1:]}
    for name, n_out, size in [
        *((f'mask_conv{i}', 256, 3) for i in range(1, 5)),
        ('mask_deconv5', 256, 2),
        ('mask_conv6', n_classes, 1),
    ]:
        shapes |= with_bias(f'rcnn_mask.fpn_mask.{name}', n_out, 256, size)
    return shapes


def resnet50(n_classes=3):
    """Return the shapes of ``maskrcnn``: ``src/maskrcnn/resnet50.py`` and its heads."""
    shapes = convolution('backbone.conv1', 64, 3, 7) | normalisation('backbone.bn1', 64)
    width_in = 64
    for stage, (n_blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for i in range(n_blocks):
            block = f'backbone.layer{stage}.{i}'
            sizes = ((width, width_in, 1), (width, width, 3), (4 * width, width, 1))
            for j, (n_out, n_in, size) in enumerate(sizes, start=1):
                shapes |= convolution(f'{block}.conv{j}', n_out, n_in, size)
                shapes |= normalisation(f'{block}.bn{j}', n_out)
            if i == 0:
                shapes |= convolution(f'{block}.conv_down_sample', 4 * width, width_in, 1)
                shapes |= normalisation(f'{block}.bn_down_sample', 4 * width)
            width_in = 4 * width
    return shapes | heads(n_classes, 'fpn_ncek', (256, 512, 1024, 2048))


def mobilenet(n_classes=3):
    """Return the shapes of ``maskrcnn_mobilenetv1``: ``src/maskrcnn_mobilenetv1/mobilenetv1.py`` and its heads."""
    layers = [(32, 3, 3)]
    width_in = 32
    for width in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
        layers += [(width_in, 1, 3), (width, width_in, 1)]
        width_in = width
    shapes = {}
    for i, layer in enumerate(layers):
        name = f'backbone.mobilenet_v1.network.{i}'
        shapes |= convolution(f'{name}.0', *layer) | normalisation(f'{name}.1', layer[0])
    return shapes | heads(n_classes, 'fpn_neck', (128, 256, 512, 1024))


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return a function that converts arrays as if they came from a file."""
    path = tmp_path / 'model.ckpt'
    path.write_bytes(b'content')

    def read_arrays(arrays):
        monkeypatch.setattr(mindspore, 'read_arrays', lambda _: arrays)
        return mindspore.read(path)

    return read_arrays


def write(tmp_path, data):
    path = tmp_path / 'file.ckpt'
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(('shapes', 'extractor'), [(resnet50(), 'resnet50_fpn'), (mobilenet(), 'mobilenet_v1_fpn')])
def test_every_array_is_converted_and_fits_the_native_network(read, shapes, extractor):
    more = {
        'moments.backbone.conv1.weight': np.zeros(1),
        'learning_rate': np.zeros(()),
        'x': np.zeros(1),
        'rpn_with_loss.rpn_convs_list.1.rpn_conv.weight': np.zeros(1),
    }
    file = read(zeros(shapes) | more)
    assert file.kind == 'model' and file.format == 'mindspore'
    assert file.config.extractor == extractor and file.config.n_fg_class == 2
    assert file.config.dialect is MINDSPORE and file.config.norm == 'bn'
    assert file.report.skipped == {
        'optimizer state': ('learning_rate', 'moments.backbone.conv1.weight'),
        'unknown': ('x',),
        'copies of the RPN': ('rpn_with_loss.rpn_convs_list.1.rpn_conv.weight',),
    }
    assert 'upsamples bilinearly' in file.report.warnings[-1]
    load_arrays(constant_model(file.config), file.arrays, source='file')


def test_the_order_of_axes_and_rows(read, rng):
    state = zeros(resnet50())
    for name in (
        'rcnn_cls.fpn_cls.shared_fc_0.weight',
        'rcnn_cls.fpn_cls.cls_scores.weight',
        'rcnn_cls.fpn_cls.reg_scores.weight',
        'rcnn_cls.fpn_cls.reg_scores.bias',
        'rpn_with_loss.rpn_convs_list.0.rpn_reg.bias',
        'rcnn_mask.fpn_mask.mask_conv6.bias',
        'backbone.layer4.0.bn_down_sample.moving_mean',
    ):
        state[name] = rng.rand(*state[name].shape).astype(np.float32)
    native = read(state).arrays
    np.testing.assert_array_equal(native['box_head/fc6/W'], state['rcnn_cls.fpn_cls.shared_fc_0.weight'].T)
    np.testing.assert_array_equal(native['box_head/score/W'], state['rcnn_cls.fpn_cls.cls_scores.weight'].T)
    yxhw = [4 * k + i for k in range(3) for i in (1, 0, 3, 2)]
    np.testing.assert_array_equal(native['box_head/delta/W'], state['rcnn_cls.fpn_cls.reg_scores.weight'].T[yxhw])
    np.testing.assert_array_equal(native['box_head/delta/b'], state['rcnn_cls.fpn_cls.reg_scores.bias'][yxhw])
    np.testing.assert_array_equal(native['rpn/delta/b'], state['rpn_with_loss.rpn_convs_list.0.rpn_reg.bias'][yxhw])
    np.testing.assert_array_equal(native['mask_head/score/b'], state['rcnn_mask.fpn_mask.mask_conv6.bias'][1:])
    np.testing.assert_array_equal(
        native['extractor/body/res5/block0/shortcut/norm/avg_mean'],
        state['backbone.layer4.0.bn_down_sample.moving_mean'],
    )


def test_the_layers_of_mobilenet(read):
    """Layers 5 and 6 are the depthwise and the pointwise convolution of block 3."""
    state = zeros(mobilenet())
    state['backbone.mobilenet_v1.network.5.0.weight'] = np.ones((128, 1, 3, 3), np.float32)
    state['backbone.mobilenet_v1.network.6.1.gamma'] = np.full(128, 2, np.float32)
    native = read(state).arrays
    assert (native['extractor/body/block3/depthwise/conv/W'] == 1).all()
    assert (native['extractor/body/block3/pointwise/norm/gamma'] == 2).all()


def test_the_stride_of_a_stage_is_in_its_3x3_convolution():
    """In ``ResidualBlockUsing``, ``conv2`` has the stride; in Detectron, the first convolution has it."""
    for dialect, strides in ((MINDSPORE, (1, 2)), (DETECTRON, (2, 1))):
        backbone = constant_model('resnet50_fpn', n_fg_class=1, dialect=dialect).extractor.body
        block = backbone.res3.block0
        assert (block.conv1.conv.stride[0], block.conv2.conv.stride[0]) == strides
        assert block.shortcut.conv.stride[0] == 2 and backbone.res2.block0.conv2.conv.stride[0] == 1


# The format


ARRAYS = {
    'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'b.gamma': np.array([1.5, -2], np.float16),
    'step': np.array(7, np.int32),
    'flag': np.array([True, False]),
    'double': np.array([[np.pi]]),
}


@pytest.mark.parametrize('packed', [False, True])
def test_tensors(tmp_path, packed):
    data = b''.join(value(name, array, packed=packed) for name, array in ARRAYS.items())
    assert mindspore.is_checkpoint(data)
    arrays = mindspore.read_arrays(write(tmp_path, data))
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape


@pytest.mark.parametrize(
    'data',
    [b'', b'\n', b'\n\x05', b'\n\x0aResNet-50\xa2', b'\x80\x02}.', b'\n\x05\n\x03a b\x12', b'\n\x05\n\x03abc\x1a'],
)
def test_other_files_are_not_checkpoints(data):
    assert not mindspore.is_checkpoint(data)


ONE = np.ones(1, np.float32)


HOSTILE = {
    'shape is larger': (value('a', ONE, dims=(1 << 40,)), 'a has 4 bytes, which does not match its shape'),
    'shape is smaller': (value('a', np.ones(2, np.float32), dims=(1,)), 'a has 8 bytes'),
    'shape overflows': (value('a', ONE, dims=(1 << 63, 4, 1 << 63)), 'a has 4 bytes'),
    'no values, with a dimension beyond NumPy': (
        value('a', np.ones(0, np.float32), dims=(0, 1 << 63)),
        r'a has 0 bytes, .* \(0, 9223372036854775808\)',
    ),
    'many axes': (value('a', ONE, dims=(1,) * 9), 'a has 4 bytes'),
    'another type': (value('a', ONE, kind='Pickle\n'), r'a is of the unknown type Pickle\\n'),
    'a name twice': (value('a', ONE) * 2, 'two tensors are called a'),
    'no tensor': (bytes_field(1, bytes_field(1, b'a')), 'a tensor without a name or a name without a tensor'),
    'a length beyond the end': (b'\n\xff\xff\xff\xff\x0f\n\x01a', 'a field of 4294967295 bytes'),
    'a name that is not text': (bytes_field(1, bytes_field(1, b'\xff') + bytes_field(2, b'')), 'codec'),
    'no tensors': (b'\x10\x01', 'has no tensors'),
    'empty': (b'', 'has no tensors'),
    'another network': (value('conv.weight', ONE), 'neither of maskrcnn nor of maskrcnn_mobilenetv1'),
    'no classes': (value('backbone.layer1.0.conv1.weight', ONE), 'no layer rcnn_cls.fpn_cls.cls_scores'),
    'a network without most of its arrays': (
        value('backbone.layer1.0.conv1.weight', ONE)
        + value('rcnn_cls.fpn_cls.cls_scores.weight', np.ones((1, 3), np.float32)),
        'missing arrays: backbone.conv1.weight',
    ),
}

#: Files that take long to refuse; only :func:`test_damaged_files_do_nothing` reads them.
LARGE = {
    'many tensors': (b''.join(value(f'{i:05}', ONE) for i in range(20_001)), 'more than 20000 tensors'),
    'millions of fields': (b'\x10\x00' * 1_000_001, 'more than 1000000 fields'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_files_raise_a_one_line_error(tmp_path, name):
    data, reason = HOSTILE[name]
    with pytest.raises(WeightFileError, match=reason) as caught:
        mindspore.read(write(tmp_path, data))
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_damaged_files_do_nothing(tmp_path, root):
    good = checkpoint(ARRAYS)
    bad = [good[:i] for i in range(0, len(good) - 1, 3)]
    bad += bit_flips(good, 300, random.Random(0))
    bad += [data for data, _ in HOSTILE.values()] + [struct.pack('<I', i) * 100 for i in range(50)]
    bad += [data for data, _ in LARGE.values()]
    write_numbered(tmp_path, [good], bad)
    outcomes, kilobytes = watch(tmp_path, root, 'converters.mindspore.read_arrays')
    assert len(outcomes) == len(bad)
    for outcome, (_, reason) in zip(list(outcomes.values())[-len(LARGE) :], LARGE.values(), strict=True):
        assert reason in outcome
    assert kilobytes < 30_000
