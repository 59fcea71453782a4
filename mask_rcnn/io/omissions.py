"""The summary of what was left out of a dataset or a folder, or is doubtful in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from mask_rcnn.io.console import escape
from mask_rcnn.io.wording import counted

#: Number of names in a summary of one reason.
_N_NAMES = 3


class Omissions:
    """The items that were left out or are doubtful, by reason, in the order in which they were added.

    ``str()`` is one printable line: ``left out 4 objects: 3 without area (annotation 7, annotation 9, annotation 12),
    1 outside its image (annotation 20)``.

    Args:
        noun: The plural noun of the items, such as ``'objects'``.
        action: The verb of the summary, in the past tense.
    """

    def __init__(self, noun: str, *, action: str = 'left out'):
        self.noun, self.action = noun, action
        self._names: dict[str, list[str]] = {}
        self._singulars: dict[str, str] = {}

    def add(self, reason: str, name: str | PurePath, *, one: str | None = None) -> None:
        """Add an item.

        Args:
            reason: The end of a phrase that begins with a number: ``'without area'`` or ``'shapes without area'``.
            name: The name of the item.
            one: The end of the phrase that begins with 1, such as ``'shape without area'``; ``None`` if it is the same.
        """
        self._names.setdefault(reason, []).append(str(name))
        if one is not None:
            self._singulars[reason] = one

    def extend(self, other: Omissions) -> None:
        """Add all items of another summary."""
        for reason, names in other._names.items():
            self._names.setdefault(reason, []).extend(names)
        self._singulars.update(other._singulars)

    @property
    def counts(self) -> dict[str, int]:
        """The number of items by reason."""
        return {reason: len(names) for reason, names in self._names.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        reasons = (
            f'{counted(len(names), self._singulars.get(reason, reason), reason)} ({_shorten(names)})'
            for reason, names in self._names.items()
        )
        return escape(f'{self.action} {counted(len(self), self.noun.removesuffix("s"))}: {", ".join(reasons)}')


def _shorten(names: Iterable[str]) -> str:
    """Return the first names as text."""
    names = list(names)
    return ', '.join(names[:_N_NAMES]) + (', ...' if len(names) > _N_NAMES else '')
