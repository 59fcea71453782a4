"""CHANGELOG.md has the form of "Keep a Changelog", and states the version and the date of each release."""

import datetime
import re

import pytest

import mask_rcnn

HEADING = re.compile(r'## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)')
#: The sections in the order of https://keepachangelog.com/en/1.1.0/.
SECTIONS = ('Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security')


@pytest.fixture(scope='module')
def lines(root):
    return (root / 'CHANGELOG.md').read_text(encoding='utf-8').splitlines()


@pytest.fixture(scope='module')
def versions(lines):
    """The number and the date of each release, the newest first."""
    headings = [line for line in lines if line.startswith('## ')]
    assert headings[0] == '## [Unreleased]'
    matches = [HEADING.fullmatch(line) for line in headings[1:]]
    assert all(matches), headings
    return [(tuple(map(int, match[1].split('.'))), datetime.date.fromisoformat(match[2])) for match in matches]


def test_releases_are_in_descending_order(versions):
    numbers, dates = zip(*versions, strict=True)
    assert list(numbers) == sorted(set(numbers), reverse=True)
    assert list(dates) == sorted(dates, reverse=True)


def test_the_newest_release_is_the_version_of_the_package(versions):
    assert '.'.join(map(str, versions[0][0])) == mask_rcnn.__version__


def test_every_release_has_the_usual_sections_with_entries(lines):
    release, sections = None, {}
    for line in lines:
        if line.startswith('## '):
            release = line
        elif line.startswith('### '):
            sections.setdefault(release, []).append(line[4:])
        elif line.startswith('- '):
            assert sections.get(release), f'an entry before the first section of {release}'
    for release, names in sections.items():
        assert len(names) == len(set(names)) and set(names) <= set(SECTIONS), release
    assert {'Added', 'Changed', 'Fixed', 'Removed'} <= set(sections['## [0.2.0] - 2026-11-28'])
    text = '\n'.join(lines)
    assert not re.search(r'^### .*\n+#', text, re.MULTILINE), 'a section without entries'
