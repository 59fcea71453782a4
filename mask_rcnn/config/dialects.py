"""Dialects: the conventions in which the original programs differ.

A converted weight file reproduces the detections of its original program only under the conventions of that program.  A
:class:`Dialect` holds the conventions of one program in groups, one group for each part of the network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mask_rcnn.config import fields
from mask_rcnn.config.conventions import (
    BackboneConventions,
    BoxConventions,
    DetectionConventions,
    InputConventions,
    KeypointConventions,
    LossConventions,
    MaskConventions,
    RoIConventions,
    RPNConventions,
    TrainingConventions,
)
from mask_rcnn.config.dialect_checks import CheckedConventions


@dataclass(frozen=True)
class Dialect(CheckedConventions):
    """The conventions of one original program.

    Args:
        name: Name of the dialect in weight files; a key of :data:`DIALECTS`.
        input: Conversion of an image into the network input.
        backbone: Layers of the backbone.
        boxes: Box arithmetic.
        rpn: Anchors and proposals.
        rois: Pooling of RoI features.
        detections: Postprocessing of the box head's output.
        masks: Pasting of predicted masks into the image.
        keypoints: Heat maps of keypoints and their decoding.
        losses: Losses of training.
        training: Data, frozen layers, sampling and optimisation of training.
    """

    name: str
    input: InputConventions
    backbone: BackboneConventions
    boxes: BoxConventions
    rpn: RPNConventions
    rois: RoIConventions
    detections: DetectionConventions
    masks: MaskConventions
    keypoints: KeypointConventions
    losses: LossConventions
    training: TrainingConventions

    def replace(self, **changes: Any) -> Dialect:
        """Return a copy with changed conventions.

        ``DETECTRON.replace(name='other', boxes={'offset': 0.0})`` changes the name and one field of a group.

        Args:
            **changes: New values of fields.  A mapping changes only some fields of a group.

        Returns:
            Dialect: The changed copy.

        Raises:
            TypeError: A field of the dialect or of a group does not exist.
        """
        groups = {
            name: dataclasses.replace(getattr(self, name), **change)
            for name, change in changes.items()
            if isinstance(change, Mapping) and hasattr(self, name)
        }
        return dataclasses.replace(self, **{**changes, **groups})

    def to_plain(self) -> str | dict[str, Any]:
        """Return JSON-compatible data: the name, or the name and the conventions that differ from its dialect.

        Raises:
            ValueError: No dialect of :data:`DIALECTS` has the name.
        """
        base = DIALECTS.get(self.name)
        if base is None:
            raise ValueError(
                f'the dialect {self.name!r} cannot be stored: it is not the name of a dialect in DIALECTS '
                f'({", ".join(DIALECTS)})'
            )
        changes: dict[str, Any] = {}
        for group in _GROUPS:
            before, after = vars(getattr(base, group)), vars(getattr(self, group))
            changed = {name: value for name, value in after.items() if value != before[name]}
            if changed:
                changes[group] = {n: list(v) if isinstance(v, tuple) else v for n, v in changed.items()}
        return {'name': self.name, **changes} if changes else self.name

    @classmethod
    def from_plain(cls, data: Any) -> Dialect:
        """Return the dialect of plain data: the inverse of :meth:`to_plain`.

        Raises:
            ValueError: A dialect or a convention does not exist, or a value is not allowed.
        """
        changes = dict(data) if isinstance(data, dict) else {'name': data}
        name = changes.pop('name', None)
        if not isinstance(name, str) or name not in DIALECTS:
            raise ValueError(f'unknown dialect {fields.describe_value(name)}; expected one of {", ".join(DIALECTS)}')
        for group, values in changes.items():
            known = vars(getattr(DIALECTS[name], group)) if group in _GROUPS else {}
            names = list(values) if known and isinstance(values, dict) else [group]
            unknown = [convention for convention in names if convention not in known]
            if unknown:
                shown = fields.describe_value(unknown[0])
                raise ValueError(f'unknown convention {shown} of the dialect {name}')
        return DIALECTS[name].replace(**changes)


#: The groups of conventions.
_GROUPS = tuple(field.name for field in dataclasses.fields(Dialect) if field.name != 'name')

#: Detectron (Caffe2): ``detectron/core/config.py`` and ``detectron/utils/boxes.py``.
DETECTRON = Dialect(
    name='detectron',
    input=InputConventions(
        channel_order='BGR',
        pixel_mean=(102.9801, 115.9465, 122.7717),
        pixel_std=(1.0, 1.0, 1.0),
        resize='opencv_float32',
        subtract_mean_first=True,
        side_rounding='half_even',
        round_long_side=True,
        upscale_only=False,
        letterbox=False,
        box_factors='scale',
        apply_orientation=True,
    ),
    backbone=BackboneConventions(bn_eps=1e-5, gn_groups=32, gn_eps=1e-5, stem_pool_pad=1, stride_in_3x3=False),
    boxes=BoxConventions(
        offset=1.0,
        clip_offset=1.0,
        max_log_scale=math.log(1000.0 / 16.0),
        rpn_delta_weights=(1.0, 1.0, 1.0, 1.0),
        box_delta_weights=(10.0, 10.0, 5.0, 5.0),
        nms_suppress_equal=True,
        nms_shift_limit=0,
        last_of_ties_first=False,
    ),
    rpn=RPNConventions(
        anchors='detectron',
        strides_from_sizes=False,
        rank_by_logits=False,
        clip_to_image=False,
        min_size_in_input=False,
        min_size_inclusive=True,
        drop_small_first=False,
        require_centre_inside=True,
        proposals_per_level=True,
    ),
    rois=RoIConventions(
        op='roi_align',
        aligned=False,
        level_rounding='floor',
        level_epsilon=1e-6,
        level_bias=0.0,
        average_half_window=False,
    ),
    detections=DetectionConventions(
        postprocess_in_input_space=False,
        shift_counts_background=False,
        min_box_size=0.0,
        clip_to_original=False,
        integer_boxes=False,
        best_class_only=False,
        score_threshold_inclusive=False,
        keep_ties=True,
        visualize_nms_threshold=None,
    ),
    masks=MaskConventions(
        padding=1,
        margin=0,
        box_offset=1,
        continuous_box=False,
        squeeze_at_border=False,
        threshold=0.5,
        threshold_inclusive=False,
    ),
    keypoints=KeypointConventions(decode_in_input=False, upsample_border='zero', softmax_grid='resized'),
    losses=LossConventions(
        rpn_smooth_l1_beta=1 / 9,
        box_smooth_l1_beta=1.0,
        box_loss_normalizer='sampled',
        rpn_loss_divides_by_batch_size=True,
        rpn_box_loss_divides_by_batch_size=False,
    ),
    training=TrainingConventions(
        frozen_stages=2,
        freeze_norms=False,
        fix_statistics=False,
        min_object_size=0.0,
        use_crowds=True,
        exclusive_corners=False,
        keypoint_shift=0.0,
        match_in_float32=False,
        anchors_inside_only=True,
        redraw_negatives=True,
        fpn_proposals=2000,
        match_in_input=False,
        roi_batch=512,
        share_keypoint_rois=False,
        mask_targets='polygons',
        decay_all=False,
        decay_norms=False,
        correct_momentum=True,
        sum_images=False,
    ),
)

#: Matterport's Mask R-CNN (TensorFlow 1, Keras): ``mrcnn/model.py`` and ``mrcnn/utils.py``.  Matterport normalises a
#: box to ``(y_min, x_min, y_max - 1, x_max - 1) / (side - 1)``.  This library uses the numerators, which are in pixels.
MATTERPORT = Dialect(
    name='matterport',
    input=InputConventions(
        channel_order='RGB',
        pixel_mean=(123.7, 116.8, 103.9),
        pixel_std=(1.0, 1.0, 1.0),
        resize='skimage_uint8',
        subtract_mean_first=False,
        side_rounding='half_even',
        round_long_side=True,
        upscale_only=True,
        letterbox=True,
        box_factors='scale',
        apply_orientation=True,
    ),
    backbone=BackboneConventions(bn_eps=1e-3, gn_groups=32, gn_eps=1e-5, stem_pool_pad=0, stride_in_3x3=False),
    boxes=BoxConventions(
        offset=0.0,
        clip_offset=1.0,
        max_log_scale=math.inf,
        rpn_delta_weights=(10.0, 10.0, 5.0, 5.0),
        box_delta_weights=(10.0, 10.0, 5.0, 5.0),
        nms_suppress_equal=False,
        nms_shift_limit=0,
        last_of_ties_first=False,
    ),
    rpn=RPNConventions(
        anchors='matterport',
        strides_from_sizes=False,
        rank_by_logits=False,
        clip_to_image=False,
        min_size_in_input=False,
        min_size_inclusive=True,
        drop_small_first=False,
        require_centre_inside=True,
        proposals_per_level=False,
    ),
    rois=RoIConventions(
        op='crop_and_resize',
        aligned=False,
        level_rounding='nearest',
        level_epsilon=0.0,
        level_bias=0.0,
        average_half_window=False,
    ),
    detections=DetectionConventions(
        postprocess_in_input_space=True,
        shift_counts_background=False,
        min_box_size=0.0,
        clip_to_original=False,
        integer_boxes=True,
        best_class_only=True,
        score_threshold_inclusive=True,
        keep_ties=False,
        visualize_nms_threshold=None,
    ),
    masks=MaskConventions(
        padding=0,
        margin=1,
        box_offset=0,
        continuous_box=False,
        squeeze_at_border=False,
        threshold=0.5,
        threshold_inclusive=True,
    ),
    keypoints=DETECTRON.keypoints,
    losses=LossConventions(
        rpn_smooth_l1_beta=1.0,
        box_smooth_l1_beta=1.0,
        box_loss_normalizer='positive',
        rpn_loss_divides_by_batch_size=False,
        rpn_box_loss_divides_by_batch_size=False,
    ),
    training=DETECTRON.training,  # fine-tuning follows Detectron
)

#: DeNA's ``Chainer_Mask_R-CNN``, the predecessor of this library, at its last commit (2018): Detectron's network with
#: the box arithmetic, anchors and targets of ChainerCV's Faster R-CNN.
DENA = DETECTRON.replace(
    name='dena',
    input={
        'subtract_mean_first': False,
        'round_long_side': False,
        'box_factors': 'width_ratio',
        'apply_orientation': False,
    },
    backbone={'bn_eps': 2e-5},
    boxes={'offset': 0.0, 'clip_offset': 0.0, 'max_log_scale': math.inf, 'last_of_ties_first': True},
    rpn={'anchors': 'dena', 'rank_by_logits': True, 'drop_small_first': True, 'require_centre_inside': False},
    rois={'average_half_window': True},
    detections={'visualize_nms_threshold': 0.3},
    masks={'squeeze_at_border': True},
    training={
        'frozen_stages': 0,
        'fix_statistics': True,
        'min_object_size': 10.0,
        'use_crowds': False,
        'redraw_negatives': False,
        'roi_batch': 128,
        'mask_targets': 'bitmap',
        'decay_all': True,
        'decay_norms': True,
        'correct_momentum': False,
        'sum_images': True,
    },
)

#: Detectron's conventions with the input (``slim/preprocessing``) and the ``bn_eps`` of TensorFlow's MobileNets.
MOBILENET = DETECTRON.replace(
    name='mobilenet',
    input={'channel_order': 'RGB', 'pixel_mean': (128.0, 128.0, 128.0), 'pixel_std': (128.0, 128.0, 128.0)},
    backbone={'bn_eps': 1e-3},
)

#: MindSpore's model zoo, ``maskrcnn`` and ``maskrcnn_mobilenetv1``: Detectron's conventions with another input, stem
#: padding and stride.
MINDSPORE = DETECTRON.replace(
    name='mindspore',
    input={'channel_order': 'RGB', 'pixel_mean': (123.675, 116.28, 103.53), 'pixel_std': (58.395, 57.12, 57.375)},
    backbone={'stem_pool_pad': 0, 'stride_in_3x3': True},
)

#: torchvision's detection models: ``torchvision/models/detection`` and ``torchvision/ops``.
TORCHVISION = DETECTRON.replace(
    name='torchvision',
    input={
        'channel_order': 'RGB',
        'pixel_mean': (123.675, 116.28, 103.53),
        'pixel_std': (58.395, 57.12, 57.375),
        'resize': 'torch_float32',
        'side_rounding': 'down',
        'round_long_side': False,
        'box_factors': 'side_ratios',
        'apply_orientation': False,
    },
    backbone={'stride_in_3x3': True},
    boxes={'offset': 0.0, 'clip_offset': 0.0, 'nms_suppress_equal': False, 'nms_shift_limit': 1000},
    rpn={
        'anchors': 'torchvision',
        'strides_from_sizes': True,
        'rank_by_logits': True,
        'clip_to_image': True,
        'min_size_in_input': True,
        'require_centre_inside': False,
    },
    rois={'level_epsilon': 0.0, 'level_bias': 1e-6},
    detections={
        'postprocess_in_input_space': True,
        'shift_counts_background': True,
        'min_box_size': 0.01,
        'keep_ties': False,
    },
    keypoints={'decode_in_input': True, 'upsample_border': 'repeat'},
    losses={'box_smooth_l1_beta': 1 / 9, 'rpn_loss_divides_by_batch_size': False},
    training={
        'freeze_norms': True,
        'use_crowds': False,
        'exclusive_corners': True,
        'match_in_float32': True,
        'anchors_inside_only': False,
        'redraw_negatives': False,
        'match_in_input': True,
        'share_keypoint_rois': True,
        'mask_targets': 'roi_align',
        'decay_all': True,
        'decay_norms': True,
        'correct_momentum': False,
    },
)

#: detectron2's Mask R-CNN: ``detectron2/modeling``, ``detectron2/layers`` and the defaults of ``detectron2/config``.
DETECTRON2 = TORCHVISION.replace(
    name='detectron2',
    input={
        'channel_order': 'BGR',
        'pixel_mean': (103.53, 116.28, 123.675),
        'pixel_std': (1.0, 1.0, 1.0),
        'resize': 'pillow_uint8',
        'subtract_mean_first': False,
        'side_rounding': 'half_up',
        'apply_orientation': True,
    },
    backbone={'stride_in_3x3': False},
    rpn={'anchors': 'detectron2', 'strides_from_sizes': False, 'min_size_inclusive': False},
    rois={'aligned': True, 'level_epsilon': 1e-8, 'level_bias': 0.0},
    detections={'shift_counts_background': False, 'min_box_size': 0.0, 'clip_to_original': True},
    masks={'padding': 0, 'continuous_box': True, 'threshold_inclusive': True},
    keypoints={'softmax_grid': 'predicted'},
    losses={
        'rpn_smooth_l1_beta': 0.0,
        'box_smooth_l1_beta': 0.0,
        'rpn_loss_divides_by_batch_size': True,
        'rpn_box_loss_divides_by_batch_size': True,
    },
    training={
        'keypoint_shift': 0.5,
        'fpn_proposals': 1000,
        'mask_targets': 'polygons_in_input',
        'decay_norms': False,
    },
)

#: All dialects by name.
DIALECTS = {
    dialect.name: dialect for dialect in (DETECTRON, DENA, MATTERPORT, MINDSPORE, MOBILENET, TORCHVISION, DETECTRON2)
}

#: Names of the dialects of this package, which cannot be registered again.
_BUILT_IN = frozenset(DIALECTS)


def register_dialect(dialect: Dialect) -> None:
    """Add a dialect to :data:`DIALECTS`, so that weight files can store its name.

    Programs that load such files must register the dialect first.  Dialects that keep the name of a dialect of this
    package need no registration: weight files store the conventions that differ from it.

    Args:
        dialect: The dialect.  It replaces a registered dialect of the same name.

    Raises:
        ValueError: The name is that of a dialect of this package, or not a letter that lower-case letters, digits,
            underscores and hyphens follow.
    """
    fields.check_new_name(dialect.name)
    if dialect.name in _BUILT_IN:
        raise ValueError(f'the dialect {dialect.name!r} is part of this package; choose another name')
    DIALECTS[dialect.name] = dialect
