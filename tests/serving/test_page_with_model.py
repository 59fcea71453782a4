"""The page of the real server, with the bundled model."""

import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.browser import downloaded, opened_page, running_chromium
from tests.support.page_scene import choose, listed

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def browser():
    """A headless Chromium."""
    with running_chromium() as browser:
        yield browser


def test_a_picture_is_detected(browser, server, scene):
    response = httpx.post(f'{server.url}v1/detect?score=0.05', content=scene, timeout=120)
    expected = response.json()
    with opened_page(browser, server.url) as page:
        choose(page, scene)
        page.locator('#objects button').first.wait_for(timeout=60_000)
        page.get_by_label('Lowest score').fill('0.05')
        assert page.locator('#model').text_content() == expected['model']
        assert listed(page) == [f'{entry["class"]}, score {entry["score"]:.2f}' for entry in expected['detections']]
        found = json.loads(downloaded(page, 'Save JSON')[1])
        assert {**found, 'time_ms': 0} == {**expected, 'time_ms': 0}
        saved = np.asarray(Image.open(io.BytesIO(downloaded(page, 'Save PNG')[1])).convert('RGB'))
        original = np.asarray(Image.open(io.BytesIO(scene)))
        assert saved.shape == original.shape and np.any(saved != original)


def test_pictures_that_the_browser_cannot_decode(browser, server, scene):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(scene)).save(buffer, 'TIFF')
    with opened_page(browser, server.url) as page:
        choose(page, buffer.getvalue(), 'scene.tif', 'image/tiff')
        page.locator('#objects button').first.wait_for(timeout=60_000)
        shown = '() => [picture.width / picture.height, stage.ariaBusy]'
        assert page.evaluate(shown) == [1, 'false']


def test_a_text_file_is_an_error(browser, server):
    with opened_page(browser, server.url) as page:
        choose(page, b'no picture', 'notes.txt', 'text/plain')
        alert = page.get_by_role('alert').filter(has_text='notes.txt')
        alert.wait_for()
        assert len(alert.text_content().splitlines()) == 1


def test_the_camera(browser, server):
    with opened_page(browser, server.url) as page:
        page.get_by_role('button', name='Use the camera').click()
        page.get_by_text('frames/s').wait_for(timeout=60_000)
        page.get_by_role('button', name='Stop the camera').click()
        assert page.get_by_role('alert').text_content() == ''


def test_the_interface_is_described(browser, server):
    document = httpx.get(f'{server.url}openapi.json').json()
    with opened_page(browser, f'{server.url}docs', origin=server.url) as page:
        page.get_by_role('region', name='POST /v1/detect').wait_for()
        headings = page.locator('h3').all_text_contents()
        assert headings == [f'{method.upper()}{path}' for path, item in document['paths'].items() for method in item]
