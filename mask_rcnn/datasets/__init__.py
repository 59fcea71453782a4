"""Datasets: COCO, synthetic shapes, and the transform of examples for training."""

from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.example import Annotations, Example, TrainingExample
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.datasets.user_dataset import ObjectData, UserDataset

__all__ = [
    'AnnotationFileError',
    'Annotations',
    'COCODataset',
    'Example',
    'ObjectData',
    'RichShapesDataset',
    'ShapesDataset',
    'TrainingExample',
    'TrainingTransform',
    'UserDataset',
]
