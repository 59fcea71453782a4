"""A browser and a server of the page with prepared answers, shared by the tests of the folder."""

import pytest

from tests.support.browser import opened_page, running_chromium
from tests.support.page_scene import OBJECTS, SIZE
from tests.support.page_server import PageServer, answer


@pytest.fixture(scope='package')
def browser():
    """A headless Chromium."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture(scope='package')
def running_server():
    """The server and its address."""
    server = PageServer()
    with server.running() as address:
        yield server, address


@pytest.fixture
def server(running_server):
    """The server, whose answer has three objects."""
    running_server[0].reset()
    running_server[0].reply = answer(SIZE, OBJECTS)
    return running_server[0]


@pytest.fixture
def address(running_server):
    """The address of the server."""
    return running_server[1]


@pytest.fixture
def page(browser, server, address):
    """The page of the server."""
    with opened_page(browser, address) as page:
        yield page
