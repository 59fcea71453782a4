"""From image files to network inputs."""

from mask_rcnn.preprocessing.image_io import ImageFileError, list_images, read_image, read_image_size, to_image_array

__all__ = ['ImageFileError', 'list_images', 'read_image', 'read_image_size', 'to_image_array']
