"""Results of detection, image by image and frame by frame: their origin and the interface of the files for them."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.wording import counted


@dataclass(frozen=True)
class Origin:
    """The image or the frame of a video in which instances were detected.

    Args:
        name: The image or the video, as the user named it.
        stem: The first part of the names of its files, different for each image and each frame.
        frame: The number of the frame in its video; ``None`` for an image.
        time: The time of the frame in its video in seconds; ``None`` for an image.
    """

    name: str
    stem: str
    frame: int | None = None
    time: float | None = None


class ResultSink(abc.ABC):
    """A file, or a folder of files, that receives the results of one image or frame after the other.

    The work is divided in two: :meth:`encode` can be called in any thread or process, and its results are passed to
    :meth:`write` in the order of the images, in one thread.  The memory does not grow with the number of images.
    """

    @abc.abstractmethod
    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> Any:
        """Return the results of an image or a frame in the format of the file, for :meth:`write`.

        Args:
            origin: The image or frame.
            detections: The detections.
            ids: ``(R,)`` integers, the numbers of the objects in the video.

        Raises:
            ValueError: The detections cannot be written in this format, or there is not one id for each.
        """

    @abc.abstractmethod
    def write(self, encoded: Any) -> None:
        """Write the results of an image or a frame that :meth:`encode` has returned.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """

    def add(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> None:
        """Encode and write the results of an image or a frame; see the two methods."""
        self.write(self.encode(origin, detections, ids))

    @abc.abstractmethod
    def close(self) -> None:
        """Complete the file with the results that were written, also after an interrupt.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """


def describe_origin(origin: Origin) -> dict[str, Any]:
    """Return an origin as plain data: ``image``, or ``video``, ``frame`` and ``time``."""
    if origin.frame is None:
        return {'image': origin.name}
    time = {} if origin.time is None else {'time': round(origin.time, 6)}
    return {'video': origin.name, 'frame': origin.frame, **time}


def list_ids(detections: Detections, ids: np.ndarray | None) -> list[int | None]:
    """Return the id of each instance; ``None`` for each instance without ids.

    Raises:
        ValueError: There is not one id for each instance.
    """
    if ids is None:
        return [None] * len(detections)
    if len(ids) != len(detections):
        raise ValueError(f'{counted(len(ids), "id is", "ids are")} given for {counted(len(detections), "instance")}')
    return [int(track_id) for track_id in ids]
