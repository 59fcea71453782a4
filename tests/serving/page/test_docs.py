"""The page of the interface's description."""

import pytest

from tests.support.browser import CONTRASTS, opened_page

ERROR = {'description': 'The queue is <full>.', 'content': {'application/json': {}}}
OPENAPI = {
    'openapi': '3.1.0',
    'info': {'title': 'Mask R-CNN', 'version': '1.2', 'summary': 'Detection of objects.'},
    'paths': {
        '/v1/detect': {
            'post': {
                'summary': 'Detect objects.',
                'parameters': [
                    {
                        'name': 'score',
                        'in': 'query',
                        'description': 'Minimum score.',
                        'schema': {'type': 'number', 'minimum': 0, 'maximum': 1, 'default': 0.5},
                    }
                ],
                'requestBody': {'content': {'image/*': {'schema': {}}}},
                'responses': {
                    '200': {
                        'description': 'The objects.',
                        'content': {'application/json': {'schema': {'$ref': '#/components/schemas/Answer'}}},
                    },
                    '429': {'$ref': '#/components/responses/Error'},
                },
            }
        },
        '/v1/model': {'get': {'summary': 'The model.', 'responses': {'200': {'description': 'The model.'}}}},
    },
    'components': {
        'responses': {'Error': ERROR},
        'schemas': {
            'Answer': {
                'type': 'object',
                'properties': {
                    'time_ms': {'type': 'number', 'description': 'the time'},
                    'masks': {'oneOf': [{'type': 'array', 'items': {'type': 'number'}}, {'type': 'null'}]},
                },
            }
        },
    },
}

STRUCTURE = """{
  "time_ms": number  // the time
  "masks": [number, …] | null
}"""


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_operations_are_described(browser, server, address, scheme):
    server.openapi = OPENAPI
    with opened_page(browser, f'{address}/docs', origin=address, color_scheme=scheme) as page:
        operation = page.get_by_role('region', name='POST /v1/detect')
        assert operation.get_by_text('Detect objects.').is_visible()
        assert operation.get_by_role('row', name='score').inner_text().split('\t') == [
            'score',
            'number',
            'Minimum score. 0 to 1. Default: 0.5.',
        ]
        assert operation.get_by_role('row', name='429').get_by_text('The queue is <full>.').is_visible()
        assert operation.locator('pre').last.text_content() == STRUCTURE
        assert f'{address}/v1/detect' in operation.locator('pre').first.text_content()
        assert page.get_by_role('region', name='GET /v1/model').count() == 1
        assert [text for text, contrast in page.evaluate(CONTRASTS) if contrast < 4.5] == []
        page.set_viewport_size({'width': 390, 'height': 844})
        assert page.evaluate('() => document.documentElement.scrollWidth') == 390
        page.get_by_role('link', name='Try it').click()
        page.get_by_role('heading', name='Find the objects in a picture').wait_for()


@pytest.mark.slow
def test_a_description_that_cannot_be_read(browser, server, address):
    server.openapi = {}
    with opened_page(browser, f'{address}/docs', origin=address) as page:
        assert page.get_by_role('alert').text_content().startswith('openapi.json cannot be read:')
