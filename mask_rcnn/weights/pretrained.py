"""Weights to start training from: finding them, and putting what fits into a model.

Weight files of every kind are read (:mod:`mask_rcnn.weights.formats`): ImageNet backbones and models of this and
other programs.
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.weights import formats
from mask_rcnn.weights.converters.mapping import ConvertedWeights, backbone_name, network_name
from mask_rcnn.weights.errors import WeightFileError, summarize_names, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file
from mask_rcnn.weights.native import load_arrays

#: The name for "the usual file in Chainer's folder".
IMAGENET = 'imagenet'

#: File names that are looked for, best first; ``{depth}`` is 50 or 101.
_IMAGENET_FILES = (
    'ResNet-{depth}-model.caffemodel',
    'R-{depth}.pkl',
    'R-{depth}_d2c.npz',
    'resnet{depth}_imagenet.npz',
    'ResNet-{depth}-model.npz',
)

_MOBILENET_FILES = ('mobilenet_v1_imagenet.npz',)

_MOBILENET_SOURCE = 'https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.md'
_CAFFE_SOURCE = 'https://github.com/KaimingHe/deep-residual-networks'
_DETECTRON_SOURCE = 'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-{depth}.pkl'

#: Parameters that the number of classes or anchors shapes; all others must fit.
_HEADS = re.compile(r'(rpn/(objectness|delta)|box_head/(score|delta)|mask_head/score)/[Wb]')

#: Heads that not every network has.
_OPTIONAL_HEADS = ('mask_head', 'keypoint_head')

#: Where the backbone's parameters are in a C4 network and in one with a feature pyramid.
_C4_BACKBONE = re.compile(r'(?:extractor|box_head(?=/res5/))/(.*)')
_FPN_BACKBONE = re.compile(r'extractor/body/(.*)')


@dataclass(frozen=True)
class PretrainedReport:
    """What a model took from a file.

    Args:
        path: The file.
        what: What it holds, such as ``"R-50 backbone (a Caffe ResNet's .npz)"``.
        n_taken: Number of arrays that went into the model.
        reinitialized: Layers that keep their new, random weights although the file is a whole model: the number
            of classes or anchors is another.
        missing: Layers that keep them because the file does not have them, such as ``'rpn/conv'``.
        notes: Lines that the user should see.
    """

    path: str
    what: str
    n_taken: int
    reinitialized: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for each thing to know."""
        lines = [f'{self.path}: {self.what}, {self.n_taken} arrays taken']
        if self.reinitialized:
            lines.append(f'start anew (they have another shape in the file): {", ".join(self.reinitialized)}')
        if self.missing:
            lines.append(f'start anew (not in the file): {", ".join(self.missing)}')
        return '\n'.join(lines + list(self.notes))


def find_pretrained(name_or_path: str | os.PathLike, extractor: str = 'resnet50') -> pathlib.Path:
    """Return the file that ``--pretrained`` means.

    Args:
        name_or_path: ``'imagenet'``: the ImageNet weights of the extractor in
            ``~/.chainer/dataset/pfnet/chainer/models/``, where Chainer keeps its own
            (``$CHAINER_DATASET_ROOT`` instead of ``~/.chainer/dataset`` if it is set).  Anything else is
            a path.
        extractor: One of :data:`mask_rcnn.config.EXTRACTORS`.

    Raises:
        WeightFileError: There is no such file; for ``'imagenet'`` the message says where to get it and
            where to put it.
    """
    if os.fspath(name_or_path) != IMAGENET:
        with open_weight_file(name_or_path):
            return pathlib.Path(name_or_path)
    folder = pathlib.Path(chainer.dataset.get_dataset_root(), 'pfnet', 'chainer', 'models')
    names, where = _imagenet_files(extractor)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightFileError(
        folder,
        f'has no ImageNet weights for {extractor}: put {where} there, name a file '
        'with --pretrained FILE, or train from scratch with --pretrained none',
    )


def _imagenet_files(extractor: str) -> tuple[list[str], str]:
    """Return the names of an extractor's ImageNet weights, best first, and which to get where."""
    if extractor.startswith('mobilenet'):
        return list(_MOBILENET_FILES), (
            f'{_MOBILENET_FILES[0]} (the arrays of the checkpoint from {_MOBILENET_SOURCE})'
        )
    depth = extractor.removeprefix('resnet').removesuffix('_fpn')
    names = [name.format(depth=depth) for name in _IMAGENET_FILES]
    return names, (f'{names[0]} (from {_CAFFE_SOURCE}) or {names[1]} (from {_DETECTRON_SOURCE.format(depth=depth)})')


def load_pretrained(
    model: chainer.Chain, path: str | os.PathLike, file: ConvertedWeights | None = None
) -> PretrainedReport:
    """Put the weights of a file into a model, as far as it has them and they fit.

    The layers whose shape depends on the number of classes or anchors keep their weights if that number
    is another in the file; heads that the model does not have are left out; everything else has to fit.  Batch
    normalisation in the file becomes an affine channel in a model with ``norm='affine'``, and the other way
    round, with the same output.  Nothing in the file is executed, and the model is unchanged if there is an
    error.

    Args:
        model (mask_rcnn.MaskRCNN): The model, on any device.
        path: A weight file of any kind.
        file: Its contents, where somebody has read them already.

    Returns:
        PretrainedReport: What was taken and what was not; ``str()`` for the user.

    Raises:
        WeightFileError: The file cannot be read, is no weight file that is known, or its network is another
            one.
    """
    config, file = model.config, file or formats.read(path)
    if file.config.backbone != config.backbone:
        raise WeightFileError(path, f'holds a {file.config.backbone}, but the model is to have a {config.extractor}')
    arrays = file.arrays
    if file.config.extractor != config.extractor:
        arrays = _body_moved(arrays, to_fpn=config.has_fpn)
    arrays = _convert_norm(
        path, arrays, config.norm, file.config.dialect.backbone.bn_eps, config.dialect.backbone.bn_eps
    )
    params = {name.lstrip('/'): param for name, param in model.namedparams()}
    skipped = tuple(head for head in _OPTIONAL_HEADS if not any(name.startswith(f'{head}/') for name in params))
    arrays = {name: array for name, array in arrays.items() if name.partition('/')[0] not in skipped}
    missing = tuple(dict.fromkeys(_layer_name(name) for name in params if name not in arrays))
    _check(path, arrays, missing, _FPN_BACKBONE if config.has_fpn else _C4_BACKBONE)
    if file.config.dialect.input.channel_order != config.dialect.input.channel_order:
        first = _first_filters(config)
        if arrays[first].ndim == 4:  # else load_arrays says what is wrong
            arrays[first] = arrays[first][:, ::-1]
    reinitialized = _layers_with_other_shape(params, arrays)
    taken = {name: array for name, array in arrays.items() if _layer_name(name) not in reinitialized}
    load_arrays(model, taken, what=path, partial=True)
    notes = tuple(file.report.warnings) if file.kind == 'model' else ()
    notes += tuple(
        f'the model has no {head}: the one in the file was left'
        for head in skipped
        if any(name.startswith(f'{head}/') for name in file.arrays)
    )
    return PretrainedReport(
        os.fspath(path),
        _file_title(file),
        len(taken),
        reinitialized,
        missing,
        notes + _note_on_classes(file.class_names, model.class_names),
    )


def _first_filters(config: Config) -> str:
    """Return the path of the filters that see the image's channels."""
    layer = 'conv0' if config.backbone == 'mobilenet_v1' else 'conv1'
    return f'extractor/{"body/" if config.has_fpn else ""}{layer}/conv/W'


def _file_title(file: ConvertedWeights) -> str:
    network = network_name(file.config) if file.kind == 'model' else f'{backbone_name(file.config)} backbone'
    return f'{network} ({formats.BY_NAME[file.format].title})'


def _body_moved(arrays: Mapping[str, np.ndarray], *, to_fpn: bool) -> dict[str, np.ndarray]:
    """Return the arrays of the backbone alone, under the paths of a network of the other kind."""
    pattern = _C4_BACKBONE if to_fpn else _FPN_BACKBONE
    moved = {}
    for name, array in arrays.items():
        if match := pattern.fullmatch(name):
            prefix = 'extractor/body' if to_fpn else 'box_head' if match[1].startswith('res5/') else 'extractor'
            moved[f'{prefix}/{match[1]}'] = array
    return moved


def _check(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], missing: tuple[str, ...], backbone: re.Pattern
) -> None:
    """The backbone must be complete, and all numbers finite."""
    gaps = [layer for layer in missing if backbone.match(layer)]
    if gaps:
        raise WeightFileError(path, f'lacks {summarize_names(gaps)}')
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise WeightFileError(
            path, f'holds infinite or undefined numbers in {summarize_names(broken)}: did the training diverge?'
        )


def _layers_with_other_shape(
    params: Mapping[str, chainer.Parameter], arrays: Mapping[str, np.ndarray]
) -> tuple[str, ...]:
    """Return the layers of the heads that cannot take the file's arrays."""
    return tuple(
        dict.fromkeys(
            _layer_name(name)
            for name, param in params.items()
            if _HEADS.fullmatch(name) and name in arrays and param.shape != arrays[name].shape
        )
    )


def _layer_name(name: str) -> str:
    return name.rpartition('/')[0]


def _note_on_classes(in_file: tuple[str, ...], in_model: tuple[str, ...] | None) -> tuple[str, ...]:
    if not in_file or in_model is None or len(in_file) != len(in_model) or in_file == tuple(in_model):
        return ()
    old, new = next((a, b) for a, b in zip(in_file, in_model) if a != b)
    return (
        f'the file has as many classes, but other ones ({to_printable_ascii(old)!r} where the model has '
        f'{to_printable_ascii(new)!r}): their weights were taken',
    )


# From one normalisation to the other


def _convert_norm(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], norm: str, eps: float, new_eps: float
) -> dict[str, np.ndarray]:
    """Return the arrays for a network with the given normalisation and the same output.

    Args:
        eps: What the batch normalisations in the file add to the variance.
        new_eps: What those of the network do.
    """
    converted = dict(arrays)
    if norm == 'affine':
        old_name, convert = 'gamma', functools.partial(_fold_into_affine, eps=eps)
    elif any(name.endswith('/norm/scale') for name in arrays):
        old_name, convert = 'scale', functools.partial(_affine_to_batch_norm, eps=new_eps)
    elif eps != new_eps:
        old_name, convert = 'gamma', functools.partial(_change_epsilon, eps=eps, new_eps=new_eps)
    else:
        return converted
    for name in arrays:
        if name.endswith(f'/norm/{old_name}'):
            prefix = name.removesuffix(old_name)
            parts = {key: converted.pop(prefix + key) for key in _NORM_ARRAYS if prefix + key in converted}
            try:
                converted |= {prefix + key: np.float32(array) for key, array in convert(**parts).items()}
            except (TypeError, ValueError):  # an array is missing, or their shapes do not go together
                raise WeightFileError(path, f'its {to_printable_ascii(prefix)}... are damaged') from None
    return converted


_NORM_ARRAYS = ('gamma', 'beta', 'avg_mean', 'avg_var', 'N', 'scale', 'bias')


def _fold_into_affine(gamma, beta, avg_mean, avg_var, N=None, *, eps) -> dict[str, np.ndarray]:
    """Ioffe and Szegedy 2015, algorithm 2, line 11: the normalisation as one scale and one bias."""
    with np.errstate(invalid='ignore'):  # _check finds what a negative variance leads to
        scale = gamma / np.sqrt(avg_var.astype(np.float64) + eps)
    return {'scale': scale, 'bias': beta - avg_mean * scale}


def _affine_to_batch_norm(scale, bias, *, eps) -> dict[str, np.ndarray]:
    """A batch normalisation with mean 0 and standard deviation 1."""
    zeros = np.zeros_like(scale)
    return {'gamma': scale, 'beta': bias, 'avg_mean': zeros, 'avg_var': zeros + (1 - eps)}


def _change_epsilon(gamma, beta, avg_mean, avg_var, N=None, *, eps, new_eps) -> dict[str, np.ndarray]:
    """The same output with another epsilon."""
    variance = avg_var.astype(np.float64)
    with np.errstate(invalid='ignore'):
        gamma = gamma * np.sqrt((variance + new_eps) / (variance + eps))
    same = {'gamma': gamma, 'beta': beta, 'avg_mean': avg_mean, 'avg_var': avg_var}
    return same if N is None else {**same, 'N': N}
