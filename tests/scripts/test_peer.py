"""The peers that the benchmark measures us with: how they are run, and that they compute the same."""

import functools
import importlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import PRESETS, TORCHVISION
from mask_rcnn.weights.readers import torch_file
from tests.support.small_resnet import use_shallow_resnet

STAND_IN = """
import json, sys
print(json.dumps({'torch': '0.0', 'torchvision': False}), flush=True)
for number, line in enumerate(sys.stdin):
    turn = {'wall': 2.0 + number, 'cpu': 3.0, 'detections': 7, 'host_peak': 2 ** 20,
            'gpu_pool': 2 ** 20 * (number + 5), 'gpu_used': 2 ** 20 * (number + 6)}
    print(json.dumps(turn), flush=True)
"""


@pytest.fixture
def peer(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'benchmarks'))
    return importlib.import_module('peer')


@pytest.fixture
def benchmark(root, monkeypatch, peer):
    spec = importlib.util.spec_from_file_location('benchmark', root / 'scripts' / 'benchmarks' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = mask_rcnn.build
    monkeypatch.setattr(
        mask_rcnn,
        'build',
        lambda preset, **changes: build(preset, min_size=64, max_size=96, rpn_pre_nms=200, **changes),
    )
    monkeypatch.setattr(module, 'matmul_flops', lambda xp: 1e9)
    monkeypatch.setattr(module, 'copy_bandwidth', lambda xp: 1e9)
    return module


@pytest.fixture
def stand_in(peer, tmp_path, monkeypatch):
    """A program that answers like a peer, and a narrow ResNet of one block per stage, which is built quickly."""
    use_shallow_resnet(monkeypatch)
    narrow = {'fpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}
    monkeypatch.setattr(mask_rcnn, 'build', functools.partial(mask_rcnn.build, **narrow))
    program = tmp_path / 'stand_in.py'
    program.write_text(STAND_IN)
    monkeypatch.setattr(peer, 'PROGRAM', program)
    return program


def test_turns_are_taken_and_compared(benchmark, stand_in, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert (
        benchmark.main(
            [
                '--size',
                '40',
                '60',
                '--runs',
                '3',
                '--warmup',
                '1',
                '--proposals',
                '20',
                '--extractor',
                'resnet50_fpn',
                '--against',
                'torch',
                '--json',
                str(path),
            ]
        )
        == 0
    )
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    found = result['peer']
    assert (found['min'], found['median'], found['max']) == (3, 4, 5)  # the first turn was the warm-up
    assert found['detections'] == 7 and found['cpu_median'] == 3
    assert found['ratio']['min'] <= found['ratio']['median'] <= found['ratio']['max']
    assert 2 < found['ratio']['median'] * result['total']['median'] < 6
    assert 'the peer takes' in text and 'PyTorch 0.0 without torchvision (7 detections' in text
    # Measured before the library's turn: later measurements may include the memory of the library.
    assert found['memory'] == {'host_peak': 2**20, 'gpu_pool': 6 * 2**20, 'gpu_used': 7 * 2**20}
    assert 'GPU used 7 MiB' in text


def test_shares_of_the_ceiling(benchmark, stand_in, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert (
        benchmark.main(['--size', '64', '96', '--runs', '1', '--warmup', '0', '--proposals', '20', '--json', str(path)])
        == 0
    )
    stages = json.loads(path.read_text())['stages']
    # conv1 on 64 x 96, and the RPN's three convolutions on 4 x 6
    assert stages['RPN']['operations'] == 2 * 24 * (1024 * 1024 * 9 + 1024 * 15 * 5)
    assert stages['extractor']['operations'] > 2 * 32 * 48 * 64 * 3 * 49
    for stage in ('extractor', 'RPN', 'box head'):
        assert stages[stage]['of_ceiling'] == pytest.approx(stages[stage]['operations'] / stages[stage]['median'] / 1e9)
    assert stages['prepare']['of_ceiling'] == pytest.approx((1 + 4) * 3 * 64 * 96 / stages['prepare']['median'] / 1e9)
    assert 'of ceiling' in capsys.readouterr().out


def test_torchvision_gets_the_weights_of_its_dialect(peer, monkeypatch, tmp_path):
    use_shallow_resnet(monkeypatch)
    narrow = {'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 8, 'mask_channels': 8, 'n_fg_class': 2}
    model = mask_rcnn.build('resnet50_fpn', dialect=TORCHVISION, norm='bn', **narrow)
    peer.check('torchvision', model)
    assert peer.runs_in_torchvision(model)
    peer.write_state_dict(tmp_path / peer.STATE_DICT, model)
    state = torch_file.read(tmp_path / peer.STATE_DICT)
    np.testing.assert_array_equal(state['roi_heads.box_head.fc6.weight'], model.box_head.fc6.W.array)
    np.testing.assert_array_equal(state['backbone.body.conv1.weight'], model.extractor.body.conv1.conv.W.array)
    peer.write_network(tmp_path, model)
    setup = json.loads((tmp_path / 'setup.json').read_text())
    assert (setup['bn_eps'], setup['n_fg_class'], setup['head_norm']) == (1e-5, 2, 'none')
    for changes in ({'masks': False}, {'masks': False, 'n_keypoint': 3}, {'extractor': 'resnet101_fpn'}):
        model.config = PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, **changes)
        with pytest.raises(peer.PeerError, match='runs weights of its maskrcnn_resnet50_fpn'):
            peer.check('torchvision', model)
    model.config = PRESETS['resnet50']
    peer.check('torchvision', model)  # with random weights
    assert not peer.runs_in_torchvision(model)


def test_a_peer_that_fails_is_named(benchmark, stand_in, capsys):
    stand_in.write_text('raise SystemExit("No module named torch")')
    arguments = ['--size', '40', '60', '--extractor', 'resnet50_fpn', '--against', 'torch']
    assert benchmark.main(arguments) == 1
    message = capsys.readouterr().err
    assert 'No module named torch' in message and '--peer-python' in message and message.count('\n') == 1
    assert benchmark.main([*arguments, '--peer-python', '/nowhere/python']) == 1
    assert '/nowhere/python' in capsys.readouterr().err


def test_networks_that_the_peer_does_not_know(benchmark, stand_in, capsys):
    assert benchmark.main(['--size', '40', '60', '--against', 'torch', '--extractor', 'mobilenet_v1_fpn']) == 1
    assert 'ResNets with affine channels' in capsys.readouterr().err


def test_precisions_need_a_gpu(benchmark, capsys):
    assert benchmark.main(['--size', '40', '60', '--precision', 'bf16']) == 1
    assert '--precision bf16' in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='no PyTorch')
@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
def test_the_peer_finds_what_we_find(benchmark, peer, rng, tmp_path, extractor):
    model = benchmark.random_model(extractor, sampling_ratio=2, rpn_post_nms=60)
    image = rng.randint(0, 256, (64, 96, 3)).astype(np.uint8)
    (ours,) = model.detect([image])
    peer.write_task(tmp_path, model, image)
    subprocess.run(
        [sys.executable, str(peer.PROGRAM), str(tmp_path), '--dump', str(tmp_path / 'found.npz')], check=True
    )
    with np.load(tmp_path / 'found.npz') as found:
        boxes, scores = found['boxes'][:, [1, 0, 3, 2]], found['scores']
    np.testing.assert_allclose(np.sort(scores), np.sort(ours.scores), atol=1e-5)
    distances = np.abs(boxes[:, None] - ours.boxes).max(axis=2)
    assert distances.min(axis=1).max() < 1e-2 and distances.min(axis=0).max() < 1e-2
