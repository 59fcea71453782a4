"""The conversion of docstrings for the site: roles, comments of constants, literal blocks."""

import textwrap

import pytest


def link(kind, target, title):
    return f'[{kind} {title}]({target})'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (':func:`mask_rcnn.load` reads', '[func mask_rcnn.load](mask_rcnn.load) reads'),
        ('(:class:`~chainer.Link`)', '([class Link](chainer.Link))'),
        (':meth:`predict <mask_rcnn.MaskRCNN.predict>`', '[meth predict](mask_rcnn.MaskRCNN.predict)'),
        (':mod:`a` and :data:`B`.', '[mod a](a) and [data B](B).'),
        (':func:`a.\n    b`', '[func a. b](a. b)'),
        ('``:option`` and `code`', '``:option`` and `code`'),
    ],
)
def test_roles(text, expected):
    from docstring_roles import replace_roles

    assert replace_roles(text, link) == expected


def test_literal_blocks_are_fenced():
    from docstring_roles import literal_blocks

    text = 'In a notebook::\n\n    import x\n\n    x.show()\n\nMore text.\n\n    indented code\n\nThe end::\n\n    y'
    assert literal_blocks(text) == (
        'In a notebook:\n\n```python\nimport x\n\nx.show()\n```\n\nMore text.\n\n    indented code\n\nThe end:\n\n'
        '```python\ny\n```'
    )


def test_text_without_literal_blocks_stays():
    from docstring_roles import literal_blocks

    text = 'Return ``a::b``.\n\nArgs:\n    x: A number.\n    y: A name.\n\nReturns:\n    z'
    assert literal_blocks(text) == text


def test_the_comment_of_a_constant():
    from docstring_roles import comment_before

    lines = ['#: Not this.', '', '#: The limit', '#: of a list.', 'LIMIT = 3', 'OTHER = 4']
    assert comment_before(lines, 5) == 'The limit\nof a list.'
    assert comment_before(lines, 6) == ''
    assert comment_before(lines, 1) == ''


@pytest.fixture
def example(tmp_path):
    """The package ``example``, as the site reads it."""
    griffe = pytest.importorskip('griffe')
    from docstring_extension import PackageDocstrings

    package = tmp_path / 'example'
    package.mkdir()
    (package / '__init__.py').write_text(
        textwrap.dedent('''
            """Names that are imported late.

            :func:`load` and :class:`json.JSONEncoder`.
            """
            from typing import TYPE_CHECKING

            if TYPE_CHECKING:
                from example.load import load
                from example.other import Child

            #: The limit of :func:`load`.
            LIMIT = 3
            '''),
    )
    (package / 'load.py').write_text(
        'def load():\n    """Load; see :meth:`example.Child.run` and :func:`missing`."""\n'
    )
    (package / 'other.py').write_text(
        textwrap.dedent('''
            class Base:
                def run(self):
                    """Run."""

            class Child(Base):
                """Calls :meth:`run` and :mod:`.load`."""
            '''),
    )
    loader = griffe.GriffeLoader(
        search_paths=[tmp_path], extensions=griffe.load_extensions(PackageDocstrings), allow_inspection=False
    )
    return loader.load('example')


def test_roles_become_links_to_the_objects_that_they_name(example, caplog):
    linked = '<autoref identifier="example.load.load" optional><code>load()</code></autoref>'
    assert linked in example.docstring.value  # the function, not the module of the same name
    assert '<code>json.JSONEncoder</code>' in example.docstring.value
    assert linked in example['LIMIT'].docstring.value
    child = example['other.Child'].docstring.value
    assert '<autoref identifier="example.other.Base.run" optional>' in child
    assert '<autoref identifier="example.load' in child


def test_a_name_that_does_not_exist_is_a_warning(caplog, request):
    example = request.getfixturevalue('example')
    assert [record.getMessage() for record in caplog.records if record.levelname == 'WARNING'] == [
        'example.load.load: the docstring refers to missing, which does not exist'
    ]
    assert '<code>missing()</code>' in example['load.load'].docstring.value
