"""The READMEs describe the programs as they are, and agree with each other."""

import re

import pytest

from tests.support.commands import COMMAND_NAMES
from tests.support.contracts import parser_of
from tests.support.old_port_table import differing_fields, named_fields

READMES = ('README.md', 'README_JP.md')


def flags_of_tables(text: str) -> dict[str, set[str]]:
    """Return command -> flags, for each table whose head names a command ``mask-rcnn NAME``."""
    tables = {}
    for head, body in re.findall(
        r'^\| ([^\n]*`mask-rcnn (?:(?:data|inspect) )?(?:\w+)`[^\n]*)\|\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)',
        text,
        re.MULTILINE,
    ):
        command = re.search(r'`mask-rcnn ((?:(?:data|inspect) )?\w+)`', head)[1]
        first_cells = [row.split('|')[1] for row in body.splitlines()]
        tables[command] = {flag.replace('_', '-') for flag in re.findall(r'--[\w-]+', ' '.join(first_cells))}
    return tables


@pytest.mark.parametrize('name', READMES)
def test_every_option_is_described_and_exists(root, name):
    """A table names at least one spelling of every option, and no flag that the command does not have."""
    tables = flags_of_tables((root / name).read_text(encoding='utf-8'))
    assert set(tables) == set(COMMAND_NAMES)
    for command, described in tables.items():
        options = [set(action.option_strings) for action in parser_of(command)._actions if action.dest != 'help']
        assert described <= set().union(*options), command
        assert [sorted(flags) for flags in options if flags and not flags & described] == [], command


def code_lines(text: str) -> list[str]:
    """Return the commands and the code of a README without their comments."""
    lines = re.findall(r'^    (\S.*)$', text, re.MULTILINE)
    for block in re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        lines += block.splitlines()
    return [re.sub(r'\s+#.*', '', line).strip() for line in lines]


def test_both_readmes_contain_the_same_commands(root):
    english, japanese = ((root / name).read_text(encoding='utf-8') for name in READMES)
    assert code_lines(english) == code_lines(japanese)


def test_the_commands_use_every_entry_point(root):
    """So :func:`code_lines` finds what it must find."""
    lines = '\n'.join(code_lines((root / READMES[0]).read_text(encoding='utf-8')))
    entry_points = [
        'make demo',
        'make demo-coco',
        'python demo.py',
        'python train.py',
        'getcoco.sh',
        'mask-rcnn evaluate',
    ]
    entry_points += [f'utils/{path.name}' for path in (root / 'utils').glob('*_parser.py')]
    assert [entry for entry in entry_points if entry not in lines] == []
    assert 'import mask_rcnn' in lines


def named_files(text: str) -> set[str]:
    """Return the paths that a README names: in backticks, as scripts to run, and as targets of links."""
    folders = 'mask_rcnn|tests|scripts|utils|docs|modelfiles'
    return {
        *re.findall(rf'`((?:{folders})/[\w./]*[\w/])`', text),
        *re.findall(r'python ((?:\w+/)*\w+\.py)', text),
        *re.findall(r'\]\((\w+/[\w.]+)\)', text),
    }


def test_named_files_are_found():
    text = 'See `docs/a.md` and `tests/golden/`; run `python utils/b.py --flag`. ![picture](docs/c.png) `output.png`'
    assert named_files(text) == {'docs/a.md', 'tests/golden/', 'utils/b.py', 'docs/c.png'}


@pytest.mark.parametrize('name', READMES)
def test_every_named_file_exists(root, name):
    named = named_files((root / name).read_text(encoding='utf-8'))
    written = {'modelfiles/model_final.pkl', 'modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz'}
    assert [path for path in sorted(named - written) if not (root / path).exists()] == []
    assert {'train.py', 'demo.py', 'modelfiles/README.md'} <= named


@pytest.mark.parametrize('name', READMES)
def test_the_table_of_the_old_port_names_every_field_that_differs(root, name):
    text = (root / name).read_text(encoding='utf-8')
    assert named_fields(text) == differing_fields()


def test_getcoco_is_executable(root):
    assert (root / 'getcoco.sh').stat().st_mode & 0o111
