"""Matterport's reference outputs in our terms, and the rules by which ours are held against them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mask_rcnn
from mask_rcnn.datasets.image_io import to_image_array
from mask_rcnn.ops.boxes import box_iou
from mask_rcnn.weights import load_arrays, matterport


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
    assert not file.report.left and not file.report.warnings
    model = mask_rcnn.build(file.config)
    load_arrays(model, file.arrays, what=path)
    return model


@dataclass(frozen=True)
class MatterportCase:
    """One picture and what Matterport's program found on it, with samples of every blob on the way."""

    golden: Path
    name: str

    @property
    def arrays(self) -> np.lib.npyio.NpzFile:
        return np.load(self.golden / 'matterport' / f'case_{self.name}.npz')

    @property
    def settings(self) -> dict:
        return json.loads(str(self.arrays['config']))

    @property
    def image(self) -> np.ndarray:
        """The picture as a file holds it."""
        arrays = self.arrays
        source = arrays['image'] if 'image' in arrays else self.golden / 'photos' / self.settings['image']
        return to_image_array(source)

    def in_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Normalised boxes in pixels of the network's input, as our network has them."""
        return boxes * np.float32(self.settings['matterport']['IMAGE_MAX_DIM'] - 1)

    def masks(self) -> np.ndarray:
        """The pasted masks, (n, H, W) bool."""
        width = int(self.arrays['masks_shape'][1])
        return np.unpackbits(self.arrays['masks_packed'], axis=-1)[..., :width].astype(bool)

    def rows_of(self, name: str) -> np.ndarray:
        """Return which rows of a blob have samples."""
        shape = tuple(self.arrays[f'blob/{name}/shape'])
        return np.unique(np.unravel_index(self.arrays[f'blob/{name}/index'], shape)[0])

    def differences(self, name: str, values: np.ndarray, *, rows=None) -> np.ndarray:
        """Return the differences from a blob's samples in units of the blob's deviation.

        Args:
            name: Of the blob.
            values: The blob, channels last, or those ``rows`` of it.
            rows: Sorted indices into its first axis.
        """
        arrays = self.arrays
        shape = tuple(arrays[f'blob/{name}/shape'])
        index = np.array(np.unravel_index(arrays[f'blob/{name}/index'], shape))
        if rows is not None:
            index[0] = np.searchsorted(rows, index[0])
            shape = (len(rows), *shape[1:])
        assert values.shape == shape, name
        difference = np.abs(values[tuple(index)] - arrays[f'blob/{name}/value'])
        return difference / arrays[f'blob/{name}/stat'][1]


def match(case: MatterportCase, detections, *, min_iou: float, max_score_difference: float) -> np.ndarray:
    """Match detections one to one with a case's stable ones and return their indices, in its order.

    Asserts that every stable detection is found, with its class, score and box, and that there are no
    more others than the disturbed runs of Matterport itself had.
    """
    arrays = case.arrays
    iou = box_iou(arrays['rois'].astype(np.float32), detections.boxes, extent=0)
    same_class = arrays['class_ids'][:, None] == detections.labels[None] + 1
    close = np.abs(arrays['scores'][:, None] - detections.scores[None]) <= max_score_difference
    fits = np.where(same_class & close, iou, 0)
    partners, free = [], np.ones(len(detections), bool)
    for i in np.flatnonzero(arrays['stable']):
        j = int(np.argmax(fits[i] * free))
        assert fits[i, j] > min_iou and free[j], (
            f'class {arrays["class_ids"][i]}, score {arrays["scores"][i]:.4f}, box {arrays["rois"][i]}: '
            f'best IoU {fits[i, j]:.5f}')
        free[j] = False
        partners.append(j)
    others = int(arrays['unmatched_1e-5']) + int((~arrays['stable']).sum())
    assert free.sum() <= others, f'{free.sum()} detections that Matterport has not'
    return np.array(partners)
