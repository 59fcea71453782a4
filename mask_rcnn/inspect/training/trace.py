"""The training pass of one image: the augmented input, the training targets, and the losses of each element."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.datasets.example import Annotations, Segmentation, TrainingExample
from mask_rcnn.inspect.layers import check_model
from mask_rcnn.inspect.names import names_of_classes
from mask_rcnn.inspect.network_input import viewable_input
from mask_rcnn.inspect.training.anchor_roles import AnchorRoles, anchor_roles
from mask_rcnn.inspect.training.record import RecordingTrainChain
from mask_rcnn.inspect.training.roi_roles import (
    KeypointTargets,
    MaskTargets,
    RoIRoles,
    keypoint_targets_of_record,
    mask_targets_of_record,
    roi_roles,
)
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.masks.rle import encode_mask
from mask_rcnn.targets import Sampling
from mask_rcnn.targets.input_masks import input_bitmap


@dataclass(frozen=True, eq=False)
class TrainingTrace:
    """The training pass of one image.

    Args:
        example: The augmented example.
        config: The configuration of the network.
        class_names: Name of each foreground class.
        picture: ``(h, w, 3)`` uint8, RGB: the network input with its padding, as a picture.
        objects: The objects and crowd regions in pixels of the network input; see :func:`input_annotations`.
        anchors: The anchors and their roles.
        rois: The sampled RoIs.
        masks: The targets of the mask head, or ``None``.
        keypoints: The targets of the keypoint head, or ``None``.
        losses: Name -> value, as the train chain reports them for a batch of this image.
    """

    example: TrainingExample
    config: Config
    class_names: tuple[str, ...]
    picture: np.ndarray
    objects: Annotations
    anchors: AnchorRoles
    rois: RoIRoles
    masks: MaskTargets | None
    keypoints: KeypointTargets | None
    losses: dict[str, float]


def trace_training(
    model: MaskRCNN,
    examples: Iterable[TrainingExample],
    *,
    sampling: Sampling | None = None,
    gamma: float = 1.0,
    freeze_bn: bool = False,
    frozen_stages: int | None = None,
) -> Iterator[TrainingTrace]:
    """Yield the training pass of each image: targets, sampled RoIs and losses, equal to those of a training run.

    The passes are those of :class:`mask_rcnn.training.train_chain.MaskRCNNTrainChain` on batches of one image, of the
    model as it is: nothing is updated.  The model does not change; a copy of it is frozen as for training.  Batch
    normalisations that are not frozen use the statistics of the one image.

    Args:
        model: The network, on any device.
        examples: The images, such as those of :class:`mask_rcnn.datasets.transforms.TrainingTransform`.
        sampling: Sampling sizes and IoU thresholds; ``None`` for the defaults, with the dialect's
            ``training.roi_batch``.
        gamma: Weight of the mask loss in the sum of the losses.
        freeze_bn: See :func:`mask_rcnn.training.freezing.freeze`.
        frozen_stages: See :func:`mask_rcnn.training.freezing.freeze`.

    Raises:
        TypeError: The model is not a network.
    """
    check_model(model)
    chain = RecordingTrainChain.of_copy(
        model, sampling=sampling, gamma=gamma, freeze_bn=freeze_bn, frozen_stages=frozen_stages
    )
    for example in examples:
        with np.errstate(all='ignore'):  # the losses of a network that overflows are NaN; no warning is needed
            result = _trace(chain, example)
        yield result


def input_annotations(example: TrainingExample) -> Annotations:
    """Return the objects of an example in pixels of the network input, with its padding.

    Args:
        example: The augmented example.

    Returns:
        Annotations: The objects in their order, with run lengths as segmentations; an object without an outline has an
        empty segmentation.
    """
    annotations, transform = example.annotations, example.image_transform
    keypoints = annotations.keypoints
    if keypoints is not None:
        keypoints = keypoints.copy()
        points = keypoints[:, :, :2] * np.array(transform.factors, np.float32)
        keypoints[:, :, :2] = points + np.array(transform.window[:2], np.float32)
    segmentations = tuple(_input_rle(segmentation, example) for segmentation in annotations.segmentations)
    boxes = transform.apply_boxes(annotations.boxes)
    return dataclasses.replace(annotations, boxes=boxes, segmentations=segmentations, keypoints=keypoints)


def _input_rle(segmentation: Segmentation, example: TrainingExample) -> Segmentation:
    """Return the run lengths of a segmentation in the padded network input."""
    if not segmentation:
        return segmentation
    mask = np.zeros(example.x.shape[1:], bool)
    bitmap = input_bitmap(segmentation, example.image_transform)
    mask[: bitmap.shape[0], : bitmap.shape[1]] = bitmap
    return encode_mask(mask)


def _trace(chain: RecordingTrainChain, example: TrainingExample) -> TrainingTrace:
    record, rpn, config = chain.record_example(example), chain.model.rpn, chain.model.config
    losses = {name: terms.value for name, terms in record.losses.items()}
    total = sum(value * (chain.gamma if name == 'roi_mask_loss' else 1) for name, value in losses.items())
    return TrainingTrace(
        example=example,
        config=config,
        class_names=names_of_classes(chain.model.class_names, config.n_fg_class),
        picture=viewable_input(example.x, config),
        objects=input_annotations(example),
        anchors=anchor_roles(
            record,
            example,
            rpn.host_anchors(record.feature_sizes, example.x.shape[1:]),
            rpn.strides,
            sampling=chain.sampling,
            dialect=config.dialect,
        ),
        rois=roi_roles(record, example, config.dialect),
        masks=mask_targets_of_record(record),
        keypoints=keypoint_targets_of_record(record),
        losses={**losses, 'loss': total},
    )
