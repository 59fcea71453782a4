"""Training targets for the mask head in the conventions of a dialect."""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.input_masks import bitmap_targets, input_polygon_targets, roi_align_targets
from mask_rcnn.targets.masks import mask_targets
from mask_rcnn.targets.rois import SampledRoIs

#: The functions for the values of ``training.mask_targets`` that depend on the network input.
_IN_INPUT = {'bitmap': bitmap_targets, 'polygons_in_input': input_polygon_targets, 'roi_align': roi_align_targets}


def foreground_mask_targets(
    rois: SampledRoIs, annotations: Annotations, transform: ImageTransform, size: int, *, dialect: Dialect
) -> np.ndarray:
    """Return the mask targets of the foreground RoIs of one image.

    Args:
        rois: The RoIs that are sampled for training.
        annotations: The image's objects.
        transform: Maps the original image to the network input.
        size: Height and width M of the masks.
        dialect: Provides ``training.mask_targets`` and ``boxes.offset``.

    Returns:
        numpy.ndarray: ``(F, M, M)`` int32 of 0 and 1, or float32 from 0 to 1 (torchvision); -1 everywhere if the object
        has no segmentation.
    """
    n, kind, offset = rois.n_foreground, dialect.training.mask_targets, dialect.boxes.offset
    if kind == 'polygons':
        return mask_targets(rois.boxes[:n], annotations, size, offset=offset)
    return _IN_INPUT[kind](rois.rois[:n], annotations, transform, size, offset=offset)
