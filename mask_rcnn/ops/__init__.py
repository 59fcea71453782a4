"""Array functions that know no network; each takes NumPy and CuPy arrays under one contract.

Boxes are ``(y_min, x_min, y_max, x_max)``.  Functions that end in a :class:`chainer.Variable` are
differentiable; all others take and return arrays.
"""
