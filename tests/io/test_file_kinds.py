"""The kinds of files by their first bytes."""

import json

import pytest

from mask_rcnn.io.file_kinds import ARCHIVE, IMAGE, N_KIND_BYTES, POINTER, REFUSAL, VIDEO, WEIGHTS, describe_kind
from tests.support import wrong_files

CASES = [
    (kind, content)
    for kind, contents in (
        (WEIGHTS, wrong_files.WEIGHTS),
        (IMAGE, wrong_files.IMAGES),
        (VIDEO, wrong_files.VIDEOS),
        (ARCHIVE, wrong_files.ARCHIVES),
        (POINTER, wrong_files.POINTERS),
        (REFUSAL, wrong_files.REFUSALS),
    )
    for content in contents.values()
]


@pytest.mark.parametrize(('kind', 'content'), CASES)
def test_the_first_bytes_name_the_kind(kind, content):
    assert describe_kind(content[:N_KIND_BYTES]) == kind


@pytest.mark.parametrize('padding', range(200, 262))
def test_the_words_in_a_json_file_do_not_matter(padding):
    """``ustar`` at byte 257 names a tar archive, ``wide`` at byte 4 a video."""
    text = json.dumps({'wide': ' ' * padding + 'ustar', 'images': []})
    assert describe_kind(text.encode()) == describe_kind(f'{{  {text[1:]}'.encode()) == 'a JSON file'


@pytest.mark.parametrize('content', [b'', b'words', b'\x00', bytes(512)])
def test_other_files_have_no_kind(content):
    assert describe_kind(content) == ''


@pytest.mark.parametrize('content', [b'not found in the lexicon', b'404 0.5 0.5 0.2 0.2', b'{"messages": []}'])
def test_texts_that_begin_like_a_refusal_are_none(content):
    assert describe_kind(content) != REFUSAL
