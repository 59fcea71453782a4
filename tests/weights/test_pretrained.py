"""Pretrained weights: one ResNet in every format, compared with a forward pass over the raw arrays."""

import functools
import pickle
import re
import shutil
import zipfile
from types import SimpleNamespace

import chainer
import chainer.functions as F
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON, PRESETS, Config
from mask_rcnn.inference.save import collect_arrays, save
from mask_rcnn.weights import ModelMeta, WeightFileError, formats, write_weights
from mask_rcnn.weights.converters import detectron, imagenet, mindspore
from mask_rcnn.weights.download import DETECTRON_R50_C4_MASK
from mask_rcnn.weights.pretrained import load_pretrained
from mask_rcnn.weights.pretrained_files import find_pretrained
from tests.support.models import constant_model, fill_parameters
from tests.support.protobuf_bytes import bytes_field, varint

EPS = 1e-5

#: Caffe's names of the blocks of the two ResNets.
BLOCKS = {
    'resnet50': ['2a', '2b', '2c', '3a', '3b', '3c', '3d', '4a', '4b', '4c', '4d', '4e', '4f', '5a', '5b', '5c'],
    'resnet101': [
        '2a',
        '2b',
        '2c',
        '3a',
        *[f'3b{i}' for i in range(1, 4)],
        '4a',
        *[f'4b{i}' for i in range(1, 23)],
        '5a',
        '5b',
        '5c',
    ],
}


def conv_shapes(extractor):
    """Return the shape of each convolution by Caffe's name, from table 1 of He et al. 2016."""
    shapes, width_in = {'conv1': (64, 3, 7, 7)}, 64
    for block in BLOCKS[extractor]:
        width = 64 << int(block[0]) - 2
        if block[1:] == 'a':
            shapes[f'res{block}_branch1'] = (4 * width, width_in, 1, 1)
        shapes |= {
            f'res{block}_branch2a': (width, width_in, 1, 1),
            f'res{block}_branch2b': (width, width, 3, 3),
            f'res{block}_branch2c': (4 * width, width, 1, 1),
        }
        width_in = 4 * width
    return shapes


def bn_name(conv):
    return 'bn_conv1' if conv == 'conv1' else conv.replace('res', 'bn')


@pytest.fixture(scope='module')
def raw():
    """Return the arrays of a random ResNet-50 under Caffe's names; conv1 has a bias."""
    rng = np.random.default_rng(0)
    arrays = {}
    for conv, shape in conv_shapes('resnet50').items():
        bn, deviation = bn_name(conv), np.sqrt(2 / np.prod(shape[1:]))
        arrays[f'{conv}/W'] = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        for name, low, high in (('gamma', 0.2, 0.8), ('beta', -0.5, 0.5), ('mean', -0.5, 0.5), ('var', 0.5, 2)):
            arrays[f'{bn}/{name}'] = rng.uniform(low, high, shape[0]).astype(np.float32)
    arrays['conv1/b'] = rng.uniform(-1, 1, 64).astype(np.float32)
    arrays['fc1000/W'] = np.zeros((1000, 2048), np.float32)
    return arrays


def pool(x):
    return F.max_pooling_2d(x, 3, 2, 1, cover_all=False)


def forward(raw, x, pool=pool):
    """Run the network of He et al. 2016 on the raw arrays and return res4 and res5."""

    def conv_bn(x, conv, stride=1, pad=0):
        y = F.convolution_2d(x, raw[f'{conv}/W'], raw.get(f'{conv}/b'), stride, pad).array
        gamma, beta, mean, var = (
            raw[f'{bn_name(conv)}/{name}'].reshape(-1, 1, 1) for name in ('gamma', 'beta', 'mean', 'var')
        )
        return gamma * (y - mean) / np.sqrt(var + EPS) + beta

    with chainer.no_backprop_mode():
        x = np.maximum(conv_bn(x, 'conv1', 2, 3), 0)
        x = pool(x).array
        for block in BLOCKS['resnet50']:
            first, res4 = block[1] == 'a', x
            stride = 2 if first and block != '2a' else 1
            h = np.maximum(conv_bn(x, f'res{block}_branch2a', stride), 0)
            h = np.maximum(conv_bn(h, f'res{block}_branch2b', pad=1), 0)
            h = conv_bn(h, f'res{block}_branch2c')
            x = np.maximum(h + (conv_bn(x, f'res{block}_branch1', stride) if first else x), 0)
            if block == '5a':
                features = res4
    return features, x


def model_forward(model, x):
    """Return res4 and res5 of a model, whose res5 has stride 1 and reads every second feature."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        features = model.extractor(x)[0].array
        return features, model.box_head.res5(features[:, :, ::2, ::2]).array


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['affine', 'bn'])
def test_loading_backbones_between_c4_and_fpn_models(weight_file, image, expected, tmp_path, norm):
    """An FPN model loads ImageNet weights, also with another epsilon, and a C4 model's; and vice versa."""
    dialect = DETECTRON.replace(backbone={'bn_eps': 1e-3})
    pyramid = constant_model('resnet50_fpn', n_fg_class=2, norm=norm, dialect=dialect)
    report = load_pretrained(pyramid, weight_file('caffe.npz'))
    assert 'extractor/lateral2' in report.missing and not report.reinitialized

    def outputs():
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return [features.array for features in pyramid.extractor.body(image)[2:]]

    for got, reference in zip(outputs(), expected, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-4 * reference.max())
    c4 = constant_model('resnet50', n_fg_class=3, norm='affine')
    load_pretrained(c4, weight_file('caffe.npz'))
    save(tmp_path / 'c4.npz', c4)
    fill_parameters(pyramid)
    load_pretrained(pyramid, tmp_path / 'c4.npz')
    for got, reference in zip(outputs(), expected, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-4 * reference.max())
    pyramid.config = pyramid.config.replace(dialect=DETECTRON)  # the file stores dialects by name
    if norm == 'affine':
        save(tmp_path / 'pyramid.npz', pyramid)
        fill_parameters(c4)
        load_pretrained(c4, tmp_path / 'pyramid.npz')
        for got, reference in zip(model_forward(c4, image), expected, strict=True):
            np.testing.assert_allclose(got, reference, atol=1e-4 * reference.max())


@pytest.fixture(scope='module')
def image():
    return np.random.RandomState(1).uniform(-100, 100, (1, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope='module')
def expected(raw, image):
    return forward(raw, image)


@pytest.fixture(scope='module')
def models():
    """Return a model for each normalisation."""
    return {norm: constant_model('resnet50', n_fg_class=2, norm=norm) for norm in ('affine', 'bn')}


# Writers of the formats


def write_caffe_npz(path, raw):
    np.savez(path, **raw)


def write_caffemodel(path, raw):
    """Write the format that test_caffemodel.py compares with the protocol buffer library."""

    def layer(name, *arrays):
        blobs = [
            bytes_field(
                7, bytes_field(7, bytes_field(1, b''.join(map(varint, array.shape)))) + bytes_field(5, array.tobytes())
            )
            for array in arrays
        ]
        return bytes_field(100, bytes_field(1, name.encode()) + b''.join(blobs))

    with open(path, 'wb') as file:
        for conv in conv_shapes('resnet50'):
            bn, factor = bn_name(conv), np.float32([8])
            bias = [raw[f'{conv}/b']] if f'{conv}/b' in raw else []
            file.write(layer(conv, raw[f'{conv}/W'], *bias))
            file.write(layer(bn, raw[f'{bn}/mean'] * 8, raw[f'{bn}/var'] * 8, factor))
            file.write(layer(bn.replace('bn', 'scale'), raw[f'{bn}/gamma'], raw[f'{bn}/beta']))


def write_chainer_npz(path, raw):
    """Serialise ``chainer.links.ResNet50Layers``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chainer.initializers.Normal, '__call__', lambda self, array: array.fill(0))  # fast
        network = chainer.links.ResNet50Layers(pretrained_model=None)
    network.conv1.b.array[...] = raw['conv1/b']
    stages = {'conv1': (network.conv1, network.bn1)}
    for block in BLOCKS['resnet50']:
        stage = network[f'res{block[0]}']
        link = stage.a if block[1] == 'a' else stage[f'b{ord(block[1]) - ord("a")}']
        for branch, number in (('2a', 1), ('2b', 2), ('2c', 3), ('1', 4)):
            if f'res{block}_branch{branch}/W' in raw:
                stages[f'res{block}_branch{branch}'] = link[f'conv{number}'], link[f'bn{number}']
    for conv, (conv_link, bn_link) in stages.items():
        conv_link.W.array[...] = raw[f'{conv}/W']
        bn_link.gamma.array[...] = raw[f'{bn_name(conv)}/gamma']
        bn_link.beta.array[...] = raw[f'{bn_name(conv)}/beta']
        bn_link.avg_mean[...] = raw[f'{bn_name(conv)}/mean']
        bn_link.avg_var[...] = raw[f'{bn_name(conv)}/var']
    chainer.serializers.save_npz(path, network, compression=False)


def folded(raw):
    """Yield Caffe's name, weight, scale and bias of each convolution."""
    for conv in conv_shapes('resnet50'):
        gamma, beta, mean, var = (raw[f'{bn_name(conv)}/{name}'] for name in ('gamma', 'beta', 'mean', 'var'))
        scale = gamma / np.sqrt(var + EPS)
        yield conv, raw[f'{conv}/W'], scale, beta + (raw.get(f'{conv}/b', 0) - mean) * scale


def write_detectron_pkl(path, raw):
    blobs = {}
    for conv, weight, scale, bias in folded(raw):
        name = conv
        if conv != 'conv1':
            block, branch = conv.removeprefix('res').split('_')
            name = f'res{block[0]}_{ord(block[1]) - ord("a")}_{branch}'
        bn = 'res_conv1_bn' if conv == 'conv1' else f'{name}_bn'
        blobs |= {f'{name}_w': weight, f'{bn}_s': scale, f'{bn}_b': bias}
    path.write_bytes(pickle.dumps({'blobs': blobs | {'fc1000_b': np.zeros(1000, np.float32)}}))


def write_native_backbone(path, raw):
    names = {'branch2a': 'conv1', 'branch2b': 'conv2', 'branch2c': 'conv3', 'branch1': 'shortcut'}
    arrays = {}
    for conv, weight, scale, bias in folded(raw):
        native = 'extractor/conv1'
        if conv != 'conv1':
            block, branch = conv.removeprefix('res').split('_')
            prefix = 'box_head' if block[0] == '5' else 'extractor'
            native = f'{prefix}/res{block[0]}/block{ord(block[1]) - ord("a")}/{names[branch]}'
        arrays |= {f'{native}/conv/W': weight, f'{native}/norm/scale': scale, f'{native}/norm/bias': bias}
    write_weights(path, arrays, ModelMeta('backbone', Config()))


FORMATS = {
    'caffe.npz': (write_caffe_npz, "R-50 backbone (a Caffe ResNet's .npz)"),
    'ResNet-50-model.caffemodel': (write_caffemodel, "R-50 backbone (Caffe's .caffemodel)"),
    'ResNet-50-model.npz': (write_chainer_npz, "R-50 backbone (a Chainer ResNet's .npz)"),
    'R-50.pkl': (write_detectron_pkl, "R-50 backbone (Detectron's .pkl)"),
    'R-50_d2c.npz': (write_native_backbone, "R-50 backbone (this program's .npz)"),
}


@pytest.fixture(scope='module')
def weight_file(raw, tmp_path_factory):
    """Yield a function that writes the weights in a format of :data:`FORMATS` once and returns the path."""
    folder = tmp_path_factory.mktemp('formats')

    @functools.cache
    def write(name):
        FORMATS[name][0](folder / name, raw)
        return folder / name

    yield write
    shutil.rmtree(folder)


HEADS = (
    'rpn/conv',
    'rpn/objectness',
    'rpn/delta',
    'box_head/score',
    'box_head/delta',
    'mask_head/deconv',
    'mask_head/score',
)


@pytest.mark.parametrize(
    'name',
    [
        *('caffe.npz', 'ResNet-50-model.caffemodel', 'R-50.pkl'),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('ResNet-50-model.npz', 'R-50_d2c.npz')),
    ],
)
def test_every_format_loads_the_same_network(weight_file, models, image, expected, name):
    path, title = weight_file(name), FORMATS[name][1]
    both = name in ('caffe.npz', 'R-50.pkl')  # a file with batch normalisation and one without
    for norm, model in models.items() if both else [('affine', models['affine'])]:
        fill_parameters(model.extractor)
        report = load_pretrained(model, path)
        for got, reference in zip(model_forward(model, image), expected, strict=True):
            assert reference.std() > 0.1
            np.testing.assert_allclose(got, reference, atol=2e-5 * reference.max(), rtol=1e-4)
        assert report.title == title and report.n_taken == {'affine': 159, 'bn': 265}[norm]
        assert report.reinitialized == () and set(report.missing) == set(HEADS) and report.notes == ()
        assert str(report).startswith(f'{path}: {title}, ')
        assert 'not in the file): ' in str(report)


def test_the_reference_agrees_with_chainers_resnet(weight_file, raw, image):
    """Compare :func:`forward` with an independent implementation, with its pooling and epsilon."""
    network = chainer.links.ResNet50Layers(pretrained_model=str(weight_file('ResNet-50-model.npz')))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        got = network(image, layers=['res4', 'res5'])
    expected = forward(raw, image, pool=lambda x: F.max_pooling_2d(x, 3, 2))
    for name, reference in zip(('res4', 'res5'), expected, strict=True):
        np.testing.assert_allclose(got[name].array, reference, atol=1e-4 * reference.max())


def test_resnet101(tmp_path, models, monkeypatch):
    """Each convolution is filled with its index, which identifies it in the model."""
    numbers = {conv: i for i, conv in enumerate(conv_shapes('resnet101'))}
    arrays = {}
    for conv, shape in conv_shapes('resnet101').items():
        arrays[f'{conv}/W'] = np.broadcast_to(np.float32(numbers[conv]), shape)
        for name in ('gamma', 'beta', 'mean', 'var'):
            arrays[f'{bn_name(conv)}/{name}'] = np.broadcast_to(np.float32(numbers[conv]), shape[:1])
    np.savez(tmp_path / 'r101.npz', **{'res2a_branch2a/W': 0})  # a name determines the format
    monkeypatch.setattr(imagenet, '_read_members', lambda path, is_needed: arrays)
    model = constant_model('resnet101', n_fg_class=1, norm='bn')
    load_pretrained(model, tmp_path / 'r101.npz')
    for conv, prefix, block, name in [
        ('res3a_branch1', 'res3', 0, 'shortcut'),
        ('res3b3_branch2c', 'res3', 3, 'conv3'),
        ('res4b1_branch2a', 'res4', 1, 'conv1'),
        ('res4b22_branch2b', 'res4', 22, 'conv2'),
        ('res2c_branch2a', 'res2', 2, 'conv1'),
    ]:
        link = model.extractor[prefix][f'block{block}'][name]
        for array in (link.conv.W.array, link.norm.gamma.array, link.norm.avg_var):
            assert (array == numbers[conv]).all(), conv
    assert (model.box_head.res5.block2.conv3.conv.W.array == numbers['res5c_branch2c']).all()
    expected = 'contains a resnet101, but the model has a resnet50; .* --extractor resnet101 or resnet101_fpn$'
    with pytest.raises(WeightFileError, match=expected):
        load_pretrained(models['affine'], tmp_path / 'r101.npz')


@pytest.mark.slow
def test_the_public_imagenet_weights_classify_photos(shared, models):
    """Real weights classify photos, which requires the correct channel order and strides."""
    cv2 = pytest.importorskip('cv2')
    path = shared / 'weights' / 'resnet50_imagenet.npz'
    model = models['affine']
    load_pretrained(model, path)
    with np.load(path) as file:
        weight, bias = file['fc1000/W'], file['fc1000/b']
    # ImageNet's classes: 294 brown bear, 954 banana, 385 Indian elephant, 340 zebra.
    for name, (left, top, width, height), label in [
        ('000000000285', (1, 69, 585, 564), 294),
        ('000000003661', (61, 0, 492, 349), 954),
        ('000000006894', (0, 86, 639, 389), 385),
        ('000000001818', (0, 1, 638, 424), 340),
    ]:
        photo = cv2.imread(str(shared / 'coco-mini' / 'val2017' / f'{name}.jpg'))
        crop = cv2.resize(photo[top : top + height, left : left + width], (224, 224))
        x = (crop.astype(np.float32) - np.float32(DETECTRON.input.pixel_mean)).transpose(2, 0, 1)[None]
        pooled = model_forward(model, x)[1].mean((2, 3))
        assert (pooled @ weight.T + bias).argmax() == label, name


# Models


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    """Write a model of three classes and return its path and arrays."""
    model = constant_model(n_fg_class=3, class_names=('square', 'circle', 'triangle'), norm='bn')
    rng = np.random.default_rng(0)
    for array in collect_arrays(model).values():
        if array.ndim == 1:
            array[...] = rng.uniform(0.5, 1.5, array.shape)
        elif array.ndim > 1:
            rng.standard_normal(out=array, dtype=np.float32)
            array *= np.float32(np.sqrt(2 / np.prod(array.shape[1:])))
    path = tmp_path_factory.mktemp('model') / 'm.npz'
    save(path, model)
    return path, collect_arrays(model)


def test_output_layers_are_reinitialised_for_another_number_of_classes(model_file):
    path, arrays = model_file
    model = constant_model(n_fg_class=5, norm='bn')
    report = load_pretrained(model, path)
    assert report.reinitialized == ('box_head/delta', 'box_head/score', 'mask_head/score')
    assert report.missing == () and report.notes == ()
    assert 'randomly initialised (another shape in the file): box_head/delta, box_head/score' in str(report)
    for name, array in collect_arrays(model).items():
        if name.rpartition('/')[0] in report.reinitialized:
            assert (array == np.float32(0.1)).all(), name  # the initial value
        else:
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    assert report.n_taken == len(arrays) - 6


def test_a_model_with_the_same_classes_is_loaded_completely(model_file):
    path, arrays = model_file
    model = constant_model(n_fg_class=3, class_names=('square', 'circle', 'triangle'), norm='bn')
    report = load_pretrained(model, path)
    assert (report.reinitialized, report.missing, report.notes) == ((), (), ())
    for name, array in collect_arrays(model).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_the_same_classes_in_another_order_are_matched_by_name(model_file):
    """Class 0 of the box head is the background, and each class has four deltas."""
    path, arrays = model_file
    model = constant_model(n_fg_class=3, class_names=('triangle', 'square', 'circle'), norm='bn')
    report = load_pretrained(model, path)
    assert report.notes == ('the file has the same classes in another order: their weights were matched by name',)
    loaded = collect_arrays(model)
    for name, array in arrays.items():
        expected = array
        if name.startswith(('box_head/score', 'box_head/delta')):
            background, square, circle, triangle = np.split(array, 4)
            expected = np.concatenate([background, triangle, square, circle])
        elif name.startswith('mask_head/score'):
            square, circle, triangle = array
            expected = np.stack([triangle, square, circle])
        np.testing.assert_array_equal(loaded[name], expected, err_msg=name)
    assert len(np.unique(arrays['box_head/score/W'])) > 3  # the classes differ


def test_classes_among_others_are_matched_by_name(model_file):
    path, arrays = model_file
    model = constant_model(n_fg_class=2, class_names=('triangle', 'square'), norm='bn')
    report = load_pretrained(model, path)
    assert report.reinitialized == ()
    assert report.notes == ('the file has all classes of the model: their weights were matched by name',)
    loaded = collect_arrays(model)
    for name in ('box_head/score/W', 'box_head/score/b', 'box_head/delta/W', 'box_head/delta/b'):
        background, square, _, triangle = np.split(arrays[name], 4)
        np.testing.assert_array_equal(loaded[name], np.concatenate([background, triangle, square]), err_msg=name)
    for name in ('mask_head/score/W', 'mask_head/score/b'):
        np.testing.assert_array_equal(loaded[name], arrays[name][[2, 0]], err_msg=name)


def test_a_class_that_the_file_lacks_leaves_all_random(model_file):
    model = constant_model(n_fg_class=2, class_names=('triangle', 'star'), norm='bn')
    report = load_pretrained(model, model_file[0])
    assert report.reinitialized == ('box_head/delta', 'box_head/score', 'mask_head/score') and report.notes == ()


def test_other_classes_and_other_anchors_are_reported(model_file):
    classes = ('square', 'star', 'triangle')
    model = constant_model(n_fg_class=3, class_names=classes, anchor_sizes=(32, 64), norm='affine')
    report = load_pretrained(model, model_file[0])
    assert report.reinitialized == ('rpn/delta', 'rpn/objectness')
    assert report.notes == (
        "the file has the same number of classes, but other names ('circle' where the model has 'star'): "
        'their weights were loaded',
    )


@pytest.mark.slow
def test_conversion_between_normalisations(model_file, tmp_path, image):
    path, _ = model_file
    affine, bn = (constant_model(n_fg_class=3, norm=norm) for norm in ('affine', 'bn'))
    load_pretrained(affine, path)
    expected = model_forward(mask_rcnn.load(path), image)
    for got, reference in zip(model_forward(affine, image), expected, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-4 * reference.max())
    save(tmp_path / 'affine.npz', affine)
    load_pretrained(bn, tmp_path / 'affine.npz')
    for got, reference in zip(model_forward(bn, image), expected, strict=True):
        np.testing.assert_allclose(got, reference, atol=1e-4 * reference.max())


def test_the_channels_are_reversed_for_a_dialect_with_rgb_input(weight_file, raw, models, monkeypatch):
    model = models['bn']
    rgb = DETECTRON.replace(name='rgb', input={'channel_order': 'RGB'})
    monkeypatch.setattr(model, 'config', model.config.replace(dialect=rgb))
    load_pretrained(model, weight_file('caffe.npz'))
    np.testing.assert_array_equal(model.extractor.conv1.conv.W.array, raw['conv1/W'][:, ::-1])


def test_only_the_channels_of_weights_with_four_axes_are_reversed(tmp_path, raw, models, monkeypatch):
    np.savez(tmp_path / 'names.npz', **{'res2a_branch2a/W': 0})  # a name determines the format
    monkeypatch.setattr(imagenet, '_read_members', lambda path, is_needed: raw | {'conv1/W': np.zeros(64, np.float32)})
    model = models['bn']
    rgb = DETECTRON.replace(name='rgb', input={'channel_order': 'RGB'})
    monkeypatch.setattr(model, 'config', model.config.replace(dialect=rgb))
    with pytest.raises(WeightFileError, match=r'extractor/conv1/conv/W has the shape \(64,\), not \(64, 3, 7, 7\)'):
        load_pretrained(model, tmp_path / 'names.npz')


# Finding files


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Return the folder in which Chainer stores its models."""
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path))
    folder = tmp_path / 'pfnet' / 'chainer' / 'models'
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_are_found_in_order_of_preference(zoo):
    with pytest.raises(WeightFileError, match='--pretrained none') as caught:
        find_pretrained('imagenet')
    message = str(caught.value)
    assert message.startswith(f'{zoo}: has no ImageNet weights for resnet50') and '\n' not in message
    for part in (
        'ResNet-50-model.caffemodel',
        'github.com/KaimingHe',
        'R-50.pkl',
        'dl.fbaipublicfiles.com',
        '--pretrained FILE',
    ):
        assert part in message
    for name in (
        'ResNet-50-model.npz',
        'resnet50_imagenet.npz',
        'R-50_d2c.npz',
        'R-50.pkl',
        'ResNet-50-model.caffemodel',
    ):
        (zoo / name).touch()
        assert find_pretrained('imagenet') == zoo / name
    with pytest.raises(WeightFileError, match='R-101.pkl'):
        find_pretrained('imagenet', 'resnet101')
    (zoo / 'R-101.pkl').touch()
    assert find_pretrained('imagenet', 'resnet101') == zoo / 'R-101.pkl'


@pytest.mark.parametrize(
    ('extractor', 'name', 'folder'),
    [
        ('resnext101_32x8d_fpn', 'X-101-32x8d', '20171220'),
        ('resnext101_64x4d', 'X-101-64x4d', 'FBResNeXt'),
        ('resnet50_fpn_gn', 'R-50-GN', '47261647'),
        ('resnet101_fpn_gn', 'R-101-GN', '47592356'),
    ],
)
def test_imagenet_weights_of_other_backbones(tmp_path, zoo, extractor, name, folder):
    with pytest.raises(WeightFileError, match=f'/ImageNetPretrained/{folder}/{name}.pkl'):
        find_pretrained('imagenet', extractor, model_folder=tmp_path)
    (tmp_path / f'{name}_d2c.npz').touch()
    assert find_pretrained('imagenet', extractor, model_folder=tmp_path) == tmp_path / f'{name}_d2c.npz'


def test_no_imagenet_weights_of_a_backbone_are_published(tmp_path, zoo):
    with pytest.raises(WeightFileError, match='resnext50_32x4d.*no such weights are published'):
        find_pretrained('imagenet', 'resnext50_32x4d', model_folder=tmp_path)


def test_a_path_is_returned_unchanged(tmp_path):
    (tmp_path / 'w.npz').touch()
    assert find_pretrained(str(tmp_path / 'w.npz')) == tmp_path / 'w.npz'
    with pytest.raises(WeightFileError, match='no.npz: No such file'):
        find_pretrained(tmp_path / 'no.npz')


#: Presets of networks that Detectron's zoo does not have (or only with another ImageNet training).
NOT_IN_THE_ZOO = {
    *('resnet101', 'resnet152', 'resnet152_fpn', 'resnet101_fpn_gn', 'resnext50_32x4d', 'resnext50_32x4d_fpn'),
    *('resnext101_32x8d', 'resnext101_64x4d', 'resnext152_32x8d', 'resnext152_32x8d_fpn'),
}


@pytest.mark.parametrize('preset', PRESETS)
def test_coco_weights_are_those_that_the_converter_writes(tmp_path, zoo, preset):
    """The line names a file to download, and the name under which the converter stores it, where it is then found."""
    config = PRESETS[preset]
    source = mindspore.FORMAT if preset.startswith('mobilenet') else detectron.FORMAT
    name = formats.default_name(SimpleNamespace(kind='model', config=config, format=source))
    keypoints, extractor = config.n_keypoint > 0, preset.removeprefix('keypoint_')
    with pytest.raises(WeightFileError, match=name.replace('.', r'\.')) as caught:
        find_pretrained('coco', extractor, keypoints=keypoints, model_folder=tmp_path)
    message = str(caught.value)
    assert message.startswith(f'{tmp_path}: has no COCO weights for {config.extractor}') and '\n' not in message
    assert str(zoo) in message and '--pretrained FILE' in message
    if preset in NOT_IN_THE_ZOO:
        assert 'https' not in message
    else:
        (url,) = re.findall(r'https://\S+', message)
        assert url.endswith('.ckpt' if source == mindspore.FORMAT else '/generalized_rcnn/model_final.pkl')
        zoo_name = name.removesuffix('_d2c.npz').replace('-GN_1x', '_2x_gn')
        assert source == mindspore.FORMAT or zoo_name in url
    (zoo / name).touch()
    assert find_pretrained('coco', extractor, keypoints=keypoints, model_folder=tmp_path) == zoo / name
    (tmp_path / name).touch()
    assert find_pretrained('coco', extractor, keypoints=keypoints, model_folder=tmp_path) == tmp_path / name


def test_the_address_of_the_coco_weights_of_the_default_network_is_that_of_the_script(tmp_path, zoo):
    with pytest.raises(WeightFileError, match='save https://') as caught:
        find_pretrained('coco', model_folder=tmp_path)
    assert f'{DETECTRON_R50_C4_MASK} as {tmp_path / "model_final.pkl"},' in str(caught.value)
    (tmp_path / 'model_final.pkl').touch()
    assert find_pretrained('coco', model_folder=tmp_path) == tmp_path / 'model_final.pkl'
    with pytest.raises(WeightFileError, match='resnet50_fpn'):  # the file is that of another network
        find_pretrained('coco', 'resnet50_fpn', model_folder=tmp_path)


def test_imagenet_weights_are_also_found_among_converted_files(tmp_path, zoo):
    (tmp_path / 'R-50_d2c.npz').touch()
    assert find_pretrained('imagenet', model_folder=tmp_path) == tmp_path / 'R-50_d2c.npz'
    (zoo / 'R-50.pkl').touch()
    assert find_pretrained('imagenet', model_folder=tmp_path) == zoo / 'R-50.pkl'


def test_no_coco_weights_of_keypoints_of_a_mobilenet(tmp_path, zoo):
    with pytest.raises(WeightFileError, match='mobilenet_v1_fpn with keypoints.* no such weights are published'):
        find_pretrained('coco', 'mobilenet_v1_fpn', keypoints=True, model_folder=tmp_path)


# Unusable files


def test_unusable_files_raise_an_error_and_change_nothing(tmp_path, models):
    def npz(name, **arrays):
        np.savez(tmp_path / name, **{key.replace('__', '/'): array for key, array in arrays.items()})

    npz('other.npz', a=np.zeros(3))
    npz('little.npz', res2a_branch2a__W=np.zeros((2, 2)))
    npz('objects.npz', res2a_branch2a__W=np.array([print], object))
    (tmp_path / 'text.npz').write_text('weights')
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'other.npz').read_bytes()[:-30])
    (tmp_path / 'w.pth').write_text('weights')
    model = models['affine']
    before = {name: array.copy() for name, array in collect_arrays(model).items()}
    for name, reason in [
        ('other.npz', 'is not a zip archive of weights in a supported format'),
        ('little.npz', r'has a ResNet of 1 \+ 0 \+ 0 \+ 0 blocks'),
        ('objects.npz', 'res2a_branch2a/W is not a plain array of numbers, or damaged: Object arrays cannot be loaded'),
        ('text.npz', 'is not a file of weights in a supported format'),
        ('cut.npz', 'damaged zip archive: its end is missing'),
        ('w.pth', "PyTorch's .pth"),
        ('no.npz', 'No such file'),
    ]:
        with pytest.raises(WeightFileError, match=reason) as caught:
            load_pretrained(model, tmp_path / name)
        assert str(caught.value).isprintable()
    for name, array in collect_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'conv1/W': None}, 'lacks conv1/W'),
        (
            {f'bn2a_branch{b}/var': None for b in ('1', '2a', '2b', '2c')} | {'bn_conv1/var': None, 'conv1/W': None},
            'lacks conv1/W, bn_conv1/var, .* and 1 more',
        ),
        ({'res2a_branch2a/W': np.zeros((64, 32, 1, 1), np.float32)}, r'shape \(64, 32, 1, 1\), not \(64, 64, 1, 1\)'),
        ({'bn_conv1/var': np.zeros(63, np.float32)}, r'its extractor/conv1/norm/\.\.\. are damaged'),
        ({'bn_conv1/var': np.full(64, -1, np.float32)}, 'undefined values in extractor/conv1/norm/scale'),
        ({'conv1/W': np.full((64, 3, 7, 7), np.nan, np.float32)}, 'did the training diverge'),
        ({'conv1/b': np.zeros(63, np.float32)}, r'conv1/b has the shape \(63,\)'),
        ({'conv1/W': np.zeros((64, 3, 7, 7), np.int32)}, 'lacks conv1/W'),
    ],
)
def test_missing_and_wrong_arrays(tmp_path, raw, models, changes, reason, monkeypatch):
    arrays = {name: array for name, array in (raw | changes).items() if array is not None}
    np.savez(tmp_path / 'names.npz', **{'res2a_branch2a/W': 0})  # a name determines the format
    monkeypatch.setattr(
        imagenet,
        '_read_members',
        lambda path, is_needed: {name: array for name, array in arrays.items() if array.dtype.kind == 'f'},
    )
    with pytest.raises(WeightFileError, match=reason):
        load_pretrained(models['affine'], tmp_path / 'names.npz')


def test_a_resnet101_whose_blocks_have_letters_only(tmp_path):
    names = [
        f'res{stage}{chr(97 + i)}_branch2a/W'
        for stage, n in zip((2, 3, 4, 5), (3, 4, 23, 3), strict=True)
        for i in range(n)
    ]
    np.savez(tmp_path / 'letters.npz', **dict.fromkeys(names, np.zeros(1, np.float32)))
    with pytest.raises(WeightFileError, match='lacks conv1/W, res2a_branch2b/W'):
        imagenet.read_caffe_npz(tmp_path / 'letters.npz')


def test_an_archive_that_unpacks_to_more_than_its_size(tmp_path, models):
    np.savez_compressed(tmp_path / 'bomb.npz', **{'res2a_branch2a/W': np.zeros(10000)})
    with pytest.raises(WeightFileError, match='its members are larger than the file can hold'):
        load_pretrained(models['affine'], tmp_path / 'bomb.npz')


def write_member(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('res2a_branch2a/W.npy', content)


@pytest.mark.parametrize('compression', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unsupported_compressions(tmp_path, rng, compression):
    write_member(tmp_path / 'c.npz', rng.bytes(1000), compression)
    with pytest.raises(WeightFileError, match='its members are compressed with an unsupported method'):
        imagenet.read_caffe_npz(tmp_path / 'c.npz')


def test_an_archive_with_a_huge_directory(tmp_path):
    with zipfile.ZipFile(tmp_path / 'many.npz', 'w') as archive:
        for i in range(70):
            member = zipfile.ZipInfo(f'{i}.npy')
            member.comment = bytes(65535)
            archive.writestr(member, b'')
    with pytest.raises(WeightFileError, match='its directory is too large'):
        imagenet.read_caffe_npz(tmp_path / 'many.npz')


def test_deflated_arrays_in_any_memory_order(tmp_path, rng):
    arrays = {
        'a/W': rng.rand(30, 20).astype(np.float32).T,
        'b/W': rng.rand(3),
        'c/W': np.arange(3),
        'fc/W': rng.rand(3),
    }
    np.savez_compressed(tmp_path / 'a.npz', **arrays)
    read = imagenet._read_members(tmp_path / 'a.npz', lambda name: not name.startswith('fc'))
    assert set(read) == {'a/W', 'b/W'}
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


#: Headers that make NumPy's parser raise different errors.
HEADERS = [
    "{'descr': '<f4', 'shape': (2,",
    "{'descr': '<,f4', 'fortran_order': False, 'shape': (2, )}",
    "{'descr': (), 'fortran_order': False, 'shape': (2, )}",
    "{1: 2, 'a': 3}",
    '[' * 5000,
    '-' * 5000 + '1',
    '',
]


@pytest.mark.parametrize('header', HEADERS)
def test_damaged_headers_raise_a_one_line_error(tmp_path, header):
    write_member(tmp_path / 'h.npz', b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode())
    with pytest.raises(WeightFileError, match='is not a plain array of numbers, or damaged') as caught:
        imagenet.read_caffe_npz(tmp_path / 'h.npz')
    assert str(caught.value).isprintable()


def test_a_native_model_without_its_backbone(tmp_path, models):
    config = Config(n_fg_class=2)
    write_weights(
        tmp_path / 'm.npz', {'rpn/conv/b': np.zeros(1024, np.float32)}, ModelMeta('model', config, ('a', 'b'), (1, 2))
    )
    with pytest.raises(WeightFileError, match='lacks box_head/res5/block0/conv1/conv, .* and 101 more'):
        load_pretrained(models['affine'], tmp_path / 'm.npz')
