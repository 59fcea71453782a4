"""Tests of the listing of folders: what is found, and what is reported as left out."""

import logging
import os

import pytest
from PIL import Image

from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_io import ImageFileError, list_images
from tests.preprocessing.image_files import encode, gradients


def test_folders_are_expanded(tmp_path):
    for name in ('b.JPG', 'a.png', 'c.txt', '.hidden.png'):
        (tmp_path / name).write_bytes(b'x')
    text = tmp_path / 'c.txt'
    assert list_images([str(text), tmp_path]) == [text, tmp_path / 'a.png', tmp_path / 'b.JPG']


@pytest.mark.parametrize(
    'suffix', ['.jfif', '.jpe', '.mpo', '.apng', '.dib', '.avif', '.j2k', '.jpx', '.pnm', '.TIF', '.Jpeg']
)
def test_suffixes_of_images(tmp_path, suffix):
    (tmp_path / f'a{suffix}').write_bytes(b'x')
    assert list_images([tmp_path]) == [tmp_path / f'a{suffix}']


@pytest.mark.parametrize('name', ['photo', 'photo.jpg~', 'photo.2024', 'photo.image'])
@pytest.mark.parametrize('image_format', ['JPEG', 'PNG', 'BMP', 'GIF', 'TIFF', 'WEBP', 'PPM', 'JPEG2000'])
def test_unknown_suffixes_are_judged_by_the_content(tmp_path, image_format, name):
    (tmp_path / name).write_bytes(encode(Image.fromarray(gradients()), image_format))
    assert list_images([tmp_path]) == [tmp_path / name]


def test_what_is_left_out_is_reported_by_kind(tmp_path, caplog):
    (tmp_path / 'a.png').write_bytes(b'x')
    for name in ('b.heic', 'c.HEIF', 'd.cr2', 'e.svg'):
        (tmp_path / name).write_bytes(b'x')
    (tmp_path / 'f').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')
    (tmp_path / 'g.xyz').write_bytes(b'BM, as in benchmark')
    (tmp_path / 'h.png').symlink_to('nowhere.png')
    (tmp_path / 'i.jpg').mkdir()
    os.mkfifo(tmp_path / 'j.png')
    omissions = Omissions('files')
    with caplog.at_level(logging.WARNING):
        assert list_images([tmp_path], omissions=omissions) == [tmp_path / 'a.png']
    assert not caplog.records
    assert omissions.counts == {
        'in an unsupported format': 5,
        'with an unknown suffix': 1,
        'with a dangling link': 1,
        'in the form of a subfolder': 1,
        'without content (pipes, sockets or devices)': 1,
    }
    assert '5 in an unsupported format (b.heic, c.HEIF, d.cr2, ...)' in str(omissions)


def test_files_that_accompany_images_and_hidden_files_are_not_reported(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'x')
    for name in ('a.json', 'a.xml', 'classes.txt', 'Thumbs.db', '.DS_Store', 'README.md', 'desktop.ini', '._a.png'):
        (tmp_path / name).write_bytes(b'x')
    omissions = Omissions('files')
    assert list_images([tmp_path], omissions=omissions) == [tmp_path / 'a.png']
    assert not omissions


def test_without_a_summary_what_is_left_out_is_logged(tmp_path, caplog):
    (tmp_path / 'a.png').write_bytes(b'x')
    (tmp_path / 'b.heic').write_bytes(b'x')
    with caplog.at_level(logging.WARNING):
        list_images([tmp_path])
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path}: left out 1 file: 1 in an unsupported format (b.heic)'
    ]


def test_missing_and_empty_paths(tmp_path):
    with pytest.raises(ImageFileError, match='nowhere: no such file or folder'):
        list_images([tmp_path / 'nowhere'])
    with pytest.raises(ImageFileError, match='contains no image$'):
        list_images([tmp_path])
    (tmp_path / 'a.heic').write_bytes(b'x')
    with pytest.raises(ImageFileError, match=r'contains no image \(left out 1 file: 1 in an unsupported format'):
        list_images([tmp_path])
    with pytest.raises(ValueError, match='no image was given'):
        list_images([])


def test_links(tmp_path):
    (tmp_path / 'real.png').write_bytes(b'x')
    for name, target in (('good.png', 'real.png'), ('dangling.png', 'gone.png'), ('loop.png', 'loop.png')):
        (tmp_path / name).symlink_to(target)
    omissions = Omissions('files')
    assert list_images([tmp_path], omissions=omissions) == [tmp_path / 'good.png', tmp_path / 'real.png']
    assert omissions.counts == {'with a dangling link': 2}
    with pytest.raises(ImageFileError, match=r'the link leads to a missing file \(gone\.png\)'):
        list_images([tmp_path / 'dangling.png'])


def test_names_of_any_bytes(tmp_path):
    names = [b'caf\xe9.png', b'new\nline.png', '\N{CAMERA}.png'.encode()]
    for name in names:
        with open(os.fsencode(tmp_path) + b'/' + name, 'wb') as file:
            file.write(b'x')
    assert {os.fsencode(path.name) for path in list_images([tmp_path])} == set(names)
