"""Importers: annotations of other tools, read into the records of :mod:`mask_rcnn.datasets.importers.records`."""
