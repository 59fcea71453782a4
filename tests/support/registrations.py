"""The tables that ``register_backbone``, ``register_dialect`` and ``register_format`` change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mask_rcnn.config import DIALECTS, EXTRACTORS, PRESETS
from mask_rcnn.models.backbones import registry
from mask_rcnn.weights import formats

_TABLES: tuple[Any, ...] = (
    DIALECTS,
    EXTRACTORS,
    PRESETS,
    registry._registered,
    formats._registered,
    formats.BY_NAME,
)


@contextlib.contextmanager
def registrations_removed() -> Iterator[None]:
    """Remove what the block registers from the tables at its end."""
    before = [table.copy() for table in _TABLES]
    try:
        yield
    finally:
        for table, content in zip(_TABLES, before, strict=True):
            table.clear()
            (table.update if isinstance(table, dict) else table.extend)(content)
