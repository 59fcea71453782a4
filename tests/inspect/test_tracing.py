"""The trace contains the numbers of ``detect`` to the bit, and its tables are consistent."""

import subprocess
import sys

import chainer
import numpy as np
import pytest

from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inference.predictor import Predictor
from mask_rcnn.inspect import Fate, activations, layer_names, layers, trace, trace_training
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.preprocessing.image_io import ImageFileError
from tests.inspect.networks import NETWORKS, bundled_model, make_network
from tests.support.small_resnet import use_narrow_resnet

pytestmark = pytest.mark.usefixtures('one_blas_thread')


@pytest.fixture(scope='module')
def image():
    return np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)


@pytest.fixture(scope='module', params=NETWORKS)
def model(request):
    return make_network(request.param)


@pytest.fixture
def steps(model, image, traces):
    """The trace of the model, computed once."""
    if model not in traces:
        traces[model] = trace(model, image)
    return traces[model]


@pytest.fixture(scope='module')
def traces():
    return {}


def overlaps(boxes_a, boxes_b, offset):
    """Return the pairwise IoU in float64."""
    a, b = boxes_a.astype('f8')[:, None], boxes_b.astype('f8')[None]
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + offset, 0)
    areas = [(boxes[..., 2:] - boxes[..., :2] + offset).prod(axis=-1) for boxes in (a, b)]
    intersection = sides.prod(axis=-1)
    return intersection / np.where(intersection > 0, areas[0] + areas[1] - intersection, 1)


def test_detections_are_those_of_detect(model, image, steps):
    (expected,) = model.detect([image])
    assert len(expected) > 0
    for name in ('boxes', 'labels', 'scores', 'mask_probs', 'keypoints'):
        np.testing.assert_array_equal(getattr(steps.detections, name), getattr(expected, name))
    np.testing.assert_array_equal(steps.image, image)


def test_candidates_contain_the_detections(model, steps):
    table, rows, detections = steps.candidates, steps.candidate_of_detection, steps.detections
    np.testing.assert_array_equal(table.scores[rows], detections.scores)
    np.testing.assert_array_equal(table.labels[rows], detections.labels)
    if not model.config.dialect.detections.integer_boxes:
        np.testing.assert_array_equal(table.boxes[rows], detections.boxes)
    else:
        np.testing.assert_array_equal(np.rint(table.boxes[rows] + [0, 0, 1, 1]), detections.boxes)
    np.testing.assert_array_equal(table.fates[rows], Fate.KEPT)
    assert np.count_nonzero(table.fates == Fate.KEPT) == len(detections)
    np.testing.assert_array_equal(table.scores, steps.rois.probs[table.rois, 1 + table.labels])
    np.testing.assert_array_equal(table.boxes, steps.rois.class_boxes[table.rois, 1 + table.labels])


def test_proposals_are_those_of_the_rpn(model, image, steps):
    x, transform = Predictor(model).prepare(image)
    np.testing.assert_array_equal(steps.input, x[0])
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        (expected,) = model.rpn.propose(model.extractor(x), x.shape[2:], [transform])
    np.testing.assert_array_equal(steps.rois.boxes, expected)
    table = steps.proposals
    np.testing.assert_array_equal(table.boxes[steps.rois.candidates], steps.rois.boxes)
    np.testing.assert_array_equal(table.rois[steps.rois.candidates], np.arange(len(steps.rois)))
    np.testing.assert_array_equal(table.boxes, steps.anchors.decoded[table.anchors])
    np.testing.assert_array_equal(table.scores, steps.anchors.scores[table.anchors])
    assert np.all(np.diff(table.scores[steps.rois.candidates]) <= 0)


def test_anchors_are_listed_level_after_level(model, steps):
    sizes = [feature_map.shape[1:] for feature_map in steps.features]
    np.testing.assert_array_equal(steps.anchors.boxes, model.rpn.host_anchors(sizes, steps.input.shape[1:]))
    n_anchors = len(model.rpn.cell_anchors[0])
    expected = np.repeat(np.arange(len(sizes)), [height * width * n_anchors for height, width in sizes])
    np.testing.assert_array_equal(steps.anchors.levels, expected)


@pytest.mark.parametrize('name', ['proposals', 'candidates'])
def test_suppressed_boxes_overlap_a_kept_box_with_a_higher_score(model, steps, name):
    table, config = getattr(steps, name), model.config
    offset = config.dialect.boxes.offset
    threshold = config.rpn_nms_threshold if name == 'proposals' else config.nms_threshold
    rows = np.flatnonzero(table.fates == Fate.SUPPRESSED)
    np.testing.assert_array_equal(table.suppressed_by >= 0, table.fates == Fate.SUPPRESSED)
    by = table.suppressed_by[rows]
    assert len(rows) and np.all(table.scores[by] >= table.scores[rows])
    assert np.all(np.isin(table.fates[by], [Fate.KEPT, Fate.BEYOND_LIMIT]))
    in_input = steps.transform.apply_boxes if config.dialect.detections.postprocess_in_input_space else np.asarray
    boxes = table.boxes if name == 'proposals' else in_input(table.boxes)
    iou = np.diag(overlaps(boxes[rows], boxes[by], offset))
    assert np.all(iou > threshold - 1e-4)
    groups = table.labels if name == 'candidates' else table.levels
    if name == 'candidates' or config.dialect.rpn.proposals_per_level:
        np.testing.assert_array_equal(groups[rows], groups[by])
    kept = np.flatnonzero(table.fates == Fate.KEPT)
    pairs = overlaps(boxes[kept], boxes[kept], offset)
    same = groups[kept][:, None] == groups[kept][None]
    if name == 'proposals' and not config.dialect.rpn.proposals_per_level:
        same[...] = True
    assert not np.any(np.triu((pairs > threshold + 1e-4) & same, 1))


def test_outputs_of_the_keypoint_head(image):
    model = make_network('keypoints')
    steps = trace(model, image)
    size = model.keypoint_head.upsample_factor * model.config.mask_roi_size
    assert steps.heatmaps.shape == (len(steps.detections), model.config.n_keypoint, size, size)
    keypoints = decode_heatmaps(steps.heatmaps, steps.detections.boxes)
    np.testing.assert_array_equal(keypoints, steps.detections.keypoints)


def test_layers_by_name(root):
    model = bundled_model(root)
    image = RichShapesDataset(1, size=160, seed=5)[0].image
    names = ['extractor/output3', 'rpn/objectness', 'box_head/fc7']
    steps = trace(model, image, layers=names)
    found = activations(model, image, names)
    for name in names:
        for array, expected in zip(found[name], steps.activations[name], strict=True):
            np.testing.assert_array_equal(array, expected)
    (p3,) = found['extractor/output3']
    np.testing.assert_array_equal(p3[0], steps.features[1])
    assert [array.shape[2:] for array in found['rpn/objectness']] == [level.shape[1:] for level in steps.features]
    logits = np.concatenate([array[0].transpose(1, 2, 0).ravel() for array in found['rpn/objectness']])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), steps.anchors.scores, rtol=1e-5, atol=1e-7)
    assert sum(map(len, found['box_head/fc7'])) == len(steps.rois)
    assert set(steps.layer_shapes) <= set(layer_names(model))
    assert steps.layer_shapes['extractor/output3'] == [p3.shape]


def test_a_recorded_layer_is_not_overwritten_by_a_later_one(image):
    """A residual block may reuse the memory of its input."""
    model = make_network('c4')
    names = [name for name in layer_names(model) if name.startswith('extractor/res2/')]
    found = activations(model, image, names)
    for name in names:
        alone = activations(model, image, [name])[name]
        for array, expected in zip(found[name], alone, strict=True):
            np.testing.assert_array_equal(array, expected)
    x, _ = Predictor(model).prepare(image)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        h = model.extractor.conv1(x)
        expected = model.extractor.res2(h).array
    np.testing.assert_array_equal(activations(model, image, ['extractor/res2'])['extractor/res2'][0], expected)


def test_unknown_and_joined_layers(image):
    model = make_network('fpn')
    with pytest.raises(ValueError, match=r"no layer 'extractor/outputs3'; did you mean extractor/output3"):
        activations(model, image, ['extractor/outputs3'])
    with pytest.raises(ValueError, match='extractor/body/conv1 computes it together with other layers'):
        activations(model, image, ['extractor/body/conv1/conv'])


@pytest.mark.parametrize('layers', ['rpn', None, 3, [None], ['rpn', 3]])
def test_layers_that_are_no_list_of_names(image, layers):
    """The letters of a text are no names."""
    model = make_network('fpn')
    for function in (lambda: activations(model, image, layers), lambda: trace(model, image, layers=layers)):
        with pytest.raises(TypeError, match='layers must be a list of names'):
            function()


@pytest.mark.parametrize('model', [None, 'model.npz', chainer.Chain()])
def test_models_that_are_no_networks(image, model):
    for function in (
        lambda: trace(model, image),
        lambda: activations(model, image, ['rpn']),
        lambda: layer_names(model),
        lambda: list(trace_training(model, [])),
    ):
        with pytest.raises(TypeError, match=f'must be a MaskRCNN, .* not {type(model).__name__}'):
            function()


def test_a_missing_image(root, tmp_path):
    with pytest.raises(ImageFileError):
        trace(bundled_model(root), tmp_path / 'none.jpg')


def test_the_network_is_not_changed(model, image):
    before = {path: param.array.copy() for path, param in model.namedparams()}
    trace(model, image)
    for path, param in model.namedparams():
        np.testing.assert_array_equal(param.array, before[path])


def test_nothing_of_it_is_imported_unless_it_is_used():
    code = (
        'import sys, mask_rcnn; mask_rcnn.load; mask_rcnn.MaskRCNN; import mask_rcnn.inspect; '
        "sys.exit(', '.join(m for m in sys.modules if m.startswith('mask_rcnn.inspect.') or m == 'matplotlib') or None)"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, '')


@pytest.mark.parametrize('name', NETWORKS)
def test_a_model_on_a_gpu_is_copied_to_the_cpu(monkeypatch, image, name):
    """Its copy, which shares no array with it, has the same detections."""
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_resnet(patch)
        patch.setattr(KeypointHead, 'channels', 8)
        model = make_network(name)
        model.set_thresholds(score=0.02, nms=0.4)
        (expected,) = model.detect([image])
        monkeypatch.setattr(layers, 'get_array_module', lambda *arrays: None)
        copy = layers.on_cpu(model)
    for param in model.params():
        param.array[...] = 0
    (found,) = copy.detect([image])
    for field in ('boxes', 'labels', 'scores', 'mask_probs', 'keypoints'):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_traced_on_the_cpu(image, monkeypatch):
    use_narrow_resnet(monkeypatch)  # the copy on the CPU is built again
    model = make_network('fpn')
    expected = trace(model, image).detections
    model.to_device('@cupy:0')
    found = trace(model, image).detections
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert model.device.xp is not np
