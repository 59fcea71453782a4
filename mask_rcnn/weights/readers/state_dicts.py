"""Find the state dict in the data of a checkpoint, and give its tensors the names of the network's parameters.

A checkpoint may hold its state dict under any key, at any depth, beside other tensors and other state dicts: an
optimizer's, or an exponential moving average ("EMA") of the weights.  The rule of :func:`find_state_dict`:

1. State dicts inside of optimizers, schedulers and gradient scalers are used only if there is no other.
2. The largest of the others is used: the one with the most tensors, without scalars such as a best accuracy.
   Tensors beside other dictionaries count a quarter.  All that have at least nine tenths of the largest number count as
   equally large.
3. Among these, weights take precedence over their averages, then the usual keys (:data:`USUAL_KEYS`) in their order,
   then the size, then the number of elements, and then the place in the file.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import to_printable_ascii
from mask_rcnn.weights.readers.inert_pickle import Inert

_ShapeOf = Callable[[Any], tuple[int, ...] | None]

#: The usual keys of the state dict in checkpoints that contain more than that.
USUAL_KEYS = ('state_dict', 'model_state_dict', 'model', 'net', 'network')

_OPTIMIZER = re.compile(r'optim|sched|scaler|momentum', re.IGNORECASE)
_AVERAGE = re.compile(r'(^|[^a-z])(ema|swa|avg|averaged?|teacher|shadow)([^a-z]|$)', re.IGNORECASE)

#: Prefixes of wrappers around a network: ``DataParallel``, ``torch.compile``, Lightning and the usual attributes.
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'net.', 'network.')

#: Names that wrappers insert at any depth.
_INSERTED = re.compile(r'(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.')

_MAX_PATH = 6


@dataclass(frozen=True)
class _Candidate:
    """A dictionary of tensors, the keys that lead to it, and its size by the rule of the module."""

    path: tuple[str, ...]
    tensors: Mapping[str, Any]
    size: float
    n_elements: int

    @property
    def title(self) -> str:
        """The path for messages."""
        return f"'{'.'.join(map(to_printable_ascii, self.path))}' ({counted(len(self.tensors), 'tensor')})"

    @property
    def is_average(self) -> bool:
        """True for an average of the weights."""
        return any(_AVERAGE.search(key) for key in self.path)

    @property
    def is_optimizer(self) -> bool:
        """True for the state of an optimizer or of another tool of training."""
        return any(_OPTIMIZER.search(key) for key in self.path)


def find_state_dict(
    data: Any, shape_of: Callable[[Any], tuple[int, ...] | None]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the state dict in unpickled data, and notes about the choice.

    Args:
        data: The data: containers, plain values and placeholders.
        shape_of: Returns the shape of a tensor, ``None`` for any other value.

    Returns:
        The tensors by name, empty if there are none, and lines that name the chosen and the other state dicts.
    """
    found = list(_candidates(data, shape_of))
    if not found:
        return {}, ()
    found = [candidate for candidate in found if not candidate.is_optimizer] or found
    max_size = max(candidate.size for candidate in found)
    largest = [candidate for candidate in found if candidate.size >= 0.9 * max_size]
    chosen = min(largest, key=_preference)
    others = [candidate.title for candidate in largest if candidate is not chosen]
    notes = []
    if chosen.path:
        notes.append(f'the weights are those under {chosen.title}')
    if others:
        notes.append(f'not used: the weights under {", ".join(others[:3])}')
    return rename_parameters(chosen.tensors), tuple(notes)


def _preference(candidate: _Candidate) -> tuple:
    """Return the key by which candidates of one size are sorted; the first one is used."""
    last = candidate.path[-1] if candidate.path else None
    rank = USUAL_KEYS.index(last) if last in USUAL_KEYS else len(USUAL_KEYS)
    return candidate.is_average, rank, -candidate.size, -candidate.n_elements


def _candidates(data: Any, shape_of: _ShapeOf) -> Iterator[_Candidate]:
    """Yield every dictionary of tensors in the order of the file, outer ones first.

    Saved modules are left out: their dictionaries hold the parameters of single layers.
    """
    seen: set[int] = set()
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), data)])
    while waiting:
        path, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        items = value.items if isinstance(value, Inert) else value if isinstance(value, dict) else None
        if items:
            shapes = {name: shape_of(tensor) for name, tensor in items.items() if isinstance(name, str)}
            shapes = {name: shape for name, shape in shapes.items() if shape is not None}
            if shapes:
                yield _make_candidate(path, items, shapes)
            waiting.extend((_extend(path, key), item) for key, item in items.items() if _is_container(item))
        if isinstance(value, Inert):
            if not value.is_module:
                waiting.extend((path, part) for part in value.parts if _is_container(part))
        elif isinstance(value, (list, tuple)):
            waiting.extend((_extend(path, index), item) for index, item in enumerate(value) if _is_container(item))


def _make_candidate(
    path: tuple[str, ...], items: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...] | None]
) -> _Candidate:
    n_tensors = sum(shape != () for shape in shapes.values())
    is_outer = any(isinstance(item, dict) and item for item in items.values())
    n_elements = sum(math.prod(shape) for shape in shapes.values() if shape is not None)
    return _Candidate(
        path, {name: items[name] for name in shapes}, n_tensors / 4 if is_outer else n_tensors, n_elements
    )


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, Inert))


def _extend(path: tuple[str, ...], key: Any) -> tuple[str, ...]:
    """Return a path with one more key; a deep one keeps its beginning and its end."""
    name = str(key) if isinstance(key, (str, int)) else type(key).__name__
    return (*path[: _MAX_PATH - 1], name)


def array_shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a NumPy array, ``None`` for any other value."""
    return value.shape if isinstance(value, np.ndarray) else None


def find_module(data: Any) -> str | None:
    """Return the class of the first saved module in unpickled data, or ``None``."""
    seen: set[int] = set()
    waiting: deque[Any] = deque([data])
    while waiting:
        value = waiting.popleft()
        if id(value) in seen or not _is_container(value):
            continue
        seen.add(id(value))
        if isinstance(value, Inert):
            if value.is_module:
                return value.name
            waiting.extend((value.items or {}).values())
            waiting.extend(value.parts)
        else:
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return None


def rename_parameters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors without the prefixes that wrappers add to their names.

    A prefix is removed if more than half of the names have it; the other names are those of losses and metrics.
    ``module.`` is always removed.

    Args:
        tensors: Tensors by name.

    Returns:
        dict: The same tensors in the same order.  If two names would become equal, the names stay as they are.
    """
    names = {name: _INSERTED.sub('', name).removeprefix('module.') for name in tensors}
    while prefix := next((p for p in _PREFIXES if _is_common(p, names.values())), None):
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
    if len(set(names.values())) < len(names):
        return dict(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _is_common(prefix: str, names: Any) -> bool:
    return 2 * sum(name.startswith(prefix) and name != prefix for name in names) > len(names)
