"""The tables of the dialects in ``docs/formats.md``, from the conventions of ``mask_rcnn.config``."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from docstring_roles import replace_roles
from markdown_text import code, table

from mask_rcnn.config import DIALECTS, Dialect

#: The programs of the dialects, in the order of the columns.
PROGRAMS = {
    'detectron': 'Detectron',
    'dena': 'old Chainer port',
    'matterport': 'Matterport',
    'mindspore': 'MindSpore',
    'mobilenet': 'MobileNets',
    'torchvision': 'torchvision',
    'detectron2': 'detectron2',
}


def dialect_tables() -> str:
    """Return a section for each group of conventions: a table of the fields in which dialects differ, and meanings."""
    descriptions = field_descriptions(Dialect)
    groups = [field.name for field in dataclasses.fields(Dialect) if field.name != 'name']
    names = ', '.join(f'{code(name)} ({program})' for name, program in PROGRAMS.items())
    sections = [f'The dialects are {names}.\n']
    sections += ['\n'.join(_group(group, descriptions[group])) for group in groups]
    return '\n'.join(sections)


def _group(group: str, description: str) -> Iterator[str]:
    yield f'#### {description.rstrip(".")}: `{group}`\n'
    conventions = [getattr(DIALECTS[name], group) for name in PROGRAMS]
    rows, common = [], []
    for field in dataclasses.fields(conventions[0]):
        values = [format_value(getattr(convention, field.name)) for convention in conventions]
        if len(set(values)) > 1:
            rows.append((code(field.name), *values))
        else:
            common.append(f'{code(field.name)} is {values[0]}')
    if rows:
        yield table(('', *PROGRAMS.values()), rows)
    if common:
        yield f'In all dialects, {_enumeration(common)}.\n'
    meanings = field_descriptions(type(conventions[0]))
    yield '\n'.join(f'- {code(name)}: {meaning}' for name, meaning in meanings.items()) + '\n'


def _enumeration(items: list[str]) -> str:
    return ' and '.join([', '.join(items[:-1]), items[-1]] if len(items) > 1 else items)


def field_descriptions(cls: type) -> dict[str, str]:
    """Return field -> meaning from the section ``Args`` of a class's docstring, as Markdown in one line."""
    (section,) = re.findall(r'^Args:\n((?:(?: .*)?\n)+)', f'{inspect.getdoc(cls)}\n', re.MULTILINE)
    items = re.findall(r'^ {4}(\w+): (.*(?:\n {8}.*)*)', section, re.MULTILINE)
    texts = {name: ' '.join(text.split()).replace('``', '`') for name, text in items}
    return {name: replace_roles(text, lambda kind, target, title: code(title)) for name, text in texts.items()}


def format_value(value: Any) -> str:
    """Return the value of a convention as Markdown."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, str):
        return code(value)
    if isinstance(value, tuple):
        return ', '.join(map(format_value, value))
    return 'none' if value is None else _format_number(value)


def _format_number(value: float) -> str:
    """Return a number in at most seven digits; ninths and the like as fractions."""
    if math.isinf(value):
        return 'infinity'
    ratio = Fraction(value).limit_denominator(16)
    if value == float(ratio) and 10**7 % ratio.denominator:
        return str(ratio)
    return f'{value:.7g}'
