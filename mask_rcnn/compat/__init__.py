"""Chainer 7.8.1 and ChainerCV 0.13.1 on today's Python, NumPy and CuPy.

This is the only package of the project that patches anything.  :func:`install` imports both libraries with the names
that they need, and removes those that they only need during the import: afterwards, NumPy, :data:`sys.modules` and the
warning filters are unchanged for all other code in the process.  A second call does nothing, and if Chainer has already
been imported (by a user who patched it), only the lasting patches are applied.  :func:`mend_chainermn` patches
ChainerMN, and is called when ChainerMN is used.

=====================================  ===============================================  ==================
patch                                  why                                              needed since
=====================================  ===============================================  ==================
``numpy.sctypes`` (while importing)    ``chainer.functions.array.as_strided`` reads it  NumPy 2.0
``numpy.distutils.system_info``        ``chainer._environment_check`` reads BLAS there  Python 3.12
(while importing)
``distutils.util`` (while importing)   ChainerCV's downloads use ``strtobool``          Python 3.12
``pkg_resources`` (while importing)    ChainerCV's version, ``chainer.testing``         setuptools 82
``numpy.sctypes`` for one function     ``chainer.functions.as_strided``, backward       NumPy 2.0
``numpy.float`` for one function       ``chainer.functions.resize_images``              NumPy 1.24
``numpy.int`` for two functions        ChainerCV's FCIS, when it is trained             NumPy 1.24
``chainercv...bbox._nms_gpu_post``     the C extension does not compile                 Python 3.11
``cupy.cuda.cublas`` (while importing) ``chainer.backends.cuda`` binds it               CuPy 14
"cuDNN is not enabled" (silenced)      CuPy no longer has cuDNN bindings                CuPy 14
``cuda_fp16.h`` for two kernels of     ``<cupy/carray.cuh>`` no longer includes it,     CuPy 14
ChainerMN                              and they use ``half``
=====================================  ===============================================  ==================
"""

from mask_rcnn.compat._install import install, mend_chainermn

__all__ = ['install', 'mend_chainermn']
