"""A picture with three objects, and what tests do with it on the page of the server."""

import io

import numpy as np
import pytest
from PIL import Image

from mask_rcnn.visualization.colors import PALETTE
from tests.support.page_server import detection, rectangle

SIZE = (80, 120)
PERSON = rectangle(SIZE, 10, 10, 70, 80)
DOG = rectangle(SIZE, 30, 30, 50, 60)
OTHER_PERSON = rectangle(SIZE, 20, 90, 60, 115)
OBJECTS = [detection('person', 0.9, PERSON), detection('dog', 0.7, DOG), detection('person', 0.3, OTHER_PERSON)]
GREY = 90  # of the picture
FILL = 0.42  # opacity of masks

# Pixels (y, x) that lie in the middle of one object.
ON_PERSON, ON_DOG, ON_OTHER, OUTSIDE = (60, 45), (40, 45), (40, 100), (5, 5)


def encode(pixels, kind='PNG', **options):
    """Return an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = encode(np.full((*SIZE, 3), GREY, np.uint8))


def choose(page, content=PICTURE, name='scene.png', kind='image/png'):
    """Choose a file."""
    page.locator('#file').set_input_files({'name': name, 'mimeType': kind, 'buffer': content})


def choose_and_wait(page):
    """Choose the picture and wait for its objects."""
    choose(page)
    page.locator('#objects button').first.wait_for()


def pixel(page, place, canvas='overlay', size=SIZE):
    """Return the RGBA value of a canvas at the pixel ``(y, x)`` of a picture."""
    script = """([id, y, x, width]) => {
      const canvas = document.getElementById(id);
      const zoom = canvas.width / width;
      return [...canvas.getContext('2d').getImageData((x + 0.5) * zoom, (y + 0.5) * zoom, 1, 1).data];
    }"""
    return page.evaluate(script, [canvas, *place, size[1]])


def color_at(page, place):
    """Return the index in the palette of the colour of a mask."""
    *rgb, alpha = pixel(page, place)
    assert alpha == pytest.approx(255 * FILL, abs=2)
    distance = np.abs(PALETTE.astype(int) - rgb).max(1)
    assert distance.min() <= 3
    return int(distance.argmin())


def move_to(page, place, click=False):
    """Move the mouse to the pixel ``(y, x)`` of the picture."""
    box = page.locator('#overlay').bounding_box()
    y = box['y'] + box['height'] * (place[0] + 0.5) / SIZE[0]
    x = box['x'] + box['width'] * (place[1] + 0.5) / SIZE[1]
    (page.mouse.click if click else page.mouse.move)(x, y)


def names(buttons):
    """Return the accessible names of buttons of the list."""
    return [button.get_attribute('aria-label') for button in buttons.all()]


def listed(page):
    """Return the accessible names of the listed objects."""
    return names(page.locator('#objects button'))
