"""The page's scripts that need no browser, under Node."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask_rcnn.visualization.colors import PALETTE, text_color
from tests.support.page_server import STATIC, rectangle


@pytest.fixture(scope='module')
def modules(tmp_path_factory):
    """A folder with the scripts as ECMAScript modules for Node."""
    if shutil.which('node') is None:
        pytest.skip('no Node')
    folder = tmp_path_factory.mktemp('scripts')
    for path in STATIC.glob('*.js'):
        shutil.copy(path, folder)
    (folder / 'package.json').write_text('{"type": "module"}')
    return folder


@pytest.fixture
def run(modules):
    """Evaluate an expression with `data` from the exports of modules, and return its value."""

    def evaluate(names, expression, data=None):
        imports = ''.join(f'import * as {name} from "./{name}.js";' for name in names)
        (modules / 'main.js').write_text(
            f'{imports}\nconst data = {json.dumps(data)};\nconsole.log(JSON.stringify({expression}));'
        )
        process = subprocess.run(['node', 'main.js'], cwd=modules, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return evaluate


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': list(mask.shape), 'counts': rle['counts'].decode()}


def masks():
    """Masks with holes, several parts, full columns, single pixels, all pixels, and none."""
    rng = np.random.RandomState(0)
    noise = [rng.rand(*size) < share for size, share in [((7, 9), 0.5), ((9, 7), 0.1), ((5, 6), 0.9), ((30, 40), 0.3)]]
    ring = rectangle((40, 300), 3, 5, 35, 290) & ~rectangle((40, 300), 10, 50, 30, 200)
    return [*noise, ring, np.ones((6, 5), bool), np.zeros((6, 5), bool), rectangle((200, 300), 1, 1, 199, 299)]


@pytest.mark.slow
def test_the_syntax_of_all_scripts(modules):
    for path in modules.glob('*.js'):
        subprocess.run(['node', '--check', path.name], cwd=modules, check=True)


def test_run_lengths_are_those_of_pycocotools(run):
    expected = masks()
    found = run(
        ['rle'],
        'data.map((entry) => { const mask = new rle.Mask(entry); return [mask.starts, mask.ends, mask.area]; })',
        [encode(mask) for mask in expected],
    )
    for (starts, ends, area), mask in zip(found, expected, strict=True):
        pixels = np.zeros(mask.size, bool)
        for start, end in zip(starts, ends, strict=True):
            assert not pixels[start:end].any()
            pixels[start:end] = True
        np.testing.assert_array_equal(pixels.reshape(mask.shape[::-1]).T, mask)
        assert area == mask.sum()


def test_pixels_of_a_mask(run):
    expected = masks()[:4]
    points = [[[x, y] for y in range(-1, mask.shape[0] + 1) for x in range(-1, mask.shape[1] + 1)] for mask in expected]
    found = run(
        ['rle'],
        """data.map(([entry, points]) => {
          const mask = new rle.Mask(entry);
          return points.map((point) => mask.contains(...point));
        })""",
        [(encode(mask), places) for mask, places in zip(expected, points, strict=True)],
    )
    for inside, mask in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.reshape(inside, np.add(mask.shape, 2)), np.pad(mask, 1))


def test_the_outline_encloses_the_mask(run):
    """By the even-odd rule; the length of the outline is the number of sides between mask and background."""
    expected = masks()
    outlines = run(['rle'], 'data.map((entry) => new rle.Mask(entry).outline())', [encode(mask) for mask in expected])
    for polygons, mask in zip(outlines, expected, strict=True):
        crossings = np.zeros(np.add(mask.shape, 1), int)  # of the upward and downward sides on the left of a pixel
        length = 0
        for polygon in polygons:
            corners = np.reshape(polygon, (-1, 2))
            steps = np.roll(corners, -1, axis=0) - corners
            assert np.all(np.count_nonzero(steps, axis=1) == 1)  # horizontal or vertical
            assert not np.any((steps != 0) & (np.roll(steps, 1, axis=0) != 0) & (steps * np.roll(steps, 1, axis=0) > 0))
            length += np.abs(steps).sum()
            for (x, y), (_, dy) in zip(corners, steps, strict=True):
                crossings[min(y, y + dy) : max(y, y + dy), x] += 1
        np.testing.assert_array_equal(np.cumsum(crossings, axis=1)[:-1, :-1] % 2, mask)
        framed = np.pad(mask, 1)
        assert length == sum(np.count_nonzero(np.diff(framed, axis=axis)) for axis in (0, 1))


def test_a_damaged_mask(run):
    counts = ['P', '1\u20ac', '9', '1O']
    messages = run(
        ['rle'],
        """data.map((counts) => {
          try { return String(new rle.Mask({ size: [2, 2], counts })); } catch (error) { return error.message; }
        })""",
        counts,
    )
    expected = ['truncated', 'invalid character', 'does not fit 2 \u00d7 2', 'does not fit']
    for message, part in zip(messages, expected, strict=True):
        assert part in message


def test_colors_are_those_of_the_pictures(run):
    palette, inks = run(['colors'], '[colors.PALETTE, colors.PALETTE.map((_, i) => colors.textColor(i))]')
    assert palette == PALETTE.tolist()
    assert inks == [{(0, 0, 0): '#000', (255, 255, 255): '#fff'}[text_color(color)] for color in PALETTE]


def test_neighbours_have_different_colors(run):
    boxes = [[x, y, 9, 9] for y in range(0, 60, 10) for x in range(0, 60, 10)]
    objects = [{'name': 'cell', 'box': box} for box in boxes]
    colors = run(['colors'], 'colors.chooseColors(data, { width: 60, height: 60 })', objects)
    grid = np.reshape(colors, (6, 6))
    assert np.all(np.diff(grid, axis=0)) and np.all(np.diff(grid, axis=1))
    assert sorted(set(colors)) == list(range(len(PALETTE)))


def test_an_object_keeps_its_color_in_the_next_frame(run):
    """The second frame has the objects in another order, moved, and a new one; a cat is not a dog."""
    frames = [
        [('dog', [0, 0, 20, 20]), ('dog', [50, 0, 20, 20]), ('cat', [0, 50, 20, 20])],
        [('cat', [3, 50, 20, 20]), ('dog', [54, 2, 20, 20]), ('dog', [2, 1, 20, 20]), ('bird', [0, 52, 20, 20])],
    ]
    data = [[{'name': name, 'box': box} for name, box in frame] for frame in frames]
    first, second = run(
        ['colors'],
        """(() => {
          const image = { width: 100, height: 100 };
          const first = colors.chooseColors(data[0], image);
          const previous = data[0].map((object, i) => ({ ...object, colorIndex: first[i] }));
          return [first, colors.chooseColors(data[1], image, previous)];
        })()""",
        data,
    )
    assert second[:3] == [first[2], first[1], first[0]]
    assert second[3] not in first


def test_the_topmost_object_is_the_smallest(run):
    size = (50, 50)
    masks = [rectangle(size, 10, 10, 20, 20), rectangle(size, 0, 0, 40, 40), rectangle(size, 5, 5, 30, 30)]
    detections = [
        {'class': name, 'score': score, 'bbox': [0, 0, 50, 50], 'segmentation': encode(mask)}
        for name, score, mask in zip('sbm', (0.5, 0.6, 0.7), masks, strict=True)
    ]
    points = [[15.5, 15.5], [6, 6], [1, 39.9], [45, 45]]
    found = run(
        ['objects'],
        """((objects_) => [objects_.map((object) => object.name),
          data[1].map((point) => objects.objectAt(objects_, ...point)?.name ?? null)])(objects.readObjects(data[0]))""",
        [{'image': {'width': 50, 'height': 50}, 'detections': detections}, points],
    )
    assert found == [['m', 'b', 's'], ['s', 'm', 'b', None]]


def test_summary(run):
    found = run(
        ['objects'],
        'data.map((names) => objects.summarise(names.map((name) => ({ name }))))',
        [['dog', 'person', 'person'], ['dog'], []],
    )
    assert found == [
        {'total': '3 objects', 'classes': ['2 person', '1 dog']},
        {'total': '1 object', 'classes': ['1 dog']},
        {'total': 'No objects', 'classes': []},
    ]
