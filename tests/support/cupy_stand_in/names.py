"""The public names of CuPy and the parameters of its functions, from ``names.txt``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

_LINES = Path(__file__).with_name('names.txt').read_text(encoding='utf-8').splitlines()


def _parse(line: str) -> tuple[str, str | inspect.Signature]:
    name, bracket, parameters = line.partition('(')
    if not bracket:
        name, _, kind = line.partition(' ')
        return name, kind
    text = re.sub('=(?=,|$)', '=None', parameters.removesuffix(')'))
    return name, inspect.signature(eval(f'lambda {text}: None'))


#: Full name -> signature of a function, otherwise ``'ufunc'``, ``'class'``, ``'value'`` or ``'callable'``.
NAMES: dict[str, str | inspect.Signature] = dict(map(_parse, _LINES[1:]))


def check_call(name: str, args: tuple, kwargs: dict) -> None:
    """Raise a TypeError if CuPy's function does not have these parameters."""
    signature = NAMES[name]
    if isinstance(signature, inspect.Signature):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f'{name}: {error}') from None
