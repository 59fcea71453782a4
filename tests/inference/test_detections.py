"""The detections of one image: indexing, masks, COCO's format and drawing."""

import copy
import json
import pickle

import chainer
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import mask_rcnn.inference.detections
from mask_rcnn.config import DENA, DETECTRON
from mask_rcnn.inference.detections import Detections
from mask_rcnn.ops.masks.paste_masks import paste_masks
from mask_rcnn.ops.masks.rle import encode_mask

SIZE = 60, 80
NAMES = 'person', 'bicycle', 'car'
IDS = 1, 2, 90


def make(rng, count=7, **changes):
    low = rng.uniform(0, (40, 60), (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(3, 19, (count, 2))], axis=1).astype(np.float32)
    given = dict(
        boxes=boxes,
        labels=rng.randint(0, 3, count).astype(np.int32),
        scores=rng.uniform(0.05, 1, count).astype(np.float32),
        size=SIZE,
        mask_probs=rng.uniform(0, 1, (count, 14, 14)).astype(np.float32),
        class_names=NAMES,
        category_ids=IDS,
    )
    given.update(changes)
    return Detections(**given)


def decode(rle):
    return coco_mask.decode(rle).astype(bool)


def assert_same(a, b):
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.masks, b.masks)
    for name in ('size', 'class_names', 'category_ids', 'dialect'):
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.7])
def test_masks_are_pasted_by_the_dialects_conventions(rng, offset, threshold):
    """In a box of 14 x 14 pixels, pasting without padding is a comparison with the threshold, pixel by pixel."""
    dialect = DETECTRON.replace(masks={'padding': 0, 'box_offset': offset, 'threshold': threshold})
    corners = np.array([[10, 20], [-3, 70], [46, 0]])
    boxes = np.concatenate([corners, corners + 14 - offset], axis=1).astype(np.float32)
    found = make(rng, count=3, boxes=boxes, dialect=dialect)
    expected = np.zeros((3, SIZE[0] + 28, SIZE[1] + 28), bool)  # a frame of 14 pixels around the image
    for mask, (top, left), probs in zip(expected, corners + 14, found.mask_probs, strict=True):
        mask[top : top + 14, left : left + 14] = probs > threshold
    assert found.masks.shape == (3, *SIZE) and found.masks.dtype == bool
    np.testing.assert_array_equal(found.masks, expected[:, 14:-14, 14:-14])


def test_masks_are_pasted_once(rng):
    found = make(rng)
    assert found.masks is found.masks


def test_arrays_are_converted_to_the_documented_dtypes(rng):
    found = make(rng, boxes=np.zeros((7, 4)), labels=np.zeros(7, np.int64), scores=np.zeros(7))
    assert found.boxes.dtype == np.float32
    assert found.labels.dtype == np.int32
    assert found.scores.dtype == np.float32


def test_iter_masks_pastes_a_few_masks_at_a_time(rng, monkeypatch):
    found = make(rng)
    counts = []

    def paste(probs, *args, **kwargs):
        counts.append(len(probs))
        return paste_masks(probs, *args, **kwargs)

    monkeypatch.setattr(mask_rcnn.inference.detections, 'paste_masks', paste)
    monkeypatch.setattr(mask_rcnn.inference.detections, '_CHUNK_BYTES', 3 * SIZE[0] * SIZE[1] + 1)
    masks = list(found.iter_masks())
    assert sum(counts) == 7 and max(counts) == 3
    np.testing.assert_array_equal(masks, found.masks)
    n_pasted = len(counts)
    np.testing.assert_array_equal(list(found.iter_masks()), found.masks)
    assert len(counts) == n_pasted  # pasted masks are not pasted again


@pytest.mark.parametrize(
    ('index', 'rows'),
    [
        (2, [2]),
        (-1, [6]),
        (-7, [0]),
        (np.int64(3), [3]),
        (slice(1, 5, 2), [1, 3]),
        ([4, 0], [4, 0]),
        ([], []),
        (np.array([5, 5]), [5, 5]),
        (np.arange(7) > 4, [5, 6]),
        ([False] * 7, []),
    ],
)
@pytest.mark.parametrize('pasted', [False, True])
def test_indexing(rng, index, rows, pasted):
    found = make(rng)
    expected = Detections(
        boxes=found.boxes[rows],
        labels=found.labels[rows],
        scores=found.scores[rows],
        size=SIZE,
        masks=make(np.random.RandomState(0)).masks[rows],
        class_names=NAMES,
        category_ids=IDS,
    )
    if pasted:
        assert found.masks is not None
    part = found[index]
    assert len(part) == len(rows)
    assert_same(part, expected)


def test_indexing_does_not_paste(rng, monkeypatch):
    found = make(rng)
    monkeypatch.setattr(mask_rcnn.inference.detections, 'paste_masks', None)
    assert len(found[2:5]) == 3


def test_indices_out_of_range(rng):
    found = make(rng)
    for index in (7, -8):
        with pytest.raises(IndexError, match=f'{index}.*7 detections'):
            found[index]
    assert [len(instance) for instance in found] == [1] * 7
    assert [float(instance.scores[0]) for instance in found] == found.scores.tolist()


def test_above_excludes_the_threshold(rng):
    found = make(rng, count=3, scores=np.array([0.5, 0.7, 0.9], np.float32))
    assert found.above(0.5).scores.tolist() == found.scores[1:].tolist()
    assert len(found.above(0.95)) == 0


def test_select_class_by_label_and_by_name(rng):
    found = make(rng, count=4, labels=np.array([0, 2, 0, 1]))
    assert_same(found.select_class(0), found[[0, 2]])
    assert_same(found.select_class('car'), found[[1]])
    with pytest.raises(ValueError, match="'cat'"):
        found.select_class('cat')


def test_sorting_by_score_is_stable(rng):
    scores = np.array([0.2, 0.9, 0.5, 0.9], np.float32)
    found = make(rng, count=4, scores=scores)
    assert_same(found.sorted_by_score(), found[[1, 3, 2, 0]])


def test_names_with_and_without_class_names(rng):
    labels = np.array([2, 0])
    assert make(rng, count=2, labels=labels).names == ['car', 'person']
    assert make(rng, count=2, labels=labels, class_names=None).names == ['class 2', 'class 0']


def test_repr_lists_the_highest_scores(rng):
    found = make(rng, count=3, labels=np.array([0, 1, 2]), scores=np.array([0.25, 0.99, 0.5]))
    assert repr(found) == 'Detections(3 in 60 x 80 pixels: bicycle 0.99, car 0.50, person 0.25)'
    assert repr(found[[]]) == 'Detections(0 in 60 x 80 pixels)'
    assert repr(make(rng)).endswith(', ...)')


def test_detections_without_masks(rng):
    found = make(rng, mask_probs=None)
    assert not found.has_masks and found.masks is None and list(found.iter_masks()) == []
    assert not found[:2].has_masks
    assert all('segmentation' not in result for result in found.to_coco(1))
    with pytest.raises(ValueError, match='no masks'):
        found.encode_masks()
    assert found.draw(np.zeros((*SIZE, 3), np.uint8)).shape == (*SIZE, 3)


def test_no_detections(rng):
    found = make(rng, count=0)
    assert len(found) == 0 and found.masks.shape == (0, *SIZE)
    assert found.to_coco(1) == [] and found.encode_masks() == [] and list(found) == []
    empty = Detections(boxes=np.zeros((0, 4)), labels=[], scores=[], size=SIZE)
    assert len(empty.sorted_by_score()) == 0


def test_empty_lists_are_no_detections():
    found = Detections(boxes=[], labels=[], scores=[], masks=[], size=SIZE)
    assert (found.boxes.shape, found.labels.shape, found.masks.shape) == ((0, 4), (0,), (0, *SIZE))
    assert (found.boxes.dtype, found.labels.dtype, found.masks.dtype) == (np.float32, np.int32, bool)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'boxes': np.zeros((7, 5))}, r'boxes must have the shape \(7, 4\)'),
        ({'labels': np.zeros(6, int)}, r'labels must have the shape \(7,\)'),
        ({'labels': np.zeros(7)}, 'labels must be int32, not float64'),
        ({'scores': np.zeros((7, 1))}, 'scores must have the shape'),
        ({'mask_probs': np.zeros((7, 14, 13))}, 'mask_probs must have the shape'),
        ({'mask_probs': np.zeros((6, 14, 14))}, 'mask_probs must have the shape'),
        ({'mask_probs': np.zeros(7)}, 'mask_probs must have the shape'),
        ({'mask_probs': None, 'masks': np.zeros((7, 80, 60), bool)}, 'masks must have the shape'),
        ({'mask_probs': None, 'masks': np.zeros((7, 60, 80))}, 'masks must be bool'),
        ({'masks': np.zeros((7, 60, 80), bool)}, 'not both'),
        ({'labels': np.full(7, 3)}, 'label 3 is out of range for 3 class_names'),
        ({'labels': np.full(7, 3), 'class_names': None}, 'label 3 is out of range for 3 category_ids'),
        ({'labels': np.full(7, -1)}, 'negative'),
        ({'size': (60, 0)}, 'size'),
    ],
)
def test_inconsistent_arguments_are_rejected(rng, changes, message):
    with pytest.raises(ValueError, match=message):
        make(rng, **changes)


def test_encoded_masks_decode_to_the_masks(rng):
    found = make(rng)
    np.testing.assert_array_equal([decode(rle) for rle in found.encode_masks()], found.masks)


def test_encoding_does_not_paste_masks(rng, monkeypatch):
    """The run lengths equal those of the pasted masks, also for masks that fill whole columns."""
    found = make(rng, boxes=np.concatenate([make(rng).boxes[:5], [[-9, 3, 70, 20], [0, 0, 59, 79]]]))
    expected = [encode_mask(mask) for mask in found.iter_masks()]
    monkeypatch.setattr(mask_rcnn.inference.detections, 'paste_masks', None)
    assert found.encode_masks() == expected


def test_paste_device(rng):
    """Selections keep the device; copies and pickles, which may be used without a GPU, do not."""
    device, found = chainer.get_device('@numpy'), make(rng)
    on_device = make(np.random.RandomState(0), paste_device=device)
    assert (
        found.paste_device is None and on_device[2:].paste_device is on_device.sorted_by_score().paste_device is device
    )
    sent = []

    class Recording:
        xp = np

        def send(self, array):
            sent.append(array.shape)
            return array

    on_device.paste_device = Recording()
    assert on_device.encode_masks() == found.encode_masks()
    np.testing.assert_array_equal(list(on_device.iter_masks()), found.masks)
    np.testing.assert_array_equal(on_device.masks, found.masks)
    assert sent == [(7, 14, 14), (7, 4)]  # only for the run lengths
    for copied in (copy.copy(on_device), copy.deepcopy(on_device), pickle.loads(pickle.dumps(on_device))):
        assert copied.paste_device is None
        assert_same(copied, found)


@pytest.mark.parametrize('error', [MemoryError('full'), RuntimeError('cudaErrorMemoryAllocation: out of memory')])
def test_a_full_gpu_computes_no_runs(rng, error):
    class Full:
        xp = np

        def send(self, array):
            raise error

    on_device = make(np.random.RandomState(0), paste_device=Full())
    assert on_device.encode_masks() == make(rng).encode_masks()


def test_to_coco(rng):
    found = make(
        rng,
        count=2,
        labels=np.array([2, 0]),
        boxes=np.array([[10, 20, 29, 59], [0.5, 1.25, 3.5, 4.25]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
    )
    results = json.loads(json.dumps(found.to_coco(139)))
    assert [set(result) for result in results] == [{'image_id', 'category_id', 'bbox', 'score', 'segmentation'}] * 2
    assert [result['bbox'] for result in results] == [[20, 10, 40, 20], [1.25, 0.5, 4, 4]]
    assert [result['category_id'] for result in results] == [90, 1]
    assert [result['score'] for result in results] == [0.75, 0.5]
    assert [result['image_id'] for result in results] == [139, 139]
    np.testing.assert_array_equal([decode(result['segmentation']) for result in results], found.masks)


def test_to_coco_without_category_ids_and_with_offset_0(rng):
    dialect = DETECTRON.replace(boxes={'offset': 0.0})
    found = make(
        rng,
        count=1,
        labels=np.array([2]),
        category_ids=None,
        dialect=dialect,
        boxes=np.array([[10, 20, 29, 59]], np.float32),
    )
    (result,) = found.to_coco('street')
    assert (result['image_id'], result['category_id'], result['bbox']) == ('street', 3, [20, 10, 39, 19])


def test_pycocotools_loads_the_results(rng, shared, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(shared / 'coco-mini/annotations/instances_val2017.json'))
    number = coco.getImgIds()[0]
    results = coco.loadRes(make(rng).to_coco(number))
    assert len(results.getAnnIds([number])) == 7
    area = coco_mask.area(results.annToRLE(results.anns[1]))
    assert area == make(np.random.RandomState(0)).masks[0].sum()


def test_draw_accepts_files_and_arrays(rng, tmp_path):
    import cv2

    image = rng.randint(0, 256, (*SIZE, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image[:, :, ::-1])
    found = make(rng)
    from_file = found.draw(tmp_path / 'image.png', contour=True)
    np.testing.assert_array_equal(from_file, found.draw(image, contour=True))


@pytest.mark.parametrize('dialect', [DENA, DETECTRON])
def test_draw_reads_files_with_the_orientation_of_the_dialect(tmp_path, dialect):
    """DeNA's program ignores it, and finds boxes in the pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / 'image.jpg', exif=exif)
    size = (20, 30) if dialect == DENA else (30, 20)
    empty = Detections(
        boxes=np.empty((0, 4), np.float32),
        labels=np.empty(0, np.int32),
        scores=np.empty(0, np.float32),
        size=size,
        dialect=dialect,
    )
    assert empty.draw(tmp_path / 'image.jpg').shape == (*size, 3)


def test_masks_equal_detectrons(golden):
    case = np.load(golden / 'detectron/case_R-50-C4_seed0.npz')
    height, width = (int(side) for side in case['im_shape'][:2])
    found = Detections(
        boxes=case['boxes'][:, [1, 0, 3, 2]],
        labels=case['classes'] - 1,
        scores=case['scores'],
        size=(height, width),
        mask_probs=case['mask_probs'],
    )
    expected = np.unpackbits(case['masks_packed'], axis=-1)[..., :width].astype(bool)
    np.testing.assert_array_equal(found.masks, expected)
    assert [rle['counts'].encode() for rle in found.encode_masks()] == case['mask_rle'].tolist()
    x, y, w, h = np.array([result['bbox'] for result in found.to_coco(1)]).T
    np.testing.assert_allclose(np.stack([x, y, x + w - 1, y + h - 1], axis=1), case['boxes'], atol=1e-4)


def with_keypoints(rng, **changes):
    return make(rng, mask_probs=None, keypoints=rng.uniform(0, 60, (7, 17, 4)).astype(np.float32), **changes)


def test_indexing_and_sorting_keep_keypoints_with_their_instances(rng):
    found = with_keypoints(rng)
    np.testing.assert_array_equal(found[[4, 0]].keypoints, found.keypoints[[4, 0]])
    np.testing.assert_array_equal(found.sorted_by_score().keypoints, found.keypoints[np.argsort(-found.scores)])
    assert found[3].keypoints.shape == (1, 17, 4) and found[[]].keypoints.shape == (0, 17, 4)
    assert make(rng)[0].keypoints is None and not found.has_masks


def test_keypoints_in_cocos_format(rng):
    found = with_keypoints(rng)
    results = json.loads(json.dumps(found.to_coco(5)))
    assert set(results[0]) == {'image_id', 'category_id', 'bbox', 'score', 'keypoints'}
    for result, points in zip(results, found.keypoints, strict=True):
        np.testing.assert_array_equal(np.float32(result['keypoints'][0::3]), points[:, 1])
        np.testing.assert_array_equal(np.float32(result['keypoints'][1::3]), points[:, 0])
        assert result['keypoints'][2::3] == 17 * [1]
    assert found[[]].to_coco(5) == [] and 'keypoints' not in make(rng).to_coco(5)[0]


@pytest.mark.parametrize('shape', [(6, 17, 4), (7, 17, 2), (7, 68)])
def test_keypoints_of_a_wrong_shape_are_rejected(rng, shape):
    with pytest.raises(ValueError, match='keypoints must have the shape'):
        make(rng, keypoints=np.zeros(shape, np.float32))
