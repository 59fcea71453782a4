"""The names of feature maps and of classes."""

from __future__ import annotations

from collections.abc import Sequence


def level_names(strides: Sequence[int]) -> tuple[str, ...]:
    """Return the usual names of feature maps: ``'P2'`` to ``'P6'``, or ``'C4'`` for the single map of a C4 network.

    Args:
        strides: Input pixels per location of each feature map, powers of two.
    """
    letter = 'P' if len(strides) > 1 else 'C'
    return tuple(f'{letter}{stride.bit_length() - 1}' for stride in strides)


def names_of_classes(names: Sequence[str] | None, n_classes: int) -> tuple[str, ...]:
    """Return the name of each foreground class; ``'class 3'`` for label 3 of a network without names.

    Args:
        names: The names that the network knows, or ``None``.
        n_classes: The number of foreground classes.
    """
    return tuple(f'class {i}' for i in range(n_classes)) if names is None else tuple(names)
