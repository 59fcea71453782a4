"""CITATION.cff follows the Citation File Format 1.2.0 in its essential rules, and cites this version."""

import datetime
import re

import pytest
import yaml

import mask_rcnn

#: The keys of the format (schema 1.2.0) that a file and a reference may have; the file uses no others.
FILE_KEYS = {
    *('abstract', 'authors', 'cff-version', 'commit', 'contact', 'date-released', 'doi', 'identifiers', 'keywords'),
    *('license', 'license-url', 'message', 'preferred-citation', 'references', 'repository', 'repository-artifact'),
    *('repository-code', 'title', 'type', 'url', 'version'),
}
REFERENCE_KEYS = {
    *('abstract', 'authors', 'collection-title', 'conference', 'doi', 'end', 'journal', 'month', 'pages', 'start'),
    *('title', 'type', 'url', 'volume', 'year'),
}
PERSON_KEYS = {
    'affiliation',
    'email',
    'family-names',
    'given-names',
    'name-particle',
    'name-suffix',
    'orcid',
    'website',
}
ENTITY_KEYS = {'address', 'city', 'country', 'email', 'name', 'website'}


@pytest.fixture(scope='module')
def citation(root):
    return yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))


def check_authors(authors):
    assert authors
    for author in authors:
        assert author.keys() <= (ENTITY_KEYS if 'name' in author else PERSON_KEYS)
        assert all(isinstance(value, str) and value for value in author.values())


def test_the_file_has_the_required_keys(citation):
    assert citation['cff-version'] == '1.2.0' and citation['type'] == 'software'
    assert {'authors', 'cff-version', 'message', 'title'} <= citation.keys() <= FILE_KEYS
    assert all(isinstance(citation[key], str) and citation[key] for key in ('message', 'title', 'abstract', 'version'))
    assert len(set(citation['keywords'])) == len(citation['keywords'])
    check_authors(citation['authors'])
    assert citation['authors'] == [{'name': 'The authors of Mask R-CNN on Chainer'}]


def test_it_cites_this_version(root, citation):
    assert citation['version'] == mask_rcnn.__version__
    changelog = (root / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'## [{citation["version"]}] - {citation["date-released"]}\n' in changelog
    datetime.date.fromisoformat(citation['date-released'])  # a string, as the format requires
    assert citation['license'] == 'MIT' and (root / 'LICENSE').read_text().startswith('MIT License')


def test_it_cites_the_paper(citation):
    (paper,) = citation['references']
    assert {'authors', 'title', 'type'} <= paper.keys() <= REFERENCE_KEYS
    check_authors(paper['authors'])
    assert [author['family-names'] for author in paper['authors']] == ['He', 'Gkioxari', 'Dollár', 'Girshick']
    assert (paper['title'], paper['year'], paper['type']) == ('Mask R-CNN', 2017, 'conference-paper')
    assert paper['doi'] == '10.1109/ICCV.2017.322' and re.fullmatch(r'10\.\d{4,9}(\.\d+)?/\S+', paper['doi'])
    assert paper['conference'].keys() <= ENTITY_KEYS | {'date-end', 'date-start', 'location'}
