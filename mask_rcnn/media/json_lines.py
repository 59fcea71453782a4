"""Results as JSON lines: one JSON object for each image or frame."""

from __future__ import annotations

import json
import os

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.media.record_file import RecordFile
from mask_rcnn.media.results import Origin, ResultSink, describe_origin, list_ids


class JSONLines(ResultSink):
    """A file with a line for each image or frame, which grows and can be read at any time.

    A line is ``{"image": ..., "height": ..., "width": ..., "detections": [...]}``, or for a frame ``{"video": ...,
    "frame": ..., "time": ..., ...}``.  Each of the detections has the fields of COCO's results
    (:meth:`mask_rcnn.inference.detections.Detections.to_coco`) without ``image_id``, the name of its ``class``, and
    its ``track`` in a video whose objects are tracked.  The lines are ASCII.

    Args:
        path: The file; ``/dev/stdout`` for the standard output.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = RecordFile(path)

    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> bytes:
        """Return a line."""
        instances = []
        for result, name, track in zip(detections.to_coco(0), detections.names, list_ids(detections, ids), strict=True):
            del result['image_id']
            instances.append({'class': name, **({} if track is None else {'track': track}), **result})
        height, width = detections.size
        line = {**describe_origin(origin), 'height': height, 'width': width, 'detections': instances}
        return json.dumps(line).encode('ascii') + b'\n'

    def write(self, encoded: bytes) -> None:
        """Append a line."""
        self._file.write(encoded)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
