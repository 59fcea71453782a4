"""Draw the packages of mask_rcnn and their floors: the figure of docs/architecture.md.

python scripts/draw_architecture.py docs/architecture.svg

``tests/test_architecture.py`` checks the floors and that the figure is up to date.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

#: Subpackages by floor, top floor first, with their purposes.  A module imports only from its own subpackage and from
#: lower floors.
FLOORS: tuple[dict[str, str], ...] = (
    {'cli': 'the command mask-rcnn and its subcommands'},
    {
        'api': 'training in Python: train()',
        'inspect': 'every step, as tables and pictures',
        'serving': 'the HTTP server and its page',
    },
    {
        'training': 'train chain, optimizer, trainer, snapshots',
        'evaluation': "COCO's metrics and the analysis of errors",
        'media': 'images, videos, cameras: sources and sinks',
        'onnx_export': 'a network as one graph, from image to masks',
    },
    {
        'targets': 'training targets of anchors, RoIs, masks, keypoints',
        'models': 'backbones, FPN, RPN, heads; build() and load()',
    },
    {'inference': 'batches of images through a network; detections, tracking, saving'},
    {'visualization': 'drawing of detections, targets, features and reports'},
    {'datasets': 'COCO, generated scenes, importers, augmentation, training examples'},
    {
        'preprocessing': 'decoding of image files; the network input',
        'weights': 'formats of weight files: readers, converters, exporters',
    },
    {
        'config': 'Config, Dialect, presets',
        'io': 'atomic files, console, errors',
        'ops': 'array operations, CPU and GPU',
        'compat': 'patches for Chainer',
    },
)

_WIDTH, _MARGIN, _ARROW_WIDTH, _GAP = 960, 24, 88, 12  # pixels
_ROOF_HEIGHT, _TITLE_SIZE, _TEXT_SIZE, _LINE_HEIGHT = 74, 16, 12, 16
_CHARACTER_WIDTH = 6.2  # an upper limit of the mean width of the text's characters, in pixels
_WALL, _LINE, _BOX, _TITLE, _TEXT = '#f4f6fb', '#5b6b8c', '#dce6f7', '#17365d', '#33415c'  # opaque on any background


def main(argv: list[str] | None = None) -> int:
    """Draw the figure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('output', type=Path, help='SVG file to write')
    args = parser.parse_args(argv)
    args.output.write_text(draw(), encoding='utf-8', newline='\n')
    return 0


def draw() -> str:
    """Return the figure as SVG text."""
    lines, top = list(_draw_roof()), _MARGIN + _ROOF_HEIGHT
    for floor in FLOORS:
        floor_lines, height = _draw_floor(floor, top)
        lines += floor_lines
        top += height + _GAP
    height = top - _GAP + _MARGIN
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img">',
        '<title>The packages of mask_rcnn in floors</title>',
        '<desc>A module imports only from its own package and from lower floors.</desc>',
        f'<rect width="{_WIDTH}" height="{height}" rx="12" fill="{_WALL}"/>',
    ]
    return '\n'.join([*head, *lines, *_draw_arrow(_MARGIN + _ROOF_HEIGHT, top - _GAP), '</svg>', ''])


def _draw_roof() -> Iterator[str]:
    """Yield the lines of the roof: what a user imports."""
    left, right, bottom = _MARGIN, _WIDTH - _MARGIN - _ARROW_WIDTH, _MARGIN + _ROOF_HEIGHT - _GAP
    middle = (left + right) // 2
    yield (f'<path d="M {left} {bottom} L {left + 90} {_MARGIN} H {right - 90} L {right} {bottom} Z" fill="{_TITLE}"/>')
    yield _text(middle, _MARGIN + 28, 'import mask_rcnn', _TITLE_SIZE, '#ffffff', bold=True)
    names = 'build, load, save, train, Config, Dialect, Detections ...: imported at their first use'
    yield _text(middle, _MARGIN + 48, names, _TEXT_SIZE, '#ffffff')


def _draw_floor(packages: dict[str, str], top: int) -> tuple[list[str], int]:
    """Return the lines of one floor, and its height."""
    room = _WIDTH - 2 * _MARGIN - _ARROW_WIDTH
    width = (room - _GAP * (len(packages) - 1)) // len(packages)
    purposes = [textwrap.wrap(purpose, int((width - 16) / _CHARACTER_WIDTH)) for purpose in packages.values()]
    height, lines = 42 + _LINE_HEIGHT * max(map(len, purposes)), []
    for number, (name, purpose) in enumerate(zip(packages, purposes, strict=True)):
        left = _MARGIN + number * (width + _GAP)
        middle = left + width // 2
        lines += [
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{_BOX}" stroke="{_LINE}"/>',
            _text(middle, top + 26, name, _TITLE_SIZE, _TITLE, bold=True),
            *(
                _text(middle, top + 45 + _LINE_HEIGHT * row, line, _TEXT_SIZE, _TEXT)
                for row, line in enumerate(purpose)
            ),
        ]
    return lines, height


def _draw_arrow(top: int, bottom: int) -> Iterator[str]:
    """Yield the lines of the arrow beside the floors: the direction of imports."""
    x, middle = _WIDTH - _MARGIN - _ARROW_WIDTH // 2, (top + bottom) // 2
    yield f'<path d="M {x} {top} V {bottom - 12}" stroke="{_LINE}" stroke-width="3" fill="none"/>'
    yield f'<path d="M {x - 8} {bottom - 14} H {x + 8} L {x} {bottom} Z" fill="{_LINE}"/>'
    text = _text(x + 14, middle, 'may import from lower floors only', _TEXT_SIZE + 1, _TEXT)
    yield text.replace('<text ', f'<text transform="rotate(90 {x + 14} {middle})" ')


def _text(x: int, y: int, text: str, size: int, colour: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ''
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="middle"{weight}>{escape(text)}</text>'
    )


if __name__ == '__main__':
    sys.exit(main())
