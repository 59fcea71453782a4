"""The table of backbones: those of the package, and those that :func:`register_backbone` adds."""

from __future__ import annotations

from collections.abc import Callable

from mask_rcnn.config import FPN_STRIDES, RESNET_BLOCKS, Config, fields
from mask_rcnn.config.network import register_extractor
from mask_rcnn.models.backbones.mobilenet_v1 import MobileNetV1
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.layers import Backbone

_Make = Callable[[Config], Backbone]


def _resnet(config: Config) -> Backbone:
    conventions = config.dialect.backbone
    return ResNet(
        config.backbone,
        norm=config.norm,
        outputs=(2, 3, 4, 5) if config.has_fpn else (4,),
        pool_pad=conventions.stem_pool_pad,
        stride_in_3x3=conventions.stride_in_3x3,
    )


def _mobilenet_v1(config: Config) -> Backbone:
    return MobileNetV1(width=config.width, norm=config.norm)


#: The function that makes each backbone of this package.
_BUILT_IN: dict[str, _Make] = {**dict.fromkeys(RESNET_BLOCKS, _resnet), 'mobilenet_v1': _mobilenet_v1}

_registered: dict[str, _Make] = {}


def register_backbone(name: str, make: _Make) -> None:
    """Add a backbone for networks with a feature pyramid.

    Its extractor is called ``NAME_fpn``: a value of ``Config.extractor`` and of ``--extractor``, and a preset of
    :func:`mask_rcnn.build` with the settings of Detectron's R-50-FPN.  Weight files store this name; programs that load
    them must register the backbone first.

    Args:
        name: The name, such as ``'plain'``.  The backbone replaces a registered one of the same name.
        make: Returns the backbone of a configuration with random weights.  Its outputs have the strides 4, 8, 16, 32.

    Raises:
        ValueError: The name or ``NAME_fpn`` is that of a backbone or a preset of this package; or the name ends with
            ``_fpn``, or is not a letter that lower-case letters, digits, underscores and hyphens follow.
    """
    fields.check_new_name(name)
    if name in _BUILT_IN:
        raise ValueError(f'the backbone {name!r} is part of this package; choose another name')
    if name.endswith('_fpn'):
        raise ValueError(f'the name of the backbone must not end with _fpn, as {name!r} does: it is added to the name')
    register_extractor(f'{name}_fpn')
    _registered[name] = make


def make_backbone(config: Config) -> Backbone:
    """Return a network's backbone with random weights.

    Raises:
        ValueError: A registered backbone does not have the strides of a feature pyramid.
        TypeError: The function of a registered backbone does not return one.
    """
    backbone = {**_registered, **_BUILT_IN}[config.backbone](config)
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f'the function of the backbone {config.backbone} must return a Backbone, not {type(backbone).__name__}'
        )
    if config.has_fpn and tuple(backbone.strides) != FPN_STRIDES[:-1]:
        raise ValueError(
            f'the outputs of the backbone {config.backbone} have the strides {tuple(backbone.strides)}; '
            f'a feature pyramid needs {FPN_STRIDES[:-1]}'
        )
    return backbone
