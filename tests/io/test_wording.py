"""Numbers with nouns."""

from mask_rcnn.io.wording import counted


def test_one_is_singular_and_every_other_number_plural():
    assert [counted(n, 'layer') for n in (0, 1, 2)] == ['0 layers', '1 layer', '2 layers']
    assert [counted(n, 'box', 'boxes') for n in (0, 1, 2)] == ['0 boxes', '1 box', '2 boxes']
