"""Fixtures of the tests of the server."""

import httpx
import numpy as np
import pytest

from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.visualization.pictures import encode_picture
from tests.support.bundled_model import load_model
from tests.support.serving import RunningServer


@pytest.fixture(scope='package')
def scene() -> bytes:
    """A PNG file with shapes that the bundled model detects."""
    image = RichShapesDataset(1, size=160, seed=5)[0].image
    return encode_picture(image.transpose(1, 2, 0).astype(np.uint8), '.png')


@pytest.fixture(scope='package')
def model():
    """The bundled model."""
    return load_model()


@pytest.fixture(scope='package')
def server(model):
    """A server of the bundled model."""
    with RunningServer(model) as running:
        yield running


@pytest.fixture(scope='package')
def client(server):
    """A client of the server."""
    with httpx.Client(base_url=server.url, timeout=30) as opened:
        yield opened
