"""Momentum SGD as Detectron sets it up (``detectron/modeling/optimizer.py``, ``detectron.py``)."""

from __future__ import annotations

import math

import chainer
from chainer import optimizers

#: Parameters of normalisation links: their learning rate is the usual one, and they do not decay.
_NORM_PARAMETERS = ('scale', 'bias', 'gamma', 'beta')

#: Detectron corrects the momentum when the rate changes by more than this factor (``SOLVER.SCALE_MOMENTUM_
#: THRESHOLD``), and not from rates as small as this.
_CORRECTION_THRESHOLD = 1.1
_CORRECTION_MIN_RATE = 1e-7


class MomentumSGD(optimizers.MomentumSGD):
    """Chainer's, which looks at all gradients of an update at once.

    Chainer, to skip an update whose float16 gradients have overflown, waits for the GPU once for each parameter
    and warns of each.
    """

    _grad_norm = None
    _loss_scaling_isnan = False

    def compute_grad_norm(self) -> float:
        """Return the L2 norm of the gradient, without the loss scale; not finite if a part of it is not.

        It is remembered until :meth:`update`, so that a GPU is waited for once; no gradient may change until then.
        """
        self._grad_norm = gradient_norm(self.target) / (self._loss_scale or 1)
        return self._grad_norm

    @property
    def grad_norm(self) -> float:
        """What :meth:`compute_grad_norm` returned for this update, or would return."""
        return self.compute_grad_norm() if self._grad_norm is None else self._grad_norm

    @property
    def last_update_skipped(self) -> bool:
        """Whether the last update was skipped, because of gradients too large for their type."""
        return not self.is_safe_to_update()

    def check_nan_in_grads(self):
        self._loss_scaling_isnan = self._loss_scaling_is_dynamic and not math.isfinite(self.grad_norm)
        if self._loss_scaling_isnan:
            self._loss_scaling_isnan_ever = True

    def serialize(self, serializer):
        super().serialize(serializer)
        if self._loss_scaling_is_dynamic:
            try:
                self._loss_scale = float(serializer('loss_scale', self._loss_scale))
                self._loss_scaling_isnan_ever = bool(serializer('has_overflown', self._loss_scaling_isnan_ever))
            except KeyError:
                pass  # the snapshot is of a run in another precision: the search begins anew

    def update(self, lossfun=None, *args, **kwds):
        try:
            super().update(lossfun, *args, **kwds)
        finally:
            self._grad_norm = None


def make_optimizer(
    link: chainer.Link, *, momentum: float = 0.9, weight_decay: float = 1e-4, clip: float | None = None
) -> MomentumSGD:
    """Return an optimizer for a link, with the rate 0 (see :func:`set_rate`).

    Biases (``b``) learn at twice the rate and do not decay; scales and shifts of normalisations do not decay
    either.  Frozen parameters (``requires_grad`` false) are left out.

    Args:
        link: What is to be trained, already frozen where it should be.
        momentum, weight_decay: Detectron's ``SOLVER.MOMENTUM`` and ``SOLVER.WEIGHT_DECAY``.
        clip: Largest L2 norm of the gradient of all parameters together; longer ones are shortened to it.
    """
    optimizer = MomentumSGD(lr=0.0, momentum=momentum)
    optimizer.setup(link)
    for path, param in link.namedparams():
        rule, name = param.update_rule, path.rsplit('/', 1)[1]
        if not param.requires_grad:
            rule.enabled = False
        elif name == 'b':
            rule.add_hook(_double, name='double')
        elif name not in _NORM_PARAMETERS:
            rule.add_hook(_Decay(weight_decay), name='decay')
    if clip is not None:
        optimizer.add_hook(ClipGradient(clip))
    return optimizer


def set_rate(optimizer: optimizers.MomentumSGD, rate: float) -> None:
    """Change the learning rate.

    The momentum holds past gradients times past rates; where the rate jumps, it is scaled along, as if those
    gradients had been taken at the new rate (Goyal et al. 2017, section 3, "momentum correction";
    ``detectron/modeling/detector.py``, ``_CorrectMomentum``).
    """
    before, optimizer.lr = optimizer.lr, rate
    if before <= _CORRECTION_MIN_RATE or rate == before:
        return
    if max(before, rate) <= _CORRECTION_THRESHOLD * min(before, rate):
        return
    for param in optimizer.target.params():
        state = param.update_rule.state
        if state:
            state['v'] *= state['v'].dtype.type(rate / before)


def gradient_norm(link: chainer.Link) -> float:
    """Return the L2 norm of all gradients together; not finite if one of them is not."""
    squares = [_square(param.grad) for param in link.params() if param.requires_grad and param.grad is not None]
    return float(sum(squares)) ** 0.5 if squares else 0.0


def _square(gradient):
    flat = gradient.ravel().astype('f', copy=False)  # the squares of a float16 would overflow
    return flat.dot(flat)


class ClipGradient:
    """Optimizer hook: shorten the gradient of all parameters together to a largest L2 norm.

    Unlike Chainer's ``GradientClipping`` it knows of loss scaling and leaves frozen parameters alone.

    It is for :class:`MomentumSGD`, whose norm it takes.

    Args:
        threshold: The largest norm.
    """

    name = 'ClipGradient'
    timing = 'pre'

    def __init__(self, threshold: float):
        self.threshold = threshold

    def __call__(self, optimizer):
        norm = optimizer.grad_norm
        if norm <= self.threshold:
            return
        for param in optimizer.target.params():
            if param.requires_grad and param.grad is not None:
                param.grad *= param.grad.dtype.type(self.threshold / norm)


class _Decay:
    """Update rule hook: weight decay.

    Chainer's own multiplies by the loss scale, which is right only in front of the division by it; the hooks
    of update rules come behind it.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, rule, param):
        param.grad += param.dtype.type(self.rate) * param.array


def _double(rule, param) -> None:
    param.grad *= 2
