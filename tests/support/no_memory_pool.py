"""A pytest plugin without CuPy's memory pool: ``pytest -p tests.support.no_memory_pool``.

In a pool an access beyond the end of an array reaches the memory of another array, and compute-sanitizer cannot report
it.
"""

import cupy

cupy.cuda.set_allocator(None)
