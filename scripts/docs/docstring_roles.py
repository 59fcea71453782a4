"""The Sphinx roles of docstrings, such as ``:func:`mask_rcnn.load```, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

#: A role: its kind, and its content, which may start with ``~``.
_ROLE = re.compile(r':(?P<kind>func|class|meth|attr|data|mod|exc|obj|const):`(?P<target>[^`]+)`')


def replace_roles(text: str, to_markdown: Callable[[str, str, str], str]) -> str:
    """Return a text with its roles replaced.

    Args:
        text: A docstring or a part of it.
        to_markdown: Takes the kind of a role (``'func'``), the name that it refers to, and the name to show, and
            returns Markdown.
    """

    def replace(match: re.Match[str]) -> str:
        content = ' '.join(match['target'].split())
        title, _, target = content.removesuffix('>').rpartition(' <')
        if not title:
            target = content.lstrip('~!')
            title = target.rpartition('.')[2] if content.startswith('~') else target
        return to_markdown(match['kind'], target, title)

    return _ROLE.sub(replace, text)


def literal_blocks(text: str) -> str:
    """Return a docstring whose literal blocks, introduced by ``::``, are fenced code blocks of Python.

    Other indented blocks of code stay: they have four spaces, as Markdown expects.
    """
    lines: list[str] = []
    block: list[str] = []
    for line in [*text.splitlines(), '']:
        if block and (not line.strip() or line.startswith('    ')):
            block.append(line)
            continue
        lines += _fenced(block)
        block = []
        if line.endswith('::'):
            lines.append(line[:-1])
            block = ['']
        else:
            lines.append(line)
    return '\n'.join([*lines, *_fenced(block)]).rstrip('\n')


def comment_before(lines: Sequence[str], number: int) -> str:
    """Return the text of the comments ``#: text`` directly before a line, which describe what it defines.

    Args:
        lines: The lines of a file.
        number: The number of the line; the first one has the number 1.
    """
    first = number - 1
    while first > 0 and lines[first - 1].lstrip().startswith('#:'):
        first -= 1
    return '\n'.join(line.lstrip().removeprefix('#:').strip() for line in lines[first : number - 1])


def _fenced(block: list[str]) -> list[str]:
    """Return the lines of a literal block between fences."""
    lines = [line.removeprefix('    ') for line in block]
    while lines and not lines[0].strip():
        del lines[0]
    n_blank = 0
    while lines and not lines[-1].strip():
        del lines[-1]
        n_blank = 1
    return ['', '```python', *lines, '```', *[''] * n_blank] if lines else []
