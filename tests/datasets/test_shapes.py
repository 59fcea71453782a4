"""Generated squares, circles and triangles."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.synthetic.shapes import ShapesDataset, _annotate, _clip_outline, _Shape
from tests.datasets.masks import decode_masks


@pytest.fixture(scope='module')
def examples():
    return list(ShapesDataset(40, size=96, seed=3))


def test_classes_sizes_and_counts_vary(examples):
    objects = [example.annotations for example in examples]
    labels = np.concatenate([annotations.labels for annotations in objects])
    assert (np.bincount(labels, minlength=3) > 15).all() and labels.dtype == np.int32
    hidden = [isinstance(shape, dict) for a in objects for shape in a.segmentations]
    assert 10 < sum(hidden) < len(hidden) - 10
    sides = np.concatenate([a.boxes[:, 2:] - a.boxes[:, :2] for a in objects]).max(axis=1)
    assert sides.min() < 16 and sides.max() > 45
    assert {len(a) for a in objects} >= {1, 2, 3, 4}


def test_masks_do_not_overlap(examples):
    """Hidden pixels belong to the object in front; the border of a polygon may be off by one pixel."""
    for example in examples:
        masks = decode_masks(example)
        overlap = np.sum(masks, axis=0) > 1 if masks else np.zeros(1)
        assert overlap.sum() <= 0.02 * sum(mask.sum() for mask in masks) + 2


@pytest.mark.parametrize('label', [0, 1, 2])
@pytest.mark.parametrize('centre', [(31.3, 50.8), (3.0, 20.0), (60.0, 78.0)])
def test_outlines_agree_with_the_drawing(label, centre):
    """Compare the outline in COCO's rasteriser with the coverage of the shape, inside the image and at its border."""
    shape, size = _Shape(label, centre, 17.4, 0.7), (64, 80)
    drawn = shape.coverage(size)
    (rle,) = coco_mask.frPyObjects([_clip_outline(shape.outline, size).ravel().tolist()], *size)
    mask = coco_mask.decode(rle).astype(bool)
    inside = drawn >= 0.5
    assert (mask & inside).sum() / (mask | inside).sum() > 0.95
    if centre == (31.3, 50.8):
        assert drawn.sum() == pytest.approx(shape.area, rel=0.02)


@pytest.mark.parametrize(('distance', 'labels'), [(4, [0]), (10, [0, 0])])
def test_an_object_with_less_than_30_percent_visible_is_not_annotated(distance, labels):
    """The front square of 20 x 20 pixels leaves ``distance / 20`` of the square that it occludes visible."""
    side, upright = 20, np.pi / 4
    shapes = [_Shape(0, (30.0, x), side / 2**0.5, upright) for x in (30.0 - distance, 30.0)]
    annotations = _annotate(shapes, [shape.coverage((64, 64)) for shape in shapes])
    assert annotations.labels.tolist() == labels


def test_polygons_are_clipped_to_the_image():
    n_clipped = 0
    for example in ShapesDataset(60, size=64, seed=5):
        for shape in example.annotations.segmentations:
            if isinstance(shape, tuple):
                points = shape[0].reshape(-1, 2)
                assert points.min() >= -1e-9 and points.max() <= 64 + 1e-9
                n_clipped += bool((points < 1e-9).any() or (points > 64 - 1e-9).any())
    assert n_clipped > 5


def test_labels_agree_with_the_outlines():
    """The filled fraction of the smallest enclosing rectangle: square 1, circle 0.79, triangle 0.5."""
    n_compared = 0
    for example in ShapesDataset(30, size=256, seed=1):
        for shape, label in zip(example.annotations.segmentations, example.annotations.labels, strict=True):
            if isinstance(shape, tuple):
                points = shape[0].reshape(-1, 2)
                if points.min() > 1e-9 and points.max() < 256 - 1e-9:
                    _, sides, _ = cv2.minAreaRect(points.astype(np.float32))
                    fraction = cv2.contourArea(points.astype(np.float32)) / np.prod(sides)
                    assert fraction == pytest.approx([1, np.pi / 4, 0.5][label], abs=0.02)
                    n_compared += 1
    assert n_compared > 20
