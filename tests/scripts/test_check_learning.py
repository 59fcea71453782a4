"""The scripts that check training; the trainings themselves are too long for a test."""

import importlib
import json

import pytest

from tests.support.train_scripts import parse_train_arguments


@pytest.fixture
def scripts():
    return importlib.import_module('check_overfit_8_images'), importlib.import_module('check_learning_shapes')


CONTENT = {
    'images': [{'id': i, 'height': 512, 'width': 512, 'file_name': f'{i}.jpg'} for i in range(1, 6)],
    'categories': [{'id': i, 'name': f'class {i}'} for i in (1, 2, 3)],
    'annotations': [
        {'id': 1, 'image_id': 1, 'category_id': 1, 'iscrowd': 0, 'area': 10000},
        {'id': 2, 'image_id': 1, 'category_id': 1, 'iscrowd': 0, 'area': 4},
        {'id': 3, 'image_id': 2, 'category_id': 2, 'iscrowd': 0, 'area': 900},
        {'id': 4, 'image_id': 3, 'category_id': 1, 'iscrowd': 1, 'area': 90000},
        {'id': 5, 'image_id': 4, 'category_id': 3, 'iscrowd': 0, 'area': 400},
    ],
}


def test_images_whose_smallest_object_is_largest_are_chosen(scripts, tmp_path):
    """Images with a tiny object, with a crowd or without objects are not."""
    eight, _ = scripts
    assert eight.choose_images(CONTENT, 2) == [2, 4]
    eight.write_subset(CONTENT, [2, 4], tmp_path / 'some.json')
    subset = json.loads((tmp_path / 'some.json').read_text())
    assert [image['id'] for image in subset['images']] == [2, 4]
    assert [annotation['id'] for annotation in subset['annotations']] == [3, 5]
    assert [category['id'] for category in subset['categories']] == [2, 3]


def test_train_accepts_their_arguments(scripts, tmp_path):
    eight, shapes = scripts
    args = eight.make_parser().parse_args(
        ['--annotations', 'a', '--images', 'b', '--pretrained', 'c', '--out', str(tmp_path)]
    )
    for words in (eight.training_arguments(args, tmp_path / 'eight.json'), shapes.training_arguments(args)):
        parsed = parse_train_arguments(words)
        assert parsed.iteration == parsed.validation == args.iterations


def test_the_last_evaluation_decides(scripts, tmp_path, capsys):
    eight, _ = scripts
    report = importlib.import_module('training_check').report
    entries = [
        {'validation/bbox/AP': 0.5, 'validation/bbox/AP50': value, 'validation/segm/AP50': value}
        for value in (0.95, 0.85)
    ]
    for log, status in ((entries, 1), (entries[::-1] + [{'iteration': 9}], 0)):
        (tmp_path / 'log').write_text(json.dumps(log))
        assert report(tmp_path / 'log', eight.GOALS) == status
    assert 'bbox/AP50 0.950, goal 0.90: reached' in capsys.readouterr().out
