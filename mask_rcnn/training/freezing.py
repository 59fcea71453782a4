"""What does not learn: the first stages, affine channels, and batch normalisation if one wants it so."""

from __future__ import annotations

import chainer
import chainer.links as L

from mask_rcnn.models.layers import AffineChannel2D, ConvNorm

#: Detectron's ``TRAIN.FREEZE_AT`` (``detectron/modeling/ResNet.py``): conv1 and res2.
FROZEN_STAGES = 2


class FrozenParameter(chainer.Parameter):
    """A parameter without a gradient: no graph is built for it, and optimizers have nothing to update."""

    @property
    def requires_grad(self) -> bool:
        return False

    def __copy__(self):
        frozen = FrozenParameter(self.array, name=self.name)
        frozen.update_rule = self.update_rule
        return frozen

    def __reduce__(self):
        return FrozenParameter, (self.array, None, self.name)


def freeze(model, *, freeze_bn: bool = False, stages: int = FROZEN_STAGES) -> None:
    """Freeze what Detectron freezes.

    - The first ``stages`` of the extractor, conv1 and res2, whole.  They get no gradient and keep nothing
      for a backward pass.  (A network that starts from random numbers should freeze none.)
    - Every affine channel: it stands for a batch normalisation with fixed statistics.
    - The batch normalisations of these stages, with ``freeze_bn`` all of them: they keep to their running
      statistics, as if they were affine channels, and neither these nor gamma and beta change.  Those that
      are not frozen use the statistics of the batch and learn.

    A frozen parameter is one with ``requires_grad`` false, a :class:`FrozenParameter` in the place of the
    former one: call this before ``optimizer.setup(model)``, and after the last change of the model's links
    (:func:`mask_rcnn.models.affine_to_bn` and its inverse).

    Args:
        model (mask_rcnn.models.MaskRCNN): Changed in place.
        freeze_bn: Also freeze the batch normalisations behind these stages.
        stages: How many of the backbone's stages (conv1, res2, res3 ...) do not learn.
    """
    model.extractor.frozen_stages = stages
    for stage in model.extractor.stages[:stages]:
        _freeze_parameters(stage)
        _fix_batch_normalization(stage)
    for link in model.links():
        if isinstance(link, AffineChannel2D):
            _freeze_parameters(link)
    if freeze_bn:
        _fix_batch_normalization(model)


def _fix_batch_normalization(root: chainer.Link) -> None:
    for link in root.links():
        if isinstance(link, ConvNorm) and isinstance(link.norm, L.BatchNormalization):
            link.bn_frozen = True
            _freeze_parameters(link.norm)


def _freeze_parameters(root: chainer.Link) -> None:
    for link in root.links():
        own = {name: value for name, value in vars(link).items() if isinstance(value, chainer.Parameter)}
        with link.init_scope():
            for name, param in own.items():
                setattr(link, name, FrozenParameter(param.array, name=name))
