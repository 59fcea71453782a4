"""Class names as texts of Matplotlib."""

from __future__ import annotations

_MAX_LENGTH = 24  # letters


def plot_name(name: str) -> str:
    """Return a name as one line of limited length, in which Matplotlib reads no formula."""
    line = ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in name).split())
    line = line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 1] + '…'
    return line.replace('$', r'\$')
