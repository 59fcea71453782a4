"""The fenced blocks of Markdown pages, and the marks that state why one is not run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

_FENCE = re.compile(r'^(?P<indent> *)```(?P<language>\w*)\s*$')
_NOT_RUN = re.compile(r'^\s*<!-- not run: (?P<reason>.+\S) -->\s*$')
_STAYS = re.compile(r'^\s*<!-- runs until it is stopped -->\s*$')


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: The path of the page, relative to the checkout.
        line: The line of its fence, from 1.
        language: The word after the fence, such as ``sh``.
        code: Its lines, without the indentation of the fence.
        reason: Why it is not run; ``None`` if it is.
        stays: Whether its command runs until it is stopped, such as a server.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None
    stays: bool = False

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def read_blocks(root: Path, page: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Args:
        root: The checkout.
        page: The path of the page, relative to the checkout.

    Raises:
        ValueError: A block does not end.
    """
    return find_blocks((root / page).read_text(encoding='utf-8'), page)


def find_blocks(text: str, page: str) -> list[Block]:
    """Return the fenced blocks of a text; see :func:`read_blocks`."""
    blocks, lines, number = [], text.splitlines(), 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        first, before = number, lines[number - 2] if number > 1 else ''
        closing = opening['indent'] + '```'
        while number < len(lines) and lines[number].rstrip() != closing:
            number += 1
        if number == len(lines):
            raise ValueError(f'{page}:{first}: the block does not end')
        code = '\n'.join(line.removeprefix(opening['indent']) for line in lines[first:number]) + '\n'
        mark = _NOT_RUN.match(before)
        blocks.append(
            Block(page, first, opening['language'], code, mark and mark['reason'], bool(_STAYS.match(before)))
        )
        number += 1
    return blocks
