"""The forms of issues; tests/test_readme.py checks the links of the pages for contributors."""

import re

import pytest
import yaml

FORMS = ('bug', 'feature', 'question', 'wrong-detections')
PAGES = ('CODE_OF_CONDUCT.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md')


@pytest.fixture(params=FORMS)
def form(root, request):
    path = root / '.github' / 'ISSUE_TEMPLATE' / f'{request.param}.yml'
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def test_the_forms_have_what_github_requires(form):
    assert form.keys() == {'name', 'description', 'labels', 'body'}
    identifiers = [part['id'] for part in form['body'] if part['type'] != 'markdown']
    assert identifiers and len(set(identifiers)) == len(identifiers)
    for part in form['body']:
        assert part['type'] in ('markdown', 'textarea', 'input', 'dropdown', 'checkboxes')
        assert part['attributes']['value' if part['type'] == 'markdown' else 'label']
        assert part.keys() <= {'type', 'id', 'attributes', 'validations'}
        if part['type'] in ('dropdown', 'checkboxes'):
            assert part['attributes']['options']


@pytest.mark.parametrize('name', ['bug', 'wrong-detections'])
def test_reports_require_the_output_of_doctor(root, name):
    body = yaml.safe_load((root / '.github' / 'ISSUE_TEMPLATE' / f'{name}.yml').read_text())['body']
    (part,) = [part for part in body if part.get('id') == 'doctor']
    assert part['attributes']['label'] == 'mask-rcnn doctor --json' and part['validations']['required']


def test_there_are_no_other_forms(root):
    names = {path.name for path in (root / '.github' / 'ISSUE_TEMPLATE').iterdir()}
    assert names == {f'{name}.yml' for name in FORMS} | {'config.yml'}
    config = yaml.safe_load((root / '.github' / 'ISSUE_TEMPLATE' / 'config.yml').read_text())
    assert config == {'blank_issues_enabled': True}


def links_of_forms(root):
    """Yield a form and the path of each link to another file of the repository."""
    for path in (root / '.github').rglob('*.yml'):
        # An issue's page is OWNER/NAME/issues/NUMBER, a file's OWNER/NAME/blob/HEAD/FILE.
        for target in re.findall(r'\]\(\.\./blob/HEAD/([^)#]+)', path.read_text(encoding='utf-8')):
            yield path.name, target


def test_links_of_forms_lead_to_files(root):
    found = set(links_of_forms(root))
    assert ('bug.yml', 'SECURITY.md') in found
    assert sorted(f'{name}: {target}' for name, target in found if not (root / target).is_file()) == []


def test_no_mail_address_is_published(root):
    for name in (*PAGES, 'CITATION.cff'):
        assert not re.search(r'[\w.]+@\w+\.\w+', (root / name).read_text(encoding='utf-8')), name
