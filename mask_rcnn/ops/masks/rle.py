"""COCO's run-length encoding of masks.

A mask is encoded as the lengths of its runs of 0, 1, 0, ... down the columns; pixel ``(y, x)`` has the index
``x * H + y``.  The compressed form of the lengths is a string.  Source: ``common/maskApi.c`` of COCO's API.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.ops.masks.crop import crop_mask

#: Length in pixels of the longest outline that is rasterised.
_MAX_OUTLINE = 1e7


def encode_mask(mask: np.ndarray) -> dict:
    """Encode a mask as compressed run lengths.

    The result equals that of ``pycocotools.mask.encode``.  Only the bounding box of the mask is scanned for runs, which
    is many times faster for small instances in large images.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        dict: ``{'size': [H, W], 'counts': str}`` with compressed counts.
    """
    return encode_runs(find_runs(mask), mask.shape)


def find_runs(mask: np.ndarray) -> np.ndarray:
    """Return the runs of a mask's pixels.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        numpy.ndarray: ``(K, 2)`` integers: the first pixel of each run and the first pixel after it, ascending.  A run
        does not continue in the next column, as in :func:`mask_rcnn.ops.masks.paste_masks.mask_runs`.
    """
    crop = crop_mask(mask)
    if crop is None:
        return np.empty((0, 2), np.int64)
    height, width = crop.mask.shape
    framed = np.zeros((width, height + 2), np.int8)
    framed[:, 1:-1] = crop.mask.T
    change = np.diff(framed, axis=1)
    edges = [(x + crop.left) * len(mask) + y + crop.top for x, y in (np.nonzero(change == 1), np.nonzero(change == -1))]
    return np.stack(edges, axis=1)


def encode_runs(runs: np.ndarray, size: tuple[int, ...]) -> dict:
    """Encode a mask from its runs.

    Args:
        runs: ``(K, 2)`` integers, the result of :func:`find_runs` or :func:`mask_rcnn.ops.masks.paste_masks.mask_runs`.
        size: Height and width of the image.

    Returns:
        dict: ``{'size': [H, W], 'counts': str}`` with compressed counts.
    """
    starts, ends = runs.T
    # A run that reaches the bottom of its column continues at the top of the next one.
    is_separate = starts[1:] != ends[:-1]
    is_first, is_last = (np.append(*flags) for flags in ((True, is_separate), (is_separate, True)))
    edges = np.stack([starts[is_first[: len(starts)]], ends[is_last[: len(ends)]]], axis=1).ravel()
    height, width = size
    lengths = np.diff(edges, prepend=0, append=height * width).tolist()
    if lengths[-1] == 0:
        lengths.pop()
    rle = coco_mask.frPyObjects({'size': [height, width], 'counts': lengths}, height, width)
    return {'size': [height, width], 'counts': rle['counts'].decode('ascii')}


def encode_labels(labels: np.ndarray) -> dict[int, dict]:
    """Encode all instances of a label image as compressed run lengths.

    The pixels are scanned once, whatever the number of instances is: the runs of equal values in column order are
    sorted by value.

    Args:
        labels: ``(H, W)`` integers or bool: 0 for background, otherwise the value of the pixel's instance.

    Returns:
        dict: Value -> ``{'size': [H, W], 'counts': bytes}``, ascending; the run lengths equal those of
        ``pycocotools.mask.encode(labels == value)``.
    """
    height, width = labels.shape
    pixels = labels.ravel(order='F')
    starts = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1) if pixels.size else np.empty(0, np.int64)
    stops = np.append(starts[1:], pixels.size)[: len(starts)]
    values = pixels[starts]
    order = np.argsort(values, kind='stable')
    order = order[values[order] != 0]
    edges = np.stack([starts[order], stops[order]], axis=1)
    found, first = np.unique(values[order], return_index=True)
    encoded = {}
    for value, runs in zip(found.tolist(), np.split(edges, first[1:]), strict=False):  # one empty part if there is none
        lengths = np.diff(runs.ravel(), prepend=0, append=pixels.size)
        counts = {'size': [height, width], 'counts': lengths[: -1 if lengths[-1] == 0 else None].tolist()}
        encoded[value] = {'size': [height, width], 'counts': coco_mask.frPyObjects(counts, height, width)['counts']}
    return encoded


def decode_counts(counts: str | bytes) -> np.ndarray:
    """Return the run lengths in compressed counts (``rleFrString`` of ``maskApi.c``).

    A value is written as characters of 5 bits, the low bits first.  Bit 5 of a character is set if more characters
    follow, and bit 4 of the last one is the sign.  The fourth and later values are differences from the value two
    positions before.  In contrast to pycocotools, which reads past the end of truncated counts, this function validates
    them.

    Args:
        counts: The ``'counts'`` of a run-length encoding.

    Returns:
        numpy.ndarray: ``(K,)`` int64, the lengths of the runs of 0, 1, 0, ...

    Raises:
        ValueError: The counts are truncated, or contain an invalid character or a number of more than 7 characters.
    """
    characters = np.frombuffer(counts.encode('ascii') if isinstance(counts, str) else counts, np.uint8)
    values = characters.astype(np.int64) - 48
    ends = np.flatnonzero(values & 0x20 == 0)
    if not ends.size or ends[-1] != values.size - 1 or values.min() < 0 or values.max() > 63:
        raise ValueError('they are truncated or have invalid characters')
    starts = np.append(0, ends[:-1] + 1)
    n_characters = ends - starts + 1
    if n_characters.max() > 7:
        raise ValueError('a number is too large')
    shifts = 5 * (np.arange(values.size) - np.repeat(starts, n_characters))
    numbers = np.add.reduceat((values & 0x1F) << shifts, starts)
    numbers -= (values[ends] & 0x10 != 0) * (1 << 5 * n_characters)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def decode_rle(rle: dict) -> np.ndarray:
    """Return the mask ``(H, W)`` uint8 of compressed run lengths.

    pycocotools returns uninitialised memory for some run lengths that do not fit the size.

    Args:
        rle: ``{'size': [H, W], 'counts': str or bytes}``.

    Raises:
        ValueError: The run lengths are invalid or do not fit the size.
    """
    decode_runs(rle)
    return coco_mask.decode(rle)


def decode_runs(rle: dict) -> np.ndarray:
    """Return the pixels at which the runs of compressed run lengths end.

    Args:
        rle: ``{'size': [H, W], 'counts': str or bytes}``.

    Returns:
        numpy.ndarray: ``(K,)`` int64, the first pixel after each run of 0, 1, 0, ...; the last one is ``H * W``.

    Raises:
        ValueError: The run lengths are invalid or do not fit the size.
    """
    height, width = rle['size']
    runs = decode_counts(rle['counts'])
    if runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(f'the sum of the run lengths is not the number of pixels of a mask of {height} x {width}')
    return runs.cumsum()


def check_polygons(polygons: Sequence[np.ndarray]) -> None:
    """Refuse polygons that pycocotools cannot rasterise.

    pycocotools needs some 100 bytes for each pixel of an outline, and crashes if they are too many for 32 bits.

    Args:
        polygons: At least one flat array ``x, y, x, y, ...`` in pixels of the mask; none is empty.

    Raises:
        ValueError: A coordinate is not finite, or an outline is longer than 10 million pixels.
    """
    coordinates, sizes = np.concatenate(polygons), np.array([polygon.size for polygon in polygons])
    starts = np.cumsum(sizes) - sizes
    extents = np.maximum.reduceat(coordinates, starts) - np.minimum.reduceat(coordinates, starts)
    # No polygon is longer than its number of vertices times its extent; this is fast, and False for NaN.
    is_short = (sizes * extents <= _MAX_OUTLINE) & (np.abs(coordinates[starts]) <= _MAX_OUTLINE)
    for i in np.flatnonzero(~is_short).tolist():
        points = polygons[i].reshape(-1, 2)
        length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if not (length <= _MAX_OUTLINE and np.abs(points).max() <= _MAX_OUTLINE):
            raise ValueError(f'a polygon has an outline of {length:g} pixels or lies far outside the mask')


def encode_polygons(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> dict:
    """Rasterise the union of polygons in an image as compressed run lengths.

    Args:
        polygons: At least one flat array ``x, y, x, y, ...`` of at least three points.
        size: Height and width of the image.

    Returns:
        dict: ``{'size': [H, W], 'counts': bytes}``.

    Raises:
        ValueError: See :func:`check_polygons`.
    """
    parts = [np.asarray(polygon, np.float64) for polygon in polygons]
    check_polygons(parts)
    return coco_mask.merge(coco_mask.frPyObjects(parts, *size))
