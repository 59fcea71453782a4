"""Numbers with nouns for texts."""

from __future__ import annotations


def counted(n: float, noun: str, plural: str | None = None, *, spec: str = '') -> str:
    """Return a number with its noun, such as ``'1 box'`` or ``'2 boxes'``.

    Args:
        n: The number.
        noun: The singular; with its verb, if the number is the subject: ``'box is'``.
        plural: The plural, such as ``'boxes are'``; ``None`` for the singular with an s.
        spec: The format of the number, such as ``','`` for ``'2,000 boxes'``.
    """
    number = f'{n:{spec}}'
    return f'{number} {noun if number.strip() == "1" else plural or noun + "s"}'
