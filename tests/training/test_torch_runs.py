"""Training runs from files of torchvision and detectron2, in their dialects and with other classes."""

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import convert, train
from mask_rcnn.config import DETECTRON2, PRESETS, RESNET_GROUPS, TORCHVISION
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.targets.sampling import network_sampling
from mask_rcnn.training.snapshot import read_options
from tests.support.small_resnet import use_shallow_resnet
from tests.support.small_train import RUN

NARROW = {'fpn_channels': 16, 'rpn_channels': 16, 'head_channels': 32, 'mask_channels': 16}
DIALECTS = {'torchvision': TORCHVISION, 'detectron2': DETECTRON2}
SUFFIXES = {'torchvision': '.pth', 'detectron2': '.pkl'}


@pytest.fixture(scope='module', autouse=True)
def _narrow():
    with pytest.MonkeyPatch.context() as patch:
        use_shallow_resnet(patch)
        patch.setitem(RESNET_GROUPS, 'resnet50', (1, 8))
        yield


@pytest.fixture(scope='module', params=DIALECTS)
def program(request):
    return request.param


@pytest.fixture(scope='module')
def source(program, tmp_path_factory):
    """A file of the program with five classes and frozen normalisations."""
    folder = tmp_path_factory.mktemp(program)
    np.random.seed(0)
    changes = {'rpn_min_size': 1e-3} if program == 'torchvision' else {'sampling_ratio': 0}
    dialect = DIALECTS[program].replace(backbone={'bn_eps': 0.0 if program == 'torchvision' else 1e-5})
    config = PRESETS['resnet50_fpn'].replace(n_fg_class=5, norm='bn', dialect=dialect, **changes, **NARROW)
    native, path = folder / 'native.npz', folder / f'model{SUFFIXES[program]}'
    mask_rcnn.save(native, mask_rcnn.build(config, class_names=tuple('abcde'), category_ids=(1, 2, 3, 4, 5)))
    assert convert.main(['--input', str(native), '--output', str(path), '--to', program]) == 0
    return path


def run(source, out, *options, start='--pretrained'):
    command = [*RUN, '--out', str(out), start, str(source), '--iteration', '1', '--lr', '1e-3', '--snapshot', '1']
    assert train.main([*command, *options]) == 0
    return mask_rcnn.load(out / 'model_iter_1.npz')


def arrays_of(model):
    return {path[1:]: param.array for path, param in model.namedparams()}


def test_fine_tuning_in_the_dialect_of_the_file(program, source, tmp_path):
    """Frozen stages and normalisations keep their bits, the other layers change, and the classes are the data's."""
    model, before = run(source, tmp_path), mask_rcnn.load(source, bn2affine=True)
    assert model.config.dialect == before.config.dialect and model.config.dialect.name == program
    assert (model.config.n_fg_class, before.config.n_fg_class, model.config.norm) == (3, 5, 'affine')
    after = arrays_of(model)
    for path, array in arrays_of(before).items():
        if path.startswith(('box_head/score', 'box_head/delta', 'mask_head/score')):
            assert after[path].shape != array.shape
        else:
            is_frozen = path.startswith(('extractor/body/conv1', 'extractor/body/res2')) or '/norm/' in path
            assert np.array_equal(after[path], array) == is_frozen, path
    sampling = read_options(tmp_path / 'snapshot_iter_1.npz')['sampling']
    expected = {'torchvision': (2000, 2000), 'detectron2': (2000, 1000)}[program]
    assert (sampling['train_pre_nms'], sampling['train_post_nms']) == expected


@pytest.mark.slow
def test_frozen_normalisations_are_trained_on_request(source, tmp_path):
    model = run(source, tmp_path, '--norm', 'bn')
    assert model.config.norm == 'bn' and not model.config.dialect.training.freeze_norms
    assert model.extractor.body.res4.block0.conv1.norm.beta.array.any()  # it is 0 at first
    assert not model.extractor.body.res2.block0.conv1.norm.beta.array.any()


@pytest.mark.slow
def test_the_normalisations_of_a_resumed_model_stay_frozen(source, tmp_path):
    """They are batch normalisations whose statistics, gamma and beta are constant."""
    config = mask_rcnn.load(source).config.replace(n_fg_class=3)
    assert config.norm == 'bn' and config.dialect.training.freeze_norms
    before = mask_rcnn.build(config, class_names=ShapesDataset.class_names, category_ids=(1, 2, 3))
    mask_rcnn.save(tmp_path / 'model.npz', before)
    after = run(tmp_path / 'model.npz', tmp_path / 'result', start='--resume')
    assert after.config.dialect == config.dialect and after.config.norm == 'bn'
    with np.load(tmp_path / 'model.npz') as old, np.load(tmp_path / 'result' / 'model_iter_1.npz') as new:
        for path in filter(lambda name: '/norm/' in name, old.files):
            np.testing.assert_array_equal(new[path], old[path], err_msg=path)
        assert (new['extractor/body/res3/block0/conv2/conv/W'] != old['extractor/body/res3/block0/conv2/conv/W']).any()


def test_networks_of_detectron2_have_their_own_numbers_of_proposals():
    """Those of the zoo: C4, FPN and keypoints; the number before NMS is scaled with a given one."""
    c4, fpn = (PRESETS[name].replace(dialect=DETECTRON2) for name in ('resnet50', 'resnet50_fpn'))
    keypoints = fpn.replace(dialect=DETECTRON2.replace(training={'fpn_proposals': 1500}))
    found = [
        (sampling.train_pre_nms, sampling.train_post_nms)
        for sampling in (
            network_sampling(c4),
            network_sampling(fpn),
            network_sampling(keypoints),
            network_sampling(fpn, proposals=500),
            network_sampling(fpn.replace(dialect=TORCHVISION), proposals=500),
        )
    ]
    assert found == [(12000, 2000), (2000, 1000), (2000, 1500), (1000, 500), (500, 500)]
    assert network_sampling(c4).roi_batch == 512
