"""Results in files that grow: JSON lines and tables."""

import csv
import io
import json
import os
import resource
import subprocess
import sys

import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.media.csv_table import COLUMNS, CSVTable
from mask_rcnn.media.json_lines import JSONLines
from mask_rcnn.media.record_file import RecordFile
from mask_rcnn.media.results import Origin

IMAGE = Origin('in/a.jpg', 'a')
FRAME = Origin('clip.mp4', 'clip_000012', 12, 0.4)


def rows(path):
    """Return the rows of a table as dictionaries."""
    text = path.read_bytes().decode('utf-8-sig')
    return list(csv.DictReader(io.StringIO(text, newline=''), strict=True))


def test_json_lines_of_images_and_frames(tmp_path, two):
    lines = JSONLines(tmp_path / 'found.jsonl')
    lines.add(IMAGE, two)
    lines.add(FRAME, two, [7, 3])
    lines.close()
    image, frame = (json.loads(line) for line in (tmp_path / 'found.jsonl').read_text().splitlines())
    assert {key: value for key, value in image.items() if key != 'detections'} == {
        'image': 'in/a.jpg',
        'height': 30,
        'width': 40,
    }
    assert (frame['video'], frame['frame'], frame['time']) == ('clip.mp4', 12, 0.4)
    person, light = image['detections']
    assert set(person) == {'class', 'category_id', 'bbox', 'score', 'segmentation'}
    assert (person['class'], person['category_id'], person['bbox'], person['score']) == (
        'person',
        1,
        [4, 2, 11, 9],
        0.75,
    )
    assert (light['class'], light['category_id'], light['bbox']) == ('traffic light', 10, [12, 5, 19, 21])
    assert (coco_mask.decode(light['segmentation']).astype(bool) == two.masks[1]).all()
    assert [found['track'] for found in frame['detections']] == [7, 3]
    assert [{**found, 'track': None} for found in frame['detections']] == [
        {**found, 'track': None} for found in image['detections']
    ]


def test_a_frame_without_detections_has_a_line(tmp_path, make_detections):
    lines = JSONLines(tmp_path / 'found.jsonl')
    lines.add(Origin('clip.mp4', 'clip_000001', 1), make_detections())
    assert json.loads((tmp_path / 'found.jsonl').read_text()) == {
        'video': 'clip.mp4',
        'frame': 1,
        'height': 30,
        'width': 40,
        'detections': [],
    }


def test_a_table(tmp_path, two, make_detections):
    table = CSVTable(tmp_path / 'found.csv')
    table.add(IMAGE, two)
    table.add(Origin('in/empty.jpg', 'empty'), make_detections())
    table.add(FRAME, make_detections((2, 1 / 3, 0, 0, 3, 4.5), has_masks=False), [9])
    table.close()
    assert (tmp_path / 'found.csv').read_text('utf-8-sig').splitlines() == [
        'image,frame,time,class,score,x,y,width,height,area,track',
        'in/a.jpg,,,person,0.7500,4.00,2.00,11.00,9.00,99,',
        'in/a.jpg,,,traffic light,0.5000,12.00,5.00,19.00,21.00,399,',
        'clip.mp4,12,0.400,dog,0.3333,0.00,0.00,5.50,4.00,22.00,9',
    ]
    assert (tmp_path / 'found.csv').read_bytes().startswith(b'\xef\xbb\xbfimage,')


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('=HYPERLINK("http://x.test","a")', '\'=HYPERLINK("http://x.test","a")'),
        ('+1', "'+1"),
        ('-1', "'-1"),
        ('@SUM(A1)', "'@SUM(A1)"),
        (' =1', "' =1"),
        ('＝1', "'＝1"),  # noqa: RUF001
        ('\t=1', '\\t=1'),
        ('a, "b"', 'a, "b"'),
        ('two\nlines', 'two\\nlines'),
        ('bytes \udcff', 'bytes \\udcff'),
        ('人物', '人物'),
        ('', ''),
    ],
)
def test_names_in_a_table(tmp_path, make_detections, name, expected):
    found = make_detections((0, 0.5, 1, 1, 2, 2), class_names=(name, 'b', 'c'))
    table = CSVTable(tmp_path / 'found.csv')
    table.add(Origin(name, 'a'), found)
    table.close()
    (row,) = rows(tmp_path / 'found.csv')
    assert tuple(row) == COLUMNS
    assert row['class'] == row['image'] == expected and row['score'] == '0.5000'


def test_file_names_that_are_not_utf_8_in_json_lines(tmp_path, two):
    lines = JSONLines(tmp_path / 'found.jsonl')
    lines.add(Origin('\udcff.jpg', 'a'), two)
    assert json.loads((tmp_path / 'found.jsonl').read_bytes())['image'] == '\udcff.jpg'


@pytest.mark.parametrize('sink', [JSONLines, CSVTable])
def test_the_file_is_complete_after_each_frame(tmp_path, two, sink):
    path = tmp_path / 'found'
    path.write_text('older results')
    file, sizes = sink(path), [0]
    assert path.read_text() == 'older results'
    for i in range(3):
        file.add(Origin('clip.mp4', 'clip', i + 1, i / 30), two, [1, 2])
        assert path.read_bytes().endswith(b'\n') and path.stat().st_size > sizes[-1]
        sizes.append(path.stat().st_size)
    assert b'older' not in path.read_bytes() and os.listdir(tmp_path) == ['found']
    file.close()
    file.close()
    assert path.stat().st_size == sizes[-1]


@pytest.mark.parametrize(('sink', 'content'), [(JSONLines, b''), (CSVTable, ','.join(COLUMNS).encode() + b'\n')])
def test_without_images_the_file_is_empty(tmp_path, sink, content):
    sink(tmp_path / 'found').close()
    assert (tmp_path / 'found').read_bytes().removeprefix(b'\xef\xbb\xbf') == content


@pytest.mark.parametrize('sink', [JSONLines, CSVTable])
def test_wrong_numbers_of_ids_are_rejected(tmp_path, two, sink):
    file = sink(tmp_path / 'found')
    with pytest.raises(ValueError, match='1 id is given for 2 instances'):
        file.add(FRAME, two, [1])
    assert not (tmp_path / 'found').exists()


def test_the_standard_output(tmp_path):
    """The standard output is a file that is appended to, and its earlier lines remain."""
    program = (
        'from pathlib import Path\nfrom mask_rcnn.media.record_file import RecordFile\n'
        'file = RecordFile("/dev/stdout")\nfile.write(b"one\\n")\nfile.write(b"two\\n")\nfile.close()\n'
    )
    with open(tmp_path / 'lines', 'wb') as file:
        file.write(b'zero\n')
        file.flush()
        subprocess.run([sys.executable, '-c', program], stdout=file, check=True)
    assert (tmp_path / 'lines').read_bytes() == b'zero\none\ntwo\n'


def test_a_full_disk_leaves_complete_records(tmp_path):
    """A limit of the size of files is reached within the third record."""
    path = tmp_path / 'lines'
    file = RecordFile(path, b'header\n')
    file.write(b'a' * 99 + b'\n')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, limits[1]))
    try:
        file.write(b'b' * 99 + b'\n')
        with pytest.raises(FileError, match='lines: cannot be written: File too large'):
            file.write(b'c' * 99 + b'\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.close()
    assert path.read_bytes() == b'header\n' + b'a' * 99 + b'\n' + b'b' * 99 + b'\n'
    with pytest.raises(ValueError, match='the file is closed'):
        file.write(b'd\n')


def test_a_file_that_cannot_be_written(tmp_path):
    for path, reason in ((tmp_path, 'is a folder'), (tmp_path / 'no' / 'file', 'No such file')):
        with pytest.raises(FileError, match=reason):
            RecordFile(path).write(b'')
    with pytest.raises(FileError, match='/dev/full: cannot be written: No space left'):
        RecordFile('/dev/full').write(b'a\n')
