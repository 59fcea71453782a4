"""The flags of all commands: both spellings, argument types, and the console command itself."""

import argparse
import importlib
from pathlib import Path

import pytest

from mask_rcnn.cli import main, options
from mask_rcnn.cli.command import ArgumentParser, run_and_report_errors
from tests.support.commands import COMMAND_NAMES, module_name


def parser_of(command: str) -> ArgumentParser:
    """Return the parser of a command."""
    parser = ArgumentParser(prog=command)
    importlib.import_module(module_name(command)).configure(parser)
    return parser


def long_flags(command: str) -> dict[str, argparse.Action]:
    """Return the actions of a command by their long flags."""
    actions = parser_of(command)._actions
    return {name: action for action in actions for name in action.option_strings if name.startswith('--')}


@pytest.mark.parametrize('command', COMMAND_NAMES)
def test_documented_flags_have_hyphens(command):
    assert not [name for name in long_flags(command) if '_' in name]
    assert not [word for word in parser_of(command).format_help().split() if word.startswith('--') and '_' in word]


@pytest.mark.parametrize('command', COMMAND_NAMES)
def test_every_flag_may_be_written_with_underscores(command):
    parser = parser_of(command)
    for action in parser._actions:
        action.required = False  # so that each flag can be parsed alone
    positional = ['x' for action in parser._actions if not action.option_strings]
    for name, action in long_flags(command).items():
        if name == '--help':
            continue
        values = {'fields': 'width=0.5', 'fraction': '0.5', 'box': '0,0,9,9'}
        value = str(next(iter(action.choices))) if action.choices else values.get(action.dest, '1')
        n_values = action.nargs if isinstance(action.nargs, int) else action.nargs != '?'
        rest = [value] * n_values
        hyphens, underscores = (
            parser.parse_args([*positional, *words])
            for words in ([name, *rest], ['--' + name[2:].replace('-', '_'), *rest])
        )
        assert hyphens == underscores and getattr(hyphens, action.dest) is not None, name


@pytest.mark.parametrize(
    ('words', 'dest', 'value'),
    [
        (['--lr_step=7'], 'lr_step', 7),
        (['--lr_st', '7'], 'lr_step', 7),
        (['--lr-st', '7'], 'lr_step', 7),
        (['--step', '7'], 'step_size', 7),
        (['--freeze_bn'], 'freeze_bn', True),
        (['--no_roialign'], 'roialign', False),
        (['--out=a_b/c_d'], 'out', Path('a_b/c_d')),
        (['--pretrained', 'a_b.npz'], 'pretrained', 'a_b.npz'),
    ],
)
def test_spellings_of_flags_and_values(words, dest, value):
    assert getattr(parser_of('train').parse_args(words), dest) == value


#: Command lines of DeNA's Chainer_Mask_R-CNN, with every flag that its programs had: the command, the words, and the
#: values that differ from those of the shortest command line.
OLD_COMMAND_LINES = [
    ('demo', '--image a.jpg', {'image': [Path('a.jpg')], 'background': False}),
    ('demo', '--image a.jpg --background', {'image': [Path('a.jpg')], 'background': True}),
    ('demo', '--background --image a.jpg', {'image': [Path('a.jpg')], 'background': True}),
    (
        'demo',
        '--gpu -1 --modelfile m.npz --image a.jpg --roi_size 7 --roialign --contour --background --bn2affine '
        '--extractor resnet101',
        {
            'gpu': -1,
            'modelfile': Path('m.npz'),
            'image': [Path('a.jpg')],
            'roi_size': 7,
            'roialign': True,
            'contour': True,
            'background': True,
            'bn2affine': True,
            'extractor': 'resnet101',
        },
    ),
    ('demo', '--image a.jpg -r 14', {'image': [Path('a.jpg')], 'roi_size': 14}),
    (
        'train',
        '--dataset coco2017 --extractor resnet50 --gpu 0 --lr 1e-4 --batchsize 16 --freeze_bn --bn2affine '
        '--out result --seed 0 --roialign --lr_step 480000 --lr_initialchange 800 --pretrained imagenet '
        '--snapshot 4000 --validation 30000 --iteration 800000 --roi_size 14 --gamma 1',
        {
            'dataset': 'coco2017',
            'extractor': 'resnet50',
            'gpu': 0,
            'lr': 1e-4,
            'batchsize': 16,
            'freeze_bn': True,
            'bn2affine': True,
            'seed': 0,
            'roialign': True,
            'lr_step': 480000,
            'lr_initialchange': 800,
            'pretrained': 'imagenet',
            'snapshot': 4000,
            'validation': 30000,
            'iteration': 800000,
            'roi_size': 14,
        },
    ),
    (
        'train',
        '-g -1 -l 0.01 -b 2 -o out -s 3 -ss 100 -ls 200 -li 10 -p p.npz -i 300 -r 7 --resume m.npz --unfreeze_bn',
        {
            'gpu': -1,
            'lr': 0.01,
            'batchsize': 2,
            'out': Path('out'),
            'seed': 3,
            'step_size': 100,
            'lr_step': 200,
            'lr_initialchange': 10,
            'pretrained': 'p.npz',
            'iteration': 300,
            'roi_size': 7,
            'resume': Path('m.npz'),
            'unfreeze_bn': True,
        },
    ),
    ('train', '--step_size 100 --gamma 0.5', {'step_size': 100, 'gamma': 0.5}),
    ('train', '--extractor resnet50 --roialign', {'extractor': 'resnet50', 'roialign': True}),
    (
        'train',
        '--lr 0 --iteration 1 --validation 1 --resume result/snapshot_model.npz',
        {'lr': 0, 'iteration': 1, 'validation': 1, 'resume': Path('result/snapshot_model.npz')},
    ),
    (
        'demo',
        '--image photo.jpg --modelfile result/snapshot_model.npz --contour',
        {'image': [Path('photo.jpg')], 'modelfile': Path('result/snapshot_model.npz'), 'contour': True},
    ),
]


@pytest.mark.parametrize(('command', 'words', 'values'), OLD_COMMAND_LINES)
def test_old_command_lines_are_accepted(command, words, values):
    parser = parser_of(command)
    defaults = {action.dest: action.default for action in parser._actions if action.dest != 'help'}
    parsed = vars(parser.parse_args(words.split()))
    assert {name: parsed[name] for name in defaults} == defaults | values


def test_no_image_is_taken_for_a_value_of_the_old_flag(capsys):
    with pytest.raises(SystemExit):
        parser_of('demo').parse_args(['--background', 'a.jpg', '--image', 'b.jpg'])
    assert 'images follow --image' in capsys.readouterr().err


@pytest.mark.parametrize(('command', 'rest'), [('demo', ['--image', 'a']), ('evaluate', ['--modelfile', 'm'])])
def test_the_short_flag_of_the_gpu(command, rest):
    assert parser_of(command).parse_args(['-g', '1', *rest]).gpu == 1


@pytest.mark.parametrize('command', ['demo', 'train'])
def test_the_help_explains_what_differs_from_the_old_programs(command):
    text = ' '.join(parser_of(command).format_help().split())
    assert '--roialign switched RoIAlign off' in text
    if command == 'demo':
        assert '--background (no window) is accepted and has no effect' in text
    else:
        assert 'snapshot_model.old.npz' in text


def test_arguments_after_two_hyphens_are_not_flags():
    assert [str(path) for path in parser_of('info').parse_args(['--', '--my_file']).files] == ['--my_file']


@pytest.mark.parametrize(
    ('parse', 'good', 'bad', 'expected'),
    [
        (options.non_negative_int, '0', '-1', 'a non-negative integer'),
        (options.positive_int, '1', '0', 'a positive integer'),
        (options.positive_int, '3', '1.5', 'a positive integer'),
        (options.non_negative_float, '0', 'inf', 'a non-negative number'),
        (options.positive_float, '0.5', '0', 'a positive number'),
        (options.positive_float, '1e-3', 'nan', 'a positive number'),
        (options.fraction, '1', '1.1', 'a number from 0 to 1'),
        (options.gpu_number, '-1', '-2', 'the number of a GPU or -1'),
    ],
)
def test_argument_types(parse, good, bad, expected):
    assert parse(good) == float(good)
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        parse(bad)
    assert str(raised.value) == f'{bad!r} is not {expected}'


@pytest.mark.parametrize('command', COMMAND_NAMES)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), '--help'])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f'usage: mask-rcnn {command} ')


@pytest.mark.parametrize(
    ('error', 'line', 'status'),
    [
        (OSError(28, 'No space left on device', 'a.png'), 'a.png: No space left on device', 1),
        (OSError('no file name'), 'no file name', 1),
        (KeyboardInterrupt(), 'interrupted', 130),
        (ValueError('listed'), 'listed', 1),
    ],
)
def test_errors_become_one_line_and_a_status(error, line, status, capsys):
    def action():
        raise error

    assert run_and_report_errors(action, (ValueError,)) == status
    assert capsys.readouterr().err == f'error: {line}\n'


@pytest.mark.parametrize('text', ['nan', 'inf', '-inf', '-1', '1e400', 'NaN', '', '1,5', '0x10', '1' * 5000, '-0.5'])
def test_every_numeric_option_refuses_what_is_not_a_number_of_its_range(text):
    for parse in (
        *(options.non_negative_int, options.positive_int),
        *(options.non_negative_float, options.positive_float, options.fraction),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match='is not a') as caught:
            parse(text)
        assert len(str(caught.value)) < 200
    with pytest.raises(argparse.ArgumentTypeError, match='not a positive integer of at most 2147483647'):
        options.positive_int(str(2**31))
    assert options.non_negative_int('2147483647') == 2**31 - 1
