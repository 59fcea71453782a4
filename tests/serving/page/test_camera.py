"""The camera on the page: a browser's test pattern instead of a camera."""

import io

import pytest
from PIL import Image

from tests.support.browser import downloaded, opened_page
from tests.support.page_scene import OBJECTS, SIZE, choose_and_wait, listed
from tests.support.page_server import answer, refusal

pytestmark = pytest.mark.slow


def moving_answers():
    """Return a function that answers each frame with the two persons in another order."""
    answers = []

    def reply(accept, content):
        width, height = Image.open(io.BytesIO(content)).size
        answers.append(1)
        objects = [OBJECTS[0], {**OBJECTS[2], 'score': 0.95 if len(answers) % 2 else 0.85}]
        return {**answer(SIZE, objects), 'image': {'width': width, 'height': height}}

    return reply


def swatches(page):
    """Return the colour of each listed object by its score."""
    script = """() => Object.fromEntries([...document.querySelectorAll('#objects button')].map(
      (button) => [button.ariaLabel, button.querySelector('.swatch').style.backgroundColor]))"""
    return page.evaluate(script)


def test_one_frame_after_another(page, server):
    server.reply, server.delay = moving_answers(), 0.05
    page.get_by_role('button', name='Use the camera').click()
    page.locator('#objects button').first.wait_for()
    assert page.locator('#video').is_visible()
    colors = {}
    for _ in range(500):  # until both orders have been seen
        for name, color in swatches(page).items():
            colors.setdefault(name, set()).add(color)
        if len(colors) == 3 and len(server.detections) >= 10:
            break
        page.wait_for_timeout(20)
    assert len(colors) == 3 and all(len(values) == 1 for values in colors.values())
    assert colors['person, score 0.95'] == colors['person, score 0.85'] != colors['person, score 0.90']
    assert server.most_at_once == 1
    assert {headers['content-type'] for _, _, headers in server.detections} == {'image/jpeg'}
    assert 'frames/s' in page.locator('#info').text_content()
    page.get_by_role('button', name='Stop the camera').click()
    page.wait_for_timeout(200)
    number = len(server.detections)
    page.wait_for_timeout(300)
    assert len(server.detections) == number
    assert page.locator('#video').is_hidden() and len(listed(page)) == 2  # the last frame remains
    name, content = downloaded(page, 'Save PNG')
    assert name == 'camera_detections.png'
    assert Image.open(io.BytesIO(content)).size == Image.open(io.BytesIO(server.detections[-1][1])).size


def test_a_busy_server_is_tried_again(page, server):
    server.reply = refusal(429, 'the queue is full')
    page.get_by_role('button', name='Use the camera').click()
    page.get_by_role('alert').get_by_text('The server is busy').wait_for()
    server.reply = moving_answers()
    page.locator('#objects button').first.wait_for()
    assert page.get_by_role('alert').text_content() == ''


def test_an_error_stops_the_camera(page, server):
    server.reply = refusal(500, 'the server has failed')
    page.get_by_role('button', name='Use the camera').click()
    page.get_by_role('alert').get_by_text('the server has failed').wait_for()
    assert page.get_by_role('button', name='Use the camera').is_visible()
    assert page.locator('#stage').get_attribute('aria-busy') == 'false'
    assert len(server.detections) == 1


def test_a_picture_stops_the_camera(page, server):
    server.reply = moving_answers()
    page.get_by_role('button', name='Use the camera').click()
    page.locator('#objects button').first.wait_for()
    server.reply = answer(SIZE, OBJECTS)
    choose_and_wait(page)
    page.locator('#info').get_by_text('120 \u00d7 80').wait_for()
    number = len(server.detections)
    page.wait_for_timeout(200)
    assert len(server.detections) == number and page.locator('#video').is_hidden()


@pytest.mark.parametrize(
    ('script', 'message'),
    [
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })", 'it must come from https:// or'),
        ("deny('NotAllowedError')", 'The camera is blocked.'),
        ("deny('NotFoundError')", 'There is no camera.'),
        ("deny('NotReadableError')", 'Another program uses the camera.'),
    ],
)
def test_a_browser_without_a_camera(browser, server, address, script, message):
    with opened_page(browser, address) as page:
        page.evaluate(f"""() => {{
          const deny = (name) => {{
            navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name));
          }};
          {script};
        }}""")
        page.get_by_role('button', name='Use the camera').click()
        page.get_by_role('alert').get_by_text(message).wait_for()
        assert page.get_by_role('heading', name='Find the objects in a picture').is_visible()
        choose_and_wait(page)
