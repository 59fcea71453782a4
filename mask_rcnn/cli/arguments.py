"""Types of command line arguments, for the ``type`` of ``add_argument``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

#: The type of the method ``add_argument`` of a parser or an argument group.
AddArgument = Callable[..., argparse.Action]

_Number = TypeVar('_Number', int, float)


def non_negative_int(text: str) -> int:
    """Parse an integer that is at least 0."""
    return _parse(text, int, lambda value: value >= 0, 'a non-negative integer')


def positive_int(text: str) -> int:
    """Parse an integer that is at least 1."""
    return _parse(text, int, lambda value: value >= 1, 'a positive integer')


def non_negative_float(text: str) -> float:
    """Parse a finite number that is at least 0."""
    return _parse(text, float, lambda value: 0 <= value < math.inf, 'a non-negative number')


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _parse(text, float, lambda value: 0 < value < math.inf, 'a positive number')


def score(text: str) -> float:
    """Parse a score of a detection."""
    return _parse(text, float, lambda value: 0 <= value <= 1, 'a number from 0 to 1')


def gpu_number(text: str) -> int:
    """Parse the number of a GPU; -1 is the CPU."""
    return _parse(text, int, lambda value: value >= -1, 'the number of a GPU or -1')


def _parse(text: str, convert: Callable[[str], _Number], fits: Callable[[_Number], bool], expected: str) -> _Number:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f'{text!r} is not {expected}')
    return value
