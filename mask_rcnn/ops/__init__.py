"""Array functions that are independent of any network; each has one contract for NumPy and CuPy arrays.

Boxes are ``(y_min, x_min, y_max, x_max)``.  Functions that return a :class:`chainer.Variable` are differentiable; all
others accept and return arrays.
"""
