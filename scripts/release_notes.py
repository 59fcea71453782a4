"""Print the section of the changelog for a release, after comparing the places that state its version and date.

The tag, ``__version__`` of the package, the newest dated section of ``CHANGELOG.md`` and ``CITATION.cff`` must agree.
Needs no installed package: the workflow of a release runs this first.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ReleaseError(Exception):
    """The files of a release contradict each other; the message is one line."""


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Print the section; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tag', help='tag of the release, such as v0.2.0')
    args = parser.parse_args(argv)
    try:
        notes = release_notes(args.tag, root)
    except ReleaseError as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    sys.stdout.write(notes)
    return 0


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the text of the changelog's newest section without its heading.

    Args:
        tag: The tag of the release, ``v`` and the version.
        root: The root of the repository.

    Raises:
        ReleaseError: A file is missing or states another version or date, or the section is empty.
    """
    version = _find(root, 'mask_rcnn/__init__.py', r"__version__ = '(.+)'", 'a version')[0]
    if tag != f'v{version}':
        raise ReleaseError(f'the tag is {tag}, expected v{version}, the version in mask_rcnn/__init__.py')
    newest, date = _find(root, 'CHANGELOG.md', r'## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)', 'a dated section')
    cited = _find(root, 'CITATION.cff', 'version: (.+)', 'a version')[0]
    released = _find(root, 'CITATION.cff', 'date-released: "(.+)"', 'a date')[0]
    for name, found, expected in (
        ('CHANGELOG.md: the newest section', newest, version),
        ('CITATION.cff: version', cited, version),
        ('CITATION.cff: date-released', released, date),
    ):
        if found != expected:
            raise ReleaseError(f'{name} is {found}, expected {expected}')
    text = (root / 'CHANGELOG.md').read_text(encoding='utf-8')
    section = re.split(r'^## .*\n', text.partition(f'## [{version}] - {date}\n')[2], flags=re.MULTILINE)[0].strip()
    if not section:
        raise ReleaseError(f'CHANGELOG.md: the section of {version} is empty')
    return f'{section}\n'


def _find(root: Path, name: str, pattern: str, description: str) -> tuple[str, ...]:
    """Return the groups of the first line of a file that matches a pattern."""
    try:
        text = (root / name).read_text(encoding='utf-8')
    except OSError as error:
        raise ReleaseError(f'{name}: {error.strerror or error}') from error
    except UnicodeDecodeError:
        raise ReleaseError(f'{name}: is not UTF-8 text') from None
    match = re.search(rf'^{pattern}$', text, re.MULTILINE)
    if match is None:
        raise ReleaseError(f'{name}: has no line with {description}')
    return match.groups()


if __name__ == '__main__':
    sys.exit(main())
