"""Console output of the commands: lines, warnings and errors that do not break a progress bar."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm


def print_line(line: str, *, file: TextIO | None = None) -> None:
    """Write a line and flush it.

    Args:
        line: The text without the newline.
        file: The stream; ``None`` for the standard output.
    """
    file = file or sys.stdout
    tqdm.write(line, file=file)
    file.flush()


def print_warning(message: str) -> None:
    """Write ``warning: message`` to the standard error."""
    print_line(f'warning: {message}', file=sys.stderr)


def print_error(message: str) -> None:
    """Write ``error: message`` to the standard error."""
    print_line(f'error: {message}', file=sys.stderr)


def progress_bar(total: int, *, unit: str) -> tqdm:
    """Return a progress bar on the standard error, a context manager; it is disabled for a single step."""
    return tqdm(total=total, unit=unit, disable=total < 2)
