"""The READMEs are short and agree with each other; what they and the pages in docs/ name and link to exists."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.commands import COMMAND_NAMES
from tests.support.links import broken_links, links, prose
from tests.support.pages import find_blocks

READMES = ('README.md', 'README_JP.md')

#: The pages of the site.
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').rglob('*.md'))

#: Other texts with links.
TEXTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob('*.md'), ROOT / 'modelfiles' / 'README.md'])


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding='utf-8')


# Size and structure


@pytest.mark.parametrize('name', READMES)
def test_a_readme_is_short(name):
    lines = read(name).splitlines()
    assert len(lines) <= 160
    assert [line for line in lines if len(line) > 140] == []


def code_lines(name: str) -> list[str]:
    """Return the commands and the code of a README without their comments, and why blocks are not run."""
    blocks = [block for block in find_blocks(read(name), name) if block.language in ('sh', 'python')]
    lines = [line for block in blocks for line in [f'{block.language} {block.reason}', *block.code.splitlines()]]
    return [re.sub(r'\s+#.*', '', line) for line in lines]


def test_both_readmes_contain_the_same_code():
    english, japanese = map(code_lines, READMES)
    assert english == japanese
    assert 'pip install .' in english and 'import mask_rcnn' in english


def structure(text: str) -> list[str]:
    """Return the kind of each heading, block, table row, list item and picture, in their order."""
    patterns = {
        r'#+ ': lambda found: found[0],
        r'```(\w*)': lambda found: found[0],
        r'\|.*': lambda found: f'row of {found[0].count("|") - 1} cells',
        r'- ': lambda found: 'item',
        r'!\[.*\]\((.*)\)': lambda found: found[1],
        r'<!--.*-->': lambda found: found[0],
    }
    found = [(re.match(pattern, line), kind) for line in text.splitlines() for pattern, kind in patterns.items()]
    return [kind(match) for match, kind in found if match]


def test_both_readmes_have_the_same_structure():
    english, japanese = map(read, READMES)
    assert structure(english) == structure(japanese)
    assert links(english) == links(japanese)
    assert structure(english).count('## ') >= 6


@pytest.mark.parametrize('name', READMES)
def test_a_readme_contains_no_options(name):
    """Options are described by ``--help`` and in docs/commands.md; commands may use them."""
    assert re.findall(r'--[a-z][\w-]*', re.sub(r'<!--.*?-->', '', prose(read(name)))) == []
    assert not re.search(r'^\| `-', read(name), re.MULTILINE)


# Names and links


def test_the_pages_name_every_command():
    text = '\n'.join(read(name) for name in PAGES if name != 'docs/commands.md')
    entry_points = ['make demo', 'make demo-coco', 'make notebooks', 'make gpu-check', './getcoco.sh']
    entry_points += ['python demo.py', 'python train.py', *(f'mask-rcnn {command}' for command in COMMAND_NAMES)]
    entry_points += [f'python utils/{path.name}' for path in (ROOT / 'utils').glob('*_parser.py')]
    assert [name for name in entry_points if name not in text] == []


def named_files(text: str) -> set[str]:
    """Return the paths that a text names: in backticks, and as scripts to run."""
    folders = 'mask_rcnn|tests|scripts|utils|docs|modelfiles|notebooks'
    return {
        *re.findall(rf'`((?:{folders})/[\w./]*[\w/])`', text),
        *re.findall(r'python ((?:(?:scripts|utils)/[\w/]+|demo|train)\.py)', text),
    }


def test_named_files_are_found():
    text = 'See `docs/a.md` and `tests/golden/`; run `python utils/b.py --flag`. ![picture](docs/c.png) `output.png`'
    assert named_files(text) == {'docs/a.md', 'tests/golden/', 'utils/b.py'}


#: Weights that users get from elsewhere or that commands write.
WRITTEN = re.compile(r'modelfiles/(model_final\.pkl|(e2e_)?(mask_rcnn|mine|shapes|back)\w*[\w.-]*\.npz)')


@pytest.mark.parametrize('name', [*READMES, *PAGES])
def test_every_named_file_exists(name):
    assert [
        path for path in sorted(named_files(read(name))) if not (ROOT / path).exists() and not WRITTEN.fullmatch(path)
    ] == []


def test_broken_links_are_found(tmp_path):
    root = tmp_path / 'checkout'
    (root / 'docs').mkdir(parents=True)
    (tmp_path / 'outside.md').touch()
    (root / 'docs' / 'other.md').write_text('# Title\n\n## `--flag` of [it](x.md), twice\n\n## Same\n\n## Same\n')
    page = root / 'docs' / 'page.md'
    page.write_text(
        '# A page\n[a](other.md) [b](other.md#--flag-of-it-twice) [c](other.md#same-1) [d](#a-page) [e](https://x.y/z.md)\n'
        '`[code](none.md)` <!-- [comment](none.md) -->\n```text\n[block](none.md)\n# no heading\n```\n'
    )
    assert links(page.read_text()) == ['other.md', 'other.md#--flag-of-it-twice', 'other.md#same-1', '#a-page']
    assert broken_links(page, root) == []
    page.write_text(
        '# A page\n[a](none.md) [b](other.md#same-2) [c](#no-heading) [d](../../outside.md) ![e](none.png "title")\n'
    )
    expected = ['none.md', 'other.md#same-2', '#no-heading', '../../outside.md', 'none.png']
    assert broken_links(page, root) == expected


@pytest.mark.parametrize('name', [*TEXTS, *PAGES])
def test_every_link_leads_somewhere(name):
    assert broken_links(ROOT / name, ROOT) == []


def test_every_page_is_linked():
    linked = {
        (Path(name).parent / link.partition('#')[0]).as_posix()
        for name in [*READMES, *PAGES]
        for link in links(read(name))
    }
    stubs = {'docs/contributing.md': 'CONTRIBUTING.md', 'docs/changelog.md': 'CHANGELOG.md'}  # links to these files
    assert set(stubs.values()) - linked == set()
    guides = {name for name in PAGES if not name.startswith('docs/api/')} - {'docs/STYLE.md', *stubs}
    assert guides - {re.sub(r'[\w-]+/\.\./', '', link) for link in linked} == set()


def test_getcoco_is_executable(root):
    assert (root / 'getcoco.sh').stat().st_mode & 0o111
