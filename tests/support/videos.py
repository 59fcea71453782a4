"""Drawn videos whose frames contain their numbers as black and white blocks."""

import shutil

import cv2
import numpy as np
import pytest

#: Number of blocks, bits of a number, and their side in pixels.
N_BITS, BLOCK = 12, 8
#: ``(H, W)`` of the frames.
SIZE = 96, 128

needs_ffmpeg = pytest.mark.skipif(shutil.which('ffmpeg') is None, reason='needs ffmpeg')


def numbered_frame(number, size=SIZE):
    """Draw a frame ``(H, W, 3)`` uint8, RGB: blue with a moving red square, and the number in the bottom rows."""
    frame = np.zeros((*size, 3), np.uint8)
    frame[:, :, 2] = 120
    left = square_left(number, size)
    frame[12:36, left : left + 24] = (200, 30, 30)
    for bit in range(N_BITS):
        frame[-2 * BLOCK :, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return frame


def square_left(number, size=SIZE):
    """Return the first column of the square, which moves between the left and the right."""
    n_places = size[1] - 24
    return abs(n_places - number % (2 * n_places))


def read_number(frame):
    """Return the number in a frame."""
    blocks = frame[-2 * BLOCK + 3 : -3, : N_BITS * BLOCK].reshape(-1, N_BITS, BLOCK, 3)[:, :, 2:-2].mean(axis=(0, 2, 3))
    return int(((blocks > 128) << np.arange(N_BITS)).sum())


def write_video(path, n_frames, *, rate=30.0, size=SIZE, codec='mp4v'):
    """Write a video of numbered frames with OpenCV."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size[::-1])
    assert writer.isOpened()
    for number in range(n_frames):
        writer.write(numbered_frame(number, size)[:, :, ::-1])
    writer.release()
    return str(path)


def read_video(path):
    """Return the numbers of the frames of a video, its rate and its size ``(H, W)``."""
    capture = cv2.VideoCapture(str(path))
    assert capture.isOpened(), path
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    numbers = []
    while True:
        done, frame = capture.read()
        if not done:
            capture.release()
            return numbers, rate, size
        numbers.append(read_number(frame))


def truncate(path, part=0.6):
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
