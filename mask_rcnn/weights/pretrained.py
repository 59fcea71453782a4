"""Pretrained weights: load the arrays of a file that fit a model.

The file may have any supported format (:mod:`mask_rcnn.weights.formats`) and contain an ImageNet backbone or a whole
model, of this or of another program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.config import EXTRACTORS, PRESETS, Config
from mask_rcnn.io.console import escape
from mask_rcnn.io.wording import counted
from mask_rcnn.weights import formats
from mask_rcnn.weights.converters.mapping import ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.errors import WeightFileError, summarize_names, to_printable_ascii
from mask_rcnn.weights.native import load_arrays
from mask_rcnn.weights.norm_arrays import CONVERTIBLE, convert_norm_arrays

#: Parameters whose shape depends on the number of classes or anchors; all others must fit.
_OUTPUT_LAYERS = re.compile(r'(rpn/(objectness|delta)|box_head/(score|delta)|mask_head/score)/[Wb]')

#: Heads that a network may lack.
_OPTIONAL_HEADS = ('mask_head', 'keypoint_head')

#: Paths of the backbone's parameters in a C4 network and in one with a feature pyramid.
_C4_BACKBONE = re.compile(r'(?:extractor|box_head(?=/res5/))/(.*)')
_FPN_BACKBONE = re.compile(r'extractor/body/(.*)')

_Path = str | os.PathLike
_Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PretrainedReport:
    """The result of loading pretrained weights into a model.

    Args:
        path: The file.
        title: The file's content, such as ``"R-50 backbone (a Caffe ResNet's .npz)"``.
        n_taken: Number of arrays that were loaded into the model.
        reinitialized: Layers that keep their random weights because the file has another number of classes or anchors.
        missing: Layers that keep their random weights because the file does not have them, such as ``'rpn/conv'``.
        notes: Lines for the user.
    """

    path: str
    title: str
    n_taken: int
    reinitialized: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the report as lines for the user."""
        lines = [f'{escape(self.path)}: {self.title}, {counted(self.n_taken, "array")} loaded']
        if self.reinitialized:
            lines.append(f'randomly initialised (another shape in the file): {", ".join(self.reinitialized)}')
        if self.missing:
            lines.append(f'randomly initialised (not in the file): {", ".join(self.missing)}')
        return '\n'.join(lines + list(self.notes))


def load_pretrained(model: chainer.Chain, path: _Path, file: ConvertedWeights | None = None) -> PretrainedReport:
    """Load the weights of a file that fit into a model.

    Layers whose shape depends on the number of classes or anchors keep their weights if the file has another number.
    If the file has all classes of the model, perhaps in another order and among others, they are matched by name.
    Heads that the model does not have are skipped; everything else must fit.  Batch normalisation in the file becomes
    an affine channel in a model with ``norm='affine'``, and vice versa, with the same output.  Nothing in the file is
    executed, and the model is unchanged if there is an error.

    Args:
        model (mask_rcnn.MaskRCNN): The model, on any device.
        path: A weight file of any format.
        file: The content of the file if it has been read already.

    Returns:
        PretrainedReport: The layers that were loaded and those that were not; ``str()`` for the user.

    Raises:
        WeightFileError: The file cannot be read, is not a weight file of a known format, or has another network.
    """
    file = file or formats.read(path)
    params = {name.lstrip('/'): param for name, param in model.namedparams()}
    arrays = _arrays_for(model.config, path, file)
    absent_heads = [head for head in _OPTIONAL_HEADS if not _has_head(params, head)]
    arrays = {name: array for name, array in arrays.items() if name.partition('/')[0] not in absent_heads}
    missing = _layer_names(name for name in params if name not in arrays)
    _check_backbone(path, missing, model.config)
    _check_finite(path, arrays)
    _match_channel_order(path, arrays, file.config, model.config)
    class_note = _match_classes(arrays, file.class_names, model.class_names)
    reinitialized = _layer_names(
        name
        for name, param in params.items()
        if _OUTPUT_LAYERS.fullmatch(name) and name in arrays and param.shape != arrays[name].shape
    )
    loaded = {name: array for name, array in arrays.items() if _layer_name(name) not in reinitialized}
    load_arrays(model, loaded, source=path, partial=True)
    notes = [
        *(file.report.cautions if file.kind == 'model' else ()),
        *(f"the model has no {head}: the file's is skipped" for head in absent_heads if _has_head(file.arrays, head)),
        *class_note,
    ]
    return PretrainedReport(os.fspath(path), _file_title(file), len(loaded), reinitialized, missing, tuple(notes))


def _arrays_for(config: Config, path: _Path, file: ConvertedWeights) -> dict[str, np.ndarray]:
    """Return a file's arrays under the paths and with the normalisation of a network."""
    if file.config.backbone != config.backbone:
        fitting = [name for name in EXTRACTORS if PRESETS[name].backbone == file.config.backbone]
        raise WeightFileError(
            path,
            f'contains a {file.config.backbone}, but the model has a {config.extractor}; choose the network with '
            f'--extractor {" or ".join(fitting)}',
        )
    _check_norm(path, 'norm', file.config, config)
    arrays = file.arrays
    if file.config.extractor != config.extractor:
        arrays = _move_backbone(arrays, to_fpn=config.has_fpn)
    elif file.kind == 'model' and config.has_fpn:
        _check_norm(path, 'head_norm', file.config, config)
    epsilons = file.config.dialect.backbone.bn_eps, config.dialect.backbone.bn_eps
    return convert_norm_arrays(path, arrays, config.norm, *epsilons, head_norm=config.head_norm)


def _check_norm(path: _Path, field: str, source: Config, target: Config) -> None:
    """Refuse a file whose normalisation has no equivalent in the model."""
    found, expected = getattr(source, field), getattr(target, field)
    if found != expected and not {found, expected} <= set(CONVERTIBLE):
        raise WeightFileError(
            path,
            f'has {field}={found!r}, but the model has {field}={expected!r}; weights with another normalisation do not '
            'fit (--pretrained none needs no weights)',
        )


def _has_head(names: Iterable[str], head: str) -> bool:
    return any(name.startswith(f'{head}/') for name in names)


def _match_channel_order(path: _Path, arrays: dict[str, np.ndarray], source: Config, target: Config) -> None:
    """Reverse the input channels of the first convolution if one network expects RGB and the other BGR."""
    found, expected = source.dialect.input.channel_order, target.dialect.input.channel_order
    if found == expected:
        return
    layer = 'conv0' if target.backbone == 'mobilenet_v1' else 'conv1'
    name = f'extractor/{"body/" if target.has_fpn else ""}{layer}/conv/W'
    if name not in arrays:  # a registered backbone
        raise WeightFileError(
            path,
            f'has weights for {found} images, but the model expects {expected}; the first convolution of '
            f'{target.backbone} is unknown, so choose a dialect with channel_order={found!r} for the model',
        )
    if arrays[name].ndim == 4:  # load_arrays reports any other shape
        arrays[name] = arrays[name][:, ::-1]


def _file_title(file: ConvertedWeights) -> str:
    network = network_name(file.config) if file.kind == 'model' else f'{backbone_name(file.config)} backbone'
    return f'{network} ({formats.BY_NAME[file.format].title})'


def _move_backbone(arrays: _Arrays, *, to_fpn: bool) -> dict[str, np.ndarray]:
    """Return the backbone's arrays under the paths of a network with, or without, a feature pyramid."""
    pattern = _C4_BACKBONE if to_fpn else _FPN_BACKBONE
    moved = {}
    for name, array in arrays.items():
        if match := pattern.fullmatch(name):
            prefix = 'extractor/body' if to_fpn else 'box_head' if match[1].startswith('res5/') else 'extractor'
            moved[f'{prefix}/{match[1]}'] = array
    return moved


def _check_backbone(path: _Path, missing: tuple[str, ...], config: Config) -> None:
    """Raise an error if layers of the backbone are missing."""
    pattern = _FPN_BACKBONE if config.has_fpn else _C4_BACKBONE
    gaps = [layer for layer in missing if pattern.match(layer)]
    if gaps:
        raise WeightFileError(path, f'lacks {summarize_names(gaps)}')


def _check_finite(path: _Path, arrays: _Arrays) -> None:
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise WeightFileError(
            path, f'has infinite or undefined values in {summarize_names(broken)}: did the training diverge?'
        )


def _layer_name(name: str) -> str:
    return name.rpartition('/')[0]


def _layer_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the layers of parameters, each once, in order."""
    return tuple(dict.fromkeys(map(_layer_name, names)))


def _match_classes(
    arrays: dict[str, np.ndarray], in_file: tuple[str, ...], in_model: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Put the classes of the output layers into the model's order if the file has all of its names; return a note."""
    if not in_file or in_model is None or in_file == tuple(in_model):
        return ()
    if set(in_model) <= set(in_file) and len(set(in_file)) == len(in_file):
        _select_classes(arrays, [in_file.index(name) for name in in_model], len(in_file))
        found = 'the same classes in another order' if len(in_file) == len(in_model) else 'all classes of the model'
        return (f'the file has {found}: their weights were matched by name',)
    if len(in_file) != len(in_model):
        return ()
    old, new = next((a, b) for a, b in zip(in_file, in_model, strict=True) if a != b)
    return (
        f'the file has the same number of classes, but other names ({to_printable_ascii(old)!r} where the model has '
        f'{to_printable_ascii(new)!r}): their weights were loaded',
    )


def _select_classes(arrays: dict[str, np.ndarray], labels: list[int], n_classes: int) -> None:
    """Keep the rows of some classes in the output layers of ``n_classes``, in the order of ``labels``."""
    with_background = [0, *(label + 1 for label in labels)]
    for layer, rows, n_rows, n_per_class in (
        ('box_head/score', with_background, n_classes + 1, 1),
        ('box_head/delta', with_background, n_classes + 1, 4),
        ('mask_head/score', labels, n_classes, 1),
    ):
        for name in (f'{layer}/W', f'{layer}/b'):
            if name in arrays and len(arrays[name]) == n_per_class * n_rows:  # load_arrays reports other shapes
                shape = arrays[name].shape[1:]
                arrays[name] = arrays[name].reshape(n_rows, n_per_class, *shape)[rows].reshape(-1, *shape)
