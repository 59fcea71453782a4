"""Configuration: frozen dataclasses of plain data, and the named dialects and presets.

A :class:`Dialect` holds the conventions of one original program.  A :class:`Config` holds the architecture and the
sizes of one network together with its dialect.  A weight file stores both (:mod:`mask_rcnn.weights.native`): the fields
of the configuration, and the dialect by its name.
"""

from mask_rcnn.config.dialects import (
    DETECTRON,
    DIALECTS,
    MATTERPORT,
    MINDSPORE,
    MOBILENET,
    BackboneConventions,
    BoxConventions,
    DetectionConventions,
    Dialect,
    InputConventions,
    LossConventions,
    MaskConventions,
    RoIConventions,
    RPNConventions,
)
from mask_rcnn.config.network import EXTRACTORS, FPN_STRIDES, PRESETS, RESNET_BLOCKS, Config

__all__ = [
    'DETECTRON',
    'DIALECTS',
    'EXTRACTORS',
    'FPN_STRIDES',
    'MATTERPORT',
    'MINDSPORE',
    'MOBILENET',
    'PRESETS',
    'RESNET_BLOCKS',
    'BackboneConventions',
    'BoxConventions',
    'Config',
    'DetectionConventions',
    'Dialect',
    'InputConventions',
    'LossConventions',
    'MaskConventions',
    'RPNConventions',
    'RoIConventions',
]
