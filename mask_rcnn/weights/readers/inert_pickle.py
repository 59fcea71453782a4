"""An unpickler that replaces unknown objects by placeholders, so that the plain data beside them can be read.

Checkpoints contain more than weights: command lines (``argparse.Namespace``), counters, paths, optimizers, random
states.  :class:`InertUnpickler` reads such a pickle like :class:`~mask_rcnn.weights.readers.safe_pickle.SafeUnpickler`,
but every global that is not on its list, and every object made with one, becomes an :class:`Inert`: a name and the data
that the object would have been made of.  Nothing is imported, built or called.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file
from mask_rcnn.weights.readers.safe_pickle import (
    AllowedGlobal,
    Dtype,
    PendingArray,
    RefusedError,
    SafeUnpickler,
    UnpicklingError,
)


def load(path: str | os.PathLike) -> Any:
    """Read a pickle of plain data and NumPy arrays in which unknown objects become placeholders.

    Args:
        path: The file.

    Returns:
        The data as :func:`mask_rcnn.weights.readers.safe_pickle.load` returns them, and :class:`Inert` objects.

    Raises:
        WeightFileError: The file cannot be read or is damaged.
    """
    with open_weight_file(path) as (file, size):
        try:
            return InertUnpickler(file, size).load()
        except UnpicklingError as error:
            raise WeightFileError(path, str(error)) from None
        except MemoryError:
            raise WeightFileError(path, 'does not fit into memory') from None


class Inert:
    """The placeholder of an unknown global, or of an object made with it.

    Args:
        name: The dotted name of the global.
        parts: The data that the object would have been made of.

    Attributes:
        items: The entries that would have been set in it, as in a dictionary.
    """

    __slots__ = ('items', 'name', 'parts')

    def __init__(self, name: str, *parts: Any) -> None:
        self.name = name
        self.parts: tuple[Any, ...] | list[Any] = parts
        self.items: dict[Any, Any] | None = None

    def add_parts(self, values: list[Any]) -> None:
        """Add data that the object would have been made of."""
        if not isinstance(self.parts, list):
            self.parts = list(self.parts)
        self.parts.extend(values)

    def set_items(self, keys: list[Any], values: list[Any]) -> None:
        """Set entries."""
        self.items = self.items or {}
        self.items.update(zip(keys, values, strict=True))

    @property
    def is_module(self) -> bool:
        """True for a saved PyTorch module, as opposed to a state dict."""
        return any(isinstance(part, dict) and '_parameters' in part and '_modules' in part for part in self.parts)


_OBJECTS = (dict, list, tuple, set, frozenset, Inert)


class InertUnpickler(SafeUnpickler):
    """An unpickler for which unknown objects are placeholders; a damaged pickle is still an error.

    Attributes:
        max_objects: Maximum number of containers and placeholders, which take far more memory and time than numbers:
            two million sets 460 MB.  A network with its optimizer has 30,000.
        refusal: The reason of :class:`~mask_rcnn.weights.readers.safe_pickle.SafeUnpickler` to refuse the first unknown
            object, or ``None``.
    """

    max_operations = 2_000_000
    max_objects = 400_000

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        self._n_objects = 0
        self.refusal: str | None = None

    def _note(self, reason: object) -> None:
        self.refusal = self.refusal or str(reason)

    def _push(self, value: Any) -> None:
        """Push a value and count it if it is not a plain one."""
        if isinstance(value, _OBJECTS):
            self._n_objects += 1
            if self._n_objects > self.max_objects:
                raise UnpicklingError(f'has more than {self.max_objects} objects')
        self._stack.append(value)

    def _push_inert(self, function: Any, *parts: Any) -> None:
        """Push the placeholder of an object made with a global."""
        name = function.name if isinstance(function, (AllowedGlobal, Inert)) else type(function).__name__
        self._note(f'is refused: it makes an object of {name}')
        self._push(Inert(name, *parts))

    def check_result(self, result: Any) -> None:
        """Accept globals and array types inside the data: their readers ignore them."""

    def push_global(self, module: str, name: str) -> None:
        """Push an allowed global, or the placeholder of another one."""
        try:
            super().push_global(module, name)
        except RefusedError as error:
            self._note(error)
            self._push(Inert(f'{module}.{name}'))

    def reduce(self) -> None:
        """Apply the replacement of an allowed global; any other call is a placeholder."""
        arguments = self._pop_type(tuple, 'a tuple of arguments')
        function = self._pop()
        if isinstance(function, AllowedGlobal) and function.apply is not None:
            try:
                self._push(function.apply(self, arguments))
            except RefusedError as error:
                self._note(error)
                self._push_inert(function, arguments)
        elif isinstance(function, (AllowedGlobal, Inert)):
            self._push_inert(function, arguments)
        else:
            raise RefusedError(f'is refused: it calls a value ({type(function).__name__})')

    def set_state(self, target: Any, state: Any) -> None:
        """Add the state to a placeholder; an array of objects becomes one."""
        if isinstance(target, Inert):
            target.add_parts([state])
            return
        try:
            super().set_state(target, state)
        except RefusedError as error:
            self._note(error)
            if isinstance(target, Dtype):
                target.is_refused = True
            elif isinstance(target, PendingArray) and target.value is None:
                target.value = Inert('numpy.ndarray', state)
            else:
                raise

    def key(self, value: Any) -> Any:
        """Return a valid key, or a placeholder for any other, which is equal to no other key."""
        try:
            return super().key(value)
        except RefusedError:
            return Inert('key', value)

    def array(self, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        """Return an array of numbers; refuse one whose type is a placeholder."""
        if isinstance(dtype, Inert) or (isinstance(dtype, Dtype) and dtype.is_refused):
            raise RefusedError('is refused: it has arrays of objects')
        return super().array(data, dtype, shape, order)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, Inert) or len(values) % 2:
            super()._set_items(values)
        else:
            target.set_items(list(map(self.key, values[::2])), values[1::2])

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.add_parts(values)
        else:
            super()._extend(values)

    def _add_elements(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            target.add_parts(values)
        else:
            super()._add_elements(values)

    # Opcodes that make objects

    def inst(self) -> None:
        """Replace ``module.name(*arguments)``, written as text."""
        module, name = (to_printable_ascii(self._line().decode('utf-8', 'replace')) for _ in range(2))
        self._push_inert(Inert(f'{module}.{name}'), *self._pop_mark())

    def obj(self) -> None:
        """Replace ``class(*arguments)``."""
        values = self._pop_mark()
        if not values:
            raise UnpicklingError('is damaged: an object without a class')
        self._push_inert(*values)

    def new_obj(self) -> None:
        """Replace ``class.__new__(class, *arguments)``."""
        arguments, function = self._pop(), self._pop()
        self._push_inert(function, arguments)

    def new_obj_ex(self) -> None:
        """Replace ``class.__new__(class, *arguments, **named)``."""
        named, arguments, function = self._pop(), self._pop(), self._pop()
        self._push_inert(function, arguments, named)

    def extension(self, size: int) -> None:
        """Replace a global of the extension registry, which is read from nowhere."""
        code = int.from_bytes(self._take(size), 'little')
        self._push_inert(Inert(f'extension {code}'))

    def persistent_line(self) -> None:
        """Replace an object outside of the pickle, named by a line of text."""
        self._line()
        self._note('is refused: it refers to an object outside of the file (opcode PERSID)')
        self._push(Inert('persistent'))

    def persistent(self) -> None:
        """Resolve a reference to an object outside of the pickle, or replace the object."""
        reference = self._pop()
        try:
            self._push(self.persistent_load(reference))
        except RefusedError as error:
            self._note(error)
            kinds = reference[1:2] if isinstance(reference, tuple) else ()  # ('module', class, ...)
            name = kinds[0].name if kinds and isinstance(kinds[0], Inert) else 'an object outside of the pickle'
            self._push(Inert(name, reference))

    def next_buffer(self) -> None:
        """Replace a buffer outside of the pickle."""
        self._push_inert(Inert('buffer'))

    def read_only_buffer(self) -> None:
        """Leave the buffer on top of the stack as it is."""
        self._top()
