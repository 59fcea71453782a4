"""The network with its losses: what an optimizer's target is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.targets import (
    IGNORED,
    KeypointRoIs,
    RPNTargets,
    SampledRoIs,
    Sampling,
    mask_targets,
    rpn_targets,
    sample_keypoint_rois,
    sample_rois,
)
from mask_rcnn.training.losses import per_image_mean_weights, sigmoid_cross_entropy, smooth_l1, softmax_cross_entropy

#: Joined to an example's seed, so that what is drawn here has nothing to do with what made the example.
_SAMPLING_STREAM = 1


class MaskRCNNTrainChain(chainer.Chain):
    """Mask R-CNN's losses, as Detectron has them, or another dialect.

    Calling it reports, all as means over the images:

    - ``rpn_cls_loss``, ``rpn_loc_loss``: whether an anchor is an object, and where that is;
    - ``roi_cls_loss``, ``roi_loc_loss``: which object a RoI is, and where;
    - ``roi_mask_loss``: which of the RoI's pixels belong to it (before it is multiplied by ``gamma``), of a
      network with masks;
    - ``roi_keypoint_loss``: where its keypoints are, of a network with keypoints;
    - ``loss``: the sum of these, that of the masks times ``gamma``;
    - ``n_positive_anchor``, ``n_foreground_roi``: how many learned to be an object;
    - ``roi_accuracy``: part of the RoIs whose class is found.

    Every image counts the same (see :mod:`mask_rcnn.training.losses`), what is drawn for it comes from its
    own seed, and no image is padded to the size of another: images of one size go through the network
    together, others by themselves.  So a batch has the loss and gradient of its parts, however one divides
    it, to rounding; unless batch normalisations learn, whose statistics are those of the images of one size.

    Args:
        model (mask_rcnn.models.MaskRCNN): The network; see :func:`mask_rcnn.training.freezing.freeze`.
        sampling: How many anchors and RoIs learn, and from which overlaps on.
        gamma: Weight of the mask loss.
    """

    def __init__(self, model, *, sampling: Sampling = Sampling(), gamma: float = 1.0):
        super().__init__()
        self.sampling = sampling
        self.gamma = gamma
        with self.init_scope():
            self.model = model

    def forward(self, examples: Sequence[TrainingExample]) -> chainer.Variable:
        """Return the loss of some examples, a float32 scalar.

        Args:
            examples: At least one, of any sizes; they may have no objects, or crowds only.
        """
        means: dict = {}
        for group in group_by_size(examples):
            fraction = len(group) / len(examples)
            for name, value in self._losses_of_group(group).items():
                means[name] = means.get(name, 0) + value * fraction
        loss = sum(
            value * (self.gamma if name == 'roi_mask_loss' else 1.0)
            for name, value in means.items()
            if name.endswith('_loss')
        )
        reported = {name: chainer.as_array(value) for name, value in {**means, 'loss': loss}.items()}
        chainer.report(reported, self)
        return loss

    def _losses_of_group(self, examples: Sequence[TrainingExample]) -> dict:
        """Return the reported means, losses as variables, of images of one size."""
        rngs = [np.random.RandomState([example.seed, _SAMPLING_STREAM]) for example in examples]
        features = self.model.extractor(self._input(examples))
        logits, deltas = self.model.rpn(features)
        anchors = self.anchor_targets(examples, [own.shape[2:] for own in logits], rngs)
        rois = self.roi_targets(examples, *([own.array for own in outputs] for outputs in (logits, deltas)), rngs)
        return {**self.rpn_losses(logits, deltas, anchors), **self.roi_losses(features, rois, examples)}

    def _input(self, examples: Sequence[TrainingExample]):
        """Return images of one size on the device; in float16 if that is how cuDNN multiplies.

        A layer's result has the type of its input: so are all activations, also where no frozen stage makes them so.
        """
        x = self.xp.asarray(np.stack([example.x for example in examples]))
        is_half = cudnn_frontend.supports(x) and cudnn_frontend.current_precision().result == np.float16
        return x.astype(np.float16 if is_half else next(self.model.extractor.params()).dtype, copy=False)

    def anchor_targets(self, examples, map_sizes, rngs) -> list[RPNTargets]:
        """Return what the anchors of every image learn.

        Args:
            examples: Images of one size.
            map_sizes: Height and width of each feature map.
            rngs: A :class:`numpy.random.RandomState` for each image.
        """
        to_cpu = chainer.backends.cuda.to_cpu
        anchors = np.concatenate([to_cpu(own) for own in self.model.rpn.anchors(map_sizes)])
        targets = []
        for example, rng in zip(examples, rngs):
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

    def roi_targets(self, examples, logits, deltas, rngs) -> list[SampledRoIs]:
        """Return the RoIs that learn: drawn from the RPN's proposals, which are constants to the losses.

        Args:
            examples: Images of one size.
            logits: For each feature map, ``(N, A, h, w)`` array.
            deltas: For each feature map, ``(N, 4 * A, h, w)`` array.
            rngs: A :class:`numpy.random.RandomState` for each image.
        """
        targets = []
        for i, (example, rng) in enumerate(zip(examples, rngs)):
            proposals, _ = self.model.rpn.decode(
                [own[i] for own in logits],
                [own[i] for own in deltas],
                example.image_transform.input_size,
                example.image_transform.scale,
                pre_nms=self.sampling.train_pre_nms,
                post_nms=self.sampling.train_post_nms,
            )
            targets.append(self._sample(chainer.backends.cuda.to_cpu(proposals), example, rng))
        return targets

    def _sample(self, proposals, example: TrainingExample, rng) -> SampledRoIs:
        """Return the RoIs of one image that learn."""
        config = self.model.config
        rois = sample_rois(
            proposals,
            example.annotations,
            example.image_transform,
            sampling=self.sampling,
            dialect=config.dialect,
            rng=rng,
        )
        if not config.n_keypoint:
            return rois
        head = self.model.keypoint_head
        return dataclasses.replace(
            rois,
            keypoints=sample_keypoint_rois(
                proposals,
                example.annotations,
                example.image_transform,
                head.upsample_factor * head.pool.roi_size,
                sampling=self.sampling,
                offset=config.dialect.boxes.offset,
                rng=rng,
            ),
        )

    def rpn_losses(self, logits, deltas, targets: Sequence[RPNTargets]) -> dict:
        """Return the RPN's losses and counts.

        Args:
            logits: For each feature map, ``(N, A, h, w)`` variable.
            deltas: For each feature map, ``(N, 4 * A, h, w)`` variable.
            targets: For each image.
        """
        xp, n, dialect = self.xp, len(targets), self.model.config.dialect
        labels = np.stack([target.labels for target in targets])
        delta_targets = np.stack([target.deltas for target in targets])
        images = np.repeat(np.arange(n), labels.shape[1])
        weights = per_image_mean_weights(labels.ravel() != IGNORED, images, n)
        loc_weights = box_loss_weights(weights, labels.ravel() == 1, images, n, dialect)
        weights, loc_weights = weights.reshape(labels.shape), loc_weights.reshape(labels.shape)
        if len(logits) > 1 and dialect.losses.rpn_loss_divides_by_batch_size:
            # ``detectron/modeling/FPN.py`` ``add_fpn_rpn_losses`` divides by the number of anchors that it asked
            # for, which may be more than there are.
            weights = (labels != IGNORED) * np.float32(1 / (self.sampling.rpn_batch * n))
        return {
            'rpn_cls_loss': sigmoid_cross_entropy(
                _flatten_anchors(logits, 1)[:, :, 0], xp.asarray(labels), xp.asarray(weights)
            ),
            'rpn_loc_loss': smooth_l1(
                _flatten_anchors(deltas, 4),
                xp.asarray(delta_targets),
                xp.asarray(loc_weights[:, :, None]),
                beta=dialect.losses.rpn_smooth_l1_beta,
            ),
            'n_positive_anchor': np.count_nonzero(labels == 1) / n,
        }

    def roi_losses(self, features, rois: Sequence[SampledRoIs], examples: Sequence[TrainingExample]) -> dict:
        """Return the heads' losses and counts.

        The mask head looks at the foreground alone (and at one RoI that it ignores, if there is no foreground,
        as in Detectron: a head cannot do with none); the keypoint head at RoIs of its own.

        Args:
            features: ``(N, C, h, w)`` variables.
            rois: For each image.
            examples: The images, for the objects' shapes.
        """
        xp, n, dialect = self.xp, len(rois), self.model.config.dialect
        batch, images, labels, n_foreground = _foreground_first(rois)
        n_sampled_fg = max(n_foreground, 1)  # RoIs whose box and mask are looked at
        batch, indices = xp.asarray(batch), xp.asarray(images)
        h = self.model.box_head.roi_features(features, batch, indices)
        scores, deltas = self.model.box_head(h)
        other_losses = {}
        if self.model.config.masks:
            logits = self.model.mask_head(
                self.model.mask_head.roi_features(
                    features, batch[:n_sampled_fg], indices[:n_sampled_fg], h[:n_sampled_fg]
                )
            )
            other_losses['roi_mask_loss'] = self._mask_loss(
                logits, labels[:n_sampled_fg], images[:n_sampled_fg], rois, examples
            )
        if self.model.config.n_keypoint:
            other_losses['roi_keypoint_loss'] = self.keypoint_loss(features, [r.keypoints for r in rois])

        own_class = xp.asarray(np.maximum(labels[:n_sampled_fg], 1))
        own_deltas = F.reshape(deltas[:n_sampled_fg], (n_sampled_fg, -1, 4))[xp.arange(n_sampled_fg), own_class]
        delta_targets = np.zeros((n_sampled_fg, 4), np.float32)
        delta_targets[:n_foreground] = np.concatenate([r.deltas for r in rois])
        weights = per_image_mean_weights(labels != IGNORED, images, n)
        delta_weights = box_loss_weights(weights, labels > 0, images, n, dialect)[:n_sampled_fg, None]
        correct = scores.array.argmax(axis=1) == xp.asarray(labels)
        return {
            'roi_cls_loss': softmax_cross_entropy(scores, xp.asarray(labels), xp.asarray(weights)),
            'roi_loc_loss': smooth_l1(
                own_deltas, xp.asarray(delta_targets), xp.asarray(delta_weights), beta=dialect.losses.box_smooth_l1_beta
            ),
            **other_losses,
            'n_foreground_roi': n_foreground / n,
            'roi_accuracy': (correct * xp.asarray(weights)).sum(),
        }

    def _mask_loss(self, logits, labels, images, rois, examples) -> chainer.Variable:
        """Return the loss of the masks' logits ``(F, C, M, M)`` of the foreground's classes ``labels``."""
        xp = self.xp
        # Drawn while a GPU is still busy with the heads.
        masks = self._make_mask_targets(rois, examples, logits.shape[2])
        weights = per_image_mean_weights(masks.ravel() != IGNORED, np.repeat(images, masks[0].size), len(rois))
        own_logits = logits[xp.arange(len(labels)), xp.asarray(np.maximum(labels, 1) - 1)]
        return sigmoid_cross_entropy(own_logits, xp.asarray(masks), xp.asarray(weights.reshape(masks.shape)))

    def keypoint_loss(self, features, rois: Sequence[KeypointRoIs]) -> chainer.Variable:
        """Return the loss of the keypoints' places: a softmax over each heat map (He et al. 2017, section 5).

        What counts is a visible keypoint (``KRCNN.NORMALIZE_BY_VISIBLE_KEYPOINTS``, ``LOSS_WEIGHT`` 1).
        Where there is none, the head looks at one RoI that is ignored.

        Args:
            features: ``(N, C, h, w)`` variables.
            rois: For each image.
        """
        xp, head = self.xp, self.model.keypoint_head
        boxes = np.concatenate([r.rois for r in rois])
        locations = np.concatenate([r.locations for r in rois])
        images = np.repeat(np.arange(len(rois), dtype=np.int32), [len(r.rois) for r in rois])
        if not len(boxes):
            boxes, images = np.float32([[0, 0, 15, 15]]), np.zeros(1, np.int32)
            locations = np.full((1, self.model.config.n_keypoint), IGNORED, np.int32)
        heatmaps = head(head.pool(features, xp.asarray(boxes), xp.asarray(images)))
        images, locations = np.repeat(images, locations.shape[1]), locations.ravel()
        weights = per_image_mean_weights(locations != IGNORED, images, len(rois))
        return softmax_cross_entropy(
            F.reshape(heatmaps, (len(locations), -1)), xp.asarray(locations), xp.asarray(weights)
        )

    def _make_mask_targets(self, rois, examples, size: int) -> np.ndarray:
        """Return the mask targets ``(F, size, size)`` of all foreground, or one that is ignored."""
        offset = self.model.config.dialect.boxes.offset
        masks = np.concatenate(
            [
                mask_targets(r.boxes[: r.n_foreground], example.annotations, size, offset=offset)
                for r, example in zip(rois, examples)
            ]
        )
        return masks if len(masks) else np.full((1, size, size), IGNORED, np.int32)


def box_loss_weights(
    weights: np.ndarray, positive: np.ndarray, images: np.ndarray, n_images: int, dialect: Dialect
) -> np.ndarray:
    """Return the weights of anchors or RoIs in the loss of where they are.

    Args:
        weights: ``(K,)`` float32: those in the loss of what they are.
        positive: ``(K,)`` bool: which are objects.
        images: ``(K,)`` int: the image of each.
        n_images: Images of the batch.
        dialect: Gives ``losses.box_loss_normalizer``.

    Returns:
        numpy.ndarray: ``(K,)`` float32, 0 where nothing is an object.
    """
    if dialect.losses.box_loss_normalizer == 'sampled':
        return weights * positive
    return per_image_mean_weights(positive, images, n_images) / np.float32(4)


def group_by_size(examples: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    """Put examples whose network input has the same size together, keeping their order."""
    groups: dict = {}
    for example in examples:
        groups.setdefault(example.x.shape, []).append(example)
    return list(groups.values())


def _flatten_anchors(outputs, n_number: int) -> chainer.Variable:
    """Join the RPN's outputs ``(N, A * n_number, h, w)`` to ``(N, K, n_number)``, in the order of the anchors."""
    return F.concat(
        [
            F.reshape(
                F.transpose(F.reshape(h, (len(h), -1, n_number, *h.shape[2:])), (0, 3, 4, 1, 2)), (len(h), -1, n_number)
            )
            for h in outputs
        ],
        axis=1,
    )


def _foreground_first(rois: Sequence[SampledRoIs]):
    """Join the RoIs of all images: the foreground of all, then the rest.

    Returns:
        tuple: RoIs ``(R, 4)`` float32, their images ``(R,)`` int32, their labels ``(R,)`` int32, and how many
        of them are foreground.
    """
    boxes = np.concatenate([r.rois for r in rois])
    images = np.repeat(np.arange(len(rois), dtype=np.int32), [len(r.rois) for r in rois])
    labels = np.concatenate([r.labels for r in rois])
    order = np.argsort(labels <= 0, kind='stable')
    return boxes[order], images[order], labels[order], int(np.count_nonzero(labels > 0))
