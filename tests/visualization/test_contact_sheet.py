"""Contact sheets: masks at their places in the small pictures, captions, and rows."""

import numpy as np
import pytest

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.visualization import contact_sheet
from mask_rcnn.visualization.contact_sheet import Tile, compose_sheet, draw_tile_picture
from tests.support.annotation_files import rle_of


def one_object(segmentation, box, crowd=False):
    return Annotations(np.array([box], np.float32), np.zeros(1, np.int32), np.array([crowd]), (segmentation,))


@pytest.mark.parametrize('side', [50, 200, 400])
@pytest.mark.parametrize('kind', ['polygon', 'run lengths'])
def test_the_object_is_drawn_at_its_place(side, kind):
    """The right half of a black image, whose longer side is resized to 50, 200 or (at most doubled) 400 pixels."""
    mask = np.zeros((100, 200), bool)
    mask[20:80, 100:] = True
    polygon = (np.array([100.0, 20, 200, 20, 200, 80, 100, 80]),)
    rle = rle_of(mask)
    segmentation = polygon if kind == 'polygon' else {**rle, 'counts': rle['counts'].encode()}
    annotations = one_object(segmentation, (20, 100, 79, 199))
    picture = draw_tile_picture(np.zeros((100, 200, 3), np.uint8), annotations, ['cat'], side=side)
    scale = side / 200
    assert picture.shape == (100 * scale, side, 3) and picture.dtype == np.uint8
    is_drawn = picture.any(axis=2)
    border = 3  # lines and rounding
    inside = is_drawn[round(20 * scale) + border : round(80 * scale) - border, round(100 * scale) + border :]
    assert inside.all()
    assert not is_drawn[:, : round(100 * scale) - border].any()
    assert not is_drawn[round(80 * scale) + border :].any()


def test_small_images_are_doubled_at_most():
    none = Annotations(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), ())
    image = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    assert draw_tile_picture(image, none, ['cat'], side=360).shape == (40, 60, 3)
    assert draw_tile_picture(image, none, ['cat'], side=10).shape == (7, 10, 3)


def test_names_are_written_where_they_help(monkeypatch):
    """A class name for several classes; the word for a crowd always."""
    written = []

    def draw(image, objects, *, labels, **options):
        written.append((objects.names, labels))
        return image

    monkeypatch.setattr(contact_sheet, 'draw_detections', draw)
    image = np.zeros((100, 200, 3), np.uint8)
    for names, crowd in ((['cat'], False), (['cat'], True), (['cat', 'dog'], False)):
        draw_tile_picture(image, one_object((), (20, 100, 79, 199), crowd), names, side=100)
    assert written == [(['cat'], 'none'), (['cat (crowd)'], 'auto'), (['cat'], 'auto')]


def test_pictures_are_in_rows_above_their_captions():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles = [
        Tile(np.full((height, 100, 3), color, np.uint8), 'a' * 500, '3 objects')
        for height, color in zip((80, 100, 40), colors, strict=True)
    ]
    sheet = compose_sheet(tiles, columns=2, side=100)
    places = [np.argwhere((sheet == color).all(axis=2)) for color in colors]
    assert [len(place) for place in places] == [8000, 10000, 4000]  # no caption covers a picture
    (first_top, first_left), (second_top, second_left), (third_top, third_left) = (
        place.min(axis=0) for place in places
    )
    assert first_left == third_left < second_left
    assert second_top < first_top < third_top
    assert first_top + 80 == second_top + 100  # the captions of a row are on one line
    captions = sheet[second_top + 100 : third_top]
    assert (captions.min(axis=2) < 100).any()
    assert compose_sheet(tiles[:1], columns=4, side=100).shape[1] < 150


def test_long_names_keep_their_ends():
    font = contact_sheet.load_font(None, 13)
    shortened = contact_sheet._shorten('beginning' + 'x' * 100 + 'end.png', 150, font)
    assert font.getlength(shortened) <= 150
    assert shortened.startswith('begin') and shortened.endswith('end.png') and '…' in shortened
    assert contact_sheet._shorten('a\nb.png', 150, font) == 'a b.png'
