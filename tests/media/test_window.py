"""The live window, with stand-ins for the functions of OpenCV."""

import cv2
import numpy as np
import pytest

from mask_rcnn.media.window import NoWindowError, Window
from tests.support.windows import fake_window  # noqa: F401  # a fixture


def test_a_window_shows_bgr_until_a_key(fake_window):  # noqa: F811
    window = Window()
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:, :, 0] = 200
    window.show(picture)
    assert fake_window.shown[0][0, 0].tolist() == [0, 0, 200] and fake_window.size == (40, 30)
    assert not window.is_closed()
    for key in (ord('q'), 27):
        fake_window.keys = [key]
        assert window.is_closed()
    fake_window.is_visible = False
    assert window.is_closed()
    window.close()
    assert fake_window.is_destroyed


def test_the_headless_build_has_a_hint(monkeypatch):
    def fail(*arguments):
        raise cv2.error('The function is not implemented')

    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(cv2, 'namedWindow', fail)
    with pytest.raises(NoWindowError) as caught:
        Window()
    assert str(caught.value).endswith('pip uninstall opencv-python-headless; pip install opencv-python')


def test_a_machine_without_a_screen(monkeypatch):
    monkeypatch.setattr('sys.platform', 'linux')
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    monkeypatch.setattr(cv2, 'namedWindow', pytest.fail)
    with pytest.raises(NoWindowError, match='no screen'):
        Window()
