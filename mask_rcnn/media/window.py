"""A live window that shows the drawn frames."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from mask_rcnn.io.errors import OneLineError

#: The keys that close the window: q and Esc.
_CLOSING_KEYS = (ord('q'), ord('Q'), 27)
_TITLE = 'mask-rcnn demo (q closes)'


class NoWindowError(OneLineError):
    """No window can be opened; ``str()`` is one line with the way on."""


class Window:
    """A window for pictures, used by the main thread only, as some systems require.

    Raises:
        NoWindowError: OpenCV was built without windows, or there is no screen.
    """

    def __init__(self) -> None:
        if sys.platform.startswith('linux') and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
            # OpenCV's Qt would end the process.
            raise NoWindowError('there is no screen (DISPLAY is not set)')
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise NoWindowError(
                'this OpenCV has no windows; install the one that has: '
                'pip uninstall opencv-python-headless; pip install opencv-python'
            ) from error
        self._is_sized = False

    def show(self, picture: np.ndarray) -> None:
        """Show a picture, ``(H, W, 3)`` uint8, RGB, or ``(H, W, 4)``, RGBA, on black."""
        if not self._is_sized:
            cv2.resizeWindow(_TITLE, picture.shape[1], picture.shape[0])
            self._is_sized = True
        cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGBA2BGR if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR))

    def is_closed(self, *, wait: float = 0.001) -> bool:
        """Process the events of the window; returns whether the user has closed it.

        Args:
            wait: Maximum seconds to wait for a key.
        """
        key = cv2.waitKey(max(1, round(wait * 1000))) & 0xFF
        return key in _CLOSING_KEYS or cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) < 1

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()
