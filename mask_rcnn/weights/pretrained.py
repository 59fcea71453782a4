"""Weights to start training from: finding them, and putting what fits into a model.

These files are read, whatever they are called (``.caffemodel`` and ``.pkl`` by that ending):

- the ``.caffemodel`` of He et al.'s ResNets (:mod:`mask_rcnn.weights.caffemodel`),
- an ``.npz`` of their arrays under Caffe's names: ``res2a_branch2a/W``, ``bn2a_branch2a/gamma`` ...,
- the ``.npz`` into which Chainer turns them for ``chainer.links.ResNet50Layers``: ``res2/a/conv1/W`` ...,
- Detectron's ``R-50.pkl``, ``R-101.pkl`` and Mask R-CNN models (:mod:`mask_rcnn.weights.detectron`),
- our own backbones and models (:mod:`mask_rcnn.weights.npz`).
"""

from __future__ import annotations

import functools
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.weights import caffemodel, detectron
from mask_rcnn.weights.errors import WeightFileError, printable
from mask_rcnn.weights.files import open_for_reading
from mask_rcnn.weights.npz import load_arrays, read_weights

#: The name for "the usual file in Chainer's folder".
IMAGENET = 'imagenet'

#: File names that are looked for, best first; ``{depth}`` is 50 or 101.
_IMAGENET_FILES = ('ResNet-{depth}-model.caffemodel', 'R-{depth}.pkl', 'R-{depth}_d2c.npz',
                   'resnet{depth}_imagenet.npz', 'ResNet-{depth}-model.npz')

_CAFFE_SOURCE = 'https://github.com/KaimingHe/deep-residual-networks'
_DETECTRON_SOURCE = 'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-{depth}.pkl'

#: No network that we know comes near: a limit against archives that unfold to any size.
_MAX_UNPACKED = 1 << 31

_DAMAGE = (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OverflowError,
           MemoryError)

#: Parameters that the number of classes or anchors shapes; all others must fit.
_HEADS = re.compile(r'(rpn/(objectness|delta)|box_head/(score|delta)|mask_head/score)/[Wb]')

#: Where the body's parameters are in a C4 network and in one with a feature pyramid.
_C4_BODY = re.compile(r'(?:extractor|box_head(?=/res5/))/(.*)')
_FPN_BODY = re.compile(r'extractor/body/(.*)')


@dataclass(frozen=True)
class PretrainedReport:
    """What a model took from a file.

    Args:
        path: The file.
        what: What it holds, such as ``'Caffe ResNet-50'``.
        n_taken: Number of arrays that went into the model.
        anew: Layers that keep their new, random weights although the file is a whole model: the number
            of classes or anchors is another.
        missing: Layers that keep them because the file does not have them, such as ``'rpn/conv'``.
        notes: Lines that the user should see.
    """

    path: str
    what: str
    n_taken: int
    anew: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for each thing to know."""
        lines = [f'{self.path}: {self.what}, {self.n_taken} arrays taken']
        if self.anew:
            lines.append(f'start anew (they have another shape in the file): {", ".join(self.anew)}')
        if self.missing:
            lines.append(f'start anew (not in the file): {", ".join(self.missing)}')
        return '\n'.join(lines + list(self.notes))


@dataclass(frozen=True)
class _Contents:
    """A file's arrays under our paths, with one of the two normalisations."""

    what: str
    extractor: str
    channel_order: str
    arrays: Mapping[str, np.ndarray]
    eps: float = caffemodel.EPS
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_pretrained(name_or_path: str | os.PathLike, extractor: str = 'resnet50') -> pathlib.Path:
    """Return the file that ``--pretrained`` means.

    Args:
        name_or_path: ``'imagenet'``: the ImageNet weights of the extractor in
            ``~/.chainer/dataset/pfnet/chainer/models/``, where Chainer keeps its own
            (``$CHAINER_DATASET_ROOT`` instead of ``~/.chainer/dataset`` if it is set).  Anything else is
            a path.
        extractor: ``'resnet50'`` or ``'resnet101'``.

    Raises:
        WeightFileError: There is no such file; for ``'imagenet'`` the message says where to get it and
            where to put it.
    """
    if os.fspath(name_or_path) != IMAGENET:
        with open_for_reading(name_or_path):
            return pathlib.Path(name_or_path)
    folder = pathlib.Path(chainer.dataset.get_dataset_root(), 'pfnet', 'chainer', 'models')
    depth = extractor.removeprefix('resnet').removesuffix('_fpn')
    names = [name.format(depth=depth) for name in _IMAGENET_FILES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightFileError(folder, f'has no ImageNet weights for {extractor}: put {names[0]} (from '
                                  f'{_CAFFE_SOURCE}) or {names[1]} (from '
                                  f'{_DETECTRON_SOURCE.format(depth=depth)}) there, name a file with '
                                  '--pretrained FILE, or train from scratch with --pretrained none')


def load_pretrained(model: chainer.Chain, path: str | os.PathLike) -> PretrainedReport:
    """Put the weights of a file into a model, as far as it has them and they fit.

    The layers whose shape depends on the number of classes or anchors keep their weights if that number
    is another in the file; everything else has to fit.  Batch normalisation in the file becomes an
    affine channel in a model with ``norm='affine'``, and the other way round, with the same output.
    Nothing in the file is executed, and the model is unchanged if there is an error.

    Args:
        model (mask_rcnn.MaskRCNN): The model, on any device.
        path: A file in one of the formats at the top of this module.

    Returns:
        PretrainedReport: What was taken and what was not; ``str()`` for the user.

    Raises:
        WeightFileError: The file cannot be read, is none of these, or its network is another one.
    """
    config, contents = model.config, _read(path)
    if contents.extractor.removesuffix('_fpn') != config.body:
        raise WeightFileError(path, f'holds a {contents.extractor}, but the model is to have a '
                                    f'{config.extractor}')
    arrays = contents.arrays
    if contents.extractor != config.extractor:
        arrays = _body_moved(arrays, to_fpn=config.has_fpn)
    arrays = _with_norm(path, arrays, config.norm, contents.eps, config.dialect.bn_eps)
    params = {name.lstrip('/'): param for name, param in model.namedparams()}
    missing = tuple(dict.fromkeys(_layer(name) for name in params if name not in arrays))
    _check(path, arrays, missing, _FPN_BODY if config.has_fpn else _C4_BODY)
    if contents.channel_order != config.dialect.channel_order:
        first = 'extractor/body/conv1/conv/W' if config.has_fpn else 'extractor/conv1/conv/W'
        arrays[first] = arrays[first][:, ::-1]
    anew = _layers_with_other_shape(params, arrays)
    taken = {name: array for name, array in arrays.items() if _layer(name) not in anew}
    load_arrays(model, taken, what=path, partial=True)
    return PretrainedReport(
        os.fspath(path), contents.what, len(taken), anew, missing,
        contents.notes + _note_on_classes(contents.class_names, model.class_names))


def _body_moved(arrays: Mapping[str, np.ndarray], *, to_fpn: bool) -> dict[str, np.ndarray]:
    """Return the arrays of the body alone, under the paths of a network of the other kind."""
    pattern = _C4_BODY if to_fpn else _FPN_BODY
    moved = {}
    for name, array in arrays.items():
        if match := pattern.fullmatch(name):
            room = 'extractor/body' if to_fpn else 'box_head' if match[1].startswith('res5/') else 'extractor'
            moved[f'{room}/{match[1]}'] = array
    return moved


def _check(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], missing: tuple[str, ...],
           body: re.Pattern) -> None:
    """The body must be complete, and all numbers finite."""
    gaps = [layer for layer in missing if body.match(layer)]
    if gaps:
        raise WeightFileError(path, f'lacks {_some(gaps)}')
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise WeightFileError(path, f'holds infinite or undefined numbers in {_some(broken)}: did the '
                                    'training diverge?')


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(map(printable, names[:5])) + more


def _layers_with_other_shape(params: Mapping[str, chainer.Parameter],
                             arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return the layers of the heads that cannot take the file's arrays."""
    return tuple(dict.fromkeys(
        _layer(name) for name, param in params.items()
        if _HEADS.fullmatch(name) and name in arrays and param.shape != arrays[name].shape))


def _layer(name: str) -> str:
    return name.rpartition('/')[0]


def _note_on_classes(in_file: tuple[str, ...], in_model: tuple[str, ...] | None) -> tuple[str, ...]:
    if not in_file or in_model is None or len(in_file) != len(in_model) or in_file == tuple(in_model):
        return ()
    old, new = next((a, b) for a, b in zip(in_file, in_model) if a != b)
    return (f'the file has as many classes, but other ones ({printable(old)!r} where the model has '
            f'{printable(new)!r}): their weights were taken',)


# The formats


def _read(path: str | os.PathLike) -> _Contents:
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == '.caffemodel':
        return _from_caffe(path, caffemodel.read(path))
    if suffix == '.pkl':
        return _from_detectron(path)
    with open_for_reading(path) as (file, _):
        is_zip = file.read(2) == b'PK'
    if not is_zip:
        raise WeightFileError(path, 'is no weight file that can be read: .caffemodel, .pkl (Detectron) '
                                    'and .npz can')
    names = _member_names(path)
    if 'meta' in names:
        return _from_our_own(path)
    if 'res2a_branch2a/W' in names:
        return _from_caffe(path, _read_members(path, lambda name: not name.startswith('fc')))
    if 'res2/a/conv1/W' in names:
        return _from_chainer(path, _read_members(path, lambda name: not name.startswith('fc')))
    raise WeightFileError(path, 'is an .npz, but holds neither a model of this program nor a ResNet under '
                                "Caffe's or Chainer's names (res2a_branch2a/W, res2/a/conv1/W)")


def _from_our_own(path: str | os.PathLike) -> _Contents:
    weights = read_weights(path)
    meta = weights.meta
    what = 'a backbone' if meta.kind == 'backbone' else f'a model of {meta.config.n_fg_class} classes'
    return _Contents(f'{what} ({meta.config.extractor})', meta.config.extractor,
                     meta.config.dialect.channel_order, weights.arrays, meta.config.dialect.bn_eps,
                     meta.class_names)


def _from_detectron(path: str | os.PathLike) -> _Contents:
    file = detectron.read(path)
    if file.kind == 'backbone':
        what, notes = "Detectron's ImageNet weights", ()
    else:
        what, notes = "Detectron's Mask R-CNN", file.report.warnings
    return _Contents(f'{what} ({file.config.extractor})', file.config.extractor,
                     file.config.dialect.channel_order, file.arrays, notes=notes)


def _from_caffe(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> _Contents:
    """From Caffe's names: blocks are ``2a 2b 2c``, in ResNet-101 also ``3a 3b1 3b2`` ..."""
    extractor = _depth(path, [len({name.partition('_')[0] for name in arrays
                                   if re.match(rf'res{stage}[a-z]\d*_', name)}) for stage in range(2, 6)])
    long_names = any(re.match(r'res\d[a-z]\d', name) for name in arrays)
    pairs = [('conv1', 'bn_conv1', 'extractor/conv1')]
    for stage, n_block in enumerate(RESNET_BLOCKS[extractor], start=2):
        for i in range(n_block):
            numbered = long_names and i and stage in (3, 4)
            block = f'{stage}b{i}' if numbered else f'{stage}{"abcdef"[i]}'
            pairs += [(f'res{block}_{branch}', f'bn{block}_{branch}', f'{_block_path(stage, i)}/{conv}')
                      for branch, conv in _branches(i, 'branch2a', 'branch2b', 'branch2c', 'branch1')]
    statistics = {'gamma': 'gamma', 'beta': 'beta', 'mean': 'avg_mean', 'var': 'avg_var'}
    return _from_resnet(path, arrays, pairs, statistics, f'Caffe {extractor}', extractor)


def _from_chainer(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> _Contents:
    """From the names of ``chainer.links.ResNet50Layers``: blocks are ``a b1 b2``."""
    extractor = _depth(path, [len({name.split('/')[1] for name in arrays if name.startswith(f'res{stage}/')})
                              for stage in range(2, 6)])
    pairs = [('conv1', 'bn1', 'extractor/conv1')]
    for stage, n_block in enumerate(RESNET_BLOCKS[extractor], start=2):
        for i in range(n_block):
            block = f'res{stage}/{f"b{i}" if i else "a"}'
            pairs += [(f'{block}/conv{number}', f'{block}/bn{number}', f'{_block_path(stage, i)}/{conv}')
                      for number, conv in _branches(i, 1, 2, 3, 4)]
    statistics = {name: name for name in ('gamma', 'beta', 'avg_mean', 'avg_var')}
    return _from_resnet(path, arrays, pairs, statistics, f"Chainer's {extractor}", extractor)


def _branches(block: int, first, second, third, shortcut) -> list[tuple]:
    """Pair a format's names of a block's convolutions with ours; only the first block has a shortcut."""
    pairs = [(first, 'conv1'), (second, 'conv2'), (third, 'conv3')]
    return pairs if block else [*pairs, (shortcut, 'shortcut')]


def _block_path(stage: int, block: int) -> str:
    return f'{"box_head" if stage == 5 else "extractor"}/res{stage}/block{block}'


def _depth(path: str | os.PathLike, n_blocks: list[int]) -> str:
    for extractor, expected in RESNET_BLOCKS.items():
        if list(expected) == n_blocks:
            return extractor
    raise WeightFileError(path, f'holds a ResNet of {" + ".join(map(str, n_blocks))} blocks, which is '
                                f'none of {", ".join(RESNET_BLOCKS)}')


def _from_resnet(path: str | os.PathLike, arrays: Mapping[str, np.ndarray],
                 pairs: list[tuple[str, str, str]], statistics: Mapping[str, str], what: str,
                 extractor: str) -> _Contents:
    """Rename convolutions and their batch normalisations.

    Args:
        pairs: Name of each convolution, of its batch normalisation, and our path for both.
        statistics: Our name of each array of a batch normalisation by the file's.
    """
    names = {f'{conv}/W': f'{ours}/conv/W' for conv, _, ours in pairs}
    names |= {f'{bn}/{theirs}': f'{ours}/norm/{name}' for _, bn, ours in pairs
              for theirs, name in statistics.items()}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise WeightFileError(path, f'lacks {_some(missing)}')
    renamed = {ours: np.asarray(arrays[theirs], np.float32) for theirs, ours in names.items()}
    for conv, _, ours in pairs:
        bias, mean = arrays.get(f'{conv}/b'), f'{ours}/norm/avg_mean'
        if bias is not None:
            # Our convolutions have no bias: the batch normalisation takes the mean off again anyway.
            if bias.shape != renamed[mean].shape:
                raise WeightFileError(path, f'{conv}/b has the shape {bias.shape}')
            renamed[mean] = np.float32(renamed[mean] - bias)
    return _Contents(what, extractor, 'BGR', renamed)


# Archives of plain arrays


def _member_names(path: str | os.PathLike) -> set[str]:
    with open_for_reading(path) as (file, _):
        try:
            with zipfile.ZipFile(file) as archive:
                return {member.filename.removesuffix('.npy') for member in archive.infolist()}
        except _DAMAGE as error:
            raise _damaged(path, error) from None


def _read_members(path: str | os.PathLike, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the arrays of floats in an ``.npz``, compressed or not."""
    with open_for_reading(path) as (file, _):
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > _MAX_UNPACKED:
                    raise ValueError('it is larger than any network when unpacked')
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                read = {name: arrays[name] for name in arrays.files if wanted(name)}
        except _DAMAGE as error:
            raise _damaged(path, error) from None
    return {name: array for name, array in read.items()
            if isinstance(array, np.ndarray) and array.dtype.kind == 'f'}


def _damaged(path: str | os.PathLike, error: Exception) -> WeightFileError:
    reason = printable(str(error), 200) or type(error).__name__
    return WeightFileError(path, f'is not a weight file, or damaged: {reason}')


# From one normalisation to the other


def _with_norm(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], norm: str, eps: float,
               new_eps: float) -> dict[str, np.ndarray]:
    """Return the arrays for a network with the given normalisation and the same output.

    Args:
        eps: What the batch normalisations in the file add to the variance.
        new_eps: What those of the network do.
    """
    converted = dict(arrays)
    if norm == 'affine':
        old_name, convert = 'gamma', functools.partial(_folded, eps=eps)
    elif any(name.endswith('/norm/scale') for name in arrays):
        old_name, convert = 'scale', functools.partial(_unfolded, eps=new_eps)
    elif eps != new_eps:
        old_name, convert = 'gamma', functools.partial(_with_epsilon, eps=eps, new_eps=new_eps)
    else:
        return converted
    for name in arrays:
        if name.endswith(f'/norm/{old_name}'):
            prefix = name.removesuffix(old_name)
            parts = {key: converted.pop(prefix + key) for key in _NORM_ARRAYS if prefix + key in converted}
            try:
                converted |= {prefix + key: np.float32(array) for key, array in convert(**parts).items()}
            except (TypeError, ValueError):     # an array is missing, or their shapes do not go together
                raise WeightFileError(path, f'its {printable(prefix)}... are damaged') from None
    return converted


_NORM_ARRAYS = ('gamma', 'beta', 'avg_mean', 'avg_var', 'N', 'scale', 'bias')


def _folded(gamma, beta, avg_mean, avg_var, N=None, *, eps) -> dict[str, np.ndarray]:
    """Ioffe and Szegedy 2015, algorithm 2, line 11: the normalisation as one scale and one bias."""
    with np.errstate(invalid='ignore'):         # _check finds what a negative variance leads to
        scale = gamma / np.sqrt(avg_var.astype(np.float64) + eps)
    return {'scale': scale, 'bias': beta - avg_mean * scale}


def _unfolded(scale, bias, *, eps) -> dict[str, np.ndarray]:
    """A batch normalisation with mean 0 and standard deviation 1."""
    zeros = np.zeros_like(scale)
    return {'gamma': scale, 'beta': bias, 'avg_mean': zeros, 'avg_var': zeros + (1 - eps)}


def _with_epsilon(gamma, beta, avg_mean, avg_var, N=None, *, eps, new_eps) -> dict[str, np.ndarray]:
    """The same output with another epsilon."""
    variance = avg_var.astype(np.float64)
    with np.errstate(invalid='ignore'):
        gamma = gamma * np.sqrt((variance + new_eps) / (variance + eps))
    same = {'gamma': gamma, 'beta': beta, 'avg_mean': avg_mean, 'avg_var': avg_var}
    return same if N is None else {**same, 'N': N}
