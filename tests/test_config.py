"""Tests of configurations and dialects: values, validation and plain data."""

import json

import pytest

from mask_rcnn.config import DENA, DETECTRON, DIALECTS, MATTERPORT, MINDSPORE, PRESETS, Config


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
        ({'norm': 'gn'}, 'norm must be'),
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
    with pytest.raises(ValueError, match='unknown configuration fields: depth'):
        Config.from_dict({'depth': 50})
    with pytest.raises(ValueError, match="unknown dialect 'klingon'"):
        Config.from_dict({'dialect': 'klingon'})


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
