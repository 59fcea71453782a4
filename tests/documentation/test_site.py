"""The documentation site: its navigation, its links, and that it needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.browser import opened_page, running_chromium
from tests.support.environment import subprocess_environment


def navigation(root) -> list[str]:
    """Return the pages of the navigation in their order."""

    def pages(node):
        if isinstance(node, str):
            yield node
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from pages(child)

    return list(pages(yaml.safe_load((root / 'mkdocs.yml').read_text(encoding='utf-8'))['nav']))


def test_the_navigation_contains_every_page_once(root):
    pages = navigation(root)
    assert sorted(pages) == sorted(set(pages))
    docs = root / 'docs'
    assert set(pages) == {path.relative_to(docs).as_posix() for path in docs.rglob('*.md')}


def test_pages_of_the_root_are_named_on_github(root):
    from site_hooks import ROOT_FILES

    for page, name in ROOT_FILES.items():
        assert f'(../{name})' in (root / 'docs' / page).read_text(encoding='utf-8')


def misplaced_blocks(text: str) -> list[str]:
    """Return the blocks that are part of a list item on GitHub, but not in the site, which needs four spaces."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r'(?:^ {1,3}(?=[-*] |\d+\. |```)|(?<=\n\n) {1,3}(?=\S))[^\n]*', text, re.MULTILINE)


def test_blocks_in_lists_have_four_spaces(root):
    assert misplaced_blocks('- a\n  b\n\n  c\n\n    d\n  - e\n    - f\n\n1. g\n   ```sh\n') == [
        '  c',
        '  - e',
        '   ```sh',
    ]
    assert misplaced_blocks('```text\n- a\n  - b\n\n c\n```\n') == []
    files = [*root.glob('docs/**/*.md'), *(root / name for name in ('CONTRIBUTING.md', 'CHANGELOG.md'))]
    texts = {path.name: path.read_text(encoding='utf-8') for path in files if path.exists()}
    assert {name: misplaced_blocks(text) for name, text in texts.items() if misplaced_blocks(text)} == {}


LINKS = """\
[guide](training.md#on-coco) [site](https://example.org/a) [here](#here) ![picture](example.jpg)
[the licence](../LICENSE), [`mask_rcnn/api.py`](../mask_rcnn/api.py), [broken](../no-such-file)

```text
[kept](../LICENSE)
```
[log](../CHANGELOG.md#020)
"""


def test_options_are_not_broken_at_their_hyphens():
    from site_hooks import on_page_content

    assert on_page_content('<p>--a-b <code>train --min-size 8, -r</code></p>') == (
        '<p>--a-b <code>train <span class="option">--min-size</span> 8, <span class="option">-r</span></code></p>'
    )
    command = '<code><span>train<span class="w"> </span>{}<span class="w"> </span>x-y\n</span></code>'
    assert on_page_content(command.format('--min-size')) == command.format('<span class="option">--min-size</span>')


def test_links_to_files_outside_of_the_site_become_text():
    from site_hooks import site_links

    page = Path('docs/page.md')
    assert site_links(LINKS, page, page) == (
        LINKS.replace('[the licence](../LICENSE)', 'the licence (`LICENSE`)')
        .replace('[`mask_rcnn/api.py`](../mask_rcnn/api.py)', '`mask_rcnn/api.py`')
        .replace('[log](../CHANGELOG.md#020)', '[log](changelog.md#020)')
    )


def test_links_of_a_file_of_the_root_are_those_of_its_page():
    from site_hooks import site_links

    text = '[style](docs/STYLE.md), [video](docs/video.md#a), [tests](tests/), [home](https://example.org)'
    expected = '[style](STYLE.md), [video](video.md#a), `tests`, [home](https://example.org)'
    assert site_links(text, Path('CONTRIBUTING.md'), Path('docs/contributing.md')) == expected
    expected = '[style](../STYLE.md), [video](../video.md#a), `tests`, [home](https://example.org)'
    assert site_links(text, Path('CONTRIBUTING.md'), Path('docs/extending/backbone.md')) == expected


@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    """The folder of a strict build."""
    pytest.importorskip('mkdocs')
    pytest.importorskip('mkdocstrings_handlers.python')
    folder = tmp_path_factory.mktemp('docs') / 'site'
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
    env = subprocess_environment(root) | {'NO_MKDOCS_2_WARNING': '1'}
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.slow
def test_the_site_names_no_resource_of_another_origin(site):
    resources = re.compile(
        r'<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)="?(?:https?:)?//[^>]*|@import|url\((?:https?:)?//[^)]*'
    )
    files = [path for path in site.rglob('*') if path.suffix in ('.html', '.css')]
    assert len(files) > 40
    assert [match for path in files for match in resources.findall(path.read_text(encoding='utf-8'))] == []


@pytest.mark.slow
def test_no_page_links_to_a_folder(site):
    """A browser lists the files of a folder if the site is opened as files."""
    link = re.compile(r'<a\b[^>]*?\bhref="?([^" >]+)')
    pages = {path: link.findall(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}
    assert len(pages) > 40 and all(pages.values())
    targets = {(path, re.sub('[?#].*', '', target)) for path, found in pages.items() for target in found}
    local = {(path, target) for path, target in targets if target and not re.match('[a-z]+:', target)}
    folders = {(path.name, target) for path, target in local if not (path.parent / target.lstrip('/')).is_file()}
    assert folders == set()


@pytest.mark.slow
def test_the_search_ranks_detectron_above_detectron2(site):
    with running_chromium() as browser, opened_page(browser, (site / 'index.html').as_uri(), 'file://') as page:
        page.locator('.md-search__input').press_sequentially('Detectron')
        page.wait_for_selector('.md-search-result__link[href*="detectron.html"]', state='attached', timeout=60000)
        first = page.locator('.md-search-result__link').first.get_attribute('href')
        assert '/coming-from/detectron.html' in first


@pytest.mark.slow
def test_the_site_is_read_and_searched_as_files(site):
    with running_chromium() as browser, opened_page(browser, (site / 'index.html').as_uri(), 'file://') as page:
        page.locator('.md-search__input').press_sequentially('subdivisions')
        page.wait_for_selector('.md-search-result__link', state='attached', timeout=60000)
        links = page.eval_on_selector_all('.md-search-result__link', 'links => links.map(link => link.href)')
        assert any('/commands.html' in link and '#mask-rcnn-train' in link for link in links)
        page.goto((site / 'api' / 'mask_rcnn.html').as_uri())
        assert page.locator('[id="mask_rcnn.load"]').count()
