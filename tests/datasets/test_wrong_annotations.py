"""Files of other kinds in the place of annotation files: each is named, with what to do instead."""

import json
import os

import pytest

from mask_rcnn.datasets.coco_json import AnnotationFileError, read_coco_json
from tests.support import wrong_files

#: Content -> words of the error.
BYTES = {
    **{name: (content, 'a weight file, which belongs to --modelfile') for name, content in wrong_files.WEIGHTS.items()},
    **{name: (content, 'it is an image, which belongs') for name, content in wrong_files.IMAGES.items()},
    **{name: (content, 'it is a video') for name, content in wrong_files.VIDEOS.items()},
    **{name: (content, 'an archive; unpack it') for name, content in wrong_files.ARCHIVES.items()},
    **{name: (content, 'it is a pointer of Git LFS') for name, content in wrong_files.POINTERS.items()},
    **{name: (content, 'it is the refusal of a server') for name, content in wrong_files.REFUSALS.items()},
    'web page': (wrong_files.WEB_PAGE, 'a web page (HTML); the download was refused'),
    'Pascal VOC': (b'<annotation>\n<folder>x</folder></annotation>', "LabelMe's, Pascal VOC's or"),
    'CVAT': (
        b'<?xml version="1.0"?>\n<annotations>\n<version>1.1</version>',
        'or CVAT\'s; convert it with "mask-rcnn data import" if LabelMe',
    ),
    'YOLO': (b'0 0.5 0.5 0.2 0.2\n1 0.1 0.2 0.3 0.4\n', "YOLO's labels; convert the folder"),
    'YOLO outlines': (b'12 0.5 0.5 0.2 0.2 .3 0.4', 'with "mask-rcnn data import"'),
    'YAML': (
        b'# data\ntrain: ../train/images\nnc: 3\nnames: [a, b]\n',
        "a YAML file; name COCO's JSON instead; if it declares a YOLO",
    ),
    'CSV': (
        b'image,x1,y1,x2,y2,class\na.jpg,1,2,3,4,cat\n',
        'a table (CSV); convert it with "mask-rcnn data import" if VIA',
    ),
    'JSON lines': (b'{"image_id": 1}\n{"image_id": 2}\n', 'JSON lines'),
    'empty': (b'', 'it is empty'),
    'spaces': (b' \n', 'it is empty'),
    'cut off': (b'{"images": [{"id": 1', 'not a JSON file (Expecting'),
}

RESULT = {'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1], 'score': 0.5}
ANNOTATION = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}
IMAGE = {'id': 1, 'file_name': 'a.jpg'}
JSON = {
    'results': ([RESULT], 'a list of detections (COCO results), not annotations; name the file'),
    'annotations': ([ANNOTATION], 'the list of annotations alone'),
    'VIA': (
        {'a.jpg1': {'filename': 'a.jpg', 'size': 1, 'regions': []}},
        '(VIA); convert it with "mask-rcnn data import"',
    ),
    'VIA project': ({'_via_settings': {}, '_via_img_metadata': {}}, '(VIA); convert it with "mask-rcnn data import"'),
    'labelme': ({'version': '4', 'shapes': [], 'imagePath': 'a.jpg'}, 'data import'),
    'Label Studio': ([{'id': 1, 'annotations': [], 'data': {}}], 'Label Studio'),
    'Create ML': ([{'image': 'a.jpg', 'annotations': []}], 'Create ML'),
    'Labelbox': ([{'ID': 'x', 'Labeled Data': 'url'}], 'Labelbox'),
    'panoptic': ({'images': [IMAGE], 'annotations': [{'image_id': 1, 'segments_info': []}]}, 'panoptic'),
    'captions': ({'images': [IMAGE], 'annotations': [{'id': 1, 'image_id': 1, 'caption': 'a'}]}, "COCO's captions"),
    'an empty list': ([], "there is no list 'images'"),
    'an object': ({'IMAGE_MAX_DIM': 512}, "there is no list 'images'"),
    'a number': (1, "there is no list 'images'"),
}


@pytest.mark.parametrize(
    ('content', 'words'), [*BYTES.values(), *((json.dumps(data).encode(), words) for data, words in JSON.values())]
)
def test_other_files_are_named_in_one_line(content, words, tmp_path):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(AnnotationFileError) as caught:
        read_coco_json(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: not ') and words in message and message.isprintable(), message


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
@pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
def test_a_list_that_is_there_twice_is_refused(key, encoding, tmp_path):
    """Python's parser drops the first one: files that were joined as text lost half of their objects."""
    content = {'images': [IMAGE], 'annotations': [ANNOTATION], 'categories': [{'id': 1, 'name': 'a'}]}
    path = tmp_path / 'a.json'
    path.write_text(f'{json.dumps(content)[:-1]}, "{key}": []}}', encoding=encoding)
    with pytest.raises(AnnotationFileError, match=f"a.json: the file has 2 lists '{key}'; join them into one"):
        read_coco_json(path)
    path.write_text(json.dumps({**content, 'info': {key: 'x', 'name': key}}), encoding=encoding)
    assert len(read_coco_json(path).annotations) == 1


def test_pipes_and_devices_are_refused(tmp_path):
    """A pipe waits for a writer, and a device has no end; the file is read twice."""
    os.mkfifo(tmp_path / 'pipe')
    for path, reason in ((tmp_path / 'pipe', 'is not a regular file'), ('/dev/zero', 'is not a regular file')):
        with pytest.raises(AnnotationFileError, match=f'{path}: {reason}'):
            read_coco_json(path)
    with pytest.raises(AnnotationFileError, match='is a folder, not a file'):
        read_coco_json(tmp_path)
