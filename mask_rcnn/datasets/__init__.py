"""Images and data sets."""

from mask_rcnn.datasets.image_io import ImageFileError, list_images, read_image, to_image_array

__all__ = ['ImageFileError', 'list_images', 'read_image', 'to_image_array']
