"""PyTorch files written by hand, opcode by opcode, in the way of ``torch.save`` (protocol 2)."""

import io
import pickle
import struct
import zipfile

import numpy as np

from mask_rcnn.weights.exporters.opcodes import ORDERED_DICT, integer, sequence, text
from mask_rcnn.weights.exporters.torch_file import of_array, storage, tensor

__all__ = [
    'ORDERED_DICT',
    'dictionary',
    'integer',
    'legacy',
    'of_array',
    'sequence',
    'state_dict',
    'storage',
    'tensor',
    'text',
    'zipped',
]

MAGIC = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'  # pickle.dumps(0x1950a86a20f9469cfc6c, 2)


def dictionary(items, metadata=True):
    """Encode a state dict whose values are opcodes."""
    content = b''.join(text(name) + value for name, value in items.items())
    state = b'}' + text('_metadata') + ORDERED_DICT + b'sb' if metadata else b''
    return b'\x80\x02' + ORDERED_DICT + b'(' + content + b'u' + state + b'.'


def zipped(pickled, storages, name='archive', **more):
    """Encode a file in the zip format; ``storages`` are bytes by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', more.pop('compression', zipfile.ZIP_STORED)) as archive:
        archive.writestr(f'{name}/data.pkl', pickled)
        archive.writestr(f'{name}/byteorder', more.pop('byteorder', 'little'))
        for key, data in storages.items():
            archive.writestr(f'{name}/data/{key}', data)
        archive.writestr(f'{name}/version', '3\n')
    return file.getvalue()


def legacy(pickled, storages, lengths):
    """Encode a file in the legacy format; ``lengths`` are the storages' numbers of items."""
    system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
    parts = [MAGIC, pickle.dumps(1001, 2), pickle.dumps(system, 2), pickled, pickle.dumps(list(storages), 2)]
    for key, data in storages.items():
        parts += [struct.pack('<q', lengths[key]), data]
    return b''.join(parts)


def state_dict(arrays, as_legacy=False):
    """Encode a file of arrays by name."""
    arrays = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    keys = {name: str(i) for i, name in enumerate(arrays)}
    pickled = dictionary({name: of_array(array, keys[name], legacy=as_legacy) for name, array in arrays.items()})
    data = {keys[name]: array.tobytes() for name, array in arrays.items()}
    if as_legacy:
        return legacy(pickled, data, {keys[name]: array.size for name, array in arrays.items()})
    return zipped(pickled, data)
