"""Importers refuse damaged files with one line, whatever is damaged."""

import copy
import csv
import io
import json

import numpy as np
import pytest

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import ImportOptions, assembly, import_annotations
from mask_rcnn.datasets.importers.coco_writer import coco_content
from mask_rcnn.preprocessing.image_io import ImageFileError, _size_or_error
from tests.support import labelling_files as files

DEEP = json.loads('[' * 300 + ']' * 300)
WRONG_VALUES = [None, True, -1, 7, 1e308, float('nan'), float('inf'), 10**400, 'x', '', '\0', '\ud800', [], {}, [[]]]
WRONG_VALUES += [[None], [[1, 2]], {'a': 1}, DEEP, 'a/' * 9000]


def contents():
    shapes = [
        files.labelme_shape([[5, 5], [60, 9], [20, 70]], group_id=1),
        files.labelme_shape([[5, 5], [60, 50]], 'rectangle', group_id=1),
        files.labelme_shape([[50, 50], [50, 60]], 'circle'),
        files.labelme_shape([[3, 4], [7, 6]], 'mask', mask=files.png_text(np.eye(3, 5) > 0)),
    ]
    regions = [
        files.via_triangle({'class': 'cat'}),
        files.via_region({'name': 'rect', 'x': 4, 'y': 5, 'width': 20, 'height': 30}, {'class': {'dog': True}}),
        files.via_region({'name': 'circle', 'cx': 40, 'cy': 50, 'r': 12.5}, {'class': 'dog', 'kind': 'a'}),
        files.via_region({'name': 'ellipse', 'cx': 40, 'cy': 50, 'rx': 12, 'ry': 7, 'theta': 0.3}, {'class': 'dog'}),
    ]
    project = {
        '_via_settings': {'core': {'default_filepath': './'}},
        '_via_img_metadata': files.via_image(regions),
        '_via_attributes': {'region': {'class': {'type': 'text'}}, 'file': {}},
    }
    first = files.via_image({'0': regions[0], '1': regions[3]}, fileref='', base64_img_data='')
    rle = {'size': list(files.SIZE), 'counts': [100, 50, files.HEIGHT * files.WIDTH - 150]}
    objects = [files.coco_object(), files.coco_object(id=1, segmentation=rle, iscrowd=1, bbox=[1, 2, 3, 4], area=50)]
    return {
        'via1': first,
        'via2': project,
        'labelme': files.labelme_file(shapes, imageData='eA=='),
        'coco': files.coco_file(objects),
    }


CONTENTS = contents()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """Read the size of the only image without a pool of threads, whose start takes longer than the rest."""

    def read_image_sizes(paths):
        return [_size_or_error(path, apply_orientation=True) for path in paths]

    monkeypatch.setattr(assembly, 'read_image_sizes', read_image_sizes)


def places(content, path=()):
    """Yield the keys that lead to each value of parsed JSON."""
    if path:
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(content, path, change):
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return content


def check(source, name):
    """Import a file: it is read, or refused in one line, and nothing else is raised."""
    for skip_broken in (False, True):
        options = ImportOptions(skip_broken=skip_broken)
        try:
            dataset = import_annotations(source, options, format_name=name)
        except (AnnotationFileError, ImageFileError) as error:
            lines = [str(error)]
        else:
            json.dumps(coco_content(dataset, source.parent), allow_nan=False)
            lines = [str(dataset.omissions), str(dataset.doubts)]
        assert not any('\n' in line for line in lines)


@pytest.mark.parametrize('step', [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', CONTENTS)
def test_wrong_values_and_missing_keys(tmp_path, kind, step):
    """Every value of a file, or a sample of them, is removed and replaced by wrong values."""
    files.write_image(tmp_path / 'a.png')
    path, content, name = tmp_path / 'a.json', CONTENTS[kind], kind.rstrip('12')
    check(files.write_json(path, content), name)
    every_place = list(places(content))
    for i, place in list(enumerate(every_place))[::step]:
        check(files.write_json(path, changed(content, place, lambda parent, key: parent.pop(key))), name)
        for value in WRONG_VALUES[i % len(WRONG_VALUES) :: 16] if step > 1 else WRONG_VALUES:
            wrong = changed(content, place, lambda parent, key, value=value: parent.__setitem__(key, value))
            check(files.write_json(path, wrong), name)
    assert len(every_place) > 20


@pytest.mark.parametrize('kind', CONTENTS)
def test_every_wrong_value_as_the_whole_file(tmp_path, kind):
    for value in WRONG_VALUES:
        check(files.write_json(tmp_path / 'a.json', value), kind.rstrip('12'))


@pytest.mark.parametrize('kind', CONTENTS)
def test_a_truncated_file(tmp_path, kind):
    text = json.dumps(CONTENTS[kind])
    path = tmp_path / 'a.json'
    for length in range(0, len(text), 197):
        path.write_text(text[:length])
        with pytest.raises(AnnotationFileError, match=r'a\.json: (not a JSON file|not annotations)'):
            import_annotations(path)


def test_endless_nesting(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"shapes": ' + '[' * 200_000)
    with pytest.raises(AnnotationFileError, match='not a JSON file'):
        import_annotations(path)


def test_damaged_xml(tmp_path, rng):
    files.write_image(tmp_path / 'a.png')
    text = files.xml_file(files.xml_object([(5, 5), (60, 9), (20, 70)], id='3') * 2)
    path = tmp_path / 'a.xml'
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        check(path, 'labelme-xml')
    for _ in range(60):
        damaged = bytearray(text.encode())
        for place in rng.randint(0, len(damaged), 3):
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        check(path, 'labelme-xml')
    for old, new in [('<x>5</x>', ''), ('<x>5</x>', '<x>nan</x>'), ('<x>5</x>', '<x>1e400</x>'), ('<pt>', '<q>')]:
        path.write_text(text.replace(old, new))
        check(path, 'labelme-xml')


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', 'document type declaration'),
        ('<annotation>' * 50 + '</annotation>' * 50, 'nested'),
        ('<?xml version="1.0" encoding="x-unknown"?><annotation/>', 'not an XML file'),
    ],
)
def test_refused_xml(tmp_path, text, reason):
    (tmp_path / 'a.xml').write_text(text)
    with pytest.raises(AnnotationFileError, match=reason):
        import_annotations(tmp_path / 'a.xml', format_name='labelme-xml')


def test_a_damaged_table(tmp_path, rng):
    files.write_image(tmp_path / 'a.png')
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(['filename', 'file_size', 'file_attributes', 'region_count', 'region_id'])
    head = table.getvalue().strip() + ',region_shape_attributes,region_attributes\r\n'
    row = ['a.png', 100, '{}', 1, 0, json.dumps(files.via_triangle()['shape_attributes']), '{"class":"cat"}']
    table = io.StringIO()
    csv.writer(table).writerow(row)
    text, path = head + table.getvalue(), tmp_path / 'a.csv'
    path.write_text(text)
    assert len(import_annotations(path).images[0].objects) == 1
    for length in range(0, len(text), 19):
        path.write_text(text[:length])
        check(path, 'via')
    for _ in range(60):
        damaged = bytearray(text.encode())
        for place in rng.randint(0, len(damaged), 2):
            damaged[place] = rng.randint(256)
        path.write_bytes(damaged)
        check(path, 'via')
