"""Pictures of detections: masks, contours, boxes, labels and keypoints."""

import numpy as np
import pytest

from mask_rcnn.config import DETECTRON
from mask_rcnn.inference.detections import Detections
from mask_rcnn.visualization import draw_detections
from mask_rcnn.visualization.colors import instance_colors
from mask_rcnn.visualization.labels import PlacedLabel, Text
from mask_rcnn.visualization.shapes import draw_leader

SIZE = 120, 160
EXACT = DETECTRON.replace(boxes={'offset': 0.0})


def picture(rng, size=SIZE):
    return rng.randint(0, 256, (*size, 3)).astype(np.uint8)


def rectangles(boxes, size=SIZE, **changes):
    """Make detections whose masks fill their boxes."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    given = dict(
        boxes=boxes,
        labels=np.zeros(len(boxes), int),
        scores=np.linspace(0.9, 0.5, len(boxes)),
        size=size,
        masks=masks,
        class_names=('thing',),
        dialect=EXACT,
    )
    return Detections(**{**given, **changes})


@pytest.mark.parametrize(
    ('backdrop', 'expected'),
    [('image', lambda image: image), ('black', np.zeros_like), ('white', lambda image: np.full_like(image, 255))],
)
def test_without_detections_only_the_backdrop_is_drawn(rng, backdrop, expected):
    image = picture(rng)
    drawn = draw_detections(image, rectangles([]), backdrop=backdrop, contour=True)
    assert drawn.dtype == np.uint8 and drawn is not image
    np.testing.assert_array_equal(drawn, expected(image))


def test_grey_backdrop_keeps_lightness(rng):
    image = np.stack([np.full(SIZE, value, np.uint8) for value in (10, 200, 90)], axis=2)
    drawn = draw_detections(image, rectangles([]), backdrop='grey')
    assert (drawn == drawn[:1, :1, :1]).all()
    ramp = np.repeat(np.arange(160, dtype=np.uint8)[None, :, None].repeat(120, axis=0), 3, axis=2)
    grey = draw_detections(ramp, rectangles([]), backdrop='grey')
    assert (np.diff(grey[0, :, 0].astype(int)) >= 0).all() and grey[0, 0, 0] < grey[0, -1, 0]


def test_float_and_uint8_images_give_the_same_picture(rng):
    image = picture(rng)
    floats = image.transpose(2, 0, 1).astype(np.float32)
    before = image.copy()
    found = rectangles([[20, 30, 70, 90], [50, 60, 110, 150]])
    drawn = draw_detections(image, found, contour=True)
    np.testing.assert_array_equal(drawn, draw_detections(floats, found, contour=True))
    np.testing.assert_array_equal(drawn, draw_detections(image, found, contour=True))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(floats, before.transpose(2, 0, 1))


def test_a_mask_is_drawn_in_a_translucent_colour(rng):
    image = picture(rng)
    drawn = draw_detections(image, rectangles([[20, 30, 70, 90]]), boxes=False, labels=False)
    inside = np.zeros(SIZE, bool)
    inside[21:69, 31:89] = True  # without the soft edge
    on_black = draw_detections(image, rectangles([[20, 30, 70, 90]]), labels=False, backdrop='black')
    color = on_black[40, 50] / 0.85
    expected = 0.55 * image + 0.45 * color
    assert np.abs(drawn[inside] - expected[inside]).max() <= 1.5
    inside[19:71, 29:91] = True
    np.testing.assert_array_equal(drawn[~inside], image[~inside])


def test_small_instances_are_drawn_over_large_ones(rng):
    image = np.full((*SIZE, 3), 128, np.uint8)
    boxes = [[0, 0, 120, 160], [40, 40, 80, 100]]
    for order in (boxes, boxes[::-1]):
        found = rectangles(order)
        drawn = draw_detections(image, found, boxes=False, labels=False, backdrop='black')
        large, both = (drawn[y, x].astype(float) for y, x in ((10, 10), (60, 70)))
        small = (both - 0.15 * large) / 0.85
        assert np.abs(small - both).max() < 0.16 * 255 and np.abs(small - large).max() > 60


def test_contour_is_on_the_edge_of_the_mask():
    image = np.full((*SIZE, 3), 128, np.uint8)
    found = rectangles([[30, 40, 90, 120]])
    plain, outlined = (
        draw_detections(image, found, boxes=False, labels=False, contour=contour) for contour in (False, True)
    )
    edge = np.abs(outlined.astype(int) - image).sum(axis=2)
    assert edge[30, 80] > 1.3 * edge[60, 80] and edge[60, 40] > 1.3 * edge[60, 80]
    assert 0 < edge[60, 80] < np.abs(plain.astype(int) - image).sum(axis=2)[60, 80]
    assert not edge[:27].any() and not edge[:, 123:].any()


def test_contour_includes_the_edges_of_holes():
    image = np.full((*SIZE, 3), 128, np.uint8)
    found = rectangles([[10, 10, 110, 150]])
    found.masks[0, 40:80, 50:110] = False
    drawn = draw_detections(image, found, boxes=False, labels=False, contour=True)
    change = np.abs(drawn.astype(int) - image).sum(axis=2)
    assert change[60, 50] > change[60, 30] > 0 and change[60, 80] == 0


def test_boxes_are_drawn_inside_their_corners():
    image = np.full((*SIZE, 3), 128, np.uint8)
    found = rectangles([[30, 40, 90, 120]], masks=None)
    changed = (draw_detections(image, found, labels=False) != image).any(axis=2)
    expected = np.zeros(SIZE, bool)
    expected[30:90, 40:120] = True
    expected[31:89, 41:119] = False
    np.testing.assert_array_equal(changed, expected)


def test_box_offset_is_part_of_the_box():
    image = np.full((*SIZE, 3), 128, np.uint8)
    found = rectangles([[30, 40, 90, 120]], masks=None, dialect=DETECTRON)
    changed = (draw_detections(image, found, labels=False) != image).any(axis=2)
    assert changed[90, 120] and changed[90, 40] and not changed[91].any()


def test_labels_and_scores_are_optional(rng):
    image = picture(rng)
    found = rectangles([[40, 30, 100, 90]])
    bare, named, scored = (
        draw_detections(image, found, **options) for options in ({'labels': False}, {'scores': False}, {})
    )
    areas = [(picture != bare).any(axis=2).sum() for picture in (named, scored)]
    assert 100 < areas[0] < areas[1]


@pytest.mark.parametrize(('left', 'joined'), [(31, False), (90, True)])
def test_a_line_joins_a_label_with_a_distant_box(left, joined):
    canvas = np.zeros((*SIZE, 3), np.uint8)
    label = PlacedLabel(Text('thing', 10, 30, 14), 40, left)
    draw_leader(canvas, label, np.array([30.0, 10.0, 60.0, 30.0]), np.array([0, 200, 0], np.uint8))
    assert canvas[45, 60].any() == joined
    assert not canvas[:40].any() and not canvas[55:].any()


@pytest.mark.parametrize(
    'size',
    [(1, 1), (1, 50), (50, 1), (3, 3), (64, 48), (1500, 40), pytest.param((2300, 3100), marks=pytest.mark.slow)],
)
def test_image_sizes_from_1_pixel_to_7_megapixels(rng, size):
    height, width = size
    boxes = [
        [0, 0, height, width],
        [0.3 * height, 0.2 * width, 0.8 * height, 0.5 * width],
        [0, 0, 0, 0],
        [-5, -5, 2 * height, 2 * width],
        [height - 1, width - 1, height - 1, width - 1],
    ]
    found = Detections(
        boxes=np.array(boxes, np.float32),
        labels=np.zeros(5, int),
        scores=np.full(5, 0.9),
        size=size,
        mask_probs=rng.uniform(0, 1, (5, 14, 14)).astype(np.float32),
    )
    for options in ({'contour': True}, {'backdrop': 'grey'}):
        drawn = draw_detections(picture(rng, size), found, **options)
        assert drawn.shape == (*size, 3) and drawn.dtype == np.uint8


def test_100_instances(rng):
    low = rng.uniform(0, 200, (100, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 60, (100, 2))], axis=1).astype(np.float32)
    found = Detections(
        boxes=boxes,
        labels=np.zeros(100, int),
        scores=np.full(100, 0.9),
        size=(240, 320),
        mask_probs=rng.uniform(0, 1, (100, 14, 14)).astype(np.float32),
    )
    assert draw_detections(picture(rng, (240, 320)), found, contour=True).shape == (240, 320, 3)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((120, 161, 3), np.uint8),
        np.zeros((3, 120, 160), np.uint8),
        np.zeros((120, 160, 3), np.float32),
        np.zeros((3, 120, 160), np.float64),
        np.zeros((120, 160), np.uint8),
    ],
)
def test_an_image_of_another_size_is_rejected(image):
    with pytest.raises(ValueError, match='120 x 160 pixels'):
        draw_detections(image, rectangles([]))


def test_an_unknown_backdrop_is_rejected():
    with pytest.raises(ValueError, match="image, grey, black, white, splash, blur, cutout, not 'pink'"):
        draw_detections(np.zeros((*SIZE, 3), np.uint8), rectangles([]), backdrop='pink')


def figure(count=17, logit=5.0, **places):
    """Make one instance with keypoints at given places, such as ``k3=(y, x)``; the others are invisible at (10, 10)."""
    keypoints = np.zeros((1, count, 4), np.float32)
    keypoints[:, :, :2] = 10
    keypoints[:, :, 2] = -1
    for name, (y, x) in places.items():
        keypoints[0, int(name[1:])] = y, x, logit, 0.5
    return rectangles([[4, 4, 100, 150]], masks=None, keypoints=keypoints)


def keypoints_drawn(found):
    """Return the pixels that drawing the keypoints changes, ``(H, W)`` bool, and the picture with the keypoints."""
    black = np.zeros((*SIZE, 3), np.uint8)
    with_keypoints, without = (draw_detections(black, found, labels=False, keypoints=on) for on in (True, False))
    return (with_keypoints != without).any(axis=2), with_keypoints


def test_visible_keypoints_are_connected_by_bones():
    """COCO's skeleton has a bone between the shoulders 5 and 6, and none between shoulder 5 and wrist 10."""
    drawn, picture = keypoints_drawn(figure(k5=(30.5, 40.5), k6=(30.5, 80.5), k10=(90.5, 60.5)))
    for y, x in ((30, 40), (30, 80), (90, 60)):
        np.testing.assert_array_equal(picture[y, x], [255, 255, 255])
    assert drawn[30, 40:81].all() and not drawn[60].any()
    color = instance_colors(np.array([[4, 4, 100, 150]]), SIZE)[0]
    np.testing.assert_array_equal(picture[30, 60], color)
    assert not drawn[5:16, 5:16].any()  # invisible keypoints


def test_keypoints_with_low_logits_are_not_drawn():
    drawn, _ = keypoints_drawn(figure(logit=2.0, k5=(30, 40), k6=(30, 80)))
    assert not drawn.any()


def test_keypoints_of_other_datasets_have_no_bones():
    drawn, picture = keypoints_drawn(figure(count=7, k5=(30.5, 40.5), k6=(30.5, 80.5)))
    np.testing.assert_array_equal(picture[30, 40], [255, 255, 255])
    assert not drawn[:, 50:70].any()


def test_keypoints_outside_the_picture():
    drawn, _ = keypoints_drawn(figure(k5=(30, -50), k6=(30, 500)))
    assert drawn[30, 4:150].all()
