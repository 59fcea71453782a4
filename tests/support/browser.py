"""A headless Chromium and its pages, for tests."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

#: Relative luminance and contrast of the texts of a page (WCAG 2.1): the text and its contrast, the lowest first.
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const linear = channels(color).slice(0, 3).map((value) => {
      const fraction = value / 255;
      return fraction <= 0.04045 ? fraction / 12.92 : ((fraction + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const backgroundOf = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return (channels(color)[3] ?? 1) > 0 ? color : backgroundOf(element.parentElement);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (text && element.checkVisibility() && !element.closest('script, noscript, .hidden, .skip, :disabled')) {
      const pair = [luminance(getComputedStyle(element).color), luminance(backgroundOf(element))];
      found.push([text, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)]);
    }
  }
  return found.sort((a, b) => a[1] - b[1]);
}"""


@contextlib.contextmanager
def running_chromium():
    """Yield a headless Chromium with a camera that films a test pattern; the test is skipped without a browser."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if path is None:
        pytest.skip('no Chromium on the PATH')
    options = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    if hasattr(os, 'geteuid') and os.geteuid() == 0:
        options.append('--no-sandbox')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened_page(browser, address, origin=None, **options):
    """Yield a page; at the end, fail if it has logged an error or sent a request to another origin.

    Args:
        browser: The browser.
        address: The address to open.
        origin: The origin of all requests; by default ``address``.
        **options: Arguments of Playwright's ``new_context``.
    """
    context = browser.new_context(**{'viewport': {'width': 1000, 'height': 700}, **options})
    context.set_default_timeout(5000)
    page = context.new_page()
    errors, addresses = [], []
    page.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('request', lambda request: addresses.append(request.url))
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    origin = (origin or address).rstrip('/') + '/'
    assert [url for url in addresses if not url.startswith((origin, f'blob:{origin}'))] == []
    # The browser itself logs the status of answers such as 429.
    assert [text for text in errors if not text.startswith('Failed to load resource')] == []


def downloaded(page, button):
    """Return the name and the content of the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role('button', name=button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()
