"""Annotations of detections for annotation tools."""

import numpy as np

from mask_rcnn.config import DETECTRON
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.inference.detections import Detections


def detections(**changes):
    """Two instances of the classes cat (id 17) and dog (id 18); the mask of the second is empty."""
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 4:10, 5:20] = True
    given = dict(
        boxes=np.array([[4, 5, 9, 19], [2, 3, 11, 40]], np.float32),
        labels=[0, 1],
        scores=[0.98766, 0.8],
        size=(20, 30),
        masks=masks,
        class_names=('cat', 'dog', 'cow'),
        category_ids=(17, 18, 21),
    )
    return Detections(**{**given, **changes})


def test_fields_of_an_annotation():
    first, second = detections().to_annotations(7, first_id=5)
    (polygon,) = first.pop('segmentation')
    assert {*zip(polygon[0::2], polygon[1::2], strict=True)} == {(5, 4), (20, 4), (20, 10), (5, 10)}
    assert first == {
        'id': 5,
        'image_id': 7,
        'category_id': 17,
        'iscrowd': 0,
        'bbox': [5, 4, 15, 6],
        'area': 90,
        'score': 0.9877,
    }
    assert second['segmentation'] == [] and second['id'] == 6
    assert second['bbox'] == [3, 2, 27, 10] and second['area'] == 270  # of the box, clipped to the image


def test_boxes_of_a_model_without_masks():
    """Detectron's boxes end with their last pixel."""
    first, _ = detections(masks=None).to_annotations(1)
    assert first['bbox'] == [5, 4, 15, 6]
    exact, _ = detections(masks=None, dialect=DETECTRON.replace(boxes={'offset': 0.0})).to_annotations(1)
    assert exact['bbox'] == [5, 4, 14, 5]


def test_categories_are_all_classes_or_the_found_ones():
    assert [(c['id'], c['name']) for c in detections().categories] == [(17, 'cat'), (18, 'dog'), (21, 'cow')]
    unnamed = detections(class_names=None, category_ids=None, labels=[3, 3])
    assert [(c['id'], c['name']) for c in unnamed.categories] == [(4, 'class 3')]


def test_visible_keypoints():
    keypoints = np.zeros((2, 17, 4), np.float32)
    keypoints[0, 5] = 8.5, 12.25, 6.0, 0.9
    keypoints[0, 6] = 8.5, 12.25, 1.0, 0.9  # a low logit
    found = detections(keypoints=keypoints)
    first, second = found.to_annotations(1)
    assert first['keypoints'] == [0] * 15 + [12.25, 8.5, 2] + [0] * 33 and first['num_keypoints'] == 1
    assert second['num_keypoints'] == 0
    category = found.categories[0]
    assert category['keypoints'] == list(COCO_KEYPOINT_NAMES)
    assert [6, 7] in category['skeleton']  # the shoulders, counted from 1


def test_no_detections():
    assert detections()[[]].to_annotations(1) == []
