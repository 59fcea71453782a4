"""A stand-in for the windows of OpenCV, which its headless build does not have."""

import cv2
import pytest


class FakeWindow:
    """The state of the only window."""

    def __init__(self):
        self.shown = []
        self.keys = []
        self.size = None
        self.is_visible = True
        self.is_destroyed = False


@pytest.fixture
def fake_window(monkeypatch):
    """The window that the functions of OpenCV open."""
    window = FakeWindow()
    functions = {
        'namedWindow': lambda title, flags: None,
        'resizeWindow': lambda title, width, height: setattr(window, 'size', (width, height)),
        'imshow': lambda title, picture: window.shown.append(picture.copy()),
        'waitKey': lambda milliseconds: window.keys.pop(0) if window.keys else -1,
        'getWindowProperty': lambda title, name: float(window.is_visible),
        'destroyAllWindows': lambda: setattr(window, 'is_destroyed', True),
    }
    for name, function in functions.items():
        monkeypatch.setattr(cv2, name, function)
    monkeypatch.setenv('DISPLAY', ':0')
    return window
