"""The pages for users of other programs name commands, options, classes and settings that exist here."""

import dataclasses
import functools
import importlib
import re

import pytest

import mask_rcnn
from mask_rcnn.config import Config
from tests.support import contracts
from tests.support.commands import COMMAND_NAMES
from tests.support.old_port_table import differing_fields, named_fields

PAGES = ('detectron', 'detectron2', 'matterport', 'mindspore', 'old-chainer-port', 'torchvision')

#: The scripts that are the same as a command.
SCRIPTS = {'demo.py': 'demo', 'train.py': 'train'}

#: The objects that the pages call by these names.
OBJECTS = {'model': mask_rcnn.MaskRCNN, 'detections': mask_rcnn.Detections}

accepts = functools.cache(contracts.accepts)


def code_of_right_cells(text: str) -> list[str]:
    """Return the code in the last cells of all tables whose head ends with ``here``."""
    spans = []
    for rows in re.findall(r'^\|[^\n]*\| here \|\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)', text, re.MULTILINE):
        for row in rows.splitlines():
            spans += re.findall(r'`([^`]+)`', row.rstrip(' |').rpartition(' | ')[2])
    return spans


def split_command(code: str) -> tuple[str, list[str]] | None:
    """Return the name of the command in a piece of code and its flags, ``None`` for other code."""
    words = re.sub(r'^(?:mpiexec (?:-\S+ \S+ )*)?', '', code).split()
    if words[:1] == ['python']:
        words = words[1:]
    if words[:1] == ['mask-rcnn']:
        name = next((name for name in COMMAND_NAMES if words[1 : 1 + len(name.split())] == name.split()), words[1])
        return name, flags_of(words)
    return (SCRIPTS[words[0]], flags_of(words)) if words and words[0] in SCRIPTS else None


def flags_of(words: list[str]) -> list[str]:
    """Return the flags among the words of a command line, long and short ones."""
    return [word for word in words if re.fullmatch(r'--[a-z][\w-]*|-[a-z]{1,2}', word)]


def unknown_in_command(command: str, flags: list[str]) -> list[str]:
    if command not in COMMAND_NAMES:
        return [f'mask-rcnn {command}']
    return [f'{command} {flag}' for flag in flags if not accepts(command, flag)]


def is_known_name(dotted: str) -> bool:
    """Return whether a name such as ``mask_rcnn.config.DENA`` or ``model.detect`` exists."""
    first, *names = dotted.split('.')
    value = OBJECTS.get(first) or importlib.import_module(first)
    for name in names:
        if not hasattr(value, name):
            try:
                value = importlib.import_module(f'{value.__name__}.{name}')
            except ImportError:
                return False
        else:
            value = getattr(value, name)
    return True


def unknown_names(code: str) -> list[str]:
    without_texts = re.sub(r"'[^']*'", '', code)
    names = re.findall(r'(?<![\w./])((?:mask_rcnn|model|detections)(?:\.[A-Za-z_]\w*)+)', without_texts)
    return [name for name in names if not is_known_name(name)]


def unknown_fields(code: str) -> list[str]:
    """Return what ``--set``, ``mask_rcnn.load`` and ``mask_rcnn.build`` name and ``Config`` does not have."""
    known = {field.name for field in dataclasses.fields(Config)} | {'gpu', 'bn2affine', 'dialect', 'class_names'}
    named = [word for words in re.findall(r'--set ([^-]+)', code) for word in re.findall(r'(\w+)=', words)]
    for arguments in re.findall(r'mask_rcnn\.(?:load|build)\((.*)\)', code):
        named += re.findall(r'(\w+)=', arguments)
    return [name for name in named if name not in known]


def problems_of(code: str) -> list[str]:
    command = split_command(code)
    problems = [] if command is None else unknown_in_command(*command)
    if command is None and re.fullmatch(r'--[a-z][\w-]*', code):
        problems = [] if any(accepts(name, code) for name in COMMAND_NAMES) else [code]
    return problems + (unknown_names(code) if command is None else []) + unknown_fields(code)


@pytest.mark.parametrize('page', PAGES)
def test_every_name_on_our_side_exists(root, page):
    text = (root / 'docs' / 'coming-from' / f'{page}.md').read_text(encoding='utf-8')
    spans = code_of_right_cells(text)
    assert sum(split_command(code) is not None for code in spans) >= 10
    assert [(code, problem) for code in spans for problem in problems_of(code)] == []


def test_the_table_of_the_old_port_names_every_field_that_differs(root):
    text = (root / 'docs' / 'coming-from' / 'old-chainer-port.md').read_text(encoding='utf-8')
    assert named_fields(text) == differing_fields()


@pytest.mark.parametrize('page', [*(f'coming-from/{page}' for page in PAGES), 'troubleshooting', 'security'])
def test_every_command_line_has_known_options(root, page):
    """Also those that need files of other programs, which no test runs."""
    text = (root / 'docs' / f'{page}.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```sh\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [command for command in map(split_command, lines) if command is not None]
    assert commands or page == 'security'
    assert [problem for command in commands for problem in unknown_in_command(*command)] == []


@pytest.mark.parametrize(
    ('code', 'problems'),
    [
        ('mask-rcnn train --no-such-flag', ['train --no-such-flag']),
        ('mpiexec -n 8 mask-rcnn data show --columns 3 -z', ['data show -z']),
        ('mask-rcnn forget', ['mask-rcnn forget']),
        ('train.py --set no_such_field=3 width=0.5', ['no_such_field']),
        ('--no-such-flag', ['--no-such-flag']),
        ("mask_rcnn.load('model.forget', no_such_field=3)", ['no_such_field']),
        ('mask_rcnn.config.NO_DIALECT', ['mask_rcnn.config.NO_DIALECT']),
        ('model.forget(1)', ['model.forget']),
        ('detections.draw(1)', []),
        ('mask_rcnn.weights.pretrained.load_pretrained(model, 1)', []),
    ],
)
def test_the_checks_find_what_does_not_exist(code, problems):
    assert problems_of(code) == problems
