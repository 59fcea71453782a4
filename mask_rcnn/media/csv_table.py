"""Results as a table in a CSV file: one row for each instance."""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata

import cv2
import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.console import escape
from mask_rcnn.media.record_file import RecordFile
from mask_rcnn.media.results import Origin, ResultSink, list_ids
from mask_rcnn.ops.boxes.boxes import outer_corners

#: The columns of the table.
COLUMNS = ('image', 'frame', 'time', 'class', 'score', 'x', 'y', 'width', 'height', 'area', 'track')

#: First characters of texts that spreadsheets compute as formulas.
_FORMULA_SIGNS = ('=', '+', '-', '@')


class CSVTable(ResultSink):
    """A table that grows and can be read at any time; its columns are :data:`COLUMNS`.

    ``image`` is the image or the video; ``frame`` and ``time`` (in seconds) are empty for images, and ``track`` is
    empty unless objects are tracked.  ``x`` and ``y`` are the upper left corner of the box, and ``area`` is the number
    of pixels of the mask, or the area of the box without masks, in pixels.  Images without instances have no row.

    The file is UTF-8 with a byte order mark, by which spreadsheets recognise it.  An apostrophe precedes texts that
    spreadsheets would take for formulas.

    Args:
        path: The file; ``/dev/stdout`` for the standard output.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = RecordFile(path, codecs.BOM_UTF8 + _encode([COLUMNS]))

    def encode(self, origin: Origin, detections: Detections, ids: np.ndarray | None = None) -> bytes:
        """Return the rows of an image or a frame."""
        boxes = outer_corners(detections.boxes.astype(np.float64), detections.dialect.boxes.offset)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = [str(cv2.countNonZero(mask.view(np.uint8))) for mask in detections.iter_masks()]
        if not detections.has_masks:
            areas = [f'{area:.2f}' for area in np.prod(sides, axis=1)]
        time = '' if origin.time is None else f'{origin.time:.3f}'
        place = (_as_text(origin.name), '' if origin.frame is None else origin.frame, time)
        rows = [
            (*place, _as_text(name), f'{score:.4f}', *(f'{value:.2f}' for value in (x, y, width, height)), area, track)
            for name, score, (y, x), (height, width), area, track in zip(
                detections.names, detections.scores, boxes[:, :2], sides, areas, list_ids(detections, ids), strict=True
            )
        ]
        return _encode(rows)

    def write(self, encoded: bytes) -> None:
        """Append rows."""
        self._file.write(encoded)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _as_text(text: str) -> str:
    """Return a text in one line that a spreadsheet does not compute."""
    line = escape(text)
    first = unicodedata.normalize('NFKC', line.lstrip()[:1])  # Chinese and Japanese texts have signs of full width
    return f"'{line}" if first in _FORMULA_SIGNS else line


def _encode(rows: list[tuple]) -> bytes:
    table = io.StringIO()
    csv.writer(table, lineterminator='\n').writerows(rows)
    return table.getvalue().encode()
