"""The train chain: the network with its losses, the target of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.datasets.example import TrainingExample, group_by_size
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors
from mask_rcnn.ops.losses.elementwise import sigmoid_cross_entropy, smooth_l1
from mask_rcnn.ops.losses.softmax import softmax_cross_entropy
from mask_rcnn.ops.losses.weighted_sum import weighted_sum
from mask_rcnn.ops.roi.first_rois import first_rois
from mask_rcnn.ops.runtime.cuda_graph import graph_settings
from mask_rcnn.ops.runtime.device import uses_padding
from mask_rcnn.ops.runtime.training_graph import TrainingGraphs
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy, pack_arrays, upload, upload_together
from mask_rcnn.ops.runtime.weight_cache import drop_weight_cache
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets import (
    IGNORED,
    KeypointRoIs,
    RPNTargets,
    SampledRoIs,
    Sampling,
    foreground_mask_targets,
    network_sampling,
    rpn_targets,
    sample_keypoint_rois,
    sample_rois,
    share_rois,
)
from mask_rcnn.training.freezing import uses_batch_statistics
from mask_rcnn.training.losses import box_loss_weights, per_image_mean_weights
from mask_rcnn.training.roi_batch import RoIBatch, image_indices

#: With CUDA graphs the number of RoIs of the mask head is a multiple of this.
_MASK_ROI_STEP = 64
#: Second word of the sampling seed.  It equals ``datasets.transforms._FLIP_STREAM``, so the flip is decided by the
#: first random number of the same stream; a change would change all training runs.
_SAMPLING_STREAM = 1


class MaskRCNNTrainChain(chainer.Chain):
    """Mask R-CNN with the losses of Detectron or of another dialect.

    Calling it reports these means over the images:

    - ``rpn_cls_loss``, ``rpn_loc_loss``: objectness and box regression loss of the anchors;
    - ``roi_cls_loss``, ``roi_loc_loss``: classification and box regression loss of the RoIs;
    - ``roi_mask_loss``: mask loss before it is multiplied by ``gamma``, if the network has a mask head;
    - ``roi_keypoint_loss``: keypoint loss, if the network has a keypoint head;
    - ``loss``: the sum of these losses, with the mask loss multiplied by ``gamma``;
    - ``n_positive_anchor``, ``n_foreground_roi``: the number of positive anchors and of foreground RoIs;
    - ``roi_accuracy``: the fraction of RoIs that are classified correctly.

    The loss and the gradient of a batch equal those of its parts up to rounding, for any division of the batch:
    every image has the same weight (see :mod:`mask_rcnn.training.losses`), its sampling depends on its seed
    only, and no image is padded to the size of another.  Images of one size go through the network together.
    Batch normalisation in training mode is the exception: its statistics are computed over the images of one size.

    Args:
        model: The network; see :func:`mask_rcnn.training.freezing.freeze`.
        sampling: Sampling sizes and IoU thresholds; ``None`` for those of
            :func:`~mask_rcnn.targets.sampling.network_sampling`.
        gamma: Weight of the mask loss.
    """

    def __init__(self, model: MaskRCNN, *, sampling: Sampling | None = None, gamma: float = 1.0):
        super().__init__()
        self.sampling = sampling or network_sampling(model.config)
        self.gamma = gamma
        with self.init_scope():
            self.model = model
        self._trunk_graphs, self._head_graphs = TrainingGraphs(), TrainingGraphs()
        drop_weight_cache(model)  # training needs the memory

    def forward(self, examples: Sequence[TrainingExample]) -> chainer.Variable:
        """Return the loss of some examples, a float32 scalar.

        Args:
            examples: At least one, of any sizes; they may contain no objects, or only crowd regions.

        Raises:
            ValueError: ``examples`` is empty.
        """
        if not examples:
            raise ValueError('the loss needs at least one example')
        groups = group_by_size(examples)
        values = [self._losses_of_group(group) for group in groups]
        fractions = [len(group) / len(examples) for group in groups]
        terms = [
            (value, fraction * (self.gamma if name == 'roi_mask_loss' else 1.0))
            for group_values, fraction in zip(values, fractions, strict=True)
            for name, value in group_values.items()
            if name.endswith('_loss')
        ]
        loss = weighted_sum(*zip(*terms, strict=True))
        chainer.report({**_means(values, fractions), 'loss': loss.array}, self)
        return loss

    def passes(self, examples: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
        """Divide examples into groups of one size, for passes that take less memory and may use CUDA graphs."""
        return group_by_size(examples)

    def disable_graphs(self) -> bool:
        """Delete all CUDA graphs, with their memory, and use no more; return whether there were any."""
        had_trunk_graphs, had_head_graphs = self._trunk_graphs.disable(), self._head_graphs.disable()
        return had_trunk_graphs or had_head_graphs

    def _losses_of_group(self, examples: Sequence[TrainingExample]) -> dict[str, Any]:
        """Return the reported means of images of one size; the losses are variables."""
        rngs = [np.random.RandomState([example.seed, _SAMPLING_STREAM]) for example in examples]
        features, logits, deltas, proposals = self._run_trunk(examples)
        wait_for_proposals = _start_copy(proposals, self.device)
        # The CPU computes the targets of the anchors while a GPU runs the trunk.
        anchors = self.anchor_targets(examples, [level.shape[2:] for level in features], rngs)
        rpn_losses = self.rpn_losses(logits, deltas, anchors)
        rois, keypoint_rois = self.roi_targets(examples, wait_for_proposals(), rngs)
        return {**rpn_losses, **self.roi_losses(features, rois, examples, keypoint_rois)}

    def _run_trunk(self, examples: Sequence[TrainingExample]) -> tuple[Any, Any, Any, Any]:
        """Run the extractor and the RPN on images of one size, on a GPU as CUDA graphs if the size recurs.

        Returns:
            tuple: The features of each level, the flat logits and deltas of the RPN, and the proposals of each image.
        """
        x, model = self._input(examples), self.model
        transforms = [example.image_transform for example in examples]

        def trunk(x):
            features = model.extractor(x)
            logits, deltas = model.rpn(features)
            level_logits, level_deltas = ([level.array for level in levels] for levels in (logits, deltas))
            proposals = self.propose(level_logits, level_deltas, x.shape[2:], transforms)
            return [*features, flatten_anchors(logits, 1), flatten_anchors(deltas, 4), *proposals]

        # The scale of an image only matters to the minimum size of proposals.
        uses_scale = model.rpn.config.rpn_min_size and not model.rpn.config.dialect.rpn.min_size_in_input
        scales = [transform.factors[0] if uses_scale else None for transform in transforms]
        sizes = [transform.input_size for transform in transforms]
        key = (*sizes, *scales, self.sampling, *graph_settings(model))
        outputs = self._trunk_graphs.run(trunk, [x], [model.extractor, model.rpn], key)
        n = len(examples)
        return tuple(outputs[: -n - 2]), outputs[-n - 2], outputs[-n - 1], outputs[-n:]

    def propose(
        self,
        logits: Sequence,
        deltas: Sequence,
        input_size: Sequence[int],
        transforms: Sequence[ImageTransform],
    ) -> list:
        """Return the RPN's proposals of each image; no gradient flows through them.

        Args:
            logits: For each level, ``(N, A, h, w)`` array.
            deltas: For each level, ``(N, 4 * A, h, w)`` array.
            input_size: Height and width of the network input, with its padding.
            transforms: For each image.

        Returns:
            list: For each image, ``(P, 4)`` float32 boxes in the network input, in descending order of objectness; on a
            GPU with rows of NaN as padding.
        """
        return [
            self.model.rpn.decode(
                [level_logits[i] for level_logits in logits],
                [level_deltas[i] for level_deltas in deltas],
                input_size,
                transform,
                clip_to_image=True,
                pre_nms=self.sampling.train_pre_nms,
                post_nms=self.sampling.train_post_nms,
                padded=uses_padding(self.device),
            )[0]
            for i, transform in enumerate(transforms)
        ]

    def _input(self, examples: Sequence[TrainingExample]):
        """Return images of one size on the device, as float16 if cuDNN computes in float16.

        Layers keep the dtype of their input, so casting the input makes all activations float16, with or without
        frozen stages.
        """
        x = self.xp.stack([upload(example.x, self.xp) for example in examples])
        is_half = cudnn_frontend.supports(x) and cudnn_frontend.current_precision().result == np.float16
        return x.astype(np.float16 if is_half else next(self.model.extractor.params()).dtype, copy=False)

    def anchor_targets(
        self,
        examples: Sequence[TrainingExample],
        feature_sizes: Sequence[tuple[int, int]],
        rngs: Sequence[np.random.RandomState],
    ) -> list[RPNTargets]:
        """Return the training targets for the anchors of every image.

        Args:
            examples: Images of one size.
            feature_sizes: Height and width of each level of the features.
            rngs: One random number generator per image.
        """
        anchors = self.model.rpn.host_anchors(feature_sizes, examples[0].x.shape[1:])
        targets = []
        for example, rng in zip(examples, rngs, strict=True):
            objects = example.annotations.boxes[~example.annotations.crowd]
            targets.append(
                rpn_targets(
                    anchors,
                    example.image_transform.apply_boxes(objects),
                    example.image_transform.input_size,
                    sampling=self.sampling,
                    dialect=self.model.config.dialect,
                    rng=rng,
                )
            )
        return targets

    def roi_targets(
        self,
        examples: Sequence[TrainingExample],
        proposals: Sequence[np.ndarray],
        rngs: Sequence[np.random.RandomState],
    ) -> tuple[list[SampledRoIs], list[KeypointRoIs]]:
        """Sample RoIs from the RPN's proposals.

        Args:
            examples: Images of one size.
            proposals: For each image, ``(P, 4)`` float32 boxes in the network input, on the host, without padding.
            rngs: One random number generator per image.

        Returns:
            tuple: For each image, the RoIs of the box and mask heads, and those of the keypoint head; the second
            list is empty for a network without a keypoint head.
        """
        rois, keypoint_rois = [], []
        for boxes, example, rng in zip(proposals, examples, rngs, strict=True):
            rois.append(self._sample_rois(boxes, example, rng))
            if self.model.config.n_keypoint:
                if self.model.config.dialect.training.share_keypoint_rois:
                    keypoint_rois.append(self._share_rois(rois[-1], example)[0])
                else:
                    keypoint_rois.append(self._sample_keypoint_rois(boxes, example, rng))
        return rois, keypoint_rois

    def _sample_rois(self, proposals: np.ndarray, example: TrainingExample, rng: np.random.RandomState) -> SampledRoIs:
        return sample_rois(
            proposals,
            example.annotations,
            example.image_transform,
            sampling=self.sampling,
            dialect=self.model.config.dialect,
            rng=rng,
        )

    def _sample_keypoint_rois(
        self, proposals: np.ndarray, example: TrainingExample, rng: np.random.RandomState
    ) -> KeypointRoIs:
        return sample_keypoint_rois(
            proposals,
            example.annotations,
            example.image_transform,
            self._heatmap_size,
            sampling=self.sampling,
            dialect=self.model.config.dialect,
            rng=rng,
        )

    def _share_rois(self, rois: SampledRoIs, example: TrainingExample) -> tuple[KeypointRoIs, np.ndarray]:
        dialect = self.model.config.dialect
        return share_rois(rois, example.annotations, example.image_transform, self._heatmap_size, dialect=dialect)

    @property
    def _heatmap_size(self) -> int:
        head = self.model.keypoint_head
        return head.upsample_factor * head.pool.roi_size

    def rpn_losses(
        self, logits: chainer.Variable, deltas: chainer.Variable, targets: Sequence[RPNTargets]
    ) -> dict[str, Any]:
        """Return the losses and counts of the RPN.

        Args:
            logits: ``(N, K)`` variable.
            deltas: ``(N, K, 4)`` variable.
            targets: For each image.
        """
        n, dialect = len(targets), self.model.config.dialect
        images = np.repeat(np.arange(n), [len(target.indices) for target in targets])
        indices = np.stack([images, np.concatenate([target.indices for target in targets])]).astype(np.int32)
        labels = np.concatenate([target.labels for target in targets]).astype(np.int32, copy=False)
        weights = per_image_mean_weights(np.ones(len(labels), bool), images, n)
        loc_weights = box_loss_weights(weights, labels == 1, images, n, dialect)
        if dialect.losses.rpn_box_loss_divides_by_batch_size:
            weights = self._weights_of_batch_size(len(labels), n)
            loc_weights = weights * (labels == 1)
        elif len(self.model.rpn.strides) > 1 and dialect.losses.rpn_loss_divides_by_batch_size:
            # ``detectron/modeling/FPN.py`` ``add_fpn_rpn_losses`` divides by the configured number of anchors, even
            # if fewer are sampled.
            weights = self._weights_of_batch_size(len(labels), n)
        n_positive = np.count_nonzero(labels == 1)
        delta_targets = np.concatenate([target.deltas for target in targets])
        indices, labels, weights, loc_weights, delta_targets = upload_together(
            [indices, labels, weights, loc_weights, delta_targets], self.xp
        )
        return {
            'rpn_cls_loss': self.apply_loss('rpn_cls_loss', sigmoid_cross_entropy, logits, indices, labels, weights),
            'rpn_loc_loss': self.apply_loss(
                'rpn_loc_loss',
                smooth_l1,
                deltas,
                indices,
                delta_targets,
                loc_weights,
                beta=dialect.losses.rpn_smooth_l1_beta,
            ),
            'n_positive_anchor': n_positive / n,
        }

    def _weights_of_batch_size(self, n_anchors: int, n_images: int) -> np.ndarray:
        """Return the weights of sampled anchors in a sum that is divided by the requested number of anchors."""
        return np.full(n_anchors, 1 / (self.sampling.rpn_batch * n_images), np.float32)

    def roi_losses(
        self,
        features: Sequence,
        rois: Sequence[SampledRoIs],
        examples: Sequence[TrainingExample],
        keypoint_rois: Sequence[KeypointRoIs] = (),
    ) -> dict[str, Any]:
        """Return the losses and counts of the heads.

        The box head gets all sampled RoIs, the mask head only the foreground, and the keypoint head ``keypoint_rois``.

        Args:
            features: For each level, ``(N, C, h, w)`` variable.
            rois: For each image.
            examples: The images, for the segmentations of their objects.
            keypoint_rois: For each image, if the network has a keypoint head.
        """
        model, batch = self.model, RoIBatch.join(rois)
        host_weights = per_image_mean_weights(batch.labels != IGNORED, batch.images, batch.n_images)
        boxes, images, labels, weights, *delta_targets = upload_together(
            [batch.boxes, batch.images, batch.labels, host_weights, *self._delta_targets(batch, host_weights)], self.xp
        )
        scores, deltas, *mask_logits = self._run_heads(features, boxes, images, batch.n_mask_rois)
        head_losses = {}
        for logits in mask_logits:
            # The CPU rasterises the targets while a GPU still runs the heads.
            targets = self._mask_targets(rois, examples, logits.shape[2])
            head_losses['roi_mask_loss'] = self._mask_loss(logits, targets, batch)
        if model.config.n_keypoint:
            head_losses['roi_keypoint_loss'] = self.keypoint_loss(features, keypoint_rois)
        correct = scores.array.argmax(axis=1) == labels
        return {
            'roi_cls_loss': self.apply_loss('roi_cls_loss', softmax_cross_entropy, scores, labels, weights),
            'roi_loc_loss': self.apply_loss(
                'roi_loc_loss',
                smooth_l1,
                deltas,
                *delta_targets,
                beta=model.config.dialect.losses.box_smooth_l1_beta,
            ),
            **head_losses,
            'n_foreground_roi': batch.n_foreground / batch.n_images,
            'roi_accuracy': (correct * weights).sum(),
        }

    def _run_heads(self, features: Sequence, boxes: Any, images: Any, n_mask_rois: int) -> Sequence[Any]:
        """Run the box head and the mask head, on a GPU as CUDA graphs if the numbers of RoIs recur.

        Args:
            features: For each level, ``(N, C, h, w)`` variable.
            boxes: ``(R, 4)`` float32 RoIs in the network input.
            images: ``(R,)`` int32 index of the image of each RoI.
            n_mask_rois: Number of RoIs of the mask head, which are the first ones.

        Returns:
            list: Scores ``(R, 1 + C)``, deltas ``(R, 4 * (1 + C))`` and, with a mask head, mask logits
            ``(F, C, M, M)``.  With CUDA graphs, F is rounded up so that few numbers occur, unless the statistics of the
            RoIs normalise the features.
        """
        model, inputs = self.model, [*features, boxes, images]
        if self._head_graphs.is_active(inputs) and not (model.config.masks and uses_batch_statistics(model.mask_head)):
            n_mask_rois = min(n_mask_rois + -n_mask_rois % _MASK_ROI_STEP, len(boxes))

        def heads(*inputs):
            *features, boxes, images = inputs
            h = model.box_head.roi_features(features, boxes, images)
            outputs = list(model.box_head(h))
            if model.config.masks:
                n = n_mask_rois
                mask_h = model.mask_head.roi_features(features, boxes[:n], images[:n], first_rois(h, n))
                outputs.append(model.mask_head(mask_h))
            return outputs

        links = [model.box_head, *([model.mask_head] if model.config.masks else [])]
        return self._head_graphs.run(heads, inputs, links, (n_mask_rois, *graph_settings(model)))

    def _delta_targets(self, batch: RoIBatch, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the targets of the box regression loss, for the deltas of the foreground's classes.

        Args:
            batch: The RoIs.
            weights: ``(R,)`` float32 weights of the RoIs in the classification loss.

        Returns:
            tuple: The indices ``(2, 4 * F)`` int32 of the deltas in the box head's output ``(R, 4 * C)``, their
            targets and their weights ``(4 * F,)`` float32; F is ``batch.n_mask_rois``.
        """
        n, dialect = batch.n_mask_rois, self.model.config.dialect
        loss_weights = box_loss_weights(weights, batch.labels > 0, batch.images, batch.n_images, dialect)[:n]
        rows, classes = batch.class_indices
        columns = 4 * classes[:, None] + np.arange(4, dtype=np.int32)
        return np.stack([np.repeat(rows, 4), columns.ravel()]), batch.deltas.ravel(), np.repeat(loss_weights, 4)

    def _mask_loss(self, logits: Any, targets: np.ndarray, batch: RoIBatch) -> chainer.Variable:
        """Return the loss of the mask logits ``(F, C, M, M)``, for the masks of the RoIs' classes.

        Args:
            logits: The output of the mask head.
            targets: ``(F, M, M)`` int32, or float32 of soft labels; a mask is ignored as a whole or not at all.
            batch: The RoIs.
        """
        n_pixels = targets[0].size * (targets[:, 0, 0] != IGNORED)
        weights = per_image_mean_weights(n_pixels, batch.images[: batch.n_mask_rois], batch.n_images)
        indices = batch.class_indices - np.array([[0], [1]], np.int32)  # the background has no masks
        arguments = upload_together([indices, targets, weights], self.xp)
        return self.apply_loss('roi_mask_loss', sigmoid_cross_entropy, logits, *arguments)

    def _mask_targets(self, rois: Sequence[SampledRoIs], examples: Sequence[TrainingExample], size: int) -> np.ndarray:
        """Return the mask targets ``(F, size, size)`` of all foreground RoIs, or one ignored mask if F is 0."""
        dialect, pairs = self.model.config.dialect, zip(rois, examples, strict=True)
        masks = np.concatenate(
            [
                foreground_mask_targets(image_rois, image.annotations, image.image_transform, size, dialect=dialect)
                for image_rois, image in pairs
            ]
        )
        return masks if len(masks) else np.full((1, size, size), IGNORED, masks.dtype)

    def keypoint_loss(self, features: Sequence, rois: Sequence[KeypointRoIs]) -> chainer.Variable:
        """Return the keypoint loss: softmax cross entropy over each heat map (He et al. 2017, section 5).

        It is a mean over the labelled keypoints (``KRCNN.NORMALIZE_BY_VISIBLE_KEYPOINTS``, ``LOSS_WEIGHT`` 1).
        Without RoIs, the head runs on one dummy RoI with ignored targets.

        Args:
            features: For each level, ``(N, C, h, w)`` variable.
            rois: For each image.
        """
        head = self.model.keypoint_head
        boxes = np.concatenate([image_rois.rois for image_rois in rois])
        locations = np.concatenate([image_rois.locations for image_rois in rois])
        images = image_indices(rois)
        if not len(boxes):
            boxes, images = np.array([[0, 0, 15, 15]], np.float32), np.zeros(1, np.int32)
            locations = np.full((1, self.model.config.n_keypoint), IGNORED, np.int32)
        labels = locations.ravel()
        weights = per_image_mean_weights(labels != IGNORED, np.repeat(images, locations.shape[1]), len(rois))
        boxes, images, labels, weights = upload_together([boxes, images, labels, weights], self.xp)
        heatmaps = head(head.pool(features, boxes, images))
        rows = F.reshape(heatmaps, (len(labels), -1))
        return self.apply_loss('roi_keypoint_loss', softmax_cross_entropy, rows, labels, weights)

    def apply_loss(self, name: str, function: Callable, *arguments: Any, **options: Any) -> chainer.Variable:
        """Return ``function(*arguments, **options)``, the loss with a name.

        Every loss is computed by a call of this method, so that a subclass can record the arguments:
        :class:`mask_rcnn.inspect.training.record.RecordingTrainChain`.
        """
        return function(*arguments, **options)


def _means(values: Sequence[dict[str, Any]], fractions: Sequence[float]) -> dict[str, Any]:
    """Return the means of the reported values of groups of images, as arrays or numbers."""
    if len(values) == 1:  # no kernels
        return {name: chainer.as_array(value) for name, value in values[0].items()}
    return {
        name: sum(
            chainer.as_array(group_values[name]) * fraction
            for group_values, fraction in zip(values, fractions, strict=True)
        )
        for name in values[0]
    }


def _start_copy(proposals: Sequence, device: chainer.backend.Device) -> Callable[[], list[np.ndarray]]:
    """Start to copy the proposals of each image to the host; return a function that waits and removes padding."""
    if not uses_padding(device):
        return lambda: list(proposals)
    copy = AsyncHostCopy(pack_arrays(proposals))
    return lambda: [boxes[~np.isnan(boxes[:, 0])] for boxes in copy.wait() if boxes is not None]
