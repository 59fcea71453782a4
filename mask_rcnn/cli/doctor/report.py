"""The report of ``mask-rcnn doctor``: sections of one line each, advice, and their text and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mask_rcnn.io.wording import counted

#: An error prevents the work on the CPU; a warning concerns a part that is present and does not work; a note names a
#: part that is not installed and not necessary.
Level = Literal['error', 'warning', 'note']
LEVELS: tuple[Level, ...] = ('error', 'warning', 'note')

_MAX_REASON = 120


@dataclass(frozen=True)
class Advice:
    """A part that is missing or broken.

    Args:
        level: The severity.
        text: One line: the fault, a colon, and the remedy.
    """

    level: Level
    text: str


@dataclass
class Section:
    """A line of the report.

    Args:
        name: The first word of the line.
        text: The rest.
        advice: The faults that belong to it.
        facts: Further values for bug reports, which JSON can represent.
    """

    name: str
    text: str
    advice: list[Advice] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)


def shorten(reason: object) -> str:
    """Return the text of an error as a part of a line."""
    text = ' '.join(str(reason).split())
    return text if len(text) <= _MAX_REASON else f'{text[: _MAX_REASON - 3]}...'


def exit_status(sections: Sequence[Section]) -> int:
    """Return 1 if a section contains an error, otherwise 0."""
    return int(any(advice.level == 'error' for advice in _sorted_advice(sections)))


def format_report(sections: Sequence[Section], home: Path | None = None) -> str:
    """Return the lines of the sections, the advice, errors first, and a line with the conclusion.

    Args:
        sections: The sections in their order.
        home: The folder that ``~`` stands for; ``None`` for that of the user.
    """
    width = max(len(section.name) for section in sections)
    lines = [f'{section.name:{width}}  {section.text}' for section in sections]
    advice = _sorted_advice(sections)
    if advice:
        width = max(len(item.level) for item in advice)
        lines += ['', *(f'{item.level + ":":{width + 1}} {item.text}' for item in advice)]
    n_errors = sum(item.level == 'error' for item in advice)
    if n_errors:
        conclusion = f'Commands do not work: {counted(n_errors, "error")}.'
    elif any(section.facts.get('gpu_works') for section in sections):
        conclusion = 'Commands work on the CPU and on the GPU.'
    else:
        conclusion = 'Commands work on the CPU.'
    return '\n'.join(hide_home(line, home) for line in [*lines, '', conclusion])


def format_json(sections: Sequence[Section], version: str, home: Path | None = None) -> str:
    """Return the report as one line of JSON, for bug reports.

    Args:
        sections: The sections in their order.
        version: The version of this program.
        home: See :func:`format_report`.
    """
    content = {
        'version': version,
        'ok': exit_status(sections) == 0,
        'sections': {section.name: {'text': section.text, **section.facts} for section in sections},
        'advice': [{'level': item.level, 'text': item.text} for item in _sorted_advice(sections)],
    }
    return json.dumps(_map_texts(content, home))


def hide_home(text: str, home: Path | None = None) -> str:
    """Return a text in which ``~`` replaces the folder of the user, whose name is often that of a person."""
    folder = os.path.expanduser('~') if home is None else str(home)
    if not os.path.isabs(folder) or folder == os.path.dirname(folder):  # a user without a home folder, or with "/"
        return text
    return re.sub(rf'(?<![\w.-]){re.escape(folder)}(?![\w.-])', '~', text)


def _map_texts(value: Any, home: Path | None) -> Any:
    if isinstance(value, str):
        return hide_home(value, home)
    if isinstance(value, Mapping):
        return {hide_home(str(key), home): _map_texts(item, home) for key, item in value.items()}
    return [_map_texts(item, home) for item in value] if isinstance(value, (list, tuple)) else value


def _sorted_advice(sections: Sequence[Section]) -> list[Advice]:
    advice = [item for section in sections for item in section.advice]
    return sorted(advice, key=lambda item: LEVELS.index(item.level))
