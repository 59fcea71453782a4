"""Export of networks as ONNX graphs that contain every step from the image to the masks."""
