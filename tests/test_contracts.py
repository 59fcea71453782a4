"""What users and stored files rely on is as it was frozen; see ``tests/support/contracts.py``."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.support import contracts


def test_public_names_are_importable():
    assert set(contracts.frozen('public')) <= set(contracts.public())


@pytest.mark.parametrize('name', ['config', 'dialects', 'sampling'])
def test_stored_names_and_values(name):
    """The JSON of weight files and of snapshots."""
    assert _as_json(contracts.CONTRACTS[name]()) == contracts.frozen(name)


def test_parameter_paths_and_shapes():
    """The names of the arrays in weight files."""
    found, expected = contracts.parameters(), contracts.frozen('parameters')
    assert list(found) == list(expected)
    for network, tree in expected.items():
        assert dict(contracts.unfold(found[network])) == dict(contracts.unfold(tree)), network


def test_a_folded_contract_unfolds():
    shapes = {'block1/conv/W': [8, 4, 3, 3], 'block1/N': [], 'block2/conv/W': [8, 4, 3, 3], 'block2/N': [], 'b': [8]}
    folded = contracts.fold(shapes)
    assert folded == {'block1,block2': {'conv': {'W': '8x4x3x3'}, 'N': ''}, 'b': '8'}
    assert dict(contracts.unfold(folded)) == {path: 'x'.join(map(str, shape)) for path, shape in shapes.items()}


@pytest.mark.parametrize('command', contracts.frozen('commands'))
def test_options_of_the_commands(command):
    """Every option keeps its spellings, type and default; new spellings, choices and options may come."""
    found = {action['dest']: action for action in contracts.commands()[command]}
    for action in contracts.frozen('commands')[command]:
        new = found[action['dest']]
        if action['dest'] != 'help':
            assert [flag for flag in action['flags'] if not contracts.accepts(command, flag)] == []
        assert set(action['choices'] or ()) <= set(new['choices'] or ())
        assert (action['choices'] is None) == (new['choices'] is None)
        for key in ('nargs', 'default', 'required'):
            assert new[key] == action[key], f'{action["dest"]}: {key}'


def test_an_unknown_flag_is_not_accepted():
    assert contracts.accepts('convert', '--input') and contracts.accepts('info', '--json')
    assert not contracts.accepts('convert', '--no-such-flag')


def test_members_of_a_snapshot():
    found, expected = contracts.snapshot_members(), contracts.frozen('snapshot_members')
    assert dict(contracts.unfold(found)) == dict(contracts.unfold(expected))


@pytest.mark.skipif(int(cv2.__version__[0]) >= 5, reason='OpenCV 5 draws the letters of the scenes with other fonts')
def test_results_of_the_bundled_model():
    """Boxes to 0.01 pixel, scores to 1e-4, masks to an IoU of 0.99: float32 sums differ between processors."""
    found, expected = contracts.demo_results(), contracts.frozen('demo_results')
    assert len(found) == len(expected)
    for image_id in dict.fromkeys(result['image_id'] for result in expected):
        _compare_image(_of_image(found, image_id), _of_image(expected, image_id))


def _of_image(results, image_id):
    return [result for result in results if result['image_id'] == image_id]


def _compare_image(found, expected):
    """Match each result with the expected one of its class and box; results with equal scores may change places."""
    assert len(found) == len(expected)
    free = list(found)
    for result in expected:
        boxes = np.array([candidate['bbox'] for candidate in free])
        partner = free.pop(int(np.abs(boxes - result['bbox']).max(axis=1).argmin()))
        assert partner.keys() == result.keys()
        assert partner['category_id'] == result['category_id']
        np.testing.assert_allclose(partner['bbox'], result['bbox'], rtol=0, atol=0.01)
        assert partner['score'] == pytest.approx(result['score'], abs=1e-4)
        masks = result['segmentation'], partner['segmentation']
        assert masks[0]['size'] == masks[1]['size']
        assert coco_mask.iou([masks[0]], [masks[1]], [0])[0, 0] > 0.99


def _as_json(value):
    """Replace tuples by lists, as JSON does."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value
