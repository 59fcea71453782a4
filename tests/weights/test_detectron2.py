"""detectron2's weight files: names, the order of classes, conventions, its configuration, and refused files."""

import pickle
import warnings

import numpy as np
import pytest

from mask_rcnn.cli import convert
from mask_rcnn.config import DETECTRON2, PRESETS
from mask_rcnn.models.builder import default_classes
from mask_rcnn.weights import WeightFileError, formats, load_arrays, read_weights
from mask_rcnn.weights.converters import detectron2, detectron2_cfg
from mask_rcnn.weights.readers import state_dict_file, torch_file
from tests.support import torch_bytes
from tests.support.models import constant_model
from tests.support.python_files import import_file
from tests.support.weight_arrays import zeros

# The names and shapes of ``detectron2.modeling``; the heads of an FPN are narrower.

CHANNELS, HIDDEN = 8, 16
STATISTICS = ('weight', 'bias', 'running_mean', 'running_var')


def layer(name, *shape, out=0):
    return {f'{name}.weight': shape, f'{name}.bias': (shape[out],)}


def conv_norm(name, shape, parts=STATISTICS):
    return {f'{name}.weight': shape} | {f'{name}.norm.{part}': shape[:1] for part in parts}


def backbone(fpn, blocks=(3, 4, 6, 3), groups=1, group_width=64, parts=STATISTICS):
    """Return the shapes of ``build_resnet_backbone``; res5 of a C4 network belongs to ``Res5ROIHeads``."""
    body = 'backbone.bottom_up' if fpn else 'backbone'
    shapes, width_in = conv_norm(f'{body}.stem.conv1', (64, 3, 7, 7), parts), 64
    for stage, n_blocks in zip((2, 3, 4, 5), blocks, strict=True):
        width, out = groups * group_width << stage - 2, 64 << stage
        prefix = 'roi_heads' if stage == 5 and not fpn else body
        for i in range(n_blocks):
            block = f'{prefix}.res{stage}.{i}'
            if i == 0:
                shapes |= conv_norm(f'{block}.shortcut', (out, width_in, 1, 1), parts)
            shapes |= conv_norm(f'{block}.conv1', (width, width_in, 1, 1), parts)
            shapes |= conv_norm(f'{block}.conv2', (width, width // groups, 3, 3), parts)
            shapes |= conv_norm(f'{block}.conv3', (out, width, 1, 1), parts)
            width_in = out
    return shapes


def outputs(n_classes, width):
    return layer('roi_heads.box_predictor.cls_score', n_classes + 1, width) | layer(
        'roi_heads.box_predictor.bbox_pred', 4 * n_classes, width
    )


def c4(n_classes=2, masks=True, **options):
    """Return the shapes of ``mask_rcnn_R_50_C4_3x.yaml``."""
    head = 'proposal_generator.rpn_head'
    shapes = backbone(False, **options) | layer(f'{head}.conv', 1024, 1024, 3, 3)
    shapes |= layer(f'{head}.objectness_logits', 15, 1024, 1, 1) | layer(f'{head}.anchor_deltas', 60, 1024, 1, 1)
    shapes |= outputs(n_classes, 2048)
    if masks:
        shapes |= layer('roi_heads.mask_head.deconv', 2048, 256, 2, 2, out=1)
        shapes |= layer('roi_heads.mask_head.predictor', n_classes, 256, 1, 1)
    return shapes


def fpn(n_classes=2, masks=True, keypoints=False, **options):
    """Return the shapes of ``mask_rcnn_R_50_FPN_3x.yaml`` and ``keypoint_rcnn_R_50_FPN_3x.yaml``."""
    head, shapes = 'proposal_generator.rpn_head', backbone(True, **options)
    for stage in (2, 3, 4, 5):
        shapes |= layer(f'backbone.fpn_lateral{stage}', CHANNELS, 64 << stage, 1, 1)
        shapes |= layer(f'backbone.fpn_output{stage}', CHANNELS, CHANNELS, 3, 3)
    shapes |= layer(f'{head}.conv', CHANNELS, CHANNELS, 3, 3)
    shapes |= layer(f'{head}.objectness_logits', 3, CHANNELS, 1, 1) | layer(f'{head}.anchor_deltas', 12, CHANNELS, 1, 1)
    shapes |= layer('roi_heads.box_head.fc1', HIDDEN, CHANNELS * 49) | layer('roi_heads.box_head.fc2', HIDDEN, HIDDEN)
    shapes |= outputs(n_classes, HIDDEN)
    if masks:
        for i in range(1, 5):
            shapes |= layer(f'roi_heads.mask_head.mask_fcn{i}', CHANNELS, CHANNELS, 3, 3)
        shapes |= layer('roi_heads.mask_head.deconv', CHANNELS, CHANNELS, 2, 2, out=1)
        shapes |= layer('roi_heads.mask_head.predictor', n_classes, CHANNELS, 1, 1)
    if keypoints:
        for i in range(1, 9):
            shapes |= layer(f'roi_heads.keypoint_head.conv_fcn{i}', 512, 512 if i > 1 else CHANNELS, 3, 3)
        shapes |= layer('roi_heads.keypoint_head.score_lowres', 512, 17, 4, 4, out=1)
    return shapes


def with_norms(parts):
    """Return the shapes of ``mask_rcnn_R_50_FPN_3x_gn.yaml`` (without statistics) or ``..._syncbn.yaml``."""
    shapes = without(('backbone.fpn', 'roi_heads.box_head.', 'roi_heads.mask_head.mask_fcn'), fpn(parts=parts))
    for stage in (2, 3, 4, 5):
        shapes |= conv_norm(f'backbone.fpn_lateral{stage}', (CHANNELS, 64 << stage, 1, 1), parts)
        shapes |= conv_norm(f'backbone.fpn_output{stage}', (CHANNELS, CHANNELS, 3, 3), parts)
    for i in range(1, 5):
        shapes |= conv_norm(f'roi_heads.box_head.conv{i}', (CHANNELS, CHANNELS, 3, 3), parts)
        shapes |= conv_norm(f'roi_heads.mask_head.mask_fcn{i}', (CHANNELS, CHANNELS, 3, 3), parts)
    return shapes | layer('roi_heads.box_head.fc1', HIDDEN, CHANNELS * 49)


def without(prefixes, shapes):
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


def numbered(shapes):
    """Return arrays that are filled with their index, which identifies them in the network."""
    return {name: np.broadcast_to(np.float32(i + 1), shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return a function that converts a state dict as if it came from a PyTorch file."""
    path = tmp_path / 'model.pth'
    path.write_bytes(b'PK')

    def read_state(state, settings=None):
        monkeypatch.setattr(state_dict_file, 'read', lambda _: torch_file.StateDict(state))
        return detectron2.read(path, settings)

    return read_state


C4 = PRESETS['resnet50'].replace(dialect=DETECTRON2, norm='bn', n_fg_class=2)
FPN = PRESETS['resnet50_fpn'].replace(
    dialect=DETECTRON2,
    norm='bn',
    n_fg_class=2,
    sampling_ratio=0,
    fpn_channels=CHANNELS,
    rpn_channels=CHANNELS,
    head_channels=HIDDEN,
    mask_channels=CHANNELS,
)
IN_3X3 = {'stride_in_3x3': True}
#: ``Base-Keypoint-RCNN-FPN.yaml``.
OF_KEYPOINTS = {'losses': {'box_smooth_l1_beta': 0.5}, 'training': {'fpn_proposals': 1500}}
RESNEXT_STD = {'pixel_std': (57.375, 57.12, 58.395)}


@pytest.mark.parametrize(
    ('shapes', 'config', 'name'),
    [
        (c4(), C4, 'mask_rcnn_R-50-C4_d22c.npz'),
        (c4(masks=False), C4.replace(masks=False), 'faster_rcnn_R-50-C4_d22c.npz'),
        (c4(blocks=(3, 4, 23, 3)), C4.replace(extractor='resnet101'), 'mask_rcnn_R-101-C4_d22c.npz'),
        (fpn(), FPN, 'mask_rcnn_R-50-FPN_d22c.npz'),
        (fpn(masks=False), FPN.replace(masks=False, mask_channels=256), 'faster_rcnn_R-50-FPN_d22c.npz'),
        (
            fpn(1, masks=False, keypoints=True),
            FPN.replace(
                n_fg_class=1,
                masks=False,
                mask_channels=256,
                n_keypoint=17,
                dialect=DETECTRON2.replace(**OF_KEYPOINTS),
            ),
            'keypoint_rcnn_R-50-FPN_d22c.npz',
        ),
        (
            fpn(blocks=(3, 4, 23, 3), groups=32, group_width=8),
            FPN.replace(
                extractor='resnext101_32x8d_fpn', dialect=DETECTRON2.replace(backbone=IN_3X3, input=RESNEXT_STD)
            ),
            'mask_rcnn_X-101-32x8d-FPN_d22c.npz',
        ),
        (
            with_norms(('weight', 'bias')),
            FPN.replace(norm='gn', head_norm='gn', box_convs=4, box_fcs=1, dialect=DETECTRON2.replace(backbone=IN_3X3)),
            'mask_rcnn_R-50-FPN-GN_d22c.npz',
        ),
        (
            with_norms((*STATISTICS, 'num_batches_tracked')),
            FPN.replace(
                head_norm='bn', box_convs=4, box_fcs=1, dialect=DETECTRON2.replace(training={'freeze_norms': False})
            ),
            'mask_rcnn_R-50-FPN-BN_d22c.npz',
        ),
    ],
)
def test_the_arrays_determine_the_network(read, shapes, config, name):
    file = read(zeros(shapes))
    assert file.config == config
    assert (file.kind, file.format, formats.default_name(file)) == ('model', 'detectron2', name)
    counters = {name for name in shapes if name.endswith('num_batches_tracked')}
    assert set(file.report.taken) == set(shapes) - counters
    assert set(file.report.skipped) == ({'batch counters'} if counters else set())
    assert file.report.warnings == () and not any('min-size' in line for line in file.report.assumptions)
    assert default_classes(file)[0] == (('person',) if config.n_keypoint else ('class_1', 'class_2'))


@pytest.mark.parametrize('shapes', [c4(), fpn(), fpn(1, masks=False, keypoints=True), with_norms(STATISTICS)])
def test_the_arrays_fit_the_native_network(read, shapes):
    file = read(zeros(shapes))
    load_arrays(constant_model(file.config), file.arrays, source='file')


@pytest.mark.parametrize(
    ('shapes', 'layers'),
    [
        (
            c4(),
            {
                'extractor/conv1/conv/W': 'backbone.stem.conv1.weight',
                'extractor/res4/block5/conv3/norm/avg_var': 'backbone.res4.5.conv3.norm.running_var',
                'box_head/res5/block0/shortcut/conv/W': 'roi_heads.res5.0.shortcut.weight',
                'box_head/res5/block2/conv1/norm/gamma': 'roi_heads.res5.2.conv1.norm.weight',
                'rpn/conv/W': 'proposal_generator.rpn_head.conv.weight',
                'mask_head/deconv/b': 'roi_heads.mask_head.deconv.bias',
                'mask_head/score/W': 'roi_heads.mask_head.predictor.weight',
            },
        ),
        (
            fpn(1, keypoints=True),
            {
                'extractor/body/conv1/norm/avg_mean': 'backbone.bottom_up.stem.conv1.norm.running_mean',
                'extractor/body/res3/block0/shortcut/norm/beta': 'backbone.bottom_up.res3.0.shortcut.norm.bias',
                'extractor/body/res5/block2/conv2/conv/W': 'backbone.bottom_up.res5.2.conv2.weight',
                'extractor/lateral2/W': 'backbone.fpn_lateral2.weight',
                'extractor/output5/b': 'backbone.fpn_output5.bias',
                'rpn/objectness/b': 'proposal_generator.rpn_head.objectness_logits.bias',
                'box_head/fc6/W': 'roi_heads.box_head.fc1.weight',
                'box_head/fc7/b': 'roi_heads.box_head.fc2.bias',
                'mask_head/conv4/W': 'roi_heads.mask_head.mask_fcn4.weight',
                'keypoint_head/conv1/W': 'roi_heads.keypoint_head.conv_fcn1.weight',
                'keypoint_head/conv8/b': 'roi_heads.keypoint_head.conv_fcn8.bias',
                'keypoint_head/deconv/W': 'roi_heads.keypoint_head.score_lowres.weight',
            },
        ),
        (
            with_norms(STATISTICS),
            {
                'extractor/lateral3/conv/W': 'backbone.fpn_lateral3.weight',
                'extractor/output4/norm/avg_var': 'backbone.fpn_output4.norm.running_var',
                'box_head/conv2/conv/W': 'roi_heads.box_head.conv2.weight',
                'box_head/conv4/norm/gamma': 'roi_heads.box_head.conv4.norm.weight',
                'mask_head/conv1/norm/beta': 'roi_heads.mask_head.mask_fcn1.norm.bias',
            },
        ),
    ],
)
def test_each_array_becomes_that_of_its_layer(read, shapes, layers):
    state = numbered(shapes)
    arrays = read(state).arrays
    for native, source in layers.items():
        np.testing.assert_array_equal(arrays[native], state[source], err_msg=native, strict=True)


def test_the_order_of_the_rows_of_the_heads(read):
    """Each output of a layer has its number plus one; the background is the last class."""
    shapes = fpn(3)
    state = zeros(shapes) | {
        name: np.arange(1, shape[0] + 1, dtype=np.float32) for name, shape in shapes.items() if name.endswith('.bias')
    }
    arrays = read(state).arrays
    assert arrays['box_head/score/b'].tolist() == [4, 1, 2, 3]
    assert arrays['box_head/delta/b'].tolist() == [0, 0, 0, 0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11]
    assert arrays['rpn/delta/b'].tolist() == [2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11]
    assert arrays['mask_head/score/b'].tolist() == [1, 2, 3]


def test_normalisations_without_statistics(read):
    """Networks that began with Detectron's ImageNet files may have a weight and a bias only."""
    file = read(numbered(fpn(parts=('weight', 'bias'))))
    assert file.config == FPN
    norm = 'extractor/body/res4/block1/conv2/norm'
    assert (file.arrays[f'{norm}/avg_mean'] == 0).all() and (file.arrays[f'{norm}/avg_var'] == 1).all()
    assert file.arrays[f'{norm}/avg_var'].shape == (256,)
    with pytest.raises(WeightFileError, match=r'missing arrays: backbone.bottom_up.res2.0.conv1.norm.running_var'):
        read(zeros(without('backbone.bottom_up.res2.0.conv1.norm.running_var', fpn())))


@pytest.mark.parametrize(
    ('mean', 'std', 'changes', 'in_3x3'),
    [
        ((103.53, 116.28, 123.675), (1, 1, 1), {}, False),
        ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), RESNEXT_STD, False),
        (
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
            {'channel_order': 'RGB', 'pixel_mean': (123.675, 116.28, 103.53), 'pixel_std': (58.395, 57.12, 57.375)},
            True,
        ),
        ((103.53, 116.28, 123.675), (0, 1, np.nan), {}, False),
    ],
)
def test_the_input_in_a_file_of_the_zoo(read, mean, std, changes, in_3x3):
    constants = {name: np.float32(x).reshape(3, 1, 1) for name, x in (('pixel_mean', mean), ('pixel_std', std))}
    anchors = {'proposal_generator.anchor_generator.cell_anchors.0': np.zeros((3, 4), np.float32)}
    file = read(zeros(fpn()) | constants | anchors)
    assert file.config.dialect == DETECTRON2.replace(input=changes, backbone={'stride_in_3x3': in_3x3})
    has_input = all(x > 0 for x in std)
    unused = {*anchors} if has_input else {*anchors, *constants}
    assert {group: set(names) for group, names in file.report.skipped.items()} == {'constants': unused}
    assert set(file.report.taken) & set(constants) == set(constants) - unused
    assert has_input != any('PIXEL_STD' in line for line in file.report.assumptions)


@pytest.mark.parametrize(
    ('shapes', 'reason'),
    [
        (fpn() | {'sem_seg_head.predictor.weight': (1,)}, r'with a semantic segmentation head \(Panoptic FPN\)'),
        (backbone(True) | {'head.cls_subnet.0.weight': (1,)}, 'with a RetinaNet head'),
        (fpn() | {'roi_heads.box_predictor.0.cls_score.weight': (1,)}, 'three box heads of Cascade R-CNN'),
        (fpn() | {'roi_heads.mask_head.point_head.fc1.weight': (1,)}, 'with the mask head of PointRend'),
        (fpn() | {'backbone.bottom_up.res4.0.conv2_offset.weight': (1,)}, 'with deformable convolutions'),
        (c4() | {'backbone.res5.0.conv1.weight': (1,)}, r'with a dilated res5 in the backbone \(DC5\)'),
        (without('roi_heads.', fpn()), r'with no RoI heads \(a network of proposals only\)'),
        (without('proposal_generator.', fpn()), r'with no RPN \(Fast R-CNN, which needs a file of proposals\)'),
        (without('backbone.bottom_up.stem', fpn()), 'with a backbone other than a ResNet'),
        ({n: s for n, s in fpn().items() if '.conv3.' not in n}, 'with a ResNet of basic blocks'),
        (fpn(groups=2, group_width=64), 'has a ResNeXt 2x64d and 6 blocks in res4'),
        (fpn(3) | layer('roi_heads.box_predictor.bbox_pred', 4, HIDDEN), 'has class-agnostic boxes'),
        (fpn(3) | layer('roi_heads.mask_head.predictor', 1, CHANNELS, 1, 1), 'has class-agnostic masks'),
        (
            fpn() | layer('proposal_generator.rpn_head.objectness_logits', 9, CHANNELS, 1, 1),
            'has 9 anchors per location.*MODEL.ANCHOR_GENERATOR',
        ),
        (without('roi_heads.box_head.fc1', fpn()), 'missing arrays: roi_heads.box_head.fc1.weight'),
        (without('roi_heads.mask_head.mask_fcn2', fpn()), 'missing arrays: roi_heads.mask_head.mask_fcn2.weight'),
    ],
)
def test_refused_files(read, shapes, reason):
    with pytest.raises(WeightFileError, match=reason) as caught:
        read(zeros(shapes))
    assert str(caught.value).isprintable()


# The configuration

ZOO = """
_BASE_: "../Base-RCNN-FPN.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
  MASK_ON: True
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS: {STRIDE_IN_1X1: False, DEPTH: 50}
INPUT: {MIN_SIZE_TRAIN: (640, 672), MIN_SIZE_TEST: 640}
SOLVER: {STEPS: (210000, 250000), BASE_LR: 1e-3}
"""

BASE = """
MODEL:
  PIXEL_STD: [1.0, 1.0, 1.0]
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]], OFFSET: 0.5}
  RPN: {PRE_NMS_TOPK_TEST: 500, POST_NMS_TOPK_TEST: 400, NMS_THRESH: 0.6, SMOOTH_L1_BETA: 0.25}
  ROI_HEADS: {SCORE_THRESH_TEST: 1e-1, NMS_THRESH_TEST: 0.4, NUM_CLASSES: 2}
  ROI_BOX_HEAD: {POOLER_TYPE: ROIAlign, POOLER_RESOLUTION: 7, POOLER_SAMPLING_RATIO: 2, SMOOTH_L1_BETA: 0.5,
    BBOX_REG_WEIGHTS: "(1.0, 2.0, 3.0, 4.0)"}
INPUT: {MIN_SIZE_TEST: 800, MAX_SIZE_TEST: 1000, FORMAT: "RGB"}
TEST: {DETECTIONS_PER_IMAGE: 50}
"""


def test_settings_of_a_file_and_of_its_base(read, tmp_path):
    (tmp_path / 'COCO').mkdir()
    (tmp_path / 'COCO' / 'mask.yaml').write_text(ZOO)
    (tmp_path / 'Base-RCNN-FPN.yaml').write_text(BASE)
    file = read(zeros(fpn()), detectron2_cfg.read_settings(tmp_path / 'COCO' / 'mask.yaml'))
    dialect = DETECTRON2.replace(
        input={'channel_order': 'RGB', 'pixel_std': (57.375, 57.12, 58.395)},
        backbone={'stride_in_3x3': True},
        boxes={'box_delta_weights': (2.0, 1.0, 4.0, 3.0)},
        losses={'rpn_smooth_l1_beta': 0.25, 'box_smooth_l1_beta': 0.5},
    )
    assert file.config == FPN.replace(
        dialect=dialect,
        min_size=640,
        max_size=1000,
        anchor_sizes=(16, 32, 64, 128, 256),
        rpn_pre_nms=500,
        rpn_post_nms=400,
        rpn_nms_threshold=0.6,
        score_threshold=0.1,
        nms_threshold=0.4,
        sampling_ratio=2,
        max_detections=50,
    )
    assert sorted(file.report.warnings) == [
        'MODEL.ANCHOR_GENERATOR.OFFSET is 0.5, which is not supported; 0.0 is used',
        'MODEL.ROI_BOX_HEAD.POOLER_TYPE is ROIAlign, which is not supported; ROIAlignV2 is used',
    ]
    assert file.report.assumptions == ()


@pytest.mark.parametrize(
    ('shapes', 'text', 'differences'),
    [
        (
            fpn(),
            'MODEL: {RESNETS: {DEPTH: 101, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8}, MASK_ON: true}',
            'MODEL.RESNETS.DEPTH is 101 instead of 50, MODEL.RESNETS.NUM_GROUPS is 32 instead of 1, '
            'MODEL.RESNETS.WIDTH_PER_GROUP is 8 instead of 64',
        ),
        (fpn(), 'MODEL: {MASK_ON: false}', 'MODEL.MASK_ON is False instead of True'),
        (fpn(), 'MODEL: {KEYPOINT_ON: true}', 'MODEL.KEYPOINT_ON is True instead of False'),
        (fpn(), 'MODEL: {ROI_HEADS: {NUM_CLASSES: 80}}', 'MODEL.ROI_HEADS.NUM_CLASSES is 80 instead of 2'),
        (
            fpn(1, masks=False, keypoints=True),
            'MODEL: {ROI_KEYPOINT_HEAD: {NUM_KEYPOINTS: 5}}',
            'MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is 5 instead of 17',
        ),
        (
            fpn(),
            'MODEL: {ROI_HEADS: {NAME: Res5ROIHeads}, BACKBONE: {NAME: build_resnet_backbone}}',
            'MODEL.BACKBONE.NAME is build_resnet_backbone instead of build_resnet_fpn_backbone, '
            'MODEL.ROI_HEADS.NAME is Res5ROIHeads instead of StandardROIHeads',
        ),
        (c4(), 'MODEL: {ROI_HEADS: {NAME: StandardROIHeads}}', 'MODEL.ROI_HEADS.NAME is StandardROIHeads instead of'),
        (fpn(), '_BASE_: ../Base-RCNN-C4.yaml', '_BASE_ is ../Base-RCNN-C4.yaml'),
        (c4(), '_BASE_: Base-RCNN-FPN.yaml', '_BASE_ is Base-RCNN-FPN.yaml'),
        (fpn(), '_BASE_: Base-Keypoint-RCNN-FPN.yaml', '_BASE_ is Base-Keypoint-RCNN-FPN.yaml'),
    ],
)
def test_the_configuration_of_another_network(read, tmp_path, shapes, text, differences):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    with pytest.raises(ValueError, match='are for another network than the weights') as caught:
        read(zeros(shapes), detectron2_cfg.read_settings(path))
    assert f'R-CNN): {differences}' in str(caught.value)


def test_names_of_other_parts_are_not_compared(read):
    """A user's own backbone or heads may be of any kind; so may a file under ``_BASE_`` that does not exist."""
    settings = {'MODEL.ROI_HEADS.NAME': 'MyHeads', 'MODEL.BACKBONE.NAME': 'my_backbone', '_MISSING_BASE_': 'my.yaml'}
    assert read(zeros(fpn()), settings).config == FPN


def test_the_command_names_the_configuration_of_another_network(tmp_path, capsys):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in fpn().items()}
    path, settings, output = tmp_path / 'model.pkl', tmp_path / 'c.yaml', tmp_path / 'out.npz'
    path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'x'}, 2))
    settings.write_text('MODEL: {RESNETS: {DEPTH: 101}}\n')
    assert convert.main([str(path), '--output', str(output), '--config', str(settings)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f'error: {settings}: the settings are for another network than the weights (R-50-FPN Mask R-CNN): '
        'MODEL.RESNETS.DEPTH is 101 instead of 50'
    ]
    assert not output.exists()


def test_the_settings_of_the_zoo_replace_a_missing_base(read, tmp_path):
    path = tmp_path / 'mask.yaml'
    path.write_text(ZOO)
    file = read(zeros(fpn()), detectron2_cfg.read_settings(path))
    assert file.config == FPN.replace(
        min_size=640,
        dialect=DETECTRON2.replace(input=RESNEXT_STD, backbone=IN_3X3),
    )
    assert any('_BASE_ ../Base-RCNN-FPN.yaml does not exist' in line for line in file.report.warnings)


@pytest.mark.parametrize(
    ('changes', 'settings', 'in_3x3'),
    [
        ({}, {}, False),
        ({}, {'MODEL.RESNETS.STRIDE_IN_1X1': False}, True),
        ({'pixel_mean': (123.675, 116.28, 103.53), 'pixel_std': (58.395, 57.12, 57.375)}, {}, True),
    ],
)
def test_the_stride_of_c4_networks(read, changes, settings, in_3x3):
    """As of FPN networks: given, or that of the weights with which the training began."""
    state = zeros(c4()) | {name: np.float32(values).reshape(3, 1, 1) for name, values in changes.items()}
    file = read(state, settings)
    assert file.config.dialect.backbone.stride_in_3x3 == in_3x3 and file.report.warnings == ()
    lines = [line for line in file.report.assumptions if 'STRIDE_IN_1X1' in line]
    assert len(lines) == (not settings) and all(f'{"3x3" if in_3x3 else "1x1"} convolution' in line for line in lines)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('a: ]', 'is not a configuration of detectron2'),
        ('[1]', 'not a mapping'),
        ('_BASE_: c.yaml', 'is based on more than 8 files'),
        ('a: &a {b: *a}', 'nested too deeply'),
        (f'? 0x{"f" * 6000}\n: {{a: 1}}', 'c.yaml: is not a configuration of detectron2: .* is not a valid int'),
        ('', 'not a mapping'),
        ('{"min_size": 800, "MODEL": {"depth": 50}, "TEST": 1}', 'it has no MODEL, INPUT or TEST with settings of det'),
        (
            'MODEL: R-50\nNUM_GPUS: 8\nTEST: {SCALE: 800}',
            'c.yaml: is not a configuration of detectron2: it has no MODEL',
        ),
        ('a: \xe9', r'^[^:]*c\.yaml: is not UTF-8 text$'),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, reason):
    path = tmp_path / 'c.yaml'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(WeightFileError, match=reason) as caught:
        detectron2_cfg.read_settings(path)
    assert str(caught.value).isprintable()


def test_a_configuration_that_does_not_exist(tmp_path):
    with pytest.raises(WeightFileError) as caught:
        detectron2_cfg.read_settings(tmp_path / 'c.yaml')
    assert str(caught.value) == f'{tmp_path / "c.yaml"}: No such file or directory'


@pytest.mark.parametrize(
    'base',
    ['/etc/x.yaml', 'https://x/c.yaml', '"a\\0.yaml"', '[1]', 'passwd', f'{"a" * 5000}.yaml', '../../nothing.yml'],
)
def test_bases_that_are_not_read(tmp_path, base):
    path = tmp_path / 'c.yaml'
    path.write_text(f'_BASE_: {base}\nTEST: {{DETECTIONS_PER_IMAGE: 7}}\n')
    settings = detectron2_cfg.read_settings(path)
    assert settings.pop('TEST.DETECTIONS_PER_IMAGE') == 7 and len(settings) == 1


def test_text_that_begins_like_a_number_is_read_quietly(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text('INPUT: {FORMAT: "1or 2", MIN_SIZE_TEST: "0x1for", MAX_SIZE_TEST: "(1, 2)"}\n')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        settings = detectron2_cfg.read_settings(path)
    assert settings == {'INPUT.FORMAT': '1or 2', 'INPUT.MIN_SIZE_TEST': '0x1for', 'INPUT.MAX_SIZE_TEST': [1, 2]}
    assert caught == []


def test_a_python_tag_in_a_configuration_is_never_executed(tmp_path):
    path = tmp_path / 'c.yaml'
    path.write_text(
        f'A: !!python/object/apply:os.system ["touch {tmp_path}/executed"]\nMODEL:\n PIXEL_STD: !!python/tuple [1]\n'
    )
    assert detectron2_cfg.read_settings(path) == {'A': None, 'MODEL.PIXEL_STD': [1]}
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        ({'INPUT.FORMAT': 'YUV-BT.601'}, 'INPUT.FORMAT must be BGR or RGB'),
        ({'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION': 9}, 'POOLER_RESOLUTION must be 7 or 14, not 9'),
        ({'MODEL.PIXEL_STD': [1, 2]}, 'MODEL.PIXEL_STD must be 3 positive numbers'),
        ({'MODEL.RESNETS.STRIDE_IN_1X1': 3}, 'STRIDE_IN_1X1 must be True or False'),
        ({'MODEL.ANCHOR_GENERATOR.SIZES': [[32, 64]]}, 'needs one anchor size for each'),
    ],
)
def test_settings_that_are_not_valid(read, settings, reason):
    with pytest.raises(ValueError, match=reason):
        read(zeros(fpn()), settings)


# Whole files


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_pickles(tmp_path, protocol):
    arrays = {name: np.full(shape, i % 7, np.float32) for i, (name, shape) in enumerate(fpn().items())}
    path, output = tmp_path / 'model_final.pkl', tmp_path / 'out.npz'
    data = {'model': arrays, '__author__': 'Detectron2 Model Zoo', 'matching_heuristics': True}
    path.write_bytes(pickle.dumps(data, protocol))
    del data
    assert formats.detect_format(path).name == 'detectron2'
    assert formats.read(path).config == FPN
    if protocol == 4:
        settings = tmp_path / 'c.yaml'
        settings.write_text('MODEL: {RESNETS: {STRIDE_IN_1X1: false}}\n')
        assert convert.main([str(path), '--output', str(output), '--config', str(settings), '--min-size', '400']) == 0
        meta = read_weights(output).meta
        assert meta.config == FPN.replace(min_size=400, dialect=DETECTRON2.replace(backbone=IN_3X3))
        assert meta.source.format == 'detectron2'


def test_pickles_with_strange_neighbours(tmp_path):
    """A class of another program becomes a placeholder; nothing of it is imported."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in fpn().items()}
    data = pickle.dumps({'model': arrays, '__author__': 'x', 'trainer': 0}, 2)
    start, end = data.rsplit(b'trainer', 1)
    at = end.index(b'K\x00')
    path = tmp_path / 'model_final.pkl'
    path.write_bytes(start + b'trainer' + end[:at] + b'cargparse\nNamespace\n)\x81' + end[at + 2 :])
    assert formats.read(path).config == FPN


def test_pickles_of_other_contents(tmp_path):
    path = tmp_path / 'model_final.pkl'
    for data, reason in (
        ({'model': {}, '__author__': 'x'}, "no arrays under 'model'"),
        (
            {'model': {'stem.conv1.weight': np.zeros(3)}, '__author__': 'torchvision'},
            'with neither RoI heads nor an RPN',
        ),
        ({'model': {'stem.conv1.weight': np.zeros(3)}}, 'it has no RPN and RoI heads'),
    ):
        path.write_bytes(pickle.dumps(data, 2))
        with pytest.raises(WeightFileError, match=reason):
            formats.read(path)


@pytest.mark.parametrize('legacy', [False, True])
def test_checkpoints(tmp_path, legacy):
    """The trainer's files hold the state dict beside the states of the optimizer and the schedule."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in fpn().items()}
    path = tmp_path / 'model_final.pth'
    path.write_bytes(torch_bytes.state_dict({f'model.{name}': array for name, array in arrays.items()}, legacy))
    assert formats.detect_format(path).name == 'detectron2'
    assert formats.read(path).config == FPN


@pytest.mark.parametrize(
    ('recipe', 'suffix'),
    [
        ('mask_rcnn_R_50_FPN_3x', 'pkl'),
        pytest.param('mask_rcnn_R_50_FPN_3x', 'pth', marks=pytest.mark.slow),
        pytest.param('mask_rcnn_R_50_C4_3x', 'pkl', marks=pytest.mark.slow),
        pytest.param('keypoint_rcnn_R_50_FPN_3x', 'pth', marks=pytest.mark.slow),
    ],
)
def test_the_reference_weights(golden, tmp_path, recipe, suffix):
    folder = golden / 'detectron2'
    if not folder.exists():
        pytest.skip('there are no reference data of detectron2')
    path = tmp_path / f'model_final.{suffix}'
    writer = import_file(folder / 'detectron2_weights.py')
    writer.main([str(folder / f'recipe_{recipe}_seed0.npz'), str(path)])
    file = formats.read(path)
    path.unlink()
    assert file.format == 'detectron2' and 'unknown' not in file.report.skipped and file.report.warnings == ()
    keypoints = recipe.startswith('keypoint')
    assert (file.config.n_fg_class, file.config.n_keypoint) == ((1, 17) if keypoints else (80, 0))
    assert file.config.dialect == DETECTRON2.replace(**(OF_KEYPOINTS if keypoints else {}))
    assert file.config.extractor == ('resnet50' if 'C4' in recipe else 'resnet50_fpn')
