"""Tests of configurations and dialects: values, validation and plain data."""

import copy
import dataclasses
import fractions
import json
import math
import pickle

import numpy as np
import pytest

from mask_rcnn.config import DENA, DETECTRON, DIALECTS, MATTERPORT, MINDSPORE, PRESETS, TORCHVISION, Config


def test_from_dict_inverts_to_dict_through_json():
    config = PRESETS['resnet101'].replace(n_fg_class=4, anchor_sizes=(16, 32), roi_align=False)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_those_of_detectron():
    config = Config()
    assert config.dialect is DETECTRON is DIALECTS['detectron']
    assert (config.min_size, config.max_size) == (800, 1333)
    assert (config.rpn_pre_nms, config.rpn_post_nms, config.rpn_nms_threshold) == (6000, 1000, 0.7)
    assert (config.score_threshold, config.nms_threshold, config.max_detections) == (0.05, 0.5, 100)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'extractor': 'vgg16'}, 'extractor must be one of resnet50, resnet101'),
        ({'norm': 'ln'}, "^norm must be 'affine', 'bn' or 'gn', not 'ln'"),
        ({'head_norm': 'ln'}, 'head_norm must be'),
        ({'roi_size': 8}, 'roi_size must be 7 or 14'),
        ({'n_fg_class': 0}, 'n_fg_class must be an integer of at least 1, not 0'),
        ({'fpn_channels': -1}, 'fpn_channels must be an integer of at least 1, not -1'),
        ({'head_channels': 1.5}, 'head_channels must be an integer of at least 1, not 1.5'),
        ({'rpn_channels': -1}, 'rpn_channels must be an integer of at least 0, not -1'),
        ({'max_detections': -1}, 'max_detections must be an integer of at least 0, not -1'),
        ({'width': float('inf')}, 'width must be a positive number, not inf'),
        ({'anchor_ratios': ()}, r'anchor_ratios must be one or more positive numbers, not \[\]'),
        ({'anchor_sizes': (32, 0)}, r'anchor_sizes must be one or more positive numbers, not \[32, 0\]'),
        ({'nms_threshold': 1.5}, 'nms_threshold must be a number from 0 to 1, not 1.5'),
        ({'score_threshold': float('nan')}, 'score_threshold must be a number from 0 to 1, not nan'),
        ({'rpn_min_size': -1}, 'rpn_min_size must be a number of at least 0, not -1'),
        ({'min_size': 900, 'max_size': 800}, 'need 0 < min_size <= max_size, got 900 and 800'),
        ({'extractor': 'resnet50_fpn', 'anchor_sizes': (32, 64)}, 'needs one anchor size for each, not 2'),
        ({'n_keypoint': 17}, "keypoint networks need an FPN extractor, not 'resnet50'"),
    ],
)
def test_invalid_values_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_replace_changes_single_conventions():
    changed = DETECTRON.replace(name='other', boxes={'offset': 0.0}, masks={'padding': 0, 'threshold': 0.3})
    assert (changed.name, changed.boxes.offset, changed.masks.padding, changed.masks.threshold) == ('other', 0, 0, 0.3)
    assert (changed.boxes.clip_offset, changed.input, DETECTRON.boxes.offset) == (1, DETECTRON.input, 1)


@pytest.mark.parametrize('change', [{'box': {'offset': 0.0}}, {'boxes': {'extent': 0.0}}, {'title': 'x'}])
def test_unknown_conventions_are_rejected(change):
    with pytest.raises(TypeError, match='unexpected keyword argument'):
        DETECTRON.replace(**change)


def test_a_letterbox_must_be_a_multiple_of_the_coarsest_stride():
    with pytest.raises(ValueError, match="max_size, the side of the matterport dialect's square input, must be a"):
        Config(dialect=MATTERPORT, max_size=1000)


def test_unknown_fields_and_dialects_are_rejected():
    with pytest.raises(ValueError, match="unknown configuration fields: 'depth'"):
        Config.from_dict({'depth': 50})
    with pytest.raises(ValueError, match="^unknown dialect 'klingon'; expected one of detectron, dena, "):
        Config.from_dict({'dialect': 'klingon'})


@pytest.mark.parametrize('data', [None, 5, 'x', [], ['masks'], b'', {1: 2, 'x': 3, None: 4}, {'dialect': 'a' * 9999}])
def test_data_that_are_no_configuration_are_rejected_with_one_line(data):
    with pytest.raises(ValueError, match='^(must be values by field name, not|unknown (conf|dialect))') as caught:
        Config.from_dict(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize('value', [PRESETS['resnet101_fpn'].replace(n_fg_class=3), DENA, DENA.boxes])
def test_copies_and_unpickled_instances_are_checked(value):
    """Pickles of other versions or programs may contain any value."""
    for same in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert same == value and hash(same) == hash(value)
    name = dataclasses.fields(value)[0].name
    for state in ({**vars(value), name: math.nan}, {**vars(value), name: None}):
        damaged = object.__new__(type(value))
        vars(damaged).update(state)
        with pytest.raises(ValueError, match=f'^{name} must be '):
            pickle.loads(pickle.dumps(damaged))
        with pytest.raises(ValueError, match=f'^{name} must be '):
            copy.deepcopy(damaged)


def test_a_network_in_the_dialect_of_another_program():
    """The settings are those of the programs: DeNA's and Detectron's columns in golden/dena/README.md."""
    config = Config(n_fg_class=3, min_size=300, max_size=500, rpn_post_nms=300, norm='bn')
    changed = config.in_dialect(DENA)
    assert changed == config.replace(dialect=DENA, sampling_ratio=2, rpn_min_size=4.0, max_detections=0)
    assert changed.in_dialect(DETECTRON) == config
    special = changed.replace(max_detections=7)
    assert special.in_dialect(DENA) is special
    assert Config.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


@pytest.mark.parametrize(
    ('config', 'dialect'),
    [
        (PRESETS['resnet50_fpn'], DENA),
        (Config(), MATTERPORT),
        (PRESETS['resnet50_fpn'].replace(dialect=MINDSPORE), DETECTRON),
    ],
)
def test_other_networks_keep_their_dialect(config, dialect):
    with pytest.raises(ValueError, match='only C4 networks can change between detectron and dena'):
        config.in_dialect(dialect)
    assert config.in_dialect(config.dialect) is config


def test_the_thresholds_of_pictures():
    """DeNA's demo has a score of 0.7 and NMS at 0.3, its evaluation 0.05 and 0.5."""
    for dialect, nms_threshold in ((DENA, 0.3), (DETECTRON, 0.5), (MATTERPORT, 0.5)):
        config = Config(dialect=dialect, max_size=1344)
        assert config.for_preset('evaluate') == config
        assert config.for_preset('visualize') == config.replace(score_threshold=0.7, nms_threshold=nms_threshold)
    with pytest.raises(ValueError, match="preset must be 'visualize' or 'evaluate', not 'coco'"):
        config.for_preset('coco')


#: Values that no field accepts, whatever its type.
NEVER_VALID = [
    *(math.nan, math.inf, -math.inf, -1, -0.5, 10**400, 10**9 + 0.5, 1j, None, 'x', '1', b'1', '', (), [], {}, {1}),
    *(
        np.nan,
        np.float32('inf'),
        np.array(3.0),
        np.ones((2, 2)),
        np.timedelta64(8, 's'),
        [[1]],
        ['1'],
        [math.nan],
        (1, None),
        range(3),
    ),
    *(object(), int, lambda: 1, Config, slice(1), 'a\nb' * 1000),
]
FIELDS = [field.name for field in dataclasses.fields(Config)]


@pytest.mark.parametrize('name', FIELDS)
def test_no_field_accepts_a_value_of_another_kind(name):
    wrong_type = 3 if isinstance(getattr(Config(), name), (str, tuple, bool)) or name == 'dialect' else True
    for value in [*NEVER_VALID, wrong_type]:
        with pytest.raises(ValueError, match=f'^{name} must be ') as caught:
            Config(**{name: value})
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize('name', [n for n in FIELDS if n != 'roi_size' and type(getattr(Config(), n)) is int])
def test_no_integer_is_too_large_for_the_kernels(name):
    for value in (10**10, 2**63, 1e300):
        with pytest.raises(ValueError, match=f'^{name} must be (an integer|a number) (of at most|from) '):
            Config(**{name: value})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'fpn_channels': 0}, 'fpn_channels must be an integer of at least 1, not 0'),
        ({'fpn_channels': 10**9}, 'fpn_channels must be an integer of at most 16384, not 1000000000'),
        ({'mask_roi_size': 0}, 'mask_roi_size must be an integer of at least 1, not 0'),
        ({'min_size': 0}, 'min_size must be an integer of at least 1, not 0'),
        ({'min_size': 600.5}, 'min_size must be an integer of at least 1, not 600.5'),
        ({'max_size': 10**6}, 'max_size must be an integer of at most 65536, not 1000000'),
        ({'anchor_ratios': []}, r'anchor_ratios must be one or more positive numbers, not \[\]'),
        ({'anchor_sizes': [1e300]}, r'anchor_sizes must be .*, each a number from 1e-06 to 1e\+06, not \[1e\+300\]'),
        ({'anchor_ratios': [1e-300]}, 'anchor_ratios must be one or more positive numbers, each'),
        ({'anchor_sizes': [1] * 65}, 'anchor_sizes must be one or more positive numbers'),
        ({'width': 1e-300}, 'width must be a number from 0.001 to 16, not 1e-300'),
        ({'rpn_min_size': math.nan}, 'rpn_min_size must be a number of at least 0, not nan'),
        ({'masks': 1}, 'masks must be True or False, not 1'),
        ({'n_fg_class': True}, 'n_fg_class must be an integer of at least 1, not True'),
        ({'dialect': 'detectron'}, "dialect must be a Dialect such as mask_rcnn.config.DETECTRON, not 'detectron'"),
        ({'extractor': ['resnet50']}, r"extractor must be one of resnet50, .*, not \['resnet50'\]"),
    ],
)
def test_the_message_names_the_field_its_range_and_the_value(change, message):
    for make in (lambda: Config(**change), lambda: Config().replace(**change)):
        with pytest.raises(ValueError, match=message):
            make()


def test_numbers_of_other_types_become_plain_values():
    config = Config(
        n_fg_class=np.int64(3),
        min_size=640.0,
        max_size=np.float32(960),
        roi_size=np.int8(7),
        masks=np.bool_(True),
        norm=np.str_('bn'),
        width=fractions.Fraction(1, 2),
        score_threshold=np.float64(0.25),
        roi_canonical_size=224.5,
        anchor_sizes=np.array([32, 64]),
        anchor_ratios=[np.float32(0.5), 1, 2.0],
    )
    plain = Config(
        n_fg_class=3,
        min_size=640,
        max_size=960,
        roi_size=7,
        norm='bn',
        width=0.5,
        score_threshold=0.25,
        roi_canonical_size=224.5,
        anchor_sizes=(32, 64),
        anchor_ratios=(0.5, 1, 2.0),
    )
    assert config == plain and hash(config) == hash(plain)
    for value in (*dataclasses.astuple(config.replace(dialect=DETECTRON)), *config.anchor_sizes, *config.anchor_ratios):
        assert type(value) in (int, float, bool, str, tuple)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())


def test_networks_without_optional_heads_and_unordered_anchors_are_valid():
    boxes_only = PRESETS['resnet50_fpn'].replace(masks=False, n_keypoint=0)
    assert not boxes_only.masks and boxes_only.replace(anchor_sizes=[512, 32, 64, 128, 256]).anchor_sizes[0] == 512
    assert Config(sampling_ratio=0, rpn_channels=0, max_detections=0, rpn_min_size=0).max_detections == 0


def test_a_similar_field_is_suggested():
    with pytest.raises(TypeError, match="Config has no field 'score_treshold'; did you mean score_threshold"):
        Config().replace(score_treshold=0.5)
    with pytest.raises(TypeError, match="Config has no field 'qqq'$"):
        Config().replace(qqq=1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'name': 5}, 'name must be text, not 5'),
        ({'boxes': None}, 'boxes must be an instance of BoxConventions, not None'),
        ({'boxes': DETECTRON.masks}, 'boxes must be an instance of BoxConventions'),
        ({'boxes': {'offset': math.nan}}, 'offset must be a number of at least 0, not nan'),
        ({'boxes': {'rpn_delta_weights': (1, 1, 1)}}, 'rpn_delta_weights must be four positive numbers'),
        ({'boxes': {'box_delta_weights': (1, 1, 1, 0)}}, 'box_delta_weights must be four positive numbers'),
        ({'boxes': {'max_log_scale': math.nan}}, 'max_log_scale must be a positive number or infinity, not nan'),
        ({'input': {'channel_order': 'GBR'}}, "channel_order must be one of 'RGB', 'BGR', not 'GBR'"),
        ({'input': {'pixel_std': (1, 1, 0)}}, 'pixel_std must be three positive numbers'),
        ({'input': {'pixel_mean': 'abc'}}, 'pixel_mean must be 3 finite numbers'),
        ({'input': {'letterbox': 1}}, 'letterbox must be True or False, not 1'),
        ({'masks': {'threshold': 1.5}}, 'threshold must be a number from 0 to 1, not 1.5'),
        (
            {'detections': {'visualize_nms_threshold': 2}},
            'visualize_nms_threshold must be a number from 0 to 1 or None',
        ),
        ({'training': {'roi_batch': 0}}, 'roi_batch must be an integer of at least 1, not 0'),
    ],
)
def test_invalid_conventions_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        DETECTRON.replace(**change)


def test_a_dialect_without_a_known_name_is_not_stored():
    """A reader would not know the conventions that the file does not contain."""
    config = Config(dialect=DETECTRON.replace(name='other'))
    with pytest.raises(ValueError, match='cannot be stored'):
        config.to_dict()
    with pytest.raises(ValueError, match='unknown dialect'):
        Config.from_dict({'dialect': ['detectron']})


def test_conventions_that_differ_from_the_named_dialect_are_stored():
    dialect = TORCHVISION.replace(backbone={'bn_eps': 0.0}, input={'pixel_std': (1.0, 2.0, 3.0)})
    stored = json.loads(json.dumps(Config(dialect=dialect).to_dict()))
    assert stored['dialect'] == {'name': 'torchvision', 'input': {'pixel_std': [1, 2, 3]}, 'backbone': {'bn_eps': 0}}
    assert Config.from_dict(stored).dialect == dialect
    assert Config(dialect=TORCHVISION).to_dict()['dialect'] == 'torchvision'


@pytest.mark.parametrize(
    ('dialect', 'message'),
    [
        ({'backbone': {'bn_eps': 0}}, 'unknown dialect None'),
        ({'name': 'detectron', 'neck': {}}, "unknown convention 'neck' of the dialect detectron"),
        ({'name': 'detectron', 'input': 3}, "unknown convention 'input' of the dialect detectron"),
        ({'name': 'detectron', 'input': {'size': 3}}, "unknown convention 'size' of the dialect detectron"),
        ({'name': 'detectron', 'backbone': {'bn_eps': 'x'}}, "bn_eps must be a number from 0 to 1, not 'x'"),
    ],
)
def test_stored_conventions_are_checked(dialect, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        Config.from_dict({'dialect': dialect})
