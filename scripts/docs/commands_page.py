"""The page ``docs/commands.md``: all commands and options, from the parsers of ``mask_rcnn.cli``."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from collections.abc import Iterator

from markdown_text import code, table, to_markdown

from mask_rcnn import cli
from mask_rcnn.cli.command import ArgumentParser

_HEAD = """\
<!-- scripts/docs/write_pages.py writes this page; the texts are those of the parsers in mask_rcnn/cli. -->

# Commands and options

`mask-rcnn COMMAND --help` prints the same in a terminal. `demo.py` and `train.py` are the commands `demo` and `train`,
and the parsers in `utils/` are `convert`. Long options may be shortened as far as they stay unambiguous, and may be
written with underscores (`--roi_size`).

Every command ends with status 0 after success, 1 if it failed, 2 for bad arguments and 130 after Ctrl-C, unless its
section states otherwise. An error is one line on the standard error.
"""

#: Maximum number of characters of choices that are shown after a flag; longer lists are part of the meaning.
_MAX_CHOICES = 50


def commands_page() -> str:
    """Return the text of the page."""
    commands = list(_find_commands())
    rows = [(f'[`{parser.prog}`](#{_slug(parser.prog)})', to_markdown(summary)) for parser, summary in commands]
    sections = [_section(parser.prog, parser) for parser, _ in commands]
    return '\n'.join([_HEAD, table(('command', 'purpose'), rows), *sections])


def _find_commands() -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield the parser and the summary of each command; subcommands take the place of a command that has them."""
    for command, summary in cli.COMMANDS.items():
        parser = ArgumentParser(prog=f'mask-rcnn {command}')
        importlib.import_module(f'mask_rcnn.cli.{command}').configure(parser)
        subcommands = _subcommands(parser)
        if subcommands is None:
            yield parser, summary
        else:
            for action in subcommands._choices_actions:
                yield subcommands.choices[action.dest], action.help or ''


def _subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction | None:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else None


def _slug(title: str) -> str:
    return title.replace(' ', '-')


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    description = ' '.join((parser.description or '').split())
    parts = [f'## {name}\n', f'{to_markdown(description)}\n', f'```text\n{_usage(name, parser)}\n```\n']
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if actions:
            title = {'positional arguments': 'arguments'}.get(group.title or '', group.title or '')
            parts.append(table((title, ''), [(_flags(action), _meaning(action, parser)) for action in actions]))
    return '\n'.join([*parts, *_epilog(parser.epilog or '')])


def _is_shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS and action.dest != 'help'


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    """Return the command line with its arguments and required options."""
    actions = [action for action in parser._actions if _is_shown(action)]
    required = [f'{action.option_strings[0]} {_value(action)}' for action in actions if _is_required_option(action)]
    arguments = [_value(action) for action in actions if not action.option_strings]
    return ' '.join([name, *arguments, *required, '[OPTION ...]'])


def _is_required_option(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.required


def _flags(action: argparse.Action) -> str:
    """Return an option with all spellings and its value, or an argument."""
    value = _value(action)
    if not action.option_strings:
        return code(value)
    return ', '.join(code(f'{flag} {value}'.strip()) for flag in action.option_strings)


def _value(action: argparse.Action) -> str:
    """Return the value of an option or an argument for a usage: ``N ...``."""
    if action.nargs == 0:
        return ''
    name = action.metavar
    if name is None and not action.choices:
        name = action.dest.upper()
    elif name is None:
        name = 'NAME' if _has_many_choices(action) else _choices(action)
    if isinstance(name, tuple):
        return ' '.join(name)
    return {'+': f'{name} ...', '*': f'[{name} ...]', '?': f'[{name}]'}.get(str(action.nargs), name)


def _choices(action: argparse.Action) -> str:
    return '{' + ','.join(map(str, action.choices or ())) + '}'


def _has_many_choices(action: argparse.Action) -> bool:
    return len(_choices(action)) > _MAX_CHOICES


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = action.help or ''
    if isinstance(action, argparse.BooleanOptionalAction):
        text = text.removesuffix(' (default: %(default)s)')  # Python 3.12 and earlier append it
    text %= {**vars(action), 'prog': parser.prog}
    names = ''
    if action.metavar is None and action.choices and _has_many_choices(action):
        names = f': {", ".join(code(str(choice)) for choice in action.choices)}'
    required = '; required' if _is_required_option(action) else ''
    return f'{to_markdown(text)}{required}{names}'


def _epilog(text: str) -> Iterator[str]:
    """Yield the sections of an epilog, each of which has a title and an indented text."""
    for title, body in re.findall(r'^(\S.*):\n((?:(?: .*)?\n)+)', f'{text.rstrip()}\n', re.MULTILINE):
        yield f'**{to_markdown(title)}**\n'
        lines = textwrap.dedent(body).strip('\n')
        rows = _columns(lines)
        if rows:
            yield table(('', ''), [(code(name), to_markdown(meaning)) for name, meaning in rows])
        elif title == 'example':
            yield f'```text\n{lines}\n```\n'
        else:
            yield f'{to_markdown(" ".join(lines.split()))}\n'


def _columns(text: str) -> list[tuple[str, str]]:
    """Return the names and meanings of a text in two columns, or an empty list for running text."""
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = re.fullmatch(r'(\S+(?: \S+)*) {2,}(\S.*)', line)
        if match:
            rows.append((match[1], match[2]))
        elif rows and line.startswith(' '):
            rows[-1] = rows[-1][0], f'{rows[-1][1]} {line.strip()}'
        else:
            return []
    return rows
