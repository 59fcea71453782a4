"""The report of an import: every importer leaves out broken items in the same way."""

from pathlib import Path

import pytest

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.records import ImportedImage
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.preprocessing.image_io import ImageFileError

IMAGES = {
    'a.png': ImportedImage(Path('a.png'), (2, 3), ()),
    'left out.png': None,
    'b.png': ImageFileError('b.png', 'not an image'),
    'c.png': AnnotationFileError('c.txt', 'line 1 is empty'),
    'd.png': ImageFileError('d.png', 'not an image'),
}


def read(path):
    content = IMAGES[path.name]
    if isinstance(content, Exception):
        raise content
    return content


def test_broken_images_are_counted_by_the_kind_of_their_file():
    report = ImportReport(skip_broken=True)
    assert report.read_images(map(Path, IMAGES), read) == (IMAGES['a.png'],)
    assert str(report.omissions) == (
        'left out 3 items: 2 unusable images (b.png: not an image, d.png: not an image), '
        '1 malformed (c.txt: line 1 is empty)'
    )


@pytest.mark.parametrize('name', ['b.png', 'c.png'])
def test_a_broken_image_is_an_error_otherwise(name):
    with pytest.raises(type(IMAGES[name])) as caught:
        ImportReport(skip_broken=False).read_images([Path('a.png'), Path(name)], read)
    assert caught.value is IMAGES[name]
