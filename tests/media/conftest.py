"""Fixtures of the tests of sources and results."""

import numpy as np
import pytest

from mask_rcnn.inference.detections import Detections


@pytest.fixture
def make_detections():
    """A function that makes detections of rectangles ``(label, score, top, left, bottom, right)`` with masks."""

    def make(*objects, size=(30, 40), has_masks=True, class_names=('person', 'traffic light', 'dog')):
        boxes = np.array([item[2:] for item in objects], np.float32).reshape(-1, 4)
        masks = np.zeros((len(boxes), *size), bool)
        for mask, (top, left, bottom, right) in zip(masks, boxes.astype(int), strict=True):
            mask[top : bottom + 1, left : right + 1] = True  # Detectron's boxes contain both corners
        return Detections(
            boxes=boxes,
            labels=np.array([item[0] for item in objects], int),
            scores=np.array([item[1] for item in objects], np.float32),
            size=size,
            masks=masks if has_masks else None,
            class_names=class_names,
            category_ids=(1, 10, 18),
        )

    return make


@pytest.fixture
def two(make_detections):
    """A person and a traffic light, which overlap in the rows 5 to 10 and the columns 12 to 14."""
    return make_detections((0, 0.75, 2, 4, 10, 14), (1, 0.5, 5, 12, 25, 30))
