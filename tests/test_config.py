import json

import pytest

from mask_rcnn.config import DETECTRON, DIALECTS, PRESETS, Config


def test_dict_round_trip_through_json():
    config = PRESETS['resnet101'].replace(n_fg_class=4, anchor_sizes=(16, 32), roi_align=False)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_detectrons():
    config = Config()
    assert config.dialect is DETECTRON is DIALECTS['detectron']
    assert (config.min_size, config.max_size) == (800, 1333)
    assert (config.rpn_pre_nms, config.rpn_post_nms, config.rpn_nms_threshold) == (6000, 1000, 0.7)
    assert (config.score_threshold, config.nms_threshold, config.max_detections) == (0.05, 0.5, 100)


@pytest.mark.parametrize('change, message', [
    ({'extractor': 'vgg16'}, 'extractor must be one of resnet50, resnet101'),
    ({'norm': 'gn'}, 'norm must be'),
    ({'roi_size': 8}, 'roi_size must be 7 or 14'),
    ({'n_fg_class': 0}, 'n_fg_class must be at least 1'),
    ({'min_size': 900, 'max_size': 800}, 'need 0 < min_size <= max_size'),
])
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_bad_dicts():
    with pytest.raises(ValueError, match='unknown configuration fields: depth'):
        Config.from_dict({'depth': 50})
    with pytest.raises(ValueError, match="unknown dialect 'klingon'"):
        Config.from_dict({'dialect': 'klingon'})
