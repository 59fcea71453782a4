"""Inspection of networks, of their training data and of weight files: every intermediate result as plain arrays.

The functions return data.  :mod:`mask_rcnn.visualization.figures` and its neighbours draw it.
"""
