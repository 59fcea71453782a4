"""The recognition of formats when the images are in a folder of their own."""

import re

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.cli import data
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import FORMATS, ImportOptions, import_annotations, label_images
from tests.support import labelling_files as files
from tests.support.labelling_files import HEIGHT, WIDTH

PIXELS = np.zeros((HEIGHT, WIDTH), np.uint8)
PIXELS[5:40, 10:60] = 1


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_xml(path):
    shape = files.xml_object([(10, 5), (80, 20), (30, 75)])
    write_text(path, f'<annotation><filename>a.png</filename><folder>x</folder>{shape}</annotation>')


#: Format -> writes annotations of the image ``a`` into a folder without images.
WRITERS = {
    'via': lambda folder: files.write_json(folder / 'via.json', files.via_image([files.via_triangle()])),
    'labelme': lambda folder: files.write_json(
        folder / 'a.json', files.labelme_file([files.labelme_shape([[10, 5], [80, 20], [30, 75]])])
    ),
    'labelme-xml': lambda folder: write_xml(folder / 'a.xml'),
    'coco': lambda folder: files.write_json(folder / 'all.json', files.coco_file([files.coco_object()])),
    'yolo': lambda folder: write_text(folder / 'a.txt', '0 0.1 0.1 0.5 0.1 0.5 0.5\n'),
    'voc-masks': lambda folder: write_mask(folder / 'SegmentationObject' / 'a.png'),
    'instance-masks': lambda folder: write_mask(folder / 'masks' / 'a' / '1.png'),
    'label-images': lambda folder: write_mask(folder / 'a.png'),
}


@pytest.fixture
def photos(tmp_path):
    """The folder of the images, with ``a.png``."""
    return files.write_image(tmp_path / 'photos' / 'a.png').parent


@pytest.mark.parametrize('name', FORMATS)
def test_every_format_is_recognised_apart_from_its_images(name, photos, tmp_path):
    WRITERS[name](tmp_path / 'labels')
    options = ImportOptions(image_folder=photos)
    chosen = import_annotations(tmp_path / 'labels', options, format_name=name)
    found = import_annotations(tmp_path / 'labels', options)
    assert found.format_name == chosen.format_name
    (image,) = found.images
    assert image.path == photos / 'a.png' and len(image.objects) == 1


@pytest.mark.parametrize('name', [name for name in FORMATS if name != 'label-images'])
def test_pictures_beside_annotations_are_no_label_images(name, photos, tmp_path):
    WRITERS[name](tmp_path / 'labels')
    files.write_image(tmp_path / 'labels' / 'a.png')
    assert label_images.recognises(tmp_path / 'labels', photos)  # the pictures alone could be label images
    found = import_annotations(tmp_path / 'labels', ImportOptions(image_folder=photos))
    assert found.format_name != label_images.NAME


def test_the_folder_of_the_images_is_not_that_of_the_labels(photos):
    with pytest.raises(AnnotationFileError, match='the folder has no annotations of a known format'):
        import_annotations(photos, ImportOptions(image_folder=photos))


def test_a_subfolder_of_label_images_is_named(photos, tmp_path):
    write_mask(tmp_path / 'project' / 'truth' / 'a.png')
    with pytest.raises(AnnotationFileError, match=r'but subfolders have: \S*truth; known are: '):
        import_annotations(tmp_path / 'project', ImportOptions(image_folder=photos))


def test_the_command_recognises_label_images(tmp_path, capsys):
    files.write_image(tmp_path / 'photos' / 'img0.jpg')
    write_mask(tmp_path / 'labels' / 'img0.png')
    folders = [str(tmp_path / 'labels'), '--images', str(tmp_path / 'photos')]
    assert data.main(['import', *folders, '--output', str(tmp_path / 'all.json')]) == 0
    assert capsys.readouterr().out.startswith('label images: 1 image, 1 object\n')


def test_an_unrecognised_source_names_the_formats(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    assert data.main(['import', str(tmp_path / 'empty'), '--output', str(tmp_path / 'all.json')]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.findall(r'(?:: |; )([a-z-]+): ', line.partition('known are')[2]) == list(FORMATS)
    assert line.endswith(' (--format NAME selects one)')
