"""Matterport's reference outputs in our terms, and the rules by which ours are held against them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

import mask_rcnn
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.preprocessing.image_io import to_image_array
from mask_rcnn.weights import load_arrays
from mask_rcnn.weights.converters import matterport
from tests.support.golden import GoldenCase


def rebuild_h5(golden: Path, recipe: str, folder: Path) -> Path:
    """Write the ``.h5`` of a recipe as Keras would have."""
    spec = importlib.util.spec_from_file_location('matterport_weights', golden / 'matterport_weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = folder / Path(recipe).with_suffix('.h5').name
    weights, meta = module.load(str(golden / 'matterport' / recipe))
    module.write_h5(weights, meta, str(path))
    return path


def load_h5(path: Path, settings: dict):
    """Return the network of an ``.h5`` file."""
    file = matterport.read(path, settings)
    assert not file.report.skipped and not file.report.warnings
    model = mask_rcnn.build(file.config)
    load_arrays(model, file.arrays, source=path)
    return model


class MatterportCase(GoldenCase):
    """A picture and what Matterport's program found on it; blobs have their channels last."""

    program, size = 'matterport', 'masks_shape'

    @property
    def image(self) -> np.ndarray:
        """The picture as a file holds it."""
        arrays = self.arrays
        source = arrays['image'] if 'image' in arrays else self.golden / 'photos' / self.settings['image']
        return to_image_array(source)

    def in_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Normalised boxes in pixels of the network's input, as our network has them."""
        return boxes * np.float32(self.settings['matterport']['IMAGE_MAX_DIM'] - 1)


def match(case: MatterportCase, detections, *, min_iou: float, max_score_difference: float) -> np.ndarray:
    """Match detections one to one with a case's stable ones and return their indices, in its order.

    Asserts that every stable detection is found, with its class, score and box, and that there are no
    more others than the disturbed runs of Matterport itself had.
    """
    arrays = case.arrays
    iou = box_iou(arrays['rois'].astype(np.float32), detections.boxes, offset=0)
    same_class = arrays['class_ids'][:, None] == detections.labels[None] + 1
    close = np.abs(arrays['scores'][:, None] - detections.scores[None]) <= max_score_difference
    fits = np.where(same_class & close, iou, 0)
    partners, free = [], np.ones(len(detections), bool)
    for i in np.flatnonzero(arrays['stable']):
        j = int(np.argmax(fits[i] * free))
        assert fits[i, j] > min_iou and free[j], (
            f'class {arrays["class_ids"][i]}, score {arrays["scores"][i]:.4f}, box {arrays["rois"][i]}: '
            f'best IoU {fits[i, j]:.5f}'
        )
        free[j] = False
        partners.append(j)
    others = int(arrays['unmatched_1e-5']) + int((~arrays['stable']).sum())
    assert free.sum() <= others, f'{free.sum()} detections that Matterport has not'
    return np.array(partners)
