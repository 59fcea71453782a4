import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask_rcnn.datasets.synthetic import rich_shapes
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset, _Light, _paint_thing, _place_things, _Thing


def masks_of(example):
    return [coco_mask.decode(shape).astype(bool) for shape in example.annotations.segmentations]


@pytest.fixture(scope='module')
def examples():
    return list(RichShapesDataset(60, size=96, seed=3))


def test_images(examples):
    for example in examples:
        image = example.image
        assert image.shape == (3, 96, 96) and image.dtype == np.float32 and image.flags.c_contiguous
        assert image.min() >= 0 and image.max() <= 255 and (image == np.rint(image)).all()
        assert image.std() > 5


def test_boxes_are_around_the_masks(examples):
    for example in examples:
        for mask, (y_min, x_min, y_max, x_max) in zip(masks_of(example), example.annotations.boxes):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert (rows[0], columns[0], rows[-1], columns[-1]) == (y_min, x_min, y_max, x_max)


def test_masks_are_disjoint(examples):
    for example in examples:
        masks = masks_of(example)
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_variety(examples):
    annotations = [example.annotations for example in examples]
    labels = np.concatenate([a.labels for a in annotations])
    assert (np.bincount(labels, minlength=8) > 10).all() and labels.dtype == np.int32
    sides = np.concatenate([a.boxes[:, 2:] - a.boxes[:, :2] for a in annotations]).max(axis=1)
    assert sides.min() < 16 and sides.max() > 45
    assert {len(a) for a in annotations} >= {1, 2, 3, 4, 5}


CLASSES = list(enumerate(RichShapesDataset.class_names))

#: Areas of the shapes in a circle of radius 1.
AREAS = {
    'square': 2,
    'circle': np.pi,
    'triangle': 0.75 * 3**0.5,
    'star': 10 * 0.5 * 0.45 * np.sin(np.pi / 5),  # ten triangles from the centre
    'ring': np.pi * (1 - 0.55**2),
    'cross': 2 * 2 * 0.64 - 0.64**2,  # two bars that share a square
    'heart': 180 * np.pi / 16**2,  # of x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - ...
}


@pytest.mark.parametrize(('label', 'name'), CLASSES)
def test_the_outlines_are_the_classes(label, name):
    thing = _Thing(label, 1.0, 0.0, rich_shapes._OUTLINES[label])
    if name in AREAS:
        assert thing.area == pytest.approx(AREAS[name], rel=0.01)
    else:  # a disc of radius 1 without what a disc of radius 0.75 at the distance 0.45 covers
        y, x = np.mgrid[-1:1:2000j, -1:1:2000j]
        left = (np.hypot(x, y) < 1) & (np.hypot(x - 0.45, y) > 0.75)
        assert thing.area == pytest.approx(left.mean() * 4, rel=0.01)


@pytest.mark.parametrize(('label', 'name'), CLASSES)
def test_the_mask_is_what_the_outlines_enclose(label, name):
    """Every pixel whose centre is clearly inside or outside, by OpenCV's own test."""
    place = 31.7 * np.array([[0.8, -0.5], [0.4, 0.9]])
    outlines = tuple(outline @ place.T + (40.3, 47.9) for outline in rich_shapes._OUTLINES[label])
    mask = _Thing(label, 31.7, 0.0, outlines).mask((90, 80))
    distances = np.array(
        [
            [
                [cv2.pointPolygonTest(outline.astype(np.float32), (x + 0.5, y + 0.5), True) for x in range(80)]
                for y in range(90)
            ]
            for outline in outlines
        ]
    )
    inside = (distances > 0).sum(axis=0) % 2 == 1
    clear = np.abs(distances).min(axis=0) > 0.75
    np.testing.assert_array_equal(mask[clear], inside[clear])
    assert mask.any() and not mask.all()


def test_enough_of_everything_is_to_be_seen(rng):
    """At least half of a thing, also where others are in front of it; and all that is there is annotated."""
    hidden = 0
    for _ in range(60):
        things = _place_things(rng, (64, 96))
        annotations = rich_shapes._annotate(things, (64, 96))
        assert annotations.labels.tolist() == [thing.label for thing in reversed(things)]
        for thing, shape in zip(reversed(things), annotations.segmentations):
            part = coco_mask.area(shape) / thing.area
            assert part >= 0.5
            hidden += part < 0.95
    assert hidden > 20


def test_a_thing_is_painted_where_its_mask_is(rng):
    outlines = tuple(outline * 20 + (40, 30) for outline in rich_shapes._OUTLINES[4])
    ring = _Thing(4, 20.0, 0.0, outlines)
    before = np.full((3, 60, 80), 0.5, np.float32)
    image = before.copy()
    _paint_thing(rng, image, ring, _Light(np.array([1.0, 0.0]), 0.0, 0.1))
    changed, mask = (image != before).any(axis=0), ring.mask((60, 80))
    border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))).astype(bool)
    np.testing.assert_array_equal(changed[~border], mask[~border])
    _paint_thing(rng, image, ring, _Light(np.array([1.0, 0.0]), 0.5, 0.1))
    assert (image < before).all(axis=0)[~mask & ~border].sum() > 50  # its shadow


def test_a_picture_depends_on_seed_and_index_only():
    few, many, other = (RichShapesDataset(n, size=64, seed=seed) for n, seed in ((3, 0), (9, 0), (3, 1)))
    np.random.seed(1)
    first = few[2]
    np.random.seed(2)
    again = many[2]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.annotations.boxes, again.annotations.boxes)
    assert not np.array_equal(first.image, other[2].image)
    assert not np.array_equal(first.image, few[1].image)


@pytest.mark.parametrize('size', [(33, 150), (150, 32), (512, 512)])
def test_any_size(size):
    example = RichShapesDataset(2, size=size)[1]
    assert example.image.shape == (3, *size)
    assert all(mask.shape == size for mask in masks_of(example))


def test_ground_truth_is_read_by_pycocotools():
    dataset = RichShapesDataset(5, size=64)
    coco = COCO()
    coco.dataset = dataset.ground_truth()
    coco.createIndex()
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(dataset.class_names)
    assert coco.imgs[1]['file_name'] == 'rich shapes picture 0 of seed 0'
    for i, image_id in enumerate(dataset.image_ids):
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        example = dataset[i]
        assert [a['category_id'] - 1 for a in annotations] == example.annotations.labels.tolist()
        for annotation, mask in zip(annotations, masks_of(example)):
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation['area'] == mask.sum() and annotation['iscrowd'] == 0
