"""Dialects, backbones and formats of users: what is registered, and what is refused."""

import json
import re

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import main
from mask_rcnn.config import DETECTRON, DIALECTS, EXTRACTORS, PRESETS, Config, register_dialect
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.models import register_backbone
from mask_rcnn.models.backbones import registry
from mask_rcnn.models.layers import Backbone, ConvNorm
from mask_rcnn.training.iterator import ExampleIterator
from mask_rcnn.training.snapshot import check_snapshot
from mask_rcnn.weights import ModelMeta, WeightFileError, formats, safetensors_model
from mask_rcnn.weights.converters.mapping import ParamMapping
from mask_rcnn.weights.exporters.inversion import invert_mappings
from mask_rcnn.weights.formats import Format, register_format
from mask_rcnn.weights.native import write_weights
from mask_rcnn.weights.pretrained import load_pretrained
from mask_rcnn.weights.pretrained_files import find_pretrained
from tests.support.registrations import registrations_removed

SMALL = {'n_fg_class': 2, 'fpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}


class Thin(Backbone):
    """Five convolutions with a stride of 2 each."""

    outputs, strides = (2, 3, 4, 5), (4, 8, 16, 32)
    out_channels = (2, 2, 2, 2)

    def __init__(self, norm='affine', strides=strides):
        super().__init__()
        self.strides = strides
        with self.init_scope():
            for number in range(5):
                n_inputs = 2 if number else 3
                setattr(self, f'stage{number}', ConvNorm(n_inputs, 2, 3, stride=2, pad=1, norm=norm))


@pytest.fixture(autouse=True)
def unchanged_tables():
    with registrations_removed():
        yield


def test_the_tables_are_restored():
    before = [*EXTRACTORS], {**PRESETS}, {**DIALECTS}, {**formats.BY_NAME}
    with registrations_removed():
        register_backbone('thin', lambda config: Thin())
        register_dialect(DETECTRON.replace(name='mine'))
        register_format(Format('zoo', 'the zoo', lambda contents: False, formats.read, 'zoo2c'))
        assert (EXTRACTORS[-1], 'thin_fpn' in PRESETS, 'mine' in DIALECTS) == ('thin_fpn', True, True)
    assert before == ([*EXTRACTORS], PRESETS, DIALECTS, formats.BY_NAME)


# Files with names that this process does not know


def write_native(path, meta):
    write_weights(path, {}, meta)


def write_safetensors(path, meta):
    safetensors_model.write(path, {}, meta)


def write_run(path, meta):
    header = {'format_version': 1, 'model': json.loads(meta.to_json()), 'options': {}, 'nones': []}
    with path.open('wb') as file:
        np.savez(file, **{'snapshot': np.frombuffer(json.dumps(header).encode(), np.uint8), 'updater/iteration': 1})


@pytest.mark.parametrize(
    ('name', 'write'),
    [('a.npz', write_native), ('a.safetensors', write_safetensors), ('snapshot_iter_1.npz', write_run)],
)
@pytest.mark.parametrize(
    ('part', 'reason'),
    [
        ('backbone', 'the extractor \'thin_fpn\' .* register_backbone \\("Your own backbone" in the documentation\\)'),
        ('dialect', 'the dialect \'mine\' .* register_dialect \\("Your own dialect" in the documentation\\)'),
        ('variant', "the dialect 'mine' .* register_dialect "),
    ],
)
def test_a_file_of_another_process_says_what_to_import(part, reason, name, write, tmp_path, capsys):
    path = tmp_path / name
    with registrations_removed():
        dialect = DETECTRON
        if part == 'backbone':
            register_backbone('thin', lambda config: Thin())
        else:
            dialect = DETECTRON.replace(name='mine')
            register_dialect(dialect)
        if part == 'variant':  # the file stores the conventions that differ, too
            dialect = dialect.replace(boxes={'offset': 0.0})
        config = Config('thin_fpn' if part == 'backbone' else 'resnet50_fpn', 2, dialect)
        write(path, ModelMeta('model', config, ('cat', 'dog'), (1, 2)))
        assert formats.read(path).config == config
    expected = f'{re.escape(str(path))}: {reason}'
    with pytest.raises(WeightFileError, match=expected):
        mask_rcnn.load(path)
    assert main(['info', str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(expected, line) and 'damaged' not in line and 'whole' not in line
    if write is write_run:
        with pytest.raises(WeightFileError, match=f'{expected}[^;]*$'):
            check_snapshot(path)


# Dialects


def test_a_registered_dialect_is_stored_by_its_name():
    mine = DETECTRON.replace(name='mine', boxes={'offset': 0.0})
    config = Config(dialect=mine)
    with pytest.raises(ValueError, match="'mine' cannot be stored"):
        config.to_dict()
    register_dialect(mine)
    assert config.to_dict()['dialect'] == 'mine'
    assert Config.from_dict(config.to_dict()) == config


def test_a_dialect_can_be_registered_again():
    """So that a cell of a notebook can run again."""
    for offset in (0.0, 0.5):
        register_dialect(DETECTRON.replace(name='mine', boxes={'offset': offset}))
    assert DIALECTS['mine'].boxes.offset == 0.5


@pytest.mark.parametrize('name', ['', 'My dialect', 'a/b', '1st', 'näme', 'a\n', 'x' * 200 + ' '])
def test_names_are_plain_words(name):
    message = 'the name must consist of lower-case letters, digits, - and _, such as plain_net, not '
    for register in (
        lambda: register_dialect(DETECTRON.replace(name=name)),
        lambda: register_backbone(name, lambda config: Thin()),
        lambda: register_format(Format(name, 'a title', lambda contents: False, formats.read, 'x2c')),
    ):
        with pytest.raises(ValueError, match=message) as error:
            register()
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', [None, ['a'], 7])
def test_names_are_text(name):
    for register in (
        lambda: register_backbone(name, lambda config: Thin()),
        lambda: register_format(Format(name, 'a title', lambda contents: False, formats.read, 'x2c')),
    ):
        with pytest.raises(ValueError, match='^the name must consist of lower-case letters'):
            register()


def test_names_of_the_package_are_taken():
    with pytest.raises(ValueError, match="the dialect 'dena' is part of this package"):
        register_dialect(DETECTRON.replace(name='dena'))
    with pytest.raises(ValueError, match="the backbone 'resnet50' is part of this package"):
        register_backbone('resnet50', lambda config: Thin())
    with pytest.raises(ValueError, match="the format 'mindspore' is part of this package"):
        register_format(Format('mindspore', 'a title', lambda contents: True, formats.read, 'x2c'))


def test_the_presets_of_the_package_are_not_replaced():
    before = PRESETS['keypoint_resnet50_fpn']
    with pytest.raises(ValueError, match="the preset 'keypoint_resnet50_fpn' is part of this package"):
        register_backbone('keypoint_resnet50', lambda config: Thin())
    assert PRESETS['keypoint_resnet50_fpn'] is before
    assert 'keypoint_resnet50_fpn' not in EXTRACTORS and 'keypoint_resnet50' not in registry._registered


# Backbones


def test_a_registered_backbone_is_a_preset():
    made = []
    register_backbone('thin', lambda config: made.append(config) or Thin(config.norm))
    model = mask_rcnn.build('thin_fpn', norm='bn', width=0.5, **SMALL)
    assert (made[0].width, made[0].norm) == (0.5, 'bn')
    assert isinstance(model.extractor.body, Thin)
    assert PRESETS['thin_fpn'] == PRESETS['resnet50_fpn'].replace(extractor='thin_fpn')
    with chainer.using_config('train', False):
        shapes = [features.shape[1:] for features in model.extractor(np.zeros((1, 3, 64, 96), 'f'))]
    assert shapes == [(8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3), (8, 1, 2)]


def test_the_constants_of_the_dialect_are_set_in_a_registered_backbone():
    register_backbone('thin', lambda config: Thin(config.norm))
    model = mask_rcnn.build('thin_fpn', norm='bn', dialect=DETECTRON.replace(backbone={'bn_eps': 0.25}), **SMALL)
    assert model.extractor.body.stage0.norm.eps == 0.25


def test_a_registered_backbone_has_no_network_without_a_pyramid():
    register_backbone('thin', lambda config: Thin())
    with pytest.raises(ValueError, match="extractor must be one of resnet50, .*mobilenet_v1_fpn, thin_fpn, not 'thin'"):
        Config(extractor='thin')


def test_a_backbone_with_other_strides():
    register_backbone('thin', lambda config: Thin(strides=(2, 4, 8, 16)))
    with pytest.raises(ValueError, match=r'thin have the strides \(2, 4, 8, 16\); a feature pyramid needs \(4, 8, 16'):
        mask_rcnn.build('thin_fpn', **SMALL)


def test_a_function_that_returns_no_backbone():
    register_backbone('thin', lambda config: None)
    with pytest.raises(TypeError, match='^the function of the backbone thin must return a Backbone, not NoneType$'):
        mask_rcnn.build('thin_fpn', **SMALL)


def test_worker_processes_know_a_registered_backbone():
    """They do not run the cell of the notebook that registers it."""
    register_backbone('thin', lambda config: Thin())
    transform = TrainingTransform(Config(extractor='thin_fpn', min_size=32, max_size=32))
    iterator = ExampleIterator(ShapesDataset(2, size=32), transform, 1, workers=1)
    assert iterator.next()[0].x.shape == (3, 32, 32)
    iterator.finalize()


def test_the_suffix_of_the_pyramid_is_not_part_of_the_name():
    with pytest.raises(ValueError, match='must not end with _fpn'):
        register_backbone('thin_fpn', lambda config: Thin())


def test_pretrained_weights_of_a_registered_backbone(tmp_path):
    register_backbone('thin', lambda config: Thin())
    with pytest.raises(WeightFileError, match='has no ImageNet weights for thin_fpn, .*no such weights are published'):
        find_pretrained('imagenet', 'thin_fpn')
    source, path = mask_rcnn.build('thin_fpn', **SMALL), tmp_path / 'thin.npz'
    mask_rcnn.save(path, source)
    model = mask_rcnn.build('thin_fpn', **{**SMALL, 'n_fg_class': 3})
    assert 'box_head/score' in load_pretrained(model, path).reinitialized
    weights = (chain.extractor.body.stage4.conv.W.array for chain in (source, model))
    np.testing.assert_array_equal(*weights)
    rgb = mask_rcnn.build('thin_fpn', dialect=mask_rcnn.config.TORCHVISION, **SMALL)
    with pytest.raises(WeightFileError, match="BGR images, but the model expects RGB; .*channel_order='BGR'"):
        load_pretrained(rgb, path)


# Formats


def test_a_registered_format_is_tried_before_those_of_the_package(tmp_path):
    """Also for a file that would be refused by name: this one begins like an ONNX model."""
    path = tmp_path / 'weights'
    path.write_bytes(b'\x08\x07\x12\x04zoo!')
    with pytest.raises(WeightFileError, match='is an ONNX model'):
        formats.detect_format(path)
    register_format(Format('zoo', "the zoo's files", lambda contents: b'zoo!' in contents.start, formats.read, 'zoo2c'))
    assert formats.detect_format(path).name == 'zoo' and formats.BY_NAME['zoo'].title == "the zoo's files"
    path.write_bytes(b'nothing of the kind')
    with pytest.raises(WeightFileError, match=r"\(supported: the zoo's files, this program's .npz, "):
        formats.detect_format(path)


def test_a_format_can_be_registered_again():
    for title in ('first', 'second'):
        register_format(Format('zoo', title, lambda contents: False, formats.read, 'zoo2c'))
    assert [format.title for format in formats._registered] == ['second']
    assert formats.BY_NAME['zoo'].title == 'second'


def test_a_format_needs_a_suffix():
    with pytest.raises(ValueError, match="'zoo' needs a suffix"):
        register_format(Format('zoo', 'a title', lambda contents: False, formats.read))


# Networks of other programs


def test_arrays_that_another_program_does_not_have_are_not_dropped():
    """Such as those of a head of a user: the file would have a network that the weights are not for."""
    arrays = {'a/W': np.ones(2, 'f'), 'mask_head/deconv2/W': np.ones(2, 'f')}
    with pytest.raises(WeightFileError, match='unexpected mask_head/deconv2/W$'):
        invert_mappings('x.npz', [ParamMapping('a/W', {'a.weight': (2,)})], arrays)
    del arrays['mask_head/deconv2/W']
    np.testing.assert_array_equal(
        invert_mappings('x.npz', [ParamMapping('a/W', {'a.weight': (2,)})], arrays)['a.weight'], [1, 1]
    )
