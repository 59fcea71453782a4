"""The dialect of DeNA's Chainer_Mask_R-CNN compared with that program: operations, stages and detections."""

import json
import zlib

import chainer
import chainer.functions as F
import numpy as np
import pytest
from pycocotools import mask as coco_mask

import mask_rcnn
from mask_rcnn.cli import demo
from mask_rcnn.config import DENA, PRESETS
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.ops.boxes.anchors import cell_anchors, shift_anchors
from mask_rcnn.ops.boxes.boxes import box_iou, decode_boxes
from mask_rcnn.ops.boxes.proposals import generate_proposals, select_detections
from mask_rcnn.ops.masks.paste_masks import paste_masks
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.preprocessing.image_io import read_image
from mask_rcnn.preprocessing.image_transform import ImageTransform, input_scale, prepare_image
from tests.support.dena import DenaCase
from tests.support.golden import (
    MAX_SCORE_DIFFERENCE,
    MIN_BOX_IOU,
    Case,
    compare_boxes,
    compare_masks,
    mask_iou,
    match,
    send_rois,
    to_host,
    without_padding,
)

pytestmark = pytest.mark.slow

CONFIG = PRESETS['resnet50'].in_dialect(DENA)
SMALL = 'snapshot_R-50-C4_seed0_scale300'
OTHERS = (
    'detectron_R-50-C4_seed0_scale300',
    'detectron_R-50-C4_seed0_scale300_nobn2affine',
    'snapshot_R-50-C4_seed0_scale300_bn2affine',
    'snapshot_R-50-C4_seed0_scale300_roi7',
    'snapshot_R-50-C4_seed0_scale300_roipool',
    'detectron_R-50-C4_seed0',
)
CASES = [SMALL, *OTHERS]

#: Largest difference of a blob in its standard deviations.
BLOB = 5e-5

#: Largest differences of scores and boxes (in pixels), of one detection among 111 each.  Measured with OpenBLAS's
#: kernels for Haswell: 9.4e-4; for SkylakeX: 6.6e-4 and 0.042.  Noise of a millionth of the image's standard deviation
#: moves the same score by 4.8e-4 to 8.7e-4 (six draws), all others by less than 3.1e-4.
SCORES, BOXES = 1.2e-3, 0.05


@pytest.fixture(scope='module')
def ops(dena_golden):
    return np.load(dena_golden / 'dena' / 'ops_dena.npz')


@pytest.fixture(scope='module')
def load_case(dena_golden, dena_file, gpu):
    """A function from the name of a case to the model with the case's settings, loaded from the original file."""

    def load(name, **changes):
        case = DenaCase(dena_golden, name)
        path = dena_file(*case.settings['weights'])
        return mask_rcnn.load(path, gpu=gpu, **{**case.options, **changes})

    return load


# Operations


def test_sizes_of_the_input(ops):
    """The length of the longer side is not rounded before the comparison with the limit."""
    for height, width, input_height, input_width, scale in ops['prepare/sizes'].tolist():
        size = int(height), int(width)
        transform = ImageTransform.top_left(size, input_scale(size, CONFIG), box_factors='width_ratio')
        assert transform.input_size == (input_height, input_width) and transform.factors == (scale, scale)


def test_input(ops):
    x, _ = prepare_image(ops['prepare/image'].astype(np.float32), CONFIG.replace(min_size=50, max_size=90))
    np.testing.assert_array_equal(x, ops['prepare/out'])


def test_anchors(ops):
    cell = cell_anchors('dena', 16, CONFIG.anchor_sizes, CONFIG.anchor_ratios)
    np.testing.assert_array_equal(cell, ops['anchor/base'])
    np.testing.assert_array_equal(shift_anchors(cell, 16, 7, 9), ops['anchor/all_7x9'])


def test_decoding(ops):
    """The exponents have no limit: some boxes are infinite."""
    decoded, expected = decode_boxes(ops['decode/src'], ops['decode/loc'], offset=0.0), ops['decode/out']
    assert np.isinf(expected).any()
    np.testing.assert_allclose(decoded, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('scale', [1, 3])
def test_proposals(ops, scale):
    boxes, _ = generate_proposals(
        [ops['proposals/score'].reshape(7, 9, 15).transpose(2, 0, 1)],
        [ops['proposals/loc'].reshape(7, 9, 60).transpose(2, 0, 1)],
        [ops['anchor/all_7x9']],
        (105, 139),
        scale,
        pre_nms=400,
        post_nms=60,
        nms_threshold=0.7,
        min_size=4.0,
        offset=DENA.boxes.offset,
        clip_offset=DENA.boxes.clip_offset,
        max_log_scale=DENA.boxes.max_log_scale,
        last_of_ties_first=DENA.boxes.last_of_ties_first,
        drop_small_first=DENA.rpn.drop_small_first,
        require_centre_inside=DENA.rpn.require_centre_inside,
    )
    np.testing.assert_allclose(boxes, ops[f'proposals/rois_scale{scale}'], rtol=0, atol=2e-5)


@pytest.mark.parametrize('size', [14, 7])
def test_roi_align_and_its_gradient(ops, size):
    rois = np.ascontiguousarray(ops['roi_align/rois_xyxy'][:, [2, 1, 4, 3]])
    indices = ops['roi_align/rois_xyxy'][:, 0].astype(np.int32)
    x = chainer.Variable(ops['roi_align/x'])
    y = roi_align(x, rois, indices, output_size=size, spatial_scale=1 / 16, sampling_ratio=CONFIG.sampling_ratio)
    np.testing.assert_allclose(y.array, ops[f'roi_align/out{size}'], rtol=0, atol=5e-6)
    y.grad = ops[f'roi_align/gy{size}']
    y.backward()
    expected = ops[f'roi_align/gx{size}']
    np.testing.assert_allclose(x.grad, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize('size', [14, 7])
def test_average_of_the_box_head(ops, size):
    """With 7 x 7 RoIs, only the upper left 3 x 3 bins are averaged."""
    head = mask_rcnn.build(CONFIG, n_fg_class=1, roi_size=size).box_head
    means = ops[f'average/roi_size{size}'][:, :, 0, 0]
    for layer in (head.score, head.delta):
        layer.W.array[:, :3] = np.eye(len(layer.W.array), 3)
        layer.W.array[:, 3:] = 0
    features = np.zeros((2, 2048, 7, 7), np.float32)
    features[:, :3] = ops['average/in']
    with chainer.no_backprop_mode():
        _, deltas = head(features)
    np.testing.assert_allclose(deltas.array[:, :3], means, rtol=0, atol=1e-6)


@pytest.mark.parametrize(('preset', 'nms', 'score'), [('visualize', 0.3, 0.7), ('evaluate', 0.5, 0.05)])
def test_suppression(ops, preset, nms, score):
    boxes, labels, scores = select_detections(
        ops['suppress/prob'],
        ops['suppress/raw_boxes'],
        score_threshold=score,
        nms_threshold=nms,
        max_detections=0,
        offset=DENA.boxes.offset,
        last_of_ties_first=True,
    )
    order = np.lexsort((-scores, labels))
    for values, name in ((labels, 'label'), (scores, 'score'), (boxes, 'boxes')):
        np.testing.assert_array_equal(values[order], ops[f'suppress/{preset}/{name}'], err_msg=name)


def test_pasting(ops):
    size = tuple(map(int, ops['paste/size']))
    expected = np.unpackbits(ops['paste/out_packed'], axis=-1)[..., : size[1]].astype(bool)
    masks = paste_masks(
        ops['paste/masks'],
        ops['paste/boxes'],
        size,
        offset=DENA.masks.box_offset,
        squeeze_at_border=DENA.masks.squeeze_at_border,
    )
    np.testing.assert_array_equal(masks, expected)


@pytest.mark.parametrize('box', [[10, 83, 20, 83], [60, 10, 60, 20], [60, 83, 60, 83], [0, 0, 0, 0]])
def test_a_box_of_no_width_at_the_border_has_an_empty_mask(box):
    """The original ends with an OpenCV error at the lower and the right border."""
    masks = paste_masks(np.ones((1, 14, 14), 'f'), np.float32([box]), (60, 83), offset=1, squeeze_at_border=True)
    assert masks.sum() <= (box == [0, 0, 0, 0])


# Stages


@pytest.fixture(scope='module')
def small(load_case, dena_golden):
    """The model, its case, the golden network input, its transform and its feature map."""
    case, model = DenaCase(dena_golden, SMALL), load_case(SMALL)
    x, transform = Predictor(model).prepare(read_image(case.photo))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model, case, x, transform, [features.array for features in model.extractor(x)]


@pytest.fixture
def stages(small):
    """The same in inference mode."""
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        yield small


@pytest.mark.parametrize('name', ['detectron_R-50-C4_seed0', SMALL])
def test_the_photo_gives_the_golden_input(dena_golden, name):
    case = DenaCase(dena_golden, name)
    sizes = {key: case.options[key] for key in ('min_size', 'max_size')}
    x, transform = prepare_image(read_image(case.photo, apply_orientation=False), CONFIG.replace(**sizes))
    assert zlib.crc32(np.ascontiguousarray(x).tobytes()) == case.arrays['data_crc32']
    assert transform.factors == (case.arrays['scale'], case.arrays['scale'])


def test_backbone(stages):
    model, case, x, _, (features,) = stages
    extractor = model.extractor
    assert case.differences('bn1', ConvNorm.forward(extractor.conv1, x).array).max() < BLOB
    h = extractor.conv1(x)
    assert case.differences('pool1', h.array).max() < BLOB
    for stage in ('res2', 'res3', 'res4'):
        h = extractor[stage](h)
        assert case.differences(stage, h.array).max() < BLOB, stage
    np.testing.assert_array_equal(to_host(h), to_host(features))


def test_rpn(stages):
    model, case, _, _, (features,) = stages
    assert case.differences('rpn_conv1', model.rpn.conv(features, relu=True).array).max() < BLOB
    (logits,), (deltas,) = model.rpn((features,))
    assert case.differences('rpn_score', logits.array).max() < BLOB
    assert case.differences('rpn_loc', deltas.array).max() < BLOB


def test_rois(stages):
    """Each proposal has a partner; nearly equal scores may change places."""
    model, case, x, transform, maps = stages
    (found,) = model.rpn.propose(maps, x.shape[2:], [transform])
    found, expected = without_padding(found), case.arrays['rois']
    assert found.shape == expected.shape
    iou = box_iou(expected, found, offset=0.0)
    assert iou.max(axis=1).min() > 0.998 and iou.max(axis=0).min() > 0.998


def test_box_head(stages):
    model, case, _, _, maps = stages
    rows = case.rows_of('pool5')
    rois, indices = send_rois(model, case.arrays['rois'][rows])
    pooled = roi_align(*maps, rois, indices, output_size=14, spatial_scale=1 / 16, sampling_ratio=2)
    assert case.differences('pool5', pooled.array, rows=rows).max() < BLOB
    rows = case.rows_of('res5')
    res5 = model.box_head.roi_features(maps, *send_rois(model, case.arrays['rois'][rows]))
    assert case.differences('res5', res5.array, rows=rows).max() < BLOB
    scores, deltas = model.box_head(model.box_head.roi_features(maps, *send_rois(model, case.arrays['rois'][:32])))
    np.testing.assert_allclose(to_host(F.softmax(scores)), case.arrays['cls_prob_first32'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(to_host(scores), case.arrays['cls_score_first32'], rtol=0, atol=3e-4)
    np.testing.assert_allclose(to_host(deltas), case.arrays['cls_loc_first32'], rtol=0, atol=1e-4)


# Detections


@pytest.mark.parametrize('name', CASES)
def test_detections(load_case, dena_golden, name):
    """From the photo: each stable detection with both presets, and not one more or less."""
    model = load_case(name, score_threshold=0.05, nms_threshold=0.5)
    for preset in ('evaluate', 'visualize'):
        case = DenaCase(dena_golden, name, preset)
        model.use_preset(preset)
        assert case.settings['presets'][preset] == [model.config.nms_threshold, model.config.score_threshold]
        (detections,) = model.detect([case.photo])
        partners = match(case, detections, min_iou=MIN_BOX_IOU, max_score_difference=MAX_SCORE_DIFFERENCE)
        compare_with(case, detections[partners])


def compare_with(case, found):
    """Compare the stable detections, in the case's order, more strictly than the suggested rule."""
    arrays, stable = case.arrays, case.arrays['stable']
    np.testing.assert_allclose(found.scores, arrays['scores'][stable], rtol=0, atol=SCORES)
    np.testing.assert_allclose(found.boxes, case.boxes[stable], rtol=0, atol=BOXES)
    assert found.size == tuple(arrays['im_shape'])
    assert [found.category_ids[label] for label in found.labels] == arrays['category_ids'][stable].tolist()
    if 'returned_boxes' in arrays:  # x, y, width and height, without 1 pixel more
        returned = [result['bbox'] for result in found.to_coco(1)]
        # The errors of two sides add up in a width.
        np.testing.assert_allclose(returned, arrays['returned_boxes'][stable], rtol=0, atol=2 * BOXES)
    stored, rows = case.stored_masks()
    np.testing.assert_allclose(found.mask_probs[rows], arrays['mask_probs'][stored], rtol=0, atol=8e-3)
    iou = mask_iou(found.masks[rows], case.masks()[stored])
    # A corner of the enlarged box that truncates to another integer moves a whole border of a mask, also of a thin one.
    side = found.mask_probs.shape[-1]
    is_same = (paste_corners(found.boxes[rows], side) == paste_corners(case.boxes[stable][rows], side)).all(axis=1)
    assert iou[is_same].min() > 0.99 and iou.min() > 0.5 and is_same.mean() > 0.9


def paste_corners(boxes, side):
    """Return the integer corners of the rectangles into which masks with a border of one cell are pasted."""
    centres, halves = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.trunc(
        np.concatenate([centres - halves * (side + 2) / side, centres + halves * (side + 2) / side], axis=1)
    )


def test_detections_of_batches_and_of_arrays(load_case, dena_golden):
    case, model = DenaCase(dena_golden, SMALL), load_case(SMALL)
    image = read_image(case.photo)
    alone, *batch = [*model.detect([image]), *model.detect([image, image], batch_size=2)]
    for detections in batch:
        assert len(detections) == len(alone)
        np.testing.assert_allclose(detections.boxes, alone.boxes, rtol=0, atol=BOXES)


def test_the_dialect_of_detectron_gives_the_detections_of_detectron(dena_golden, dena_file, gpu):
    """Run the same arrays with the numbers of Detectron."""
    case = Case(dena_golden, 'R-50-C4_seed0')
    path = dena_file('detectron', 'recipe_R-50-C4_seed0.npz', 50)
    model = mask_rcnn.load(path, gpu=gpu, bn2affine=True, dialect='detectron', **case.config_changes)
    (detections,) = model.detect([case.photo])
    found = detections[match(case, detections, min_iou=0.9995, max_score_difference=4e-4)]
    compare_boxes(case, found)
    compare_masks(case, found)
    assert len(detections) == len(case.arrays['boxes'])


@pytest.mark.command
@pytest.mark.parametrize(('preset', 'words'), [('evaluate', []), ('visualize', ['--preset', 'visualize'])])
def test_the_old_command_line(dena_golden, dena_file, gpu, tmp_path, preset, words):
    """The original file and flags; the JSON file contains the detections of the preset."""
    case = DenaCase(dena_golden, 'detectron_R-50-C4_seed0', preset)
    path, results = dena_file(*case.settings['weights']), tmp_path / 'results.json'
    command = ['--bn2affine', '--modelfile', str(path), '--image', str(case.photo), '--json', str(results)]
    assert demo.main([*command, *words, '--gpu', str(gpu), '--output', str(tmp_path / 'picture.png')]) == 0
    found = json.loads(results.read_text())
    x, y, width, height = np.array([entry['bbox'] for entry in found], np.float32).T
    detections = mask_rcnn.Detections(
        boxes=np.stack([y, x, y + height, x + width], axis=1),
        labels=[COCO_CATEGORY_IDS.index(entry['category_id']) for entry in found],
        scores=[entry['score'] for entry in found],
        size=tuple(map(int, case.arrays['im_shape'])),
        masks=np.stack([np.asarray(coco_mask.decode(entry['segmentation'])).astype(bool) for entry in found]),
    )
    partners = match(case, detections, min_iou=0.9995, max_score_difference=SCORES)
    assert len(detections) == len(case.arrays['boxes'])
    assert mask_iou(detections.masks[partners], case.masks()[case.arrays['stable']]).min() > 0.995
