"""Whole networks as ONNX graphs: the detections of ONNX Runtime are those of ``detect``."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

import onnx

import mask_rcnn
from mask_rcnn.config import DENA, DETECTRON2, DIALECTS, MATTERPORT, Config
from mask_rcnn.models import FPN
from mask_rcnn.onnx_export import export
from tests.support.models import VERY_NARROW, shallow_model, small_model
from tests.support.onnx_detections import compare_detections, run_detections
from tests.support.onnx_graphs import session

#: Sizes of the images: both orientations, and one that is not resized to its limits alone.
SIZES = (60, 83), (97, 40)


def photo(height, width):
    """A smooth random image, which has objects of all sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (-(-height // 6), -(-width // 6), 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def mobilenet(dialect='detectron', **changes):
    """A network of the fewest channels whose scores differ clearly."""
    options = {**VERY_NARROW, 'width': 0.25, 'dialect': DIALECTS[dialect], **changes}
    model = small_model('mobilenet_v1_fpn', max_size=128, **options)
    return with_clear_scores(model)


def with_clear_scores(model):
    model.box_head.score.W.array[...] *= 60
    if model.config.masks:
        model.mask_head.score.W.array[...] *= 300
    return model


MODELS = {
    **{name: lambda name=name: mobilenet(name) for name in ('detectron', 'matterport', 'mindspore', 'torchvision')},
    'detectron2': lambda: mobilenet('detectron2', max_detections=0),
    'no masks': lambda: mobilenet(masks=False, rpn_pre_nms=50, box_convs=1, head_norm='bn'),
    'gn': lambda: shallow_model('resnet50_fpn_gn', **VERY_NARROW | {'fpn_channels': 32, 'mask_channels': 32}),
    'c4': lambda: shallow_model('resnet50'),
    'c4 of dena': lambda: shallow_model('resnet50', dialect=DENA, roi_size=7, sampling_ratio=2, max_detections=0),
    'c4 of detectron2': lambda: shallow_model('resnet50', dialect=DETECTRON2),
    'RoI max pooling': lambda: shallow_model('resnext50_32x4d_fpn', roi_align=False),
    'matterport resnet': lambda: shallow_model('resnet50_fpn', dialect=MATTERPORT, max_size=128),
    'keypoints': lambda: shallow_model('keypoint_resnet50_fpn'),
    'keypoints of torchvision': lambda: shallow_model('keypoint_resnet50_fpn', dialect=DIALECTS['torchvision']),
    'keypoints of detectron2': lambda: shallow_model('keypoint_resnet50_fpn', dialect=DETECTRON2),
}
FAST = 'detectron', 'matterport', 'mindspore', 'torchvision', 'detectron2', 'no masks'


@pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MODELS])
def test_detections(name):
    """One file, two images of different size."""
    model = MODELS[name]()
    runtime = session(export.export_model(model))
    for size in SIZES:
        image = photo(*size)
        (expected,) = model.detect([image])
        assert len(expected) >= 3 and (not expected.has_masks or expected.masks.any())
        compare_detections(run_detections(runtime, image, model), expected)


@pytest.mark.parametrize(
    'name',
    ['detectron', 'matterport', *(pytest.param(n, marks=pytest.mark.slow) for n in ('torchvision', 'detectron2'))],
)
def test_images_of_a_single_row(name):
    model = mobilenet(name)
    runtime = session(export.export_model(model))
    for size in ((1, 1), (1, 90)):
        (expected,) = model.detect([photo(*size)])
        compare_detections(run_detections(runtime, photo(*size), model), expected)


def test_an_image_without_detections():
    model = mobilenet()
    model.set_thresholds(score=1.0)
    found = dict(zip(('boxes', 'labels', 'scores', 'masks'), run(model, photo(60, 83)), strict=True))
    assert {name: array.shape for name, array in found.items()} == {
        'boxes': (0, 4),
        'labels': (0,),
        'scores': (0,),
        'masks': (0, 60, 83),
    }


def run(model, image):
    return session(export.export_model(model)).run(None, {'image': image})


@pytest.fixture(scope='module')
def proto():
    model = mobilenet('torchvision', score_threshold=0.25)
    model.class_names, model.category_ids = ('cat', 'dog', '猫'), (17, 18, 90)
    return onnx.load_from_string(export.serialize(export.export_model(model)))


def test_inputs_and_outputs(proto):
    def shape(tensor):
        return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]

    assert [(tensor.name, shape(tensor)) for tensor in [*proto.graph.input, *proto.graph.output]] == [
        ('image', ['height', 'width', 3]),
        ('boxes', ['detections', 4]),
        ('labels', ['detections']),
        ('scores', ['detections']),
        ('masks', ['detections', 'height', 'width']),
    ]
    types = [onnx.helper.tensor_dtype_to_np_dtype(t.type.tensor_type.elem_type) for t in proto.graph.output]
    assert types == [np.float32, np.int64, np.float32, bool]
    assert all(tensor.doc_string for tensor in [*proto.graph.input, *proto.graph.output])


def test_metadata(proto):
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata['class_names']) == ['cat', 'dog', '猫']
    assert json.loads(metadata['category_ids']) == [17, 18, 90]
    assert metadata['dialect'] == 'torchvision' and metadata['format_version'] == export.FORMAT_VERSION
    config = Config.from_dict(json.loads(metadata['config']))
    assert config.score_threshold == 0.25 and config.width == 0.25
    assert (proto.producer_name, proto.producer_version) == ('mask-rcnn-chainer', mask_rcnn.__version__)


def test_the_file_is_of_the_standard_operators(proto):
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [('', 18)]
    assert {node.domain for node in proto.graph.node} == {''}


@pytest.mark.parametrize('dialect', ['detectron', 'detectron2'])
def test_names_are_unique_and_constants_used(dialect):
    """Runtimes warn of constants that no node uses."""
    graph = export.export_model(mobilenet(dialect)).graph
    nodes, read = [], {tensor.name for tensor in graph.output}

    def collect(graph):
        for node in graph.node:
            nodes.append(node)
            read.update(node.input)
            for attribute in node.attribute:
                read.update(output.name for output in attribute.g.output)
                collect(attribute.g)

    collect(graph)
    constants = [array.name for array in graph.initializer]
    for names in ([node.name for node in nodes], [*constants, *(name for node in nodes for name in node.output)]):
        assert all(names) and len(set(names)) == len(names)
    assert set(constants) <= read
    assert all(read.intersection(node.output) for node in nodes)


def test_names_show_the_structure(proto):
    """Viewers group nodes by the parts of their names."""
    parts = {node.name.split('/')[0] for node in proto.graph.node}
    assert {'network_input', 'extractor', 'rpn', 'proposals', 'box_head', 'detections', 'mask_head', 'masks'} <= parts
    names = {node.name for node in proto.graph.node}
    assert {'extractor/body/block1/depthwise/Conv', 'masks/Loop'} <= names


def test_weights_are_stored_once_and_files_are_equal():
    model = mobilenet()
    n_bytes = sum(parameter.array.nbytes for parameter in model.params())
    contents = [export.serialize(export.export_model(model)) for _ in range(2)]
    assert contents[0] == contents[1] and len(contents[0]) < 1.1 * n_bytes + 500_000


def test_a_pyramid_of_a_user_is_refused():
    """The graph would contain the forward pass of FPN instead."""
    model = mobilenet()
    model.extractor.__class__ = type('OtherPyramid', (FPN,), {})
    with pytest.raises(export.UnknownLayersError, match='^its backbone is a OtherPyramid; only networks of the parts'):
        export.export_model(model)


def test_a_network_of_more_than_two_gigabytes_is_refused(monkeypatch):
    monkeypatch.setattr(export, '_MAX_SIZE', export._MAX_STRUCTURE + 1000)
    with pytest.raises(export.TooLargeError, match=r'at most 2 GB .*, and the weights have 0\.\d GB'):
        export.export_model(mobilenet())
