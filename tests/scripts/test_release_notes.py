"""The text of a release, and the places that must state its version."""

import importlib

import pytest

CHANGELOG = """\
# Changelog

## [Unreleased]

## [1.2.3] - 2026-01-31

### Added

- A thing.

## [1.2.2] - 2026-01-01

### Fixed

- Another thing.
"""


@pytest.fixture
def release_notes():
    return importlib.import_module('release_notes')


@pytest.fixture
def project(tmp_path):
    """The files of a project whose version is 1.2.3."""
    (tmp_path / 'mask_rcnn').mkdir()
    (tmp_path / 'mask_rcnn' / '__init__.py').write_text("import x\n\n__version__ = '1.2.3'\n")
    (tmp_path / 'CHANGELOG.md').write_text(CHANGELOG)
    (tmp_path / 'CITATION.cff').write_text('cff-version: 1.2.0\nversion: 1.2.3\ndate-released: "2026-01-31"\n')
    return tmp_path


def test_the_newest_section_is_printed(release_notes, project, capsys):
    assert release_notes.main(['v1.2.3'], project) == 0
    assert capsys.readouterr() == ('### Added\n\n- A thing.\n', '')


@pytest.mark.parametrize(
    ('name', 'old', 'new', 'message'),
    [
        ('mask_rcnn/__init__.py', '1.2.3', '1.2.4', 'the tag is v1.2.3, expected v1.2.4, the version in mask_rcnn/'),
        ('mask_rcnn/__init__.py', '__version__', 'version', 'mask_rcnn/__init__.py: has no line with a version'),
        ('CHANGELOG.md', '[1.2.3] - 2026', '[1.3.0] - 2026', 'the newest section is 1.3.0, expected 1.2.3'),
        ('CHANGELOG.md', ' - 20', ' - unreleased 20', 'CHANGELOG.md: has no line with a dated section'),
        ('CHANGELOG.md', '### Added\n\n- A thing.\n', '', 'CHANGELOG.md: the section of 1.2.3 is empty'),
        ('CITATION.cff', 'version: 1.2.3', 'version: 1.2.2', 'CITATION.cff: version is 1.2.2, expected 1.2.3'),
        ('CITATION.cff', '2026-01-31', '2026-02-01', 'date-released is 2026-02-01, expected 2026-01-31'),
    ],
)
def test_contradictions_are_one_line(release_notes, project, capsys, name, old, new, message):
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))
    assert release_notes.main(['v1.2.3'], project) == 1
    out, error = capsys.readouterr()
    assert out == '' and message in error and error.count('\n') == 1


@pytest.mark.parametrize('name', ['mask_rcnn/__init__.py', 'CHANGELOG.md', 'CITATION.cff'])
def test_missing_and_unreadable_files_are_one_line(release_notes, project, capsys, name):
    (project / name).write_bytes(b'\xff\xfe')
    assert release_notes.main(['v1.2.3'], project) == 1
    assert capsys.readouterr() == ('', f'error: {name}: is not UTF-8 text\n')
    (project / name).unlink()
    assert release_notes.main(['v1.2.3'], project) == 1
    assert capsys.readouterr() == ('', f'error: {name}: No such file or directory\n')


def test_the_files_of_this_project_agree(release_notes, root):
    import mask_rcnn

    assert '### Added' in release_notes.release_notes(f'v{mask_rcnn.__version__}', root)
