"""Preprocessing: reading of image files and conversion of images into network inputs."""

from mask_rcnn.preprocessing.image_io import ImageFileError, list_images, read_image, read_image_size, to_image_array

__all__ = ['ImageFileError', 'list_images', 'read_image', 'read_image_size', 'to_image_array']
