"""Protocol buffer messages written by hand."""


def varint(value: int) -> bytes:
    """Encode an integer with seven bits per byte."""
    data = b''
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def bytes_field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes (wire type 2)."""
    return varint(number << 3 | 2) + varint(len(content)) + content
