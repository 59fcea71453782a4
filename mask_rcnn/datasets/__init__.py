"""Images and data sets."""

from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.example import Annotations, Example, TrainingExample
from mask_rcnn.preprocessing.image_io import ImageFileError, list_images, read_image, read_image_size, to_image_array
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.preprocessing.prepare import TrainingTransform

__all__ = [
    'AnnotationFileError', 'Annotations', 'COCODataset', 'Example', 'ImageFileError', 'RichShapesDataset',
    'ShapesDataset', 'TrainingExample', 'TrainingTransform', 'list_images', 'read_image', 'read_image_size',
    'to_image_array']
