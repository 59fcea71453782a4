"""Numbers with nouns for texts."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``'1 box'`` or ``'2 boxes'``.

    Args:
        n: The number.
        noun: The singular.
        plural: The plural; ``None`` for the singular with an s.
    """
    return f'{n} {noun}' if n == 1 else f'{n} {plural or noun + "s"}'
