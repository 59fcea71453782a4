"""The training pass of one image, recorded: targets, sampled RoIs and the terms of the losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import chainer
import numpy as np
from chainer.backends.cuda import to_cpu

from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.losses.elementwise import (
    sigmoid_cross_entropies,
    sigmoid_cross_entropy,
    smooth_l1,
    smooth_l1_losses,
)
from mask_rcnn.ops.losses.softmax import softmax_cross_entropies, softmax_cross_entropy
from mask_rcnn.targets import KeypointRoIs, RPNTargets, SampledRoIs, Sampling
from mask_rcnn.targets.keypoints import sample_keypoint_candidates
from mask_rcnn.targets.matching import Candidates
from mask_rcnn.targets.rois import sample_candidates
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.train_chain import MaskRCNNTrainChain


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The terms of one loss, a weighted sum.

    Args:
        value: The loss that the train chain reports.
        losses: Losses of the elements without their weights, floats; the first axis is that of the anchors or RoIs.
        weights: Weights of the elements, float32; they can be broadcast to ``losses``.
        outputs: The outputs of the network on which the losses depend: logits, deltas or, for cross entropies of a
            softmax, the probabilities of all classes.
    """

    value: float
    losses: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The terms of the sum."""
        return self.losses * self.weights


@dataclass
class TrainingRecord:
    """The intermediate results of the training pass of one image, filled in by :class:`RecordingTrainChain`.

    Attributes:
        feature_sizes: Height and width of each level of the features.
        anchors: The sampled anchors.
        proposals: ``(P, 4)`` float32 proposals in the network input.
        candidates: The boxes from which RoIs are sampled: the objects' boxes, then the proposals.
        sampled: ``(R,)`` int indices of the sampled RoIs among the candidates; empty for an image without any.
        rois: The sampled RoIs.
        mask_targets: ``(F, M, M)`` int32, or float32 of soft labels; one mask at least.  ``None`` without a mask head.
        keypoint_sampled: ``(Q,)`` int indices of the RoIs of the keypoint head among the candidates.
        keypoint_rois: The RoIs of the keypoint head; ``None`` without one.
        losses: Name of the loss -> its terms.
    """

    feature_sizes: list[tuple[int, int]] = field(default_factory=list)
    anchors: RPNTargets | None = None
    proposals: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    candidates: Candidates | None = None
    sampled: np.ndarray = field(default_factory=lambda: np.zeros(0, np.intp))
    rois: SampledRoIs | None = None
    mask_targets: np.ndarray | None = None
    keypoint_sampled: np.ndarray = field(default_factory=lambda: np.zeros(0, np.intp))
    keypoint_rois: KeypointRoIs | None = None
    losses: dict[str, LossTerms] = field(default_factory=dict)


class RecordingTrainChain(MaskRCNNTrainChain):
    """A train chain that records the intermediate results of images; see :class:`MaskRCNNTrainChain`.

    Everything is computed by the methods of the train chain.
    """

    def __init__(self, model: MaskRCNN, *, sampling: Sampling | None = None, gamma: float = 1.0):
        super().__init__(model, sampling=sampling, gamma=gamma)
        self._record = TrainingRecord()

    @classmethod
    def of_copy(
        cls,
        model: MaskRCNN,
        *,
        sampling: Sampling | None = None,
        gamma: float = 1.0,
        freeze_bn: bool = False,
        frozen_stages: int | None = None,
    ) -> RecordingTrainChain:
        """Return the chain of a copy of a model, frozen as for training; the model itself does not change.

        Args:
            model: The network, on any device.
            sampling: See :class:`MaskRCNNTrainChain`.
            gamma: See :class:`MaskRCNNTrainChain`.
            freeze_bn: See :func:`mask_rcnn.training.freezing.freeze`.
            frozen_stages: See :func:`mask_rcnn.training.freezing.freeze`.
        """
        copied = copy.deepcopy(model)
        freeze(copied, freeze_bn=freeze_bn, stages=frozen_stages)
        chain = cls(copied, sampling=sampling, gamma=gamma)
        chain.to_device(copied.device)
        chain.disable_graphs()  # their memory is not worth a single pass
        return chain

    def record_example(self, example: TrainingExample) -> TrainingRecord:
        """Return the intermediate results of one image; nothing is updated except batch statistics."""
        self._record = TrainingRecord()
        # With backprop, as in training: without it, layers use functions that round differently.
        with (
            chainer.using_device(self.device),
            chainer.using_config('train', True),
            chainer.using_config('enable_backprop', True),
        ):
            self._losses_of_group([example])
        return self._record

    def anchor_targets(
        self,
        examples: Sequence[TrainingExample],
        feature_sizes: Sequence[tuple[int, int]],
        rngs: Sequence[np.random.RandomState],
    ) -> list[RPNTargets]:
        """Record the result of :meth:`MaskRCNNTrainChain.anchor_targets`."""
        targets = super().anchor_targets(examples, feature_sizes, rngs)
        self._record.feature_sizes, self._record.anchors = list(feature_sizes), targets[0]
        return targets

    def _sample_rois(self, proposals: np.ndarray, example: TrainingExample, rng: np.random.RandomState) -> SampledRoIs:
        before = copy.deepcopy(rng)
        rois = super()._sample_rois(proposals, example, rng)
        candidates, *sampled = sample_candidates(
            proposals,
            example.annotations,
            example.image_transform,
            sampling=self.sampling,
            dialect=self.model.config.dialect,
            rng=before,
        )
        record = self._record
        record.proposals, record.candidates, record.rois = proposals, candidates, rois
        record.sampled = np.concatenate(sampled)
        return rois

    def _sample_keypoint_rois(
        self, proposals: np.ndarray, example: TrainingExample, rng: np.random.RandomState
    ) -> KeypointRoIs:
        before = copy.deepcopy(rng)
        rois = super()._sample_keypoint_rois(proposals, example, rng)
        _, self._record.keypoint_sampled = sample_keypoint_candidates(
            proposals,
            example.annotations,
            example.image_transform,
            sampling=self.sampling,
            dialect=self.model.config.dialect,
            rng=before,
        )
        self._record.keypoint_rois = rois
        return rois

    def _share_rois(self, rois: SampledRoIs, example: TrainingExample) -> tuple[KeypointRoIs, np.ndarray]:
        keypoint_rois, rows = super()._share_rois(rois, example)
        record = self._record
        record.keypoint_rois, record.keypoint_sampled = keypoint_rois, record.sampled[rows]
        return keypoint_rois, rows

    def _mask_targets(self, rois: Sequence[SampledRoIs], examples: Sequence[TrainingExample], size: int) -> np.ndarray:
        targets = super()._mask_targets(rois, examples, size)
        self._record.mask_targets = targets
        return targets

    def apply_loss(self, name: str, function: Callable, *arguments: Any, **options: Any) -> chainer.Variable:
        """Record the terms of the loss that :meth:`MaskRCNNTrainChain.apply_loss` returns."""
        loss = super().apply_loss(name, function, *arguments, **options)
        host = [to_cpu(chainer.as_array(argument)) for argument in arguments]
        losses, outputs = _TERMS[function](*host[:-1], **options)
        weights = host[-1].reshape(-1, *[1] * (losses.ndim - 1))
        self._record.losses[name] = LossTerms(float(to_cpu(loss.array)), losses, weights, outputs)
        return loss


def _sigmoid_terms(logits: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return sigmoid_cross_entropies(logits, indices, labels), logits[tuple(indices)]


def _smooth_l1_terms(
    predicted: np.ndarray, indices: np.ndarray, targets: np.ndarray, *, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    return smooth_l1_losses(predicted, indices, targets, beta=beta), predicted[tuple(indices)]


#: Function of a weighted loss -> the function of its terms and of the outputs of the network.
_TERMS: dict[Callable, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    sigmoid_cross_entropy: _sigmoid_terms,
    smooth_l1: _smooth_l1_terms,
    softmax_cross_entropy: softmax_cross_entropies,
}
