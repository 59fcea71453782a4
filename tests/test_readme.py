"""The READMEs against the programs they describe, and against each other."""

import argparse
import importlib
import re

import pytest

from mask_rcnn.cli import COMMANDS

READMES = ('README.md', 'README_JP.md')


def flags_of_tables(text: str) -> dict[str, set[str]]:
    """Return the flags of each table whose head names a command ``mask-rcnn NAME``."""
    tables = {}
    for head, body in re.findall(
        r'^\| ([^\n]*`mask-rcnn (?:\w+)`[^\n]*)\|\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)', text, re.MULTILINE
    ):
        command = re.search(r'`mask-rcnn (\w+)`', head)[1]
        first_cells = [row.split('|')[1] for row in body.splitlines()]
        tables[command] = {flag.replace('_', '-') for flag in re.findall(r'--[\w-]+', ' '.join(first_cells))}
    return tables


def flags_of_command(name: str) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f'mask_rcnn.cli.{name}').configure(parser)
    return {option for action in parser._actions for option in action.option_strings if option.startswith('--')}


@pytest.mark.parametrize('name', READMES)
def test_every_flag_is_described_and_none_is_made_up(root, name):
    tables = flags_of_tables((root / name).read_text(encoding='utf-8'))
    assert set(tables) == set(COMMANDS)
    for command, flags in tables.items():
        assert flags == flags_of_command(command), command


def code_lines(text: str) -> list[str]:
    """Return the commands and the code of a README, without their comments."""
    lines = re.findall(r'^    (\S.*)$', text, re.MULTILINE)
    for block in re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        lines += block.splitlines()
    return [re.sub(r'\s+#.*', '', line).strip() for line in lines]


def test_both_readmes_give_the_same_commands(root):
    english, japanese = ((root / name).read_text(encoding='utf-8') for name in READMES)
    assert code_lines(english) == code_lines(japanese)
    assert len(code_lines(english)) > 15


@pytest.mark.parametrize('name', READMES)
def test_every_file_that_is_named_exists(root, name):
    text = (root / name).read_text(encoding='utf-8')
    named = set(re.findall(r'`((?:mask_rcnn|tests|scripts|utils|docs|modelfiles)/[\w./]*[\w/])`', text))
    named |= set(re.findall(r'python ((?:\w+/)*\w+\.py)', text)) | set(re.findall(r'\]\((\w+/[\w.]+)\)', text))
    produced = {'modelfiles/model_final.pkl', 'modelfiles/e2e_mask_rcnn_R-50-C4_1x_d2c.npz'}
    assert [path for path in sorted(named - produced) if not (root / path).exists()] == []
    assert len(named) > 8


def test_getcoco_is_executable(root):
    assert (root / 'getcoco.sh').stat().st_mode & 0o111
