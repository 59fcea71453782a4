"""Numbers with nouns."""

import ast
import re
from collections.abc import Iterator

import pytest

from mask_rcnn.io.wording import counted
from tests.test_style import FILES

# Numbers that can be 1: lengths, sums, and variables that are called n, n_..., count or iteration.
_COUNT = re.compile(r'(?:len|sum)\([^A-Z]*\)|(?:.*\.)?(?:n|n_[a-z_]+|count|iteration)|[\w.]+\.(?:total|sum|max)\(\)')
# Plural nouns, after up to two adjectives: not words such as class, this, plus and bias.
_PLURAL = re.compile(r'(?: (?!of |with|times|that )[a-z]+){0,2}? (?!times)[A-Za-z]*[^\Wsiua]s\b')


def uncounted(source: str) -> Iterator[tuple[int, str]]:
    """Yield the numbers in front of a plural noun in formatted strings: ``1 classes`` would be possible."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for field, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(field, ast.FormattedValue) and isinstance(text, ast.Constant):
                number, plural = ast.unparse(field.value), _PLURAL.match(text.value)
                if plural and _COUNT.fullmatch(number):
                    yield field.lineno, f'{{{number}}}{plural[0]}'


def test_one_is_singular_and_every_other_number_plural():
    assert [counted(n, 'layer') for n in (0, 1, 2)] == ['0 layers', '1 layer', '2 layers']
    assert [counted(n, 'box', 'boxes') for n in (0, 1, 2)] == ['0 boxes', '1 box', '2 boxes']


def test_the_number_has_the_given_format():
    assert [counted(n, 'value', spec=',') for n in (1, 2000)] == ['1 value', '2,000 values']
    assert [counted(n, 'minute', spec='g') for n in (1.0, 0.5)] == ['1 minute', '0.5 minutes']
    assert [counted(n, 'object', spec='.0f') for n in (1.4, 1.6)] == ['1 object', '2 objects']


def test_a_verb_agrees_with_the_number():
    assert [counted(n, 'box is', 'boxes are') for n in (1, 2)] == ['1 box is', '2 boxes are']


def test_no_number_stands_in_front_of_a_plural_noun():
    """``1 classes`` is impossible: the texts of the program join numbers with nouns by ``counted``."""
    assert len(FILES) > 300
    found = [(path.name, *place) for path in FILES for place in uncounted(path.read_text(encoding='utf-8'))]
    assert found == [], 'write counted(n, "box", "boxes"), with a verb counted(n, "box is", "boxes are")'


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('{len(x)} classes', True),
        ('{self.n_taken} arrays loaded', True),
        ('{counts.total()} training images', True),
        ('{n:,} broken images', True),
        ('{counted(len(x), "class", "classes")} ', False),
        ('{len(MAPS)} levels', False),
        ('{height} x {width} pixels', False),
        ('{n} without objects', False),
        ('{n} class', False),
        ('{n} times', False),
        ('image {image_id} has masks', False),
    ],
)
def test_numbers_with_plural_nouns_are_found(text, found):
    assert bool(list(uncounted(f"f'{text}'"))) == found
