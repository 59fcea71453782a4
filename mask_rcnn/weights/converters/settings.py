"""Checks of the values in other programs' settings, and the warning about unsupported ones."""

from __future__ import annotations

import sys
from typing import Any

from mask_rcnn.weights.errors import format_value


def is_integer(value: Any) -> bool:
    """Return whether a value is a non-negative integer of at most 31 bits (a boolean is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def is_number(value: Any) -> bool:
    """Return whether a value is a float, or an integer that fits into a float (a boolean is neither)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def not_supported(name: str, value: Any, used: Any) -> str:
    """Return the warning that a setting has an unsupported value and that another one is used."""
    return f'{name} is {format_value(value)}, which is not supported; {format_value(used)} is used'
