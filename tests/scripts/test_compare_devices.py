"""The comparison of a GPU with the CPU, on the CPU."""

import importlib
import json

import numpy as np
import pytest

from mask_rcnn import Detections


@pytest.fixture
def compare():
    return importlib.import_module('compare_devices')


def detections(boxes, labels=None, scores=None):
    """Return detections in an image of 20 x 20 pixels whose masks are full boxes."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    masks = np.zeros((len(boxes), 20, 20), bool)
    for mask, (y1, x1, y2, x2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.array(labels, np.int32)
    scores = np.full(len(boxes), 0.9, np.float32) if scores is None else np.array(scores, np.float32)
    return {
        'detections': Detections(boxes=boxes, labels=labels, scores=scores, size=(20, 20), masks=masks),
        'seconds': [1.0, 0.1],
    }


BOXES = [[0, 0, 10, 10], [5, 5, 19, 19], [0, 10, 9, 19]]


def test_detections_are_found_in_another_order(compare):
    truth = detections(BOXES, labels=[0, 1, 0], scores=[0.9, 0.8, 0.7])
    found = detections([BOXES[2], [0, 0, 10, 10.1], BOXES[1]], labels=[0, 0, 1], scores=[0.7, 0.88, 0.8])
    row = compare.compare_detections(truth, found, 'fp32')
    assert (row['expected'], row['found'], row['passed']) == (3, 3, True)
    assert row['box_error'] == pytest.approx(0.1, abs=1e-5) and row['score_error'] == pytest.approx(0.02, abs=1e-5)
    assert row['mask_iou'] == 1


@pytest.mark.parametrize(
    ('boxes', 'labels', 'n_found'),
    [(BOXES[:2], [0, 1], 2), (BOXES, [0, 1, 1], 2), ([BOXES[0]] * 3, [0, 0, 0], 1), ([], [], 0)],
)
def test_missing_detections_fail(boxes, labels, n_found, compare):
    row = compare.compare_detections(detections(BOXES, [0, 1, 0]), detections(boxes, labels), 'fp32')
    assert (row['found'], row['passed']) == (n_found, False)


def test_low_scores_do_not_count(compare):
    truth = detections(BOXES, scores=[0.9, 0.8, 0.1])
    row = compare.compare_detections(truth, detections(BOXES[:2]), 'fp32')
    assert (row['expected'], row['passed']) == (2, True)


def update(loss, change):
    return {'losses': {'loss': loss, 'grad_norm': 1.0}, 'changes': {'W': np.array([change, 0.0])}, 'seconds': 1.0}


@pytest.mark.parametrize(
    ('loss', 'change', 'passed'),
    [(1.0, 0.1, True), (1.005, 0.11, True), (1.1, 0.1, False), (np.nan, 0.1, False), (1.0, np.nan, False)],
)
def test_updates(loss, change, passed, compare):
    row = compare.compare_updates(update(1.0, 0.1), update(loss, change), 'fp32')
    assert row['passed'] is passed
    if passed:
        assert row['error'] == pytest.approx(loss - 1) and row['change_error'] == pytest.approx((change - 0.1) / 0.1)


@pytest.mark.parametrize('command', ['detect', pytest.param('update', marks=pytest.mark.slow)])
def test_the_cpu_agrees_with_itself(command, compare, tmp_path, capsys):
    path = tmp_path / 'result.json'
    assert compare.main([command, '--gpu', '-1', '--json', str(path)]) == 0
    result = json.loads(path.read_text())
    assert result['passed'] and list(result['precisions']) == ['fp32']
    row = result['precisions']['fp32']
    assert row.get('box_error', 0) == 0 and row.get('error', 0) == 0 and row.get('found', 1) > 0
    assert 'fp32 compared with the CPU' in capsys.readouterr().out


def test_an_error_is_reported_and_does_not_stop_the_others(compare, monkeypatch, capsys):
    def work(network, gpu, precision):
        if precision == 'tf32':
            raise RuntimeError('no such\nengine')
        return detections(BOXES)

    monkeypatch.setitem(compare.COMMANDS, 'detect', (work, *compare.COMMANDS['detect'][1:]))
    monkeypatch.setattr(compare, 'check_precision', lambda name, gpu: None)
    assert compare.main(['detect', '--gpu', '0', '--precisions', 'tf32', 'fp16']) == 1
    out = capsys.readouterr().out
    assert 'bundled on GPU 0, tf32: failed, RuntimeError: no such engine' in out
    assert 'bundled, fp16 compared with the CPU: 3/3 found' in out
    assert out.endswith('failed\n')


def test_a_named_precision_that_the_device_lacks_fails(compare, capsys):
    assert compare.main(['detect', '--gpu', '-1', '--precisions', 'fp16']) == 1
    assert 'failed, UsageError: --precision fp16: fp16 needs a GPU; the CPU supports only' in capsys.readouterr().out


def test_default_precisions_that_the_gpu_lacks_are_left_out(compare, monkeypatch, capsys):
    work = lambda network, gpu, precision: detections(BOXES)  # noqa: E731
    monkeypatch.setitem(compare.COMMANDS, 'detect', (work, *compare.COMMANDS['detect'][1:]))
    monkeypatch.setattr(compare, 'check_precision', lambda name, gpu: None)
    monkeypatch.setattr(compare, 'capability', lambda gpu: 75)
    assert compare.main(['detect', '--gpu', '0']) == 0
    out = capsys.readouterr().out
    assert 'bundled on GPU 0, bf16: not supported, bf16 needs a GPU of compute capability 8.0; this one has 7.5' in out
    assert 'bundled, fp16 compared with the CPU: 3/3 found' in out and 'tf32 compared' not in out
