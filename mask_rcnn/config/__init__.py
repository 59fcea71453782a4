"""Configuration: frozen dataclasses of plain data, and the named dialects and presets.

A :class:`Dialect` holds the conventions of one original program.  A :class:`Config` holds the architecture and the
sizes of one network together with its dialect.  A weight file stores both (:mod:`mask_rcnn.weights.native`): the fields
of the configuration, and the dialect by its name.
"""

from mask_rcnn.config.dialects import (
    BackboneConventions,
    BoxConventions,
    DETECTRON,
    DIALECTS,
    DetectionConventions,
    Dialect,
    InputConventions,
    LossConventions,
    MATTERPORT,
    MINDSPORE,
    MOBILENET,
    MaskConventions,
    RPNConventions,
    RoIConventions,
)
from mask_rcnn.config.network import Config, EXTRACTORS, FPN_STRIDES, PRESETS, RESNET_BLOCKS

__all__ = ['BackboneConventions', 'BoxConventions', 'Config', 'DETECTRON', 'DIALECTS', 'DetectionConventions', 'Dialect',
           'EXTRACTORS', 'FPN_STRIDES', 'InputConventions', 'LossConventions', 'MATTERPORT', 'MINDSPORE', 'MOBILENET',
           'MaskConventions', 'PRESETS', 'RESNET_BLOCKS', 'RPNConventions', 'RoIConventions']
