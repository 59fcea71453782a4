"""torchvision's state dicts: names of both generations, the network, conventions, settings, and refused files."""

import json

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from mask_rcnn.config import PRESETS, TORCHVISION
from mask_rcnn.models.builder import default_classes
from mask_rcnn.weights import WeightFileError, formats, load_arrays, read_weights
from mask_rcnn.weights.converters import torchvision, torchvision_cfg
from mask_rcnn.weights.readers import state_dict_file, torch_file
from tests.support import torch_bytes
from tests.support.models import constant_model
from tests.support.python_files import import_file
from tests.support.weight_arrays import zeros

# The names and shapes of ``torchvision.models.detection``; the heads are narrower.

CHANNELS, HIDDEN = 8, 16
NORM = ('weight', 'bias', 'running_mean', 'running_var')


def layer(name, *shape, out=0):
    return {f'{name}.weight': shape, f'{name}.bias': (shape[out],)}


def norm(name, width, counted=False):
    counter = {f'{name}.num_batches_tracked': ()} if counted else {}
    return {f'{name}.{part}': (width,) for part in NORM} | counter


def body(blocks=(3, 4, 6, 3), groups=1, group_width=64, counted=False):
    """Return the shapes of ``resnet.py``: ``width = planes * base_width / 64 * groups`` in every bottleneck."""
    shapes = {'backbone.body.conv1.weight': (64, 3, 7, 7)} | norm('backbone.body.bn1', 64, counted)
    width_in = 64
    for stage, (n_blocks, planes) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        width = planes * group_width // 64 * groups
        for i in range(n_blocks):
            block = f'backbone.body.layer{stage}.{i}'
            shapes[f'{block}.conv1.weight'] = (width, width_in, 1, 1)
            shapes[f'{block}.conv2.weight'] = (width, width // groups, 3, 3)
            shapes[f'{block}.conv3.weight'] = (4 * planes, width, 1, 1)
            for j, n in enumerate((width, width, 4 * planes), start=1):
                shapes |= norm(f'{block}.bn{j}', n, counted)
            if i == 0:
                shapes[f'{block}.downsample.0.weight'] = (4 * planes, width_in, 1, 1)
                shapes |= norm(f'{block}.downsample.1', 4 * planes, counted)
            width_in = 4 * planes
    return shapes


def predictor(n_classes):
    return layer('roi_heads.box_predictor.cls_score', n_classes, HIDDEN) | layer(
        'roi_heads.box_predictor.bbox_pred', 4 * n_classes, HIDDEN
    )


def mask_outputs(n_classes):
    return layer('roi_heads.mask_predictor.conv5_mask', CHANNELS, CHANNELS, 2, 2, out=1) | layer(
        'roi_heads.mask_predictor.mask_fcn_logits', n_classes, CHANNELS, 1, 1
    )


def rpn_outputs():
    return layer('rpn.head.cls_logits', 3, CHANNELS, 1, 1) | layer('rpn.head.bbox_pred', 12, CHANNELS, 1, 1)


def first_version(n_classes=3, *, old=False, masks=True, keypoints=False, **backbone):
    """Return the shapes of ``maskrcnn_resnet50_fpn`` and the like, with the names before 0.13 if ``old`` is set."""
    shapes, suffix = body(**backbone), '' if old else '.0'
    for i in range(4):
        shapes |= layer(f'backbone.fpn.inner_blocks.{i}{suffix}', CHANNELS, 256 << i, 1, 1)
        shapes |= layer(f'backbone.fpn.layer_blocks.{i}{suffix}', CHANNELS, CHANNELS, 3, 3)
    shapes |= layer('rpn.head.conv' if old else 'rpn.head.conv.0.0', CHANNELS, CHANNELS, 3, 3) | rpn_outputs()
    shapes |= layer('roi_heads.box_head.fc6', HIDDEN, CHANNELS * 49) | layer('roi_heads.box_head.fc7', HIDDEN, HIDDEN)
    shapes |= predictor(n_classes)
    if masks:
        for i in range(4):
            name = f'mask_fcn{i + 1}' if old else f'{i}.0'
            shapes |= layer(f'roi_heads.mask_head.{name}', CHANNELS, CHANNELS, 3, 3)
        shapes |= mask_outputs(n_classes)
    if keypoints:
        for i in range(8):
            shapes |= layer(f'roi_heads.keypoint_head.{2 * i}', 512, 512 if i else CHANNELS, 3, 3)
        shapes |= layer('roi_heads.keypoint_predictor.kps_score_lowres', 512, 17, 4, 4, out=1)
    return shapes


def second_version(n_classes=3, masks=True):
    """Return the shapes of ``maskrcnn_resnet50_fpn_v2`` and ``fasterrcnn_resnet50_fpn_v2``."""
    shapes = body(counted=True)
    blocks = {f'backbone.fpn.inner_blocks.{i}': (CHANNELS, 256 << i, 1, 1) for i in range(4)}
    blocks |= {f'backbone.fpn.layer_blocks.{i}': (CHANNELS, CHANNELS, 3, 3) for i in range(4)}
    heads = ('roi_heads.box_head', *['roi_heads.mask_head'] * masks)
    blocks |= {f'{head}.{i}': (CHANNELS, CHANNELS, 3, 3) for head in heads for i in range(4)}
    for name, shape in blocks.items():
        shapes |= {f'{name}.0.weight': shape} | norm(f'{name}.1', CHANNELS, counted=True)
    for i in range(2):
        shapes |= layer(f'rpn.head.conv.{i}.0', CHANNELS, CHANNELS, 3, 3)
    shapes |= rpn_outputs() | layer('roi_heads.box_head.5', HIDDEN, CHANNELS * 49) | predictor(n_classes)
    return shapes | (mask_outputs(n_classes) if masks else {})


def numbered(shapes):
    """Return arrays that are filled with their index, which identifies them in the network."""
    return {name: np.broadcast_to(np.float32(i + 1), shape) for i, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return a function that converts a state dict as if it came from a file."""
    path = tmp_path / 'model.pth'
    path.write_bytes(b'content')

    def read_state(state, settings=None):
        monkeypatch.setattr(state_dict_file, 'read', lambda _: torch_file.StateDict(state))
        return torchvision.read(path, settings)

    return read_state


#: The dialect of files with ``BatchNorm2d``, which counts batches and is trained.
TRAINED_NORMS = TORCHVISION.replace(training={'freeze_norms': False})

BASE = PRESETS['resnet50_fpn'].replace(
    dialect=TORCHVISION.replace(backbone={'bn_eps': 0.0}),
    norm='bn',
    rpn_min_size=1e-3,
    n_fg_class=2,
    fpn_channels=CHANNELS,
    rpn_channels=CHANNELS,
    head_channels=HIDDEN,
    mask_channels=CHANNELS,
)


@pytest.mark.parametrize(
    ('shapes', 'changes', 'name'),
    [
        (first_version(), {}, 'mask_rcnn_R-50-FPN_tv2c.npz'),
        (first_version(old=True), {}, 'mask_rcnn_R-50-FPN_tv2c.npz'),
        (first_version(masks=False), {'masks': False, 'mask_channels': 256}, 'faster_rcnn_R-50-FPN_tv2c.npz'),
        (
            first_version(2, masks=False, keypoints=True),
            {'masks': False, 'n_keypoint': 17, 'n_fg_class': 1, 'mask_channels': 256},
            'keypoint_rcnn_R-50-FPN_tv2c.npz',
        ),
        (first_version(blocks=(3, 4, 23, 3)), {'extractor': 'resnet101_fpn'}, 'mask_rcnn_R-101-FPN_tv2c.npz'),
        (first_version(blocks=(3, 8, 36, 3)), {'extractor': 'resnet152_fpn'}, 'mask_rcnn_R-152-FPN_tv2c.npz'),
        (
            first_version(groups=32, group_width=4),
            {'extractor': 'resnext50_32x4d_fpn'},
            'mask_rcnn_X-50-32x4d-FPN_tv2c.npz',
        ),
        (
            first_version(blocks=(3, 4, 23, 3), groups=32, group_width=8),
            {'extractor': 'resnext101_32x8d_fpn'},
            'mask_rcnn_X-101-32x8d-FPN_tv2c.npz',
        ),
        (
            first_version(blocks=(3, 4, 23, 3), groups=64, group_width=4),
            {'extractor': 'resnext101_64x4d_fpn'},
            'mask_rcnn_X-101-64x4d-FPN_tv2c.npz',
        ),
        (
            first_version(counted=True),
            {'dialect': TRAINED_NORMS},
            'mask_rcnn_R-50-FPN_tv2c.npz',
        ),
        (
            second_version(),
            {'dialect': TRAINED_NORMS, 'head_norm': 'bn', 'box_convs': 4, 'box_fcs': 1, 'rpn_convs': 2},
            'mask_rcnn_R-50-FPN-BN_tv2c.npz',
        ),
        (
            second_version(masks=False),
            {
                'dialect': TRAINED_NORMS,
                'head_norm': 'bn',
                'box_convs': 4,
                'box_fcs': 1,
                'rpn_convs': 2,
                'masks': False,
                'mask_channels': 256,
            },
            'faster_rcnn_R-50-FPN-BN_tv2c.npz',
        ),
    ],
)
def test_the_arrays_determine_the_network(read, shapes, changes, name):
    file = read(zeros(shapes))
    assert file.config == BASE.replace(**changes)
    assert (file.kind, file.format, formats.default_name(file)) == ('model', 'torchvision', name)
    counters = {name for name in shapes if name.endswith('num_batches_tracked')}
    assert set(file.report.taken) == set(shapes) - counters
    assert file.report.skipped == ({'batch counters': tuple(sorted(counters))} if counters else {})
    (line,) = file.report.assumptions  # nothing about the usual size of the input, which the description has
    assert file.report.warnings == () and '--bn-eps' in line


@pytest.mark.parametrize('keypoints', [False, True])
def test_the_arrays_fit_the_native_network(read, keypoints):
    file = read(zeros(first_version(2, masks=not keypoints, keypoints=keypoints)))
    load_arrays(constant_model(file.config), file.arrays, source='file')


BACKBONE = {
    'extractor/body/conv1/conv/W': 'backbone.body.conv1.weight',
    'extractor/body/conv1/norm/gamma': 'backbone.body.bn1.weight',
    'extractor/body/conv1/norm/avg_var': 'backbone.body.bn1.running_var',
    'extractor/body/res2/block2/conv2/conv/W': 'backbone.body.layer1.2.conv2.weight',
    'extractor/body/res3/block1/conv3/norm/beta': 'backbone.body.layer2.1.bn3.bias',
    'extractor/body/res5/block0/shortcut/conv/W': 'backbone.body.layer4.0.downsample.0.weight',
    'extractor/body/res5/block0/shortcut/norm/avg_mean': 'backbone.body.layer4.0.downsample.1.running_mean',
}

HEADS = {
    'rpn/objectness/W': 'rpn.head.cls_logits.weight',
    'rpn/delta/b': 'rpn.head.bbox_pred.bias',
    'box_head/score/b': 'roi_heads.box_predictor.cls_score.bias',
    'box_head/delta/W': 'roi_heads.box_predictor.bbox_pred.weight',
}

MASKS = {'mask_head/deconv/W': 'roi_heads.mask_predictor.conv5_mask.weight'}

TODAY = {
    'extractor/lateral2/W': 'backbone.fpn.inner_blocks.0.0.weight',
    'extractor/lateral5/b': 'backbone.fpn.inner_blocks.3.0.bias',
    'extractor/output4/W': 'backbone.fpn.layer_blocks.2.0.weight',
    'rpn/conv/W': 'rpn.head.conv.0.0.weight',
    'box_head/fc6/W': 'roi_heads.box_head.fc6.weight',
    'box_head/fc7/b': 'roi_heads.box_head.fc7.bias',
}

OLD = TODAY | {
    'extractor/lateral2/W': 'backbone.fpn.inner_blocks.0.weight',
    'extractor/lateral5/b': 'backbone.fpn.inner_blocks.3.bias',
    'extractor/output4/W': 'backbone.fpn.layer_blocks.2.weight',
    'rpn/conv/W': 'rpn.head.conv.weight',
}

SECOND = {
    'extractor/lateral3/conv/W': 'backbone.fpn.inner_blocks.1.0.weight',
    'extractor/lateral3/norm/gamma': 'backbone.fpn.inner_blocks.1.1.weight',
    'extractor/output5/norm/avg_var': 'backbone.fpn.layer_blocks.3.1.running_var',
    'rpn/conv/b': 'rpn.head.conv.0.0.bias',
    'rpn/conv2/W': 'rpn.head.conv.1.0.weight',
    'box_head/conv1/conv/W': 'roi_heads.box_head.0.0.weight',
    'box_head/conv4/norm/beta': 'roi_heads.box_head.3.1.bias',
    'box_head/fc6/W': 'roi_heads.box_head.5.weight',
    'mask_head/conv2/conv/W': 'roi_heads.mask_head.1.0.weight',
    'mask_head/conv4/norm/avg_mean': 'roi_heads.mask_head.3.1.running_mean',
}


@pytest.mark.parametrize(
    ('shapes', 'layers'),
    [
        (first_version(), TODAY | MASKS | {'mask_head/conv3/W': 'roi_heads.mask_head.2.0.weight'}),
        (first_version(old=True), OLD | MASKS | {'mask_head/conv3/W': 'roi_heads.mask_head.mask_fcn3.weight'}),
        (second_version(), SECOND | MASKS),
        (
            first_version(2, masks=False, keypoints=True),
            TODAY
            | {
                'keypoint_head/conv1/W': 'roi_heads.keypoint_head.0.weight',
                'keypoint_head/conv8/b': 'roi_heads.keypoint_head.14.bias',
                'keypoint_head/deconv/W': 'roi_heads.keypoint_predictor.kps_score_lowres.weight',
            },
        ),
    ],
)
def test_each_array_becomes_that_of_its_layer(read, shapes, layers):
    state = numbered(shapes)
    arrays = read(state).arrays
    for native, source in (BACKBONE | HEADS | layers).items():
        np.testing.assert_array_equal(arrays[native], state[source], err_msg=native, strict=True)
    assert arrays['extractor/body/conv1/norm/N'] == 0


def test_the_order_of_the_rows_of_the_heads(read):
    """Each output of a layer has its number: dx, dy, dw and dh of class c are the outputs 4c to 4c + 3."""
    shapes = first_version(3)
    state = zeros(shapes)
    for name, shape in shapes.items():
        if name.endswith('.bias'):
            state[name] = np.arange(shape[0], dtype=np.float32)
    arrays = read(state).arrays
    assert arrays['rpn/delta/b'].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert arrays['box_head/delta/b'].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert arrays['box_head/score/b'].tolist() == [0, 1, 2]
    assert arrays['mask_head/score/b'].tolist() == [1, 2]  # the first is the background
    assert arrays['rpn/objectness/b'].tolist() == [0, 1, 2]


def test_the_classes_of_coco_are_its_category_ids(read):
    names, ids = default_classes(read(zeros(first_version(91))))
    assert ids == tuple(range(1, 91)) and len(set(names)) == 90
    assert [names[i - 1] for i in (1, 11, 12, 13, 90)] == [
        'person',
        'fire hydrant',
        'unused_12',
        'stop sign',
        'toothbrush',
    ]
    assert sum(name.startswith('unused_') for name in names) == 10
    assert default_classes(read(zeros(first_version(3)))) == (('class_1', 'class_2'), (1, 2))
    person = read(zeros(first_version(2, masks=False, keypoints=True)))
    assert default_classes(person) == (('person',), (1,))


def test_settings(read):
    settings = {
        'min_size': [640, 480],
        'max_size': 900,
        'anchor_sizes': [[16], [32], [64], [128], [256]],
        'aspect_ratios': [[1.0, 2.0, 3.0]] * 5,
        'rpn_pre_nms_top_n_test': 300,
        'rpn_post_nms_top_n_test': 200,
        'rpn_nms_thresh': 0.6,
        'box_score_thresh': 0.2,
        'box_nms_thresh': 0.4,
        'box_detections_per_img': 50,
        'image_mean': [0.5, 0.4, 0.2],
        'image_std': [1, 1, 1],
        'bbox_reg_weights': [1, 2, 3, 4],
        'bn_eps': 1e-5,
        'rpn_score_thresh': 0.1,
        'box_fg_iou_thresh': 0.6,
        'min_sise': 3,
    }
    file = read(zeros(first_version()), settings)
    dialect = TORCHVISION.replace(
        input={'pixel_mean': (127.5, 102.0, 51.0), 'pixel_std': (255, 255, 255)},
        boxes={'box_delta_weights': (2, 1, 4, 3)},
    )
    assert file.config == BASE.replace(
        dialect=dialect,
        min_size=480,
        max_size=900,
        anchor_sizes=(16, 32, 64, 128, 256),
        anchor_ratios=(1, 2, 3),
        rpn_pre_nms=300,
        rpn_post_nms=200,
        rpn_nms_threshold=0.6,
        score_threshold=0.2,
        nms_threshold=0.4,
        max_detections=50,
    )
    assert file.report.assumptions == ()
    assert file.report.warnings == (
        'rpn_score_thresh is 0.1, which is not supported; 0.0 is used',
        'min_sise is not a setting of detections and is not used',
    )


def test_unknown_settings_are_named_in_one_line(read):
    settings = {'b\n': 1, 'progress': True, 'trainable_backbone_layers': 3}
    (line,) = read(zeros(first_version()), settings).report.warnings
    assert line == 'b\\n, progress are not settings of detections and are not used'


def test_files_of_settings_that_cannot_be_read(tmp_path):
    path = tmp_path / 'c.yaml'
    with pytest.raises(WeightFileError) as caught:
        torchvision_cfg.read_settings(path)
    assert str(caught.value) == f'{path}: No such file or directory'
    path.write_text('MODEL: {MASK_ON: true}\n')
    with pytest.raises(
        WeightFileError, match=r"is not JSON text: the arguments of torchvision's models are a JSON file"
    ):
        torchvision_cfg.read_settings(path)


@pytest.mark.parametrize(('name', 'right', 'wrong'), [('num_classes', 3, 91), ('num_keypoints', None, 17)])
def test_settings_that_the_arrays_determine(read, name, right, wrong):
    """The number of classes includes the background."""
    assert read(zeros(first_version()), {name: right}).report.warnings == ()
    with pytest.raises(ValueError, match=rf'are for another network than .*: {name} is {wrong} instead of {right}$'):
        read(zeros(first_version()), {name: wrong})


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        ({'min_size': 'x'}, 'min_size must be a positive integer, not x'),
        ({'bn_eps': -1}, 'bn_eps must be a number from 0 to below 1, not -1'),
        ({'image_std': [1, 2]}, 'image_std must be 3 positive numbers'),
        ({'box_nms_thresh': 2}, 'box_nms_thresh must be a number from 0 to 1'),
        ({'anchor_sizes': [32]}, 'has 5 levels and needs one anchor size for each'),
    ],
)
def test_settings_that_are_not_valid(read, settings, reason):
    with pytest.raises(ValueError, match=reason):
        read(zeros(first_version()), settings)


def without(prefix, shapes=None):
    return {name: shape for name, shape in (shapes or first_version()).items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ('state', 'reason'),
    [
        ({'backbone.body.conv1.weight': (1,), 'head.classification_head.conv.0.0.weight': (1,)}, 'with RetinaNet'),
        ({'backbone.body.conv1.weight': (1,), 'head.regression_head.bbox_ctrness.weight': (1,)}, 'with FCOS'),
        ({'backbone.features.0.weight': (1,), 'head.classification_head.module_list.0.weight': (1,)}, 'with SSD'),
        ({'backbone.conv1.weight': (1,), 'classifier.0.convs.0.0.weight': (1,)}, 'with a segmentation model'),
        ({'backbone.body.0.0.weight': (1,), 'rpn.head.conv.0.0.weight': (1,)}, 'with a MobileNetV3'),
        (without('backbone.fpn'), 'with no FPN'),
        (without('backbone.fpn.inner_blocks.3'), 'with 3 levels of the FPN instead of 4'),
        (without('rpn.'), 'with no RPN'),
        (without('roi_heads.box'), 'with no box head'),
        ({name: s for name, s in first_version().items() if '.conv3.' not in name}, 'of basic blocks'),
        (first_version() | {'backbone.fpn.extra_blocks.p6.weight': (1,)}, 'with additional levels of the FPN'),
        (first_version(group_width=128), 'has a ResNet with 128 channels in res2 and 6 blocks in res4'),
        (first_version(blocks=(3, 4, 7, 3)), 'and 7 blocks in res4'),
        (first_version() | layer('rpn.head.cls_logits', 9, CHANNELS, 1, 1), 'has 9 anchors per location'),
        (first_version() | {'roi_heads.box_predictor.cls_score.weight': (1, HIDDEN)}, r'has the shape \(1, 16\)'),
        (first_version() | {'rpn.head.conv.0.0.bias': (3,)}, r'rpn.head.conv.0.0.bias is float32 \(3,\)'),
        (without('backbone.body.layer3.2.bn2.running'), 'missing arrays: backbone.body.layer3.2.bn2.running_mean'),
        (without('roi_heads.mask_head.2'), 'missing arrays: roi_heads.mask_head.2.0.weight'),
    ],
)
def test_refused_files(read, state, reason):
    with pytest.raises(WeightFileError, match=reason) as caught:
        read(zeros(state))
    assert str(caught.value).isprintable()


# Whole files


def one_storage(shapes, kind='FloatStorage', dtype=np.float32, *, device='cpu', legacy=False):
    """Return ``(tensors, storages, arrays)`` of a state dict whose tensors are parts of one storage."""
    n_items = max(int(np.prod(shape)) for shape in shapes.values()) + len(shapes)
    items = (np.arange(n_items) % 251).astype(dtype)
    stored = torch_bytes.storage(kind, '0', items.size, legacy)
    stored = stored.replace(torch_bytes.text('cpu'), torch_bytes.text(device))
    tensors, arrays = {}, {}
    for offset, (name, shape) in enumerate(shapes.items()):
        array = items[offset : offset + int(np.prod(shape))].reshape(shape)
        strides = [stride // array.itemsize for stride in np.empty(shape, dtype).strides]
        tensors[name], arrays[name] = torch_bytes.tensor(stored, offset, shape, strides), array
    return tensors, {'0': items.tobytes()}, arrays


def checkpoint(tensors):
    """Encode a checkpoint of a training: the state dict of a ``DataParallel`` beside all kinds of other objects."""
    state = torch_bytes.dictionary({f'module.{name}': value for name, value in tensors.items()})
    first = next(iter(tensors.values()))
    entries = {
        'optimizer': b'}' + torch_bytes.text('state') + b'}' + torch_bytes.text('momentum_buffer') + first + b'ss',
        'args': b'cargparse\nNamespace\n)\x81}' + torch_bytes.text('lr') + torch_bytes.integer(1) + b'sb',
        'counter': b'ccollections\nCounter\n}' + torch_bytes.text('a') + torch_bytes.integer(3) + b's\x85R',
        'best': first,
        'model': state[2:-1],  # without the protocol and the end
        'epoch': torch_bytes.integer(7),
    }
    return b'\x80\x02}' + b''.join(torch_bytes.text(k) + v + b's' for k, v in entries.items()) + b'.'


@pytest.mark.parametrize('form', ['zip', 'legacy', 'checkpoint', 'cuda', 'half', 'bfloat16', 'no metadata'])
def test_files_of_every_form(tmp_path, form):
    shapes = first_version(old=form == 'legacy')
    kinds = {'half': ('HalfStorage', np.float16), 'bfloat16': ('BFloat16Storage', np.uint16)}
    tensors, storages, arrays = one_storage(
        shapes,
        *kinds.get(form, ('FloatStorage', np.float32)),
        device='cuda:0' if form == 'cuda' else 'cpu',
        legacy=form == 'legacy',
    )
    if form == 'bfloat16':
        arrays = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in arrays.items()}
    path = tmp_path / 'model.pth'
    if form == 'legacy':
        lengths = {'0': len(storages['0']) // 4}
        path.write_bytes(torch_bytes.legacy(torch_bytes.dictionary(tensors), storages, lengths))
    else:
        data = checkpoint(tensors) if form == 'checkpoint' else torch_bytes.dictionary(tensors, form != 'no metadata')
        path.write_bytes(torch_bytes.zipped(data, storages))
    assert formats.detect_format(path).name == 'torchvision'
    file = formats.read(path)
    assert file.config == BASE and set(file.report.taken) == set(shapes)
    layers = BACKBONE | (OLD if form == 'legacy' else TODAY) | MASKS
    for native, source in layers.items():
        np.testing.assert_array_equal(file.arrays[native], np.float32(arrays[source]), err_msg=native)
    assert bool(file.report.notes) == (form == 'checkpoint')


def test_a_file_runs_and_converts(tmp_path, capsys):
    """The command writes a native file with the same network, and the settings of its options and its file."""
    tensors, storages, _ = one_storage(first_version())
    path, output, settings = tmp_path / 'model.pth', tmp_path / 'out.npz', tmp_path / 'settings.json'
    path.write_bytes(torch_bytes.zipped(torch_bytes.dictionary(tensors), storages))
    settings.write_text(json.dumps({'box_nms_thresh': 0.3, 'min_size': 100}))
    options = ['--config', str(settings), '--min-size', '200', '--max-size', '300', '--bn-eps', '1e-5']
    assert convert.main([str(path), '--output', str(output), *options]) == 0
    assert 'assumed' not in capsys.readouterr().out
    meta = read_weights(output).meta
    assert meta.config == BASE.replace(dialect=TORCHVISION, min_size=200, max_size=300, nms_threshold=0.3)
    assert meta.source.format == 'torchvision'
    assert mask_rcnn.load(path).config == BASE
    assert convert.main([str(output), '--output', str(tmp_path / 'x.npz'), '--bn-eps', '0']) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ('recipe', 'flags'),
    [
        ('fasterrcnn_resnet50_fpn', ['--published', '--legacy']),
        ('maskrcnn_resnet50_fpn', ['--published', '--legacy']),
        ('maskrcnn_resnet50_fpn', ['--no-metadata']),
        ('maskrcnn_resnet50_fpn', ['--published']),
        ('keypointrcnn_resnet50_fpn', []),
        ('maskrcnn_resnet50_fpn_v2', []),
    ],
)
def test_the_reference_weights(golden, tmp_path, recipe, flags):
    folder = golden / 'torchvision'
    if not folder.exists():
        pytest.skip('there are no reference data of torchvision')
    path = tmp_path / 'model.pth'
    writer = import_file(folder / 'torchvision_weights.py')
    writer.main([str(folder / f'recipe_{recipe}_seed0.npz'), str(path), *flags])
    file = formats.read(path)
    path.unlink()
    is_second, keypoints = recipe.endswith('_v2'), recipe.startswith('keypoint')
    assert file.format == 'torchvision' and 'unknown' not in file.report.skipped and file.report.warnings == ()
    assert file.config.dialect.backbone.bn_eps == (1e-5 if is_second else 0)
    assert file.config.head_norm == ('bn' if is_second else 'none')
    assert (file.config.n_fg_class, file.config.n_keypoint) == ((1, 17) if keypoints else (90, 0))
    assert file.config.masks == recipe.startswith('mask')
