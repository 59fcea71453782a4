import copy
import json
import pickle

import chainer
import numpy as np
import pytest
from pycocotools import mask as coco_mask

import mask_rcnn.inference.detections
from mask_rcnn.config import DETECTRON
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


def test_masks_are_pasted_as_the_dialect_says_and_only_once(rng):
    dialect = DETECTRON.replace(boxes={'offset': 0.0}, masks={'padding': 0, 'threshold': 0.3})
    found = make(rng, dialect=dialect)
    expected = paste_masks(found.mask_probs, found.boxes, SIZE, offset=0.0, padding=0, threshold=0.3)
    assert found.masks.shape == (7, *SIZE) and found.masks.dtype == bool
    np.testing.assert_array_equal(found.masks, expected)
    assert found.masks is found.masks
    assert not np.array_equal(expected, make(np.random.RandomState(0)).masks)


def test_dtypes_are_the_conventions(rng):
    found = make(rng, boxes=np.zeros((7, 4)), labels=np.zeros(7, np.int64), scores=np.zeros(7))
    assert found.boxes.dtype == np.float32
    assert found.labels.dtype == np.int32
    assert found.scores.dtype == np.float32


def test_iter_masks_pastes_in_portions(rng, monkeypatch):
    found = make(rng)
    shapes = []

    def paste(probs, *args, **kwargs):
        shapes.append(len(probs))
        return paste_masks(probs, *args, **kwargs)

    monkeypatch.setattr(mask_rcnn.inference.detections, 'paste_masks', paste)
    monkeypatch.setattr(mask_rcnn.inference.detections, '_CHUNK_BYTES', 3 * SIZE[0] * SIZE[1] + 1)
    portions = list(found.iter_masks())
    assert shapes == [3, 3, 1]
    np.testing.assert_array_equal(portions, found.masks)
    np.testing.assert_array_equal(list(found.iter_masks()), found.masks)
    assert shapes == [3, 3, 1, 7]


@pytest.mark.parametrize(
    ('index', 'rows'),
    [
        (2, [2]),
        (-1, [6]),
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


def test_index_out_of_range_and_the_end_of_iteration(rng):
    found = make(rng)
    for index in (7, -8):
        with pytest.raises(IndexError, match=f'{index}.*7 detections'):
            found[index]
    assert [len(one) for one in found] == [1] * 7
    assert [float(one.scores[0]) for one in found] == found.scores.tolist()


def test_above_is_strict(rng):
    found = make(rng, count=3, scores=np.array([0.5, 0.7, 0.9], np.float32))
    assert found.above(0.5).scores.tolist() == found.scores[1:].tolist()
    assert len(found.above(0.95)) == 0


def test_of_class_by_label_and_by_name(rng):
    found = make(rng, count=4, labels=np.array([0, 2, 0, 1]))
    assert_same(found.select_class(0), found[[0, 2]])
    assert_same(found.select_class('car'), found[[1]])
    with pytest.raises(ValueError, match="'cat'"):
        found.select_class('cat')


def test_sorted_by_score_keeps_the_order_of_equals(rng):
    scores = np.array([0.2, 0.9, 0.5, 0.9], np.float32)
    found = make(rng, count=4, scores=scores)
    assert_same(found.sorted_by_score(), found[[1, 3, 2, 0]])


def test_names_with_and_without_class_names(rng):
    labels = np.array([2, 0])
    assert make(rng, count=2, labels=labels).names == ['car', 'person']
    assert make(rng, count=2, labels=labels, class_names=None).names == ['class 2', 'class 0']


def test_repr_is_one_line_with_the_best(rng):
    found = make(rng, count=3, labels=np.array([0, 1, 2]), scores=np.array([0.25, 0.99, 0.5]))
    assert repr(found) == 'Detections(3 in 60 x 80 pixels: bicycle 0.99, car 0.50, person 0.25)'
    assert repr(found[[]]) == 'Detections(0 in 60 x 80 pixels)'
    assert repr(make(rng)).endswith(', ...)')


def test_without_masks(rng):
    found = make(rng, mask_probs=None)
    assert not found.has_masks and found.masks is None and list(found.iter_masks()) == []
    assert not found[:2].has_masks
    assert all('segmentation' not in result for result in found.to_coco(1))
    with pytest.raises(ValueError, match='no masks'):
        found.encode_masks()
    assert found.draw(np.zeros((*SIZE, 3), np.uint8)).shape == (*SIZE, 3)


def test_nothing_found(rng):
    found = make(rng, count=0)
    assert len(found) == 0 and found.masks.shape == (0, *SIZE)
    assert found.to_coco(1) == [] and found.encode_masks() == [] and list(found) == []
    empty = Detections(boxes=np.zeros((0, 4)), labels=[], scores=[], size=SIZE)
    assert len(empty.sorted_by_score()) == 0


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
        ({'labels': np.full(7, 3)}, 'label 3 is beyond the 3 class_names'),
        ({'labels': np.full(7, 3), 'class_names': None}, 'label 3 is beyond the 3 category_ids'),
        ({'labels': np.full(7, -1)}, 'negative'),
        ({'size': (60, 0)}, 'size'),
    ],
)
def test_what_does_not_fit_is_refused(rng, changes, message):
    with pytest.raises(ValueError, match=message):
        make(rng, **changes)


def test_rles_decode_to_the_masks(rng):
    found = make(rng)
    np.testing.assert_array_equal([decode(rle) for rle in found.encode_masks()], found.masks)


def test_rles_need_no_masks(rng, monkeypatch):
    """Those of the masks, to the byte; of an image whose columns the masks fill, too."""
    found = make(rng, boxes=np.concatenate([make(rng).boxes[:5], [[-9, 3, 70, 20], [0, 0, 59, 79]]]))
    expected = [encode_mask(mask) for mask in found.iter_masks()]
    monkeypatch.setattr(mask_rcnn.inference.detections, 'paste_masks', None)
    assert found.encode_masks() == expected


def test_where_masks_are_pasted(rng):
    """What is chosen from detections stays with their GPU; copies and pickles may go where there is none."""
    device, found = chainer.get_device('@numpy'), make(rng)
    there = make(np.random.RandomState(0), paste_device=device)
    assert found.paste_device is None and there[2:].paste_device is there.sorted_by_score().paste_device is device
    sent = []

    class Recording:
        xp = np

        def send(self, array):
            sent.append(array.shape)
            return array

    there.paste_device = Recording()
    assert there.encode_masks() == found.encode_masks()
    np.testing.assert_array_equal(list(there.iter_masks()), found.masks)
    np.testing.assert_array_equal(there.masks, found.masks)
    assert sent == [(7, 14, 14), (7, 4)] * 3
    for other in (copy.copy(there), copy.deepcopy(there), pickle.loads(pickle.dumps(there))):
        assert other.paste_device is None
        assert_same(other, found)


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


def test_to_coco_without_category_ids_and_with_box_coordinates(rng):
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


def test_coco_accepts_the_results(rng, shared, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(shared / 'coco-mini/annotations/instances_val2017.json'))
    number = coco.getImgIds()[0]
    results = coco.loadRes(make(rng).to_coco(number))
    assert len(results.getAnnIds([number])) == 7
    area = coco_mask.area(results.annToRLE(results.anns[1]))
    assert area == make(np.random.RandomState(0)).masks[0].sum()


def test_draw_takes_files_and_arrays(rng, tmp_path):
    import cv2

    image = rng.randint(0, 256, (*SIZE, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image[:, :, ::-1])
    found = make(rng)
    from_file = found.draw(tmp_path / 'image.png', contour=True)
    np.testing.assert_array_equal(from_file, found.draw(image, contour=True))


def test_the_reference_masks(shared):
    case = np.load(shared / 'golden/detectron/case_R-50-C4_seed0.npz')
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


# Keypoints.


def with_keypoints(rng, **changes):
    return make(rng, mask_probs=None, keypoints=rng.uniform(0, 60, (7, 17, 4)).astype(np.float32), **changes)


def test_keypoints_go_with_their_instances(rng):
    found = with_keypoints(rng)
    np.testing.assert_array_equal(found[[4, 0]].keypoints, found.keypoints[[4, 0]])
    np.testing.assert_array_equal(found.sorted_by_score().keypoints, found.keypoints[np.argsort(-found.scores)])
    assert found[3].keypoints.shape == (1, 17, 4) and found[[]].keypoints.shape == (0, 17, 4)
    assert make(rng)[0].keypoints is None and not found.has_masks


def test_keypoints_in_cocos_format(rng):
    found = with_keypoints(rng)
    results = json.loads(json.dumps(found.to_coco(5)))
    assert set(results[0]) == {'image_id', 'category_id', 'bbox', 'score', 'keypoints'}
    for result, points in zip(results, found.keypoints):
        np.testing.assert_array_equal(np.float32(result['keypoints'][0::3]), points[:, 1])
        np.testing.assert_array_equal(np.float32(result['keypoints'][1::3]), points[:, 0])
        assert result['keypoints'][2::3] == 17 * [1]
    assert found[[]].to_coco(5) == [] and 'keypoints' not in make(rng).to_coco(5)[0]


@pytest.mark.parametrize('shape', [(6, 17, 4), (7, 17, 2), (7, 68)])
def test_keypoints_of_the_wrong_shape(rng, shape):
    with pytest.raises(ValueError, match='keypoints must have the shape'):
        make(rng, keypoints=np.zeros(shape, np.float32))
