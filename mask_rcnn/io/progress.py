"""Progress of long loops in the library, which the commands show as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable

#: Shows the progress of a loop: called with items, their number and the singular of their name, it yields the items.
Progress = Callable[[Iterable, int, str], Iterable]


def no_progress(items: Iterable, n_items: int, unit: str) -> Iterable:
    """Return the items: the :data:`Progress` that shows nothing."""
    return items
