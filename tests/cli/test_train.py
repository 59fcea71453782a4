"""``mask-rcnn train`` and ``mask-rcnn evaluate``: options, their conflicts, the initial model, and errors."""

import dataclasses
import errno
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import mask_rcnn

# Chainer is importable only after mask_rcnn.
# isort: split
import chainer

from mask_rcnn.cli import evaluate, initial_model, options, train, train_arguments, train_options
from mask_rcnn.cli.command import ArgumentParser, UsageError, parse_command_line
from mask_rcnn.cli.dataset_options import N_GENERATED
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.config import DETECTRON, MATTERPORT
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.coco_categories import COCO_CLASS_NAMES
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.evaluation import Metrics
from mask_rcnn.evaluation.coco import ResultsFileError
from mask_rcnn.io import atomic_file
from mask_rcnn.io.folder_lock import lock_folder
from mask_rcnn.models import builder
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.training import distributed
from mask_rcnn.training.schedule import step_schedule
from mask_rcnn.training.snapshot import write_snapshot
from mask_rcnn.training.trainer import TrainingOptions
from mask_rcnn.training.updater import NonFiniteLossError
from mask_rcnn.weights import formats
from tests.support.small_resnet import use_narrow_resnet
from tests.support.small_train import NETWORK
from tests.support.tiny_training import META, make_trainer

STEPS = {'warmup': 0, 'first_decay': 2, 'second_decay': 3}

SHAPES = ['--dataset', 'shapes', '--pretrained', 'none', '--gpu', '-1']


@pytest.fixture(autouse=True)
def small_network(monkeypatch, tmp_path):
    use_narrow_resnet(monkeypatch)
    monkeypatch.chdir(tmp_path)


class FakeRun:
    """A stand-in for a training run: the arguments of ``build_training_run``, and a run that ends at once."""

    def __init__(self, model, train_set, options, *, evaluate, val_set, configuration, communicator):
        self.model, self.train_set, self.options = model, train_set, options
        self.evaluate, self.val_set, self.communicator = evaluate, val_set, communicator
        self.configuration = configuration
        self.snapshots = self.stop_trigger = self.signal_handler = self.trainer = self.updater = self
        self.interrupted, self.signal, self.iteration = False, None, options.iterations
        self.early_stopping = None
        self.last = Path(options.out, f'snapshot_iter_{options.iterations}.npz')
        self.error = None

    def start(self):
        if self.error:
            raise self.error


class FakeRuns(list):
    """The runs that the command starts, with the attributes in ``changes``."""

    def __init__(self):
        self.changes = {}

    def build(self, *args, **kwargs):
        """Stand in for ``build_training_run``."""
        self.append(FakeRun(*args, **kwargs))
        vars(self[-1]).update(self.changes)
        return self[-1]


@functools.cache
def build_once(config, class_names, category_ids, build=mask_rcnn.build):
    """Build a network once per configuration, without random weights: most tests read only the configuration."""
    with no_initial_weights():
        return build(config, class_names=class_names, category_ids=category_ids)


@pytest.fixture
def fake_runs(monkeypatch):
    """The runs that the command starts; they train nothing."""
    runs = FakeRuns()
    monkeypatch.setattr(mask_rcnn, 'build', build_once)
    monkeypatch.setattr(train, 'build_training_run', runs.build)
    return runs


def run_of(fake_runs, *arguments):
    """Return the run that the command would start."""
    assert train.main([*SHAPES, *map(str, arguments)]) == 0
    return fake_runs[-1]


def test_defaults_match_the_readme(fake_runs):
    run = run_of(fake_runs)
    options, config = run.options, run.model.config
    assert options.schedule == step_schedule(1e-4, warmup=800, first_decay=400000, second_decay=480000)
    assert (options.iterations, options.batch_size, options.subdivisions) == (800000, 8, 1)
    assert (options.snapshot_interval, options.eval_interval, options.keep) == (4000, 30000, 3)
    assert (options.seed, options.gamma, options.out, options.clip) == (0, 1, 'result', None)
    assert options.sampling.roi_batch == 512 and not options.freeze_bn and not options.tensorboard
    assert (config.extractor, config.roi_align, config.roi_size) == ('resnet50', True, 14)
    assert (config.min_size, config.max_size, config.n_fg_class) == (128, 128, 3)
    assert run.model.class_names == ('square', 'circle', 'triangle')


def pre_and_post_nms(run):
    return run.options.sampling.train_pre_nms, run.options.sampling.train_post_nms


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ('--norm gn', ('gn', 'none', 0, 2, False)),
        ('--norm gn --extractor resnet50_fpn', ('gn', 'gn', 4, 1, True)),
        ('--norm gn --extractor mobilenet_v1_fpn --set width=2 box_fcs=2', ('gn', 'gn', 4, 2, True)),
    ],
)
def test_group_normalisation_selects_detectrons_heads(fake_runs, monkeypatch, flags, expected):
    monkeypatch.setattr(ResNet, 'stem_channels', 32)
    config = run_of(fake_runs, *flags.split()).model.config
    stride_in_3x3 = config.dialect.backbone.stride_in_3x3
    assert (config.norm, config.head_norm, config.box_convs, config.box_fcs, stride_in_3x3) == expected


@pytest.mark.parametrize('norm', [None, 'affine', 'bn', 'gn'])
@pytest.mark.parametrize(('file', 'expected'), [('gn', ('gn', 'gn')), ('bn', None)])
def test_pretrained_normalised_heads(fake_runs, monkeypatch, capsys, norm, file, expected):
    """The heads follow the backbone; weights with group normalisation fit only a network with it, and vice versa."""
    monkeypatch.setattr(ResNet, 'stem_channels', 32)
    network = {'fpn_channels': 32, 'mask_channels': 32, 'head_channels': 16, 'n_fg_class': 3}
    mask_rcnn.save('file.npz', builder.build('resnet50_fpn_gn', norm=file, head_norm=file, **network))
    flags = [*SHAPES[:2], *SHAPES[4:], '--pretrained', 'file.npz', *(['--norm', norm] if norm else [])]
    status = train.main(flags)
    if norm not in ((None, 'gn') if file == 'gn' else (None, 'affine', 'bn')):
        assert status == 1 and f"has norm='{file}', but the model has norm='{norm}'" in capsys.readouterr().err
        return
    config = fake_runs[-1].model.config
    assert status == 0 and (config.norm, config.head_norm) == (expected or (norm or 'affine',) * 2)
    assert (config.box_convs, config.box_fcs) == (4, 1)


def test_channels_that_groups_do_not_divide_are_one_line(fake_runs, capsys):
    assert train.main([*SHAPES, '--extractor', 'mobilenet_v1_fpn', '--norm', 'gn', '--set', 'fpn_channels=48']) == 2
    message = '/norm: group normalisation with 32 groups needs a multiple of 32 channels, not 48'
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('flags', 'read', 'expected'),
    [
        ('--iteration 7', lambda run: run.options.iterations, 7),
        ('-i 7', lambda run: run.options.iterations, 7),
        ('--lr 0.01', lambda run: run.options.schedule.rate(0), 0.01),
        ('-l 0.01', lambda run: run.options.schedule.rate(800), 0.1),
        ('--lr_initialchange 5', lambda run: run.options.schedule.rate(5), 1e-3),
        ('-li 5', lambda run: run.options.schedule.rate(4), 1e-4),
        ('--step_size 900', lambda run: run.options.schedule.rate(900), 1e-4),
        ('-ss 900', lambda run: run.options.schedule.rate(899), 1e-3),
        ('--lr_step 400001', lambda run: run.options.schedule.rate(400001), 1e-5),
        ('-ls 400001', lambda run: run.options.schedule.rate(400000), 1e-4),
        ('--schedule detectron-1x -b 16', lambda run: run.options.iterations, 90000),
        ('--schedule detectron-2x -b 16', lambda run: run.options.schedule.rate(1000), 0.02),
        ('--schedule detectron-1x -i 10', lambda run: run.options.iterations, 10),
        ('--batchsize 2', lambda run: run.options.batch_size, 2),
        ('-b 2', lambda run: run.options.batch_size, 2),
        ('--subdivisions 4', lambda run: run.options.subdivisions, 4),
        ('--roi-batch 64', lambda run: run.options.sampling.roi_batch, 64),
        ('--train-proposals 300', lambda run: pre_and_post_nms(run), (1800, 300)),
        ('--train-proposals 300 --extractor resnet50_fpn', lambda run: pre_and_post_nms(run), (300, 300)),
        ('--extractor resnet101_fpn', lambda run: pre_and_post_nms(run), (2000, 2000)),
        ('--gamma 0.5', lambda run: run.options.gamma, 0.5),
        ('--clip-gradient 35', lambda run: run.options.clip, 35),
        ('--seed 3', lambda run: run.options.seed, 3),
        ('-s 3', lambda run: (run.train_set[0].image == ShapesDataset(1, seed=3)[0].image).all(), True),
        ('--out new/folder', lambda run: run.options.out, 'new/folder'),
        ('-o folder', lambda run: run.options.out, 'folder'),
        ('--workers 3', lambda run: run.options.workers, 3),
        ('--snapshot 5', lambda run: run.options.snapshot_interval, 5),
        ('--keep 7', lambda run: run.options.keep, 7),
        ('--validation 6', lambda run: run.options.eval_interval, 6),
        ('--validation 0', lambda run: run.options.eval_interval, 0),
        ('--early-stop 4', lambda run: run.options.patience, 4),
        ('--extractor resnet101', lambda run: run.model.config.extractor, 'resnet101'),
        (
            '--extractor resnet50_fpn',
            lambda run: (run.model.config.extractor, run.model.config.roi_size),
            ('resnet50_fpn', 7),
        ),
        (
            '--extractor mobilenet_v1_fpn --set width=0.5 fpn_channels=8 anchor_ratios=[1,2.5]',
            lambda run: (run.model.config.width, run.model.config.fpn_channels, run.model.config.anchor_ratios),
            (0.5, 8, (1, 2.5)),
        ),
        ('--norm affine', lambda run: run.model.config.norm, 'affine'),
        ('--norm bn', lambda run: run.model.config.norm, 'bn'),
        ('--unfreeze_bn', lambda run: (run.options.freeze_bn, run.model.config.norm), (False, 'bn')),
        ('--unfreeze_bn --norm bn', lambda run: run.model.config.norm, 'bn'),
        ('--freeze_bn', lambda run: (run.options.freeze_bn, run.model.config.norm), (True, 'bn')),
        ('--bn2affine', lambda run: run.model.config.norm, 'affine'),
        ('--no-roialign', lambda run: run.model.config.roi_align, False),
        ('--roialign', lambda run: run.model.config.roi_align, True),
        ('--roi_size 7', lambda run: run.model.config.roi_size, 7),
        ('-r 7', lambda run: run.model.config.roi_size, 7),
        ('--min-size 96', lambda run: (run.model.config.min_size, run.model.config.max_size), (96, 96)),
        (
            '--min-size 96 --max-size 192',
            lambda run: (run.train_set.image_size(0), run.model.config.max_size),
            ((96, 96), 192),
        ),
        ('--dataset shapes', lambda run: (run.model.config.rpn_post_nms, run.model.config.min_size), (100, 128)),
        (
            '--dataset shapes-rich',
            lambda run: (run.model.config.n_fg_class, run.train_set.image_size(0), len(run.train_set)),
            (8, (160, 160), 100000),
        ),
        ('--anchor-sizes 16 32 48', lambda run: run.model.config.anchor_sizes, (16, 32, 48)),
        (
            '--tensorboard --seed 7',
            lambda run: (run.options.tensorboard, run.configuration['command_line']['seed'], len(run.val_set) > 4),
            (True, 7, True),
        ),
        ('-g -1', lambda run: run.model.xp, np),
    ],
)
def test_flags_reach_the_run(fake_runs, flags, read, expected):
    if 'tensorboard' in flags:
        pytest.importorskip('tensorboardX')
    result = read(run_of(fake_runs, *flags.split()))
    assert result == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def refused(capsys, *arguments, given=SHAPES):
    """Run with bad arguments and return the error line."""
    assert train.main([*given, *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    return error


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        ('--schedule detectron-1x --lr 1e-3', ('--schedule', '--lr')),
        ('--schedule detectron-1x --lr-step 5', ('--schedule', '--lr-step')),
        ('--schedule detectron-1x --step_size 5', ('--schedule', '--step-size')),
        ('--schedule detectron-1x --lr_initialchange 0', ('--schedule', '--lr-initialchange')),
        ('--step-size 9 --lr-step 8', ('--step-size', '--lr-step')),
        ('--subdivisions 9', ('--subdivisions', '--batchsize')),
        ('--norm bn --bn2affine', ('--norm', '--bn2affine')),
        ('--norm affine --freeze-bn', ('--norm', '--freeze-bn')),
        ('--norm gn --freeze-bn', ('--norm', '--freeze-bn')),
        ('--norm gn --bn2affine', ('--norm', '--bn2affine')),
        ('--unfreeze_bn --freeze_bn', ('--unfreeze-bn', '--freeze-bn')),
        ('--unfreeze_bn --bn2affine', ('--unfreeze-bn', '--bn2affine')),
        ('--unfreeze_bn --norm affine', ('--unfreeze-bn', '--norm')),
        ('--snapshot 0 --keep 2', ('--snapshot', '--keep')),
        ('--resume model.npz', ('--resume', '--pretrained')),
        ('--extractor resnet50_fpn --anchor-sizes 8 16', ('resnet50_fpn', '5 levels')),
        ('--data-dir x', ('--dataset shapes', '--data-dir')),
        ('--skip-broken', ('--dataset shapes', '--skip-broken')),
        ('--dataset shapes-rich --skip-broken', ('--dataset shapes-rich', '--skip-broken')),
        ('--train-annotations a.json --train-images b', ('--dataset', '--train-annotations')),
        ('--train-annotations a.json', ('--train-annotations', '--train-images')),
        ('--val-images a', ('--val-images', '--val-annotations')),
        ('--early-stop 2 --validation 0', ('--early-stop', '--validation 0')),
        ('--communicator pure_nccl', ('--communicator', '--gpu')),
        ('--communicator naive --gpu 1', ('--communicator', '--gpu')),
        ('--min-size 99 --max-size 98', ('min_size', 'max_size')),
        ('--lr 0', ('--lr 0', '--resume')),
        ('--lr 0 --resume m.npz --validation 0', ('--lr 0', '--validation 0')),
        ('--lr 0 --resume m.npz --iteration 2', ('--lr 0', '--iteration 2')),
        ('--lr 0 --resume m.npz --tensorboard', ('--lr 0', '--tensorboard')),
        ('--lr 0 --resume m.npz --clip-gradient 1', ('--lr 0', '--clip-gradient')),
        ('--lr 0 --resume m.npz --early-stop 2', ('--lr 0', '--early-stop')),
        ('--lr 0 --resume m.npz --subdivisions 2', ('--lr 0', '--subdivisions')),
    ],
)
def test_contradictions_name_both_flags(fake_runs, capsys, flags, named):
    given = [flag for flag in SHAPES if not ('--lr 0' in flags and flag in ('--pretrained', 'none'))]
    error = refused(capsys, *flags.split(), given=given)
    assert all(name in error for name in named), error
    assert not fake_runs


@pytest.mark.parametrize('factors', ['2 0.5', '1e-4 1', '1 1e30'])
def test_factors_of_the_scale_jitter_out_of_range(fake_runs, capsys, factors):
    assert '--scale-jitter: scale_jitter must be two factors LOW <= HIGH' in refused(
        capsys, '--scale-jitter', *factors.split()
    )
    assert not fake_runs


def test_the_flags_of_the_augmentation_reach_the_run(fake_runs):
    flags = '--no-flip --vertical-flip --quarter-turns --scale-jitter 0.5 2 --crop 64 --color-jitter 0.3'
    assert run_of(fake_runs, *flags.split()).options.augmentation == Augmentation(
        flip=False, vertical_flip=True, quarter_turns=True, scale_jitter=(0.5, 2.0), crop=64, color_jitter=0.3
    )


def test_set_is_refused_with_a_model_file(fake_runs, capsys):
    error = refused(capsys, '--resume', 'm.npz', '--set', 'width=0.5', given=['--dataset', 'shapes'])
    assert '--set and --resume contradict each other' in error


@pytest.mark.parametrize(
    ('flags', 'named'),
    [
        ('--set width=0.5', '--set width: the network resnet50 does'),
        ('--set rpn_channels=8 fpn_channels=8', '--set fpn_channels: the network resnet50 does'),
        ('--extractor resnet50_fpn --set fpn_channels=8 width=0.5', '--set width: the network resnet50_fpn does'),
        (
            '--extractor mobilenet_v1_fpn --set masks=false mask_convs=2',
            '--set mask_convs: the network mobilenet_v1_fpn without masks does',
        ),
    ],
)
def test_set_refuses_fields_that_the_network_does_not_use(fake_runs, capsys, flags, named):
    assert f'{named} not use this field' in refused(capsys, *flags.split())


@pytest.mark.parametrize(
    ('field', 'words'),
    [
        ('height=1', "no field 'height' to set"),
        ('extractor="resnet50"', "no field 'extractor'"),
        ('width', 'the value is not a number'),
        ('width=wide', 'the value is not a number'),
        ('width=true', 'must be like that of width=1.0'),
        ('anchor_ratios=["a"]', 'must be like that of anchor_ratios=[0.5, 1, 2]'),
        ('mask_convs=1.5', 'must be like that of mask_convs=4'),
        ('fpn_channels=-1', "argument --set: 'fpn_channels=-1': fpn_channels must be an integer of at least 1, not -1"),
        ('anchor_ratios=[]', 'anchor_ratios must be one or more positive numbers'),
        ('width=NaN', 'width must be a positive number'),
        (f'rpn_min_size={10**400}', 'rpn_min_size must be a number from 0 to 1e+06'),
        (f'rpn_min_size=1{"0" * 5000}', 'the value is not a number'),
        (f'anchor_ratios={"[" * 3000}', 'the value is not a number'),
        (f'anchor_ratios={"[" * 900}{"]" * 900}', 'must be like that of anchor_ratios'),
        ('x' * 3000, 'no field'),
    ],
)
def test_set_refuses_unknown_fields_and_bad_values(field, words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(['--set', field])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_missing_parts_of_your_own_data_are_named(fake_runs, capsys):
    training = ['--train-annotations', 'a.json', '--train-images', '.']
    assert '--val-annotations' in refused(capsys, *training, '--validation', '5', given=[])
    assert '--early-stop and no --val-annotations' in refused(capsys, *training, '--early-stop', '5', given=[])
    assert '--data-dir and' in refused(capsys, *training, '--data-dir', 'x', given=[])
    assert '--lr 0 needs --val-annotations' in refused(capsys, *training, '--lr', '0', '--resume', 'm.npz', given=[])
    assert 'nothing to train on' in refused(capsys, '--val-annotations', 'a.json', '--val-images', '.', given=[])


def test_arguments_are_parsed_once(tmp_path):
    """Defaults are filled in, lists become tuples, and the arguments cannot be changed."""
    parser = ArgumentParser()
    train.configure(parser, tmp_path)
    args = TrainArguments.from_namespace(parser.parse_args(['--anchor-sizes', '8', '16', '--pretrained', 'none']))
    assert (args.lr, args.seed, args.pretrained, args.iteration, args.only_evaluates) == (1e-4, 0, 'none', None, False)
    assert (args.anchor_sizes, args.frozen_stages) == ((8, 16), 0)
    assert (args.data.name, args.data.folder, args.data.files) == ('coco2017', tmp_path / 'COCO', {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.seed = 1


def test_a_resumed_run_keeps_the_seed_and_the_frozen_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(train_arguments, 'is_snapshot', lambda path: True)
    monkeypatch.setattr(train_arguments, 'read_options', lambda path: {'seed': 5, 'frozen_stages': 0})
    parser = ArgumentParser()
    train.configure(parser, tmp_path)
    args = TrainArguments.from_namespace(parser.parse_args(['--resume', 'snapshot.npz']))
    assert (args.seed, args.frozen_stages) == (5, 0)


@pytest.mark.parametrize(
    'flags',
    [
        '--lr -1',
        '--lr nan',
        '--iteration 0',
        '--batchsize 0',
        '--batchsize x',
        '--subdivisions 0',
        '--gamma -1',
        '--extractor vgg',
        '--roi_size 8',
        '--dataset voc',
        '--schedule 3x',
        '--gpu -2',
        '--keep 0',
        '--workers -1',
        '--snapshot -1',
        '--clip-gradient 0',
        '--communicator mpi',
        '--norm ln',
        '--anchor-sizes',
        '--nonsense',
    ],
)
def test_bad_arguments_end_with_status_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(flags.split())
    assert stop.value.code == 2
    assert 'usage: ' in capsys.readouterr().err


def failed(capsys, *arguments):
    """Run a command that must fail and return its error line."""
    assert train.main([*map(str, arguments), '--gpu', '-1']) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith('error: '), lines
    return lines[0]


def test_missing_and_wrong_files_are_named(fake_runs, capsys, tmp_path):
    assert 'COCO/annotations/instances_train2017.json' in failed(capsys, '--pretrained', 'none')
    assert 'here/annotations/instances_train2017.json' in failed(capsys, '--data-dir', 'here')
    (tmp_path / 'a.json').write_text('{"images": ')
    data = ['--train-annotations', 'a.json', '--train-images', '.']
    assert 'a.json: not a JSON file' in failed(capsys, *data)
    (tmp_path / 'a.json').write_text(
        json.dumps({'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'x'}]})
    )
    assert 'a.json: no image' in failed(capsys, *data)
    assert 'none.npz' in failed(capsys, '--dataset', 'shapes', '--pretrained', 'none.npz')
    assert 'none.npz' in failed(capsys, '--dataset', 'shapes', '--resume', 'none.npz')
    (tmp_path / 'file').write_text('')
    assert 'file' in failed(capsys, '--dataset', 'shapes', '--pretrained', 'none', '--out', 'file/x')
    assert not fake_runs


def test_missing_imagenet_weights_have_a_hint(fake_runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'nowhere'))
    assert '--pretrained none' in failed(capsys, '--dataset', 'shapes')


def write_coco(folder, n=3, names=('thing',), broken=False):
    """Write a dataset of grey images with one square each; returns the options that select it."""
    folder.mkdir()
    images, annotations = [], []
    for i in range(1, n + 1):
        cv2.imwrite(str(folder / f'{i}.png'), np.full((60, 80, 3), 40 * i, np.uint8))
        images.append({'id': i, 'file_name': f'{i}.png', 'height': 60, 'width': 80})
        annotations.append(
            {
                'id': i,
                'image_id': i,
                'category_id': 1,
                'iscrowd': 0,
                'bbox': [10, 10, 20, 20],
                'area': 400,
                'segmentation': [[10, 10, 30, 10, 30, 30, 10, 30]],
            }
        )
    if broken:
        (folder / '2.png').write_bytes(b'no image')
    categories = [{'id': i, 'name': name} for i, name in enumerate(names, 1)]
    (folder / 'a.json').write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
    return ['--train-annotations', folder / 'a.json', '--train-images', folder]


def test_training_images_without_an_object_are_counted(fake_runs, capsys, tmp_path):
    data = write_coco(tmp_path / 'data')
    content = json.loads(data[1].read_text())
    content['annotations'].pop()
    data[1].write_text(json.dumps(content))
    assert train.main([*map(str, data), '--pretrained', 'none', '--gpu', '-1']) == 0
    assert 'training: 2 images, 1 class (1 without an object left out)\n' in capsys.readouterr().out


def test_your_own_data(fake_runs, capsys, tmp_path):
    training = list(map(str, write_coco(tmp_path / 'data')))
    assert train.main([*training, '--pretrained', 'none', '--gpu', '-1']) == 0
    run = fake_runs[-1]
    assert len(run.train_set) == 3 and run.model.class_names == ('thing',) and run.options.eval_interval == 0
    assert (run.model.config.min_size, run.model.config.max_size) == (800, 1333)
    assert '3 images, 1 class' in capsys.readouterr().out
    evaluation = [word.replace('--train', '--val') for word in training]
    assert train.main([*training, *evaluation, '--pretrained', 'none', '--gpu', '-1']) == 0
    assert fake_runs[-1].options.eval_interval == 30000


def test_broken_images_stop_the_run_or_are_skipped(fake_runs, capsys, tmp_path):
    data = write_coco(tmp_path / 'data', broken=True)
    assert '2.png' in failed(capsys, *data, '--pretrained', 'none')
    assert train.main([*map(str, data), '--pretrained', 'none', '--gpu', '-1', '--skip-broken']) == 0
    assert len(fake_runs[-1].train_set) == 2
    assert '(1 broken image or annotation skipped)' in capsys.readouterr().out


#: Fields that make a network small; a C4 network ignores those of the FPN.
SMALL = dict(
    width=0.25,
    fpn_channels=8,
    rpn_channels=8,
    head_channels=16,
    mask_channels=8,
    min_size=64,
    max_size=64,
    max_detections=5,
)


def small_model(path, names=('square', 'circle', 'triangle'), preset='mobilenet_v1_fpn', **changes):
    model = builder.build(
        preset,
        n_fg_class=len(names),
        class_names=names,
        category_ids=range(1, len(names) + 1),
        **{**SMALL, **changes},
    )
    mask_rcnn.save(path, model)
    return model


def test_training_from_a_model(fake_runs, capsys, tmp_path):
    model = small_model('m.npz', preset='resnet50', roi_size=7)
    resume = ['--dataset', 'shapes', '--gpu', '-1', '--resume', 'm.npz']
    assert train.main(resume) == 0
    initial = fake_runs[-1].model
    assert initial.config == model.config
    pairs = zip(sorted(model.namedparams()), sorted(initial.namedparams()), strict=True)
    for (path, saved), (_, loaded) in pairs:
        np.testing.assert_array_equal(loaded.array, saved.array, err_msg=path)
    assert train.main([*resume, '--min-size', '80', '--max-size', '90', '--freeze_bn']) == 0
    config = fake_runs[-1].model.config
    assert (config.min_size, config.max_size, config.norm) == (80, 90, 'bn')
    assert 'resnet50' in refused(capsys, '--extractor', 'resnet101', given=resume)
    small_model('two.npz', ('a', 'b'))
    error = refused(capsys, '--resume', 'two.npz', given=['--dataset', 'shapes', '--gpu', '-1'])
    assert 'has 3 classes (square, circle, triangle), but the model has 2 (a, b)' in error
    assert '--pretrained' in error
    small_model('other.npz', ('square', 'circle', 'star'))
    error = refused(capsys, '--resume', 'other.npz', given=['--dataset', 'shapes', '--gpu', '-1'])
    assert "class 3 is 'triangle', but class 3 of the model is 'star'" in error


def test_fine_tuning_for_other_classes_initialises_the_heads(fake_runs, capsys):
    model = small_model('two.npz', ('a', 'b'))
    assert train.main(['--dataset', 'shapes', '--gpu', '-1', '--pretrained', 'two.npz']) == 0
    tuned = fake_runs[-1].model
    np.testing.assert_array_equal(tuned.rpn.conv.W.array, model.rpn.conv.W.array)
    assert tuned.box_head.score.W.shape == (4, 16)
    assert 'randomly initialised' in capsys.readouterr().out


def test_fine_tuning_matches_the_classes_of_a_file_without_names(fake_runs, monkeypatch):
    """Files of other programs have no names; those of 80 classes are COCO's."""
    small_model('two.npz', ('a', 'b'))
    file = formats.read('two.npz')
    file = dataclasses.replace(file, config=file.config.replace(n_fg_class=80), class_names=(), category_ids=())
    given = []
    monkeypatch.setattr(formats, 'read', lambda path, **options: file)
    monkeypatch.setattr(initial_model, 'load_pretrained', lambda model, path, file: given.append(file.class_names))
    assert train.main(['--dataset', 'shapes', '--gpu', '-1', '--pretrained', 'two.npz']) == 0
    assert given == [COCO_CLASS_NAMES]


def test_fine_tuning_keeps_the_network_and_the_dialect_of_a_model(fake_runs, capsys):
    """A Matterport model for other classes keeps its anchors and deltas; flags take precedence."""
    start = builder.build(
        'resnet50_fpn',
        n_fg_class=2,
        dialect=MATTERPORT,
        norm='bn',
        rpn_channels=8,
        fpn_channels=8,
        head_channels=16,
        mask_channels=8,
        max_size=1344,
    )
    mask_rcnn.save('m.npz', start)
    config = run_of(fake_runs, '--pretrained', 'm.npz').model.config
    assert (config.extractor, config.dialect, config.rpn_channels) == ('resnet50_fpn', MATTERPORT, 8)
    assert (config.n_fg_class, config.min_size, config.norm) == (3, 128, 'affine')
    assert 'box_head/score' in capsys.readouterr().out
    config = run_of(fake_runs, '--pretrained', 'm.npz', '--extractor', 'resnet50').model.config
    assert (config.extractor, config.dialect) == ('resnet50', DETECTRON)


def test_fine_tuning_drops_unused_heads(fake_runs, capsys, monkeypatch):
    """A keypoint network becomes a mask network."""
    monkeypatch.setattr(KeypointHead, 'channels', 8)
    start = builder.build('keypoint_resnet50_fpn', fpn_channels=8, rpn_channels=8, head_channels=16)
    mask_rcnn.save('k.npz', start)
    model = run_of(fake_runs, '--pretrained', 'k.npz').model
    assert model.config.masks and not model.config.n_keypoint and model.config.has_fpn
    assert 'has no keypoint_head' in capsys.readouterr().out


def test_the_seed_determines_the_initial_weights(fake_runs, monkeypatch):
    monkeypatch.setattr(mask_rcnn, 'build', builder.build)
    first, second, other = (run_of(fake_runs, *NETWORK, '--seed', seed).model.rpn.conv.W.array for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_evaluation_does_not_change_the_model(capsys, tmp_path, monkeypatch):
    """``train --lr 0`` leaves the model file unchanged and writes the results of ``evaluate``."""
    small_model('m.npz')
    before = (tmp_path / 'm.npz').read_bytes()
    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 3)
    command = [
        '--dataset',
        'shapes',
        '--lr',
        '0',
        '--iteration',
        '1',
        '--validation',
        '1',
        '--resume',
        'm.npz',
        '--gpu',
        '-1',
        '--out',
        'out',
    ]
    assert train.main(command) == 0
    assert (tmp_path / 'm.npz').read_bytes() == before
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'results.bbox.json',
        'results.segm.json',
        'metrics.json',
    }
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert 0 <= metrics['bbox/AP'] <= 1 and set(metrics['classes']) == {'square', 'circle', 'triangle'}
    first = (tmp_path / 'out' / 'results.bbox.json').read_bytes()
    assert json.loads(first)
    command = ['--dataset', 'shapes', '--modelfile', 'm.npz', '--gpu', '-1', '--out', 'again']
    assert evaluate.main(command) == 0
    assert (tmp_path / 'again' / 'results.bbox.json').read_bytes() == first


def test_the_metrics_file_has_the_ap_of_each_class(capsys, tmp_path, monkeypatch):
    metrics = Metrics(
        boxes=(0.5,) * 12,
        masks=(0.25,) * 12,
        class_names=('square', 'circle', 'triangle'),
        box_ap_per_class=(0.1, 0.2, 0.3),
        mask_ap_per_class=(0.4, 0.5, -1.0),
    )
    monkeypatch.setattr(evaluate, 'evaluate_model', lambda model, dataset, **options: metrics)
    evaluate.evaluate_to_folder(small_model('m.npz'), ShapesDataset(2, size=32), tmp_path / 'out', name='shapes')
    written = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert written.pop('classes') == {
        'square': {'bbox/AP': 0.1, 'segm/AP': 0.4},
        'circle': {'bbox/AP': 0.2, 'segm/AP': 0.5},
        'triangle': {'bbox/AP': 0.3, 'segm/AP': -1},
    }
    assert written == metrics.summary() and written['segm/AP'] == 0.25
    assert 'shapes, 2 images; wrote results.bbox.json, results.segm.json' in capsys.readouterr().out


def test_evaluating_a_model_with_other_classes_is_refused(capsys, tmp_path):
    small_model('m.npz', ('a', 'b'))
    error = refused(capsys, '--lr', '0', '--resume', 'm.npz', given=['--dataset', 'shapes', '--gpu', '-1'])
    assert 'has 3 classes (square, circle, triangle), but the model has 2 (a, b)' in error
    assert '--dataset or --val-annotations' in error


def test_a_model_of_generated_data_is_evaluated_on_them(monkeypatch, capsys):
    """The default dataset is COCO, whose files may not exist."""
    small_model('m.npz')
    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 1)
    for main, words in (
        (train.main, ['--lr', '0', '--iteration', '1', '--validation', '1', '--resume', 'm.npz']),
        (evaluate.main, ['--modelfile', 'm.npz']),
    ):
        assert main([*words, '--gpu', '-1']) == 0
        printed = capsys.readouterr().out
        assert 'the model has the classes of shapes: this dataset is evaluated' in printed
        assert 'shapes (val), 1 image' in printed


def test_missing_files_of_coco_have_a_hint(capsys):
    small_model('m.npz')
    assert evaluate.main(['--modelfile', 'm.npz', '--data-dir', 'none', '--gpu', '-1']) == 1
    error = capsys.readouterr().err
    assert 'none/annotations/instances_val2017.json: no such file or directory; ./getcoco.sh' in error
    assert '--val-annotations' in error and error.count('\n') == 1


def test_evaluate_errors(capsys, tmp_path):
    assert evaluate.main(['--dataset', 'shapes', '--modelfile', 'none.npz', '--gpu', '-1']) == 1
    assert capsys.readouterr().err.startswith('error: none.npz: ')
    small_model('m.npz')
    assert evaluate.main(['--modelfile', 'm.npz', '--gpu', '-1', '--data-dir', 'x']) == 1
    assert 'x/annotations/instances_val2017.json' in capsys.readouterr().err
    assert evaluate.main(['--modelfile', 'm.npz', '--dataset', 'shapes', '--data-dir', 'x']) == 2
    with pytest.raises(SystemExit):
        evaluate.main([])


def test_device_selection(fake_runs, monkeypatch, capsys):
    monkeypatch.setattr(options, 'gpu_error', lambda gpu: 'CuPy is not installed')
    assert train.main(SHAPES[:-2]) == 0
    assert 'running on the CPU: CuPy is not installed' in capsys.readouterr().err
    assert '--gpu 0: CuPy is not installed' in refused(capsys, '--gpu', '0', given=SHAPES[:-2])


def test_each_process_needs_a_gpu_of_its_own_for_nccl(monkeypatch):
    monkeypatch.setattr(train, 'gpu_error', lambda gpu: None if gpu < 2 else 'there are only 2 CUDA devices')
    args = SimpleNamespace(communicator='pure_nccl', gpu=None)
    assert train._choose_gpu(args, SimpleNamespace(rank=5, intra_rank=1)) == 1
    message = '^--communicator pure_nccl: process 6 needs GPU 2: there are only 2 CUDA devices$'
    with pytest.raises(UsageError, match=message):
        train._choose_gpu(args, SimpleNamespace(rank=6, intra_rank=2))


def test_a_communicator_that_does_not_work(monkeypatch, capsys):
    def create_communicator(name):
        raise distributed.DistributedError(f'{name} does not work here')

    monkeypatch.setattr(train.distributed, 'create_communicator', create_communicator)
    assert train.main([*SHAPES, '--communicator', 'naive']) == 1
    assert capsys.readouterr().err == 'error: naive does not work here\n'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (
            NonFiniteLossError(7, 'rpn_loc_loss is nan', ['a.jpg']),
            'iteration 7: rpn_loc_loss is nan; images: a.jpg; no snapshot exists yet',
        ),
        (
            MemoryError('out of GPU memory'),
            'not enough memory (more --subdivisions or a smaller --min-size need less): out of GPU memory',
        ),
        (OSError(28, 'No space left on device', 'result/x'), 'result/x: No space left on device'),
    ],
)
def test_errors_are_one_line(fake_runs, capsys, error, line):
    fake_runs.changes = {'error': error, 'last': None}
    assert train.main(SHAPES) == 1
    assert capsys.readouterr().err == f'error: {line}\n'


@pytest.mark.parametrize(
    ('last', 'words'),
    [(None, 'no snapshot exists'), ('result/snapshot_iter_3.npz', '--resume result/snapshot_iter_3.npz')],
)
def test_an_unsaved_last_state_is_a_failure(fake_runs, capsys, last, words):
    fake_runs.changes = {'iteration': 5, 'last': last and Path(last)}
    assert train.main(SHAPES) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: the last state is not saved; ') and words in error


def test_a_folder_that_cannot_be_written_is_known_before_the_data_are_read(fake_runs, capsys, monkeypatch):
    monkeypatch.setattr(train, '_open_data', pytest.fail)
    monkeypatch.setattr(atomic_file, 'locked_temporary', raise_read_only)
    assert train.main([*SHAPES, '--out', 'out']) == 1 and not fake_runs
    assert capsys.readouterr().err == 'error: out: cannot be written: Read-only file system\n'


def raise_read_only(path):
    raise OSError(errno.EROFS, 'Read-only file system')


def test_a_last_state_in_a_temporary_folder_is_a_failure_that_names_it(fake_runs, capsys, tmp_path):
    last = tmp_path / 'mask_rcnn_x' / 'snapshot_iter_5.npz'
    fake_runs.changes = {'iteration': 5, 'last': last}
    assert train.main(SHAPES) == 1
    assert capsys.readouterr().err == (
        f'error: result cannot be written; the state after iteration 5 is saved as {last}\n'
    )


def test_tensorboard_without_its_library(fake_runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    assert 'pip install tensorboardX' in failed(capsys, *SHAPES[:-2], '--tensorboard')
    assert not fake_runs


def test_train_py_works_in_any_folder(root, tmp_path):
    command = [sys.executable, str(root / 'train.py'), '--gpu', '-1', '--data-dir', 'none']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith('error: none/annotations/instances_train2017.json'), done.stderr


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('iterations', 0),
        ('batch_size', 0),
        ('subdivisions', 0),
        ('seed', -1),
        ('seed', 2**32),
        ('workers', -1),
        ('gamma', float('nan')),
        ('clip', 0),
        ('clip', float('inf')),
        ('loss_scale', float('nan')),
        ('snapshot_interval', -1),
        ('keep', 0),
        ('eval_interval', -1),
        ('log_interval', 0),
    ],
)
def test_options_out_of_range_are_rejected(option, value):
    with pytest.raises(ValueError, match=f'^{option} must be'):
        TrainingOptions(**{'out': 'x', 'iterations': 1, 'schedule': step_schedule(1, **STEPS), option: value})


@pytest.mark.parametrize(
    'option', ['--iteration', '--batchsize', '--seed', '--keep', '--train-proposals', '--snapshot']
)
@pytest.mark.parametrize('value', ['nan', 'inf', '-1', str(2**80), '9' * 5000, ''])
def test_absurd_numbers_are_refused_in_one_line(capsys, option, value):
    with pytest.raises(SystemExit) as error:
        train.main([*SHAPES, f'{option}={value}'])
    line = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and f'argument {option}' in line and len(line) < 200


def test_a_batch_larger_than_the_dataset_is_a_warning_and_workers_are_limited(fake_runs, capsys, tmp_path):
    data = list(map(str, write_coco(tmp_path / 'data')))
    assert train.main([*data, '--pretrained', 'none', '--gpu', '-1', '--batchsize', '5', '--workers', '99']) == 0
    assert fake_runs[-1].options.workers == 3
    assert capsys.readouterr().err == (
        'warning: a batch of 5 images contains some images several times: the dataset has only 3 training images\n'
    )


def test_a_folder_in_use_is_refused_before_anything_is_moved(fake_runs, capsys, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'log').write_text('[]')
    with lock_folder(tmp_path / 'out', user='training', warn=pytest.fail):
        assert train.main([*SHAPES, '--out', 'out']) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith(f'error: out is in use by another training (pid {os.getpid()} on ') and '\n' not in error[:-1]
    )
    assert (tmp_path / 'out' / 'log').exists() and not fake_runs


def write_tiny_snapshots(folder, *iterations):
    """Write snapshots of a tiny network with the fields that the command reads."""
    for iteration in iterations:
        trainer = make_trainer(folder, stop=(iteration, 'iteration'))
        trainer.run()
        write_snapshot(folder / f'snapshot_iter_{iteration}.npz', trainer, META, {})


def resume_error(capsys, path):
    status = train.main([*SHAPES[:2], '--gpu', '-1', '--resume', str(path)])
    error = capsys.readouterr().err.splitlines()
    return status, error


@pytest.mark.parametrize('content', [b'', b'PK', None])
def test_a_damaged_snapshot_names_a_whole_one(capsys, tmp_path, content):
    """The times of the files are those of a clock that was set back."""
    write_tiny_snapshots(tmp_path, 1, 2, 10)
    path = tmp_path / 'snapshot_iter_10.npz'
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    (tmp_path / '.snapshot_iter_11.npz.1.part').write_bytes(b'')
    os.utime(tmp_path / 'snapshot_iter_2.npz', (0, 0))
    status, (error,) = resume_error(capsys, path)
    assert status == 1 and error.startswith(f'error: {path}: is not a snapshot')
    assert error.endswith(f'the newest whole snapshot is {tmp_path}/snapshot_iter_2.npz')


@pytest.mark.parametrize('content', [b'', b'PK', None])
@pytest.mark.parametrize('name', ['snapshot_iter_1.npz', 'last.npz'])
def test_a_damaged_snapshot_is_named_with_the_options_of_its_run(capsys, tmp_path, name, content):
    """The options that started a run select a new network, which would contradict a model but not a snapshot."""
    write_tiny_snapshots(tmp_path, 1)
    path = (tmp_path / 'snapshot_iter_1.npz').rename(tmp_path / name)
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    assert train.main([*SHAPES, '--gpu', '-1', '--set', 'width=0.25', '--resume', str(path)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f'error: {path}: is ')


def test_a_folder_stands_for_its_newest_whole_snapshot(capsys, tmp_path):
    write_tiny_snapshots(tmp_path, 1, 2, 10)
    (tmp_path / 'snapshot_iter_10.npz').write_bytes(b'')
    os.utime(tmp_path / 'snapshot_iter_2.npz', (0, 0))
    arguments = parse_command_line(train_options.configure, [*SHAPES[:2], '--resume', str(tmp_path)])
    assert TrainArguments.from_namespace(arguments).resume == tmp_path / 'snapshot_iter_2.npz'
    assert f'warning: {tmp_path}/snapshot_iter_10.npz: is not a snapshot' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    status, (error,) = resume_error(capsys, tmp_path / 'empty')
    assert (status, error) == (2, f'error: --resume {tmp_path}/empty: the folder contains no whole snapshot')


def test_last_is_the_newest_whole_snapshot_in_the_output_folder(capsys, tmp_path):
    """The file ./last is a file, not the newest snapshot."""
    write_tiny_snapshots(tmp_path / 'run', 2, 10)
    (tmp_path / 'run' / 'snapshot_iter_10.npz').write_bytes(b'')
    command = [*SHAPES[:2], '--gpu', '-1', '--out', 'run', '--resume']
    arguments = parse_command_line(train_options.configure, [*command, 'last'])
    assert TrainArguments.from_namespace(arguments).resume == Path('run/snapshot_iter_2.npz')
    assert 'warning: run/snapshot_iter_10.npz: is not a snapshot' in capsys.readouterr().err
    (tmp_path / 'last').write_bytes(b'')
    assert train.main([*command, './last']) == 1
    assert capsys.readouterr().err.startswith('error: last: ')
    assert train.main([*SHAPES[:2], '--gpu', '-1', '--resume', 'last', '--out', 'new']) == 2
    assert capsys.readouterr().err == 'error: --resume last: --out new contains no whole snapshot\n'
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('command', [train.main, evaluate.main])
def test_a_command_that_fails_leaves_no_empty_folder(capsys, tmp_path, command):
    is_training = command is train.main
    model = ['--resume', 'none.npz'] if is_training else ['--modelfile', 'none.npz']
    (tmp_path / 'old').mkdir()
    for folder in ('new/deep', 'old', 'old/new'):
        assert command([*SHAPES[:2], '--gpu', '-1', *model, '--out', folder]) == 1
    assert 'none.npz' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['old'] and os.listdir('old') == []


def test_pretrained_coco_is_found_in_the_folder_of_the_converters(fake_runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('CHAINER_DATASET_ROOT', str(tmp_path / 'chainer'))
    monkeypatch.setattr(chainer.dataset.download, '_dataset_root', str(tmp_path / 'chainer'))
    command = ['--dataset', 'shapes', '--gpu', '-1', '--pretrained', 'coco']
    assert train.main(command, tmp_path) == 1
    assert f'error: {tmp_path}/modelfiles: has no COCO weights for resnet50, ' in capsys.readouterr().err
    assert train.main([*command, '--keypoints'], tmp_path) == 1
    assert 'e2e_keypoint_rcnn_R-50-FPN_1x_d2c.npz' in capsys.readouterr().err
    (tmp_path / 'modelfiles').mkdir()
    model = build_once(mask_rcnn.PRESETS['resnet50'].replace(n_fg_class=2), ('a', 'b'), (1, 2))
    mask_rcnn.save(tmp_path / 'modelfiles' / 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz', model)
    monkeypatch.setattr(initial_model, 'load_pretrained', lambda model, path, file: used.append(path) or path)
    used = []
    assert train.main(command, tmp_path) == 0
    assert used == [tmp_path / 'modelfiles' / 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz']


def test_results_that_cannot_be_written_are_a_warning_in_training(monkeypatch, capsys, tmp_path):
    """The run gets the metrics of an evaluation whose result files do not fit on the disk."""
    metrics = Metrics((), (), (), (), ())
    error = ResultsFileError(28, 'cannot be written: No space left on device', 'results.bbox.json')
    error.metrics = metrics

    def evaluate_on_full_disk(*arguments, **options):
        raise error

    monkeypatch.setattr(train, 'evaluate_model', evaluate_on_full_disk)
    evaluate_model = train.make_evaluator(None, None, distributed.Communicator())
    assert evaluate_model(tmp_path / 'results.json') is metrics
    assert capsys.readouterr().err == 'warning: results.bbox.json: cannot be written: No space left on device\n'
