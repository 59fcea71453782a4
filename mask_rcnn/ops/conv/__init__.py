"""Convolution and the operations next to it."""
