"""Results in COCO's format: one JSON list for all images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.media.pending_file import PendingFile
from mask_rcnn.media.results import Origin, ResultSink, list_ids


class COCOResults(ResultSink):
    """A JSON list of the instances of all images and frames, which is written to the disk as it grows.

    The file appears under its name when it is closed; :mod:`json` would write the same bytes for the whole list.

    Args:
        path: The file; ``/dev/stdout`` for the standard output.
        image_id: Returns the id of an image or a frame in the results.
    """

    def __init__(self, path: str | os.PathLike, image_id: Callable[[Origin], int | str]):
        self._file = PendingFile(path)
        self._image_id = image_id
        self._separator = b'['

    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> bytes:
        """Return the instances of an image or a frame.

        ``track_id``, a field that COCO's tools ignore, is the id of a tracked object.
        """
        results = detections.to_coco(self._image_id(origin))
        for result, track in zip(results, list_ids(detections, ids), strict=True):
            if track is not None:
                result['track_id'] = track
        return json.dumps(results).encode('ascii')[1:-1]

    def write(self, encoded: bytes) -> None:
        """Append instances."""
        if encoded:
            self._file.write(self._separator + encoded)
            self._separator = b', '

    def close(self) -> None:
        """Complete the file: without instances, it is an empty list."""
        self._file.write(b'[]' if self._separator == b'[' else b']')
        self._file.complete()

    def abort(self) -> None:
        """Remove what was written; an older file of the name remains."""
        self._file.abort()
