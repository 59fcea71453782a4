"""Write the generated parts of the documentation: ``docs/commands.md`` and the tables of ``docs/formats.md``.

``make docs`` does this before it builds the site; the files are part of the repository, for readers on GitHub.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from commands_page import commands_page
from dialect_tables import dialect_tables

ROOT = Path(__file__).resolve().parents[2]

_START, _END = '<!-- dialects:start -->', '<!-- dialects:end -->'


def generated_pages(docs: Path) -> dict[Path, str]:
    """Return file -> text of the pages with generated parts.

    Args:
        docs: The folder of the pages.

    Raises:
        SystemExit: A page does not have the marks between which a part is generated.
    """
    formats = docs / 'formats.md'
    text = formats.read_text(encoding='utf-8')
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise SystemExit(f'{formats}: the lines {_START} and {_END} are missing')
    return {
        docs / 'commands.md': commands_page(),
        formats: f'{before}{_START}\n\n{dialect_tables()}\n{_END}{after}',
    }


def main() -> None:
    """Write the pages that are not up to date."""
    argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0]).parse_args()
    for path, text in generated_pages(ROOT / 'docs').items():
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            path.write_text(text, encoding='utf-8', newline='\n')
            print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
