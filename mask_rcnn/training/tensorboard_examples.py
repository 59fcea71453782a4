"""Evaluation images with their annotations and detections for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from chainer import training

from mask_rcnn.inference.resize import resize_detections
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.runtime.cache import cache_weights
from mask_rcnn.preprocessing.image_io import to_pixels
from mask_rcnn.training.tensorboard import TensorBoard
from mask_rcnn.visualization.pictures import resize_picture

#: Number of images.
N_EXAMPLES = 4

_SIDE, _MIN_WIDTH = 600, 180  # pixels: the longer side of a picture, and the width that a caption needs


@dataclass(frozen=True, eq=False)
class _ExamplePicture:
    """One evaluation image.

    Args:
        tag: Its name in TensorBoard.
        image: ``(3, H, W)`` float32, RGB.
        resized: ``(h, w, 3)`` uint8, RGB, the image in the size of the picture.
        annotated: ``(h, w, 3)`` uint8, RGB, the image with its annotations.
        n_objects: The number of annotated objects.
    """

    tag: str
    image: np.ndarray
    resized: np.ndarray
    annotated: np.ndarray
    n_objects: int


def choose_examples(n_images: int) -> list[int]:
    """Return the indices of the images that are shown, evenly spaced: neighbours in a dataset often look alike."""
    return np.unique(np.linspace(0, n_images - 1, min(N_EXAMPLES, n_images)).round().astype(int)).tolist()


class ExampleDetections(training.Extension):
    """Trainer extension: draws the annotations and the detections of the same few images side by side.

    Args:
        tensorboard: Writes the pictures.
        model: The model.
        dataset: The evaluation data, with ``class_names``.
        threshold: Detections with a score above it are drawn.
    """

    name = 'examples'  # type: ignore[assignment]  # Chainer declares None
    priority = 30

    def __init__(self, tensorboard: TensorBoard, model: MaskRCNN, dataset: Any, *, threshold: float = 0.5):
        self._tensorboard, self._model, self._dataset, self._threshold = tensorboard, model, dataset, threshold
        self._examples: list[_ExamplePicture] = []

    def initialize(self, trainer: training.Trainer) -> None:
        for number, index in enumerate(choose_examples(len(self._dataset)), start=1):
            self._examples.append(self._read(number, index))

    def __call__(self, trainer: training.Trainer) -> None:
        # Without the context, the model would keep derived weights and CUDA graphs until the next evaluation, in memory
        # of the GPU that the training needs.
        with cache_weights():
            for example in self._examples:
                self._tensorboard.add_image(example.tag, self._draw(example), trainer.updater.iteration)

    def _read(self, number: int, index: int) -> _ExamplePicture:
        # Imported late: most runs draw nothing.
        from mask_rcnn.visualization.contact_sheet import draw_tile_picture

        example = self._dataset[index]
        pixels = to_pixels(example.image)
        annotated = draw_tile_picture(pixels, example.annotations, self._dataset.class_names, side=_SIDE)
        resized = resize_picture(pixels, annotated.shape[:2])
        # Numbered: TensorBoard replaces the characters of many names by underscores.
        tag = f'examples/{number}_{Path(example.name).stem}'
        return _ExamplePicture(tag, example.image, resized, annotated, len(example.annotations))

    def _draw(self, example: _ExamplePicture) -> np.ndarray:
        """Return the annotations and the detections side by side, ``(H, W, 3)`` uint8."""
        from mask_rcnn.visualization.contact_sheet import Tile, compose_sheet

        (detections,) = self._model.detect([example.image])
        shown = detections.above(self._threshold)
        height, width = example.annotated.shape[:2]
        drawing = resize_detections(shown, (height, width)).draw(example.resized, contour=True)
        tiles = [
            Tile(example.annotated, 'annotations', counted(example.n_objects, 'object')),
            Tile(drawing, 'detections', f'{counted(len(shown), "object")}, score > {self._threshold:g}'),
        ]
        return compose_sheet(tiles, columns=2, side=max(height, width, _MIN_WIDTH))
