"""Momentum SGD with the settings of Detectron (``detectron/modeling/optimizer.py``, ``detector.py``) or DeNA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import chainer
from chainer import optimizers
from chainer.optimizers.momentum_sgd import MomentumSGDRule

from mask_rcnn.ops.runtime import multi_array

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
    _loss_scaling_isnan = False

    def compute_grad_norm(self) -> float:
        """Return the L2 norm of the gradient, without the loss scale; not finite if an element is not finite.

        The value is cached until :meth:`update`, so that a GPU synchronises once; no gradient may change until then.
        """
        self._grad_norm = gradient_norm(self.target) / (self._loss_scale or 1)
        return self._grad_norm

    @property
    def grad_norm(self) -> float:
        """The cached result of :meth:`compute_grad_norm`, which is computed if necessary."""
        return self.compute_grad_norm() if self._grad_norm is None else self._grad_norm

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
            self._grad_norm = None

    def _update_from_gradients(self) -> None:
        """Run the steps of Chainer's optimizers, with one kernel for all parameters if possible."""
        self.reallocate_cleared_grads()
        self.check_nan_in_grads()
        self.call_hooks('pre')
        self.t += 1
        if self.is_safe_to_update() and not _update_together(list(self.target.params())):
            for param in self.target.params():
                param.update()
        self.reallocate_cleared_grads()
        self.call_hooks('post')
        self.update_loss_scale()


def make_optimizer(
    link: chainer.Link,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    clip: float | None = None,
    decay_all: bool = False,
    correct_momentum: bool = True,
) -> MomentumSGD:
    """Return an optimizer for a link, with the learning rate 0 (see :func:`set_learning_rate`).

    Biases (``b``) have twice the learning rate and no weight decay, and scales and shifts of normalisations have no
    weight decay, unless ``decay_all`` is set.  Frozen parameters (``requires_grad`` false) are excluded.

    Args:
        link: The link to train, after freezing.
        momentum: Detectron's ``SOLVER.MOMENTUM``.
        weight_decay: Detectron's ``SOLVER.WEIGHT_DECAY``.
        clip: Maximum L2 norm of the gradient of all parameters together; ``None`` disables clipping.
        decay_all: The dialect's ``training.decay_all``: all parameters have the same rate and weight decay.
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
            rule.add_hook(_double, name='double')
        elif decay_all or name not in _NORM_PARAMETERS:
            rule.add_hook(_Decay(weight_decay), name='decay')
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


def gradient_norm(link: chainer.Link) -> float:
    """Return the L2 norm of all gradients together; not finite if an element is not finite."""
    trained = (param for param in link.params() if param.requires_grad)
    gradients = [_contiguous(param.grad) for param in trained if param.grad is not None and param.grad.size]
    if multi_array.supports(gradients):
        return multi_array.norm(gradients)
    squares = [_square(gradient) for gradient in gradients]
    return float(sum(squares)) ** 0.5 if squares else 0.0


def _contiguous(gradient: Any) -> Any:
    return gradient if gradient is None or gradient.flags.c_contiguous else gradient.copy(order='C')


def _square(gradient: Any) -> Any:
    flat = gradient.ravel().astype('f', copy=False)  # squares would overflow in float16
    return flat.dot(flat)


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
        if norm <= self.threshold:
            return
        param: Any  # Chainer declares its gradient read-only
        for param in optimizer.target.params():
            if param.requires_grad and param.grad is not None:
                param.grad *= param.grad.dtype.type(self.threshold / norm)


class _Decay:
    """Update rule hook: weight decay.

    Chainer's ``WeightDecay`` multiplies by the loss scale, which is correct only before the gradient is divided by
    it.  The hooks of update rules run after that division.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, rule: chainer.UpdateRule, param: Any) -> None:
        param.grad += param.dtype.type(self.rate) * param.array


def _double(rule: chainer.UpdateRule, param: Any) -> None:
    param.grad *= 2


def _update_together(params: Sequence[Any]) -> bool:
    """Update parameters as their update rules do, with one kernel; the gradients stay as they are.

    Returns:
        bool: False if nothing is updated, because a parameter is not on the GPU or has another rule.
    """
    params = [param for param in params if param.update_rule is not None and param.update_rule.enabled]
    rules = [param.update_rule for param in params]
    terms: list[Any] = [_decay_and_factor(rule) for rule in rules]
    settings = {
        (param._loss_scale, rule.hyperparam.lr, rule.hyperparam.momentum)
        for param, rule in zip(params, rules, strict=True)
    }
    arrays, gradients = [param.array for param in params], [_contiguous(param.grad) for param in params]
    if None in terms or len(settings) != 1 or not multi_array.supports([*arrays, *gradients]):
        return False
    for param, rule in zip(params, rules, strict=True):
        if rule.state is None or type(rule.state['v']) is not type(param.array):
            rule._init_states(param)
    velocities = [rule.state['v'] for rule in rules]
    if not multi_array.supports([*arrays, *velocities]):
        return False
    ((loss_scale, rate, momentum),) = settings
    multi_array.momentum_sgd(
        arrays,
        gradients,
        velocities,
        terms=terms,
        loss_scale=1 if loss_scale is None else loss_scale,
        rate=rate,
        momentum=momentum,
    )
    for rule in rules:
        rule.t += 1
    return True


def _decay_and_factor(rule: Any) -> tuple[float, float] | None:
    """Return the weight decay and the factor of the learning rate of a rule; ``None`` for unknown rules and hooks."""
    hooks = list(rule._hookable._pre_update_hooks.values())
    if type(rule) is not MomentumSGDRule or rule._hookable._post_update_hooks or len(hooks) > 1:
        return None
    if not hooks:
        return 0.0, 1.0
    if hooks[0] is _double:
        return 0.0, 2.0
    return (hooks[0].rate, 1.0) if isinstance(hooks[0], _Decay) else None
