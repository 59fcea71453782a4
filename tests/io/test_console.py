"""Console output beside a progress bar."""

import sys

from mask_rcnn.io.console import print_error, print_line, print_warning, progress_bar


def test_lines_go_to_their_streams(capsys):
    print_line('a line')
    print_line('a note', file=sys.stderr)
    print_warning('a warning')
    print_error('an error')
    captured = capsys.readouterr()
    assert captured.out == 'a line\n'
    assert captured.err == 'a note\nwarning: a warning\nerror: an error\n'


def test_a_line_interrupts_the_progress_bar(capsys):
    with progress_bar(3, unit='image') as bar:
        bar.update()
        print_error('an error')
        bar.update(2)
    text = capsys.readouterr().err
    assert '\rerror: an error\n' in text and text.rstrip().split('\r')[-1].startswith('100%') and '3/3' in text


def test_a_single_step_has_no_progress_bar(capsys):
    with progress_bar(1, unit='image') as bar:
        bar.update()
    assert capsys.readouterr().err == ''
