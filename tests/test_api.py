"""Training in Python: the example of docs/training.md, and the same losses as ``train.py`` on the same data."""

import json
import re

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn import api
from mask_rcnn.cli import train
from mask_rcnn.datasets import COCODataset, UserDataset
from mask_rcnn.targets import Sampling
from mask_rcnn.training import plots
from mask_rcnn.training.schedule import run_schedule, step_schedule
from tests.support.models import VERY_NARROW
from tests.support.scenes import Scenes, write_coco
from tests.support.small_train import NETWORK


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    for name in ('plot_losses', 'plot_ap'):
        monkeypatch.setattr(plots, name, lambda path, log: None)


@pytest.mark.slow
def test_the_example_of_the_page(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (root / 'docs' / 'training.md').read_text(encoding='utf-8')
    (code,) = (block for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'mask_rcnn.train(' in block)
    for old, new in {'iterations=300': 'iterations=30', 'return 40': 'return 8'}.items():  # enough to see the loss fall
        assert old in code
        code = code.replace(old, new)
    np.random.seed(0)
    names = {}
    exec(code, names)
    result = names['result']
    assert len(result.losses) == result.iteration == 30 and not result.interrupted
    assert np.mean(result.losses[-8:]) < 0.7 * np.mean(result.losses[:4])
    assert 0 <= result.metrics['segm/AP'] <= 1 and result.metrics.keys() >= {'bbox/AP', 'segm/AP50'}
    assert str(result.best_model) == 'squares/model_best.npz' and result.best_model.exists()
    assert mask_rcnn.load(result.model).class_names == ('red', 'green')
    assert result.snapshot.name == 'snapshot_iter_30.npz'
    assert str(result.losses[0]) in capsys.readouterr().out


@pytest.mark.slow
def test_the_losses_and_metrics_are_those_of_the_command_on_the_same_data(tmp_path):
    data = Scenes()
    path = write_coco(data, tmp_path)
    files = ['--train-annotations', path, '--train-images', tmp_path, '--val-annotations', path]
    files += ['--val-images', tmp_path, '--min-size', 64, '--anchor-sizes', 8, 16, 32, 64, 128, '--gpu', -1]
    steps = ['--lr', 0.001, '--lr-initialchange', 2, '--step-size', 3, '--lr-step', 4, '--iteration', 4]
    more = ['--batchsize', 2, '--roi-batch', 16, '--validation', 4, '--out', tmp_path / 'command', '--workers', 0]
    assert train.main([*NETWORK, *map(str, [*files, *steps, *more])]) == 0
    config = mask_rcnn.load(tmp_path / 'command' / 'model_iter_4.npz').config
    np.random.seed(0)  # as the command does for the initial weights
    model = mask_rcnn.build(config)
    result = mask_rcnn.train(
        model,
        data,
        val=data,
        iterations=4,
        roi_batch=16,
        schedule=step_schedule(0.001, warmup=2, first_decay=3, second_decay=4),
        out=tmp_path / 'python',
    )
    log = json.loads((tmp_path / 'command' / 'log').read_text())
    assert list(result.losses) == [entry['main/loss'] for entry in log] and len(log) == 4
    expected = {name.removeprefix('validation/'): v for name, v in log[-1].items() if name.startswith('validation/')}
    assert dict(result.metrics) == expected and 'segm/AP' in expected


def test_event_files_show_images_of_the_evaluation_data(tmp_path):
    pytest.importorskip('tensorboardX')
    sizes = {'min_size': 64, 'max_size': 64, 'width': 0.25, 'anchor_sizes': (8, 16, 32, 64, 128)}
    model = mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=len(Scenes().class_names), **sizes, **VERY_NARROW)
    mask_rcnn.train(model, Scenes(), val=Scenes(), iterations=1, roi_batch=16, out=tmp_path, tensorboard=True)
    (file,) = (tmp_path / 'tensorboard').iterdir()
    content = file.read_bytes()
    assert content.count(b'examples/') == min(4, len(Scenes()))
    assert b'gradients_rpn/conv/W' in content and b'configuration/training' in content


def test_a_dataset_of_files_is_used_as_it_is(tmp_path):
    path = write_coco(Scenes(), tmp_path)
    adapted = UserDataset(Scenes())
    read = COCODataset(path, tmp_path)
    assert len(adapted) == len(read) == 3 and adapted.image_ids == read.image_ids == (1, 3, 4)
    for a, b in zip(adapted, read, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.annotations.boxes, b.annotations.boxes)
        np.testing.assert_array_equal(a.annotations.labels, b.annotations.labels)
        assert a.annotations.segmentations == b.annotations.segmentations
    everything = UserDataset(Scenes(), only_annotated=False)
    truth, expected = everything.ground_truth(), COCODataset(path, tmp_path, only_annotated=False).ground_truth()
    assert truth['annotations'] == expected['annotations'] and len(truth['images']) == 4


def test_the_sampling_is_that_of_the_run(tmp_path, monkeypatch):
    """The run is not built: its settings are what the test compares."""

    class Built(Exception):
        pass

    def build(model, train_set, settings, **options):
        raise Built(settings.sampling)

    monkeypatch.setattr(api, 'build_training_run', build)
    model = mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=2, width=0.25, **VERY_NARROW)
    sampling = Sampling(rpn_batch=64, roi_foreground_iou=0.6)
    found = []
    for arguments in ({'sampling': sampling}, {'roi_batch': 8}):
        with pytest.raises(Built) as caught:
            mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path, **arguments)
        found += caught.value.args
    assert found[0] == sampling and found[1].roi_batch == 8


def test_the_models_classes_are_those_of_the_data(tmp_path):
    small = {'width': 0.25, 'fpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}
    with pytest.raises(ValueError, match='n_fg_class=3, but the dataset has 2 classes'):
        mask_rcnn.train(
            mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=3, **small), Scenes(), iterations=1, out=tmp_path
        )
    model = mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=2, class_names=('green', 'red'), **small)
    with pytest.raises(ValueError, match='model are green, red, but those of the dataset are red, green'):
        mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path)
    model.class_names = None
    with pytest.raises(ValueError, match='eval_interval needs val'):
        mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path / 'new', eval_interval=1)
    val = Scenes()
    val.class_names = ('red', 'blue')
    with pytest.raises(ValueError, match='classes of val are red, blue, but those of the dataset are red, green'):
        mask_rcnn.train(model, Scenes(), val=val, iterations=1, out=tmp_path / 'new')
    with pytest.raises(ValueError, match='lr and schedule'):
        mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path, lr=1, schedule=run_schedule(1, 9))
    with pytest.raises(ValueError, match='roi_batch and sampling'):
        mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path, roi_batch=8, sampling=Sampling())
    with pytest.raises(TypeError, match='nonsense'):
        mask_rcnn.train(model, Scenes(), iterations=1, out=tmp_path, nonsense=1)
    assert not (tmp_path / 'new').exists()


def test_the_schedule_of_a_run():
    """A linear warm-up over a quarter of the run, and two decays."""
    schedule = run_schedule(0.3, 90)
    rates = [schedule.rate(i) for i in (0, 11, 22, 59, 60, 79, 80)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.03, 0.03, 0.003])
