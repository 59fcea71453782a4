"""``docs/commands.md`` and the tables of ``docs/formats.md`` describe the program as it is."""

import argparse
import dataclasses
import re

import pytest

from mask_rcnn.config import DIALECTS, Dialect
from tests.support.commands import COMMAND_NAMES
from tests.support.contracts import parser_of

RUN = 'python scripts/docs/write_pages.py'


def test_the_committed_pages_are_up_to_date(root):
    from write_pages import generated_pages

    pages = generated_pages(root / 'docs')
    assert {path.name for path in pages} == {'commands.md', 'formats.md'}
    assert [path.name for path, text in pages.items() if path.read_text(encoding='utf-8') != text] == [], f'run {RUN}'


def test_a_page_without_the_marks_is_an_error(tmp_path):
    from write_pages import generated_pages

    (tmp_path / 'formats.md').write_text('# Formats\n\n<!-- dialects:start -->\n')
    with pytest.raises(SystemExit, match=r'formats\.md: the lines <!-- dialects:start --> and <!-- dialects:end -->'):
        generated_pages(tmp_path)


def test_text_around_the_marks_stays(tmp_path):
    from write_pages import generated_pages

    page = tmp_path / 'formats.md'
    page.write_text('# Formats\n\n<!-- dialects:start -->\nold\n<!-- dialects:end -->\n\nMore.\n')
    text = generated_pages(tmp_path)[page]
    assert text.startswith('# Formats\n\n<!-- dialects:start -->\n\nThe dialects are')
    assert text.endswith('\n<!-- dialects:end -->\n\nMore.\n') and 'old\n' not in text


@pytest.mark.parametrize('command', COMMAND_NAMES)
def test_every_option_of_a_command_is_in_its_section(root, command):
    text = (root / 'docs' / 'commands.md').read_text(encoding='utf-8')
    (section,) = re.findall(rf'^## mask-rcnn {command}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)
    described = {flag for row in re.findall(r'^\| (`.*?`) \|', section, re.MULTILINE) for flag in row.split('`')}
    flags = {flag.partition(' ')[0] for flag in described if flag.startswith('-')}
    actions = [a for a in parser_of(command)._actions if a.help != argparse.SUPPRESS and a.dest != 'help']
    assert flags == {flag for action in actions for flag in action.option_strings}
    assert f'(#mask-rcnn-{command.replace(" ", "-")})' in text


def test_the_section_of_a_command():
    from commands_page import _section

    parser = argparse.ArgumentParser(
        prog='sheep',
        description='Count the sheep\nin a picture.',
        epilog='files in --out:\n  log        one line\n             for each sheep\n  a.png      the picture\n\n'
        'speed:\n  Fast, with --n 2\n  also at night.\n',
    )
    parser.add_argument('photos', nargs='+', metavar='PHOTO', help='an image')
    group = parser.add_argument_group('counting').add_argument
    group('--n', '-n', type=int, default=3, metavar='N', help='sheep per row (default: %(default)s)')
    group('--mode', choices=('fast', 'slow'), required=True, help='%(prog)s is fast, or 100%% right')
    group('--breed', choices=[f'breed_number_{i}' for i in range(4)], help='the breed')
    group('--flip', action=argparse.BooleanOptionalAction, default=True, help='turn the sheep')
    group('--box', nargs=2, metavar=('LOW', 'HIGH'), help='a range')
    group('--old', help=argparse.SUPPRESS)
    assert _section('sheep', parser) == (
        '## sheep\n\n'
        'Count the sheep in a picture.\n\n'
        '```text\nsheep PHOTO ... --mode {fast,slow} [OPTION ...]\n```\n\n'
        '| arguments | |\n| --- | --- |\n| `PHOTO ...` | an image |\n\n'
        '| counting | |\n| --- | --- |\n'
        '| `--n N`, `-n N` | sheep per row (default: 3) |\n'
        '| `--mode {fast,slow}` | sheep is fast, or 100% right; required |\n'
        '| `--breed NAME` | the breed: `breed_number_0`, `breed_number_1`, `breed_number_2`, `breed_number_3` |\n'
        '| `--flip`, `--no-flip` | turn the sheep |\n'
        '| `--box LOW HIGH` | a range |\n\n'
        '**files in `--out`**\n\n'
        '| | |\n| --- | --- |\n| `log` | one line for each sheep |\n| `a.png` | the picture |\n\n'
        '**speed**\n\nFast, with `--n 2` also at night.\n'
    )


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('use --out, or -o', 'use `--out`, or `-o`'),
        ('--lr 0 --iteration 1 trains nothing', '`--lr 0 --iteration 1` trains nothing'),
        ('--output labels/ is a folder', '`--output labels/` is a folder'),
        ('--set width=0.5 (see --help)', '`--set` `width=0.5` (see `--help`)'),
        ('"*.jpg" and photo.jpg.', '"`*.jpg`" and `photo.jpg`.'),
        ('{"a": 1, ...}; rtsp://..., more', '`{"a": 1, ...}`; `rtsp://...`, more'),
        ('-1 for the CPU, 0.5 x 2, e.g. and/or - as above', '-1 for the CPU, 0.5 x 2, e.g. and/or - as above'),
        ('a fine-tuned well-known file', 'a fine-tuned well-known file'),
        ("Chainer_Mask_R-CNN's file_name", "Chainer_Mask_R-CNN's `file_name`"),
        ('nms(x) of (N, 4)', 'nms(x) of (N, 4)'),
    ],
)
def test_plain_text_becomes_markdown(text, expected):
    from markdown_text import to_markdown

    assert to_markdown(text) == expected


def test_every_convention_of_every_dialect_is_in_the_tables(root):
    text = (root / 'docs' / 'formats.md').read_text(encoding='utf-8')
    for group in dataclasses.fields(Dialect)[1:]:
        (section,) = re.findall(rf'^#### [^\n]*: `{group.name}`\n(.*?)(?=^#### |^<!--)', text, re.MULTILINE | re.DOTALL)
        names = [field.name for field in dataclasses.fields(getattr(DIALECTS['detectron'], group.name))]
        assert [name for name in names if f'\n- `{name}`: ' not in section] == []
        rows = re.findall(r'^\| `(\w+)` \|', section, re.MULTILINE)
        common = re.findall(r'(?:In all dialects, |, | and )`(\w+)` is ', section)
        assert sorted(rows + common) == sorted(names)


def test_values_of_the_tables(root):
    """The order of the columns, and values as the programs document them."""
    text = (root / 'docs' / 'formats.md').read_text(encoding='utf-8')
    head = '| | Detectron | old Chainer port | Matterport | MindSpore | MobileNets | torchvision | detectron2 |\n'
    assert text.count(head) >= 9
    assert '| `offset` | 1 | 0 | 0 | 1 | 1 | 0 | 0 |\n' in text
    assert '| `rpn_smooth_l1_beta` | 1/9 | 1/9 | 1 | 1/9 | 1/9 | 1/9 | 0 |\n' in text
    assert '| `roi_batch` | 512 | 128 | 512 | 512 | 512 | 512 | 512 |\n' in text


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (True, 'yes'),
        (False, 'no'),
        (1.0, '1'),
        (1e-5, '1e-05'),
        (1 / 9, '1/9'),
        (0.5, '0.5'),
        (102.9801, '102.9801'),
        (4.135166556742356, '4.135167'),
        (float('inf'), 'infinity'),
        (None, 'none'),
        ((10.0, 5.0), '10, 5'),
        ('BGR', '`BGR`'),
    ],
)
def test_values_become_markdown(value, text):
    from dialect_tables import format_value

    assert format_value(value) == text


def test_the_meaning_of_a_field_is_one_line():
    from dialect_tables import field_descriptions

    class Conventions:
        """Numbers.

        Args:
            first: The ``first``
                number (:func:`mask_rcnn.load`).
            second: Another one.

        More text.
        """

    meanings = {'first': 'The `first` number (`mask_rcnn.load`).', 'second': 'Another one.'}
    assert field_descriptions(Conventions) == meanings
