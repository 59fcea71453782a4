"""Images and data sets."""

from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.example import Annotations, Example, TrainingExample
from mask_rcnn.datasets.image_io import (
    ImageFileError, list_images, read_image, read_image_size, to_image_array)
from mask_rcnn.datasets.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.shapes import ShapesDataset
from mask_rcnn.datasets.transforms import TrainingTransform

__all__ = [
    'AnnotationFileError', 'Annotations', 'COCODataset', 'Example', 'ImageFileError', 'RichShapesDataset',
    'ShapesDataset', 'TrainingExample', 'TrainingTransform', 'list_images', 'read_image', 'read_image_size',
    'to_image_array']
