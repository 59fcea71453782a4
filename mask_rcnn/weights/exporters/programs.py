"""The programs whose files can be written: their networks, and what they store of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mask_rcnn.config import DETECTRON, DETECTRON2, PRESETS, RESNET_BLOCKS, TORCHVISION, Config, Dialect
from mask_rcnn.weights.exporters import program_settings

#: The fields of a configuration that determine the layers of a network and the names of its arrays.
ARCHITECTURE = (
    'norm',
    'head_norm',
    'fpn_channels',
    'rpn_channels',
    'rpn_convs',
    'head_channels',
    'box_convs',
    'box_fcs',
    'mask_channels',
    'mask_convs',
)


@dataclass(frozen=True)
class SettingNames:
    """The settings that a program's files do not contain, by its own names.

    Args:
        base: The file or the model that has the defaults, for messages; may contain ``{neck}``, FPN or C4.
        values: Returns the settings of a network, given its configuration and the conventions of its file.
        defaults: Returns their defaults, given the program's own network with the same heads.
        format: Returns settings in the form in which the program's user writes them.
        fixed: Fields that the program has no setting for.
    """

    base: str
    values: Callable[[Config, Dialect], dict[str, Any]]
    defaults: Callable[[Config], dict[str, Any]]
    format: Callable[[dict[str, Any]], list[str]]
    fixed: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A program that can run a network.

    Args:
        title: Its name for messages.
        dialect: Its conventions.
        norms: Values of ``Config.norm`` that its networks have; the first one replaces frozen normalisations.
        backbones: Backbones of its FPN networks.
        c4_backbones: Backbones of its C4 networks.
        networks: Values of the fields in :data:`ARCHITECTURE` of its FPN networks that differ from Detectron's
            R-50-FPN, one mapping for each network.
        settable_layers: Fields in :data:`ARCHITECTURE` that the program's user can set.
        settable: Conventions, such as ``'backbone.stride_in_3x3'``, that the program's configuration sets.
        setting_names: Its names of the settings; ``None`` if its files contain them.
        defaults: Values of settings in the program, by field, that differ from those of the presets.
        takes_both_heads: Whether a network can have masks and keypoints.
        doubles_anchors: Whether the anchor sizes of an FPN double from level to level.
    """

    title: str
    dialect: Dialect
    norms: tuple[str, ...]
    backbones: tuple[str, ...]
    c4_backbones: tuple[str, ...] = ()
    networks: tuple[Mapping[str, Any], ...] = ({},)
    settable_layers: tuple[str, ...] = ()
    settable: frozenset[str] = frozenset()
    setting_names: SettingNames | None = None
    defaults: Callable[[Config], Mapping[str, Any]] = field(default=lambda config: {})
    takes_both_heads: bool = False
    doubles_anchors: bool = False

    def reference(self, config: Config, network: Mapping[str, Any]) -> Config:
        """Return the configuration of the program's own network with the backbone and the heads of another one."""
        preset = PRESETS['resnet50_fpn' if config.has_fpn else 'resnet50']
        heads = {name: getattr(config, name) for name in ('extractor', 'n_fg_class', 'masks', 'n_keypoint')}
        return preset.replace(**heads, dialect=self.dialect, **network, **self.defaults(config))


#: The fields for which both PyTorch programs have parameters.
_WIDTHS = ('fpn_channels', 'rpn_channels', 'head_channels', 'mask_channels', 'mask_convs')

_RESNETS = ('resnet50', 'resnet101', 'resnet152')

#: torchvision's ``maskrcnn_resnet50_fpn_v2`` and ``fasterrcnn_resnet50_fpn_v2``.
_TORCHVISION_V2 = {'head_norm': 'bn', 'rpn_convs': 2, 'box_convs': 4, 'box_fcs': 1}

_GN = {'norm': 'gn', 'head_norm': 'gn', 'box_convs': 4, 'box_fcs': 1}

TORCHVISION_PROGRAM = Program(
    title='torchvision',
    dialect=TORCHVISION,
    norms=('bn',),
    backbones=(*_RESNETS, 'resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d'),
    networks=({}, _TORCHVISION_V2),
    settable_layers=_WIDTHS,
    setting_names=SettingNames(
        'to the defaults of the model',
        program_settings.torchvision_settings,
        program_settings.torchvision_defaults,
        program_settings.format_torchvision,
        fixed=('roi_align',),
    ),
    defaults=lambda config: {'rpn_min_size': 1e-3},
)

DETECTRON2_PROGRAM = Program(
    title='detectron2',
    dialect=DETECTRON2,
    norms=('bn', 'gn'),
    backbones=tuple(RESNET_BLOCKS),
    c4_backbones=_RESNETS,
    networks=({}, _GN),
    settable_layers=_WIDTHS,
    settable=frozenset({'input.channel_order', 'input.pixel_mean', 'input.pixel_std', 'backbone.stride_in_3x3'}),
    setting_names=SettingNames(
        'to Base-RCNN-{neck}.yaml',
        program_settings.detectron2_settings,
        program_settings.detectron2_defaults,
        program_settings.format_detectron2,
        fixed=('roi_canonical_size',),
    ),
    defaults=lambda config: {'sampling_ratio': 0},
)

DETECTRON_PROGRAM = Program(
    title='Detectron',
    dialect=DETECTRON,
    norms=('affine', 'gn'),
    backbones=tuple(RESNET_BLOCKS),
    c4_backbones=_RESNETS,
    networks=({}, _GN),
    settable=frozenset({'backbone.stride_in_3x3'}),
    takes_both_heads=True,
    doubles_anchors=True,
)
