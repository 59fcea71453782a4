"""The parameters of answers and the choice of their media type."""

import pytest

from mask_rcnn.serving.answers import AnswerFormat, DefaultScores, choose_media_type
from mask_rcnn.serving.errors import RequestError


@pytest.mark.parametrize(
    ('accept', 'expected'),
    [
        (None, 'application/json'),
        ('', 'application/json'),
        ('*/*', 'application/json'),
        ('application/json', 'application/json'),
        ('IMAGE/PNG', 'image/png'),
        ('image/jpeg', 'image/jpeg'),
        ('image/*', 'image/png'),
        ('image/jpeg, image/*;q=0.5', 'image/jpeg'),
        ('application/json;q=0.5, image/jpeg', 'image/jpeg'),
        ('text/html,application/xhtml+xml,*/*;q=0.8', 'application/json'),  # a form of a browser
        ('image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5', 'image/png'),
        ('application/json;q=0, */*', 'image/png'),
        ('text/html, application/json; q=0.2; level=1', 'application/json'),
    ],
)
def test_media_types(accept, expected):
    assert choose_media_type(accept) == expected


@pytest.mark.parametrize('accept', ['text/html', 'image/webp', 'application/json;q=0', 'image/png;q=x', ';'])
def test_types_that_cannot_be_sent(accept):
    with pytest.raises(RequestError, match='contains none of application/json, image/png, image/jpeg') as error:
        choose_media_type(accept)
    assert error.value.status == 406


@pytest.mark.parametrize(
    ('parameters', 'message'),
    [
        ({'score': '2'}, "score='2' is not a number from 0 to 1"),
        ({'score': 'nan'}, "score='nan' is not a number from 0 to 1"),
        ({'score': ''}, "score='' is not a number from 0 to 1"),
        ({'masks': 'png'}, "masks='png' is not one of rle, polygons, none"),
        ({'threshold': '0.5'}, "unknown parameter 'threshold', expected score or masks"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(RequestError) as error:
        AnswerFormat.parse(parameters, 1, None)
    assert (error.value.status, str(error.value)) == (400, message)


def test_a_repeated_parameter():
    with pytest.raises(RequestError, match='a parameter is repeated'):
        AnswerFormat.parse({'score': '0.5'}, 2, None)


def test_default_scores():
    defaults = DefaultScores(json=0.05, picture=0.7)
    assert AnswerFormat('application/json').minimum_score(defaults) == 0.0  # all detections of the model
    assert AnswerFormat('image/png').minimum_score(defaults) == 0.7
    assert AnswerFormat('image/png', score=0.0).minimum_score(defaults) == 0.0


@pytest.mark.parametrize('score', ['nan', 'inf', '1e400', '-0', '0_1', ' 1', '\u0660', '', '0x1', '.', '1' * 5000])
def test_scores_that_are_not_numbers(score):
    with pytest.raises(RequestError, match='is not a number from 0 to 1'):
        AnswerFormat.parse({'score': score}, 1, None)


@pytest.mark.parametrize(('score', 'expected'), [('0', 0), ('.5', 0.5), ('1.', 1), ('5e-1', 0.5), ('1e-400', 0)])
def test_scores_that_are_numbers(score, expected):
    assert AnswerFormat.parse({'score': score}, 1, None).score == expected


@pytest.mark.parametrize('quality', ['nan', 'inf', '1e400', '-1', '2', ''])
def test_a_quality_that_is_not_a_number_from_0_to_1_accepts_nothing(quality):
    assert choose_media_type(f'application/json;q=0.1, image/png;q={quality}') == 'application/json'
