"""The unfinished files and empty folders of this process, for a program that removes them if this one is killed.

Without such a program (:mod:`mask_rcnn.io.cleaner`), nothing is reported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

#: Called with ``'+'`` and a path that is to be removed, and with ``'-'`` and a path that is not any more.
_report: Callable[[str, str], object] | None = None


def set_reporter(report: Callable[[str, str], object] | None) -> None:
    """Let a function receive the changes: a sign, ``'+'`` or ``'-'``, and the absolute path."""
    global _report
    _report = report


@contextlib.contextmanager
def unfinished(path: str | os.PathLike) -> Iterator[None]:
    """Let a file, or an empty folder, be removed if this process is killed within the context."""
    report = _report
    if report is None:
        yield
        return
    absolute = os.path.abspath(path)
    report('+', absolute)
    try:
        yield
    finally:
        report('-', absolute)
