"""The norm of the gradient, clipping and momentum SGD on a GPU, with one kernel each for all parameters.

Chainer's update rules start several kernels for each of about 100 parameters, for which the host needs longer than the
GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chainer
from chainer.optimizers.momentum_sgd import MomentumSGDRule

from mask_rcnn.ops.runtime import multi_array
from mask_rcnn.ops.runtime.array import Array


class WeightDecay:
    """Update rule hook: weight decay.

    Chainer's ``WeightDecay`` multiplies by the loss scale, which is correct only before the gradient is divided by
    it.  The hooks of update rules run after that division.
    """

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, rule: chainer.UpdateRule, param: Any) -> None:
        param.grad += param.dtype.type(self.rate) * param.array


def double_gradient(rule: chainer.UpdateRule, param: Any) -> None:
    """Update rule hook: twice the learning rate."""
    param.grad *= 2


class FusedUpdate:
    """One update of all trained parameters; :func:`prepare_update` creates it.

    It is prepared before the host waits for the norm of the gradient, so that the kernel starts soon after that.

    Args:
        params: The trained parameters.
        gradients: Their gradients.
    """

    def __init__(self, params: Sequence[Any], gradients: Sequence[Array]):
        self._params, self._gradients = params, gradients
        self._rules = [param.update_rule for param in params]
        self._arrays = [param.array for param in params]
        self._velocities = [_velocity(param) for param in params]
        self._has_velocities = multi_array.supports([*self._arrays[:1], *self._velocities])
        self._table = self._make_table()

    @property
    def is_current(self) -> bool:
        """False if a gradient, a parameter's array or a velocity has been replaced."""
        rows = zip(self._params, self._gradients, self._arrays, self._velocities, strict=True)
        return all(
            param.grad is gradient and param.array is array and _velocity(param) is velocity
            for param, gradient, array, velocity in rows
        )

    def square_sum(self) -> Array:
        """Return the sum of the squares of the gradients, float64 ``()`` on the GPU."""
        return multi_array.square_sum(self._table)

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by a factor."""
        multi_array.scale(self._table, factor)

    def run(self) -> bool:
        """Update the parameters as their update rules do; the gradients stay as they are.

        Returns:
            bool: False if nothing is updated, because of unknown rules, hooks or settings.
        """
        terms: list[Any] = [_decay_and_factor(rule) for rule in self._rules]
        settings = _shared_settings(self._rules)
        loss_scales = {param._loss_scale for param in self._params}
        if None in terms or settings is None or len(loss_scales) != 1 or not self._complete_table():
            return False
        (loss_scale,) = loss_scales
        multi_array.momentum_sgd(
            self._table,
            terms=terms,
            loss_scale=1 if loss_scale is None else loss_scale,
            rate=settings.lr,
            momentum=settings.momentum,
        )
        for rule in self._rules:
            rule.t += 1
        return True

    def _complete_table(self) -> bool:
        """Add the velocities in the first update; return whether the kernel supports them."""
        if not self._has_velocities:
            for param in self._params:
                if _velocity(param) is None:
                    param.update_rule._init_states(param)
            self._velocities = [_velocity(param) for param in self._params]
            self._has_velocities = multi_array.supports([*self._arrays[:1], *self._velocities])
            self._table = self._make_table()
        return self._has_velocities

    def _make_table(self) -> multi_array.ArrayTable:
        lists = [self._gradients, self._arrays, self._velocities]
        return multi_array.ArrayTable(*(lists if self._has_velocities else lists[:2]))


def prepare_update(params: Sequence[Any]) -> FusedUpdate | None:
    """Return the update of the trained parameters, or ``None`` if the kernels do not support them.

    A gradient that is neither contiguous nor channels last is replaced by a contiguous copy.

    Args:
        params: All parameters.
    """
    trained = [param for param in params if param.requires_grad]
    if [id(param) for param in trained] != [id(param) for param in params if is_updated(param)]:
        return None
    arrays, gradients = [param.array for param in trained], [dense(param.grad) for param in trained]
    if not multi_array.supports(arrays) or not multi_array.supports([arrays[0], *gradients], channels_last=True):
        return None
    for param, gradient in zip(trained, gradients, strict=True):
        if param.grad is not gradient:
            param.grad = gradient
    return FusedUpdate(trained, gradients)


def is_updated(param: chainer.Parameter) -> bool:
    """Return whether the update rule of a parameter is enabled."""
    return param.update_rule is not None and param.update_rule.enabled


def dense(gradient: Array | None) -> Array | None:
    """Return a gradient that is contiguous or channels last itself, and otherwise a contiguous copy."""
    if gradient is None or multi_array.channels_last_shape(gradient) is not None:
        return gradient
    return gradient.copy(order='C')


def _velocity(param: Any) -> Array | None:
    """Return the velocity of a parameter; ``None`` before the first update and after a change of the device."""
    velocity = (param.update_rule.state or {}).get('v')
    return velocity if type(velocity) is type(param.array) else None


def _decay_and_factor(rule: Any) -> tuple[float, float] | None:
    """Return the weight decay and the factor of the learning rate of a rule; ``None`` for unknown rules and hooks."""
    hooks = list(rule._hookable._pre_update_hooks.values())
    if type(rule) is not MomentumSGDRule or rule._hookable._post_update_hooks or len(hooks) > 1:
        return None
    if not hooks:
        return 0.0, 1.0
    if hooks[0] is double_gradient:
        return 0.0, 2.0
    return (hooks[0].rate, 1.0) if isinstance(hooks[0], WeightDecay) else None


def _shared_settings(rules: Sequence[Any]) -> Any:
    """Return the hyperparameters of the optimizer if no rule has other ones, and otherwise ``None``."""
    settings = rules[0].hyperparam.parent
    are_shared = all(rule.hyperparam.parent is settings and len(vars(rule.hyperparam)) == 1 for rule in rules)
    return settings if are_shared else None
