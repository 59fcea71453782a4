"""COCO results that are written while they grow."""

import json
import os
import resource
import tracemalloc
from functools import partial

import pytest

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.media.coco_results import COCOResults
from mask_rcnn.media.csv_table import CSVTable
from mask_rcnn.media.json_lines import JSONLines
from mask_rcnn.media.results import Origin


def write(path, items):
    """Write results, whose ids are the stems of the images."""
    results = COCOResults(path, lambda origin: origin.stem)
    for item in items:
        results.add(*item)
    results.close()


def test_the_file_is_that_of_json(tmp_path, two, make_detections):
    found = {'a': two, 'empty': make_detections(), 'b': two[:1]}
    write(tmp_path / 'found.json', [(Origin(f'{stem}.jpg', stem), item) for stem, item in found.items()])
    expected = json.dumps([result for stem, item in found.items() for result in item.to_coco(stem)])
    assert (tmp_path / 'found.json').read_text() == expected
    write(tmp_path / 'found.json', [])
    assert (tmp_path / 'found.json').read_text() == '[]'


def test_ids_of_tracks_are_an_additional_field(tmp_path, two):
    write(tmp_path / 'found.json', [(Origin('a.mp4', 'a_000001', 1), two, [4, 2])])
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [result.pop('track_id') for result in found] == [4, 2]
    assert found == two.to_coco('a_000001')


def test_the_file_appears_when_it_is_complete(tmp_path, two):
    path = tmp_path / 'found.json'
    path.write_text('older results')
    results = COCOResults(path, lambda origin: 1)
    results.add(Origin('a.jpg', 'a'), two)
    assert path.read_text() == 'older results'
    results.abort()
    assert path.read_text() == 'older results' and os.listdir(tmp_path) == ['found.json']


def test_a_full_disk_leaves_the_older_file(tmp_path, two):
    path = tmp_path / 'found.json'
    path.write_text('older results')
    results = COCOResults(path, lambda origin: 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(FileError, match='found.json: cannot be written: File too large'):
            results.write(b' ' * 1_000_000)  # more than a file's buffer, which Python 3.14 made larger
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for call in (lambda: results.add(Origin('a.jpg', 'a'), two), results.close):
        with pytest.raises(FileError, match='found.json: cannot be written: File too large'):
            call()
    assert path.read_text() == 'older results' and os.listdir(tmp_path) == ['found.json']


@pytest.mark.parametrize(
    'sink',
    [JSONLines, CSVTable, partial(COCOResults, image_id=lambda origin: origin.frame)],
    ids=['lines', 'table', 'coco'],
)
def test_the_memory_does_not_grow_over_3000_frames(tmp_path, two, sink):
    """:meth:`encode` stores nothing: it gives the same bytes again."""
    file, origin = sink(tmp_path / 'found'), Origin('clip.mp4', 'clip', 1, 0.0)
    encoded = file.encode(origin, two, [1, 2])
    file.write(encoded)
    tracemalloc.start()
    for _ in range(2999):
        file.write(encoded)
    assert tracemalloc.get_traced_memory()[0] < 50_000
    tracemalloc.stop()
    assert file.encode(origin, two, [1, 2]) == encoded
    file.close()
    assert (tmp_path / 'found').stat().st_size >= 3000 * len(encoded)
