"""Networks with normalised heads, or other numbers of layers, against the same networks of Chainer's functions."""

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DETECTRON, PRESETS, RESNET_BLOCKS
from mask_rcnn.models import layers
from mask_rcnn.models.box_head import Res5BoxHead
from mask_rcnn.models.builder import convert_norm
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.models.norms import AffineChannel2D, GroupNormalization
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.pretrained import load_pretrained
from tests.support.models import SMALL, VERY_NARROW
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example

#: A dialect whose groups divide the channels of narrow networks, with a large epsilon.
NARROW_DIALECT = DETECTRON.replace(backbone={'gn_groups': 8, 'gn_eps': 1e-2, 'bn_eps': 1e-2})

#: Fields of the variants: Detectron's GN networks, torchvision's v2 networks, and others.
VARIANTS = {
    'gn': {'norm': 'gn', 'head_norm': 'gn', 'box_convs': 4, 'box_fcs': 1},
    'v2': {'norm': 'bn', 'head_norm': 'bn', 'box_convs': 4, 'box_fcs': 1, 'rpn_convs': 2},
    'gn heads': {'norm': 'affine', 'head_norm': 'gn', 'box_convs': 1},
    'affine heads': {'norm': 'bn', 'head_norm': 'affine', 'rpn_convs': 3},
    'gn backbone': {'norm': 'gn', 'box_convs': 2, 'box_fcs': 3},
}

ROIS = np.array([[3, 5, 50, 60], [10, 0, 63, 95], [0, 0, 8, 9]], np.float32)


def build(rng, variant, **changes):
    """Return a narrow network with random normalisations, and BN statistics."""
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        fields = {**SMALL, **VERY_NARROW, 'dialect': NARROW_DIALECT, **VARIANTS[variant], **changes}
        model = mask_rcnn.build('resnet50_fpn', **fields)
    for path, param in model.namedparams():
        if param.ndim == 1:
            param.array[...] = rng.uniform(*((0.5, 1.5) if path.endswith(('gamma', 'scale')) else (-1, 1)), param.shape)
    for link in model.links():
        if isinstance(link, L.BatchNormalization):
            link.avg_mean[...] = rng.uniform(-1, 1, link.avg_mean.shape)
            link.avg_var[...] = rng.uniform(0.01, 2, link.avg_var.shape)
    return model


def conv(model, path, x, *, stride=1, relu=True, residual=None):
    """Apply a convolution with the parameters of a path, and its normalisation or bias."""
    links = dict(model.namedlinks())
    norm = links.get(f'/{path}/norm')
    link = links[f'/{path}'] if norm is None else links[f'/{path}/conv']
    y = F.convolution_2d(x, link.W.array, None, stride=stride, pad=link.W.shape[2] // 2)
    if norm is None:
        y = F.bias(y, link.b.array)
    elif hasattr(norm, 'scale'):
        y = F.bias(F.scale(y, norm.scale.array), norm.bias.array)
    elif hasattr(norm, 'avg_mean'):
        arrays = norm.gamma.array, norm.beta.array, norm.avg_mean, norm.avg_var
        y = F.fixed_batch_normalization(y, *arrays, eps=1e-2)
    else:
        y = F.group_normalization(y, 8, norm.gamma.array, norm.beta.array, eps=1e-2)
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


def reference_features(model, x):
    """Return the outputs of the feature pyramid of a network whose stages have one block."""
    h = F.max_pooling_2d(conv(model, 'extractor/body/conv1', x, stride=2), 3, 2, 1, cover_all=False)
    stages = []
    for number in range(2, 6):
        block, stride = f'extractor/body/res{number}/block0', 1 if number == 2 else 2
        shortcut = conv(model, f'{block}/shortcut', h, stride=stride, relu=False)
        h = conv(model, f'{block}/conv2', conv(model, f'{block}/conv1', h, stride=stride))
        h = conv(model, f'{block}/conv3', h, residual=shortcut)
        stages.append(h)
    features, coarser = [], None
    for level, h in reversed(list(enumerate(stages, start=2))):
        lateral = conv(model, f'extractor/lateral{level}', h, relu=False)
        coarser = lateral if coarser is None else lateral + F.repeat(F.repeat(coarser, 2, axis=2), 2, axis=3)
        features.insert(0, conv(model, f'extractor/output{level}', coarser, relu=False))
    return [*features, features[-1][:, :, ::2, ::2]]


def reference_heads(model, features, box_features, mask_features):
    """Return the outputs of RPN, box head and mask head."""
    config, outputs = model.config, []
    for h in features:
        for i in range(1, config.rpn_convs + 1):
            h = conv(model, f'rpn/conv{i if i > 1 else ""}', h)
        outputs += [conv(model, f'rpn/{name}', h, relu=False) for name in ('objectness', 'delta')]
    h = box_features
    for i in range(1, config.box_convs + 1):
        h = conv(model, f'box_head/conv{i}', h)
    for i in range(6, 6 + config.box_fcs):
        link = model.box_head[f'fc{i}']
        h = F.relu(F.linear(F.reshape(h, (len(h), -1)), link.W.array, link.b.array))
    outputs += [F.linear(h, link.W.array, link.b.array) for link in (model.box_head.score, model.box_head.delta)]
    h = mask_features
    for i in range(1, 5):
        h = conv(model, f'mask_head/conv{i}', h)
    deconv = model.mask_head.deconv
    h = F.relu(F.deconvolution_2d(h, deconv.W.array, deconv.b.array, stride=2))
    return [*outputs, conv(model, 'mask_head/score', h, relu=False)]


def outputs_of(model, x, box_features, mask_features):
    """Return all outputs of the network as arrays."""
    features = model.extractor(x)
    heads = [*model.box_head(box_features), model.mask_head(mask_features)]
    logits, deltas = model.rpn(features)
    levels = [array for pair in zip(logits, deltas, strict=True) for array in pair]
    return [chainer.as_array(y) for y in (*features, *levels, *heads)]


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('backprop', [False, True])
@pytest.mark.parametrize('device', ['cpu', 'gpu'])
def test_networks_equal_those_of_functions(rng, request, variant, backprop, device):
    """In every path of ``select_path``; a stand-in computes that of a GPU."""
    model = build(rng, variant)
    shapes = (2, 3, 64, 96), (3, 16, 7, 7), (3, 16, 14, 14)
    inputs = [rng.uniform(-1, 1, shape).astype('f') for shape in shapes]
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        features = reference_features(model, inputs[0])
        expected = [*features, *reference_heads(model, features, *inputs[1:])]
    if device == 'gpu':
        request.getfixturevalue('on_gpu')
    with chainer.using_config('train', False), chainer.using_config('enable_backprop', backprop):
        found = outputs_of(model, *inputs)
    assert len(found) == len(expected) == 18
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, reference.array, rtol=0, atol=1e-4 * reference.array.std())


@pytest.mark.parametrize('pooled_first', [False, True])
def test_a_c4_head_normalises_each_roi(rng, monkeypatch, pooled_first):
    """Also if its first convolutions precede RoI pooling."""
    use_narrow_resnet(monkeypatch)
    config = mask_rcnn.Config(n_fg_class=2, norm='gn')
    head = Res5BoxHead(8, strides=(16,), config=config)
    x = rng.uniform(-1, 1, (1, 8, 8, 9) if pooled_first else (1, 8, 40, 50)).astype('f')
    rois, indices = 2 * ROIS, np.zeros(3, 'i')
    pooled = roi_align(x, rois, indices, output_size=14, spatial_scale=1 / 16)[:, :, ::2, ::2]
    expected = head.res5(pooled).array
    with chainer.no_backprop_mode():
        found = head.roi_features((x,), rois, indices).array
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * expected.std())


def test_parameters_of_detectrons_gn_network():
    """The shapes of ``e2e_mask_rcnn_R-50-FPN_2x_gn``; no convolution before a normalisation has a bias."""
    with no_initial_weights():
        shapes = {path[1:]: param.shape for path, param in mask_rcnn.build('resnet50_fpn_gn').namedparams()}
    expected = {
        'extractor/body/conv1/norm/gamma': (64,),
        'extractor/body/res5/block2/conv3/norm/beta': (2048,),
        'extractor/lateral2/conv/W': (256, 256, 1, 1),
        'extractor/lateral5/conv/W': (256, 2048, 1, 1),
        'extractor/lateral5/norm/gamma': (256,),
        'extractor/output2/conv/W': (256, 256, 3, 3),
        'extractor/output2/norm/beta': (256,),
        'rpn/conv/W': (256, 256, 3, 3),
        'rpn/conv/b': (256,),
        'box_head/conv1/conv/W': (256, 256, 3, 3),
        'box_head/conv4/norm/gamma': (256,),
        'box_head/fc6/W': (1024, 12544),
        'box_head/fc6/b': (1024,),
        'box_head/score/W': (81, 1024),
        'mask_head/conv1/conv/W': (256, 256, 3, 3),
        'mask_head/conv4/norm/beta': (256,),
        'mask_head/deconv/b': (256,),
        'mask_head/score/b': (80,),
    }
    assert expected.items() <= shapes.items()
    absent = {'box_head/fc7/W', 'box_head/conv5/conv/W', 'extractor/lateral2/W', 'rpn/conv2/W', 'rpn/conv/norm/gamma'}
    assert not absent & shapes.keys()
    n_blocks = sum(RESNET_BLOCKS['resnet50'])
    assert sum(path.endswith('/gamma') for path in shapes) == 1 + 3 * n_blocks + 4 + 8 + 4 + 4
    biases = {path for path in shapes if path.endswith('/b')}
    layers_with_bias = 'rpn/conv', 'rpn/objectness', 'rpn/delta', 'box_head/fc6', 'box_head/score', 'box_head/delta'
    assert biases == {f'{path}/b' for path in (*layers_with_bias, 'mask_head/deconv', 'mask_head/score')}


def test_parameters_without_normalised_heads_keep_their_paths():
    """Existing files have them."""
    with no_initial_weights():
        paths = {path[1:] for path, _ in mask_rcnn.build('resnet50_fpn').namedparams()}
    heads = {'extractor/lateral2/W', 'extractor/output5/b', 'rpn/conv/W', 'box_head/fc6/W', 'box_head/fc7/b'}
    assert heads | {'mask_head/conv1/W', 'mask_head/conv4/b', 'extractor/body/conv1/norm/scale'} <= paths
    assert not any('conv1/conv' in path or '/norm/' in path for path in paths if '/body/' not in path)


def test_constants_are_those_of_the_dialect(rng):
    model = build(rng, 'gn')
    norms = [link for link in model.links() if isinstance(link, GroupNormalization)]
    assert {(link.groups, link.eps) for link in norms} == {(8, 1e-2)}
    links = build(rng, 'v2').namedlinks()
    epsilons = {path.split('/')[1]: link.eps for path, link in links if isinstance(link, L.BatchNormalization)}
    assert epsilons == dict.fromkeys(('extractor', 'box_head', 'mask_head'), 1e-2)
    assert PRESETS['resnet50_fpn_gn'].dialect.backbone.gn_groups == layers.GroupNormalization(64).groups == 32


def test_channels_that_groups_do_not_divide_are_refused(rng):
    message = r'^box_head/conv1/norm: group normalisation with 32 groups needs a multiple of 32 channels, not 16$'
    with pytest.raises(ValueError, match=message):
        build(rng, 'gn', dialect=DETECTRON)


@pytest.mark.parametrize('variant', ['gn', 'v2', 'gn heads'])
def test_a_training_step_updates_normalisations(rng, variant):
    """Except those of the frozen stages and affine channels; scales and offsets have no weight decay."""
    model = build(rng, variant)
    freeze(model, stages=2)
    chain = MaskRCNNTrainChain(model, sampling=SAMPLING)
    optimizer = make_optimizer(chain, weight_decay=1e-4)
    set_learning_rate(optimizer, 0.1)
    params = dict(model.namedparams())
    before = {path: param.array.copy() for path, param in params.items()}
    with chainer.using_config('train', True):
        optimizer.update(chain, [example(64, 96, seed=1)])
    frozen = '/extractor/body/conv1/', '/extractor/body/res2/'
    for path, param in params.items():
        is_trained = not path.startswith(frozen) and not path.endswith(('scale', 'bias'))
        if not path.startswith('/extractor/output'):  # no anchor and no RoI may be sampled from a level
            assert (param.grad is not None and bool(param.grad.any())) == is_trained, path
        assert np.isfinite(param.array).all()
        assert is_trained or (param.array == before[path]).all()
        if path.endswith(('gamma', 'beta')) and is_trained:
            assert 'decay' not in param.update_rule._hookable._pre_update_hooks
    for path in ('/mask_head/conv4/norm/gamma', '/box_head/conv1/norm/beta'):
        assert (params[path].array != before[path]).any()


@pytest.mark.parametrize('norm', ['affine', 'bn'])
@pytest.mark.parametrize('variant', ['v2', 'affine heads', 'gn heads'])
def test_conversion_includes_the_heads(rng, tmp_path, variant, norm, image):
    """In memory, of a file and of a file that is loaded into another network, with the same output."""
    model = build(rng, variant)
    (expected,) = model.detect([image])
    mask_rcnn.save(tmp_path / 'model.npz', model)
    options = {'bn2affine': True} if norm == 'affine' else {'norm': norm}
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        converted = mask_rcnn.load(tmp_path / 'model.npz', **options)
        other = mask_rcnn.build(converted.config, class_names=model.class_names, category_ids=model.category_ids)
    load_pretrained(other, tmp_path / 'model.npz')
    convert_norm(model, norm)
    has_gn = model.config.head_norm == 'gn'
    other_kind = L.BatchNormalization if norm == 'affine' else AffineChannel2D
    assert len(expected) > 0
    for network in (model, converted, other):
        assert (network.config.norm, network.config.head_norm) == (norm, 'gn' if has_gn else norm)
        assert not any(isinstance(link, other_kind) for link in network.links())
        assert any(isinstance(link, GroupNormalization) for link in network.links()) == has_gn
        (found,) = network.detect([image])
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-2)


def test_group_normalisation_is_not_converted(rng, tmp_path):
    model = build(rng, 'gn')
    mask_rcnn.save(tmp_path / 'model.npz', model)
    for norm in ('affine', 'bn'):
        message = f"norm='gn' cannot be converted to '{norm}': only 'affine' and 'bn' are equivalent$"
        with pytest.raises(ValueError, match=f'^{message}'):
            convert_norm(model, norm)
        with pytest.raises(ValueError, match=f'^[^\n]*model.npz: {message}'):
            mask_rcnn.load(tmp_path / 'model.npz', norm=norm)
    with pytest.raises(ValueError, match="model.npz: norm='gn' cannot be converted to 'affine'"):
        mask_rcnn.load(tmp_path / 'model.npz', bn2affine=True)
    assert model.config.norm == 'gn'
    convert_norm(model, 'gn')


def test_saved_networks_are_loaded_with_their_layers(rng, tmp_path, monkeypatch, image):
    use_narrow_resnet(monkeypatch)
    for variant in VARIANTS:
        model = build(rng, variant)
        mask_rcnn.save(tmp_path / 'model.npz', model)
        loaded = mask_rcnn.load(tmp_path / 'model.npz')
        assert loaded.config == model.config
        (found,), (expected,) = loaded.detect([image]), model.detect([image])
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.mask_probs, expected.mask_probs)


@pytest.mark.parametrize(
    ('file', 'model', 'message'),
    [
        ('gn', 'v2', "has norm='gn', but the model has norm='bn'"),
        ('v2', 'gn', "has norm='bn', but the model has norm='gn'"),
        ('gn heads', 'affine heads', "has head_norm='gn', but the model has head_norm='affine'"),
        ('gn backbone', 'gn', "has head_norm='none', but the model has head_norm='gn'"),
    ],
)
def test_pretrained_weights_need_the_same_kind_of_normalisation(rng, tmp_path, file, model, message):
    mask_rcnn.save(tmp_path / 'file.npz', build(rng, file))
    network = build(rng, model)
    before = network.mask_head.score.W.array.copy()
    with pytest.raises(WeightFileError, match=f'^[^\n]*file.npz: {message}[^\n]*$'):
        load_pretrained(network, tmp_path / 'file.npz')
    np.testing.assert_array_equal(network.mask_head.score.W.array, before)
