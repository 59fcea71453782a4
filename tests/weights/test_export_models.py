"""Models written as files of other programs: arrays, settings, and the networks that are refused."""

import dataclasses
import pickle
import re
import sys
import types

import numpy as np
import pytest
import yaml

import mask_rcnn
from mask_rcnn.cli import convert
from mask_rcnn.config import (
    DENA,
    DETECTRON,
    DETECTRON2,
    MATTERPORT,
    MINDSPORE,
    PRESETS,
    RESNET_GROUPS,
    TORCHVISION,
)
from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.weights import ModelMeta, WeightFileError, formats, read_weights, write_weights
from mask_rcnn.weights.converters import detectron
from mask_rcnn.weights.converters import detectron_cfg as detectron_cfg_reader
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights, apply_mappings
from mask_rcnn.weights.exporters import adaptation, detectron_cfg, programs, safetensors_file, targets
from mask_rcnn.weights.exporters import torch_file as torch_file_writer
from mask_rcnn.weights.exporters.compatibility import find_differences, find_notes, find_obstacles
from mask_rcnn.weights.readers import torch_file
from tests.support.small_resnet import use_narrow_resnet, use_shallow_resnet
from tests.support.weight_arrays import random_arrays, used_fields

#: Few channels of the heads, which the reader of torchvision's files takes from the shapes.
NARROW = {'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 12, 'mask_channels': 8}

FPN = PRESETS['resnet50_fpn'].replace(n_fg_class=3, norm='bn', **NARROW)
KEYPOINTS = PRESETS['keypoint_resnet50_fpn'].replace(norm='bn', n_keypoint=5, **NARROW)
C4 = PRESETS['resnet50'].replace(n_fg_class=3, norm='bn')


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """Give the ResNets one block per stage, whose 3x3 convolutions have an eighth of their channels."""
    use_shallow_resnet(monkeypatch)
    monkeypatch.setitem(RESNET_GROUPS, 'resnet50', (1, 8))


def make_file(config, arrays=None):
    arrays = random_arrays(config) if arrays is None else arrays
    return ConvertedWeights('model', formats.NATIVE, config, arrays, ConversionReport(tuple(arrays), {}), '')


def make_meta(file):
    names = tuple(f'name_{i}' for i in range(file.config.n_fg_class))
    return ModelMeta('model', file.config, names, tuple(range(1, len(names) + 1)))


def export(tmp_path, file, name):
    path = tmp_path / f'model{targets.TARGETS[name].suffixes[0]}'
    notes = targets.export_weights('source.npz', path, file, make_meta(file), targets.TARGETS[name])
    return path, notes


def swapped(array):
    """Return ``(dx, dy, dw, dh)`` for ``(dy, dx, dh, dw)``, row by row."""
    return np.stack([array[i - i % 4 + (1, 0, 3, 2)[i % 4]] for i in range(len(array))])


# torchvision


def test_torchvision_names_and_layouts(tmp_path):
    file = make_file(FPN.replace(dialect=TORCHVISION, rpn_min_size=1e-3))
    path, notes = export(tmp_path, file, 'torchvision')
    state, native = torch_file.read(path), file.arrays
    expected = {
        'backbone.body.conv1.weight': 'extractor/body/conv1/conv/W',
        'backbone.body.bn1.running_var': 'extractor/body/conv1/norm/avg_var',
        'backbone.body.layer1.0.conv1.weight': 'extractor/body/res2/block0/conv1/conv/W',
        'backbone.body.layer4.0.bn3.bias': 'extractor/body/res5/block0/conv3/norm/beta',
        'backbone.body.layer3.0.downsample.0.weight': 'extractor/body/res4/block0/shortcut/conv/W',
        'backbone.body.layer3.0.downsample.1.weight': 'extractor/body/res4/block0/shortcut/norm/gamma',
        'backbone.fpn.inner_blocks.3.0.weight': 'extractor/lateral5/W',
        'backbone.fpn.layer_blocks.0.0.bias': 'extractor/output2/b',
        'rpn.head.conv.0.0.weight': 'rpn/conv/W',
        'rpn.head.cls_logits.bias': 'rpn/objectness/b',
        'roi_heads.box_head.fc6.weight': 'box_head/fc6/W',
        'roi_heads.box_predictor.cls_score.weight': 'box_head/score/W',
        'roi_heads.mask_head.3.0.weight': 'mask_head/conv4/W',
        'roi_heads.mask_predictor.conv5_mask.weight': 'mask_head/deconv/W',
    }
    for name, path_of_native in expected.items():
        np.testing.assert_array_equal(state[name], native[path_of_native], err_msg=name)
    np.testing.assert_array_equal(state['rpn.head.bbox_pred.weight'], swapped(native['rpn/delta/W']))
    np.testing.assert_array_equal(state['roi_heads.box_predictor.bbox_pred.bias'], swapped(native['box_head/delta/b']))
    logits = state['roi_heads.mask_predictor.mask_fcn_logits.weight']
    assert not logits[0].any()
    np.testing.assert_array_equal(logits[1:], native['mask_head/score/W'])
    counters = [name for name in state if name.endswith('num_batches_tracked')]
    assert len(counters) == sum(name.endswith('/N') for name in native) and state[counters[0]].dtype == np.int64
    assert notes == (
        'settings of torchvision that the file does not contain, to add to the defaults of the model: num_classes=4, '
        'BackboneWithFPN.out_channels=8, representation_size=12, MaskRCNNHeads.layers=[8, 8, 8, 8], '
        'MaskRCNNPredictor.dim_reduced=8',
    )


@pytest.mark.parametrize('eps', [0.0, 1e-5])
@pytest.mark.parametrize('config', [FPN, FPN.replace(masks=False), KEYPOINTS], ids=['masks', 'boxes', 'keypoints'])
def test_torchvision_round_trip(tmp_path, config, eps):
    dialect = TORCHVISION.replace(backbone={'bn_eps': eps}, training={'freeze_norms': eps == 0})
    file = make_file(config.replace(dialect=dialect, rpn_min_size=1e-3))
    path, _ = export(tmp_path, file, 'torchvision')
    read = formats.read(path)
    assert used_fields(read.config) == used_fields(file.config)
    assert set(read.arrays) == set(file.arrays)
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, err_msg=name)


# detectron2


@pytest.mark.parametrize('config', [FPN, KEYPOINTS, C4], ids=['fpn', 'keypoints', 'c4'])
def test_detectron2_round_trip(tmp_path, config):
    changes = {'losses': {'box_smooth_l1_beta': 0.5}, 'training': {'fpn_proposals': 1500}} if config.n_keypoint else {}
    dialect = DETECTRON2.replace(**changes)
    file = make_file(config.replace(dialect=dialect, sampling_ratio=0))
    for name in ('box_head/delta/W', 'box_head/delta/b'):
        file.arrays[name][:4] = 0  # those of the background, which are never used
    path, notes = export(tmp_path, file, 'detectron2')
    data = pickle.loads(path.read_bytes())
    assert list(data) == ['__author__', 'model'] and data['__author__'] == 'mask_rcnn'
    state, native = data['model'], file.arrays
    scores = state['roi_heads.box_predictor.cls_score.weight']
    np.testing.assert_array_equal(scores[:-1], native['box_head/score/W'][1:])
    np.testing.assert_array_equal(scores[-1], native['box_head/score/W'][0])
    deltas = state['roi_heads.box_predictor.bbox_pred.weight']
    np.testing.assert_array_equal(deltas, swapped(native['box_head/delta/W'])[4:])
    stem = 'backbone.bottom_up.stem' if config.has_fpn else 'backbone.stem'
    np.testing.assert_array_equal(state[f'{stem}.conv1.norm.running_mean'], native[conv1_of(config) + '/norm/avg_mean'])
    np.testing.assert_allclose(state['pixel_mean'].ravel(), [103.53, 116.28, 123.675], rtol=1e-6)
    assert state['pixel_std'].tolist() == [[[1]], [[1]], [[1]]]
    assert [note for note in notes if 'runs in' in note] == []
    read = formats.read(path)
    assert used_fields(read.config) == used_fields(file.config)
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, err_msg=name)


def conv1_of(config):
    return 'extractor/body/conv1' if config.has_fpn else 'extractor/conv1'


def test_the_anchors_of_c4_networks_change_their_order(tmp_path):
    config = C4.replace(anchor_sizes=(32, 64), anchor_ratios=(0.5, 1, 2))
    file = make_file(config)
    by_ratio = [(ratio, size) for ratio in config.anchor_ratios for size in config.anchor_sizes]
    by_size = [(ratio, size) for size in config.anchor_sizes for ratio in config.anchor_ratios]
    file.arrays['rpn/objectness/b'][:] = [100 * size + ratio for ratio, size in by_ratio]
    file.arrays['rpn/delta/b'][:] = [100 * size + ratio + 0.1 * i for ratio, size in by_ratio for i in (1, 0, 3, 2)]
    path, _ = export(tmp_path, file, 'detectron2')
    head = 'proposal_generator.rpn_head'
    state = pickle.loads(path.read_bytes())['model']
    np.testing.assert_allclose(state[f'{head}.objectness_logits.bias'], [100 * s + r for r, s in by_size])
    expected = [100 * s + r + 0.1 * i for r, s in by_size for i in range(4)]
    np.testing.assert_allclose(state[f'{head}.anchor_deltas.bias'], expected, rtol=1e-6)
    back = make_file(config.replace(dialect=DETECTRON2, sampling_ratio=0), file.arrays)
    path, _ = export(tmp_path, back, 'detectron')
    blobs = pickle.loads(path.read_bytes(), encoding='latin1')['blobs']
    # the same array, read as that of detectron2's order
    order = [by_size.index(anchor) for anchor in by_ratio]
    np.testing.assert_array_equal(blobs['rpn_cls_logits_b'], file.arrays['rpn/objectness/b'][order])


# Detectron


def detectron_config(preset, **changes):
    return PRESETS[preset].replace(n_fg_class=2 if preset != 'keypoint_resnet50_fpn' else 1, **changes)


SETTINGS = {
    'min_size': 500,
    'max_size': 900,
    'rpn_pre_nms': 700,
    'rpn_post_nms': 300,
    'rpn_nms_threshold': 0.6,
    'rpn_min_size': 2.0,
    'score_threshold': 0.1,
    'nms_threshold': 0.4,
    'max_detections': 50,
    'anchor_ratios': (0.4, 1.0, 2.5),
}


@pytest.mark.parametrize(
    'config',
    [
        detectron_config('resnet50', **SETTINGS, anchor_sizes=(16.0, 100.0), roi_size=7, roi_align=False),
        detectron_config('resnet50_fpn', **SETTINGS, anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0), sampling_ratio=1),
        detectron_config('keypoint_resnet50_fpn', **SETTINGS, n_keypoint=4),
    ],
    ids=['c4', 'fpn', 'keypoints'],
)
def test_detectron_round_trip(config, monkeypatch):
    """Its widths are fixed: narrow networks are converted in memory."""
    monkeypatch.setitem(RESNET_GROUPS, 'resnet50', (1, 64))
    assert detectron_cfg_reader.apply(detectron_cfg_reader.parse(detectron_cfg.dump(config)), default_of(config)) == (
        config,
        [],
    )
    config = config.replace(**NARROW) if config.has_fpn else config
    native = random_arrays(config)
    blobs = targets.TARGETS['detectron'].arrays('source.npz', config, native)
    np.testing.assert_array_equal(blobs['res_conv1_bn_s'], native[f'{conv1_of(config)}/norm/scale'])
    np.testing.assert_array_equal(blobs['bbox_pred_w'], swapped(native['box_head/delta/W']))
    np.testing.assert_array_equal(blobs['cls_score_w'], native['box_head/score/W'])
    if config.masks:
        assert not blobs['mask_fcn_logits_b'][0] and len(blobs['mask_fcn_logits_b']) == 3
    if config.n_keypoint:
        row = np.array([0.25, 0.75, 0.75, 0.25])
        for i in range(4):
            for j in range(4):
                np.testing.assert_array_equal(blobs['kps_score_w'][i, j], np.outer(row, row) * (i == j))
        assert not blobs['kps_score_b'].any()
    read, _, _ = apply_mappings('model.pkl', blobs, detectron.param_mappings(config))
    assert list(read) == list(native)
    for name, array in native.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)


def default_of(config):
    """Return a configuration with the layers of another one and the settings of the presets."""
    names = ('extractor', 'n_fg_class', 'masks', 'n_keypoint')
    preset = PRESETS['resnet50_fpn' if config.has_fpn else 'resnet50']
    return preset.replace(**{name: getattr(config, name) for name in names})


def test_a_file_for_detectron(tmp_path, monkeypatch):
    monkeypatch.setitem(RESNET_GROUPS, 'resnet50', (1, 64))
    config = detectron_config('resnet50', **SETTINGS)
    file = make_file(config)
    path, notes = export(tmp_path, file, 'detectron')
    data = pickle.loads(path.read_bytes(), encoding='latin1')
    assert sorted(data) == ['blobs', 'cfg'] and notes == ()
    read = formats.read(path)
    assert read.config == config and read.report.warnings == () == read.report.notes
    for name, array in file.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array, err_msg=name)


def test_detectron_reads_the_settings(monkeypatch):
    """Detectron loads the text with PyYAML, and takes the weights of the deltas as attributes."""

    class AttrDict(dict):
        def __getattr__(self, name):
            if name in self.__dict__:
                return self.__dict__[name]
            if name in self:
                return self[name]
            raise AttributeError(name)

    for name in ('detectron', 'detectron.utils', 'detectron.utils.collections'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules['detectron.utils.collections'].AttrDict = AttrDict
    cfg = yaml.load(detectron_cfg.dump(PRESETS['resnext101_32x8d_fpn']), Loader=yaml.UnsafeLoader)
    assert isinstance(cfg, AttrDict) and cfg.MODEL.BBOX_REG_WEIGHTS == [10, 10, 5, 5]
    assert cfg.MODEL.CONV_BODY == 'FPN.add_fpn_ResNet101_conv5_body' and cfg.MODEL.NUM_CLASSES == 81
    assert (cfg.RESNETS.NUM_GROUPS, cfg.RESNETS.WIDTH_PER_GROUP, cfg.RESNETS.STRIDE_1X1) == (32, 8, False)
    assert (cfg.TEST.SCALE, cfg.TEST.MAX_SIZE, cfg.FPN.RPN_ANCHOR_START_SIZE) == (800, 1333, 32)
    assert cfg.__dict__['__immutable__'] is False


# Conversion of conventions


def convolve(image, weight):
    """Return the values of a 7 x 7 convolution at the one place where the kernel is inside of the image."""
    return np.einsum('ochw,chw->o', weight.astype(np.float64), image)


@pytest.mark.parametrize('norm', ['bn', 'affine'])
def test_the_input_is_folded_into_the_first_layers(norm):
    """The output of conv1 and its normalisation stays the same for an image inside of which the kernel lies."""
    config = FPN.replace(dialect=DETECTRON.replace(backbone={'stride_in_3x3': True}), norm=norm)
    arrays = random_arrays(config)
    adapted, converted = adaptation.adapt('f', config, arrays, programs.TORCHVISION_PROGRAM)
    assert adapted.dialect == TORCHVISION and adapted.norm == 'bn'
    pixels = np.random.default_rng(1).uniform(0, 255, (3, 7, 7))  # RGB

    def output(arrays, dialect):
        values = dialect.input
        image = pixels if values.channel_order == 'RGB' else pixels[::-1]
        mean, std = (np.reshape(value, (3, 1, 1)) for value in (values.pixel_mean, values.pixel_std))
        h = convolve((image - mean) / std, arrays['extractor/body/conv1/conv/W'])
        parts = {
            name: array.astype(np.float64)
            for name in ('gamma', 'beta', 'avg_mean', 'avg_var', 'scale', 'bias')
            if (array := arrays.get(f'extractor/body/conv1/norm/{name}')) is not None
        }
        if 'scale' in parts:
            return parts['scale'] * h + parts['bias']
        deviation = np.sqrt(parts['avg_var'] + dialect.backbone.bn_eps)
        return parts['gamma'] * (h - parts['avg_mean']) / deviation + parts['beta']

    expected, actual = output(arrays, config.dialect), output(converted, TORCHVISION)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 100


def test_the_weights_of_box_deltas_are_folded():
    dialect = DETECTRON.replace(boxes={'box_delta_weights': (5.0, 10.0, 2.5, 5.0)})
    config = detectron_config('resnet50').replace(dialect=dialect)
    arrays = random_arrays(config)
    _, converted = adaptation.adapt('f', config, arrays, programs.DETECTRON_PROGRAM)
    rows = arrays['box_head/delta/W'].reshape(-1, 4, 2048)
    factors = np.array([2, 1, 2, 1])[None, :, None]  # 10, 10, 5, 5 instead of the above
    np.testing.assert_allclose(converted['box_head/delta/W'].reshape(rows.shape), rows * factors, rtol=1e-6)
    np.testing.assert_array_equal(converted['rpn/delta/W'], arrays['rpn/delta/W'])


def test_normalisations_with_another_epsilon():
    """Batch normalisations of 2e-5 (Chainer) become affine channels for Detectron and those of 1e-5 for detectron2."""
    config = C4.replace(dialect=DENA, sampling_ratio=2)
    arrays = random_arrays(config)
    prefix = 'extractor/res4/block0/conv2/norm/'
    gamma, beta, mean, var = (arrays[prefix + n].astype(np.float64) for n in ('gamma', 'beta', 'avg_mean', 'avg_var'))
    scale = gamma / np.sqrt(var + 2e-5)
    adapted, converted = adaptation.adapt('f', config, arrays, programs.DETECTRON_PROGRAM)
    assert (adapted.dialect, adapted.sampling_ratio, adapted.norm) == (DETECTRON, 0, 'affine')
    np.testing.assert_allclose(converted[prefix + 'scale'], scale, rtol=1e-6)
    np.testing.assert_allclose(converted[prefix + 'bias'], beta - mean * scale, rtol=1e-5, atol=1e-6)
    _, converted = adaptation.adapt('f', config, arrays, programs.DETECTRON2_PROGRAM)
    actual = converted[prefix + 'gamma'] / np.sqrt(converted[prefix + 'avg_var'].astype(np.float64) + 1e-5)
    np.testing.assert_allclose(actual, scale, rtol=1e-6)


# Networks that a program does not have

GN = PRESETS['resnet50_fpn_gn']


@pytest.mark.parametrize(
    ('config', 'program', 'obstacles'),
    [
        (PRESETS['resnet50'], 'torchvision', ['a C4 network']),
        (
            PRESETS['resnet50_fpn'],
            'torchvision',
            ['the stride of a block in the 1x1 convolution (torchvision: in the 3x3 convolution)'],
        ),
        (GN, 'torchvision', ['group normalisation']),
        (
            GN.replace(dialect=DETECTRON2),
            'detectron',
            ['other pixel means before group normalisation'],
        ),
        (PRESETS['resnext152_32x8d_fpn'], 'torchvision', ['X-152-32x8d-FPN Mask R-CNN (backbones there: resnet50']),
        (PRESETS['mobilenet_v1_fpn'], 'detectron2', ['MobileNetV1-FPN Mask R-CNN (backbones there']),
        (
            FPN.replace(dialect=MINDSPORE),
            'torchvision',
            ['conv1 padded at the bottom and the right only (torchvision: padded on all sides)'],
        ),
        (
            FPN.replace(dialect=MATTERPORT, max_size=1024),
            'torchvision',
            [
                "anchors of Matterport's program",
                'the image centred in a square input (torchvision: at the upper left of its input)',
                'the max pooling after conv1 padded at the bottom',
                'the stride of a block in the 1x1',
                'the pooling of RoIs by crop_and_resize (torchvision: by RoIAlign)',
                'the pyramid level of a RoI rounded to the nearest (torchvision: rounded down)',
                'detections of a RoI of its best class only (torchvision: of every class)',
            ],
        ),
        (FPN.replace(dialect=TORCHVISION, n_keypoint=3), 'torchvision', ['masks and keypoints in one network']),
        (FPN.replace(dialect=TORCHVISION, head_norm='bn'), 'torchvision', ["head_norm 'bn' (torchvision: 'none')"]),
        (
            FPN.replace(dialect=TORCHVISION, head_norm='bn', rpn_convs=2, box_convs=4),
            'torchvision',
            ['box_fcs 2 (torchvision: 1)'],
        ),
        (FPN.replace(dialect=TORCHVISION, rpn_convs=2), 'detectron2', ['rpn_convs 2 (detectron2: 1)']),
        (
            FPN,
            'detectron',
            ['fpn_channels 8 (Detectron: 256)', 'rpn_channels 8', 'head_channels 12', 'mask_channels 8'],
        ),
        (
            PRESETS['resnet50_fpn'].replace(anchor_sizes=(32, 64, 128, 256, 400)),
            'detectron',
            ['anchor sizes that do not double from level to level (32 64 128 256 400)'],
        ),
        (
            FPN.replace(dialect=TORCHVISION.replace(input={'pixel_mean': (120.0, 116.28, 103.53)})),
            'torchvision',
            ['pixel means that differ from those of torchvision by 3.7'],
        ),
    ],
)
def test_networks_that_a_program_does_not_have(config, program, obstacles):
    found = find_obstacles(config, targets.TARGETS[program].program)
    assert all(any(part in line for line in found) for part in obstacles), found
    assert len(found) >= len(obstacles) > 0


@pytest.mark.parametrize(
    ('config', 'program'),
    [
        (PRESETS['resnet50'], 'detectron'),
        (PRESETS['resnext101_64x4d_fpn'], 'detectron'),
        (GN, 'detectron'),
        (PRESETS['resnet50'], 'detectron2'),
        (GN, 'detectron2'),
        (PRESETS['resnext101_32x8d_fpn'], 'torchvision'),
        (C4.replace(dialect=DENA, sampling_ratio=2), 'detectron'),
        (
            FPN.replace(dialect=TORCHVISION, head_norm='bn', rpn_convs=2, box_convs=4, box_fcs=1),
            'torchvision',
        ),
    ],
)
def test_networks_that_a_program_has(config, program):
    assert find_obstacles(config, targets.TARGETS[program].program) == []


def test_the_differences_of_a_network_in_another_program():
    (line,) = find_notes(PRESETS['resnet50'].in_dialect(DENA), programs.DETECTRON_PROGRAM)
    start = 'runs in Detectron with these differences (values: mask-rcnn info --json): '
    assert line == f'{start}4 of input, 4 of boxes, 4 of rpn, 1 of masks'
    few = DETECTRON.replace(boxes={'offset': 0.0})
    (line,) = find_notes(PRESETS['resnet50'].replace(dialect=few), programs.DETECTRON_PROGRAM)
    assert line == 'runs in Detectron with these differences: boxes.offset 1 instead of 0'
    more = few.replace(
        input={'resize': 'torch_float32', 'side_rounding': 'half_up', 'box_factors': 'side_ratios'},
        detections={'postprocess_in_input_space': True, 'integer_boxes': True},
        masks={'squeeze_at_border': True, 'threshold_inclusive': True},
    )
    (line,) = find_notes(PRESETS['resnet50'].replace(dialect=more), programs.DETECTRON_PROGRAM)
    assert line == (
        f'{start}input (resize, side_rounding, box_factors); boxes (offset); '
        'detections (postprocess_in_input_space, integer_boxes); masks (squeeze_at_border, threshold_inclusive)'
    )
    differences = find_differences(PRESETS['resnet50'].in_dialect(DENA), programs.DETECTRON_PROGRAM)
    assert differences['boxes.offset'] == '1 instead of 0' and 'masks.squeeze_at_border' in differences
    assert differences['rpn.anchors'] == 'detectron instead of dena'
    assert not [name for name in differences if 'bn_eps' in name or 'keypoints' in name]
    settings, means, differences = find_notes(PRESETS['resnet50_fpn'], programs.DETECTRON2_PROGRAM)
    assert settings == (
        'settings of detectron2 that the file does not contain, to add to Base-RCNN-FPN.yaml: '
        'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 2, MODEL.MASK_ON True, MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 2'
    )
    assert means == (
        'pixel means that differ from those of detectron2 by 0.90 of 255 are converted, except at the zero padding '
        'around the image'
    )
    assert '2 of rois' in differences and len(differences) <= 300
    stride, *_ = find_notes(FPN.replace(dialect=TORCHVISION, **no_widths()), programs.DETECTRON2_PROGRAM)
    assert 'MODEL.RESNETS.STRIDE_IN_1X1 False' in stride and 'MODEL.ROI_HEADS.NUM_CLASSES 3' in stride
    gn, differences = find_notes(GN, programs.DETECTRON2_PROGRAM)
    assert setting_texts(gn) == {
        'MODEL.PIXEL_MEAN [102.98, 115.947, 122.772]',
        'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 2',
        'MODEL.MASK_ON True',
        'MODEL.RESNETS.STRIDE_IN_1X1 False',
        'MODEL.RESNETS.NORM GN',
        'MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 2',
        'MODEL.FPN.NORM GN',
        'MODEL.ROI_BOX_HEAD.NUM_CONV 4',
        'MODEL.ROI_BOX_HEAD.NUM_FC 1',
        'MODEL.ROI_BOX_HEAD.NORM GN',
        'MODEL.ROI_MASK_HEAD.NORM GN',
    }


def setting_texts(note):
    """Return the settings in a note; commas in lists do not separate them."""
    return set(re.split(r', (?=[A-Za-z])', note.partition(': ')[2]))


@pytest.mark.parametrize(
    ('config', 'program', 'settings'),
    [
        (
            PRESETS['keypoint_resnet50_fpn'].replace(
                dialect=DETECTRON2, sampling_ratio=0, n_keypoint=5, extractor='resnext101_64x4d_fpn', min_size=512
            ),
            programs.DETECTRON2_PROGRAM,
            {
                'INPUT.MIN_SIZE_TEST 512',
                'MODEL.KEYPOINT_ON True',
                'MODEL.ROI_HEADS.NUM_CLASSES 1',
                'MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS 5',
                'MODEL.RESNETS.DEPTH 101',
                'MODEL.RESNETS.NUM_GROUPS 64',
                'MODEL.RESNETS.WIDTH_PER_GROUP 4',
            },
        ),
        (
            PRESETS['resnet50'].replace(dialect=DETECTRON2, masks=False, roi_size=7, rpn_min_size=1e-3),
            programs.DETECTRON2_PROGRAM,
            {'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7', 'MODEL.PROPOSAL_GENERATOR.MIN_SIZE 0.001'},
        ),
        (
            PRESETS['resnet50_fpn'].replace(
                dialect=DETECTRON2.replace(input={'channel_order': 'RGB', 'pixel_std': (57.375, 57.12, 58.395)}),
                masks=False,
                sampling_ratio=0,
                roi_canonical_size=112.0,
                anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
            ),
            programs.DETECTRON2_PROGRAM,
            {
                'INPUT.FORMAT RGB',
                'MODEL.PIXEL_STD [57.375, 57.12, 58.395]',
                'MODEL.ANCHOR_GENERATOR.SIZES [16, 32, 64, 128, 256]',
                'roi_canonical_size 112 (no setting there)',
            },
        ),
        (
            PRESETS['resnet50_fpn'].replace(
                dialect=TORCHVISION.replace(backbone={'bn_eps': 0.0}),
                norm='bn',
                rpn_post_nms=500,
                score_threshold=0.1,
                min_size=512,
            ),
            programs.TORCHVISION_PROGRAM,
            {
                'num_classes=81',
                'min_size=512',
                'rpn_post_nms_top_n_test=500',
                'box_score_thresh=0.1',
                'model.rpn.min_size=0',
                'overwrite_eps(model, 0.0)',
            },
        ),
        (
            PRESETS['keypoint_resnet50_fpn'].replace(dialect=TORCHVISION, norm='bn', rpn_min_size=1e-3, n_keypoint=5),
            programs.TORCHVISION_PROGRAM,
            {'num_keypoints=5'},
        ),
    ],
)
def test_settings_have_the_names_of_the_other_program(config, program, settings):
    (note,) = find_notes(config, program)
    assert setting_texts(note) == settings


def no_widths():
    return {name: getattr(PRESETS['resnet50_fpn'], name) for name in NARROW}


def test_a_network_without_a_group_of_layers_has_no_notes_about_it():
    boxes = FPN.replace(dialect=TORCHVISION, masks=False, rpn_min_size=1e-3, n_fg_class=90, **no_widths())
    assert find_notes(boxes, programs.TORCHVISION_PROGRAM) == []
    (line,) = find_notes(boxes.replace(rpn_min_size=0.0), programs.DETECTRON_PROGRAM)[1:]
    assert 'masks.' not in line and 'keypoints.' not in line


def test_a_file_with_missing_arrays(tmp_path):
    file = make_file(C4)
    del file.arrays['rpn/conv/W']
    file.arrays['rpn/conv/b'] = np.zeros(3, np.float32)
    with pytest.raises(WeightFileError) as error:
        export(tmp_path, file, 'detectron2')
    assert str(error.value) == (
        'source.npz: does not have the arrays of its network: missing rpn/conv/W; rpn/conv/b gives '
        'proposal_generator.rpn_head.conv.bias of shape (3,), expected (1024,)'
    )
    assert list(tmp_path.iterdir()) == []


def test_imagenet_weights_cannot_be_written_for_a_program(tmp_path):
    file = dataclasses.replace(make_file(C4), kind='backbone')
    with pytest.raises(WeightFileError, match='contains backbone weights, which cannot be written for Detectron'):
        targets.export_weights('s', tmp_path / 'a', file, ModelMeta('backbone', C4), targets.TARGETS['detectron'])


# safetensors, and the command


def test_a_model_in_a_safetensors_file(tmp_path, monkeypatch):
    monkeypatch.setitem(RESNET_GROUPS, 'resnet50', (1, 64))
    use_narrow_resnet(monkeypatch)
    model = mask_rcnn.build(FPN)
    file = make_file(FPN, collect_arrays(model))
    path, notes = export(tmp_path, file, 'safetensors')
    assert formats.detect_format(path).name == 'safetensors' and notes == ()
    read = formats.read(path)
    assert (read.config, read.class_names) == (FPN, ('name_0', 'name_1', 'name_2'))
    assert len(read.sha256) == 64
    loaded = mask_rcnn.load(path)
    np.testing.assert_array_equal(loaded.box_head.fc6.W.array, model.box_head.fc6.W.array)
    npz = tmp_path / 'model.npz'
    assert convert.main([str(path), '--output', str(npz)]) == 0
    assert read_weights(npz).meta.source.format == 'safetensors'
    np.testing.assert_array_equal(read_weights(npz).arrays['rpn/conv/W'], model.rpn.conv.W.array)


@pytest.mark.parametrize('text', ['{', '{"format_version": 1}', '[]'])
def test_damaged_metadata_of_a_safetensors_file(tmp_path, text):
    path = tmp_path / 'model.safetensors'
    safetensors_file.write(path, {'a': np.ones(1, np.float32)}, {'mask_rcnn': text})
    with pytest.raises(WeightFileError, match='is a damaged model of this program: ') as error:
        formats.read(path)
    assert '\n' not in str(error.value)


def test_a_state_dict_in_a_safetensors_file(tmp_path):
    """Torchvision's tensors are read as from its own file, with its settings."""
    file = make_file(FPN.replace(dialect=TORCHVISION))
    path, _ = export(tmp_path, file, 'torchvision')
    other = tmp_path / 'model.safetensors'
    safetensors_file.write(other, torch_file.read(path), {'format': 'pt'})
    first, second = (formats.read(p, {'min_size': 300, 'max_size': 400}) for p in (path, other))
    assert first.format == second.format == 'torchvision' and first.config == second.config
    assert second.config.min_size == 300 and list(first.arrays) == list(second.arrays)
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    pickled, _ = export(tmp_path, make_file(C4.replace(dialect=DETECTRON2)), 'detectron2')
    safetensors_file.write(other, pickle.loads(pickled.read_bytes())['model'], {})
    assert formats.read(other).format == 'detectron2'
    safetensors_file.write(other, {'a': np.ones(1, np.float32)}, {})
    with pytest.raises(WeightFileError, match='is a state dict, but not of a supported Mask R-CNN.*begins with a'):
        formats.read(other)


@pytest.fixture
def model_file(tmp_path):
    file = make_file(FPN.replace(dialect=TORCHVISION, rpn_min_size=1e-3))
    path = tmp_path / 'model.npz'
    write_weights(path, file.arrays, make_meta(file))
    return path


def test_the_command_writes_the_format_of_another_program(model_file, tmp_path, capsys):
    folder = tmp_path / 'weights'
    assert convert.main([str(model_file), '--to', 'torchvision'], folder) == 0
    output = folder / 'model_torchvision.pth'
    printed = capsys.readouterr().out
    assert printed.endswith(
        'num_classes=4, BackboneWithFPN.out_channels=8, representation_size=12, MaskRCNNHeads.layers=[8, 8, 8, 8], '
        'MaskRCNNPredictor.dim_reduced=8\n'
        '  note     the file does not contain the names of the classes (convert --class-names): '
        'name_0, name_1, name_2\n'
        f'wrote {output}\n'
    )
    assert formats.read(output).format == 'torchvision'
    first = output.read_bytes()
    assert convert.main([str(output), '--to', 'torchvision', '-o', str(tmp_path / 'again.pth')]) == 0
    assert (tmp_path / 'again.pth').read_bytes() == first
    assert convert.main([str(model_file), '--to', 'torchvision'], folder) == 0
    assert [path.name for path in folder.iterdir()] == [output.name]  # an equal file is not kept
    output.write_bytes(b'other')
    assert convert.main([str(model_file), '--to', 'torchvision'], folder) == 0
    kept = folder / 'model_torchvision.old.pth'
    assert (
        kept.read_bytes() == b'other'
        and output.read_bytes() == first
        and f'is kept as {kept}' in capsys.readouterr().out
    )


def test_the_command_names_the_classes_that_a_file_does_not_contain(tmp_path, capsys):
    file = make_file(FPN.replace(dialect=TORCHVISION, n_fg_class=12))
    path, names, output = tmp_path / 'model.npz', tmp_path / 'names.txt', str(tmp_path / 'out')
    names.write_text('\n'.join(f'animal{i}' for i in range(12)))
    write_weights(path, file.arrays, make_meta(file))
    named = ['--class-names', str(names), '-o', output]
    assert convert.main([str(path), '--to', 'torchvision', *named]) == 0
    shown = ', '.join(f'animal{i}' for i in range(10))
    line = f'note     the file does not contain the names of the classes (convert --class-names): {shown}, ...\n'
    assert line in capsys.readouterr().out
    assert convert.main([output, '--to', 'torchvision', '-o', str(tmp_path / 'again')]) == 0  # class_1, ...
    assert convert.main([str(path), '--to', 'safetensors', *named]) == 0  # which has them
    assert 'names of the classes' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'expected'), [('safetensors', 'model.safetensors'), ('detectron2', 'model_detectron2.pkl')]
)
def test_default_names(model_file, tmp_path, name, expected):
    assert convert.main([str(model_file), '--to', name], tmp_path / 'weights') == 0
    (path,) = (tmp_path / 'weights').iterdir()
    assert path.name == expected


def test_the_command_refuses_a_network_in_one_line(model_file, tmp_path, capsys):
    output = tmp_path / 'out.pkl'
    output.write_bytes(b'old')
    assert convert.main([str(model_file), '--to', 'detectron', '-o', str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count('\n') == 1
    assert f'{model_file}: cannot be written for Detectron, which does not have fpn_channels 8' in captured.err
    assert output.read_bytes() == b'old' and sorted(path.name for path in tmp_path.iterdir()) == [
        'model.npz',
        'out.pkl',
    ]


@pytest.mark.parametrize(
    ('arguments', 'name', 'reason'),
    [
        (['--to', 'torchvision'], 'x.npz', "torchvision's files end with .pth or .pt; give --to npz"),
        (['--to', 'detectron2'], 'x.pth', "detectron2's files end with .pkl; give --to torchvision"),
        ([], 'x.PKL', "this program's files end with .npz; give --to detectron2 or --to detectron"),
        ([], 'x.bin', "this program's files end with .npz; .bin is the suffix of no format"),
    ],
)
def test_the_suffix_of_another_format_is_refused(model_file, tmp_path, capsys, arguments, name, reason):
    output = tmp_path / name
    assert convert.main([str(model_file), '-o', str(output), *arguments]) == 2
    assert capsys.readouterr().err.endswith(f'--output {output}: {reason}\n')
    assert [path.name for path in tmp_path.iterdir()] == ['model.npz']


@pytest.mark.parametrize(
    ('program', 'name'),
    [('torchvision', 'x.pt'), ('torchvision', 'x.PTH'), ('safetensors', 'x.safetensors'), ('detectron2', 'x')],
)
def test_suffixes_of_a_format(model_file, tmp_path, program, name):
    assert convert.main([str(model_file), '--to', program, '-o', str(tmp_path / name)]) == 0
    assert (tmp_path / name).stat().st_size > 0


def test_a_native_file_needs_no_conversion_to_itself(model_file, capsys):
    assert convert.main([str(model_file)]) == 1
    assert 'needs no conversion' in capsys.readouterr().err
    assert convert.main([str(model_file), '--to', 'safetensors', '-o', str(model_file)]) == 2
    assert 'is the input file' in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(model_file, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch_file_writer, '_write_member', fail)
    assert convert.main([str(model_file), '--to', 'torchvision', '-o', str(tmp_path / 'out.pth')]) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['model.npz']


def test_every_program_is_described(root):
    text = (root / 'docs' / 'conversion.md').read_text(encoding='utf-8')
    assert [name for name in targets.TARGETS if f'`{name}`' not in text] == []
