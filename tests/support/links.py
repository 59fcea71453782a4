"""Links and anchors of Markdown files; see :mod:`tests.support.pages` for their blocks."""

import re
from pathlib import Path

_BLOCK = re.compile(r'^ *```.*?^ *```$', re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return a text without its fenced blocks, comments and code in backticks."""
    text = re.sub(r'<!--.*?-->', '', _BLOCK.sub('', text), flags=re.DOTALL)
    return re.sub(r'(`+).+?\1', '', text)


def links(text: str) -> list[str]:
    """Return the targets of the links and images that are not addresses of other sites."""
    targets = re.findall(r'\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)', prose(text))
    return [target for target in targets if not re.match(r'[a-z]+:', target)]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings by GitHub's rule, and those that the text sets itself."""
    found = set(re.findall(r'\b(?:id|name)="([^"]+)"', text))
    for title in re.findall(r'^#{1,6} +(.+?) *#*$', _BLOCK.sub('', text), re.MULTILINE):
        title = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', title)
        slug = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        number, anchor = 0, slug
        while anchor in found:
            number += 1
            anchor = f'{slug}-{number}'
        found.add(anchor)
    return found


def broken_links(page: Path, root: Path) -> list[str]:
    """Return the links of a page to files or anchors that do not exist.

    Args:
        page: A Markdown file.
        root: The folder that contains the targets: links out of it are broken.
    """
    broken = []
    for link in links(page.read_text(encoding='utf-8')):
        name, _, anchor = link.partition('#')
        target = (page.parent / name).resolve() if name else page.resolve()
        if not target.exists() or not target.is_relative_to(root.resolve()):
            broken.append(link)
        elif anchor and target.suffix == '.md':
            text = target.read_text(encoding='utf-8')
            has_names = re.search('^::: ', text, re.MULTILINE)  # the site adds anchors of the names
            if not has_names and anchor not in anchors(text):
                broken.append(link)
    return broken
