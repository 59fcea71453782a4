"""The datasets of the command line: warnings about the data, ``--strict`` and category ids that are texts."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask_rcnn.cli.dataset_options import DatasetArguments, model_category_ids, print_dataset_warnings
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset


@pytest.fixture
def arguments(tmp_path):
    """A function that returns the arguments for a dataset of one image, of whose objects the second has no outline."""
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 30, 3), np.uint8))

    def write(category=1, second=None, **options):
        whole = {'id': 1, 'image_id': 1, 'category_id': category, 'bbox': [2, 3, 8, 9]}
        whole['segmentation'] = [[2, 3, 10, 3, 10, 12, 2, 12]]
        content = {
            'images': [{'id': 1, 'file_name': 'a.png'}],
            'annotations': [whole, {**whole, 'id': 2, **(second or {'segmentation': []})}],
            'categories': [{'id': category, 'name': 'cat'}],
        }
        path = tmp_path / 'data.json'
        path.write_text(json.dumps(content))
        files = {'train': (path, tmp_path), 'val': (path, tmp_path)}
        return DatasetArguments('coco2017', Path('COCO'), files, **options)

    return write


@pytest.mark.parametrize(
    ('part', 'reason'),
    [('train', '1 without an outline'), ('val', '1 without an outline, whose masks are not evaluated')],
)
def test_what_is_left_out_is_printed_or_refused(arguments, capsys, part, reason):
    print_dataset_warnings(arguments().open(part, size=32), 'name')
    assert capsys.readouterr() == ('', f'warning: name: left out 1 item: {reason} (annotation 2)\n')
    with pytest.raises(
        AnnotationFileError, match=rf'data\.json: left out 1 item: {reason} \(annotation 2\) .--strict.'
    ):
        arguments(strict=True).open(part, size=32)


def test_doubtful_objects_are_printed_or_refused(arguments, capsys):
    outside = {'bbox': [40, 3, 8, 9], 'segmentation': [[40, 3, 48, 3, 48, 12]]}
    reason = 'kept 1 doubtful object: 1 with a box outside its image (annotation 2)'
    print_dataset_warnings(arguments(second=outside).open('val', size=32), 'name')
    assert capsys.readouterr() == ('', f'warning: name: {reason}\n')
    with pytest.raises(AnnotationFileError) as caught:
        arguments(second=outside, strict=True).open('val', size=32)
    assert caught.value.reason == f'{reason} (--strict)'


def test_objects_without_outlines_are_complete_for_a_network_without_a_mask_head(arguments, capsys):
    for part in ('train', 'val'):
        dataset = arguments(strict=True).open(part, size=32, masks=False)
        assert len(dataset[0].annotations) == 2
        print_dataset_warnings(dataset, 'name')
    print_dataset_warnings(ShapesDataset(1, size=32), 'name')
    assert capsys.readouterr() == ('', '')


def test_a_model_has_integers_as_category_ids(arguments):
    assert model_category_ids(arguments(category='7').open('train', size=32)) == (7,)
    assert model_category_ids(arguments(category='feline').open('train', size=32)) == (1,)
