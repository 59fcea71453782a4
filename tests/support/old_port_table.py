"""The table of the conventions in which the old Chainer port and Detectron differ."""

import dataclasses
import re

from mask_rcnn.config import DENA, DETECTRON, PRESETS, Config, Dialect


def named_fields(text: str) -> set[str]:
    """Return the fields of ``Dialect`` and ``Config`` that the only such table of a text names."""
    (rows,) = re.findall(r'^\|[^\n]*`Dialect`[^\n]*`Config`[^\n]*\|\n((?:\|[^\n]*\n)+)', text, re.MULTILINE)
    return {field for row in rows.splitlines() for field in re.findall(r'`([\w.]+)`', row.split('|')[4])}


def differing_fields() -> set[str]:
    """Return the names of the fields of both configurations, and of their dialects' groups, with different values."""
    first = PRESETS['resnet50'].in_dialect(DETECTRON)
    second = first.in_dialect(DENA)
    names = {field.name for field in dataclasses.fields(Config)} - {'dialect'}
    found = {name for name in names if getattr(first, name) != getattr(second, name)}
    for group in {field.name for field in dataclasses.fields(Dialect)} - {'name'}:
        a, b = getattr(first.dialect, group), getattr(second.dialect, group)
        found |= {f'{group}.{f.name}' for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name)}
    return found
