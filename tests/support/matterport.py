"""The outputs of Matterport's program in the package's conventions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import to_image_array
from mask_rcnn.weights import load_arrays
from mask_rcnn.weights.converters import matterport
from tests.support.golden import GoldenCase
from tests.support.python_files import import_file


def rebuild_h5(golden: Path, recipe: str, folder: Path) -> Path:
    """Write the ``.h5`` file of a recipe as Keras does; skip the test without h5py (Python 3.15)."""
    pytest.importorskip('h5py')
    module = import_file(golden / 'matterport_weights.py')
    path = folder / Path(recipe).with_suffix('.h5').name
    weights, meta = module.load(str(golden / 'matterport' / recipe))
    module.write_h5(weights, meta, str(path))
    return path


def load_h5(path: Path, settings: dict, *, gpu: int = -1):
    """Return the network of an ``.h5`` file on a GPU, or on the CPU if ``gpu`` is -1."""
    file = matterport.read(path, settings)
    assert not file.report.skipped and not file.report.warnings
    model = mask_rcnn.build(file.config)
    load_arrays(model, file.arrays, source=path)
    model.to_device(get_device(gpu))
    return model


class MatterportCase(GoldenCase):
    """An image and Matterport's instances; blobs are channels last."""

    program, size_name, offset = 'matterport', 'masks_shape', 0

    @property
    def boxes(self) -> np.ndarray:
        return self.arrays['rois'].astype(np.float32)

    @property
    def labels(self) -> np.ndarray:
        return self.arrays['class_ids'] - 1

    @property
    def image(self) -> np.ndarray:
        """The image as read from a file."""
        arrays = self.arrays
        source = arrays['image'] if 'image' in arrays else self.golden / 'photos' / self.settings['image']
        return to_image_array(source)

    @property
    def molded(self) -> np.ndarray:
        """``(H, W, 3)`` float32 network input, from the stored image after the resize."""
        arrays, settings = self.arrays, self.settings['matterport']
        top, left, bottom, right = arrays['window']
        molded = np.zeros((settings['IMAGE_MAX_DIM'],) * 2 + (3,), np.float32)
        molded[top:bottom, left:right] = arrays['molded_uint8' if 'molded_uint8' in arrays else 'image']
        return (molded - np.array(settings['MEAN_PIXEL'])).astype(np.float32)

    def in_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Return normalised boxes in pixels of the network's input."""
        return boxes * np.float32(self.settings['matterport']['IMAGE_MAX_DIM'] - 1)
