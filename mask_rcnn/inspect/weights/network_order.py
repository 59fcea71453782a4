"""The arrays of a network in the order of its layers, and the parts of the network to which they belong."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: The last block of a MobileNet at each of the strides 4, 8, 16 and 32.
_LAST_BLOCKS = (3, 5, 11, 13)
_BLOCK_PARTS = tuple(f'backbone blocks {first}-{last}' for first, last in zip((1, 4, 6, 12), _LAST_BLOCKS, strict=True))

#: The parts of all networks, in the order in which an image passes them.
PARTS = (
    'backbone conv0',
    'backbone conv1',
    *_BLOCK_PARTS,
    *(f'backbone res{stage}' for stage in range(2, 6)),
    'FPN',
    'RPN',
    'box head res5',
    'box head',
    'mask head',
    'keypoint head',
    'other',
)

_BACKBONE = re.compile(r'extractor/(?:body/)?(conv[01]|res[2-5])/')
_BLOCK = re.compile(r'extractor/body/block(\d+)/')
_PREFIXES = {
    'extractor/lateral': 'FPN',
    'extractor/output': 'FPN',
    'rpn/': 'RPN',
    'box_head/res5/': 'box head res5',
    'box_head/': 'box head',
    'mask_head/': 'mask head',
    'keypoint_head/': 'keypoint head',
}

#: The order of the layers of a block or a head, and of the arrays of a layer, where it is not that of the alphabet.
_ORDER = {
    name: rank
    for rank, name in enumerate(
        (
            *('conv', 'fc', 'depthwise', 'pointwise', 'shortcut', 'deconv', 'objectness', 'score', 'delta'),
            *('lateral', 'output', 'norm', 'W', 'b', 'gamma', 'scale', 'beta', 'bias', 'avg_mean', 'avg_var', 'N'),
        )
    )
}


def part_of(name: str) -> str:
    """Return the part of the network to which an array belongs, one of :data:`PARTS`.

    Args:
        name: The path of the array, such as ``'extractor/res2/block0/conv1/conv/W'``.
    """
    stage = _BACKBONE.match(name)
    if stage is not None:
        return f'backbone {stage[1]}'
    block = _BLOCK.match(name)
    if block is not None:
        fitting = (part for part, last in zip(_BLOCK_PARTS, _LAST_BLOCKS, strict=True) if int(block[1][:9]) <= last)
        return next(fitting, 'other')
    return next((part for prefix, part in _PREFIXES.items() if name.startswith(prefix)), 'other')


def network_order(names: Iterable[str]) -> list[str]:
    """Return the paths of arrays in the order in which an image passes their layers."""
    return sorted(names, key=lambda name: (PARTS.index(part_of(name)), [_rank(word) for word in name.split('/')], name))


def _rank(word: str) -> tuple[int, str, int]:
    """Return the sort key of one component of a path: ``block2`` precedes ``block10``."""
    stem = word.rstrip('0123456789')
    number = word[len(stem) :][:18]
    return _ORDER.get(stem, len(_ORDER)), stem, int(number or -1)
