"""Files of the original programs, converted to the native format and back; and exported models in other programs."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from mask_rcnn.preprocessing.image_io import read_image
from mask_rcnn.weights import formats
from mask_rcnn.weights.exporters.targets import TARGETS
from mask_rcnn.weights.readers import safe_pickle, torch_file
from tests.support.golden import MAX_SCORE_DIFFERENCE, MIN_BOX_IOU, XY, match, rebuild_pickle
from tests.support.golden_torch import CASES, PROGRAMS, Detectron2Case, TorchvisionCase

RECIPES = [
    *CASES,
    ('detectron', 'R-50-C4_seed0_scale300'),
    ('detectron', 'R-50-FPN_seed0'),
    ('detectron', 'keypoint_R-50-FPN_seed0'),
    ('detectron_zoo', 'R-50-FPN_GN_seed0'),
    ('detectron_zoo', 'X-101-32x8d-FPN_seed0'),
    ('detectron_zoo', 'faster_R-50-FPN_seed0'),
]

#: Layers whose first row, the unused background, is written as zeros.
MASK_LOGITS = 'mask_fcn_logits'


def read_arrays(path):
    """Return the arrays of a program's file by name, as its reader finds them."""
    if path.suffix == '.pth':
        return torch_file.read(path)
    data = safe_pickle.load(path)
    return data['model' if 'model' in data else 'blobs']


@pytest.mark.slow
@pytest.mark.parametrize(('program', 'recipe'), RECIPES)
def test_a_round_trip(golden, tmp_path, program, recipe, capsys):
    name = f'recipe_{recipe}.npz'
    if program == 'detectron':
        source = rebuild_pickle(golden, name, tmp_path, momentum=False)
    else:
        source = PROGRAMS[program].rebuild(golden, name, tmp_path)
    target = program.removesuffix('_zoo')
    native, output = tmp_path / 'native.npz', tmp_path / f'back{TARGETS[target].suffixes[0]}'
    assert convert.main([str(source), '--output', str(native)]) == 0
    capsys.readouterr()
    assert convert.main([str(native), '--to', target, '--output', str(output)]) == 0
    assert 'differences' not in capsys.readouterr().out
    before, after = read_arrays(source), read_arrays(output)
    taken = set(formats.read(source).report.taken)
    assert taken <= set(after)
    for array_name in taken:
        first = 1 if MASK_LOGITS in array_name else 0
        expected, actual = before[array_name], after[array_name]
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual[first:].tobytes() == expected[first:].tobytes(), array_name
    assert formats.read(output).config == formats.read(source).config


@pytest.mark.slow
def test_an_exported_model_in_torchvision(golden, program_file, tmp_path):
    """Torchvision finds the detections of this program, and those that it found with the original file."""
    torch = pytest.importorskip('torch')
    detection = pytest.importorskip('torchvision.models.detection')
    case = TorchvisionCase(golden, 'maskrcnn_resnet50_fpn_seed0')
    native, path = program_file('torchvision', case.settings['recipe']), tmp_path / 'model.pth'
    assert convert.main([str(native), '--to', 'torchvision', '--output', str(path)]) == 0
    network = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    image = read_image(case.photo, apply_orientation=False)
    with torch.inference_mode():
        found = network.eval()([torch.from_numpy(image.astype(np.float32)) / 255])[0]
    boxes, labels, scores = (found[name].numpy() for name in ('boxes', 'labels', 'scores'))
    source = mask_rcnn.Detections(boxes=boxes[:, XY], labels=labels - 1, scores=scores, size=image.shape[1:])
    compare_detections(case, source, native)


@pytest.mark.slow
@pytest.mark.parametrize('model', ['mask_rcnn_R_50_FPN_3x', 'mask_rcnn_R_50_C4_3x'])
def test_an_exported_model_in_detectron2(golden, program_file, tmp_path, model):
    """detectron2 finds the detections of this program, and those that it found with the original file."""
    model_zoo = pytest.importorskip('detectron2.model_zoo')
    engine = pytest.importorskip('detectron2.engine')
    case = Detectron2Case(golden, f'{model}_seed0')
    native, path = program_file('detectron2', case.settings['recipe']), tmp_path / 'model.pkl'
    assert convert.main([str(native), '--to', 'detectron2', '--output', str(path)]) == 0
    settings = model_zoo.get_config(f'COCO-InstanceSegmentation/{model}.yaml')
    settings.MODEL.WEIGHTS, settings.MODEL.DEVICE = str(path), 'cpu'
    image = read_image(case.photo)
    bgr = np.ascontiguousarray(image[::-1].transpose(1, 2, 0), np.uint8)
    found = engine.DefaultPredictor(settings)(bgr)['instances']
    boxes, labels, scores = (values.numpy() for values in (found.pred_boxes.tensor, found.pred_classes, found.scores))
    source = mask_rcnn.Detections(boxes=boxes[:, XY], labels=labels, scores=scores, size=image.shape[1:])
    compare_detections(case, source, native)


def compare_detections(case, source, native):
    """Compare the detections of a program that ran an exported file with the case and with those of this program."""
    with chainer.using_config('train', False):
        (found,) = mask_rcnn.load(native).detect([case.photo])
    limits = {'min_iou': MIN_BOX_IOU, 'max_score_difference': MAX_SCORE_DIFFERENCE}
    partners = [match(case, detections, **limits) for detections in (source, found)]
    difference = source.scores[partners[0]] - found.scores[partners[1]]
    assert np.abs(difference).max() < MAX_SCORE_DIFFERENCE
