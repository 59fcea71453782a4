"""State dicts of Matterport's network in PyTorch: names, folding, and refused files."""

import math

import numpy as np
import pytest

from mask_rcnn.config import MATTERPORT
from mask_rcnn.weights import WeightFileError, load_arrays
from mask_rcnn.weights.converters import pytorch
from mask_rcnn.weights.readers import torch_file
from tests.support import torch_bytes
from tests.support.models import constant_model
from tests.support.python_files import import_file
from tests.support.weight_arrays import zeros


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return a function that converts a state dict as if it came from a file."""
    path = tmp_path / 'model.pth'
    path.write_bytes(b'content')

    def read_state(state, settings=None):
        monkeypatch.setattr(torch_file, 'read', lambda _: state)
        return pytorch.read(path, settings)

    return read_state


# The names and shapes of the programs' ``state_dict()``.


def convolution(name, n_out, n_in, size, transposed=False):
    shape = (n_in, n_out, size, size) if transposed else (n_out, n_in, size, size)
    return {f'{name}.weight': shape, f'{name}.bias': (n_out,)}


def normalisation(name, width):
    return {f'{name}.{part}': (width,) for part in ('weight', 'bias', 'running_mean', 'running_var')}


def stages(names, n_blocks):
    """Return the shapes of the bottleneck blocks of ``make_layer``, which both programs share."""
    shapes, width_in = {}, 64
    for name, n_blocks_of_stage, width in zip(names, n_blocks, (64, 128, 256, 512), strict=True):
        for i in range(n_blocks_of_stage):
            block = f'{name}.{i}'
            if i == 0:
                shapes |= convolution(f'{block}.downsample.0', 4 * width, width_in, 1)
                shapes |= normalisation(f'{block}.downsample.1', 4 * width)
            sizes = ((width, width_in, 1), (width, width, 3), (4 * width, width, 1))
            for j, (n_out, n_in, size) in enumerate(sizes, start=1):
                shapes |= convolution(f'{block}.conv{j}', n_out, n_in, size)
                shapes |= normalisation(f'{block}.bn{j}', n_out)
            width_in = 4 * width
    return shapes


def heads(names, n_classes):
    """Return the shapes of RPN, classifier and mask head under a program's names of Keras' layers."""
    rpn, classifier, mask = names
    shapes = convolution(rpn[0], 512, 256, 3) | convolution(rpn[1], 6, 512, 1)
    shapes |= convolution(rpn[2], 12, 512, 1) | convolution(f'{classifier}conv1', 1024, 256, 7)
    shapes |= convolution(f'{classifier}conv2', 1024, 1024, 1)
    for i in (1, 2):
        shapes |= normalisation(f'{classifier}bn{i}', 1024)
    for i in range(1, 5):
        shapes |= convolution(f'{mask}conv{i}', 256, 256, 3) | normalisation(f'{mask}bn{i}', 256)
    return shapes | convolution(f'{mask}deconv', 256, 256, 2, transposed=True)


def multimodal(n_classes=4, n_res4=6):
    """Return the shapes of multimodallearning/pytorch-mask-rcnn, ``model.py``."""
    shapes = convolution('fpn.C1.0', 64, 3, 7) | normalisation('fpn.C1.1', 64)
    shapes |= stages([f'fpn.C{i}' for i in (2, 3, 4, 5)], (3, 4, n_res4, 3))
    for level, width in (5, 2048), (4, 1024), (3, 512), (2, 256):
        shapes |= convolution(f'fpn.P{level}_conv1', 256, width, 1)
        shapes |= convolution(f'fpn.P{level}_conv2.1', 256, 256, 3)
    shapes |= heads((('rpn.conv_shared', 'rpn.conv_class', 'rpn.conv_bbox'), 'classifier.', 'mask.'), n_classes)
    return shapes | {
        'classifier.linear_class.weight': (n_classes, 1024),
        'classifier.linear_class.bias': (n_classes,),
        'classifier.linear_bbox.weight': (4 * n_classes, 1024),
        'classifier.linear_bbox.bias': (4 * n_classes,),
        **convolution('mask.conv5', n_classes, 256, 1),
    }


def graph(n_classes=4, n_res4=6):
    """Return the shapes of Pytorch_Mask_RCNN, ``network/mask_rcnn.py``."""
    shapes = convolution('resnet_graph.conv1', 64, 3, 7) | normalisation('resnet_graph.bn1', 64)
    shapes |= stages([f'resnet_graph.layer{i}' for i in (1, 2, 3, 4)], (3, 4, n_res4, 3))
    for level, width in (5, 2048), (4, 1024), (3, 512), (2, 256):
        shapes |= convolution(f'fpn_c{level}p{level}', 256, width, 1)
        shapes |= convolution(f'fpn_p{level}', 256, 256, 3)
    shapes |= heads(
        (
            ('rpn.rpn_conv_shared', 'rpn.rpn_class_raw', 'rpn.rpn_bbox_pred'),
            'rpn_class.mrcnn_class_',
            'rpn_mask.mrcnn_mask_',
        ),
        n_classes,
    )
    return shapes | {
        'rpn_class.mrcnn_class_logits.weight': (n_classes, 1024),
        'rpn_class.mrcnn_class_logits.bias': (n_classes,),
        'rpn_class.mrcnn_bbox_fc.weight': (4 * n_classes, 1024),
        'rpn_class.mrcnn_bbox_fc.bias': (4 * n_classes,),
        **convolution('rpn_mask.mrcnn_mask', n_classes, 256, 1),
    }


PROGRAMS = {'multimodal': multimodal, 'graph': graph}


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize(('backbone', 'n_res4'), [('resnet50', 6), ('resnet101', 23)])
def test_every_array_is_converted_and_fits_the_native_network(read, program, backbone, n_res4):
    more = {'fpn.C1.1.num_batches_tracked': np.array(3), 'x\n': np.ones(1)}
    state = zeros(PROGRAMS[program](4, n_res4)) | more
    file = read(state)
    assert file.kind == 'model' and file.format == 'pytorch'
    assert file.config.extractor == f'{backbone}_fpn' and file.config.n_fg_class == 3
    assert file.config.dialect is MATTERPORT and file.config.norm == 'bn'
    assert file.report.skipped == {'batch counters': ('fpn.C1.1.num_batches_tracked',), 'unknown': ('x\\n',)}
    load_arrays(constant_model(file.config), file.arrays, source='file')


@pytest.mark.parametrize('program', PROGRAMS)
def test_the_values_of_converted_arrays(read, program, rng):
    """Compare the arrays of a block and of the heads with an independent implementation."""
    shapes = PROGRAMS[program](3)
    state = zeros(shapes)
    names = {
        'multimodal': ('fpn.C2.0', 'classifier.', 'mask.', 'rpn.conv_class', 'fpn.P4_conv1'),
        'graph': (
            'resnet_graph.layer1.0',
            'rpn_class.mrcnn_class_',
            'rpn_mask.mrcnn_mask_',
            'rpn.rpn_class_raw',
            'fpn_c4p4',
        ),
    }[program]
    block, classifier, mask, pair, lateral = names
    starts = (
        f'{block}.conv1',
        f'{block}.bn1',
        f'{classifier}conv2',
        f'{classifier}bn2',
        f'{mask}conv4',
        f'{mask}bn4',
        pair,
        lateral,
    )
    nonzero = [name for name in shapes if name.startswith(starts)]
    state |= {name: rng.rand(*shapes[name]).astype(np.float32) + 0.1 for name in nonzero}
    native = read(state).arrays

    def scale(norm):
        return state[f'{norm}.weight'] / np.sqrt(state[f'{norm}.running_var'] + np.float64(1e-3))

    np.testing.assert_array_equal(native['extractor/lateral4/W'], state[f'{lateral}.weight'])
    prefix = 'extractor/body/res2/block0/conv1'
    np.testing.assert_array_equal(native[f'{prefix}/conv/W'], state[f'{block}.conv1.weight'])
    np.testing.assert_array_equal(native[f'{prefix}/norm/gamma'], state[f'{block}.bn1.weight'])
    np.testing.assert_array_equal(native[f'{prefix}/norm/avg_var'], state[f'{block}.bn1.running_var'])
    np.testing.assert_allclose(
        native[f'{prefix}/norm/avg_mean'], state[f'{block}.bn1.running_mean'] - state[f'{block}.conv1.bias'], atol=1e-6
    )
    for conv, norm, path in (
        (f'{classifier}conv2', f'{classifier}bn2', 'box_head/fc7'),
        (f'{mask}conv4', f'{mask}bn4', 'mask_head/conv4'),
    ):
        want = state[f'{conv}.weight'] * scale(norm)[:, None, None, None]
        np.testing.assert_allclose(native[f'{path}/W'].reshape(want.shape), want, rtol=1e-6)
        bias = (state[f'{conv}.bias'] - state[f'{norm}.running_mean']) * scale(norm) + state[f'{norm}.bias']
        np.testing.assert_allclose(native[f'{path}/b'], bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        native['rpn/objectness/b'], np.diff(state[f'{pair}.bias'].reshape(3, 2))[:, 0], atol=1e-7
    )


def test_settings_reach_the_configuration(read):
    file = read(zeros(multimodal()), {'IMAGE_MAX_DIM': 128, 'RPN_ANCHOR_SCALES': [8, 16, 32, 64, 128]})
    assert file.config.max_size == 128 and file.config.anchor_sizes == (8, 16, 32, 64, 128)
    assert any('DETECTION_MIN_CONFIDENCE' in line for line in file.report.warnings)


@pytest.mark.parametrize(
    ('state', 'reason'),
    [
        ({'backbone.body.stem.conv1.weight': (1,)}, 'of maskrcnn-benchmark'),
        ({'neck.lateral_convs.0.conv.weight': (1,)}, 'of MMDetection'),
        ({'conv1.weight': (1,), 'layer4.0.conv1.weight': (1,)}, 'of a ResNet classifier'),
        ({'a\x1b': (1,)}, r'not of a supported Mask R-CNN .*begins with a\\x1b'),
        (multimodal(n_res4=7), 'a ResNet with 7 blocks in its fourth stage'),
        (multimodal() | {'classifier.linear_class.weight': (1, 1024)}, 'no class except the background'),
        (multimodal() | {'rpn.conv_class.weight': (30, 512, 1, 1)}, 'has 15 anchors per location'),
        (multimodal() | {'classifier.conv1.weight': (1024, 256, 5, 5)}, 'sizes are not supported: roi_size'),
        (multimodal() | {'mask.conv5.bias': (5,)}, r'mask.conv5.bias is float32 \(5,\), expected float32 \(4,\)'),
        (
            {name: shape for name, shape in graph().items() if 'layer3.2.bn2' not in name},
            'missing arrays: resnet_graph.layer3.2.bn2.weight, resnet_graph.layer3.2.bn2.bias',
        ),
    ],
)
def test_refused_files(read, state, reason):
    with pytest.raises(WeightFileError, match=reason) as caught:
        read(zeros(state))
    assert str(caught.value).isprintable()


def test_a_file_becomes_the_arrays_of_the_native_network(tmp_path):
    """The tensors share one storage, in which the index of a tensor is its offset."""
    shapes = multimodal()
    items = np.arange(max(map(math.prod, shapes.values())) + len(shapes), dtype=np.float32)
    storage = torch_bytes.storage('FloatStorage', '0', items.size)
    arrays, tensors = {}, {}
    for offset, (name, shape) in enumerate(shapes.items()):
        arrays[name] = array = items[offset : offset + math.prod(shape)].reshape(shape)
        tensors[name] = torch_bytes.tensor(storage, offset, shape, [n // array.itemsize for n in array.strides])
    path = tmp_path / 'model.pth'
    path.write_bytes(torch_bytes.zipped(torch_bytes.dictionary(tensors), {'0': items.tobytes()}))
    file = pytorch.read(path)
    assert (file.kind, file.format, file.config.n_fg_class) == ('model', 'pytorch', 3)
    assert set(file.report.taken) == set(shapes)
    for native, source in {
        'extractor/body/res4/block5/conv2/conv/W': 'fpn.C4.5.conv2.weight',
        'extractor/body/res3/block0/shortcut/norm/avg_var': 'fpn.C3.0.downsample.1.running_var',
        'extractor/lateral4/W': 'fpn.P4_conv1.weight',
        'extractor/output2/b': 'fpn.P2_conv2.1.bias',
        'rpn/conv/W': 'rpn.conv_shared.weight',
        'box_head/score/W': 'classifier.linear_class.weight',
        'mask_head/deconv/W': 'mask.deconv.weight',
    }.items():
        np.testing.assert_array_equal(file.arrays[native], arrays[source], err_msg=native)


@pytest.mark.slow
def test_the_reference_weights_through_a_file(matterport_golden, tmp_path):
    """Matterport's reference weights in a PyTorch file and in an ``.h5`` file convert to the same arrays."""
    pytest.importorskip('h5py')
    from mask_rcnn.weights.converters import matterport

    writer = import_file(matterport_golden / 'matterport_weights.py')
    weights, meta = writer.load(matterport_golden / 'matterport' / 'recipe_shapes_resnet50.npz')
    writer.write_h5(weights, meta, tmp_path / 'shapes.h5')
    state = {}
    for name, array in weights.items():
        layer, kind = name.split('/')[-2:]
        kind = {'moving_mean': 'mean', 'moving_variance': 'var'}.get(kind[:-2], kind[:-2])
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        state[pytorch._multimodal_name(layer, kind)] = array.transpose(axes)
    path = tmp_path / 'shapes.pth'
    path.write_bytes(torch_bytes.state_dict(state))
    from_keras, from_torch = matterport.read(tmp_path / 'shapes.h5'), pytorch.read(path)
    assert from_torch.config == from_keras.config
    assert set(from_torch.arrays) == set(from_keras.arrays)
    for name, array in from_keras.arrays.items():
        np.testing.assert_array_equal(from_torch.arrays[name], array, err_msg=name)
