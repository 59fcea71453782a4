"""Importer of masks in the format of Pascal VOC: the original, and those of CVAT and labelme."""

import os
import random

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers import label_images, voc_masks
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.datasets.importers.voc_classes import voc_color
from mask_rcnn.preprocessing.image_errors import ImageFileError
from tests.support.damage import bit_flips, truncations
from tests.support.pixel_annotations import GARBAGE, decode, labels, read_or_error, save, save_photo, write

#: The first colours of VOC's palette, and that of void, from the colour map of the development kit.
COLORS = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    3: (128, 128, 0),
    4: (0, 0, 128),
    5: (128, 0, 128),
    8: (64, 0, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}
#: Instance 2 has a frame of void and a pixel of another class.
OBJECTS = labels(v1=np.s_[1:5, 1:5], v2=np.s_[8:16, 8:16], v255=np.s_[8:16, 15:16])
CLASSES = labels(v15=np.s_[1:5, 1:5], v8=np.s_[8:16, 8:15], v20=np.s_[8:9, 8:9], v255=np.s_[8:16, 15:16])
DEFAULT = ImportOptions()


def palette_image(indices):
    image = Image.fromarray(indices).convert('P')
    image.putpalette([sample for i in range(256) for sample in COLORS.get(i, (i, 255, i))])
    return image


def colors(indices):
    return np.array([COLORS.get(i, (i, 255, i)) for i in range(256)], np.uint8)[indices]


@pytest.fixture
def voc(tmp_path):
    """A function that writes a dataset of one image: masks with a palette, or of colours, or grey."""

    def write_voc(name='p1', kind='palette', objects=OBJECTS, classes=CLASSES):
        convert = {'palette': palette_image, 'colours': colors, 'grey': np.asarray}[kind]
        save_photo(tmp_path / 'JPEGImages' / f'{name}.jpg')
        save(tmp_path / 'SegmentationObject' / f'{name}.png', convert(objects))
        save(tmp_path / 'SegmentationClass' / f'{name}.png', convert(classes))
        return tmp_path

    return write_voc


def names_of(dataset):
    """Return the classes of the objects, from the top of the image."""
    objects = [item for image in dataset.images for item in image.objects]
    return [item.class_name for item in sorted(objects, key=lambda item: np.flatnonzero(decode(item).any(axis=1))[0])]


def test_colors_of_the_palette():
    for index, (red, green, blue) in COLORS.items():
        assert voc_color(index) == red << 16 | green << 8 | blue


@pytest.mark.parametrize('kind', ['palette', 'colours', 'grey'])
def test_classes_of_voc(voc, kind):
    source = voc(kind=kind)
    assert voc_masks.recognises(source) and not label_images.recognises(source)
    dataset = voc_masks.read(source, DEFAULT)
    assert names_of(dataset) == ['person', 'cat']
    assert dataset.class_names[0] == 'aeroplane' and len(dataset.class_names) == 20 and not dataset.omissions
    (image,) = dataset.images
    assert image.path == source / 'JPEGImages' / 'p1.jpg' and image.size == (20, 30)
    for item, value in zip(sorted(image.objects, key=lambda item: item.class_name), (2, 1), strict=True):
        np.testing.assert_array_equal(decode(item), value == OBJECTS)  # the frame of void is not part of instance 2


def test_label_map_of_cvat(voc):
    """CVAT writes the colours of its labels, which are not those of VOC."""
    source = voc(kind='colours')
    write(
        source / 'labelmap.txt',
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup:192,128,128::\nfork:64,0,0:a,b:c\n',
    )
    classes = colors(CLASSES)
    classes[8, 8] = (0, 0, 0)
    save(source / 'SegmentationClass' / 'p1.png', classes)
    dataset = voc_masks.read(source, DEFAULT)
    assert names_of(dataset) == ['cup', 'fork'] and dataset.class_names == ('cup', 'fork')


def test_label_map_decides_for_the_colors_of_a_palette(voc):
    source = voc()
    write(source / 'labelmap.txt', 'background:0,0,0::\nfork:64,0,0::\ncup:192,128,128::\nspoon:0,64,128::\n')
    assert names_of(voc_masks.read(source, DEFAULT)) == ['cup', 'fork']


def test_label_map_without_colors(voc):
    """The colours are those of VOC's palette: the second line is (128, 0, 0)."""
    source = voc(kind='colours', classes=labels(v1=np.s_[1:5, 1:5], v2=np.s_[8:16, 8:16]))
    write(source / 'labelmap.txt', 'background:::\ncup:::\nfork:::\n')
    assert names_of(voc_masks.read(source, DEFAULT)) == ['cup', 'fork']


def test_class_names_of_labelme(voc):
    source = voc(classes=labels(v1=np.s_[1:5, 1:5], v2=np.s_[8:16, 8:16]))
    write(source / 'class_names.txt', '_background_\ncup\nfork\n')
    os.rename(source / 'SegmentationObject', source / 'SegmentationObjectPNG')
    os.rename(source / 'SegmentationClass', source / 'SegmentationClassPNG')
    write(source / 'SegmentationClass' / 'p1.npy', b'')
    dataset = voc_masks.read(source, DEFAULT)
    assert names_of(dataset) == ['cup', 'fork'] and dataset.class_names == ('cup', 'fork')


def test_lists_are_parts(voc):
    for name in ('p1', 'p2', 'p3'):
        source = voc(name)
    write(source / 'ImageSets' / 'Segmentation' / 'train.txt', 'p3\np1\n')
    assert [image.path.stem for image in voc_masks.read(source, DEFAULT).images] == ['p3', 'p1']
    write(source / 'ImageSets' / 'Segmentation' / 'val.txt', '"p2"\n\n')
    with pytest.raises(AnnotationFileError, match='has the parts train, val; choose one'):
        voc_masks.read(source, DEFAULT)
    with pytest.raises(AnnotationFileError, match="has no part 'test', only train, val"):
        voc_masks.read(source, ImportOptions(part='test'))
    assert [image.path.stem for image in voc_masks.read(source, ImportOptions(part='val')).images] == ['p2']
    chosen = source / 'ImageSets' / 'Segmentation' / 'val.txt'
    assert voc_masks.recognises(chosen)
    assert [image.path.stem for image in voc_masks.read(chosen, DEFAULT).images] == ['p2']


def test_folder_above(voc, tmp_path):
    voc()
    os.mkdir(tmp_path / 'VOC2012')
    for name in ('JPEGImages', 'SegmentationObject', 'SegmentationClass'):
        os.rename(tmp_path / name, tmp_path / 'VOC2012' / name)
    assert voc_masks.recognises(tmp_path)
    assert len(voc_masks.read(tmp_path, DEFAULT).images) == 1


def test_names_with_folders(tmp_path):
    save_photo(tmp_path / 'JPEGImages' / 'job 1' / 'p1.png')
    save(tmp_path / 'SegmentationObject' / 'job 1' / 'p1.png', palette_image(OBJECTS))
    save(tmp_path / 'SegmentationClass' / 'job 1' / 'p1.png', palette_image(CLASSES))
    write(tmp_path / 'ImageSets' / 'Segmentation' / 'default.txt', '"job 1/p1"\n')
    assert voc_masks.recognises(tmp_path)
    assert names_of(voc_masks.read(tmp_path, DEFAULT)) == ['person', 'cat']


def test_images_of_another_folder(voc, tmp_path_factory):
    source, other = voc(), tmp_path_factory.mktemp('photos')
    os.rename(source / 'JPEGImages' / 'p1.jpg', other / 'p1.jpg')
    os.rmdir(source / 'JPEGImages')
    with pytest.raises(AnnotationFileError, match='has no folder JPEGImages; --images names'):
        voc_masks.read(source, DEFAULT)
    assert voc_masks.read(source, ImportOptions(image_folder=other)).images[0].path == other / 'p1.jpg'


def test_instances_without_a_class_are_left_out(voc):
    dataset = voc_masks.read(voc(classes=labels(v15=np.s_[1:5, 1:5])), DEFAULT)
    assert names_of(dataset) == ['person'] and dataset.omissions.counts == {'instances without a class': 1}


def test_no_folder_of_classes(voc):
    source = voc()
    os.remove(source / 'SegmentationClass' / 'p1.png')
    os.rmdir(source / 'SegmentationClass')
    dataset = voc_masks.read(source, ImportOptions(default_class='thing'))
    assert names_of(dataset) == ['thing', 'thing'] and dataset.class_names == ('thing',)


def test_listed_image_without_masks_is_left_out(voc):
    source = voc()
    write(source / 'ImageSets' / 'Segmentation' / 'train.txt', 'p1\np9\n')
    assert voc_masks.read(source, DEFAULT).omissions.counts == {'images without masks': 1}


@pytest.mark.parametrize(
    ('path', 'content', 'reason'),
    [
        ('labelmap.txt', 'cup:1,2::\n', r"labelmap\.txt: line 1: the colour is '1,2', not R,G,B from 0 to 255"),
        ('labelmap.txt', '#\n\ncup:1,2,256::\n', 'line 3: the colour is'),
        ('labelmap.txt', f'cup:1,2,{"9" * 5000}::\n', 'line 1: the colour is'),
        ('labelmap.txt', 'cup:1,2,²::\n', 'line 1: the colour is'),
        ('labelmap.txt', ':1,2,3::\n', 'line 1 is'),
        ('labelmap.txt', 'a:1,2,3::\nb:1,2,3::\n', 'line 2: b has the same colour as a'),
        ('labelmap.txt', b'\xff\xfe\0', 'not a text file in UTF-8'),
        ('labelmap.txt', 'cup:1,2,3::\n', r'p1\.png: value 15 is not a class of labelmap\.txt; declare it'),
        ('class_names.txt', '\n'.join(map(str, range(300))), 'has 301 names'),
        (
            'class_names.txt',
            '_background_\ncup\n',
            r'SegmentationClass/p1\.png: value 15 is not a class of class_names',
        ),
        ('ImageSets/Segmentation/train.txt', '../p1\n', r"train\.txt: line 1 is '../p1', not the name of an image"),
        ('ImageSets/Segmentation/train.txt', '/etc/p1\n', 'line 1 is'),
        ('ImageSets/Segmentation/train.txt', b'\x89PNG\r\n\x1a\n', 'not a text file in UTF-8: it is an image'),
    ],
)
def test_broken_texts(voc, path, content, reason):
    source = voc()
    write(source / path, content)
    with pytest.raises(AnnotationFileError, match=reason) as caught:
        voc_masks.read(source, DEFAULT)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('folder', ['SegmentationObject', 'SegmentationClass'])
def test_size(voc, folder):
    source = voc()
    save(source / folder / 'p1.png', palette_image(OBJECTS[:, :9]))
    with pytest.raises(AnnotationFileError, match=rf'{folder}/p1\.png: has 20 x 9 pixels'):
        voc_masks.read(source, DEFAULT)


def test_suffix_in_upper_case(voc):
    source = voc()
    os.rename(source / 'JPEGImages' / 'p1.jpg', source / 'JPEGImages' / 'p1.JPG')
    assert voc_masks.read(source, DEFAULT).images[0].path.name == 'p1.JPG'


def test_missing_image(voc):
    source = voc()
    os.remove(source / 'JPEGImages' / 'p1.jpg')
    with pytest.raises(AnnotationFileError, match='JPEGImages: contains no image named p1'):
        voc_masks.read(source, DEFAULT)


def test_broken_mask(voc):
    source = voc()
    voc('p2')
    write(source / 'SegmentationClass' / 'p1.png', b'x')
    with pytest.raises(ImageFileError, match=r'SegmentationClass/p1\.png: not an image'):
        voc_masks.read(source, DEFAULT)
    dataset = voc_masks.read(source, ImportOptions(skip_broken=True))
    assert [image.path.stem for image in dataset.images] == ['p2'] and len(dataset.omissions) == 1


def test_other_sources_are_not_recognised(tmp_path):
    for source in (tmp_path, tmp_path / 'missing', write(tmp_path / 'train.txt', 'p1\n')):
        assert not voc_masks.recognises(source)
        with pytest.raises(AnnotationFileError):
            voc_masks.read(source, DEFAULT)
    write(tmp_path / 'SegmentationObject' / 'a.png', 'x')
    assert not voc_masks.recognises(tmp_path)


@pytest.mark.parametrize('name', ['SegmentationClass/p1.png', 'labelmap.txt', 'ImageSets/Segmentation/train.txt'])
def test_damaged_files(voc, name):
    source = voc()
    path = source / name
    data = path.read_bytes() if path.exists() else b'person:192,128,128::\ncat:64,0,0::\n'
    write(path, data)
    results = []
    for damaged in (*GARBAGE.values(), *truncations(data, 15), *bit_flips(data, 30, random.Random(0))):
        path.write_bytes(damaged)
        results.append(read_or_error(voc_masks, source, DEFAULT))
    errors = [str(error) for error in results if isinstance(error, Exception)]
    assert len(errors) >= 5 and not any('\n' in error for error in errors)
