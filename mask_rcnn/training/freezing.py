"""Freezing: the first backbone stages, affine channels, and statistics or parameters of batch normalisation."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.links as L

from mask_rcnn.config import Config
from mask_rcnn.models import MaskRCNN
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.models.norms import AffineChannel2D


class FrozenParameter(chainer.Parameter):
    """A parameter without a gradient: no graph is built for it, and optimizers do not update it."""

    @property
    def requires_grad(self) -> bool:
        return False

    def __copy__(self) -> FrozenParameter:
        array: Any = self.array
        frozen = FrozenParameter(array, name=self.name)
        frozen.update_rule = self.update_rule
        return frozen

    def __reduce__(self) -> tuple:
        return FrozenParameter, (self.array, None, self.name)


def freeze(model: MaskRCNN, *, freeze_bn: bool = False, stages: int | None = None) -> None:
    """Freeze the layers that the original program of the model's dialect freezes.

    - The first ``stages`` stages of the backbone.  They get no gradient and store nothing for the backward pass.
      (A randomly initialised network should freeze none.)
    - Every affine channel, which is a batch normalisation with fixed statistics, unless the dialect's
      ``training.fix_statistics`` is set: scale and bias are then trained like gamma and beta.
    - The batch normalisations of the frozen stages, and all of them with ``freeze_bn`` or the dialect's
      ``training.freeze_norms``.  They use their running statistics, like affine channels; the statistics, gamma and
      beta stay constant.
    - The statistics of the other batch normalisations, if the dialect's ``training.fix_statistics`` is set: they use
      their running statistics, which stay constant, and gamma and beta are trained.  Otherwise they use the statistics
      of the batch, and the running statistics follow it.

    A frozen parameter has ``requires_grad`` false: a :class:`FrozenParameter` replaces the original one.  Call this
    function before ``optimizer.setup(model)`` and after the last change of the model's links
    (:func:`mask_rcnn.models.affine_to_bn` and its inverse).

    Args:
        model: Changed in place.  A chain without ``config`` follows Detectron.
        freeze_bn: Also freeze the batch normalisations, or the affine channels, after the frozen stages.
        stages: Number of frozen backbone stages (conv1, res2, res3 ...); ``None`` for the dialect's
            ``training.frozen_stages``.
    """
    conventions = getattr(model, 'config', Config()).dialect.training
    stages = conventions.frozen_stages if stages is None else stages
    freeze_bn = freeze_bn or conventions.freeze_norms
    model.extractor.frozen_stages = stages
    for stage in model.extractor.stages[:stages]:
        _freeze_parameters(stage)
        _fix_statistics(stage)
    for link in model.links():
        freezes_affine = isinstance(link, AffineChannel2D) and not conventions.fix_statistics
        if freezes_affine or (freeze_bn and isinstance(link, (AffineChannel2D, L.BatchNormalization))):
            _freeze_parameters(link)
    if freeze_bn or conventions.fix_statistics:
        _fix_statistics(model)


def uses_batch_statistics(root: chainer.Link) -> bool:
    """Return whether a link normalises with the statistics of the batch in training; see :func:`freeze`."""
    with_fixed = [link.norm for link in root.links() if isinstance(link, ConvNorm) and link.bn_frozen]
    norms = [link for link in root.links() if isinstance(link, L.BatchNormalization)]
    return any(all(norm is not other for other in with_fixed) for norm in norms)


def _fix_statistics(root: chainer.Link) -> None:
    for link in root.links():
        if isinstance(link, ConvNorm) and isinstance(link.norm, L.BatchNormalization):
            link.bn_frozen = True


def _freeze_parameters(root: chainer.Link) -> None:
    for link in root.links():
        params = {name: value for name, value in vars(link).items() if isinstance(value, chainer.Parameter)}
        with link.init_scope():
            for name, param in params.items():
                array: Any = param.array
                setattr(link, name, FrozenParameter(array, name=name))
