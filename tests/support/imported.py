"""Imported datasets as masks, and written and read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.importers import ImportedDataset, ImportedImage
from mask_rcnn.datasets.importers.coco_writer import write_coco
from mask_rcnn.ops.masks.rle import decode_rle, encode_polygons
from tests.datasets.masks import decode_masks


def imported_masks(image: ImportedImage) -> list[np.ndarray]:
    """Return the mask ``(H, W)`` bool of each object."""
    shapes = [obj.segmentation for obj in image.objects]
    runs = [shape if isinstance(shape, dict) else encode_polygons(shape, image.size) for shape in shapes]
    return [decode_rle(rle).astype(bool) for rle in runs]


def read_back(dataset: ImportedDataset, path: Path, folder: Path) -> tuple[COCODataset, list[list[np.ndarray]]]:
    """Write a dataset, and read it as training does; returns it and the masks of its images."""
    write_coco(dataset, path, folder)
    coco = COCODataset(path, folder, only_annotated=False)
    return coco, [decode_masks(coco[i]) for i in range(len(coco))]
