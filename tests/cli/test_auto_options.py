"""``train --auto``: the options that it adds, and the run of the command that it prints."""

import dataclasses
import json
import shlex
from types import SimpleNamespace

import pytest

import mask_rcnn
from mask_rcnn.cli import train
from mask_rcnn.cli.auto_options import choose_fields, choose_options
from mask_rcnn.datasets.inspection.suggestions import Settings
from mask_rcnn.training import plots
from mask_rcnn.training.snapshot import write_snapshot
from tests.support.scenes import Scenes, write_coco
from tests.support.small_train import NETWORK
from tests.support.tiny_training import META, make_trainer

#: Settings for 4 images per iteration in two passes; the rate of the warm-up is 0.0005.
SETTINGS = Settings(
    min_size=400,
    max_size=600,
    anchor_sizes=(16, 32, 64, 128, 256),
    batch_size=4,
    subdivisions=2,
    rois_per_image=128,
    lr=0.005,
    warmup=300,
    steps=(2000, 2666),
    iterations=3000,
    validation_interval=200,
    clip_gradient=10.0,
    max_detections=100,
    reasons={},
)
NOTHING = dict.fromkeys((*SETTINGS.train_options, 'schedule'))


def choose(has_val=True, keeps_network=False, **given):
    return choose_options(SETTINGS, {**NOTHING, **given}, has_val=has_val, keeps_network=keeps_network)


def test_without_options_of_the_user_all_settings_are_added():
    assert choose() == {
        'min_size': 400,
        'max_size': 600,
        'anchor_sizes': (16, 32, 64, 128, 256),
        'batchsize': 4,
        'subdivisions': 2,
        'roi_batch': 128,
        'lr': 0.0005,
        'lr_initialchange': 300,
        'step_size': 2000,
        'lr_step': 2666,
        'iteration': 3000,
        'validation': 200,
        'clip_gradient': 10.0,
    }


@pytest.mark.parametrize(
    ('given', 'added'),
    [
        ({'min_size': 800}, {'max_size': 1200, 'anchor_sizes': (32, 64, 128, 256, 512)}),
        ({'max_size': 200}, {'min_size': 200, 'anchor_sizes': (8, 16, 32, 64, 128)}),
        ({'max_size': 900}, {'min_size': 400, 'anchor_sizes': (16, 32, 64, 128, 256)}),
        # Twice the images per iteration: twice the rate, half the iterations, the same images per pass.
        (
            {'batchsize': 8},
            {'subdivisions': 4, 'lr': 0.001, 'iteration': 1500, 'step_size': 1000, 'lr_step': 1333, 'validation': 100},
        ),
        ({'batchsize': 1}, {'subdivisions': 1, 'lr': 0.000125, 'iteration': 12000, 'lr_initialchange': 500}),
        ({'subdivisions': 8}, {'batchsize': 8, 'lr': 0.001}),
        ({'iteration': 900}, {'step_size': 600, 'lr_step': 800, 'lr_initialchange': 225, 'validation': 60}),
        ({'iteration': 20}, {'step_size': 13, 'lr_step': 17, 'lr_initialchange': 5, 'validation': 10}),
        ({'iteration': 1}, {'step_size': 1, 'lr_step': 1, 'lr_initialchange': 0, 'validation': 1}),
        ({'step_size': 2900}, {'lr_step': 2900, 'iteration': 3000}),
        ({'lr_step': 1000}, {'step_size': 1000, 'iteration': 3000}),
        ({'lr': 0.1, 'roi_batch': 64, 'clip_gradient': 1.0}, {'iteration': 3000, 'batchsize': 4}),
    ],
)
def test_options_of_the_user_win_and_determine_the_others(given, added):
    chosen = choose(**given)
    assert chosen.keys() == NOTHING.keys() - given.keys() - {'schedule'}
    assert {name: chosen[name] for name in added} == added


def test_a_schedule_of_detectron_replaces_rates_and_length():
    chosen = choose(schedule='detectron-1x')
    assert not chosen.keys() & {'lr', 'lr_initialchange', 'step_size', 'lr_step', 'iteration'}
    assert (chosen['batchsize'], chosen['validation']) == (4, 360000 // 15)  # 1.44 million images


def test_no_evaluations_without_data_and_no_sizes_with_a_model():
    assert choose().keys() - choose(has_val=False).keys() == {'validation'}
    assert choose().keys() - choose(keeps_network=True).keys() == {'min_size', 'max_size', 'anchor_sizes'}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The options that name a dataset of four images."""
    for name in ('plot_losses', 'plot_ap'):
        monkeypatch.setattr(plots, name, lambda path, log: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my photos').mkdir()
    path = write_coco(Scenes(), tmp_path / 'my photos')
    return ['--train-annotations', str(path), '--train-images', 'my photos']


def test_the_printed_command_has_the_same_losses(data, capsys, tmp_path):
    command = [*NETWORK, *data, '--iteration', '2', '--min-size', '64', '--batchsize', '2', '--workers', '0']
    assert train.main([*command, '--auto', '--gpu', '-1', '--out', 'auto']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('--auto: settings for 3 images on a CPU with ')
    words = shlex.split(lines[1])
    assert words[:2] == ['mask-rcnn', 'train'] and '--auto' not in words and 'my photos' in words
    assert words.count('--iteration') == words.count('--batchsize') == words.count('--min-size') == 1
    assert {'--max-size', '--anchor-sizes', '--lr', '--clip-gradient', '--roi-batch'} <= set(words)
    assert '--validation' not in words  # there are no evaluation data
    words[words.index('--out') + 1] = 'explicit'
    assert train.main(words[2:]) == 0
    logs = [json.loads((tmp_path / name / 'log').read_text()) for name in ('auto', 'explicit')]
    losses = [[entry['main/loss'] for entry in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.parametrize(
    ('limit', 'given', 'resume', 'expected'),
    [
        (100, {'width': 0.5}, None, {}),
        (300, {}, None, {'max_detections': 300}),
        (1000, {'anchor_ratios': (1, 2)}, None, {'anchor_ratios': (1, 2), 'max_detections': 1000}),
        (1000, {'max_detections': 50}, None, {}),
        (1000, {}, 'model.npz', {}),
    ],
)
def test_crowds_raise_the_limit_of_detections(limit, given, resume, expected):
    """A second --set replaces the first one, so it contains the user's fields."""
    arguments = SimpleNamespace(fields=tuple(given.items()), resume=resume)
    assert choose_fields(dataclasses.replace(SETTINGS, max_detections=limit), arguments) == expected


def test_the_fields_are_part_of_the_printed_command(data, capsys, monkeypatch):
    monkeypatch.setattr(Settings, 'network_fields', {'max_detections': 300})
    command = [*NETWORK, *data, '--iteration', '1', '--min-size', '64', '--batchsize', '1', '--workers', '0']
    assert train.main([*command, '--auto', '--gpu', '-1', '--out', 'auto']) == 0
    config = mask_rcnn.load('auto/model_iter_1.npz').config
    assert (config.max_detections, config.width, config.fpn_channels) == (300, 0.25, 16)


def refused(capsys, *arguments):
    assert train.main([*map(str, arguments), '--auto', '--gpu', '-1']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_where_there_is_nothing_to_choose(data, capsys, tmp_path):
    assert '--auto and --dataset shapes' in refused(capsys, '--dataset', 'shapes', '--pretrained', 'none')
    assert '--auto and --lr 0' in refused(capsys, *data, '--lr', 0, '--resume', 'm.npz')
    command = [*data, '--communicator', 'naive']
    assert '--auto and --communicator' in refused(capsys, *command)
    trainer = make_trainer(tmp_path, stop=(1, 'iteration'))
    trainer.run()
    write_snapshot(tmp_path / 'snapshot_iter_5.npz', trainer, META, {})
    line = refused(capsys, *data, '--resume', 'snapshot_iter_5.npz')
    assert '--auto and --resume snapshot_iter_5.npz contradict each other' in line and 'printed' in line


def test_data_that_cannot_be_read_are_named(data, capsys):
    assert train.main(['--train-annotations', 'none.json', '--train-images', '.', '--auto', '--gpu', '-1']) == 1
    assert capsys.readouterr().err.startswith('error: none.json: ')
