"""Momentum SGD with the settings of Detectron (``detectron/modeling/optimizer.py``, ``detector.py``) or DeNA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chainer
from chainer import optimizers

from mask_rcnn.ops.runtime.transfer import read_scalars
from mask_rcnn.training.fused_update import FusedUpdate, WeightDecay, double_gradient, is_updated, prepare_update

#: Parameters of normalisation links, which have the base learning rate and no weight decay.
_NORM_PARAMETERS = ('scale', 'bias', 'gamma', 'beta')

#: Detectron corrects the momentum if the learning rate changes by more than this factor
#: (``SOLVER.SCALE_MOMENTUM_THRESHOLD``) and was greater than this minimum.
_CORRECTION_THRESHOLD = 1.1
_CORRECTION_MIN_RATE = 1e-7

#: The smallest loss scale of dynamic loss scaling.  A float16 gradient that overflows with it exceeds 4e9 without it.
MIN_LOSS_SCALE = 2.0**-16


class MomentumSGD(optimizers.MomentumSGD):
    """Chainer's momentum SGD with one overflow check per update, and a dynamic loss scale that may be below 1.

    To skip an update whose float16 gradients have overflowed, Chainer synchronises with the GPU and warns once for
    each parameter.  Its loss scale is at least 1, with which the gradient of a small network can overflow in every
    iteration: batch normalisation over a few equal values multiplies gradients by up to ``eps ** -0.5``, about 300, in
    each layer.
    """

    target: chainer.Link  # set by setup()
    corrects_momentum = True  # see set_learning_rate()
    _grad_norm: float | None = None
    _params: list[Any] | None = None  # of the target, during an update
    _fused_update: FusedUpdate | None = None
    _loss_scaling_isnan = False

    def cleargrads(self) -> None:
        """Clear the gradients; until the end of :meth:`update`, the target must keep its parameters."""
        self._grad_norm = self._fused_update = None  # of a step that has failed before its update
        self._params = list(self.target.params())
        for param in self._params:
            param.cleargrad()

    def reallocate_cleared_grads(self) -> None:
        """Set missing gradients to zero; those of parameters that are not updated only for hooks that may read them.

        Two of three parameters of a ResNet are frozen, and each array costs the host and the GPU several microseconds.
        """
        needs_all = self._has_unknown_hooks()
        for param in self._current_params():
            if (needs_all or is_updated(param)) and param.array is not None and param.grad is None:
                with chainer.using_device(param.device):
                    param.grad = param.device.xp.zeros_like(param.array)

    def report_grad_norm(self, reports: Mapping[str, Any]) -> dict[str, float]:
        """Return reported values as floats, and ``grad_norm``, the L2 norm of the gradient without the loss scale.

        The norm is not finite if an element of the gradient is not finite.  A GPU synchronises once for all values.
        The norm is cached until :meth:`update`; no gradient may change until then.
        """
        self.reallocate_cleared_grads()
        self._fused_update = prepare_update(self._current_params())
        fused = self._fused_update
        total = _square_sum(self._current_params()) if fused is None else fused.square_sum()
        *values, square_sum = read_scalars([*reports.values(), total])
        self._grad_norm = math.sqrt(square_sum) / (self._loss_scale or 1)
        return {**dict(zip(reports, values, strict=True)), 'grad_norm': self._grad_norm}

    @property
    def grad_norm(self) -> float:
        """The cached norm of :meth:`report_grad_norm`, which is computed if necessary."""
        return self.report_grad_norm({})['grad_norm'] if self._grad_norm is None else self._grad_norm

    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients of all trained parameters by a factor."""
        if self._fused_update is not None and self._fused_update.is_current:
            self._fused_update.scale_gradients(factor)
            return
        for param in self._current_params():
            if param.requires_grad and param.grad is not None:
                param.grad *= param.grad.dtype.type(factor)

    @property
    def last_update_skipped(self) -> bool:
        """True if the last update was skipped because its gradients overflowed."""
        return not self.is_safe_to_update()

    def check_nan_in_grads(self) -> None:
        self._loss_scaling_isnan = self._loss_scaling_is_dynamic and not math.isfinite(self.grad_norm)
        if self._loss_scaling_isnan:
            self._loss_scaling_isnan_ever = True

    def update_loss_scale(self) -> None:
        """Halve a dynamic loss scale after an overflow, down to :data:`MIN_LOSS_SCALE`, or raise it as Chainer does."""
        scale = self._loss_scale or 1.0
        if self._loss_scaling_is_dynamic and (self.last_update_skipped or scale < 1):
            factor = 0.5 if self.last_update_skipped else self._loss_scaling_multiplier
            self._loss_scale = max(scale * factor, MIN_LOSS_SCALE)
        else:
            super().update_loss_scale()

    @property
    def may_overflow(self) -> bool:
        """True if a gradient that is not finite is skipped because a smaller loss scale may prevent it."""
        return self._loss_scaling_is_dynamic and (self._loss_scale or 1.0) > MIN_LOSS_SCALE

    def serialize(self, serializer: chainer.Serializer | chainer.Deserializer) -> None:
        super().serialize(serializer)
        if self._loss_scaling_is_dynamic:
            try:
                self._loss_scale = float(serializer('loss_scale', self._loss_scale))
                self._loss_scaling_isnan_ever = bool(serializer('has_overflown', self._loss_scaling_isnan_ever))
            except KeyError:
                pass  # a snapshot of a run in another precision: the search for the scale restarts

    def update(self, lossfun: Callable | None = None, *args: Any, **kwds: Any) -> None:
        try:
            if lossfun is None:
                self._update_from_gradients()
            else:
                super().update(lossfun, *args, **kwds)
        finally:
            self._grad_norm = self._params = self._fused_update = None

    def _update_from_gradients(self) -> None:
        """Run the steps of Chainer's optimizers, with one kernel for all parameters if possible."""
        self._params = self._current_params()
        self.reallocate_cleared_grads()
        self.check_nan_in_grads()
        self.call_hooks('pre')
        self.t += 1
        if self.is_safe_to_update() and not self._update_together():
            for param in self._params:
                param.update()
        self.reallocate_cleared_grads()
        self.call_hooks('post')
        self.update_loss_scale()

    def _update_together(self) -> bool:
        """Update all parameters with one kernel; return false if nothing is updated."""
        fused = self._fused_update
        if fused is None or not fused.is_current:
            fused = prepare_update(self._current_params())
        return fused is not None and fused.run()

    def _current_params(self) -> list[Any]:
        return list(self.target.params()) if self._params is None else self._params

    def _has_unknown_hooks(self) -> bool:
        hookable: Any = self._hookable
        hooks = [*hookable._pre_update_hooks.values(), *hookable._post_update_hooks.values()]
        return any(type(hook) is not ClipGradient for hook in hooks)


def make_optimizer(
    link: chainer.Link,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip: float | None = None,
    decay_all: bool = False,
    decay_norms: bool = False,
    correct_momentum: bool = True,
) -> MomentumSGD:
    """Return an optimizer for a link, with the learning rate 0 (see :func:`set_learning_rate`).

    Frozen parameters (``requires_grad`` false) are excluded.

    Args:
        link: The link to train, after freezing.
        momentum: Detectron's ``SOLVER.MOMENTUM``.
        weight_decay: Detectron's ``SOLVER.WEIGHT_DECAY``.
        clip: Maximum L2 norm of the gradient of all parameters together; ``None`` disables clipping.
        decay_all: The dialect's ``training.decay_all``: biases (``b``) have the rate and the weight decay of other
            parameters, not twice the rate and no weight decay.
        decay_norms: The dialect's ``training.decay_norms``: scales and shifts of normalisations have weight decay.
        correct_momentum: The dialect's ``training.correct_momentum``; see :func:`set_learning_rate`.
    """
    optimizer = MomentumSGD(lr=0.0, momentum=momentum)
    optimizer.corrects_momentum = correct_momentum
    optimizer.setup(link)
    for path, param in link.namedparams():
        rule: Any = param.update_rule
        name = path.rsplit('/', 1)[1]
        if not param.requires_grad:
            rule.enabled = False
        elif name == 'b' and not decay_all:
            rule.add_hook(double_gradient, name='double')
        elif decay_norms or name not in _NORM_PARAMETERS:
            rule.add_hook(WeightDecay(weight_decay), name='decay')
    if clip is not None:
        optimizer.add_hook(ClipGradient(clip))
    return optimizer


def set_learning_rate(optimizer: MomentumSGD, rate: float) -> None:
    """Set the learning rate and, if ``optimizer.corrects_momentum`` is set, correct the momentum.

    The momentum contains past gradients multiplied by past rates.  If the rate jumps, the momentum is scaled as if
    those gradients had been multiplied by the new rate (Goyal et al. 2017, section 3, "momentum correction";
    ``detectron/modeling/detector.py``, ``_CorrectMomentum``).
    """
    before, optimizer.lr = optimizer.lr, rate
    if not optimizer.corrects_momentum or before <= _CORRECTION_MIN_RATE or rate == before:
        return
    if max(before, rate) <= _CORRECTION_THRESHOLD * min(before, rate):
        return
    for param in optimizer.target.params():
        rule: Any = param.update_rule
        state = rule.state
        if state:
            state['v'] *= state['v'].dtype.type(rate / before)


def _square_sum(params: Iterable[Any]) -> Any:
    """Return the sum of the squares of all gradients together: a number, or an array ``()`` on their device."""
    trained = [param.grad for param in params if param.requires_grad and param.grad is not None]
    flat = [gradient.ravel().astype('f', copy=False) for gradient in trained]  # squares would overflow in float16
    return sum(gradient.dot(gradient) for gradient in flat)


class ClipGradient:
    """Optimizer hook: clips the L2 norm of the gradient of all parameters together.

    Unlike Chainer's ``GradientClipping`` it accounts for loss scaling and ignores frozen parameters.  It requires a
    :class:`MomentumSGD`, which computes the norm.

    Args:
        threshold: The maximum norm.
    """

    name = 'ClipGradient'
    timing = 'pre'

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, optimizer: MomentumSGD) -> None:
        norm = optimizer.grad_norm
        if not norm <= self.threshold:
            optimizer.scale_gradients(self.threshold / norm)
