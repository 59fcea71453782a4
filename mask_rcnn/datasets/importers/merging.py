"""Several imported datasets as one."""

from __future__ import annotations

from collections.abc import Sequence

from mask_rcnn.datasets.importers.assembly import join_images
from mask_rcnn.datasets.importers.records import ImportedDataset
from mask_rcnn.io.omissions import Omissions


def merge_datasets(datasets: Sequence[ImportedDataset]) -> ImportedDataset:
    """Return one dataset with the images and the classes of several; an image in several of them is one image.

    Args:
        datasets: At least one dataset.
    """
    if len(datasets) == 1:
        return datasets[0]
    omissions, doubts = Omissions('items'), Omissions('doubtful items', action='kept')
    for dataset in datasets:
        omissions.extend(dataset.omissions)
        doubts.extend(dataset.doubts)
    names = dict.fromkeys(dataset.format_name for dataset in datasets)
    images = join_images((image for dataset in datasets for image in dataset.images), omissions)
    classes = dict.fromkeys(name for dataset in datasets for name in dataset.class_names)
    return ImportedDataset(', '.join(names), tuple(images), tuple(classes), omissions, doubts)
