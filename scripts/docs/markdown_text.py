"""Markdown that GitHub and MkDocs render in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Values after a flag: numbers, names of values, files and folders, and choices that the texts name.
_VALUE = r'\d[\d.]*|[A-Z]{2,}|[\w-]+\.[a-z]\w+|[\w-]+/|none|bn|visualize|evaluate|auto|last'
_FLAG = rf'-{{1,2}}[A-Za-z][\w-]*(?: (?:{_VALUE})(?![\w.]\w|\w))?'
#: Code with spaces or full stops: an example of JSON, an address without its end.
_UNIT = r'\{[^{}]*\}|\w+://\.\.\.'
#: Words that are code: names of files, fields and values, and everything that Markdown would interpret.
_CODE = re.compile(r'\S*[_*<>=\[\]{}\\|`/~]\S*|\S*\w\.[a-z]\w{1,11}|\.[a-z]\w+')
#: Words with a slash or an underscore that are prose.
_PROSE = re.compile(r'/|[A-Z]?[a-z]+/[a-z]+|\w/\w|Chainer_Mask_R-CNN(?:\'s)?')


def code(text: str) -> str:
    """Return a code span."""
    return f'`{text}`'


def to_markdown(text: str) -> str:
    """Return plain text as Markdown, with flags and file names as code."""
    pieces = re.split(rf'((?<![\w-]){_FLAG}(?: {_FLAG})*|{_UNIT})', text)
    return ''.join(code(piece) if i % 2 else re.sub(r'\S+', _word, piece) for i, piece in enumerate(pieces))


def _word(match: re.Match[str]) -> str:
    """Return a word; quotes, brackets and the punctuation around it stay outside of its code span."""
    parts = re.fullmatch(r"""(\(?["']?)(.*?)((?:["']?[,.;:!?)]*)["']?)""", match[0])
    assert parts is not None
    before, inner, after = parts.groups()
    if '(' in inner and after.startswith(')'):  # the brackets of a call
        inner, after = f'{inner})', after[1:]
    if not _CODE.fullmatch(inner) or _PROSE.fullmatch(inner):
        return match[0]
    return f'{before}{code(inner)}{after}'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; it ends with a line feed, so that a blank line follows it."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(re.sub(r'\|  (?=\|)', '| ', f'| {" | ".join(cells)} |\n') for cells in lines)
