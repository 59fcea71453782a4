"""The type of arrays on any device, for annotations."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A NumPy or CuPy array.  For static checkers it is ``Any``: CuPy is optional and shares no base class with NumPy.
Array: TypeAlias = Any
