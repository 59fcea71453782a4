"""Small annotated images for the tests of importers."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.preprocessing.image_errors import ImageFileError

HEIGHT, WIDTH = 20, 30

#: Contents that no reader of annotations can use.
GARBAGE = {
    'empty': b'',
    'zeros': bytes(100),
    'binary': bytes(range(256)) * 4,
    'text': b'not numbers at all\n',
    'PNG header': b'\x89PNG\r\n\x1a\n' + bytes(40),
    'UTF-16': 'names: [a]\n0 0.1 0.2'.encode('utf-16'),
    'deep': b'[' * 5000,
    'anchors': b'a: &a [*a]\nnames: *a\ntrain: *a\n',
}


def save(path, pixels, **options):
    """Write an array or an image of Pillow to a file and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def save_photo(path, size=(HEIGHT, WIDTH)):
    return save(path, np.full((*size, 3), 90, np.uint8))


def labels(dtype=np.uint8, **regions):
    """A label image of zeros; ``v7=np.s_[2:5, 3:9]`` gives a region the value 7."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype)
    for name, region in regions.items():
        pixels[region] = int(name[1:])
    return pixels


def write(path, content):
    """Write text or bytes to a file and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def decode(item, size=(HEIGHT, WIDTH)):
    """Return the mask of an imported object."""
    rle = item.segmentation
    if not isinstance(rle, dict):
        rle = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in rle], *size))
    return coco_mask.decode(rle).astype(bool)


def read_or_error(importer, source, options):
    """Return the dataset, or the error of a bad file; any other error fails the test."""
    try:
        return importer.read(source, options)
    except (AnnotationFileError, ImageFileError) as error:
        return error
