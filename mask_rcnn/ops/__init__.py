"""Array functions that know no network; each has one contract for NumPy and CuPy arrays.

Boxes are ``(y_min, x_min, y_max, x_max)``.  Functions that return a :class:`chainer.Variable` are differentiable; all
others take and return arrays.
"""
