"""Damaged copies of files."""

from __future__ import annotations

import random
from collections.abc import Iterator


def truncations(data: bytes, n_copies: int = 50) -> list[bytes]:
    """Return the beginnings of a file in ``n_copies`` equidistant lengths."""
    return [data[: len(data) * i // n_copies] for i in range(n_copies)]


def bit_flips(data: bytes, n_copies: int, generator: random.Random) -> Iterator[bytes]:
    """Yield copies of a file with one random bit flipped in each."""
    for _ in range(n_copies):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        yield bytes(flipped)
