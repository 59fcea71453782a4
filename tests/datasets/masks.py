"""Masks of the objects of an example."""

from pycocotools import mask as coco_mask


def decode_masks(example):
    """Decode polygons and run lengths into ``(H, W)`` bool masks."""
    height, width = example.image.shape[1:]
    return [
        coco_mask.decode(
            shape
            if isinstance(shape, dict)
            else coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in shape], height, width))
        ).astype(bool)
        for shape in example.annotations.segmentations
    ]
