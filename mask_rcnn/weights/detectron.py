"""Detectron's ``.pkl`` weight files: recognising them and translating names, shapes and orders.

Two kinds are read: C4 Mask R-CNN models with a ResNet-50 or ResNet-101 body (``model_final.pkl``), and
the ImageNet files that Detectron starts its training from (``R-50.pkl``, ``R-101.pkl``).  Blob names are
those of ``detectron/modeling/ResNet.py``, ``rpn_heads.py``, ``fast_rcnn_heads.py`` and
``mask_rcnn_heads.py``.  See :mod:`mask_rcnn.weights.npz` for where the result goes.

Detectron's orders and ours:

======================================  ===============================================================
``rpn_bbox_pred``, ``bbox_pred``        ``(dx, dy, dw, dh)`` of each anchor or class; ours
                                        ``(dy, dx, dh, dw)``
``mask_fcn_logits``                     the first channel is the background's, which is never used; we
                                        drop it
``conv5_mask_w``                        ``(in, out, kh, kw)``, as Chainer's deconvolution
``conv1_w``                             takes BGR, as the Detectron dialect's input is
======================================  ===============================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config import DETECTRON, EXTRACTORS, Config
from mask_rcnn.weights import detectron_cfg, safe_pickle
from mask_rcnn.weights.errors import WeightFileError, printable
from mask_rcnn.weights.files import sha256

#: Format name that converted files carry as their source's.
FORMAT = 'detectron-pickle'

_SUPPORTED = 'Mask R-CNN with R-50-C4 or R-101-C4, and their ImageNet files'

_Path = str | os.PathLike

#: What Detectron takes when a file's ``cfg`` does not know the setting yet (``utils/net.py``,
#: ``configure_bbox_reg_weights``).
_OLD_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Report:
    """What became of a file's blobs.

    Args:
        taken: Blobs that were translated, in the network's order.
        left: Blobs that were not, by what they are: ``'momentum'``, ``'ImageNet classifier'``,
            ``'unused convolution biases'``, ``'unknown'``.
        notes: Lines about things that were adapted and need no action.
        warnings: Lines about things that could not be honoured and may change results.
    """

    taken: tuple[str, ...]
    left: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DetectronFile:
    """A translated file.

    Args:
        kind: ``'model'`` or ``'backbone'``.
        config: The network and its numbers.
        arrays: Arrays by parameter path, float32; some are read-only views into the file's data.
        report: What was taken and left.
        sha256: Of the source file.
    """

    kind: str
    config: Config
    arrays: Mapping[str, np.ndarray]
    report: Report
    sha256: str


def read(path: _Path) -> DetectronFile:
    """Read and translate a weight file of Detectron.  Nothing in the file is executed.

    Args:
        path: A ``.pkl`` file.

    Raises:
        WeightFileError: It is no such file, it is damaged, its network is not supported, or blobs are
            missing or have another shape than they should (all of them are named).
    """
    blobs, cfg, warnings = _contents(path, safe_pickle.load(path))
    kind = _recognise(path, blobs)
    config = Config(extractor=_extractor(path, blobs))
    if cfg is not None:
        config, cfg_warnings = detectron_cfg.apply(cfg, config)
        warnings += cfg_warnings
    translations = _backbone(config)
    notes: list[str] = []
    if kind == 'model':
        config = config.replace(n_fg_class=_n_fg_class(path, blobs))
        box_weights = _box_weights(cfg)
        translations += _heads(config, box_weights)
        if box_weights != DETECTRON.box_delta_weights:
            notes.append(f'MODEL.BBOX_REG_WEIGHTS {box_weights}: bbox_pred was rescaled to '
                         f'{DETECTRON.box_delta_weights}, which gives the same boxes')
    _check(path, blobs, translations)
    arrays = {t.path: t.apply(blobs[t.blob]) for t in translations}
    broken = [t.blob for t in translations if not np.isfinite(arrays[t.path]).all()]
    if broken:
        warnings.append(f'infinite or undefined numbers in {", ".join(broken)}: did the training diverge?')
    taken = tuple(t.blob for t in translations)
    report = Report(taken, _sort_left(set(blobs) - set(taken)), tuple(notes), tuple(warnings))
    return DetectronFile(kind, config, arrays, report, sha256(path))


def default_name(file: DetectronFile) -> str:
    """Return the file name for the converted weights, after Detectron's names for its own.

    Models: ``e2e_mask_rcnn_R-50-C4_1x_d2c.npz`` (or ``R-101-C4``); ImageNet files: ``R-50_d2c.npz``.
    """
    depth = file.config.extractor.removeprefix('resnet')
    return f'e2e_mask_rcnn_R-{depth}-C4_1x_d2c.npz' if file.kind == 'model' else f'R-{depth}_d2c.npz'


# What is in the file


def _contents(path: _Path, data: Any) -> tuple[dict[str, np.ndarray], dict | None, list[str]]:
    """Return the blobs, the parsed ``cfg`` if there is one, and warnings."""
    if not isinstance(data, dict):
        raise WeightFileError(path, f'is not a Detectron weight file: it holds a {type(data).__name__}')
    blobs = data.get('blobs', data)     # ImageNet files are the dictionary of blobs itself
    if not isinstance(blobs, dict):
        raise WeightFileError(path, "is not a Detectron weight file: its 'blobs' are no dictionary")
    arrays = {name: blob for name, blob in blobs.items()
              if isinstance(name, str) and isinstance(blob, np.ndarray)}
    text = data.get('cfg')
    if text is None:
        warnings = [] if 'blobs' not in data else ["no 'cfg' in the file; Detectron's defaults are used"]
        return arrays, None, warnings
    try:
        if not isinstance(text, str):
            raise ValueError('not text')
        return arrays, detectron_cfg.parse(text), []
    except ValueError as error:
        raise WeightFileError(path, f"its 'cfg' is damaged: {error}") from None


def _recognise(path: _Path, blobs: Mapping[str, np.ndarray]) -> str:
    """Return ``'model'`` or ``'backbone'``; name what is not supported."""
    parts = _unsupported_parts(blobs)
    if parts:
        raise WeightFileError(path, f'is a Detectron file with {" and ".join(parts)}, '
                                    f'which is not supported yet (supported: {_SUPPORTED})')
    if 'conv1_w' not in blobs or 'res2_0_branch2a_w' not in blobs:
        raise WeightFileError(path, 'is not a Detectron weight file: '
                                    'the blobs of a ResNet (conv1_w, res2_0_branch2a_w, ...) are missing')
    return 'model' if 'cls_score_w' in blobs else 'backbone'


def _unsupported_parts(blobs: Mapping[str, np.ndarray]) -> list[str]:
    """What the network has, or lacks, beyond a C4 Mask R-CNN and its body."""
    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in blobs)

    conv = blobs.get('res2_0_branch2b_w')
    parts = {
        'a VGG body': has('conv1_1_w'),
        'a ResNeXt body': conv is not None and conv.ndim == 4 and conv.shape[0] != conv.shape[1],
        'group normalisation': has(r'.*_gn_[sb]$'),
        'FPN': has(r'fpn_|.*_fpn\d'),
        'a RetinaNet head': has('retnet_'),
        'a keypoint head': has(r'kps_score|conv_fcn\d'),
        'a separate res5 for masks': has(r'_\[mask\]_res5'),
    }
    found = [name for name, present in parts.items() if present]
    if not found and has('conv_rpn_w|cls_score_w|mask_fcn_logits_w'):
        wanted = {'box head': 'cls_score_w', 'RPN': 'conv_rpn_w', 'mask head': 'mask_fcn_logits_w'}
        found = [f'no {name}' for name, blob in wanted.items() if blob not in blobs]
    return found


def _extractor(path: _Path, blobs: Mapping[str, np.ndarray]) -> str:
    """Tell the depth of the body by its res4 blocks."""
    count = len({match[1] for name in blobs if (match := re.fullmatch(r'res4_(\d+)_branch2a_w', name))})
    for name, blocks in EXTRACTORS.items():
        if blocks[2] == count:
            return name
    raise WeightFileError(path, f'has a ResNet with {count} blocks in res4, which is not supported yet '
                                f'(supported: {_SUPPORTED})')


def _n_fg_class(path: _Path, blobs: Mapping[str, np.ndarray]) -> int:
    shape = blobs['cls_score_w'].shape
    if len(shape) != 2 or shape[0] < 2:
        raise WeightFileError(path, f'cls_score_w has the shape {shape}, not (classes + 1, 2048)')
    return shape[0] - 1


def _box_weights(cfg: dict | None) -> tuple[float, ...]:
    """Return ``BBOX_REG_WEIGHTS`` in our order ``(y, x, h, w)``."""
    if cfg is None:
        return DETECTRON.box_delta_weights
    weights = detectron_cfg.lookup(cfg, 'MODEL.BBOX_REG_WEIGHTS')
    if (isinstance(weights, list) and len(weights) == 4
            and all(isinstance(w, (int, float)) and 0 < w < 1e6 for w in weights)):
        x, y, w, h = map(float, weights)
        return (y, x, h, w)
    return _OLD_BOX_WEIGHTS


# How each blob is translated


@dataclass(frozen=True)
class _Translation:
    blob: str
    path: str
    shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] | None = None

    def apply(self, blob: np.ndarray) -> np.ndarray:
        array = blob if self.convert is None else self.convert(blob)
        return np.ascontiguousarray(array, np.float32)


def _swap_xy(array: np.ndarray) -> np.ndarray:
    """``(dx, dy, dw, dh)`` to ``(dy, dx, dh, dw)`` within each four rows."""
    fours = array.reshape(-1, 4, *array.shape[1:])
    return fours[:, [1, 0, 3, 2]].reshape(array.shape)


def _rescaled(array: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """Box deltas for ``weights`` as deltas for the dialect's weights: both decode ``delta / weight``."""
    array = _swap_xy(array)
    factors = np.divide(DETECTRON.box_delta_weights, weights)
    if (factors == 1).all():
        return array
    return array * np.tile(factors, len(array) // 4).reshape(-1, *[1] * (array.ndim - 1))


def _drop_background(array: np.ndarray) -> np.ndarray:
    return array[1:]


def _affine_conv(blob: str, norm: str, path: str, conv: str, shape: tuple[int, ...]) -> list[_Translation]:
    """A convolution without bias and its AffineChannel."""
    norm_path = f'{path}/{conv}/norm' if conv else f'{path}/norm'
    conv_path = f'{path}/{conv}/conv' if conv else f'{path}/conv'
    return [
        _Translation(f'{blob}_w', f'{conv_path}/W', shape),
        _Translation(f'{norm}_s', f'{norm_path}/scale', shape[:1]),
        _Translation(f'{norm}_b', f'{norm_path}/bias', shape[:1]),
    ]


def _backbone(config: Config) -> list[_Translation]:
    """conv1 to res5: Detectron's ``res5_*`` belong to our box head."""
    translations = _affine_conv('conv1', 'res_conv1_bn', 'extractor/conv1', '', (64, 3, 7, 7))
    width_in = 64
    for stage, n_block in enumerate(EXTRACTORS[config.extractor], start=2):
        width = 64 << stage - 2
        for block in range(n_block):
            room = 'box_head' if stage == 5 else 'extractor'
            translations += _bottleneck(f'res{stage}_{block}', f'{room}/res{stage}/block{block}',
                                        width_in, width, shortcut=block == 0)
            width_in = 4 * width
    return translations


def _bottleneck(blob: str, path: str, width_in: int, width: int, *, shortcut: bool) -> list[_Translation]:
    convs = [
        ('branch2a', 'conv1', (width, width_in, 1, 1)),
        ('branch2b', 'conv2', (width, width, 3, 3)),
        ('branch2c', 'conv3', (4 * width, width, 1, 1)),
    ]
    if shortcut:
        convs.append(('branch1', 'shortcut', (4 * width, width_in, 1, 1)))
    return [translation for branch, conv, shape in convs
            for translation in _affine_conv(f'{blob}_{branch}', f'{blob}_{branch}_bn', path, conv, shape)]


def _heads(config: Config, box_weights: tuple[float, ...]) -> list[_Translation]:
    """RPN, box head and mask head."""
    n_anchor = len(config.anchor_sizes) * len(config.anchor_ratios)
    n_class = config.n_fg_class + 1

    def box_deltas(array: np.ndarray) -> np.ndarray:
        return _rescaled(array, box_weights)

    layers = (
        ('conv_rpn', 'rpn/conv', (1024, 1024, 3, 3), 1024, None),
        ('rpn_cls_logits', 'rpn/objectness', (n_anchor, 1024, 1, 1), n_anchor, None),
        ('rpn_bbox_pred', 'rpn/delta', (4 * n_anchor, 1024, 1, 1), 4 * n_anchor, _swap_xy),
        ('cls_score', 'box_head/score', (n_class, 2048), n_class, None),
        ('bbox_pred', 'box_head/delta', (4 * n_class, 2048), 4 * n_class, box_deltas),
        ('conv5_mask', 'mask_head/deconv', (2048, 256, 2, 2), 256, None),
        ('mask_fcn_logits', 'mask_head/score', (n_class, 256, 1, 1), n_class, _drop_background),
    )
    return [translation for blob, path, shape, n_out, convert in layers for translation in (
        _Translation(f'{blob}_w', f'{path}/W', shape, convert),
        _Translation(f'{blob}_b', f'{path}/b', (n_out,), convert),
    )]


def _check(path: _Path, blobs: Mapping[str, np.ndarray], translations: Iterable[_Translation]) -> None:
    """Every blob must be there, hold numbers and have its shape."""
    problems = []
    missing = [t.blob for t in translations if t.blob not in blobs]
    if missing:
        problems.append(f'missing blobs: {", ".join(missing)}')
    for t in translations:
        blob = blobs.get(t.blob)
        if blob is not None and (blob.shape != t.shape or blob.dtype.kind != 'f'):
            problems.append(f'{t.blob} is {blob.dtype.name} {blob.shape}, not float32 {t.shape}')
    if problems:
        raise WeightFileError(path, '; '.join(problems))


def _sort_left(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group the blobs that are not taken by what they are."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith('_momentum'):
            group = 'momentum'
        elif re.fullmatch(r'(fc1000|pred)_[wb]', name):
            group = 'ImageNet classifier'
        elif re.fullmatch(r'conv1_b|res\d+_\d+_branch\w+_b', name):
            group = 'unused convolution biases'
        else:
            group, name = 'unknown', printable(name)
        groups.setdefault(group, []).append(name)
    return {group: tuple(members) for group, members in groups.items()}
