"""The page of the server in a real browser, with prepared answers."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from starlette.responses import Response

from mask_rcnn.visualization.colors import PALETTE
from tests.support.browser import CONTRASTS, downloaded, opened_page
from tests.support.page_scene import (
    FILL,
    GREY,
    OBJECTS,
    ON_DOG,
    ON_OTHER,
    ON_PERSON,
    OUTSIDE,
    PERSON,
    PICTURE,
    SIZE,
    choose,
    choose_and_wait,
    color_at,
    encode,
    listed,
    move_to,
    names,
    pixel,
)
from tests.support.page_server import answer, detection, rectangle, refusal


def test_masks_of_a_chosen_picture_appear(page, server):
    choose_and_wait(page)
    page.get_by_label('Labels').uncheck()
    page.get_by_label('Lowest score').fill('0.05')
    assert pixel(page, OUTSIDE) == [0, 0, 0, 0]
    assert pixel(page, OUTSIDE, 'picture') == [GREY, GREY, GREY, 255]
    assert color_at(page, ON_PERSON) != color_at(page, ON_OTHER)
    assert pixel(page, ON_DOG)[3] == pytest.approx(255 * (1 - (1 - FILL) ** 2), abs=3)  # one mask over another
    assert listed(page) == ['person, score 0.90', 'dog, score 0.70', 'person, score 0.30']
    ((query, content, headers),) = server.detections
    assert (query, content) == ('score=0.05&masks=rle', PICTURE)
    assert headers['accept'] == 'application/json' and headers['content-type'] == 'image/png'
    assert page.locator('#info').text_content() == '120 \u00d7 80 · 13 ms'


@pytest.mark.slow
@pytest.mark.parametrize('event', ['drop', 'paste'])
def test_a_picture_is_dropped_or_pasted(page, server, event):
    script = """([event, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], 'scene.png', { type: 'image/png' }));
      document.body.dispatchEvent(event === 'drop'
        ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, [event, list(PICTURE)])
    page.locator('#objects button').first.wait_for()
    assert [content for _, content, _ in server.detections] == [PICTURE]


@pytest.mark.slow
@pytest.mark.parametrize('event', ['drop', 'paste'])
def test_something_else_is_dropped_or_pasted(page, server, event):
    script = """(event) => {
      const data = new DataTransfer();
      data.setData('text/plain', 'https://example.org/picture.png');
      document.body.dispatchEvent(event === 'drop'
        ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(script, event)
    expected = {'drop': 'That is not a file.', 'paste': 'The clipboard has no picture.'}
    assert page.get_by_role('alert').text_content().startswith(expected[event])
    assert server.detections == []


def test_the_mouse_shows_class_and_score(page):
    choose_and_wait(page)
    tooltip = page.locator('#tooltip')
    move_to(page, ON_PERSON)
    assert tooltip.is_visible() and tooltip.text_content() == 'person 0.90'
    assert names(page.locator('#objects .active')) == ['person, score 0.90']
    move_to(page, ON_DOG)  # on both: the smaller one is on top
    assert tooltip.text_content() == 'dog 0.70'
    move_to(page, ON_OTHER)  # below the score
    assert tooltip.is_hidden()
    assert page.locator('#objects .active').count() == 0


@pytest.mark.slow
def test_a_click_selects_until_escape(page):
    choose_and_wait(page)
    dog = page.get_by_role('button', name='dog, score 0.70')
    move_to(page, ON_DOG, click=True)
    move_to(page, OUTSIDE)
    assert dog.get_attribute('aria-pressed') == 'true' and 'active' in dog.get_attribute('class')
    page.keyboard.press('Escape')
    assert dog.get_attribute('aria-pressed') == 'false'


def test_the_keyboard_moves_through_the_objects(page):
    choose_and_wait(page)
    page.get_by_label('Lowest score').fill('0.05')
    page.get_by_label('Labels').focus()
    alphas = []
    focused = page.locator('#objects button:focus')
    for key, expected in [
        ('Tab', 'person, score 0.90'), ('ArrowDown', 'dog, score 0.70'), ('Tab', 'person, score 0.30'),
        ('ArrowDown', 'person, score 0.30'), ('Home', 'person, score 0.90'), ('End', 'person, score 0.30'),
        ('ArrowUp', 'dog, score 0.70'),
    ]:  # fmt: skip
        page.keyboard.press(key)
        assert names(focused) == names(page.locator('#objects .active')) == [expected]
        alphas.append(pixel(page, ON_OTHER)[3] / 255)
    # The mask of the other person is faint, or emphasised while it has the focus.
    assert np.round(alphas, 2).tolist() == [0.2, 0.2, 0.55, 0.55, 0.2, 0.55, 0.2]
    assert focused.evaluate('(element) => getComputedStyle(element).outlineStyle') == 'solid'
    page.keyboard.press('Enter')
    assert focused.get_attribute('aria-pressed') == 'true'


@pytest.mark.slow
def test_all_controls_are_reached_with_the_keyboard(page):
    choose_and_wait(page)
    found = []
    page.locator('body').press('Tab')
    for _ in range(13):
        found.append(
            page.evaluate("""() => {
          const element = document.activeElement;
          return element.ariaLabel ?? (element.labels?.[0] ?? element).textContent;
        }""")
        )
        page.keyboard.press('Tab')
    assert found == [
        'Skip to the objects', 'API', 'Choose a picture', 'Use the camera', 'Lowest score', 'Masks', 'Boxes', 'Labels',
        'person, score 0.90', 'dog, score 0.70', 'Save PNG', 'Save JSON', found[-1],
    ]  # fmt: skip


def test_the_slider_filters_without_a_request(page, server):
    choose_and_wait(page)
    assert listed(page) == ['person, score 0.90', 'dog, score 0.70']  # with the model's own score, 0.5
    slider = page.get_by_label('Lowest score')
    for score, expected, total, classes in [
        ('0.3', ['person, score 0.90', 'dog, score 0.70', 'person, score 0.30'], '3 objects', '2 person · 1 dog'),
        ('0.8', ['person, score 0.90'], '1 object', '1 person'),
        ('0.95', [], 'No objects', ''),
    ]:
        slider.fill(score)
        assert listed(page) == expected
        assert page.get_by_role('heading', level=2, name=total, exact=True).is_visible()
        assert page.locator('#classes').text_content().replace('\xa0', ' ') == classes
    assert pixel(page, ON_PERSON) == [0, 0, 0, 0]
    assert page.get_by_text('3 with a lower score.').is_visible()
    assert len(server.detections) == 1


@pytest.mark.slow
def test_a_screen_reader_hears_the_numbers(page):
    choose_and_wait(page)
    page.get_by_label('Lowest score').fill('0.05')
    page.get_by_role('status').get_by_text('3 objects: 2 person, 1 dog', exact=True).wait_for(state='attached')
    assert page.get_by_role('img', name='Picture with 3 objects: 2 person, 1 dog').count() == 1


@pytest.mark.slow
def test_masks_boxes_and_labels_are_switched(page):
    choose_and_wait(page)
    plate = (4, 30)  # of the person's label above the box
    assert pixel(page, plate)[3] > 200
    page.get_by_label('Labels').uncheck()
    assert pixel(page, plate) == [0, 0, 0, 0]
    page.get_by_label('Masks').uncheck()
    assert pixel(page, ON_PERSON) == [0, 0, 0, 0]
    assert np.count_nonzero(page.evaluate(BORDER_ALPHAS)) == 0
    page.get_by_label('Boxes').check()
    assert np.count_nonzero(page.evaluate(BORDER_ALPHAS)) >= 1
    assert pixel(page, ON_PERSON) == [0, 0, 0, 0]


#: The alphas across the left border of the person.
BORDER_ALPHAS = """() => {
  const canvas = document.getElementById('overlay');
  const zoom = canvas.width / 120;
  const data = canvas.getContext('2d').getImageData(10 * zoom - 3, 60 * zoom, 6, 1).data;
  return [...data].filter((value, i) => i % 4 === 3);
}"""


@pytest.mark.slow
def test_the_picture_is_saved_with_its_objects(page):
    choose_and_wait(page)
    page.get_by_label('Labels').uncheck()
    name, content = downloaded(page, 'Save PNG')
    saved = np.asarray(Image.open(io.BytesIO(content)).convert('RGB')).astype(int)
    assert name == 'scene_detections.png' and saved.shape == (*SIZE, 3)
    assert saved[OUTSIDE].tolist() == saved[ON_OTHER].tolist() == [GREY] * 3
    color = PALETTE[color_at(page, ON_PERSON)].astype(int)
    np.testing.assert_allclose(saved[ON_PERSON], GREY + FILL * (color - GREY), atol=2)


def test_the_answer_is_saved_as_it_was_sent(page, server):
    choose_and_wait(page)
    name, content = downloaded(page, 'Save JSON')
    assert name == 'scene_detections.json'
    assert content.decode('utf-8') == json.dumps(server.reply)


def test_an_error_is_one_line(page, server):
    server.reply = refusal(415, 'not an image')
    choose(page, b'no picture', '<b>notes</b>.txt', 'text/plain')
    alert = page.get_by_role('alert').filter(has_text='not an image')
    alert.wait_for()
    assert alert.text_content() == '<b>notes</b>.txt: not an image'  # as text
    assert alert.locator('b').count() == 0
    assert page.get_by_role('heading', name='Find the objects in a picture').is_visible()
    assert server.detections[0][2]['content-type'] == 'application/octet-stream'
    server.reply = answer(SIZE, OBJECTS)
    choose_and_wait(page)
    assert page.get_by_role('alert').text_content() == ''


@pytest.mark.slow
def test_a_busy_server_is_asked_again(page, server):
    server.reply = refusal(429, 'the queue is full')
    choose(page)
    page.get_by_role('alert').get_by_text('The server is busy').wait_for()
    assert pixel(page, OUTSIDE, 'picture') == [GREY, GREY, GREY, 255]
    server.reply = answer(SIZE, OBJECTS)
    page.get_by_role('button', name='Try again').click()
    page.locator('#objects button').first.wait_for()
    assert page.get_by_role('alert').text_content() == ''
    assert page.get_by_role('button', name='Try again').count() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'', 'scene.png: the file is empty.'), (b'x' * 2**17, 'scene.png: the file has 0.1 MiB, the server accepts 0.1')],
)
def test_a_file_that_the_server_would_refuse_is_not_sent(page, server, content, message):
    choose(page, content)
    page.get_by_role('alert').get_by_text(message).wait_for()
    assert server.detections == []


FAILURES = {
    'status': refusal(500, 'the server has failed\nsecret'),
    'too long': answer(SIZE, [{**OBJECTS[0], 'segmentation': {'size': (2, 2), 'counts': '9'}}]),
    'truncated': answer(SIZE, [{**OBJECTS[0], 'segmentation': {'size': SIZE, 'counts': 'P'}}]),
    'not JSON': Response('{"image"'),
}


@pytest.mark.slow
@pytest.mark.parametrize('reply', FAILURES.values(), ids=FAILURES)
def test_a_failing_server_is_one_line(page, server, reply):
    server.reply = reply
    choose(page)
    page.get_by_role('alert').get_by_text('server').wait_for()
    assert '\n' not in page.get_by_role('alert').text_content()
    assert page.locator('#stage').get_attribute('aria-busy') == 'false'


@pytest.mark.slow
def test_a_server_that_has_ended_is_one_line(page):
    page.route('**/v1/detect*', lambda route: route.abort())
    choose(page)
    page.get_by_role('alert').get_by_text('The server does not answer.').wait_for()


@pytest.mark.slow
def test_the_page_is_busy_until_the_answer(page, server):
    server.delay = 0.3
    choose(page)
    page.locator('#stage[aria-busy=true]').wait_for()
    page.locator('#objects button').first.wait_for()
    assert page.locator('#stage').get_attribute('aria-busy') == 'false'


@pytest.mark.slow
def test_the_last_of_two_pictures_wins(page, server):
    server.delay = 0.2
    server.reply = lambda accept, content: answer(SIZE, OBJECTS[: 1 if content == PICTURE else 2])
    choose(page, encode(np.zeros((*SIZE, 3), np.uint8)))
    page.locator('#stage[aria-busy=true]').wait_for()
    choose_and_wait(page)
    page.wait_for_timeout(250)
    assert listed(page) == ['person, score 0.90']
    assert pixel(page, OUTSIDE, 'picture') == [GREY, GREY, GREY, 255]


@pytest.mark.slow
def test_class_names_are_text(page, server):
    name = '<img src=x onerror=alert(1)>'
    server.reply = answer(SIZE, [detection(name, 0.9, PERSON)])
    choose_and_wait(page)
    move_to(page, ON_PERSON)
    assert listed(page) == [f'{name}, score 0.90']
    assert page.locator('#objects img, #tooltip img, #summary img').count() == 0


@pytest.mark.slow
def test_objects_without_masks_are_boxes(page, server):
    server.reply = answer(SIZE, [{**OBJECTS[0], 'segmentation': None}])
    choose_and_wait(page)
    move_to(page, ON_DOG)
    assert page.locator('#tooltip').text_content() == 'person 0.90'
    assert np.count_nonzero(page.evaluate(BORDER_ALPHAS)) >= 1


@pytest.mark.slow
def test_keypoints_are_drawn(browser, server, address):
    server.model = {**server.model, 'keypoints': {'names': ['a', 'b', 'c'], 'skeleton': [[0, 1], [1, 2]]}}
    server.reply = answer(SIZE, [{**OBJECTS[0], 'segmentation': None, 'keypoints': [20, 60, 1, 60, 60, 1, 60, 20, 0]}])
    with opened_page(browser, address) as page:
        choose_and_wait(page)
        assert pixel(page, (59.5, 40))[3] == 255  # on the line between the first two
        assert pixel(page, (40, 60))[3] == 0  # the third one is invisible
        page.get_by_label('Keypoints').uncheck()
        assert pixel(page, (59.5, 40))[3] == 0


@pytest.mark.slow
@pytest.mark.parametrize('is_turned', [True, False])
def test_orientation_is_that_of_the_server(browser, server, address, is_turned):
    stored = np.zeros((80, 120, 3), np.uint8)
    stored[:40, :60] = 255  # bright at the upper left; at the upper right after a rotation to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    server.model = {**server.model, 'input': {'apply_orientation': is_turned}}
    size = (120, 80) if is_turned else (80, 120)
    server.reply = answer(size, [detection('person', 0.9, rectangle(size, 0, 0, 5, 5))])
    with opened_page(browser, address) as page:
        choose(page, encode(stored, 'JPEG', exif=exif, quality=95), 'turned.jpg', 'image/jpeg')
        page.locator('#objects button').first.wait_for()
        height, width = size
        corners = [(y, x) for y in (10, height - 10) for x in (10, width - 10)]
        bright = [pixel(page, corner, 'picture', size)[0] > 128 for corner in corners]
    assert bright == ([False, True, False, False] if is_turned else [True, False, False, False])


@pytest.mark.slow
def test_pictures_that_the_browser_cannot_decode_come_from_the_server(page, server):
    def reply(accept, content):
        if accept == 'image/png':
            return Response(PICTURE, media_type='image/png')
        return answer(SIZE, OBJECTS)

    server.reply = reply
    choose(page, encode(np.zeros((*SIZE, 3), np.uint8), 'TIFF'), 'scene.tif', 'image/tiff')
    page.locator('#objects button').first.wait_for()
    assert [query for query, _, _ in server.detections] == ['score=0.05&masks=rle', 'score=1&masks=none']
    assert pixel(page, OUTSIDE, 'picture') == [GREY, GREY, GREY, 255]


def test_a_phone(browser, server, address):
    with opened_page(browser, address, viewport={'width': 390, 'height': 844}, has_touch=True, is_mobile=True) as page:
        sizes = '() => [document.documentElement.scrollWidth, innerWidth]'
        assert page.evaluate(sizes) == [390, 390]
        assert page.get_by_role('button', name='Take a photo').is_visible()
        assert page.locator('#photo').get_attribute('capture') == 'environment'
        choose_and_wait(page)
        assert page.evaluate(sizes) == [390, 390]
        box = page.locator('#overlay').bounding_box()
        assert box['width'] <= 390 and box['y'] + box['height'] <= 844
        page.locator('#overlay').tap(position={'x': box['width'] * 45.5 / 120, 'y': box['height'] * 40.5 / 80})
        assert page.get_by_role('button', name='dog, score 0.70').get_attribute('aria-pressed') == 'true'
        for button in page.get_by_role('button').all():
            assert button.bounding_box()['height'] >= 44


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_contrast_in_both_color_schemes(browser, server, address, scheme):
    with opened_page(browser, address, color_scheme=scheme) as page:
        background = page.evaluate('() => getComputedStyle(document.body).backgroundColor')
        assert (sum(map(int, re.findall(r'\d+', background))) > 380) == (scheme == 'light')
        texts = page.evaluate(CONTRASTS)
        server.reply = refusal(429, 'busy')
        choose(page)
        page.get_by_role('button', name='Try again').wait_for()
        texts += page.evaluate(CONTRASTS)
        server.reply = answer(SIZE, OBJECTS)
        choose_and_wait(page)
        page.wait_for_timeout(200)  # transitions of colours
        move_to(page, ON_PERSON)
        texts += page.evaluate(CONTRASTS)
    assert len(texts) > 25 and [(text, contrast) for text, contrast in texts if contrast < 4.5] == []


@pytest.mark.slow
def test_reduced_motion(browser, server, address):
    server.delay = 0.2
    with opened_page(browser, address, reduced_motion='reduce') as page:
        choose(page)
        page.locator('#stage[aria-busy=true]').wait_for()
        style = "() => getComputedStyle(document.querySelector('.progress'), '::after').animationName"
        assert page.evaluate(style) == 'none'


@pytest.mark.slow
def test_roles_and_names(page):
    for role, name in [('banner', None), ('main', None), ('navigation', 'Pages'), ('region', 'Picture')]:
        assert page.get_by_role(role, name=name).count() == 1, role
    choose_and_wait(page)
    for role, name in [
        ('region', '2 objects'), ('slider', 'Lowest score'), ('group', 'Show'), ('checkbox', 'Masks'),
        ('checkbox', 'Boxes'), ('checkbox', 'Labels'), ('list', 'Objects'), ('group', 'Download'),
        ('button', 'Save PNG'), ('button', 'Save JSON'), ('button', 'Use the camera'), ('heading', 'Mask R-CNN'),
    ]:  # fmt: skip
        assert page.get_by_role(role, name=name).count() == 1, name
    assert page.get_by_role('listitem').count() == 2
    assert page.locator('html').get_attribute('lang') == 'en'


@pytest.mark.slow
def test_a_large_picture_is_scaled_to_the_page(page, server):
    size = (2000, 3000)
    server.reply = answer(size, [detection('person', 0.9, rectangle(size, 500, 500, 1500, 2500))])
    choose(page, encode(np.full(size, GREY, np.uint8)))
    page.locator('#objects button').first.wait_for()
    inner, outer = (page.locator(name).bounding_box() for name in ('#overlay', '#viewport'))
    assert inner['width'] <= outer['width'] and inner['height'] <= outer['height'] + 1
    assert max(inner['width'] / outer['width'], inner['height'] / outer['height']) > 0.99
    assert inner['width'] / inner['height'] == pytest.approx(1.5, rel=0.01)
    page.set_viewport_size({'width': 700, 'height': 600})
    page.wait_for_timeout(100)
    assert page.locator('#overlay').bounding_box()['width'] <= 700
    assert pixel(page, (1000, 1500), size=size)[3] > 0
