import json

import cv2
import numpy as np
import pytest

from mask_rcnn.datasets.coco import COCODataset
from tests.support.annotation_files import HEIGHT, WIDTH


@pytest.fixture
def make(tmp_path):
    """A function that writes a dataset of the images 7 and 9 with the given annotations, and opens it."""

    def make_dataset(annotations, edit=None, images=('a.png', 'b.png'), **options):
        content = {
            'images': [
                {'id': i, 'file_name': name, 'height': HEIGHT, 'width': WIDTH}
                for i, name in zip((7, 9), ('a.png', 'b.png'), strict=True)
            ],
            'annotations': annotations,
            'categories': [{'id': 5, 'name': 'dog'}, {'id': 3, 'name': 'cat'}],
        }
        if edit:
            edit(content)
        for name in images:
            cv2.imwrite(str(tmp_path / name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        (tmp_path / 'annotations.json').write_text(json.dumps(content))
        return COCODataset(tmp_path / 'annotations.json', tmp_path, **options)

    return make_dataset
