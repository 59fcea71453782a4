"""The classes of label images in the format of Pascal VOC: names, values and colours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.source_files import read_lines
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.label_image import LabelImage

#: Names of the classes 1 to 20 (development kit of VOC 2012, section 2).
_VOC_NAMES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog'),
    *('horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
#: The value of pixels without annotation: borders of objects.
VOID = 255
_BACKGROUND_NAMES, _IGNORED_NAMES = ('background', '_background_'), ('__ignore__', 'ignored')


def voc_color(index: int) -> int:
    """Return the colour of a value in VOC's palette as ``R << 16 | G << 8 | B``.

    The bits of the value are dealt in turn to red, green and blue, the lowest ones to the highest bits of the colours.
    """
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red << 16 | green << 8 | blue


@dataclass(frozen=True)
class VOCClasses:
    """The classes of a dataset.

    Args:
        by_index: Value -> name of the class, ``''`` for background and void.
        by_color: ``R << 16 | G << 8 | B`` -> the same.
        has_colors: Whether a file of the dataset declares the colours, so that they decide for palettes also.
        source: The file that declares the classes, or ``None`` for those of Pascal VOC.
    """

    by_index: dict[int, str]
    by_color: dict[int, str]
    has_colors: bool = False
    source: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes without background and void."""
        return tuple(dict.fromkeys(name for name in self.by_index.values() if name))

    def find(self, image: LabelImage, value: int) -> str | None:
        """Return the name of the class of a pixel, ``''`` for background and void, ``None`` if it is unknown."""
        if image.is_color:
            return self.by_color.get(value)
        if self.has_colors and image.palette is not None and value < len(image.palette):
            red, green, blue = image.palette[value].tolist()
            name = self.by_color.get(red << 16 | green << 8 | blue)
            if name is not None:
                return name
        return self.by_index.get(value)


def read_voc_classes(root: Path) -> VOCClasses:
    """Return the classes that ``labelmap.txt`` (CVAT) or ``class_names.txt`` (labelme) declares, or those of VOC.

    Raises:
        AnnotationFileError: The file is broken.
    """
    label_map, class_names = root / 'labelmap.txt', root / 'class_names.txt'
    if os.path.lexists(label_map):
        return _read_label_map(label_map)
    if os.path.lexists(class_names):
        names = [line for _, line in read_lines(class_names) if line not in _IGNORED_NAMES]
        return _number(names, class_names)
    return _number(list(_VOC_NAMES), None)


def _number(names: list[str], source: Path | None) -> VOCClasses:
    """Return classes whose values are their positions in a list, after the background."""
    if not names or names[0] not in _BACKGROUND_NAMES:
        names = ['background', *names]
    if len(names) > VOID:
        raise AnnotationFileError(
            source or '', f'has {counted(len(names), "name")}; at most {VOID - 1} classes have values'
        )
    by_index = {index: '' if index == 0 else name for index, name in enumerate(names)} | {VOID: ''}
    return VOCClasses(by_index, {voc_color(index): name for index, name in by_index.items()}, source=source)


def _read_label_map(path: Path) -> VOCClasses:
    """Read the lines ``name:R,G,B:parts:actions``; a missing colour is that of the line's position in VOC's palette."""
    by_index: dict[int, str] = {}
    by_color = {0: '', voc_color(VOID): ''}
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith('#')]
    for index, (number, line) in enumerate(lines):
        name, color, *_ = [*(field.strip() for field in line.split(':')), '']
        if not name:
            raise AnnotationFileError(path, f'line {number} is {shorten(line)}, not name:R,G,B:parts:actions')
        value = _read_color(path, number, color) if color else voc_color(index)
        declared = '' if name in _BACKGROUND_NAMES + _IGNORED_NAMES or value == 0 else name
        if declared and by_color.get(value):
            raise AnnotationFileError(path, f'line {number}: {name} has the same colour as {by_color[value]}')
        by_index[index] = by_color[value] = declared
    by_index.setdefault(VOID, '')
    return VOCClasses(by_index, by_color, True, path)


def _read_color(path: Path, number: int, text: str) -> int:
    fields = [field.strip() for field in text.split(',')]
    if len(fields) != 3 or not all(field.isascii() and field.isdigit() and int(field[:4]) <= 255 for field in fields):
        raise AnnotationFileError(path, f'line {number}: the colour is {shorten(text)}, not R,G,B from 0 to 255')
    red, green, blue = map(int, fields)
    return red << 16 | green << 8 | blue
