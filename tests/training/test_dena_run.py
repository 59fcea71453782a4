"""A training run in the dialect of DeNA's program: it goes on from a model, is resumed, and keeps the statistics."""

import chainer.links as L
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import train
from mask_rcnn.config import DENA, DETECTRON, Config
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.targets import bitmap_targets, mask_targets, sample_rois
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.schedule import step_schedule
from mask_rcnn.training.snapshot import read_options
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.trainer import TrainingOptions, build_training_run
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example, run_backward

CLASSES = ('square', 'circle', 'triangle')
RUN = [
    *('--dataset', 'shapes', '--batchsize', '2', '--validation', '0', '--gpu', '-1', '--workers', '0'),
    *('--lr', '1e-5', '--train-proposals', '100', '--snapshot', '1'),
]


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    """A narrow network, whose statistics of batch normalisation are not neutral."""
    np.random.seed(0)
    rng = np.random.RandomState(1)
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        config = Config(
            n_fg_class=3,
            norm='bn',
            dialect=DENA,
            sampling_ratio=2,
            min_size=64,
            max_size=64,
            anchor_sizes=(16, 32),
            rpn_channels=32,
            mask_channels=16,
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


class TwoProcesses(Communicator):
    """The main process of two, without the other one."""

    size = 2


@pytest.mark.parametrize(('dialect', 'is_averaged'), [(DENA, False), (DETECTRON, True)])
def test_fixed_statistics_are_not_averaged_over_processes(model_file, tmp_path, dialect, is_averaged):
    model = mask_rcnn.load(model_file)
    model.config = model.config.replace(dialect=dialect)
    schedule = step_schedule(1e-4, warmup=1, first_decay=2, second_decay=3)
    options = TrainingOptions(out=str(tmp_path), iterations=1, schedule=schedule)
    training = build_training_run(model, ShapesDataset(4), options, communicator=TwoProcesses())
    assert ('statistics' in training.trainer._extensions) == is_averaged
    expected = (0, 128) if dialect is DENA else (2, 512)
    assert (training.options.frozen_stages, training.options.sampling.roi_batch) == expected
    optimizer = training.trainer.updater.get_optimizer('main')
    assert optimizer.corrects_momentum == is_averaged and training.trainer.updater.sum_images != is_averaged


def make_chain(model_file):
    model = mask_rcnn.load(model_file)
    freeze(model)
    return MaskRCNNTrainChain(model, sampling=SAMPLING)


@pytest.mark.parametrize(('dialect', 'make_targets'), [(DENA, bitmap_targets), (DETECTRON, mask_targets)])
def test_the_dialect_selects_the_mask_targets(model_file, dialect, make_targets):
    chain, image = make_chain(model_file), example()
    chain.model.config = chain.model.config.replace(dialect=dialect)
    boxes = image.image_transform.apply_boxes(image.annotations.boxes) + np.float32([0.4, 2.6, 3.2, 1.7])
    rois = sample_rois(
        boxes,
        image.annotations,
        image.image_transform,
        sampling=SAMPLING,
        dialect=dialect,
        rng=np.random.RandomState(0),
    )
    n = rois.n_foreground
    if make_targets is bitmap_targets:
        expected = bitmap_targets(rois.rois[:n], image.annotations, image.image_transform, 14, offset=0)
    else:
        expected = mask_targets(rois.boxes[:n], image.annotations, 14, offset=1)
    np.testing.assert_array_equal(chain._mask_targets([rois], [image], 14), expected)


def test_the_default_number_of_rois_is_that_of_the_dialect(model_file):
    assert MaskRCNNTrainChain(mask_rcnn.load(model_file)).sampling.roi_batch == 128


def test_images_that_lost_all_objects_are_background(model_file):
    chain = make_chain(model_file)
    loss, reported, grads = run_backward(chain, [example(boxes=(), crowd=())])
    assert np.isfinite(loss) and reported['roi_cls_loss'] > 0 and reported['roi_mask_loss'] == 0
    assert grads.keys() == run_backward(chain, [example()])[2].keys()
