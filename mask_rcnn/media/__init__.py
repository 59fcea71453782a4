"""Sources of images and videos, and the files that detections are written to."""
