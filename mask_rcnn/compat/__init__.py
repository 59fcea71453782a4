"""Patches for Chainer 7.8.1 and ChainerCV 0.13.1 on current versions of Python, NumPy and CuPy.

This is the only package in the project that patches other libraries.  :func:`register`, which ``import mask_rcnn``
calls, adds an import hook (:mod:`._import_hook`) that patches each of the two libraries when it is first imported.
Patches that are needed only during the import are removed again: afterwards NumPy, :data:`sys.modules`, the environment
and the warning filters are as before.  No patch is applied twice.  If Chainer is already imported (by a user who
patched it), only the lasting patches are applied.  :func:`install` imports both libraries at once;
:func:`patch_chainermn` patches ChainerMN before its use.

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
"nccl library could not be loaded"     Chainer imports NCCL, which few runs need        CuPy 13
(silenced while importing)
``cuda_fp16.h`` for two kernels of     ``<cupy/carray.cuh>`` no longer includes it,     CuPy 14
ChainerMN                              and they use ``half``
=====================================  ===============================================  ==================
"""

from mask_rcnn.compat._import_hook import install, register

__all__ = ['install', 'patch_chainermn', 'register']


def patch_chainermn() -> None:
    """Patch ChainerMN so that ``pure_nccl`` can compile its kernels; idempotent.

    Raises:
        ImportError: ChainerMN or mpi4py does not work.
    """
    from mask_rcnn.compat import _install  # imports NumPy

    _install.patch_chainermn()
