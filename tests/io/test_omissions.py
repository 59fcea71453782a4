"""Tests of the summary of omissions."""

from mask_rcnn.io.omissions import Omissions


def test_a_summary_counts_the_items_and_names_three_of_each_reason():
    omissions = Omissions('objects')
    for number in (7, 9, 12, 13):
        omissions.add('without area', f'annotation {number}')
    omissions.add('outside its image', 'annotation 20')
    assert str(omissions) == (
        'left out 5 objects: 4 without area (annotation 7, annotation 9, annotation 12, ...), '
        '1 outside its image (annotation 20)'
    )
    assert omissions.counts == {'without area': 4, 'outside its image': 1}


def test_a_summary_of_one_item_is_singular():
    omissions = Omissions('files')
    omissions.add('with an unknown suffix', 'a.heic')
    assert str(omissions) == 'left out 1 file: 1 with an unknown suffix (a.heic)'


def test_a_reason_with_a_noun_is_singular_for_one_item():
    first, second = Omissions('items'), Omissions('items')
    second.add('shapes without area', 'shape 1', one='shape without area')
    first.extend(second)
    assert str(first) == 'left out 1 item: 1 shape without area (shape 1)'
    first.add('shapes without area', 'shape 2', one='shape without area')
    assert str(first) == 'left out 2 items: 2 shapes without area (shape 1, shape 2)'
    assert first.counts == {'shapes without area': 2}


def test_a_summary_states_what_was_done():
    kept = Omissions('doubtful objects', action='kept')
    kept.add('outside its image', 'annotation 2')
    assert str(kept) == 'kept 1 doubtful object: 1 outside its image (annotation 2)'


def test_an_empty_summary_is_false():
    assert not Omissions('files')


def test_summaries_are_joined():
    first, second = Omissions('files'), Omissions('files')
    first.add('empty', 'a')
    second.add('empty', 'b')
    first.extend(second)
    assert first.counts == {'empty': 2}
