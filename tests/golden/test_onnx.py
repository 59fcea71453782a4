"""Every case of every program as an ONNX file in ONNX Runtime: the program's detections, and those of ``detect``."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

import mask_rcnn
from mask_rcnn.onnx_export.export import export_model
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.preprocessing.image_io import read_image
from tests.support.dena import DenaCase
from tests.support.golden import MAX_SCORE_DIFFERENCE, MIN_BOX_IOU, Case, mask_iou, match
from tests.support.golden_cases import CASES
from tests.support.golden_torch import PROGRAMS
from tests.support.matterport import MatterportCase, load_h5
from tests.support.onnx_detections import run_detections
from tests.support.onnx_graphs import session

pytestmark = pytest.mark.slow

#: Limits of the differences between ONNX Runtime and ``detect``: the networks of the cases amplify rounding.
BOX_IOU, SCORES, AT_THRESHOLD = 0.998, 2e-3, 1e-4

#: Matterport's case of COCO, whose resize differs in some grey levels, has a rule of its own; see test_matterport.py.
RULES = {('matterport', 'coco_resnet50'): {'min_iou': 0.968, 'max_score_difference': 0.03, 'noise': '1e-4'}}


@pytest.fixture
def open_case(golden, request):
    """A function from a program and the name of a case to the model with the case's settings, the case and its image.

    Only the program's fixtures are requested: each writes weight files.
    """

    def open_(program, name):
        if program == 'matterport':
            case = MatterportCase(request.getfixturevalue('matterport_golden'), name)
            path = request.getfixturevalue('h5_file')(case.settings['recipe'])
            model = load_h5(path, case.settings['matterport'])
        elif program == 'dena':
            case = DenaCase(request.getfixturevalue('dena_golden'), name)
            path = request.getfixturevalue('dena_file')(*case.settings['weights'])
            model = mask_rcnn.load(path, **case.options)
        elif program == 'detectron':
            case = Case(golden, name)
            path = request.getfixturevalue('weight_file')(case.settings['recipe'])
            model = mask_rcnn.load(path, **case.config_changes)
        else:
            case = PROGRAMS[program].case(golden, name)
            path = request.getfixturevalue('program_file')(program, case.settings['recipe'])
            model = mask_rcnn.load(path, **(case.config_changes if program == 'detectron_zoo' else {}))
        if program == 'matterport':
            image = case.image
        else:
            image = read_image(case.photo, apply_orientation=model.config.dialect.input.apply_orientation)
        if image.dtype != np.uint8:
            image = image.transpose(1, 2, 0).astype(np.uint8)
        return model, case, np.ascontiguousarray(image)

    return open_


@pytest.mark.parametrize(('program', 'name'), CASES)
def test_detections(open_case, program, name):
    model, case, image = open_case(program, name)
    found = run_detections(session(export_model(model)), image, model)
    compare_with_program(case, found, RULES.get((program, name), {}))
    (expected,) = model.detect([image])
    compare_with_detect(found, expected, model.config)


def test_detections_with_the_thresholds_of_pictures(open_case):
    model, case, image = open_case('dena', 'snapshot_R-50-C4_seed0_scale300')
    model.use_preset('visualize')
    found = run_detections(session(export_model(model)), image, model)
    compare_with_program(DenaCase(case.golden, case.name, 'visualize'), found, {})


def compare_with_program(case, found, rule):
    """Compare detections with the program's stable ones by the rule that the reference outputs' README suggests."""
    rule = {'min_iou': MIN_BOX_IOU, 'max_score_difference': MAX_SCORE_DIFFERENCE, 'noise': '1e-5', **rule}
    partners, arrays = match(case, found, **rule), case.arrays
    found, stable = found[partners], arrays[f'stable_{rule["noise"]}']
    if 'mask_iou_1e-4' in arrays and 'masks_index' not in arrays:
        iou = mask_iou(found.masks, case.masks()[stable])
        survives = arrays['stable_1e-4'][stable]
        noisy = np.where(survives, arrays['mask_iou_1e-4'][stable], arrays['mask_iou_1e-5'][stable])
        fits = iou >= noisy - 0.02
        if case.program == 'matterport':  # whole pixels
            fits |= (found.boxes != case.boxes[stable]).any(axis=1)
        # A corner that truncates to another pixel moves a whole border of a mask.
        assert np.count_nonzero(~fits) <= 2, np.sort(iou - noisy)[:5]
    if found.keypoints is not None:
        xy = arrays['keypoints'][stable]
        xy = xy[:, :2].transpose(0, 2, 1) if case.program.startswith('detectron') and xy.shape[1] == 4 else xy[..., :2]
        distance = np.hypot(*np.moveaxis(found.keypoints[..., :2] - xy[..., ::-1], 2, 0))
        assert np.count_nonzero(distance[arrays['keypoints_stable_1e-5'][stable]] > 1) <= 2


def compare_with_detect(found, expected, config):
    """Compare detections one to one, except those whose score is nearly that of the threshold or of the last one."""
    same_class = expected.labels[:, None] == found.labels
    close = np.abs(expected.scores[:, None] - found.scores) < SCORES
    iou = np.where(same_class & close, box_iou(expected.boxes, found.boxes), 0)
    partners = {}
    for i in range(len(expected)):
        j = int(np.argmax(np.where(np.isin(np.arange(len(found)), list(partners.values())), 0, iou[i])))
        if iou[i, j] > BOX_IOU:
            partners[i] = j
    is_full = bool(config.max_detections) and max(len(found), len(expected)) >= config.max_detections
    lowest = max(found.scores.min(), expected.scores.min()) if is_full else config.score_threshold
    for detections, matched in ((expected, partners.keys()), (found, partners.values())):
        others = np.delete(detections.scores, list(matched))
        assert (others < lowest + AT_THRESHOLD).all(), others
    compare_partners(found[list(partners.values())], expected[list(partners)])


def compare_partners(found, expected):
    """Compare the masks and the keypoints of detections with those of their partners."""
    assert found.has_masks == expected.has_masks
    if expected.has_masks:
        iou = mask_iou(found.masks, expected.masks)
        assert np.median(iou) > 0.999 and (iou > 0.99).mean() > 0.9 and iou.min() > 0.5, np.sort(iou)[:5]
    assert (found.keypoints is None) == (expected.keypoints is None)
    if expected.keypoints is not None:
        differences = np.abs(found.keypoints - expected.keypoints)
        moved = differences[..., :2].max(axis=2) > 0.5  # to another maximum of nearly the same height
        assert np.count_nonzero(moved) <= 2 and np.median(differences[..., :2]) < 1e-3
        np.testing.assert_allclose(found.keypoints[~moved], expected.keypoints[~moved], rtol=0.02, atol=0.05)
