"""The backdrop of a drawing: what the objects of an image are drawn on, or shown in front of."""

from __future__ import annotations

import cv2
import numpy as np

#: Backdrops on which masks are drawn: the image, the image in pale grey, black, or white.
CANVASES = ('image', 'grey', 'black', 'white')
#: Backdrops of objects in their original colours: the image in grey, the blurred image, or nothing.
SURROUNDINGS = ('splash', 'blur', 'cutout')
BACKDROPS = CANVASES + SURROUNDINGS

_BLUR_STEPS = 24  # of the blur's standard deviation in the shorter side of the image
_MAX_SHRINKING = 8  # factor by which an image is shrunk before it is blurred


def make_canvas(pixels: np.ndarray, backdrop: str) -> np.ndarray:
    """Return a backdrop of :data:`CANVASES` as a new uint8 array ``(H, W, 3)``.

    Args:
        pixels: ``(H, W, 3)`` uint8, RGB.
        backdrop: One of :data:`CANVASES`.

    Raises:
        ValueError: The backdrop is unknown.
    """
    if backdrop == 'image':
        return pixels.copy()
    if backdrop in ('black', 'white'):
        return np.full_like(pixels, 0 if backdrop == 'black' else 255)
    if backdrop != 'grey':
        raise ValueError(f'a canvas must be one of {", ".join(CANVASES)}, not {backdrop!r}')
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.addWeighted(grey, 0.7, grey, 0, 0.3 * 235)  # pale, so that the masks stand out
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def show_objects(pixels: np.ndarray, covered: np.ndarray, surroundings: str) -> np.ndarray:
    """Return a new picture ``(H, W, 3)`` uint8 of objects in their original colours.

    Args:
        pixels: ``(H, W, 3)`` uint8, RGB.
        covered: ``(H, W)`` uint8, not 0 for the pixels of objects.
        surroundings: The other pixels: ``'splash'`` for the image in grey, ``'blur'`` for the blurred image, or
            ``'black'`` or ``'white'``.
    """
    if surroundings == 'splash':
        picture = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    elif surroundings == 'blur':
        picture = _blur_background(pixels, covered)
    else:
        picture = make_canvas(pixels, surroundings)
    return cv2.copyTo(pixels, covered, picture)


def _blur_background(pixels: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Blur the pixels that are not covered, without the colours of the covered ones, which would surround the objects.

    The image is shrunk before and upscaled after the blur, which removes its details.  This costs a tenth of a blur of
    all pixels.
    """
    height, width = covered.shape
    sigma = min(height, width) / _BLUR_STEPS
    factor = int(np.clip(sigma / 2, 1, _MAX_SHRINKING))
    size = -(-width // factor), -(-height // factor)
    is_background = np.equal(covered, 0).view(np.uint8)
    background = cv2.copyTo(pixels, is_background)
    small = cv2.resize(background, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    weights = cv2.resize(is_background * np.uint8(255), size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    blur = [cv2.GaussianBlur(values, (0, 0), max(sigma / factor, 0.1)) for values in (small, weights)]
    mean = blur[0] / np.maximum(blur[1], 1e-3)[:, :, None]
    return cv2.resize(np.rint(mean.clip(0, 255)).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def make_transparent(on_black: np.ndarray, on_white: np.ndarray) -> np.ndarray:
    """Return the picture ``(H, W, 4)`` uint8 RGBA that looks like two pictures if it is laid on black and on white.

    The colours are not multiplied by the opacity, as in PNG; transparent pixels are black.

    Args:
        on_black: ``(H, W, 3)`` uint8, RGB: a drawing on a black canvas.
        on_white: The same drawing on a white canvas.
    """
    alpha = 255 - cv2.subtract(on_white, on_black).max(axis=2)
    picture = np.dstack([on_black, alpha])
    is_partial = (alpha > 0) & (alpha < 255)
    colors = on_black[is_partial].astype(np.float32) * 255 / alpha[is_partial, None]
    picture[is_partial, :3] = np.rint(colors.clip(0, 255))
    picture[alpha == 0] = 0
    return picture
