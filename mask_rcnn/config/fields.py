"""Checks of the fields of configurations: their types, their ranges, and their conversion to plain Python values.

A check is a function that returns a valid value as plain Python data, which JSON can store (NumPy numbers become
``int`` and ``float``, lists become tuples), and raises :class:`ValueError` with a description of the valid values.
:func:`check_fields` applies a table of checks to a frozen dataclass.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

Check = Callable[[Any], Any]

#: Maximum number of characters of a value in a message.
_MAX_SHOWN = 80

#: Largest integer of the kernels' index type.
MAX_INT32 = 2**31 - 1


def check_fields(instance: Any, checks: Mapping[str, Check]) -> None:
    """Check fields of a frozen dataclass and replace their values by plain ones.

    Args:
        instance: The instance, in its ``__post_init__``.
        checks: The check of each field by name.

    Raises:
        ValueError: A value is not valid; the message is one line that names the field.
    """
    for name, check in checks.items():
        value = getattr(instance, name)
        try:
            plain = check(value)
        except ValueError as error:
            raise ValueError(f'{name} must be {error}, not {describe_value(value)}') from None
        object.__setattr__(instance, name, plain)


class CheckedUnpickling:
    """Base of a frozen dataclass with checked fields: copies and unpickled instances are checked as well."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)


def describe_value(value: Any) -> str:
    """Return a value as one short line for a message."""
    try:
        text = ' '.join(repr(list(value) if isinstance(value, tuple) else value).split())
    except Exception:  # repr() of any object, or of an integer with thousands of digits
        return f'a value of the type {type(value).__name__}'
    return text if len(text) <= _MAX_SHOWN else f'{text[: _MAX_SHOWN - 3]}...'


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Return the description of a name that does not exist, with the similar ones that do.

    Args:
        name: The name, such as ``'score_treshold'``.
        known: The names that exist.
    """
    similar = difflib.get_close_matches(name, list(known), n=3)
    hint = f'; did you mean {" or ".join(similar)}?' if similar else ''
    return f'{describe_value(name)}{hint}'


def check_new_name(name: Any) -> None:
    """Check the name of a registered backbone, dialect or format, which files store and commands take.

    Raises:
        ValueError: The name is not a letter that lower-case letters, digits, underscores and hyphens follow.
    """
    if not isinstance(name, str) or not re.fullmatch('[a-z][a-z0-9_-]*', name):
        raise ValueError(
            'the name must consist of lower-case letters, digits, - and _, such as plain_net, '
            f'not {describe_value(name)}'
        )


def integer(minimum: int, maximum: int = MAX_INT32) -> Check:
    """Return the check for integers of a range; floats without a fractional part are integers, booleans are not."""

    def check(value: Any) -> int:
        if not _is_real(value) or not -math.inf < value < math.inf or value != int(value) or value < minimum:
            raise ValueError(f'an integer of at least {minimum}')
        if value > maximum:
            raise ValueError(f'an integer of at most {maximum}')
        return int(value)

    return check


class _LimitError(ValueError):
    """A number of the right kind is beyond a technical limit; the message is the valid range."""


def number(minimum: float, maximum: float, expected: str) -> Check:
    """Return the check for numbers of a closed range; integers stay integers.

    Args:
        minimum: Smallest valid number.
        maximum: Largest valid number, which may be infinity.
        expected: Description of the valid numbers.  Finite positive numbers outside of the range have the range itself
            as their description.
    """

    def check(value: Any) -> float:
        if not _is_real(value) or not minimum <= value <= maximum:
            if _is_real(value) and 0 < value < math.inf:
                raise _LimitError(f'a number from {minimum:g} to {maximum:g}')
            raise ValueError(expected)
        return int(value) if isinstance(value, Integral) else float(value)

    return check


def sequence(element: Check, expected: str, *, min_length: int = 1, max_length: int) -> Check:
    """Return the check for sequences, which become tuples.

    Args:
        element: The check of the elements.
        expected: Description of the valid sequences.
        min_length: Minimum number of elements.
        max_length: Maximum number of elements.
    """

    def check(values: Any) -> tuple:
        is_sequence = isinstance(values, (tuple, list)) or (isinstance(values, np.ndarray) and values.ndim == 1)
        if not is_sequence or not min_length <= len(values) <= max_length:
            raise ValueError(expected)
        try:
            return tuple(map(element, values))
        except _LimitError as error:
            raise _LimitError(f'{expected}, each {error}') from None
        except ValueError:
            raise ValueError(expected) from None

    return check


def boolean(value: Any) -> bool:
    """Check a boolean; 0 and 1 are not booleans."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError('True or False')
    return bool(value)


def text(value: Any) -> str:
    """Check text."""
    if not isinstance(value, str):
        raise ValueError('text')
    return str(value)


def choice(values: Sequence[str], expected: str) -> Check:
    """Return the check for one of several texts.

    Args:
        values: The texts.
        expected: Description of them.
    """

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise ValueError(expected)
        return str(value)

    return check


def instance_of(cls: type, expected: str) -> Check:
    """Return the check for instances of a class.

    Args:
        cls: The class.
        expected: Description of the instances.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, cls):
            raise ValueError(expected)
        return value

    return check


def checks_of_hints(cls: type, ranges: Mapping[str, Check]) -> dict[str, Check]:
    """Return the checks of a dataclass whose type hints determine them.

    Args:
        cls: The dataclass, with hints ``Literal``, ``bool``, ``int``, ``float``, ``str``, fixed tuples of ``float``, an
            optional one of these, or a class.
        ranges: The checks of the fields whose range is narrower than the type.
    """
    hints = typing.get_type_hints(cls)
    return {name: ranges.get(name) or _check_of_hint(hint) for name, hint in hints.items()}


def _check_of_hint(hint: Any) -> Check:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return choice(arguments, f'one of {", ".join(map(repr, arguments))}')
    if origin is tuple:
        length = len(arguments)
        return sequence(_finite, f'{length} finite numbers', min_length=length, max_length=length)
    if origin is types.UnionType:
        return optional(_check_of_hint(arguments[0]))
    simple: dict[Any, Check] = {bool: boolean, int: integer(0), float: _finite, str: text}
    return simple.get(hint) or instance_of(hint, f'an instance of {hint.__name__}')


def optional(check: Check) -> Check:
    """Return the check that also accepts ``None``."""

    def check_unless_none(value: Any) -> Any:
        try:
            return None if value is None else check(value)
        except ValueError as error:
            raise ValueError(f'{error} or None') from None

    return check_unless_none


_MAX_FLOAT = sys.float_info.max
_finite = number(-_MAX_FLOAT, _MAX_FLOAT, 'a finite number')
#: The checks of finite numbers of at least 0 and above 0.
non_negative = number(0, _MAX_FLOAT, 'a finite number of at least 0')
positive = number(math.ulp(0.0), _MAX_FLOAT, 'a finite number above 0')


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.timedelta64))  # a duration is an Integral
