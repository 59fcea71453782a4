"""The division of a dataset, on small datasets whose possible divisions are all tried."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from mask_rcnn.datasets.coco_json import check_content
from mask_rcnn.datasets.inspection.split import ImageGroup, group_images, select_images, split_groups


def make_content(classes, names=None):
    """The content of a file whose image ``i`` has one object of each class of ``classes[i]``."""
    pairs = [(i, c) for i, image_classes in enumerate(classes) for c in image_classes]
    return {
        'info': {'a': 1},
        'images': [{'id': 10 + i, 'file_name': names[i] if names else f'{i}.png'} for i in range(len(classes))],
        'annotations': [{'id': k, 'image_id': 10 + i, 'category_id': c, 'x': k} for k, (i, c) in enumerate(pairs)],
        'categories': [{'id': c, 'name': f'c{c}'} for c in range(6)],
    }


def sides(groups, is_val):
    """Return the indices of the training and of the validation images."""
    val = {i for group, side in zip(groups, is_val, strict=True) if side for i in group.images}
    return {i for group in groups for i in group.images} - val, val


def n_on_both_sides(groups, is_val):
    train, val = (
        {c for group, on_side in zip(groups, is_val, strict=True) if on_side == side for c in group.classes}
        for side in (False, True)
    )
    return len(train & val)


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5])
def test_fraction_and_strata(fraction, rng):
    """Each class has nearly its fraction of images on each side."""
    classes = [set(np.flatnonzero(rng.rand(4) < (0.6, 0.3, 0.2, 0.1)).tolist()) for _ in range(400)]
    groups = group_images(check_content(make_content(classes)), [])
    train, val = sides(groups, split_groups(groups, fraction, seed=0))
    assert len(val) == fraction * 400 and len(train) + len(val) == 400
    for c in range(4):
        n, n_val = (sum(c in classes[i] for i in part) for part in (range(400), val))
        assert n_val / n == pytest.approx(fraction, abs=0.03)


@pytest.mark.parametrize('seed', range(15))
def test_classes_are_on_both_sides_where_possible(seed):
    """All divisions of seven images are tried; classes that one image has are on one side."""
    rng = np.random.RandomState(seed)
    classes = [set(rng.choice(5, rng.randint(0, 4), replace=False).tolist()) for _ in range(7)]
    groups = group_images(check_content(make_content(classes)), [])
    possible = max(n_on_both_sides(groups, is_val) for is_val in itertools.product((False, True), repeat=7))
    is_val = split_groups(groups, 0.2, seed=seed)
    assert n_on_both_sides(groups, is_val) == possible
    assert 0 < sum(is_val) < 7


def test_the_seed_decides():
    groups = [ImageGroup((i,), Counter([1])) for i in range(50)]
    first, again, other = (split_groups(groups, 0.2, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sum(first) == sum(other) == 10


def test_equal_images_and_names_stay_together():
    """0 and 3 are equal, and 3 and 4 have the same patient: one group."""
    names = ['p1_a.png', 'p2_a.png', 'p2_b.png', 'p3_a.png', 'p3_b.png', 'x.png', 'y.png']
    file = check_content(make_content([{1}] * 7, names))
    groups = group_images(file, [[0, 3]], re.compile(r'^p(\d+)_'))
    assert sorted(group.images for group in groups) == [(0, 3, 4), (1, 2), (5,), (6,)]
    assert groups[0].classes == {1: 3}
    assert [group.images for group in group_images(file, [], re.compile('_[ab]'))] == [(0, 1, 3), (2, 4), (5,), (6,)]
    for seed in range(10):
        for part in sides(groups, split_groups(groups, 0.3, seed=seed)):
            assert {0, 3, 4} <= part or not {0, 3, 4} & part


def test_one_group_cannot_be_divided():
    for groups, words in (([], 'at least 2 images, not 0'), ([ImageGroup((0,), {})], 'at least 2 images, not 1')):
        with pytest.raises(ValueError, match=words):
            split_groups(groups, 0.5, seed=0)
    with pytest.raises(ValueError, match='all images belong together'):
        split_groups([ImageGroup((0, 1, 2), {})], 0.1, seed=0)


def test_two_images_are_divided():
    """Also if each has the only object of a class, or no object."""
    for classes in ([{1}, {2}], [set(), set()]):
        groups = group_images(check_content(make_content(classes)), [])
        assert sorted(split_groups(groups, 0.01, seed=0)) == [False, True]


def test_selected_content():
    """Ids as text refer to the same images; nothing else changes."""
    content = make_content([{1, 2}, {3}, {1}])
    content['annotations'][2]['image_id'] = '11'
    selected = select_images(content, check_content(content), [2, 1])
    assert [image['id'] for image in selected['images']] == [11, 12]
    assert selected['annotations'] == content['annotations'][2:]
    assert selected['categories'] == content['categories'] and selected['info'] == {'a': 1}
    assert list(selected) == list(content)
