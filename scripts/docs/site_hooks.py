"""Hooks of MkDocs: pages that are files of the repository's root, links, and the order of search results."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Page -> the file of the root that it shows.  On GitHub, the page is a link to this file.
ROOT_FILES = {'contributing.md': 'CONTRIBUTING.md', 'changelog.md': 'CHANGELOG.md'}

#: Page -> the factor of its score in the search.  GitHub would show a front matter with ``boost`` as a table.
SEARCH_BOOSTS = {'coming-from/detectron.md': 1.3}

_PAGES = {Path(name): Path('docs', page) for page, name in ROOT_FILES.items()}

_LINK = re.compile(r'(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^()\s]+)\)')
_CODE = re.compile(r'<code>[^<]+</code>')
_HIGHLIGHTED_OPTION = re.compile(r'(?<=</span>)--[a-z][\w-]*')
_OPTION = re.compile(r'(?<![\w-])--?[a-z][\w-]*')
_FENCE = re.compile(r'^(?P<fence>```+|~~~+).*?^(?P=fence)[ ]*$', re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> None:
    """Give headings the anchors that GitHub gives them: links to them work in both places."""
    from pymdownx import slugs  # the tests run without it

    config['mdx_configs'].setdefault('toc', {})['slugify'] = slugs.slugify(case='lower')


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """Return the Markdown of a page: MkDocs calls this before it converts the page."""
    if page.file.src_uri in SEARCH_BOOSTS:
        page.meta['search'] = {'boost': SEARCH_BOOSTS[page.file.src_uri]}
    path = Path('docs', page.file.src_uri)
    if path.name in ROOT_FILES and path.parent == Path('docs'):
        path = Path(ROOT_FILES[path.name])
        markdown = (ROOT / path).read_text(encoding='utf-8')
    return site_links(markdown, path, Path('docs', page.file.src_uri))


def on_page_content(html: str, **kwargs: Any) -> str:
    """Return the HTML of a page in which no option of a command is broken at its hyphens."""
    option = r'<span class="option">\g<0></span>'
    return _CODE.sub(lambda code: _OPTION.sub(option, code[0]), _HIGHLIGHTED_OPTION.sub(option, html))


def site_links(markdown: str, source: Path, page: Path) -> str:
    """Return Markdown whose relative links are those of a page.

    Args:
        markdown: The text of a file.
        source: The path of the file in the repository.
        page: The path of the page that shows it.

    Returns:
        The text.  Links to files of the repository that are not part of the site are text: the address of the
        repository is not known, and the site is also read without it.  Other links stay, also broken ones, so that
        MkDocs reports them.
    """

    def convert(match: re.Match[str]) -> str:
        target, _, anchor = match['target'].partition('#')
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        path = _PAGES.get(path, path)
        if path.parts[0] == 'docs':
            new = os.path.relpath(path, page.parent).replace(os.sep, '/')
            return f'[{match["text"]}]({new}{"#" + anchor if anchor else ""})'
        exists = path.parts[0] != '..' and (ROOT / path).exists()
        return _without_link(match['text'], path) if exists else match[0]

    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(convert, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return ''.join([*pieces, _LINK.sub(convert, markdown[end:])])


def _without_link(text: str, path: Path) -> str:
    """Return the text of a link with the path that it leads to, unless the text is the path."""
    name = path.as_posix()
    return f'`{name}`' if text.strip('`') in (name, path.name) else f'{text} (`{name}`)'
