"""The choice of one part of a source that has several, such as the training part of a YOLO dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError


def choose_part(parts: Iterable[str], part: str | None, source: Path) -> str:
    """Return the part to import.

    Args:
        parts: The names of the parts that the source has.
        part: The part that the user chose.
        source: The source, for messages.

    Raises:
        AnnotationFileError: The source has several parts and none was chosen, or the chosen one does not exist.
    """
    names = list(parts)
    if part is None and len(names) == 1:
        return names[0]
    if part is None:
        raise AnnotationFileError(source, f'has the parts {", ".join(names)}; choose one of them (--part)')
    if part not in names:
        raise AnnotationFileError(source, f'has no part {part!r}, only {", ".join(names) or "one"}')
    return part


def refuse_part(part: str | None, source: Path) -> None:
    """Refuse a chosen part of a source that has no parts.

    Raises:
        AnnotationFileError: A part was chosen.
    """
    if part is not None:
        raise AnnotationFileError(source, f'has no parts, so --part {part} does not apply to it')
