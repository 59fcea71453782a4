"""Masks as PNG files: a label image for each image or frame, or a file for each instance."""

from __future__ import annotations

import abc
import os
import re
from pathlib import Path

import cv2
import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.media.results import Origin, ResultSink, list_ids

_MAX_UINT8, _MAX_UINT16 = 2**8 - 1, 2**16 - 1
_MAX_CLASS_LENGTH = 40  # characters of a class name in the name of a file


class _MaskFiles(ResultSink):
    """PNG files in a folder.

    Args:
        folder: The folder, which exists.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)

    @abc.abstractmethod
    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> list[tuple[Path, bytes]]:
        """Return the files of an image or a frame and their contents."""

    def write(self, encoded: list[tuple[Path, bytes]]) -> None:
        """Write the files."""
        for path, content in encoded:
            with open_for_writing(path) as file:
                file.write(content)

    def close(self) -> None:
        """Do nothing: the files are complete."""


class LabelImages(_MaskFiles):
    """A label image ``STEM.png`` for each image or frame: 0 for the background, otherwise the number of the instance.

    The numbers are 1, 2, 3, ... in the order of the detections, or the ids of tracked objects, which are the same in
    all frames.  Where masks overlap, the instance with the highest score is on top.  The pixels have 8 bits if there
    are at most 255 instances; with ids or more instances, they have 16 bits.

    Args:
        folder: The folder, which exists.
    """

    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> list[tuple[Path, bytes]]:
        """Return the file and its content.

        Raises:
            ValueError: The detections have no masks, or a number exceeds 65535.
        """
        return [(self._folder / f'{origin.stem}.png', _encode_png(make_label_image(detections, ids)))]


class InstanceMasks(_MaskFiles):
    """A file for each instance, ``STEM_001_person.png``: 255 for the pixels of its mask, 0 for the others.

    The numbers are those of :class:`LabelImages`.  Characters of class names that are not letters, digits, ``-`` or
    ``_`` become ``_``.

    Args:
        folder: The folder, which exists.
    """

    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> list[tuple[Path, bytes]]:
        """Return the files and their contents.

        Raises:
            ValueError: The detections have no masks.
        """
        _check_masks(detections)
        numbers = _numbers(detections, ids)
        return [
            (self._folder / f'{origin.stem}_{number:03d}_{safe_name(name)}.png', _encode_png(mask * np.uint8(255)))
            for number, name, mask in zip(numbers, detections.names, detections.iter_masks(), strict=True)
        ]


def make_label_image(detections: Detections, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the label image of detections, ``(H, W)`` uint8 or uint16; see :class:`LabelImages`.

    Args:
        detections: The detections.
        ids: ``(R,)`` positive integers, the numbers of the instances; by default, they are 1 to ``R``.

    Raises:
        ValueError: The detections have no masks, or a number exceeds 65535.
    """
    _check_masks(detections)
    numbers = np.array(_numbers(detections, ids), np.int64)
    if numbers.max(initial=0) > _MAX_UINT16:
        raise ValueError(
            f'the last number of a label image is {_MAX_UINT16}, below that of an instance: {numbers.max()}'
        )
    labels = np.zeros(detections.size, np.uint8 if ids is None and len(numbers) <= _MAX_UINT8 else np.uint16)
    upwards = np.lexsort((-np.arange(len(numbers)), detections.scores))  # of equal scores, the first one is on top
    for number, mask in zip(numbers[upwards], detections[upwards].iter_masks(), strict=True):
        np.putmask(labels, mask, number)
    return labels


def safe_name(name: str) -> str:
    """Return a class name as a part of the names of files on all systems."""
    return re.sub(r'[^\w-]', '_', name)[:_MAX_CLASS_LENGTH]


def _numbers(detections: Detections, ids: np.ndarray | None) -> list[int]:
    return [i if track is None else track for i, track in enumerate(list_ids(detections, ids), 1)]


def _check_masks(detections: Detections) -> None:
    if not detections.has_masks:
        raise ValueError('these detections have no masks')


def _encode_png(pixels: np.ndarray) -> bytes:
    return cv2.imencode('.png', pixels)[1].tobytes()
