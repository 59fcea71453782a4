"""Mutations of files: of bytes, of JSON values, of zip archives and of images, chosen by a seeded generator."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

#: A mutation: the content of a file and a generator -> the mutated content.
Mutation = Callable[[bytes, random.Random], bytes]


#: Text that becomes 3,000 nested lists in a JSON text.
_NESTED = '<nested>'

#: Values that replace others.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e-320, 1e5, 1e8, 1e16, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(2**31, -(2**31), 2**32, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *('', ' ', '0', '7', '1e5', 'nan', 'x', 'a\nb', 'a\x00b', '\ud800', '\u9b5a', '\x1b[31m', 'x' * 5000, '../..', '/'),
    *([], [[]], [None], [0], [1, 2, 3], [''], [0.5] * 7, [1e9] * 8, [-1] * 4, [math.nan] * 4, list(range(300))),
    *({}, {'a': 1}, {'size': [1, 1], 'counts': ''}, {'size': [0, 0], 'counts': []}, [[[[[[[[1]]]]]]]], _NESTED),
)

_NUMBERS_IN_TEXT = (b'-1', b'0', b'1e308', b'NaN', b'99999999999', b'4294967296', b'1' * 400, b'0.5', b'null', b'""')


# Bytes


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the bounds of a random block, short ones more often than long ones."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 12)))


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits, half of the time in the first 256 bytes."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if mutated:
            end = min(len(mutated), 256) if rng.random() < 0.5 else len(mutated)
            mutated[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Keep the beginning, or drop it."""
    at = rng.randrange(len(data) + 1)
    return data[at:] if rng.random() < 0.1 else data[:at]


def zero_block(data: bytes, rng: random.Random) -> bytes:
    """Replace a block by zeros or ones."""
    start, end = _span(data, rng)
    return data[:start] + rng.choice((b'\0', b'\xff')) * (end - start) + data[end:]


def remove_block(data: bytes, rng: random.Random) -> bytes:
    """Remove a block."""
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def duplicate_block(data: bytes, rng: random.Random) -> bytes:
    """Insert a copy of a block at another place."""
    start, end = _span(data, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[start:end] + data[at:]


def insert_bytes(data: bytes, rng: random.Random) -> bytes:
    """Insert random bytes."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(int(2 ** rng.uniform(0, 8))) + data[at:]


def replace_integer(data: bytes, rng: random.Random) -> bytes:
    """Write an integer near a limit of its type over the bytes at a place, half of the time near the beginning."""
    code = rng.choice('BHIQ')
    size = struct.calcsize(f'<{code}')
    limit = 1 << 8 * size
    value = rng.choice((0, 1, 2, limit // 2 - 1, limit // 2, limit - 1, 255 % limit, 65535 % limit, 1000000 % limit))
    end = min(len(data), 512) if rng.random() < 0.5 else len(data)
    at = rng.randrange(max(end, 1))
    return data[:at] + struct.pack(rng.choice('<>') + code, value) + data[at + size :]


def replace_number_in_text(data: bytes, rng: random.Random) -> bytes:
    """Replace one of the first decimal numbers by an odd one."""
    found = list(re.finditer(rb'-?\d+(?:\.\d+)?', data[: 1 << 16]))
    if not found:
        return flip_bits(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_NUMBERS_IN_TEXT) + data[match.end() :]


BYTE_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    truncate,
    zero_block,
    remove_block,
    duplicate_block,
    insert_bytes,
    replace_integer,
    replace_number_in_text,
)


def mutate(data: bytes, structured: tuple[Mutation, ...], rng: random.Random) -> bytes:
    """Apply one to three mutations; two of three use the structure of the file, if there are such mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        choices = structured if structured and rng.random() < 0.67 else BYTE_MUTATIONS
        data = rng.choice(choices)(data, rng)
    return data


# JSON


def _places(value: Any, found: list) -> list:
    """Return ``(container, key)`` of every value in nested containers."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        _places(item, found)
    return found


def change_value(content: Any, rng: random.Random, odd: tuple[Any, ...] = ODD_VALUES) -> Any:
    """Return a copy of nested dictionaries and lists in which one value, key or item differs."""
    content = copy.deepcopy(content)
    places = _places(content, [])
    if not places or rng.random() < 0.01:
        return copy.deepcopy(rng.choice(odd))
    container, key = rng.choice(places)
    operation = rng.randrange(8)
    if operation == 0:
        del container[key]
    elif operation == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif operation == 1:
        container[rng.choice(('', 'id', 'x' * 300, str(key) + '_', '\ud800'))] = container.pop(key)
    elif operation == 2:
        other, other_key = rng.choice(places)
        container[key] = copy.deepcopy(other[other_key])
    elif operation == 3 and isinstance(container[key], (int, float)):
        container[key] = rng.choice((str(container[key]), -container[key], container[key] * 10**6, [container[key]]))
    else:
        container[key] = copy.deepcopy(rng.choice(odd))
    return content


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON text; a text that is not JSON, or is nested too deeply, is mutated as bytes."""
    try:
        content = json.loads(data)  # since Python 3.12, also what is nested too deeply to be copied
        for _ in range(rng.choice((1, 1, 2, 4))):
            content = change_value(content, rng)
    except (ValueError, RecursionError):
        return flip_bits(data, rng)
    encoding = rng.choice(('utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16'))
    text = json.dumps(content).replace(f'"{_NESTED}"', '[' * 3000 + ']' * 3000)
    return text.encode(encoding)


# Zip archives


def _repack(members: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_STORED
    if rng.random() < 0.1:
        method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, 'w', method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, swap or rename a member and write the archive again with correct checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # an archive that an earlier mutation has damaged
        return flip_bits(data, rng)
    if not members:
        return flip_bits(data, rng)
    i, j = rng.randrange(len(members)), rng.randrange(len(members))
    texts = [k for k, (name, _) in enumerate(members) if name in ('meta.npy', 'snapshot.npy') or name.endswith('.pkl')]
    if texts and rng.random() < 0.4:
        i = rng.choice(texts)
    (name, content), (other_name, other) = members[i], members[j]
    operation = rng.randrange(6)
    if operation == 0:
        del members[i]
    elif operation == 1:
        members[i], members[j] = (name, other), (other_name, content)
    elif operation == 2:
        members[i] = (rng.choice((name + 'x', '../' + name, ' ', '\u9b5a.npy', 'x' * 3000, name.upper())), content)
    else:
        members[i] = (name, _mutate_member(name, content, rng))
    return _repack(members, rng)


def _mutate_member(name: str, content: bytes, rng: random.Random) -> bytes:
    """Mutate an ``.npy`` file: its JSON text, its header, its type or its values."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # not an array, or damaged by an earlier mutation
        return rng.choice(BYTE_MUTATIONS)(content, rng)
    if array.dtype == np.uint8 and array.ndim == 1 and array[:1].tobytes() in (b'{', b'['):
        changed = np.frombuffer(mutate_json(array.tobytes(), rng), np.uint8)
    elif rng.random() < 0.3:
        return replace_number_in_text(content[:128], rng) + content[128:]
    else:
        changed = change_array(array, rng)
    file = io.BytesIO()
    np.save(file, changed)
    return file.getvalue()


def change_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return an array with another shape, another type or odd values."""
    kind = rng.randrange(6)
    if kind == 0:
        return array.reshape(-1)
    if kind == 1:
        return array[..., None]
    if kind == 2:
        return array.reshape(-1)[:0]
    if kind == 3:
        dtype = rng.choice(('<f2', '>f4', '<f8', '<i4', '<u8', '|b1', '<c8', '<U4', '<M8[s]'))
        with np.errstate(all='ignore'):
            return np.zeros(array.shape, dtype) if dtype[1] in 'UM' else array.astype(dtype)
    changed = np.array(array)
    if changed.size and changed.dtype.kind == 'f':
        changed.reshape(-1)[rng.randrange(changed.size)] = rng.choice((math.nan, math.inf, -math.inf, 6e4, -6e4, 0))
    return changed if kind == 4 else np.concatenate([changed.reshape(-1)] * 2)


# Images


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """Mutate a chunk of a PNG and write the correct checksum after it."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return flip_bits(data, rng)
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    operation = rng.randrange(5)
    if operation == 0:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[i])
    elif operation == 1:
        del chunks[i]
    elif operation == 2:
        chunks[i] = (rng.choice((b'IDAT', b'PLTE', b'tRNS', b'eXIf', b'acTL', b'fcTL', b'iCCP', b'gAMA')), content)
    else:
        chunks[i] = (kind, rng.choice(BYTE_MUTATIONS)(content, rng))
    parts = [data[:8]]
    for kind, content in chunks:
        parts += [struct.pack('>I', len(content)), kind, content, struct.pack('>I', zlib.crc32(kind + content))]
    return b''.join(parts)


def mutate_tiff(data: bytes, rng: random.Random) -> bytes:
    """Replace a field of a TIFF directory entry: tag, type, count or value."""
    order = '<' if data[:2] == b'II' else '>'
    if len(data) < 16:
        return flip_bits(data, rng)
    start = struct.unpack(f'{order}I', data[4:8])[0]
    if start + 2 > len(data):
        return flip_bits(data, rng)
    entry = start + 2 + 12 * rng.randrange(max(struct.unpack(f'{order}H', data[start : start + 2])[0], 1))
    offset, code = rng.choice(((0, 'H'), (2, 'H'), (4, 'I'), (8, 'I'), (8, 'H')))
    size = struct.calcsize(code)
    value = rng.choice((0, 1, 2, 3, 8, 16, 32, 255, 256, 257, 258, 259, 262, 277, 282, 339, 32773, 65535))
    if code == 'I':
        value = rng.choice((value, 2**31, 2**32 - 1, len(data), len(data) - 1))
    at = entry + offset
    return data[:at] + struct.pack(order + code, value) + data[at + size :]


def mutate_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Mutate, drop or repeat a segment of a JPEG."""
    starts = [match.start() for match in re.finditer(rb'\xff[\xc0-\xfe]', data)]
    if len(starts) < 2:
        return flip_bits(data, rng)
    i = rng.randrange(len(starts) - 1)
    start, end = starts[i], starts[i + 1]
    operation = rng.randrange(4)
    if operation == 0:
        return data[:start] + data[end:]
    if operation == 1:
        return data[:end] + data[start:]
    return data[:start] + data[start : start + 2] + rng.choice(BYTE_MUTATIONS)(data[start + 2 : end], rng) + data[end:]
