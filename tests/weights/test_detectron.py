"""Detectron's weight files: detection, conversion, configuration."""

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, PRESETS, RESNET_BLOCKS, Config
from mask_rcnn.weights import WeightFileError, formats, load_arrays
from mask_rcnn.weights.converters import detectron, detectron_cfg
from mask_rcnn.weights.readers import safe_pickle
from tests.support.models import constant_model
from tests.support.python_files import import_file
from tests.support.weight_arrays import zeros

# Networks of zeros: the shapes follow Detectron's definitions, and the small heads have values that identify each row.


#: Blocks in res4, groups and channels of a group in res2, by Xie et al. 2017, table 1, and He et al. 2016, table 1.
BACKBONES = {
    'resnet50': (6, 1, 64),
    'resnet101': (23, 1, 64),
    'resnet152': (36, 1, 64),
    'resnext50_32x4d': (6, 32, 4),
    'resnext101_32x8d': (23, 32, 8),
    'resnext101_64x4d': (23, 64, 4),
    'resnext152_32x8d': (36, 32, 8),
}


def resnet_shapes(n_res4, groups=1, group_width=64, norm='bn'):
    stem = 'conv1_gn' if norm == 'gn' else 'res_conv1_bn'
    shapes = {'conv1_w': (64, 3, 7, 7), f'{stem}_s': (64,), f'{stem}_b': (64,)}
    width_in = 64
    for stage, (count, factor) in {2: (3, 1), 3: (8 if n_res4 == 36 else 4, 2), 4: (n_res4, 4), 5: (3, 8)}.items():
        width, out = groups * group_width * factor, 256 * factor
        for i in range(count):
            convs = {
                '2a': (width, width_in, 1, 1),
                '2b': (width, group_width * factor, 3, 3),
                '2c': (out, width, 1, 1),
            }
            if i == 0:
                convs['1'] = (out, width_in, 1, 1)
            for branch, shape in convs.items():
                name = f'res{stage}_{i}_branch{branch}'
                shapes |= {f'{name}_w': shape, f'{name}_{norm}_s': shape[:1], f'{name}_{norm}_b': shape[:1]}
            width_in = out
    return shapes


def head_shapes(n_classes, n_anchors=15):
    shapes = {
        'conv_rpn': (1024, 1024, 3, 3),
        'rpn_cls_logits': (n_anchors, 1024, 1, 1),
        'rpn_bbox_pred': (4 * n_anchors, 1024, 1, 1),
        'cls_score': (n_classes, 2048),
        'bbox_pred': (4 * n_classes, 2048),
        'mask_fcn_logits': (n_classes, 256, 1, 1),
    }
    weights = {f'{name}_w': shape for name, shape in shapes.items()}
    biases = {f'{name}_b': shape[:1] for name, shape in shapes.items()}
    return weights | biases | {'conv5_mask_w': (2048, 256, 2, 2), 'conv5_mask_b': (256,)}


def fpn_shapes(n_classes, n_res4=6, heads=('mask',)):
    """Return the shapes of all layers except the backbone, from the list in golden/README.md.

    Layouts are (out, in, kh, kw) or (in, out, kh, kw).
    """
    layers = {'fpn_inner_res5_2_sum': (256, 2048, 1, 1), 'fpn_res5_2_sum': (256, 256, 3, 3)}
    for name, width in (
        ('res2_2', 256),
        ('res3_7' if n_res4 == 36 else 'res3_3', 512),
        (f'res4_{n_res4 - 1}', 1024),
    ):
        layers |= {f'fpn_inner_{name}_sum_lateral': (256, width, 1, 1), f'fpn_{name}_sum': (256, 256, 3, 3)}
    layers |= {
        'conv_rpn_fpn2': (256, 256, 3, 3),
        'rpn_cls_logits_fpn2': (3, 256, 1, 1),
        'rpn_bbox_pred_fpn2': (12, 256, 1, 1),
        'fc6': (1024, 256 * 7 * 7),
        'fc7': (1024, 1024),
        'cls_score': (n_classes, 1024),
        'bbox_pred': (4 * n_classes, 1024),
    }
    biases = {}
    if 'mask' in heads:
        layers |= {f'_[mask]_fcn{i}': (256, 256, 3, 3) for i in range(1, 5)}
        layers |= {'conv5_mask': (256, 256, 2, 2), 'mask_fcn_logits': (n_classes, 256, 1, 1)}
    if 'keypoint' in heads:
        layers |= {f'conv_fcn{i}': (512, 512 if i > 1 else 256, 3, 3) for i in range(1, 9)}
        layers |= {'kps_score_lowres': (512, 17, 4, 4), 'kps_score': (17, 17, 4, 4)}
        biases = {'kps_score_lowres_b': (17,)}
    return (
        {f'{name}_w': shape for name, shape in layers.items()}
        | {f'{name}_b': shape[:1] for name, shape in layers.items()}
        | biases
    )


def group_norm_shapes(n_classes):
    """Return the shapes of R-50-FPN with group normalisation (``e2e_mask_rcnn_R-50-FPN_2x_gn.yaml``)."""
    shapes = fpn_shapes(n_classes)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(('fpn_', '_[mask]', 'fc7'))}
    normalised = {name: shape for name, shape in fpn_shapes(n_classes).items() if re.match(r'fpn_\w+_w$', name)}
    normalised |= {f'{head}{i}_w': (256, 256, 3, 3) for i in range(1, 5) for head in ('head_conv', '_mask_fcn')}
    for name, shape in normalised.items():
        stem = name.removesuffix('_w')
        shapes |= {name: shape, f'{stem}_gn_s': shape[:1], f'{stem}_gn_b': shape[:1]}
    return resnet_shapes(6, norm='gn') | shapes


def model_blobs(n_classes=3, n_res4=6, groups=1, group_width=64, **changes):
    blobs = zeros(resnet_shapes(n_res4, groups, group_width) | head_shapes(n_classes)) | changes
    return {name: blob for name, blob in blobs.items() if blob is not None}


def fpn_blobs(n_classes=3, n_res4=6, heads=('mask',), groups=1, group_width=64, **changes):
    blobs = zeros(resnet_shapes(n_res4, groups, group_width) | fpn_shapes(n_classes, n_res4, heads)) | changes
    return {name: blob for name, blob in blobs.items() if blob is not None}


def bilinear():
    """Return Detectron's weight of 2x upsampling (``BilinearInterpolation``), which is linear in the distance."""
    distance = np.abs(np.arange(4) - 1.5)
    kernel = np.zeros((17, 17, 4, 4), np.float32)
    kernel[range(17), range(17)] = np.multiply.outer(1 - distance / 2, 1 - distance / 2)
    return kernel


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return a function that converts data as if they came from a file."""
    path = tmp_path / 'model_final.pkl'
    path.write_bytes(b'content')

    def read_data(data):
        monkeypatch.setattr(safe_pickle, 'load', lambda _: data)
        return detectron.read(path)

    return read_data


def rows(shape):
    """Return an array whose rows (output channels) are filled with their numbers."""
    numbers = np.arange(shape[0], dtype=np.float32)
    return np.broadcast_to(numbers.reshape(-1, *[1] * (len(shape) - 1)), shape)


def test_the_order_of_the_rows_of_the_heads(read):
    shapes = head_shapes(3)
    file = read({'blobs': model_blobs(3, **{name: rows(shape) for name, shape in shapes.items()})})
    assert file.kind == 'model' and file.config == Config(n_fg_class=2)
    arrays = file.arrays
    # Detectron's rows of each anchor or class are dx, dy, dw, dh = 4k, 4k + 1, 4k + 2, 4k + 3.
    yxhw = [4 * k + i for k in range(15) for i in (1, 0, 3, 2)]
    for name in 'Wb':
        width = shapes['rpn_bbox_pred_w'] if name == 'W' else (60,)
        assert arrays[f'rpn/delta/{name}'].shape == width
        assert arrays[f'rpn/delta/{name}'].reshape(60, -1)[:, 0].tolist() == yxhw
        assert arrays[f'box_head/delta/{name}'].reshape(12, -1)[:, 0].tolist() == yxhw[:12]
        assert arrays[f'mask_head/score/{name}'].reshape(2, -1)[:, 0].tolist() == [1, 2]
        assert arrays[f'box_head/score/{name}'].reshape(3, -1)[:, 0].tolist() == [0, 1, 2]
        assert arrays[f'rpn/objectness/{name}'].reshape(15, -1)[:, 0].tolist() == list(range(15))
    assert arrays['mask_head/score/W'].shape == (2, 256, 1, 1)
    assert (arrays['mask_head/deconv/W'] == rows((2048, 256, 2, 2))).all()
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())


@pytest.mark.parametrize(
    'extractor',
    [
        name if name in ('resnet50', 'resnext101_32x8d') else pytest.param(name, marks=pytest.mark.slow)
        for name in BACKBONES
    ],
)
def test_c4_models_fit_the_native_network(read, extractor):
    file = read({'blobs': model_blobs(4, *BACKBONES[extractor])})
    assert file.config == Config(extractor=extractor, n_fg_class=3)
    assert set(file.report.taken) == set(model_blobs(4, *BACKBONES[extractor]))
    load_arrays(constant_model(file.config), file.arrays, source='file')


def test_every_backbone_has_a_test():
    assert set(BACKBONES) == set(RESNET_BLOCKS)


@pytest.mark.parametrize(
    ('extractor', 'cfg', 'in_3x3'),
    [
        ('resnext101_32x8d', None, True),
        ('resnext101_64x4d', 'RESNETS: {NUM_GROUPS: 64, WIDTH_PER_GROUP: 4, STRIDE_1X1: false}', True),
        ('resnext152_32x8d', 'RESNETS: {NUM_GROUPS: 32, WIDTH_PER_GROUP: 8, STRIDE_1X1: true}', False),
        ('resnet152', 'RESNETS: {STRIDE_1X1: false}', True),
        ('resnet101', 'RESNETS: {STRIDE_1X1: true}', False),
    ],
)
def test_the_stride_of_fpn_models(read, extractor, cfg, in_3x3):
    """The weights do not contain the place of the stride, but ``cfg`` does."""
    n_res4, groups, width = BACKBONES[extractor]
    blobs = fpn_blobs(4, n_res4, groups=groups, group_width=width)
    file = read({'blobs': blobs} | ({} if cfg is None else {'cfg': cfg}))
    assert file.config.extractor == f'{extractor}_fpn'
    assert file.config.dialect == DETECTRON.replace(backbone={'stride_in_3x3': in_3x3})
    assert set(file.report.taken) == set(blobs)
    assert file.report.warnings == (() if cfg else ("the file has no 'cfg'; Detectron's defaults are used",))


@pytest.mark.parametrize('in_3x3', [False, True])
def test_the_stride_of_c4_models(in_3x3):
    config, warnings = detectron_cfg.apply({'RESNETS': {'STRIDE_1X1': not in_3x3}}, PRESETS['resnet50'])
    assert config == PRESETS['resnet50'].replace(dialect=DETECTRON.replace(backbone={'stride_in_3x3': in_3x3}))
    assert warnings == []


@pytest.mark.parametrize('fpn', [False, True])
def test_faster_rcnn_has_no_masks(read, fpn):
    blobs = fpn_blobs(4, heads=()) if fpn else model_blobs(4, mask_fcn_logits_w=None, mask_fcn_logits_b=None)
    blobs = {name: blob for name, blob in blobs.items() if not name.startswith('conv5_mask')}
    file = read({'blobs': blobs})
    assert file.config == PRESETS['resnet50_fpn' if fpn else 'resnet50'].replace(n_fg_class=3, masks=False)
    assert set(file.report.taken) == set(blobs) and not any(name.startswith('mask') for name in file.arrays)
    name = 'R-50-FPN' if fpn else 'R-50-C4'
    assert formats.default_name(file) == f'e2e_faster_rcnn_{name}_1x_d2c.npz'
    load_arrays(constant_model(file.config), file.arrays, source='file')


def test_a_keypoint_model_with_a_resnext(read):
    n_res4, groups, width = BACKBONES['resnext101_64x4d']
    file = read({'blobs': fpn_blobs(2, n_res4, ('keypoint',), groups=groups, group_width=width)})
    assert (file.config.n_keypoint, file.config.masks, file.class_names) == (17, False, ('person',))
    assert formats.default_name(file) == 'e2e_keypoint_rcnn_X-101-64x4d-FPN_1x_d2c.npz'


def test_group_normalisation(read):
    """Each blob is filled with its index, which identifies it in the network."""
    shapes = group_norm_shapes(4)
    numbered = {name: np.broadcast_to(np.float32(i), shape) for i, (name, shape) in enumerate(shapes.items())}
    file = read({'blobs': numbered, 'cfg': 'GROUP_NORM: {EPSILON: 2.0e-05, NUM_GROUPS: 16, DIM_PER_GP: -1}'})
    expected = PRESETS['resnet50_fpn_gn']
    assert file.config == expected.replace(
        n_fg_class=3, dialect=expected.dialect.replace(backbone={'gn_groups': 16, 'gn_eps': 2e-5})
    )
    assert set(file.report.taken) == set(shapes)
    for native, source in {
        'extractor/body/conv1/norm/gamma': 'conv1_gn_s',
        'extractor/body/res3/block0/shortcut/norm/beta': 'res3_0_branch1_gn_b',
        'extractor/body/res5/block2/conv2/conv/W': 'res5_2_branch2b_w',
        'extractor/lateral5/conv/W': 'fpn_inner_res5_2_sum_w',
        'extractor/lateral3/norm/gamma': 'fpn_inner_res3_3_sum_lateral_gn_s',
        'extractor/output2/norm/beta': 'fpn_res2_2_sum_gn_b',
        'box_head/conv4/conv/W': 'head_conv4_w',
        'box_head/conv1/norm/beta': 'head_conv1_gn_b',
        'box_head/fc6/b': 'fc6_b',
        'mask_head/conv2/conv/W': '_mask_fcn2_w',
        'mask_head/conv3/norm/gamma': '_mask_fcn3_gn_s',
        'mask_head/deconv/b': 'conv5_mask_b',
    }.items():
        np.testing.assert_array_equal(file.arrays[native], numbered[source], err_msg=native, strict=True)
    assert not {'box_head/fc7/W', 'extractor/lateral2/conv/b', 'extractor/body/conv1/norm/avg_mean'} & set(file.arrays)
    assert formats.default_name(file) == 'e2e_mask_rcnn_R-50-FPN-GN_1x_d2c.npz'


def test_imagenet_files_of_other_backbones(read):
    file = read({'blobs': zeros(resnet_shapes(*BACKBONES['resnext101_32x8d']))})
    assert (file.kind, file.config.extractor) == ('backbone', 'resnext101_32x8d')
    assert formats.default_name(file) == 'X-101-32x8d_d2c.npz'
    file = read(zeros(resnet_shapes(6, norm='gn')))
    assert (file.kind, file.config.norm) == ('backbone', 'gn')
    assert formats.default_name(file) == 'R-50-GN_d2c.npz'
    assert file.arrays['box_head/res5/block0/shortcut/norm/gamma'].shape == (2048,)


def test_the_order_of_the_rows_of_the_heads_of_an_fpn_model(read):
    shapes = fpn_shapes(3)
    arrays = read({'blobs': fpn_blobs(3, **{name: rows(shape) for name, shape in shapes.items()})}).arrays
    assert arrays['rpn/delta/b'].tolist() == [4 * k + i for k in range(3) for i in (1, 0, 3, 2)]
    assert arrays['box_head/delta/W'][:, 5].tolist() == [4 * k + i for k in range(3) for i in (1, 0, 3, 2)]
    assert arrays['mask_head/score/b'].tolist() == [1, 2]


@pytest.mark.parametrize(
    ('preset', 'heads', 'name'),
    [
        ('resnet50_fpn', ('mask',), 'e2e_mask_rcnn_R-50-FPN_1x_d2c.npz'),
        ('resnet101_fpn', ('mask',), 'e2e_mask_rcnn_R-101-FPN_1x_d2c.npz'),
        ('keypoint_resnet50_fpn', ('keypoint',), 'e2e_keypoint_rcnn_R-50-FPN_1x_d2c.npz'),
        ('keypoint_resnet101_fpn', ('mask', 'keypoint'), 'e2e_mask_and_keypoint_rcnn_R-101-FPN_1x_d2c.npz'),
    ],
)
def test_fpn_models_fit_the_native_networks(read, preset, heads, name):
    config = PRESETS[preset]
    n_classes = 2 if 'keypoint' in heads else 4
    file = read({'blobs': fpn_blobs(n_classes, RESNET_BLOCKS[config.backbone][2], heads)})
    assert file.config == config.replace(n_fg_class=n_classes - 1, masks='mask' in heads)
    assert formats.default_name(file) == name
    assert file.class_names == (('person',) if 'keypoint' in heads else ())
    load_arrays(constant_model(file.config), file.arrays, source='file')


def fpn_layers(head):
    """Return native path -> blob of layers that are converted unchanged, with the ``'mask'`` or ``'keypoint'`` head."""
    layers = {
        'extractor/body/res5/block2/conv3/conv/W': 'res5_2_branch2c_w',
        'extractor/body/res2/block0/shortcut/norm/bias': 'res2_0_branch1_bn_b',
        'extractor/lateral5/W': 'fpn_inner_res5_2_sum_w',
        'extractor/output5/W': 'fpn_res5_2_sum_w',
        'extractor/lateral4/W': 'fpn_inner_res4_5_sum_lateral_w',
        'extractor/output2/b': 'fpn_res2_2_sum_b',
        'rpn/conv/W': 'conv_rpn_fpn2_w',
        'rpn/objectness/b': 'rpn_cls_logits_fpn2_b',
        'box_head/fc6/W': 'fc6_w',
        'box_head/fc7/b': 'fc7_b',
        'box_head/score/W': 'cls_score_w',
    }
    if head == 'keypoint':
        return layers | {
            'keypoint_head/conv1/W': 'conv_fcn1_w',
            'keypoint_head/conv8/b': 'conv_fcn8_b',
            'keypoint_head/deconv/W': 'kps_score_lowres_w',
            'keypoint_head/deconv/b': 'kps_score_lowres_b',
        }
    return layers | {
        'mask_head/conv1/W': '_[mask]_fcn1_w',
        'mask_head/conv4/b': '_[mask]_fcn4_b',
        'mask_head/deconv/W': 'conv5_mask_w',
    }


@pytest.mark.parametrize('head', ['mask', 'keypoint'])
def test_each_blob_of_an_fpn_model_becomes_the_array_of_its_layer(read, head):
    """Each blob is filled with its index, which identifies it in the network."""
    blobs = fpn_blobs(2, heads=(head,))
    numbered = {name: np.broadcast_to(np.float32(i), blob.shape) for i, (name, blob) in enumerate(blobs.items())}
    arrays = read({'blobs': numbered}).arrays
    for native, source in fpn_layers(head).items():
        np.testing.assert_array_equal(arrays[native], numbered[source], err_msg=native, strict=True)


@pytest.mark.parametrize(('kernel', 'is_bilinear'), [(bilinear(), True), (bilinear() / 2, False), (np.zeros(3), False)])
def test_a_warning_about_upsampling_that_is_not_bilinear(read, kernel, is_bilinear):
    report = read({'blobs': fpn_blobs(2, heads=('keypoint',), kps_score_w=kernel)}).report
    assert report.skipped == {'fixed upsampling': ('kps_score_b', 'kps_score_w')}
    warning = 'kps_score_w is not a bilinear upsampling; bilinear upsampling is used'
    assert (warning in report.warnings) != is_bilinear


@pytest.mark.parametrize(('extractor', 'wrapped'), [('resnet50', True), ('resnet101', False)])
def test_imagenet_files_become_backbones(read, extractor, wrapped):
    n_res4 = RESNET_BLOCKS[extractor][2]
    extra = zeros({'conv1_b': (64,), 'res2_0_branch2a_b': (64,), 'fc1000_w': (1000, 2048), 'fc1000_b': (1000,)})
    blobs = zeros(resnet_shapes(n_res4)) | extra
    file = read({'blobs': blobs} if wrapped else blobs)
    assert file.kind == 'backbone' and file.config == Config(extractor=extractor)
    assert file.report.skipped == {
        'unused convolution biases': ('conv1_b', 'res2_0_branch2a_b'),
        'ImageNet classifier': ('fc1000_b', 'fc1000_w'),
    }
    assert {path.split('/')[0] for path in file.arrays} == {'extractor', 'box_head'}
    load_arrays(constant_model(file.config), file.arrays, source='file', partial=True)


def test_report(read):
    more = zeros({'conv_rpn_w_momentum': (1,), 'a\nb': (1,)})
    file = read({'blobs': model_blobs(**more) | {'none': None, 5: 6}})
    assert set(file.report.taken) == set(model_blobs())
    assert file.report.skipped == {'momentum': ('conv_rpn_w_momentum',), 'unknown': ('a\\nb',)}
    assert file.report.warnings == ("the file has no 'cfg'; Detectron's defaults are used",)
    assert file.sha256 == 'ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73'
    broken = np.full(3, np.nan, np.float32)
    assert 'cls_score_b' in read({'blobs': model_blobs(cls_score_b=broken)}).report.warnings[-1]


@pytest.mark.parametrize(
    ('blobs', 'reason'),
    [
        (model_blobs(kps_score_w=np.zeros(1)), 'with a keypoint head but no FPN, which is not supported'),
        (fpn_blobs(retnet_cls_pred_fpn3_w=np.zeros(1)), 'with a RetinaNet head'),
        (fpn_blobs(conv_rpn_fpn2_w=None), r'with no RPN \(Fast R-CNN, which needs a file of proposals\)'),
        (fpn_blobs(cls_score_w=None), 'with no box head'),
        (fpn_blobs(mask_fcn_logits_w=None), 'missing blobs: mask_fcn_logits_w'),
        (fpn_blobs(heads=('keypoint',), kps_score_lowres_w=None), 'missing blobs: kps_score_lowres_w'),
        (fpn_blobs(fc6_w=np.zeros((1024, 256 * 14 * 14), np.float32)), r'fc6_w is float32 \(1024, 50176\)'),
        (fpn_blobs(fpn_inner_res5_2_sum_w=None), 'missing blobs: fpn_inner_res5_2_sum_w'),
        (model_blobs(res2_0_branch2b_w=np.zeros((256, 8, 3, 3))), 'has a ResNeXt 32x8d and 6 blocks in res4'),
        (model_blobs(res2_0_branch2b_w=np.zeros((128, 128, 3, 3))), 'has a ResNet with 128 channels in res2'),
        (model_blobs(conv1_gn_s=np.zeros(64)), 'missing blobs: conv1_gn_b'),
        ({'_[mask]_res5_0_branch2a_w': np.zeros(1)} | model_blobs(), 'with a separate res5 for masks'),
        ({'conv1_1_w': np.zeros((64, 3, 3, 3))}, 'with a VGG backbone'),
        (model_blobs(mask_fcn_logits_w=None), 'missing blobs: mask_fcn_logits_w'),
        (model_blobs(cls_score_w=None), r'with no box head \(a network of proposals only\)'),
        (model_blobs(conv_rpn_w=None), 'with no RPN'),
        (model_blobs(n_res4=35), 'ResNet with 64 channels in res2 and 35 blocks in res4'),
        ({}, 'not a Detectron weight file: the blobs of a ResNet'),
        (model_blobs(conv1_w=None), 'not a Detectron weight file'),
        (model_blobs(cls_score_w=np.zeros(3, np.float32)), r'cls_score_w has the shape \(3,\)'),
        (
            model_blobs(conv1_w=np.zeros((64, 4, 7, 7), np.float32), bbox_pred_b=np.zeros(8, np.float32)),
            r'conv1_w is float32 \(64, 4, 7, 7\), expected float32 \(64, 3, 7, 7\); bbox_pred_b is float32 \(8,\)',
        ),
        (model_blobs(conv1_w=np.zeros((64, 3, 7, 7), int)), 'conv1_w is int64'),
        (
            model_blobs(conv5_mask_w=None, res3_1_branch2c_bn_s=None),
            'missing blobs: res3_1_branch2c_bn_s, conv5_mask_w$',
        ),
        ([1], 'it is a list, not a dictionary'),
        ({'blobs': [1]}, "'blobs' are not a dictionary"),
        ({'blobs': {}, 'cfg': [1]}, "'cfg' is damaged: not text"),
        ({'blobs': {}, 'cfg': 'a: ]'}, "'cfg' is damaged"),
    ],
)
def test_refused_files(read, blobs, reason):
    with pytest.raises(WeightFileError, match=reason) as caught:
        read(blobs)
    assert str(caught.value).isprintable()


# cfg


def test_python_tags_never_become_objects():
    cfg = detectron_cfg.parse(
        '!!python/object/new:utils.collections.AttrDict\n'
        'dictitems:\n'
        '  A: !!python/object/apply:os.system ["touch executed"]\n'
        '  B: !!python/name:os.system ""\n'
        '  C: !!python/object/new:os.system {args: ["touch executed"]}\n'
        '  D: !!python/tuple [1, !!python/long 2, !!python/unicode "x", !!python/none ~]\n'
        '  E: {on: true, f: 1.5, s: !!python/str 7}\n'
        'state: {}\n'
    )
    assert cfg == {'A': None, 'B': None, 'C': None, 'D': [1, 2, 'x', None], 'E': {True: True, 'f': 1.5, 's': '7'}}


LAUGHS = 'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n' for i in range(1, 30))


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('', 'not a mapping'),
        ('[1]', 'not a mapping'),
        ('a: [', 'line 1'),
        ('a: *b', 'undefined alias'),
        (LAUGHS, 'nested too deeply or too large'),
        ('[' * 1000, 'nested too deeply'),
        ('a: &a {b: *a}', 'nested too deeply'),
        ('x' * 300_000, '300000 characters'),
        ('a: !!int x', 'is not a valid int'),
        (f'a: !!float {"1:" * 300}1', 'is not a valid float'),
        (f'a: 1{":1" * 100_000}', 'is not a valid int'),  # takes 6 s as a number in base 60
        (f'? 0x{"f" * 6000}\n: 1', 'is not a valid int'),  # Python refuses to print it
        ('a: !!binary x', 'is not a valid binary'),
        ('{[1]: 2}', 'a key that is not text'),
        ('a: \x00', 'special characters|not YAML'),
    ],
)
def test_bad_yaml(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        detectron_cfg.parse(text)
    assert str(caught.value).isprintable()


def test_the_settings_of_cfg_reach_the_configuration():
    config, warnings = detectron_cfg.apply(
        detectron_cfg.parse("""
        TEST: {SCALE: 600, MAX_SIZE: 1000, RPN_PRE_NMS_TOP_N: 7, RPN_POST_NMS_TOP_N: 8, RPN_NMS_THRESH: 0.6,
               RPN_MIN_SIZE: 16, SCORE_THRESH: 0.1, NMS: 0.4, DETECTIONS_PER_IM: 50}
        RPN: {SIZES: !!python/tuple [16, 24.5], ASPECT_RATIOS: !!python/tuple [1, 2], STRIDE: 16}
        FAST_RCNN: {ROI_XFORM_RESOLUTION: 7, ROI_XFORM_METHOD: RoIPoolF, ROI_XFORM_SAMPLING_RATIO: 2}
        """),
        Config(),
    )
    assert warnings == []
    assert config == Config(
        min_size=600,
        max_size=1000,
        rpn_pre_nms=7,
        rpn_post_nms=8,
        rpn_nms_threshold=0.6,
        rpn_min_size=16,
        score_threshold=0.1,
        nms_threshold=0.4,
        max_detections=50,
        anchor_sizes=(16, 24.5),
        anchor_ratios=(1, 2),
        roi_size=7,
        roi_align=False,
        sampling_ratio=2,
    )


def test_fpn_settings_have_separate_names():
    config, warnings = detectron_cfg.apply(
        detectron_cfg.parse("""
        RPN: {SIZES: !!python/tuple [1, 2], ASPECT_RATIOS: !!python/tuple [1], STRIDE: 8}
        FPN: {RPN_ANCHOR_START_SIZE: 16, RPN_ASPECT_RATIOS: !!python/tuple [0.5, 2]}
        FAST_RCNN: {ROI_XFORM_RESOLUTION: 7, ROI_XFORM_SAMPLING_RATIO: 2}
        MRCNN: {ROI_XFORM_RESOLUTION: 7, ROI_XFORM_SAMPLING_RATIO: 2, RESOLUTION: 14}
        KRCNN: {ROI_XFORM_RESOLUTION: 7}
        """),
        PRESETS['resnet50_fpn'],
    )
    assert warnings == []
    assert config == PRESETS['resnet50_fpn'].replace(
        anchor_sizes=(16, 32, 64, 128, 256), anchor_ratios=(0.5, 2), mask_roi_size=7
    )


def test_the_old_name_of_the_scale():
    config, _ = detectron_cfg.apply({'TEST': {'SCALES': [480]}}, Config())
    assert config.min_size == 480


@pytest.mark.parametrize(
    ('text', 'warning'),
    [
        ('TEST: {NMS: high}', 'TEST.NMS is high, which is not supported; 0.5 is used'),
        (f'TEST: {{NMS: {10**400}}}', 'TEST.NMS is 1000'),
        (f'TEST: {{RPN_MIN_SIZE: -{10**400}}}', 'TEST.RPN_MIN_SIZE is -1000'),
        (f'RPN: {{SIZES: [{10**400}]}}', 'RPN.SIZES is [1000'),
        (f'BBOX_XFORM_CLIP: {10**400}', 'BBOX_XFORM_CLIP is 1000'),
        ('TEST: {SCALE: 5000}', 'its sizes and thresholds contradict each other'),
        ('TEST: {SOFT_NMS: {ENABLED: true}}', 'TEST.SOFT_NMS.ENABLED is True, which is not supported; False is used'),
        ('RPN: {STRIDE: 8}', 'RPN.STRIDE is 8'),
        ('RESNETS: {STRIDE_1X1: no idea}', 'RESNETS.STRIDE_1X1 is no idea, which is not supported; False is used'),
        ('PIXEL_MEANS: [1.0, 2.0, 3.0]', 'PIXEL_MEANS'),
        ('BBOX_XFORM_CLIP: 5.0', 'BBOX_XFORM_CLIP'),
        ('FAST_RCNN: {ROI_XFORM_RESOLUTION: 9}', 'FAST_RCNN.ROI_XFORM_RESOLUTION is 9'),
        (
            '{FAST_RCNN: {ROI_XFORM_SAMPLING_RATIO: 2}, MRCNN: {ROI_XFORM_SAMPLING_RATIO: 0}}',
            'MRCNN.ROI_XFORM_SAMPLING_RATIO is 0, which is not supported; 2 is used',
        ),
    ],
)
def test_unsupported_settings_are_warnings(text, warning):
    _, warnings = detectron_cfg.apply(detectron_cfg.parse(text), Config())
    assert len(warnings) == 1 and warnings[0].startswith(warning), warnings


@pytest.mark.parametrize(
    ('preset', 'text', 'warning'),
    [
        ('resnet50_fpn', 'FPN: {EXTRA_CONV_LEVELS: true}', 'FPN.EXTRA_CONV_LEVELS is True'),
        ('resnet50_fpn', 'FPN: {USE_GN: true}', 'FPN.USE_GN is True, which is not supported; False is used'),
        ('resnet50_fpn', 'RESNETS: {STRIDE_1X1: 1}', 'RESNETS.STRIDE_1X1 is 1'),
        ('resnext101_32x8d_fpn', 'RESNETS: {NUM_GROUPS: 64}', 'RESNETS.NUM_GROUPS is 64, which is not supported; 32'),
        ('resnet50_fpn_gn', 'RESNETS: {STEM_FUNC: basic_bn_stem}', 'RESNETS.STEM_FUNC is basic_bn_stem'),
        ('resnet50_fpn_gn', 'GROUP_NORM: {DIM_PER_GP: 16}', 'GROUP_NORM.DIM_PER_GP is 16'),
        ('resnet50_fpn', 'FPN: {RPN_ANCHOR_START_SIZE: -1}', 'FPN.RPN_ANCHOR_START_SIZE is -1'),
        ('resnet50_fpn', 'MRCNN: {RESOLUTION: 14}', 'MRCNN.RESOLUTION is 14, which is not supported; 28 is used'),
        ('keypoint_resnet50_fpn', 'KRCNN: {HEATMAP_SIZE: 28}', 'KRCNN.HEATMAP_SIZE is 28'),
        (
            'keypoint_resnet50_fpn',
            '{FAST_RCNN: {ROI_XFORM_SAMPLING_RATIO: 2}, KRCNN: {ROI_XFORM_SAMPLING_RATIO: 0}}',
            'KRCNN.ROI_XFORM_SAMPLING_RATIO is 0, which is not supported; 2 is used',
        ),
    ],
)
def test_unsupported_fpn_settings_are_warnings(preset, text, warning):
    _, warnings = detectron_cfg.apply(detectron_cfg.parse(text), PRESETS[preset])
    assert len(warnings) == 1 and warnings[0].startswith(warning), warnings


@pytest.mark.parametrize(
    ('cfg', 'factors'),
    [
        ('MODEL: {BBOX_REG_WEIGHTS: !!python/tuple [10.0, 10.0, 5.0, 5.0]}', (1, 1, 1, 1)),
        ('MODEL: {BBOX_REG_WEIGHTS: !!python/tuple [5.0, 20.0, 1.0, 10.0]}', (0.5, 2, 0.5, 5)),
        ('MODEL: {}', (10, 10, 5, 5)),  # older than the setting: all weights are 1
    ],
)
def test_box_weights_are_folded_into_the_deltas(read, cfg, factors):
    rng = np.random.RandomState(0)
    bias = rng.rand(12).astype(np.float32)
    file = read({'blobs': model_blobs(bbox_pred_b=bias), 'cfg': cfg})
    expected = bias.reshape(3, 4)[:, [1, 0, 3, 2]] * np.float32(factors)
    np.testing.assert_allclose(file.arrays['box_head/delta/b'].reshape(3, 4), expected, rtol=1e-6)
    assert bool(file.report.notes) == (factors != (1, 1, 1, 1))


# The reference weights


@pytest.fixture(scope='module')
def writer(golden):
    """Return the module that rebuilds the reference weights."""
    return import_file(golden / 'detectron_weights.py')


def load_blobs(writer, recipe):
    """Return the blobs of a recipe, with zeros as the momentum, and its metadata."""
    blobs, meta = writer.load(recipe, momentum=False)
    return blobs | {name: np.zeros(shape, np.float32) for name, shape in meta['momentum']}, meta


@pytest.mark.parametrize('name', ['R-50-FPN_seed0', pytest.param('keypoint_R-50-FPN_seed0', marks=pytest.mark.slow)])
def test_golden_fpn_models(read, writer, golden, name):
    blobs, meta = load_blobs(writer, golden / 'detectron' / f'recipe_{name}.npz')
    file = read({'blobs': blobs, 'cfg': meta['cfg']})
    keypoints = name.startswith('keypoint')
    assert file.config == PRESETS['keypoint_resnet50_fpn' if keypoints else 'resnet50_fpn']
    assert file.report.warnings == () and file.report.notes == ()
    assert {group: len(names) for group, names in file.report.skipped.items()} == {
        'momentum': len(meta['momentum']),
        'unused convolution biases': 1,
        'ImageNet classifier': 2,
        **({'fixed upsampling': 2} if keypoints else {}),
    }
    for native, source in fpn_layers('keypoint' if keypoints else 'mask').items():
        np.testing.assert_array_equal(file.arrays[native], blobs[source], err_msg=native)


@pytest.fixture(scope='module')
def golden_pickle(golden, writer, tmp_path_factory):
    """Yield ``(path, blobs)`` of the reference C4 weights in a pickle of Python 2.7."""
    blobs, meta = load_blobs(writer, golden / 'detectron' / 'recipe_R-50-C4_seed0.npz')
    path = tmp_path_factory.mktemp('golden') / 'model_final.pkl'
    writer.write_pkl(blobs, meta['cfg'], path)
    yield path, blobs
    path.unlink()


def native_path(blob):
    """Return the native path of a blob of the backbone."""
    kind = {'_bn_s': 'norm/scale', '_bn_b': 'norm/bias', '_w': 'conv/W'}
    suffix = next(s for s in kind if blob.endswith(s))
    stem = blob.removesuffix(suffix)
    if stem in ('conv1', 'res_conv1'):
        return f'extractor/conv1/{kind[suffix]}'
    stage, block, branch = stem.split('_')
    conv = {'branch2a': 'conv1', 'branch2b': 'conv2', 'branch2c': 'conv3', 'branch1': 'shortcut'}[branch]
    return f'{"box_head" if stage == "res5" else "extractor"}/{stage}/block{block}/{conv}/{kind[suffix]}'


def test_golden_conversion(golden_pickle):
    path, blobs = golden_pickle
    file = detectron.read(path)
    assert file.kind == 'model' and file.config == Config()
    assert file.report.warnings == () and file.report.notes == ()
    assert {group: len(names) for group, names in file.report.skipped.items()} == {
        'momentum': 56,
        'unused convolution biases': 1,
        'ImageNet classifier': 2,
    }
    arrays = dict(file.arrays)
    for blob in [name for name in blobs if name in resnet_shapes(6)]:
        np.testing.assert_array_equal(arrays.pop(native_path(blob)), blobs[blob], err_msg=blob)
    for source, native in (
        ('conv_rpn', 'rpn/conv'),
        ('rpn_cls_logits', 'rpn/objectness'),
        ('cls_score', 'box_head/score'),
        ('conv5_mask', 'mask_head/deconv'),
    ):
        np.testing.assert_array_equal(arrays.pop(f'{native}/W'), blobs[f'{source}_w'])
        np.testing.assert_array_equal(arrays.pop(f'{native}/b'), blobs[f'{source}_b'])
    for letter, name in ('Ww', 'bb'):
        np.testing.assert_array_equal(arrays.pop(f'mask_head/score/{letter}'), blobs[f'mask_fcn_logits_{name}'][1:])
        for source, native in ('rpn_bbox_pred', 'rpn/delta'), ('bbox_pred', 'box_head/delta'):
            array, blob = arrays.pop(f'{native}/{letter}'), blobs[f'{source}_{name}']
            for row, blob_row in enumerate((1, 0, 3, 2)):
                np.testing.assert_array_equal(array[row::4], blob[blob_row::4])
    assert not arrays


@pytest.mark.slow
def test_golden_conversion_takes_little_memory(golden_pickle, root, tmp_path):
    """The whole process of the command takes less than twice the size of the file, which has the arrays once."""
    path, _ = golden_pickle
    script = (
        'import json, runpy, sys\n'
        f'sys.argv = ["x", "--input", {str(path)!r}, "--output", {str(tmp_path / "o.npz")!r}]\n'
        'try:\n    runpy.run_path("utils/detectron_parser.py", run_name="__main__")\n'
        'except SystemExit as end:\n    assert not end.code\n'
        'line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))\n'
        'print(json.dumps(int(line.split()[1]) * 1024))\n'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) < 2 * path.stat().st_size


def test_a_small_file_through_the_unpickler(tmp_path):
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps({'blobs': {'conv1_1_w': np.zeros(3, np.float32)}, 'cfg': 'MODEL: {}'}, 4))
    with pytest.raises(WeightFileError, match='a VGG backbone'):
        detectron.read(path)


@pytest.mark.parametrize(
    ('name', 'preset', 'n_used'),
    [
        ('R-50-FPN_GN', 'resnet50_fpn_gn', 223),
        pytest.param('faster_R-50-FPN', 'resnet50_fpn', 189, marks=pytest.mark.slow),
        pytest.param('X-101-32x8d-FPN', 'resnext101_32x8d_fpn', 354, marks=pytest.mark.slow),
    ],
)
def test_golden_models_of_the_rest_of_the_zoo(read, golden, name, preset, n_used):
    folder = golden / 'detectron_zoo'
    recipe = folder / f'recipe_{name}_seed0.npz'
    if not recipe.exists():
        pytest.skip('the reference data have no such model')
    blobs, meta = import_file(folder / 'detectron_zoo_weights.py').load(str(recipe), momentum=False)
    file = read({'blobs': blobs, 'cfg': meta['cfg']})
    assert file.config == PRESETS[preset].replace(masks=not name.startswith('faster'))
    assert file.report.warnings == () and file.report.notes == () and file.report.assumptions == ()
    assert len(file.report.taken) == n_used and set(file.report.taken) == {name for name, _ in meta['params']}
