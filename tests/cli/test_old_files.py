"""The commands with weight files of DeNA's Chainer_Mask_R-CNN: the first model of a training run, and detection."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn import cli
from mask_rcnn.cli import evaluate, initial_model, train
from mask_rcnn.cli.command import ArgumentParser, UsageError
from mask_rcnn.cli.dataset_options import DatasetArguments
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.config import DENA, PRESETS
from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.models.initializers import no_initial_weights
from tests.support.dena_files import array_shapes, with_counters
from tests.support.small_resnet import use_shallow_resnet

COCO = SimpleNamespace(class_names=COCO_CLASS_NAMES, category_ids=COCO_CATEGORY_IDS)
#: Changes of the preset that make detection fast.
FAST = {'min_size': 96, 'max_size': 96, 'rpn_post_nms': 50}

SHAPES = SimpleNamespace(class_names=('square', 'circle', 'triangle'), category_ids=(1, 2, 3))


@pytest.fixture(scope='module', autouse=True)
def small_networks():
    """Build one block per stage without random weights, and detect in small images."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_shallow_resnet(monkeypatch)
        monkeypatch.setitem(PRESETS, 'resnet50', PRESETS['resnet50'].replace(**FAST))
        monkeypatch.setattr(mask_rcnn, 'build', no_initial_weights()(mask_rcnn.build))
        yield


def random_arrays(n_classes, backbone):
    rng = np.random.default_rng(0)
    shapes = array_shapes(n_classes, backbone)
    return with_counters({name: 0.05 * rng.random(shape, np.float32) for name, shape in shapes.items()})


@pytest.fixture(scope='module', params=['resnet50'])
def backbone(request):
    return request.param


both_backbones = pytest.mark.parametrize('backbone', ['resnet50', 'resnet101'], indirect=True, scope='module')


@pytest.fixture(scope='module')
def source_file(backbone, tmp_path_factory):
    """A file of the old program and its arrays."""
    path = tmp_path_factory.mktemp('old') / 'old.npz'
    arrays = random_arrays(80, backbone)
    np.savez(path, **arrays)
    yield path, arrays
    path.unlink()


@pytest.fixture
def source(source_file, tmp_path, monkeypatch):
    """The arrays of ``old.npz``, which the tests read only."""
    path, arrays = source_file
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'old.npz').hardlink_to(path)
    return arrays


def make_model(dataset, *words):
    parser = ArgumentParser()
    train.configure(parser)
    args = TrainArguments.from_namespace(parser.parse_args([*words, '--gpu', '-1']))
    return initial_model.make_model(args, dataset, is_main=True)


@both_backbones
def test_resuming_a_snapshot_of_the_old_trainer(source, backbone, caplog):
    model, snapshot = make_model(COCO, '--resume', 'old.npz')
    assert snapshot is None and model.config.extractor == backbone
    assert (model.config.dialect, model.config.norm) == (DENA, 'bn')
    assert (model.class_names, model.category_ids) == (COCO_CLASS_NAMES, COCO_CATEGORY_IDS)
    norm = model.extractor.res4.block0.shortcut.norm
    for name, array in (('gamma', norm.gamma.array), ('avg_mean', norm.avg_mean), ('avg_var', norm.avg_var)):
        np.testing.assert_array_equal(array, source[f'extractor/res4/a/bn4/{name}'])
    assert norm.eps == 2e-5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and 'give --bn2affine' in record.getMessage()


def test_resuming_with_affine_channels(source, caplog):
    model, _ = make_model(COCO, '--resume', 'old.npz', '--bn2affine')
    assert model.config.norm == 'affine'
    norm = model.extractor.conv1.norm
    np.testing.assert_array_equal(norm.scale.array, source['extractor/bn1/gamma'])
    np.testing.assert_array_equal(norm.bias.array, source['extractor/bn1/beta'])
    (record,) = caplog.records
    assert 'omit --bn2affine' in record.getMessage()


def test_resuming_with_other_classes_is_refused(source):
    with pytest.raises(UsageError, match='has 3 classes .* but the model has 80'):
        make_model(SHAPES, '--dataset', 'shapes', '--resume', 'old.npz')


@both_backbones
@pytest.mark.parametrize(
    ('flags', 'norm', 'line'), [([], 'bn', 'give --bn2affine'), (['--bn2affine'], 'affine', 'omit --bn2affine')]
)
def test_pretrained_weights_of_the_old_program(source, backbone, capsys, flags, norm, line):
    model, _ = make_model(SHAPES, '--dataset', 'shapes', '--pretrained', 'old.npz', *flags)
    assert (model.config.extractor, model.config.dialect, model.config.norm) == (backbone, DENA, norm)
    np.testing.assert_array_equal(model.mask_head.deconv.W.array, source['head/deconvm1/W'])
    link = model.extractor.conv1.norm
    np.testing.assert_array_equal((link.gamma if norm == 'bn' else link.scale).array, source['extractor/bn1/gamma'])
    assert model.box_head.score.W.shape == (4, 2048)
    printed = capsys.readouterr().out
    assert "Chainer_Mask_R-CNN's .npz" in printed and printed.count(line) == 1
    (reset,) = (line for line in printed.splitlines() if line.startswith('randomly initialised (another shape'))
    assert all(layer in reset for layer in ('box_head/score', 'box_head/delta', 'mask_head/score'))


def test_an_fpn_network_takes_the_backbone(source, capsys):
    model, _ = make_model(
        SHAPES, '--dataset', 'shapes', '--pretrained', 'old.npz', '--extractor', 'resnet50_fpn', '--norm', 'bn'
    )
    assert model.config.has_fpn and model.config.dialect != DENA
    norm = model.extractor.body.res5.block0.conv1.norm
    np.testing.assert_array_equal(norm.avg_mean, source['head/res5/a/bn1/avg_mean'])
    gamma, var = (source[f'head/res5/a/bn1/{name}'].astype(float) for name in ('gamma', 'avg_var'))
    expected = gamma / np.sqrt(var + 2e-5)  # the function stays the same
    np.testing.assert_allclose(norm.gamma.array / np.sqrt(norm.avg_var.astype(float) + norm.eps), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_converted_file_gives_the_detections_of_the_old_file(source, tmp_path, capsys):
    example = ShapesDataset(1, size=64)[0]
    (tmp_path / 'in.ppm').write_bytes(b'P6 64 64 255\n' + example.image.transpose(1, 2, 0).astype(np.uint8).tobytes())
    found = {}
    for flags in ('', '--dialect detectron --bn2affine'):
        assert cli.main(f'convert old.npz --output new.npz {flags}'.split()) == 0
        options = '--gpu -1 --image in.ppm --score-thresh 0.01 --json'
        assert cli.main(f'demo --modelfile old.npz {options} old.json {flags}'.split()) == 0
        assert cli.main(f'demo --modelfile new.npz {options} new.json'.split()) == 0
        results = [(tmp_path / name).read_bytes() for name in ('old.json', 'new.json')]
        assert results[0] == results[1]
        found[flags] = json.loads(results[0])
    assert all(found.values())
    assert len({json.dumps(results) for results in found.values()}) == 2


def test_a_file_without_class_names_takes_those_of_the_dataset(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez('three.npz', **random_arrays(3, backbone))
    model, _ = make_model(SHAPES, '--resume', 'three.npz')
    assert (model.class_names, model.category_ids) == (SHAPES.class_names, SHAPES.category_ids)
    model = mask_rcnn.load('three.npz', min_size=32, max_size=32)
    assert model.class_names == ('class_1', 'class_2', 'class_3')
    data = DatasetArguments('shapes', Path('COCO'), {})
    evaluate.open_evaluation_data(data, model)
    assert model.class_names == SHAPES.class_names


@pytest.mark.parametrize('option', ['--resume', '--pretrained'])
def test_the_file_determines_whether_orientations_are_applied(source, option):
    for words, expected in (([option, 'old.npz'], False), (['--pretrained', 'none'], True)):
        parser = ArgumentParser()
        train.configure(parser)
        args = TrainArguments.from_namespace(parser.parse_args([*words, '--gpu', '-1']))
        options = initial_model.data_options(args)
        assert (options['apply_orientation'], options['keypoints'], options['masks']) == (expected, False, True)
