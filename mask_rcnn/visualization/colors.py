"""Colours of instances: vivid, deterministic, and distinct even for colour-blind readers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

#: RGB colours of instances.  They differ in lightness as well as in hue.
PALETTE = np.array(
    [
        (56, 165, 255),
        (255, 140, 0),
        (0, 190, 130),
        (240, 70, 160),
        (245, 215, 40),
        (140, 95, 250),
        (235, 60, 50),
        (40, 215, 235),
        (150, 215, 50),
        (176, 110, 50),
        (255, 160, 200),
        (45, 90, 220),
    ],
    np.uint8,
)

# Linear RGB as perceived without long-wave and without medium-wave cones (Machado, Oliveira and Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, table 1).
_PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)

# Linear sRGB to CIE XYZ (IEC 61966-2-1), each row divided by the white point D65.
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])

# Shades of a colour: a grey value and its weight in the mixture with the colour.
_SHADES = ((0, 0.0), (255, 0.3), (0, 0.3))

_SIMILAR_DISTANCE = 20.0  # CIE Lab distance below which two colours look alike in an image
_NEIGHBOUR_DISTANCE = 0.1  # distance at which a neighbour's colour loses importance, as a fraction of the diagonal


def instance_colors(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Choose a colour for each instance so that neighbours differ as much as possible.

    Each instance in turn gets the colour least similar to those of the earlier instances around it, and among equally
    good colours the least used.  The same boxes always get the same colours.

    Args:
        boxes: ``(R, 4)``, ``(y_min, x_min, y_max, x_max)``.
        size: ``(H, W)`` of the image.

    Returns:
        A uint8 array of shape ``(R, 3)``, RGB, rows of :data:`PALETTE`.
    """
    similarity = _palette_similarity()
    nearness = np.exp(-_gaps(boxes) / (_NEIGHBOUR_DISTANCE * np.hypot(*size)))
    chosen = np.zeros(len(boxes), np.intp)
    used = np.zeros(len(PALETTE))
    for i in range(len(boxes)):
        conflict = nearness[i, :i] @ similarity[chosen[:i]]
        chosen[i] = np.argmin(conflict + 1e-3 * used)
        used[chosen[i]] += 1
    return PALETTE[chosen]


def class_colors(boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Choose a colour for each class, and one of its shades for each instance so that neighbours differ.

    A class has the same colour in all pictures, as long as no other class of the picture shares it.

    Args:
        boxes: ``(R, 4)``, ``(y_min, x_min, y_max, x_max)``.
        labels: ``(R,)`` integers.
        size: ``(H, W)`` of the image.

    Returns:
        A uint8 array of shape ``(R, 3)``, RGB.
    """
    bases: dict[int, int] = {}
    for label in np.unique(labels).tolist():
        free = [i % len(PALETTE) for i in range(label, label + len(PALETTE)) if i % len(PALETTE) not in bases.values()]
        bases[label] = free[0] if free else label % len(PALETTE)
    nearness = np.exp(-_gaps(boxes) / (_NEIGHBOUR_DISTANCE * np.hypot(*size)))
    shades = np.zeros(len(boxes), np.intp)
    for i in range(len(boxes)):
        same = np.flatnonzero(labels[:i] == labels[i])
        conflict = np.bincount(shades[same], nearness[i, same], minlength=len(_SHADES))
        shades[i] = np.argmin(conflict)
    return _shaded(PALETTE[np.array([bases[label] for label in labels.tolist()], np.intp)], shades)


def track_colors(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a colour for each id of a track; it depends on nothing else, so that it is the same in all frames.

    Consecutive ids have different colours: first those of :data:`PALETTE`, then lighter and darker shades of them.

    Args:
        ids: ``(R,)`` positive integers.

    Returns:
        A uint8 array of shape ``(R, 3)``, RGB.
    """
    rounds, index = np.divmod(np.asarray(ids, np.int64) - 1, len(PALETTE))
    return _shaded(PALETTE[index], rounds % len(_SHADES))


def rgb_of(color: str) -> np.ndarray:
    """Return the values of a colour ``'#rrggbb'``, ``(3,)`` uint8."""
    return np.frombuffer(bytes.fromhex(color.removeprefix('#')), np.uint8)


def text_color(plate: np.ndarray) -> tuple[int, int, int]:
    """Return black or white, the colour with the higher contrast ratio to ``plate`` (RGB; WCAG 2.1)."""
    luminance = float(_linear(plate) @ np.array([0.2126, 0.7152, 0.0722]))
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


def _shaded(colors: np.ndarray, shades: np.ndarray) -> np.ndarray:
    """Return shades, given by indices of :data:`_SHADES`, of colours ``(R, 3)`` uint8."""
    ink, weight = np.array(_SHADES)[shades].T
    return np.rint(colors + (ink[:, None] - colors) * weight[:, None]).astype(np.uint8)


def _gaps(boxes: np.ndarray) -> np.ndarray:
    """Return the pairwise distances of boxes, 0 for boxes that touch or overlap."""
    low, high = boxes[:, :2], boxes[:, 2:]
    between = np.maximum(low[:, None] - high[None], low[None] - high[:, None])
    return np.hypot(*np.moveaxis(np.maximum(between, 0), 2, 0))


@functools.cache
def _palette_similarity() -> np.ndarray:
    """Return the pairwise similarity of the palette's colours, the maximum over three kinds of colour vision."""
    linear = _linear(PALETTE)
    perceived = [_lab(np.clip(linear @ vision.T, 0, 1)) for vision in (np.eye(3), _PROTANOPIA, _DEUTERANOPIA)]
    distance = np.min([np.linalg.norm(lab[:, None] - lab[None], axis=2) for lab in perceived], axis=0)
    similarity = np.exp(-distance / _SIMILAR_DISTANCE)
    np.fill_diagonal(similarity, similarity.sum(axis=1).max())  # equal colours are worse than any set of others
    return similarity


def _linear(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB, 0 to 255, to linear RGB, 0 to 1 (IEC 61966-2-1)."""
    value = np.asarray(rgb) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """Convert linear sRGB to CIE Lab, 1976 (CIE 15)."""
    xyz = linear @ _XYZ.T
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
