"""Generated scenes with eight classes of shapes."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.synthetic import rich_shapes
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset, _Light, _Object, _paint_object, _place_objects
from tests.datasets.masks import decode_masks


@pytest.fixture(scope='module')
def examples():
    return list(RichShapesDataset(60, size=96, seed=3))


def test_images_are_contiguous(examples):
    assert all(example.image.flags.c_contiguous for example in examples)


def test_masks_are_disjoint(examples):
    for example in examples:
        masks = decode_masks(example)
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_classes_sizes_and_counts_vary(examples):
    annotations = [example.annotations for example in examples]
    labels = np.concatenate([a.labels for a in annotations])
    assert (np.bincount(labels, minlength=8) > 10).all() and labels.dtype == np.int32
    sides = np.concatenate([a.boxes[:, 2:] - a.boxes[:, :2] for a in annotations]).max(axis=1)
    assert sides.min() < 16 and sides.max() > 45
    assert {len(a) for a in annotations} >= {1, 2, 3, 4, 5}


CLASSES = list(enumerate(RichShapesDataset.class_names))

#: Areas of the shapes in the unit circle.
AREAS = {
    'square': 2,
    'circle': np.pi,
    'triangle': 0.75 * 3**0.5,
    'star': 10 * 0.5 * 0.45 * np.sin(np.pi / 5),  # ten triangles from the centre
    'ring': np.pi * (1 - 0.55**2),
    'cross': 2 * 2 * 0.64 - 0.64**2,  # two bars minus their common square
    'heart': 180 * np.pi / 16**2,  # of x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - ...
}


@pytest.mark.parametrize(('label', 'name'), CLASSES)
def test_outlines_have_the_areas_of_their_classes(label, name):
    area = _Object(label, 1.0, 0.0, rich_shapes._OUTLINES[label]).area
    if name in AREAS:
        assert area == pytest.approx(AREAS[name], rel=0.01)
    else:  # the crescent: a unit disc minus a disc of radius 0.75 at a distance of 0.45
        y, x = np.mgrid[-1:1:2000j, -1:1:2000j]
        inside = (np.hypot(x, y) < 1) & (np.hypot(x - 0.45, y) > 0.75)
        assert area == pytest.approx(inside.mean() * 4, rel=0.01)


@pytest.mark.parametrize(('label', 'name'), CLASSES)
def test_masks_agree_with_point_in_polygon_tests(label, name):
    """OpenCV classifies the pixels whose centres are at least 0.75 pixels away from the outlines."""
    matrix = 31.7 * np.array([[0.8, -0.5], [0.4, 0.9]])
    outlines = tuple(outline @ matrix.T + (40.3, 47.9) for outline in rich_shapes._OUTLINES[label])
    mask = _Object(label, 31.7, 0.0, outlines).mask((90, 80))
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


def test_at_least_65_percent_of_each_object_are_inside_the_image(rng):
    for _ in range(60):
        for obj in _place_objects(rng, (64, 96)):
            assert obj.mask((64, 96)).sum() >= 0.65 * obj.area


def test_at_least_half_of_each_object_is_visible(rng):
    n_partly_hidden = 0
    for _ in range(60):
        objects = _place_objects(rng, (64, 96))
        annotations = rich_shapes._annotate(objects, (64, 96))
        assert annotations.labels.tolist() == [obj.label for obj in reversed(objects)]
        for obj, shape in zip(reversed(objects), annotations.segmentations, strict=True):
            visible = coco_mask.area(shape) / obj.area
            assert visible >= 0.5
            n_partly_hidden += visible < 0.95
    assert n_partly_hidden > 20


def test_an_object_is_painted_inside_its_mask_and_casts_a_shadow(rng):
    outlines = tuple(outline * 20 + (40, 30) for outline in rich_shapes._OUTLINES[4])
    ring = _Object(4, 20.0, 0.0, outlines)
    before = np.full((3, 60, 80), 0.5, np.float32)
    image = before.copy()
    _paint_object(rng, image, ring, _Light(np.array([1.0, 0.0]), 0.0, 0.1))
    changed, mask = (image != before).any(axis=0), ring.mask((60, 80))
    border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))).astype(bool)
    np.testing.assert_array_equal(changed[~border], mask[~border])
    _paint_object(rng, image, ring, _Light(np.array([1.0, 0.0]), 0.5, 0.1))
    assert (image < before).all(axis=0)[~mask & ~border].sum() > 50  # the shadow
