import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask_rcnn.datasets.synthetic.shapes import ShapesDataset, _clip_outline, _Shape


def masks_of(example):
    height, width = example.image.shape[1:]
    return [
        coco_mask.decode(shape)
        if isinstance(shape, dict)
        else coco_mask.decode(
            coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in shape], height, width))
        )
        for shape in example.annotations.segmentations
    ]


@pytest.fixture(scope='module')
def examples():
    return list(ShapesDataset(40, size=96, seed=3))


def test_images(examples):
    for example in examples:
        image = example.image
        assert image.shape == (3, 96, 96) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 255 and (image == np.rint(image)).all()
        assert image.std() > 5


def test_boxes_are_around_the_masks(examples):
    for example in examples:
        for mask, (y_min, x_min, y_max, x_max) in zip(masks_of(example), example.annotations.boxes):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert (rows[0], columns[0], rows[-1], columns[-1]) == (y_min, x_min, y_max, x_max)
            assert mask.sum() >= 10


def test_variety(examples):
    objects = [example.annotations for example in examples]
    labels = np.concatenate([annotations.labels for annotations in objects])
    assert (np.bincount(labels, minlength=3) > 15).all() and labels.dtype == np.int32
    hidden = [isinstance(shape, dict) for a in objects for shape in a.segmentations]
    assert 10 < sum(hidden) < len(hidden) - 10
    sides = np.concatenate([a.boxes[:, 2:] - a.boxes[:, :2] for a in objects]).max(axis=1)
    assert sides.min() < 16 and sides.max() > 45
    assert {len(a) for a in objects} >= {1, 2, 3, 4}


def test_masks_do_not_overlap(examples):
    """What is hidden belongs to the object in front (a polygon's border may be a pixel off)."""
    for example in examples:
        masks = masks_of(example)
        overlap = np.sum(masks, axis=0) > 1 if masks else np.zeros(1)
        assert overlap.sum() <= 0.02 * sum(mask.sum() for mask in masks) + 2


@pytest.mark.parametrize('label', [0, 1, 2])
@pytest.mark.parametrize('centre', [(31.3, 50.8), (3.0, 20.0), (60.0, 78.0)])
def test_outline_is_what_is_drawn(label, centre):
    """COCO's rasteriser, fed with the outline, against the drawing: inside the picture and at its border."""
    shape, size = _Shape(label, centre, 17.4, 0.7), (64, 80)
    drawn = shape.coverage(size)
    (rle,) = coco_mask.frPyObjects([_clip_outline(shape.outline, size).ravel().tolist()], *size)
    mask = coco_mask.decode(rle).astype(bool)
    inside = drawn >= 0.5
    assert (mask & inside).sum() / (mask | inside).sum() > 0.95
    if centre == (31.3, 50.8):
        assert drawn.sum() == pytest.approx(shape.area, rel=0.02)


def test_outlines_are_cut_at_the_border():
    """Objects that leave the picture: the polygon is the object's part inside, side by side."""
    checked = 0
    for example in ShapesDataset(60, size=64, seed=5):
        for shape in example.annotations.segmentations:
            if isinstance(shape, tuple):
                points = shape[0].reshape(-1, 2)
                assert points.min() >= -1e-9 and points.max() <= 64 + 1e-9
                checked += bool((points < 1e-9).any() or (points > 64 - 1e-9).any())
    assert checked > 5


def test_labels_are_the_shapes():
    """Filled part of the smallest enclosing rectangle (OpenCV's): square 1, circle 0.79, triangle 0.5."""
    import cv2

    for example in ShapesDataset(30, size=256, seed=1):
        for shape, label in zip(example.annotations.segmentations, example.annotations.labels):
            if isinstance(shape, tuple):
                points = shape[0].reshape(-1, 2)
                if points.min() > 1e-9 and points.max() < 256 - 1e-9:
                    _, sides, _ = cv2.minAreaRect(points.astype(np.float32))
                    part = cv2.contourArea(points.astype(np.float32)) / np.prod(sides)
                    assert part == pytest.approx([1, np.pi / 4, 0.5][label], abs=0.02)


def test_a_picture_depends_on_seed_and_index_only():
    few, many, other = (ShapesDataset(n, size=64, seed=seed) for n, seed in ((3, 0), (9, 0), (3, 1)))
    np.random.seed(1)
    first = few[2]
    np.random.seed(2)
    again = many[2]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.annotations.boxes, again.annotations.boxes)
    assert not np.array_equal(first.image, other[2].image)
    assert not np.array_equal(first.image, few[1].image)


def test_any_size():
    dataset = ShapesDataset(2, size=(33, 150))
    assert dataset[1].image.shape == (3, 33, 150) and dataset.image_size(1) == (33, 150)


@pytest.mark.parametrize('arguments', [dict(n=0), dict(n=1, size=31), dict(n=1, size=(64, 8)), dict(n=1, seed=-1)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError):
        ShapesDataset(**arguments)


def test_ground_truth_is_read_by_pycocotools():
    dataset = ShapesDataset(5, size=64)
    coco = COCO()
    coco.dataset = dataset.ground_truth()
    coco.createIndex()
    for i, image_id in enumerate(dataset.image_ids):
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        example = dataset[i]
        assert [a['category_id'] - 1 for a in annotations] == example.annotations.labels.tolist()
        for a, mask, box in zip(annotations, masks_of(example), example.annotations.boxes):
            np.testing.assert_array_equal(coco.annToMask(a), mask)
            assert a['area'] == mask.sum() and a['iscrowd'] == 0
            x, y, w, h = a['bbox']
            assert [y, x, y + h - 1, x + w - 1] == box.tolist()
