"""Reports: one HTML file that contains its pictures and opens without a network."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.visualization.figures import encode_figure, shrink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_SIDE = 1600  # pixels of a picture
_JPEG_QUALITY = 85
_NUMBER = re.compile(r'[+-]?\d+(\.\d+)?')
_FIGURE_QUALITY = 90  # of figures, whose thin lines and letters need more
_MAX_PNG_BYTES = 150_000  # figures that contain photos are larger, and a third of it as JPEG

# The policy forbids every request and every script, whatever texts the report contains.
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 0 auto;
  padding: 1rem 1.5rem 4rem; }}
h1, h2, h3 {{ line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; padding-top: 0.5rem; border-top: 1px solid #ccc; }}
nav ul {{ columns: 18rem; padding-left: 1.2rem; }}
a {{ color: #0060a0; }}
figure {{ margin: 1rem 0; }}
figure img {{ max-width: 100%; height: auto; }}
figcaption {{ color: #555; font-size: 0.9rem; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2rem 0.8rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th {{ border-bottom: 2px solid #999; }}
td.number, th.number {{ text-align: right; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


class Report:
    """An HTML document of headings, texts, tables and pictures.  All texts are escaped.

    Args:
        title: The title.
    """

    def __init__(self, title: str):
        self._title = title
        self._parts: list[str] = []
        self._sections: list[tuple[int, str]] = []

    def add_heading(self, text: str, level: int = 2) -> None:
        """Add a heading; those of level 2 are listed in the table of contents.

        Args:
            text: The heading.
            level: 2 or 3.
        """
        anchor = ''
        if level == 2:
            number = len(self._sections) + 1
            self._sections.append((number, text))
            anchor = f' id="section-{number}"'
        self._parts.append(f'<h{level}{anchor}>{html.escape(text)}</h{level}>')

    def add_text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f'<p>{html.escape(text)}</p>')

    def add_table(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add a table.

        Args:
            header: The titles of the columns.
            rows: The cells of each row.  Numbers are aligned to the right, also if they are texts; floats are rounded
                to four digits.
        """
        body = [list(row) for row in rows]
        numeric = [all(_is_number(row[i]) for row in body) and bool(body) for i in range(len(header))]
        lines = [_row('th', header, numeric), *(_row('td', row, numeric) for row in body)]
        self._parts.append('<div class="table"><table>\n' + '\n'.join(lines) + '\n</table></div>')

    def add_figure(self, picture: Figure | np.ndarray, caption: str) -> None:
        """Add a Matplotlib figure or a picture with a caption, which also describes it to screen readers.

        Args:
            picture: A figure, or ``(H, W, 3)`` uint8, RGB; it is reduced to at most 1600 pixels per side.
            caption: The caption.
        """
        kind, data = _encode(picture)
        source = f'data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}'
        text = html.escape(caption)
        self._parts.append(f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>')

    def to_html(self) -> str:
        """Return the document."""
        links = [f'<li><a href="#section-{number}">{html.escape(text)}</a></li>' for number, text in self._sections]
        contents = ['<nav><ul>', *links, '</ul></nav>'] if links else []
        return '\n'.join([_HEAD.format(title=html.escape(self._title)), *contents, *self._parts, '</body>\n</html>\n'])

    def write(self, path: str | os.PathLike) -> None:
        """Write the document.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written; an older file stays unchanged.
        """
        with open_for_writing(path) as file:
            file.write(self.to_html().encode('utf-8', 'backslashreplace'))


def _encode(picture: Figure | np.ndarray) -> tuple[str, bytes]:
    """Return the type and the contents of an image file."""
    if not isinstance(picture, np.ndarray):
        data = encode_figure(picture)
        if len(data) <= _MAX_PNG_BYTES:
            return 'png', data
        pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
        return 'jpeg', _encode_jpeg(pixels, _FIGURE_QUALITY)
    return 'jpeg', _encode_jpeg(shrink(picture, _MAX_SIDE)[:, :, ::-1], _JPEG_QUALITY)


def _encode_jpeg(bgr: np.ndarray, quality: int) -> bytes:
    _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _row(tag: str, cells: Sequence[Any], numeric: Sequence[bool]) -> str:
    texts = [html.escape(_format_cell(cell)) for cell in cells]
    classes = [' class="number"' if is_numeric else '' for is_numeric in numeric]
    return '<tr>' + ''.join(f'<{tag}{c}>{text}</{tag}>' for c, text in zip(classes, texts, strict=True)) + '</tr>'


def _format_cell(cell: Any) -> str:
    return f'{cell:.4g}' if isinstance(cell, (float, np.floating)) else str(cell)
