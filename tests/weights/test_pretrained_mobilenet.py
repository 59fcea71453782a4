"""Pretrained weights of MobileNetV1 under TensorFlow's names."""

import chainer
import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON
from mask_rcnn.inference.save import collect_arrays, save
from mask_rcnn.preprocessing import read_image
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.pretrained import load_pretrained
from mask_rcnn.weights.pretrained_files import find_pretrained
from tests.support.models import constant_model

NARROW = {'n_fg_class': 2, 'width': 0.25, 'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}


@pytest.fixture(scope='module')
def raw():
    """Return random arrays of a narrow network under the names of ``slim/nets/mobilenet_v1.py``."""
    rng = np.random.default_rng(0)
    model = mask_rcnn.build('mobilenet_v1_fpn', **NARROW)
    arrays = {}
    for name, array in collect_arrays(model.extractor.body).items():
        block, *_, kind = name.split('/')
        layer = 'Conv2d_0' if block == 'conv0' else f'Conv2d_{block[5:]}_{name.split("/")[1]}'
        source = {
            'W': 'depthwise_weights' if 'depthwise' in name else 'weights',
            'gamma': 'BatchNorm/gamma',
            'beta': 'BatchNorm/beta',
            'avg_mean': 'BatchNorm/moving_mean',
            'avg_var': 'BatchNorm/moving_variance',
        }.get(kind)
        if source:
            arrays[f'{layer}/{source}'] = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
    arrays['Logits/Conv2d_1c_1x1/weights'] = np.zeros((1001, 256, 1, 1), np.float32)
    return arrays


@pytest.mark.parametrize('norm', ['bn', 'affine'])
def test_the_backbone_is_loaded(raw, tmp_path, norm):
    np.savez(tmp_path / 'mobilenet.npz', **raw)
    model = mask_rcnn.build('mobilenet_v1_fpn', norm=norm, **NARROW)
    report = load_pretrained(model, tmp_path / 'mobilenet.npz')
    assert 'MobileNetV1' in str(report) and 'extractor/lateral2' in report.missing
    assert not any('body' in layer for layer in report.missing + report.reinitialized)
    backbone = model.extractor.body
    np.testing.assert_array_equal(backbone.conv0.conv.W.array, raw['Conv2d_0/weights'])
    np.testing.assert_array_equal(backbone.block12.depthwise.conv.W.array, raw['Conv2d_12_depthwise/depthwise_weights'])
    np.testing.assert_array_equal(backbone.block3.pointwise.conv.W.array, raw['Conv2d_3_pointwise/weights'])
    gamma, beta, mean, var = (
        raw[f'Conv2d_3_pointwise/BatchNorm/{name}'] for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')
    )
    link = backbone.block3.pointwise.norm
    if norm == 'bn':
        assert link.eps == 1e-3
        for array, expected in (
            (link.gamma.array, gamma),
            (link.beta.array, beta),
            (link.avg_mean, mean),
            (link.avg_var, var),
        ):
            np.testing.assert_array_equal(array, expected)
    else:
        scale = gamma / np.sqrt(var + 1e-3)
        np.testing.assert_allclose(link.scale.array, scale, rtol=1e-6)
        np.testing.assert_allclose(link.bias.array, beta - mean * scale, rtol=1e-5, atol=1e-6)


def test_files_that_do_not_fit(raw, tmp_path):
    model = mask_rcnn.build('mobilenet_v1_fpn', **NARROW)
    lacking = {name: array for name, array in raw.items() if name != 'Conv2d_7_depthwise/BatchNorm/beta'}
    np.savez(tmp_path / 'lacking.npz', **lacking)
    with pytest.raises(WeightFileError, match='lacks Conv2d_7_depthwise/BatchNorm/beta'):
        load_pretrained(model, tmp_path / 'lacking.npz')
    np.savez(tmp_path / 'narrow.npz', **raw)
    wider = mask_rcnn.build('mobilenet_v1_fpn', **{**NARROW, 'width': 0.5})
    with pytest.raises(WeightFileError, match='extractor/body/conv0/conv/W has the shape'):
        load_pretrained(wider, tmp_path / 'narrow.npz')
    with pytest.raises(WeightFileError, match='a resnet50; .* --extractor mobilenet_v1_fpn$'):
        load_pretrained(constant_model(n_fg_class=2), tmp_path / 'narrow.npz')


def test_a_native_model_as_pretrained_weights(raw, tmp_path):
    np.savez(tmp_path / 'mobilenet.npz', **raw)
    model = mask_rcnn.build('mobilenet_v1_fpn', **NARROW)
    load_pretrained(model, tmp_path / 'mobilenet.npz')
    save(tmp_path / 'model.npz', model)
    other = mask_rcnn.build('mobilenet_v1_fpn', **{**NARROW, 'n_fg_class': 5})
    report = load_pretrained(other, tmp_path / 'model.npz')
    assert set(report.reinitialized) == {'box_head/score', 'box_head/delta', 'mask_head/score'}
    np.testing.assert_array_equal(
        other.extractor.body.block9.depthwise.conv.W.array, raw['Conv2d_9_depthwise/depthwise_weights']
    )


@pytest.mark.parametrize('norm', ['bn', 'affine'])
def test_the_channels_are_reversed_for_a_dialect_with_bgr_input(raw, tmp_path, norm):
    np.savez(tmp_path / 'mobilenet.npz', **raw)
    model = mask_rcnn.build('mobilenet_v1_fpn', dialect=DETECTRON, norm=norm, **NARROW)
    load_pretrained(model, tmp_path / 'mobilenet.npz')
    backbone = model.extractor.body
    np.testing.assert_array_equal(backbone.conv0.conv.W.array, raw['Conv2d_0/weights'][:, ::-1])
    np.testing.assert_array_equal(backbone.block3.pointwise.conv.W.array, raw['Conv2d_3_pointwise/weights'])


def test_imagenet_weights_are_found_in_chainers_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(chainer.dataset, 'get_dataset_root', lambda: str(tmp_path))
    folder = tmp_path / 'pfnet' / 'chainer' / 'models'
    with pytest.raises(WeightFileError, match='mobilenet_v1_imagenet.npz .* --pretrained none'):
        find_pretrained('imagenet', 'mobilenet_v1_fpn')
    folder.mkdir(parents=True)
    (folder / 'mobilenet_v1_imagenet.npz').write_bytes(b'')
    assert find_pretrained('imagenet', 'mobilenet_v1_fpn') == folder / 'mobilenet_v1_imagenet.npz'


#: Photos of one object, and the ImageNet class of the object (brown bear, street sign, teddy, ski).
PHOTOS = {'000000000285.jpg': 294, '000000000724.jpg': 919, '000000000776.jpg': 850, '000000000785.jpg': 795}


@pytest.fixture(scope='module')
def imagenet_model(shared):
    """Return a model with the public ImageNet weights and the path of their file."""
    file = shared / 'weights' / 'mobilenet_v1_imagenet.npz'
    model = constant_model('mobilenet_v1_fpn', n_fg_class=1)
    load_pretrained(model, file)
    return model, file


@pytest.mark.parametrize(('photo', 'label'), list(PHOTOS.items()))
def test_imagenet_classification(imagenet_model, shared, photo, label):
    """With the last layer of the file, the backbone classifies photos, which requires the correct preprocessing."""
    model, file = imagenet_model
    image = read_image(shared / 'coco-mini' / 'val2017' / photo)
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    middle = image[:, top : top + side, left : left + side].transpose(1, 2, 0)
    small = cv2.resize(middle, (224, 224), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    dialect = model.config.dialect
    assert dialect.input.channel_order == 'RGB'
    x = (small - np.reshape(dialect.input.pixel_mean, (3, 1, 1))) / np.reshape(dialect.input.pixel_std, (3, 1, 1))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        features = model.extractor.body(x[None].astype(np.float32))[-1].array.mean(axis=(2, 3))
    with np.load(file) as raw:
        weights, biases = (raw[f'Logits/Conv2d_1c_1x1/{name}'] for name in ('weights', 'biases'))
    logits = weights[:, :, 0, 0] @ features[0] + biases
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert probabilities.argmax() == label + 1 and probabilities.max() > 0.99  # class 0 is the background
