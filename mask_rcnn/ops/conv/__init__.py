"""Convolution, its epilogues, pooling and upsampling."""
