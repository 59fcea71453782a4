"""Plain values of annotation files: ids, numbers and flags in the forms that labelling tools write."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Integers as text, without leading zeros: ``'17'`` and ``'17.0'``, but not ``'017'``.
_INTEGER_TEXT = re.compile(r'(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?')
_DIGITS = re.compile(r'([0-9]+)')
_FLAGS = {0: False, 1: True, '0': False, '1': True, 'false': False, 'true': True, None: False}
#: Larger numbers overflow in float32.
_MAX_NUMBER = 1e30
_NUMBER_TYPES = {int, float}


class AnnotationError(ValueError):
    """A value of an annotation file cannot be used; the message is the reason on one line."""


def read_id(value: Any, name: str) -> int | str:
    """Return an id as an integer if it is one in any form (``3``, ``3.0``, ``'3'``), otherwise as text.

    Args:
        value: The value in the file.
        name: The name of the value in messages.

    Raises:
        AnnotationError: The value is neither an integer nor a text.
    """
    if isinstance(value, str) and value:
        match = _INTEGER_TEXT.fullmatch(value)
        return int(match[1]) if match else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise AnnotationError(f'{name} is {shorten(value)}, neither an integer nor a text')


def id_order(value: int | str) -> tuple:
    """Return the sorting key of an id: integers first; texts in natural order, ``'image 9'`` before ``'image 10'``."""
    if isinstance(value, int):
        return 0, value
    parts = _DIGITS.split(value)  # text, digits, text, ...
    digits = [part.lstrip('0') for part in parts[1::2]]
    return 1, parts[0], tuple((len(d), d, text) for d, text in zip(digits, parts[2::2], strict=True))


def read_number(value: Any, name: str) -> float:
    """Return a finite number, which may be written as text.

    Raises:
        AnnotationError: The value is not a finite number that fits into float32.
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if abs(number) < _MAX_NUMBER:
            return number
    raise AnnotationError(f'{name} is {shorten(value)}, not a finite number')


def read_numbers(values: Sequence, name: str) -> list[float]:
    """Return finite numbers.

    Raises:
        AnnotationError: A value is not a finite number that fits into float32.
    """
    if set(map(type, values)) <= _NUMBER_TYPES:  # the usual case, 20 times faster
        try:
            numbers = np.array(values, np.float64)
        except OverflowError:
            pass
        else:
            if (np.abs(numbers) < _MAX_NUMBER).all():
                return numbers.tolist()
    return [read_number(value, name) for value in values]


def read_count(value: Any, name: str) -> int:
    """Return an integer that is at least 0.

    Raises:
        AnnotationError: The value is something else.
    """
    number = read_number(value, name)
    if number < 0 or not number.is_integer():
        raise AnnotationError(f'{name} is {shorten(value)}, not an integer of at least 0')
    return int(number)


def read_flag(value: Any, name: str) -> bool:
    """Return a flag; ``null`` is False.

    Raises:
        AnnotationError: The value is none of ``0``, ``1``, ``false``, ``true`` and ``null``.
    """
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, (list, dict)) or key not in _FLAGS:
        raise AnnotationError(f'{name} is {shorten(value)}, neither 0 nor 1')
    return _FLAGS[key]


def shorten(value: Any) -> str:
    """Return a value as text of one short line."""
    return reprlib.repr(value)
