"""Matterport's ``.h5`` files: complete ones in Keras' layout, and damaged and hostile ones."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn.config import MATTERPORT, RESNET_BLOCKS
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.converters import matterport
from mask_rcnn.weights.converters.settings import read_json

h5py = pytest.importorskip('h5py')

N_CLASS, FPN, RPN, HEAD, MASK = 4, 8, 6, 10, 8
SETTINGS = {
    'IMAGE_MIN_DIM': 128,
    'IMAGE_MAX_DIM': 128,
    'RPN_ANCHOR_SCALES': [8, 16, 32, 64, 128],
    'DETECTION_MIN_CONFIDENCE': 0.5,
}


def keras_shapes(backbone='resnet50'):
    """Return layer -> array -> shape, in Keras' order of axes."""

    def conv(shape):
        return {'kernel': shape, 'bias': shape[-1:]}

    def norm(n):
        return dict.fromkeys(('gamma', 'beta', 'moving_mean', 'moving_variance'), (n,))

    layers = {'conv1': conv((7, 7, 3, 64)), 'bn_conv1': norm(64)}
    width_in = 64
    for stage, blocks in enumerate(RESNET_BLOCKS[backbone], start=2):
        width = 64 << stage - 2
        for block in range(blocks):
            name = f'{stage}{chr(97 + block)}'
            shapes = {'2a': (1, 1, width_in, width), '2b': (3, 3, width, width), '2c': (1, 1, width, 4 * width)}
            if block == 0:
                shapes['1'] = (1, 1, width_in, 4 * width)
            for branch, shape in shapes.items():
                layers[f'res{name}_branch{branch}'] = conv(shape)
                layers[f'bn{name}_branch{branch}'] = norm(shape[-1])
            width_in = 4 * width
    for stage in range(2, 6):
        layers[f'fpn_c{stage}p{stage}'] = conv((1, 1, 64 << stage, FPN))
        layers[f'fpn_p{stage}'] = conv((3, 3, FPN, FPN))
    layers |= {
        'rpn_conv_shared': conv((3, 3, FPN, RPN)),
        'rpn_class_raw': conv((1, 1, RPN, 6)),
        'rpn_bbox_pred': conv((1, 1, RPN, 12)),
        'mrcnn_class_conv1': conv((7, 7, FPN, HEAD)),
        'mrcnn_class_bn1': norm(HEAD),
        'mrcnn_class_conv2': conv((1, 1, HEAD, HEAD)),
        'mrcnn_class_bn2': norm(HEAD),
        'mrcnn_class_logits': conv((HEAD, N_CLASS)),
        'mrcnn_bbox_fc': conv((HEAD, 4 * N_CLASS)),
        'mrcnn_mask_deconv': {'kernel': (2, 2, MASK, MASK), 'bias': (MASK,)},
        'mrcnn_mask': conv((1, 1, MASK, N_CLASS)),
    }
    for i in range(1, 5):
        layers[f'mrcnn_mask_conv{i}'] = conv((3, 3, FPN if i == 1 else MASK, MASK))
        layers[f'mrcnn_mask_bn{i}'] = norm(MASK)
    return layers


def values(layer, kind, shape):
    """Return small values that differ between layers, kinds and positions; variances are positive."""
    start = sum(map(ord, layer + kind)) % 89
    period = (np.arange(101) * 7 + start) % 101 / np.float32(101)
    return np.resize(period.astype(np.float32) + np.float32(0.5 if kind == 'moving_variance' else -0.5), shape)


@pytest.fixture(scope='module')
def arrays():
    return {
        (layer, kind): values(layer, kind, shape)
        for layer, kinds in keras_shapes().items()
        for kind, shape in kinds.items()
    }


def write(path, arrays, *, place='{layer}/{layer}/{kind}:0', extra=()):
    """Write a file in Keras' layout; ``rpn_*`` are layers of a model inside the model."""
    with h5py.File(path, 'w') as file:
        file.attrs['layer_names'] = np.array(sorted({layer.encode() for layer, _ in arrays}))
        file.attrs['backend'] = b'tensorflow'
        for (layer, kind), array in arrays.items():
            name = place if not layer.startswith('rpn_') else place.replace('{layer}/', 'rpn_model/', 1)
            file.create_dataset(name.format(layer=layer, kind=kind), data=array)
        for name, array in extra:
            file.create_dataset(name, data=array)
    return path


@pytest.fixture(scope='module')
def path(arrays, tmp_path_factory):
    return write(tmp_path_factory.mktemp('h5') / 'mask_rcnn_shapes_0010.h5', arrays)


@pytest.fixture(scope='module')
def file(path):
    return matterport.read(path, SETTINGS)


def test_the_arrays_determine_the_network(file):
    config = file.config
    assert (file.kind, file.format) == ('model', 'matterport-h5')
    assert (config.dialect, config.norm) == (MATTERPORT, 'bn')
    assert (config.extractor, config.n_fg_class, config.fpn_channels, config.rpn_channels) == (
        'resnet50_fpn',
        N_CLASS - 1,
        FPN,
        RPN,
    )
    assert (config.head_channels, config.mask_channels, config.roi_size, config.mask_roi_size) == (HEAD, MASK, 7, 14)
    assert (config.min_size, config.max_size, config.anchor_sizes, config.anchor_ratios) == (
        128,
        128,
        (8, 16, 32, 64, 128),
        (2, 1, 0.5),
    )
    assert (config.score_threshold, config.nms_threshold, config.rpn_pre_nms, config.rpn_post_nms) == (
        0.5,
        0.3,
        6000,
        1000,
    )
    assert not file.report.skipped and not file.report.warnings and not file.report.notes


def test_every_array_is_converted_once(file, arrays):
    kinds = {'moving_mean': 'mean', 'moving_variance': 'var'}
    assert sorted(file.report.taken) == sorted(f'{layer}/{kinds.get(kind, kind)}' for layer, kind in arrays)


def test_convolutions_and_normalisations_of_the_backbone(file, arrays):
    native, path = file.arrays, 'extractor/body/res4/block5/conv2'
    np.testing.assert_array_equal(native[f'{path}/conv/W'], arrays['res4f_branch2b', 'kernel'].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(native[f'{path}/norm/gamma'], arrays['bn4f_branch2b', 'gamma'])
    np.testing.assert_array_equal(native[f'{path}/norm/avg_var'], arrays['bn4f_branch2b', 'moving_variance'])
    np.testing.assert_allclose(
        native[f'{path}/norm/avg_mean'],
        arrays['bn4f_branch2b', 'moving_mean'] - arrays['res4f_branch2b', 'bias'],
        rtol=0,
        atol=1e-7,
    )
    np.testing.assert_array_equal(
        native['extractor/body/res3/block0/shortcut/conv/W'], arrays['res3a_branch1', 'kernel'].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(native['extractor/lateral4/W'], arrays['fpn_c4p4', 'kernel'].transpose(3, 2, 0, 1))


def test_a_pair_of_logits_becomes_one_logit(file, arrays):
    kernel, bias = (arrays['rpn_class_raw', kind] for kind in ('kernel', 'bias'))
    np.testing.assert_allclose(
        file.arrays['rpn/objectness/W'][:, :, 0, 0], (kernel[0, 0, :, 1::2] - kernel[0, 0, :, ::2]).T, rtol=0, atol=1e-7
    )
    np.testing.assert_allclose(file.arrays['rpn/objectness/b'], bias[1::2] - bias[::2], rtol=0, atol=1e-7)


def test_the_normalisations_of_the_heads_are_folded(file, arrays, rng):
    """The folded layer computes the same as Keras' two layers."""
    x = rng.standard_normal((7, 7, FPN))
    scale = arrays['mrcnn_class_bn1', 'gamma'] / np.sqrt(arrays['mrcnn_class_bn1', 'moving_variance'] + 1e-3)
    h = np.einsum('hwi,hwio->o', x, arrays['mrcnn_class_conv1', 'kernel'])
    h += arrays['mrcnn_class_conv1', 'bias']
    expected = (h - arrays['mrcnn_class_bn1', 'moving_mean']) * scale + arrays['mrcnn_class_bn1', 'beta']
    found = file.arrays['box_head/fc6/W'] @ x.transpose(2, 0, 1).ravel() + file.arrays['box_head/fc6/b']
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_background_mask_is_dropped(file, arrays):
    np.testing.assert_array_equal(
        file.arrays['mask_head/score/W'][:, :, 0, 0], arrays['mrcnn_mask', 'kernel'][0, 0, :, 1:].T
    )
    np.testing.assert_array_equal(
        file.arrays['mask_head/deconv/W'], arrays['mrcnn_mask_deconv', 'kernel'].transpose(3, 2, 0, 1)
    )


def test_a_saved_multi_gpu_model(arrays, file, tmp_path):
    """``model.save`` writes the weights of the inner model one level down, numbered names, and an optimizer."""
    momentum = ('optimizer_weights/training/SGD/mrcnn_mask/kernel/momentum:0', np.zeros((1, 1, MASK, N_CLASS), 'f4'))
    anchors = ('model_weights/anchors/anchors/Variable:0', np.zeros((2, 9, 4), 'f4'))
    path = write(
        tmp_path / 'model.h5',
        arrays,
        place='model_weights/mask_rcnn/{layer}/{layer}_1/{kind}:0',
        extra=[momentum, anchors],
    )
    again = matterport.read(path, SETTINGS)
    assert again.config == file.config and list(again.arrays) == list(file.arrays)
    for name, array in again.arrays.items():
        np.testing.assert_array_equal(array, file.arrays[name])
    assert again.report.skipped == {'optimizer': (f'/{momentum[0]}',), 'unknown': (f'/{anchors[0]}',)}


def test_reading_needs_little_memory(path):
    """Reading takes at most three times the size of the file."""
    code = (
        'import mask_rcnn\nfrom mask_rcnn.weights.converters import matterport\n'
        'def peak():\n'
        '    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024\n'
        f'before = peak()\nmatterport.read({str(path)!r}, {SETTINGS!r})\nprint(peak() - before)'
    )
    out = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    assert int(out) <= 3 * path.stat().st_size


# Settings that the file does not contain


@pytest.fixture(scope='module')
def contents(path):
    return matterport._read_contents(path)


@pytest.fixture
def read(path, contents, monkeypatch):
    """Return a function that converts the arrays of ``path`` with other settings without reading them again."""
    monkeypatch.setattr(matterport, '_read_contents', lambda _: contents)
    return lambda settings=None: matterport.read(path, settings)


def test_matterports_defaults_are_used_with_a_warning(read):
    file = read()
    assert (file.config.min_size, file.config.max_size, file.config.score_threshold) == (800, 1024, 0.7)
    assert file.config.anchor_sizes == (32, 64, 128, 256, 512)
    (warning,) = file.report.warnings
    assert 'IMAGE_MAX_DIM' in warning and 'RPN_ANCHOR_SCALES' in warning


def test_standard_deviations_are_folded_into_the_deltas(read, file):
    again = read({**SETTINGS, 'BBOX_STD_DEV': [0.2, 0.1, 0.2, 0.4]})
    factors = np.tile([2, 1, 1, 2], N_CLASS)
    np.testing.assert_allclose(again.arrays['box_head/delta/b'], file.arrays['box_head/delta/b'] * factors, rtol=1e-6)
    np.testing.assert_allclose(
        again.arrays['box_head/delta/W'], file.arrays['box_head/delta/W'] * factors[:, None], rtol=1e-6
    )
    np.testing.assert_array_equal(again.arrays['rpn/delta/W'], file.arrays['rpn/delta/W'])


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('IMAGE_MAX_DIM', '512', 'IMAGE_MAX_DIM must be a positive integer'),
        ('IMAGE_MAX_DIM', 500, 'multiple of 64'),
        ('RPN_ANCHOR_SCALES', [32, 64], '5 levels'),
        ('RPN_ANCHOR_SCALES', [1, 2, 3, 4, 'x'], 'list of positive numbers'),
        *(
            ('RPN_ANCHOR_SCALES', [1, 2, 3, 4, number], 'RPN_ANCHOR_SCALES must be .* between 1e-06 and 1e[+]06, not')
            for number in (0, -1, float('inf'), float('nan'), 10**400, 1e6, 1e300)
        ),
        ('RPN_ANCHOR_RATIOS', [1, 2, 1e-320], 'RPN_ANCHOR_RATIOS must be a list'),
        ('BBOX_STD_DEV', [1, 1, 1, 1e-30], 'BBOX_STD_DEV must be a list'),
        ('DETECTION_MIN_CONFIDENCE', 7, 'number from 0 to 1'),
        ('BBOX_STD_DEV', [1, 2], 'four numbers'),
    ],
)
def test_invalid_settings(read, name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read({**SETTINGS, name: value})
    assert str(caught.value).isprintable()


def test_thresholds_may_be_zero(read):
    file = read({**SETTINGS, 'DETECTION_MIN_CONFIDENCE': 0, 'DETECTION_NMS_THRESHOLD': 0})
    assert (file.config.score_threshold, file.config.nms_threshold) == (0, 0)


@pytest.mark.parametrize(('name', 'value'), [('NUM_CLASSES', 81), ('BACKBONE', 'resnet101'), ('POOL_SIZE', 14)])
def test_settings_that_contradict_the_arrays(read, name, value):
    with pytest.raises(WeightFileError, match=f'for {name} = .*, not {value}'):
        read({**SETTINGS, name: value})


def test_unsupported_settings_are_warnings(read):
    others = {'IMAGE_RESIZE_MODE': 'pad64', 'LEARNING_RATE': 0.1, 'NAME': 'x'}
    file = read({**SETTINGS, **others})
    (warning,) = file.report.warnings
    assert 'IMAGE_RESIZE_MODE is pad64, which is not supported; square is used' in warning


def test_settings_from_json(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(SETTINGS))
    assert read_json(path) == SETTINGS
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())  # of Windows' Notepad
    assert read_json(path) == SETTINGS
    for text, message in (('[1]', 'names and values'), ('{', 'not JSON'), ('[' * 10**5, 'not JSON')):
        path.write_text(text)
        with pytest.raises(WeightFileError, match=message):
            read_json(path)
    with pytest.raises(WeightFileError, match='No such file'):
        read_json(tmp_path / 'none.json')


# Damaged and hostile files


def refused(path, message):
    with pytest.raises(WeightFileError) as info:
        matterport.read(path, SETTINGS)
    text = str(info.value)
    assert message in text and text.startswith(str(path)) and '\n' not in text and len(text) < 3000


@pytest.fixture
def small(tmp_path):
    """Write a file with two layers of the network, to which tests add objects."""
    path = tmp_path / 'small.h5'
    with h5py.File(path, 'w') as file:
        for layer in ('mrcnn_class_logits', 'rpn_class_raw'):
            file.create_dataset(f'{layer}/{layer}/bias:0', data=np.zeros(4, 'f4'))
    return path


def test_missing_arrays_are_listed(arrays, tmp_path):
    less = {key: array for key, array in arrays.items() if key != ('bn3b_branch2c', 'gamma')}
    less['fpn_p3', 'bias'] = np.zeros(5, 'f4')
    refused(write(tmp_path / 'less.h5', less), 'missing arrays: bn3b_branch2c/gamma; fpn_p3/bias is float32 (5,)')


def test_files_of_other_formats(tmp_path, small):
    refused(tmp_path / 'none.h5', 'No such file')
    (tmp_path / 'text.h5').write_text('no weights at all')
    refused(tmp_path / 'text.h5', 'is not an HDF5 file')
    refused(small, 'fourth stage')
    with h5py.File(tmp_path / 'other.h5', 'w') as file:
        file.create_dataset('dense_1/dense_1/kernel:0', data=np.zeros((3, 4), 'f4'))
    refused(tmp_path / 'other.h5', 'is not a Mask R-CNN of Matterport')


@pytest.mark.parametrize('size', [8, 100, 1000, 2000])
def test_truncated(small, size):
    small.write_bytes(small.read_bytes()[:size])
    refused(small, 'HDF5')


def test_flipped_bits(small, rng):
    """Each damaged file raises a one-line error."""
    data = small.read_bytes()
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.randint(8, len(data), 3):
            damaged[place] ^= 1 << rng.randint(8)
        small.write_bytes(damaged)
        refused(small, '')


def test_links_are_not_followed(small, tmp_path):
    other = tmp_path / 'other.h5'
    with h5py.File(other, 'w') as file:
        file.create_dataset('kernel:0', data=np.zeros((3, 4), 'f4'))
    with h5py.File(small, 'a') as file:
        del file['mrcnn_class_logits'], file['rpn_class_raw']
        file['mrcnn_class_logits/kernel:0'] = h5py.ExternalLink(str(other), '/kernel:0')
        file['rpn_class_raw/kernel:0'] = h5py.SoftLink('/rpn_class_raw')
    refused(small, 'is not a Mask R-CNN of Matterport')


def test_data_in_other_files_are_not_read(small, tmp_path):
    (tmp_path / 'secret').write_bytes(bytes(64))
    with h5py.File(small, 'a') as file:
        file.create_dataset('conv1/conv1/bias:0', (16,), 'f4', external=[(str(tmp_path / 'secret'), 0, 64)])
    refused(small, 'conv1/bias is stored in another file')
    layout = h5py.VirtualLayout((16,), 'f4')
    layout[:] = h5py.VirtualSource(str(tmp_path / 'secret.h5'), 'x', (16,))
    with h5py.File(small, 'a') as file:
        del file['conv1']
        file.create_virtual_dataset('conv1/conv1/bias:0', layout)
    refused(small, 'conv1/bias is stored in another file')


def test_shapes_beyond_the_file(small):
    with h5py.File(small, 'a') as file:
        file.create_dataset('conv1/conv1/bias:0', (1 << 20, 1 << 20), 'f4', chunks=(64, 64))
    refused(small, 'more than the file contains')
    with h5py.File(small, 'a') as file:
        del file['conv1']
        file.create_dataset('conv1/conv1/bias:0', data=np.zeros(10**6, 'f4'), compression='gzip')
    refused(small, 'more than the file contains')
    with h5py.File(small, 'a') as file:
        del file['conv1']
        file.create_dataset('conv1/conv1/bias:0', (64,), 'f4')
    refused(small, 'has no values')


def test_foreign_compression_and_types(small):
    with h5py.File(small, 'a') as file:
        file.create_dataset('conv1/conv1/bias:0', data=np.zeros(64, 'f4'), compression='lzf')
    refused(small, 'compressed with an unsupported method')
    with h5py.File(small, 'a') as file:
        del file['conv1']
        file.create_dataset('conv1/conv1/bias:0', data=['import os'], dtype=h5py.string_dtype())
    refused(small, 'not an array of floating-point numbers')


def test_cyclic_and_too_many_groups(small, monkeypatch):
    with h5py.File(small, 'a') as file:
        file['again/and_again'] = file['/']
        file['again/rpn_class_raw'] = file['rpn_class_raw']
    refused(small, 'fourth stage')  # every object is visited once
    monkeypatch.setattr(matterport, '_MAX_OBJECTS', 50)
    with h5py.File(small, 'a') as file:
        for i in range(60):
            file.create_group(f'many/{i}')
    refused(small, 'more groups than any network')


def test_long_paths(small):
    with h5py.File(small, 'a') as file:
        file.create_group('/'.join(['a' * 400] * 2))
    refused(small, 'fourth stage')
    with h5py.File(small, 'a') as file:
        file.create_group('/'.join(['a' * 400] * 3))
    refused(small, 'has a path of more than 1000 characters: /aaaa')


def test_an_array_that_appears_twice(small):
    with h5py.File(small, 'a') as file:
        file.create_dataset('model_1/rpn_class_raw/bias:0', data=np.ones(4, 'f4'))
    refused(small, 'has rpn_class_raw/bias twice')
