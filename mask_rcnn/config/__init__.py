"""Configuration of networks: frozen dataclasses, named dialects and named presets.

A :class:`Dialect` holds the conventions of one original program: Detectron, DeNA's Chainer_Mask_R-CNN, Matterport's
Mask R-CNN, MindSpore, or TensorFlow's MobileNets.  A :class:`Config` holds the architecture, the sizes and the dialect
of one network.  Weight files store the fields of the configuration, with the dialect by its name
(:mod:`mask_rcnn.weights.native`).
"""

from mask_rcnn.config.dialects import (
    DENA,
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
    TrainingConventions,
)
from mask_rcnn.config.network import (
    C4_DIALECTS,
    EXTRACTORS,
    FPN_STRIDES,
    PRESETS,
    RESNET_BLOCKS,
    VISUALIZE_SCORE_THRESHOLD,
    Config,
)

__all__ = [
    'C4_DIALECTS',
    'DENA',
    'DETECTRON',
    'DIALECTS',
    'EXTRACTORS',
    'FPN_STRIDES',
    'MATTERPORT',
    'MINDSPORE',
    'MOBILENET',
    'PRESETS',
    'RESNET_BLOCKS',
    'VISUALIZE_SCORE_THRESHOLD',
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
    'TrainingConventions',
]
