"""The selection of frames by time, step and rate."""

from fractions import Fraction

import pytest

from mask_rcnn.media.selection import FrameSelection, parse_time, to_rate


def select(selection, n_frames, rate):
    """Return the selected frames of a video, numbered from 0."""
    span = [i for i in range(n_frames) if not selection.is_before(float(i / rate))]
    span = [i for i in span if not selection.is_after(float(i / rate))]
    return [number for index, number in enumerate(span) if selection.selects(index, rate)]


@pytest.mark.parametrize(
    ('options', 'expected', 'rate'),
    [
        ({}, list(range(12)), 4),
        ({'every': 5}, [0, 5, 10], Fraction(4, 5)),
        ({'start': 1, 'end': 2}, [4, 5, 6, 7], 4),
        ({'start': 1.1, 'end': 1.6}, [5, 6], 4),
        ({'start': 2, 'every': 3}, [8, 11], Fraction(4, 3)),
        ({'max_rate': Fraction(2)}, [0, 2, 4, 6, 8, 10], 2),
        ({'max_rate': Fraction(3)}, [0, 2, 3, 4, 6, 7, 8, 10, 11], 3),
        ({'max_rate': Fraction(30)}, list(range(12)), 4),
        ({'every': 2, 'max_rate': Fraction(1)}, [0, 4, 8], 1),
        ({'end': 0.1}, [0], 4),
        ({'start': 9}, [], 4),
    ],
)
def test_frames_of_a_video_of_12_frames_at_4_per_second(options, expected, rate):
    selection = FrameSelection(**options)
    assert select(selection, 12, Fraction(4)) == expected
    assert selection.count(12, Fraction(4)) == len(expected)
    assert selection.rate(Fraction(4)) == rate


@pytest.mark.parametrize('rate', [Fraction(30), Fraction(30000, 1001), Fraction(25), Fraction(15, 2)])
@pytest.mark.parametrize('options', [{'every': 7}, {'max_rate': Fraction(4)}, {'start': 1.5, 'end': 7.9, 'every': 2}])
def test_the_count_is_the_number_of_selected_frames(rate, options):
    selection = FrameSelection(**options)
    for n_frames in (0, 1, 2, 29, 30, 31, 300):
        assert selection.count(n_frames, rate) == len(select(selection, n_frames, rate))


def test_rates_are_fractions():
    assert to_rate(29.97002997) == Fraction(30000, 1001) and to_rate(25.0) == 25 and to_rate(0.5) == Fraction(1, 2)
    assert [to_rate(value) for value in (0, -1, float('nan'), float('inf'), 90000)] == [None] * 5


@pytest.mark.parametrize(
    ('text', 'seconds'), [('0', 0), ('75.5', 75.5), ('1:15.5', 75.5), ('0:01:15.5', 75.5), ('1:00:00', 3600)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize('text', ['', 'x', '-1', '1:-2', '1:60', '1:2:3:4', 'nan', 'inf', '1.5:00', '1::2'])
def test_bad_times(text):
    with pytest.raises(ValueError, match='is not a time|could not convert'):
        parse_time(text)
