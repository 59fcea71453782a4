"""A training run in the dialect of DeNA's program: it goes on from a model, is resumed, and keeps the statistics."""

import chainer.links as L
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import train
from mask_rcnn.config import DENA, RESNET_BLOCKS, Config
from mask_rcnn.training.snapshot import read_options

CLASSES = ('square', 'circle', 'triangle')
RUN = [
    *('--dataset', 'shapes', '--batchsize', '2', '--validation', '0', '--gpu', '-1', '--workers', '0'),
    *('--lr', '1e-5', '--train-proposals', '100', '--snapshot', '1'),
]


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    """A network with one block in each stage, and statistics of batch normalisation that are not neutral."""
    np.random.seed(0)
    rng = np.random.RandomState(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
        config = Config(
            n_fg_class=3, norm='bn', dialect=DENA, sampling_ratio=2, min_size=64, max_size=64, anchor_sizes=(16, 32)
        )
        model = mask_rcnn.build(config, class_names=CLASSES, category_ids=(1, 2, 3))
        for link in model.links():
            if isinstance(link, L.BatchNormalization):
                link.avg_mean[...] = rng.uniform(-0.1, 0.1, link.avg_mean.size)
                link.avg_var[...] = rng.uniform(0.8, 1.2, link.avg_var.size)
        path = tmp_path_factory.mktemp('model') / 'model.npz'
        mask_rcnn.save(path, model)
        yield path


def run(out, resume, *more, iteration):
    assert train.main([*RUN, '--out', str(out), '--resume', str(resume), '--iteration', str(iteration), *more]) == 0


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if '/' in name}


@pytest.fixture(scope='module')
def result(model_file, tmp_path_factory):
    out = tmp_path_factory.mktemp('result')
    run(out, model_file, iteration=2)
    return out


def test_statistics_stay_constant_and_all_parameters_are_trained(model_file, result):
    before, after = arrays_of(model_file), arrays_of(result / 'model_iter_2.npz')
    assert before.keys() == after.keys()
    for name, array in before.items():
        is_constant = name.endswith(('avg_mean', 'avg_var', '/N'))
        assert (array == after[name]).all() == is_constant, name
    assert any(name.startswith('extractor/conv1/norm/gamma') for name in before)


def test_the_options_are_those_of_the_dialect(result):
    options = read_options(result / 'snapshot_iter_1.npz')
    assert options['frozen_stages'] == 0 and options['sampling']['roi_batch'] == 128
    assert mask_rcnn.load(result / 'model_iter_2.npz').config.dialect == DENA


def test_a_resumed_run_equals_an_uninterrupted_one(result, tmp_path):
    run(tmp_path, result / 'snapshot_iter_1.npz', iteration=2)
    expected = arrays_of(result / 'model_iter_2.npz')
    for name, array in arrays_of(tmp_path / 'model_iter_2.npz').items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_freeze_bn_keeps_gamma_and_beta(model_file, tmp_path):
    run(tmp_path, model_file, '--freeze-bn', '--roi-batch', '512', iteration=1)
    before, after = arrays_of(model_file), arrays_of(tmp_path / 'model_iter_1.npz')
    for name, array in before.items():
        assert (array == after[name]).all() == ('/norm/' in name), name
    assert read_options(tmp_path / 'snapshot_iter_1.npz')['sampling']['roi_batch'] == 512
