"""Configuration of networks: frozen dataclasses, named dialects and named presets.

A :class:`Dialect` holds the conventions of one original program: Detectron, DeNA's Chainer_Mask_R-CNN, Matterport's
Mask R-CNN, MindSpore, TensorFlow's MobileNets, torchvision or detectron2.  A :class:`Config` holds the architecture,
the sizes and the dialect of one network.  Weight files store the fields of the configuration, with the dialect by its
name and the conventions that differ from it (:mod:`mask_rcnn.weights.native`).
"""

from mask_rcnn.config.conventions import (
    BackboneConventions,
    BoxConventions,
    DetectionConventions,
    InputConventions,
    KeypointConventions,
    LossConventions,
    MaskConventions,
    RoIConventions,
    RPNConventions,
    TrainingConventions,
)
from mask_rcnn.config.dialects import (
    DENA,
    DETECTRON,
    DETECTRON2,
    DIALECTS,
    MATTERPORT,
    MINDSPORE,
    MOBILENET,
    TORCHVISION,
    Dialect,
    register_dialect,
)
from mask_rcnn.config.network import (
    C4_DIALECTS,
    EXTRACTORS,
    FPN_STRIDES,
    PRESETS,
    RESNET_BLOCKS,
    RESNET_GROUPS,
    VISUALIZE_SCORE_THRESHOLD,
    Config,
)

__all__ = [
    'C4_DIALECTS',
    'DENA',
    'DETECTRON',
    'DETECTRON2',
    'DIALECTS',
    'EXTRACTORS',
    'FPN_STRIDES',
    'MATTERPORT',
    'MINDSPORE',
    'MOBILENET',
    'PRESETS',
    'RESNET_BLOCKS',
    'RESNET_GROUPS',
    'TORCHVISION',
    'VISUALIZE_SCORE_THRESHOLD',
    'BackboneConventions',
    'BoxConventions',
    'Config',
    'DetectionConventions',
    'Dialect',
    'InputConventions',
    'KeypointConventions',
    'LossConventions',
    'MaskConventions',
    'RPNConventions',
    'RoIConventions',
    'TrainingConventions',
    'register_dialect',
]
