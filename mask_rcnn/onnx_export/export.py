"""Export of a network as one ONNX graph, from the image to the detections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import chainer
import numpy as np
import onnx

import mask_rcnn
from mask_rcnn.inference.predictor import drops_empty_boxes
from mask_rcnn.inference.save import model_meta
from mask_rcnn.models import FPN, RPN, KeypointHead, LinearBoxHead, MaskHead, MaskRCNN, Res5BoxHead, ResNet
from mask_rcnn.models.backbones.mobilenet_v1 import MobileNetV1
from mask_rcnn.onnx_export.backbones import extract_features
from mask_rcnn.onnx_export.box_mapping import finish_boxes, has_area, map_to_image, map_to_input
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.heads import classify_rois, predict_anchors, predict_heat_maps, predict_masks
from mask_rcnn.onnx_export.keypoints import decode_keypoints
from mask_rcnn.onnx_export.masks import paste_masks
from mask_rcnn.onnx_export.network_input import prepare_image
from mask_rcnn.onnx_export.proposals import propose
from mask_rcnn.onnx_export.selection import select_detections
from mask_rcnn.onnx_export.transform import GraphTransform

#: Version of the inputs, the outputs and the metadata of the graphs.
FORMAT_VERSION = '1'

PRODUCER = 'mask-rcnn-chainer'

#: The parts of networks whose layers a graph repeats.
_PARTS = {ResNet, MobileNetV1, RPN, Res5BoxHead, LinearBoxHead, MaskHead, KeypointHead}

#: Maximum size of a protobuf message in bytes, and of its part without the weights.
_MAX_SIZE, _MAX_STRUCTURE = 2**31 - 1, 2**25

#: Shape and description of the input and of each output.
_IMAGE = ('height', 'width', 3), 'The image: bytes, RGB, of any size.'
_OUTPUTS = {
    'boxes': (
        ('detections', 4),
        'Boxes (x1, y1, x2, y2) in pixels of the image, in descending order of score.',
    ),
    'labels': (('detections',), 'Indices of the classes in the class_names of the metadata; 0 is the first one.'),
    'scores': (('detections',), 'Scores from 0 to 1.'),
    'masks': (('detections', 'height', 'width'), 'Masks of the instances in the image.'),
    'keypoints': (
        ('detections', 'keypoints', 4),
        'Keypoints (x, y, logit, probability), x and y in pixels of the image.',
    ),
}


class TooLargeError(ValueError):
    """The network does not fit into one ONNX file."""


class UnknownLayersError(ValueError):
    """A part of the network is not one of this package, so that its layers are not known."""


def export_model(model: MaskRCNN) -> onnx.ModelProto:
    """Return the ONNX model of a network with the thresholds in force.

    Its input is an image ``(H, W, 3)`` uint8, RGB; its outputs are the detections that :meth:`MaskRCNN.detect` returns
    for it, in the same order: ``boxes`` ``(N, 4)`` float32 ``(x1, y1, x2, y2)``, ``labels`` ``(N,)`` int64, ``scores``
    ``(N,)`` float32; with a mask head ``masks`` ``(N, H, W)`` bool, and with a keypoint head ``keypoints``
    ``(N, K, 4)`` float32 ``(x, y, logit, probability)``.

    Args:
        model: The network, on the CPU or a GPU; it is not changed.

    Raises:
        TooLargeError: The weights have more than 2 GB.
        UnknownLayersError: A part of the network is not one of this package.
    """
    _check_parts(model)
    n_bytes = sum(array.nbytes for array in map(chainer.as_array, model.params()))
    if n_bytes > _MAX_SIZE - _MAX_STRUCTURE:
        raise TooLargeError(
            f'an ONNX file contains at most 2 GB (the limit of protobuf), and the weights have {n_bytes / 1e9:.1f} GB'
        )
    graph = GraphBuilder()
    image = graph.input('image', np.uint8)
    outputs = {name: graph.output(name, tensor) for name, tensor in _detect(graph, image, model).items()}
    proto = graph.build(
        'Mask R-CNN',
        [(image, *_IMAGE)],
        [(tensor, *_declaration(name, model)) for name, tensor in outputs.items()],
    )
    _describe(proto, model)
    return proto


def _check_parts(model: MaskRCNN) -> None:
    """Refuse a backbone or a head of a user's class, whose forward pass the graph would not repeat."""
    extractor: Any = model.extractor
    parts = {'backbone': extractor.body if type(extractor) is FPN else extractor}
    parts |= {str(child.name).replace('_', ' '): child for child in model.children() if child is not extractor}
    for name, link in parts.items():
        if type(link) not in _PARTS:
            raise UnknownLayersError(
                f'its {name} is a {type(link).__name__}; only networks of the parts of this package can be exported '
                f'({", ".join(sorted(cls.__name__ for cls in _PARTS))})'
            )


def serialize(proto: onnx.ModelProto) -> bytes:
    """Return the bytes of a model's file after ONNX's checks, which include its inference of types and shapes."""
    content = proto.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    return content


def _declaration(name: str, model: MaskRCNN) -> tuple[Sequence[str | int], str]:
    """Return the shape and the description of an output."""
    shape, description = _OUTPUTS[name]
    return [model.config.n_keypoint if length == 'keypoints' else length for length in shape], description


class _Detected(NamedTuple):
    """The outputs of the box head.

    Args:
        boxes: ``(R, 4)`` float32 in the coordinates of :meth:`mask_rcnn.models.box_head.BoxHead.detect`.
        labels: ``(R,)`` int64.
        scores: ``(R,)`` float32.
        image_boxes: ``(R, 4)`` float32 in pixels of the image, as in the detections.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    image_boxes: Tensor


def _detect(graph: GraphBuilder, image: Tensor, model: MaskRCNN) -> dict[str, Tensor]:
    """Return the outputs by name."""
    config = model.config
    x, transform = prepare_image(graph, image, config)
    with graph.scope('extractor'):
        features = extract_features(x, model.extractor)
    detected = _detect_boxes(graph, features, transform, model)
    with graph.scope('output'):
        rois = map_to_input(detected.boxes, transform, config.dialect)
    outputs = {
        'boxes': detected.image_boxes.take([1, 0, 3, 2], axis=1),
        'labels': detected.labels,
        'scores': detected.scores,
    }
    if config.masks:
        with graph.scope('mask_head'):
            probs = predict_masks(features, rois, detected.labels, model.mask_head, model.box_head)
        with graph.scope('masks'):
            outputs['masks'] = paste_masks(graph, probs, detected.image_boxes, transform, config.dialect)
    if config.n_keypoint:
        with graph.scope('keypoint_head'):
            heat_maps = predict_heat_maps(features, rois, model.keypoint_head)
        with graph.scope('keypoints'):
            keypoints = decode_keypoints(graph, heat_maps, detected.boxes, transform, config)
            outputs['keypoints'] = keypoints.take([1, 0, 2, 3], axis=2)
    return outputs


def _detect_boxes(
    graph: GraphBuilder, features: Sequence[Tensor], transform: GraphTransform, model: MaskRCNN
) -> _Detected:
    """Return the boxes of the detections, their classes and scores."""
    config, dialect = model.config, model.config.dialect
    with graph.scope('rpn'):
        logits, deltas = predict_anchors(features, model.rpn)
    with graph.scope('proposals'):
        rois = propose(graph, logits, deltas, transform, config)
    with graph.scope('box_head'):
        probs, box_deltas = classify_rois(features, rois, model.box_head)
    with graph.scope('detections'):
        boxes, labels, scores = select_detections(graph, rois, probs, box_deltas, transform, config)
    with graph.scope('output'):
        image_boxes = finish_boxes(map_to_image(boxes, transform, dialect), dialect)
        detected = _Detected(boxes, labels, scores, image_boxes)
        if not drops_empty_boxes(dialect):
            return detected
        is_kept = has_area(image_boxes)
        return _Detected(*(tensor.compress(is_kept) for tensor in detected))


def _describe(proto: onnx.ModelProto, model: MaskRCNN) -> None:
    """Set the producer and the metadata of a model."""
    meta, config = model_meta(model), model.config
    proto.producer_name, proto.producer_version = PRODUCER, mask_rcnn.__version__
    proto.doc_string = (
        f'Mask R-CNN ({config.extractor}, conventions of {config.dialect.name}): every step from an image to its '
        'detections. The thresholds are in the config of the metadata.'
    )
    onnx.helper.set_model_props(
        proto,
        {
            'producer': PRODUCER,
            'format_version': FORMAT_VERSION,
            'dialect': config.dialect.name,
            'class_names': json.dumps(meta.class_names),
            'category_ids': json.dumps(meta.category_ids),
            'config': json.dumps(config.to_dict()),
        },
    )
