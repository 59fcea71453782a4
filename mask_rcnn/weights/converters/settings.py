"""Settings that weight files do not contain: their sources, checks of their values, and warnings about them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mask_rcnn.config import Config
from mask_rcnn.weights.converters.mapping import network_name
from mask_rcnn.weights.errors import WeightFileError, format_value
from mask_rcnn.weights.files import read_text_file

#: Name of a setting, field (:func:`get_field`), and a function that checks and converts the value.
Setting = tuple[str, str, Callable[[Any], Any]]


class OtherNetworkError(ValueError):
    """Settings are those of another network than the weights.

    Args:
        config: The network of the weights.
        differences: Lines such as ``'MODEL.RESNETS.DEPTH is 101 instead of 50'``.
    """

    def __init__(self, config: Config, differences: Iterable[str]) -> None:
        super().__init__(
            f'the settings are for another network than the weights ({network_name(config)}): {", ".join(differences)}'
        )


class SettingError(ValueError):
    """A setting is not valid, or several are not valid together.

    Args:
        problem: The fault, and a description of correct values.
        name: Name of the setting; ``None`` for several.
    """

    def __init__(self, problem: str, name: str | None = None) -> None:
        super().__init__(problem)
        self.name = name


@dataclass(frozen=True)
class FileSettings:
    """The settings that the files of a format do not contain.

    Args:
        read: Reads the settings in the file of ``--config``, by their names in the original program.
        options: The names of the settings that have an option of their own: option (``'min_size'`` for ``--min-size``)
            -> name in the original program.
    """

    read: Callable[[str | os.PathLike], dict[str, Any]]
    options: Mapping[str, str]


def read_json(path: str | os.PathLike, expected: str = '') -> dict[str, Any]:
    """Read a JSON file of settings by name, such as ``{"IMAGE_MAX_DIM": 512}``.

    Args:
        path: The file.
        expected: Description of a correct file, for the error of other text.

    Raises:
        WeightFileError: The file cannot be read or does not contain a JSON object.
    """
    text = read_text_file(path)
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        raise WeightFileError(path, f'is not JSON text{expected and ": "}{expected}') from None
    if not isinstance(settings, dict):
        raise WeightFileError(path, 'is not a JSON object of names and values')
    return settings


#: Range of sizes, ratios and deviations whose products neither overflow nor vanish, and maximum length of a list.
_MIN_NUMBER, _MAX_NUMBER, _MAX_NUMBERS = 1e-6, 1e6, 64


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


def positive_integer(value: Any) -> int:
    """Return a positive integer; raise an error that names what is right for any other value."""
    if not is_integer(value) or value == 0:
        raise ValueError('a positive integer')
    return value


def fraction(value: Any) -> float:
    """Return a number from 0 to 1; see :func:`positive_integer`."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError('a number from 0 to 1')
    return float(value)


def positive_numbers(value: Any, count: int | None = None) -> tuple[float, ...]:
    """Return a list of ``count`` (``None``: any number of) positive numbers; see :func:`positive_integer`."""
    is_list = isinstance(value, (list, tuple)) and 0 < len(value) <= _MAX_NUMBERS
    if not is_list or len(value) != (count or len(value)) or not all(map(_is_usable, value)):
        raise ValueError(f'{count or "a list of"} positive numbers between {_MIN_NUMBER:g} and {_MAX_NUMBER:g}')
    return tuple(value)


def yxhw(value: Any) -> tuple[float, ...]:
    """Return the weights of ``(dy, dx, dh, dw)``, given those of ``(dx, dy, dw, dh)``; see :func:`positive_integer`."""
    x, y, w, h = positive_numbers(value, 4)
    return (y, x, h, w)


def numbers_of_levels(value: Any) -> tuple[float, ...]:
    """Return the numbers of all levels together; each level may have a list of its own."""
    if isinstance(value, list) and value and all(isinstance(level, list) for level in value):
        value = [number for level in value for number in level]
    return positive_numbers(value)


def numbers_of_each_level(value: Any) -> tuple[float, ...]:
    """Return the numbers that every level has, such as aspect ratios; each level may have a list of its own."""
    if isinstance(value, list) and value and all(level == value[0] for level in value):
        value = value[0]
    return positive_numbers(value)


def _is_usable(value: Any) -> bool:
    return is_number(value) and math.isfinite(value) and _MIN_NUMBER < value < _MAX_NUMBER


def convert_setting(name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """Return the converted value of a setting.

    Args:
        name: Name of the setting, for the error.
        value: Its value.
        convert: A function such as :func:`positive_integer`.

    Raises:
        SettingError: The value is not valid; the message names the setting and what is right.
    """
    try:
        return convert(value)
    except ValueError as error:
        raise SettingError(f'{name} must be {error}, not {format_value(value)}', name) from None


def convert_settings(settings: Mapping[str, Any], mapped: Iterable[Setting]) -> dict[str, Any]:
    """Return the converted values by field; settings that are missing or null are left out.

    Args:
        settings: Values by name.
        mapped: The known settings.

    Raises:
        ValueError: A setting is not valid; see :func:`convert_setting`.
    """
    return {
        field: convert_setting(name, settings[name], convert)
        for name, field, convert in mapped
        if settings.get(name) is not None
    }


def unsupported_values(settings: Mapping[str, Any], supported: Iterable[tuple[str, Any]]) -> list[str]:
    """Return a warning for each setting that is not the only supported value, given by name."""
    return [
        not_supported(name, settings[name], used)
        for name, used in supported
        if settings.get(name) is not None and settings[name] != used
    ]


def check_network(
    settings: Mapping[str, Any], config: Config, determined: Iterable[tuple[str, Any]], others: Iterable[str] = ()
) -> None:
    """Check settings that the arrays determine.

    Args:
        settings: Values by name; those that are missing or null are not checked.
        config: The network of the weights.
        determined: Names, and the values of the network.
        others: Further differences, as lines.

    Raises:
        OtherNetworkError: Settings have other values.
    """
    differences = [
        f'{name} is {format_value(settings[name])} instead of {format_value(value)}'
        for name, value in determined
        if settings.get(name) is not None and settings[name] != value
    ]
    if differences := [*others, *differences]:
        raise OtherNetworkError(config, differences)


def get_field(config: Config, field: str) -> Any:
    """Return a field of a configuration, or of its dialect for the name of a group and a convention.

    Args:
        config: The configuration.
        field: Such as ``'min_size'`` or ``'backbone.bn_eps'``.
    """
    group, _, name = field.rpartition('.')
    return getattr(getattr(config.dialect, group) if group else config, name)


def replace_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of the fields that :func:`get_field` returns.

    Raises:
        ValueError: A value is not allowed, or values contradict each other.
    """
    fields = {name: value for name, value in changes.items() if '.' not in name}
    groups: dict[str, dict[str, Any]] = {}
    for field, value in changes.items():
        group, _, name = field.rpartition('.')
        if group:
            groups.setdefault(group, {})[name] = value
    return config.replace(dialect=config.dialect.replace(**groups), **fields)
