"""The benchmark of training iterations, alone and in turns with a program that answers like a peer."""

import functools
import importlib
import importlib.util
import json
import subprocess
import sys

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.targets.sampling import Sampling
from tests.support.small_resnet import use_narrow_resnet

NARROW = {'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}

STAND_IN = """
import json, sys
print(json.dumps({'torch': '0.0+cpu', 'torchvision': True}), flush=True)
for number, line in enumerate(sys.stdin):
    turn = {'wall': 2.0 + number, 'cpu': 3.0, 'losses': {'roi_cls_loss': 0.5}, 'host_peak': 2 ** 20}
    print(json.dumps(turn), flush=True)
"""


@pytest.fixture
def training(monkeypatch):
    """The script, with a ResNet of one block per stage and few RoIs."""
    module = importlib.import_module('training')
    use_narrow_resnet(monkeypatch)
    monkeypatch.setattr(
        module, 'sampling_of', lambda config: Sampling(roi_batch=16, train_pre_nms=100, train_post_nms=30)
    )
    return module


@pytest.fixture
def narrow_training(training, monkeypatch):
    """The script, with a network of few channels; the real peer is compared with a full one."""
    monkeypatch.setattr(training, 'random_model', functools.partial(training.random_model, **NARROW))
    return training


@pytest.fixture
def peer():
    return importlib.import_module('peer')


@pytest.fixture
def stand_in(peer, tmp_path, monkeypatch):
    program = tmp_path / 'stand_in.py'
    program.write_text(STAND_IN)
    monkeypatch.setattr(peer, 'TRAINING_PROGRAM', program)
    return program


def arguments(*more):
    size = ['--size', '64', '96', '--runs', '2', '--warmup', '1']
    return ['--extractor', 'resnet50_fpn', *size, '--batch-sizes', *more]


def test_each_batch_size_is_timed_and_written(narrow_training, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert narrow_training.main([*arguments('2', '1'), '--json', str(path)]) == 0
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    assert [batch['batch_size'] for batch in result['batches']] == [1, 2]
    for batch in result['batches']:
        assert 0 < batch['min'] <= batch['median'] <= batch['max'] and batch['cpu_median'] > 0
        assert all(np.isfinite(value) for value in batch['losses'].values())
        assert batch['losses']['roi_mask_loss'] > 0 and batch['losses']['n_foreground_roi'] > 0
        assert batch['memory']['host_peak'] > 50e6 and 'peer' not in batch
    assert result['image'] == {'height': 64, 'width': 96} and result['sampling']['roi_batch'] == 16
    assert 'images/s' in text and len(text.splitlines()) == 6


@pytest.mark.slow
def test_iterations_alternate_with_those_of_a_peer(narrow_training, stand_in, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert narrow_training.main([*arguments('1', '2'), '--against', 'torch', '--json', str(path)]) == 0
    text = capsys.readouterr().out
    for batch in json.loads(path.read_text())['batches']:
        found = batch['peer']
        assert (found['min'], found['max']) == (3, 4)  # the first turn of each process was the warm-up
        assert found['losses'] == {'roi_cls_loss': 0.5} and found['memory'] == {'host_peak': 2**20}
        assert found['ratio']['min'] <= found['ratio']['median'] <= found['ratio']['max']
    assert text.count('torch 0.0 ') == 2 and text.count('the peer takes') == 2


@pytest.mark.slow
def test_a_failing_peer_leaves_the_earlier_batch_sizes(narrow_training, peer, stand_in, tmp_path, monkeypatch, capsys):
    path, start = tmp_path / 'figures.json', peer.TrainingPeer.__init__

    def fail_later(self, python, network, model, examples, sampling, **options):
        if len(examples) > 1:
            stand_in.write_text('raise SystemExit("out of memory")')
        start(self, python, network, model, examples, sampling, **options)

    monkeypatch.setattr(peer.TrainingPeer, '__init__', fail_later)
    assert narrow_training.main([*arguments('1', '2'), '--against', 'torch', '--json', str(path)]) == 1
    message = capsys.readouterr().err
    assert 'out of memory' in message and message.count('\n') == 1
    assert [batch['batch_size'] for batch in json.loads(path.read_text())['batches']] == [1]


def test_a_peer_gets_the_network_input_and_its_objects(training, peer, tmp_path):
    model = mask_rcnn.build('resnet50', min_size=64, max_size=96)
    examples = training.make_examples(model.config, 2, (64, 96))
    peer.write_training_task(tmp_path, model, examples, Sampling(roi_batch=16))
    setup = json.loads((tmp_path / 'setup.json').read_text())
    assert setup['sampling']['roi_batch'] == 16 and setup['input_size'] == [64, 96] and setup['n_classes'] == 81
    with np.load(tmp_path / 'batch.npz') as batch:
        np.testing.assert_array_equal(batch['x'][1], examples[1].x)
        np.testing.assert_array_equal(batch['boxes'][1], examples[1].annotations.boxes)
        masks, boxes = batch['masks'].reshape(-1, 64, 96), batch['boxes'].reshape(-1, 4)
    for mask, box in zip(masks, boxes, strict=True):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        extent = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(extent, box, atol=1.5)
        assert 0.6 < mask.sum() / ((box[2] - box[0]) * (box[3] - box[1])) < 1


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--precision', 'bf16'], '--precision bf16'),
        (['--against', 'torchvision', '--extractor', 'resnet50'], '--extractor resnet50_fpn'),
        (['--against', 'torch', '--extractor', 'mobilenet_v1_fpn'], 'ResNets with affine channels'),
    ],
)
def test_contradictory_options(narrow_training, stand_in, capsys, options, message):
    assert narrow_training.main([*arguments('1'), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('options', [['--runs', '0'], ['--warmup', '-1'], ['--batch-sizes', '0'], ['--size', '0', '5']])
def test_bad_arguments(training, options):
    with pytest.raises(SystemExit) as error:
        training.main(options)
    assert error.value.code == 2


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='no PyTorch')
@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
def test_the_peer_computes_the_same_losses(training, peer, tmp_path, extractor):
    """All anchors and RoIs are sampled, so that the losses do not depend on random numbers."""
    model = training.random_model(extractor, min_size=128, max_size=192, sampling_ratio=2)
    sampling = Sampling(rpn_batch=10000, rpn_positive_fraction=1.0, roi_batch=400, train_pre_nms=100, train_post_nms=60)
    examples = training.make_examples(model.config, 1, (128, 192))
    peer.write_training_task(tmp_path, model, examples, sampling)
    output = subprocess.run(
        [sys.executable, str(peer.TRAINING_PROGRAM), str(tmp_path)],
        input='run\n',
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    losses = json.loads(output.splitlines()[-1])['losses']
    with chainer.using_config('train', True):
        _, _, reported = training.Trainer(model, sampling, 'fp32').start(examples)()
    # The peer resamples masks, and the library rasterises polygons.
    tolerances = {name: 1e-2 if name == 'roi_mask_loss' else 1e-4 for name in losses}
    assert len(losses) == 5
    for name, loss in losses.items():
        assert loss == pytest.approx(reported[name], rel=tolerances[name]), name
