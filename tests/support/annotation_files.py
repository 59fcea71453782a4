"""Annotations in COCO's format for tests."""

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES

HEIGHT, WIDTH = 30, 40
TRIANGLE = [5.0, 5.0, 20.5, 5.0, 5.0, 17.25]


def annotation(**changes):
    return {
        'id': 1,
        'image_id': 7,
        'category_id': 3,
        'iscrowd': 0,
        'area': 100.0,
        'bbox': [5, 5, 16, 13],
        'segmentation': [TRIANGLE],
        **changes,
    }


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {'size': rle['size'], 'counts': rle['counts'].decode()}


def keypoint_names(content, names=COCO_KEYPOINT_NAMES):
    content['categories'][1]['keypoints'] = list(names)


def keypoints(*visible):
    """COCO's 51 numbers; a labelled keypoint ``i`` has x = i and y = 2 * i."""
    return [number for i in range(17) for number in ((i, 2 * i, 2) if i in visible else (0, 0, 0))]
