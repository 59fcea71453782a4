"""The beginnings of files that users give in the place of others, by the word that names them."""

import io
import zipfile

import numpy as np


def _zip(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(name, b'{}')
    return file.getvalue()


def _npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(2, np.float32))
    return file.getvalue()


WEIGHTS = {
    'npz': _npz(),
    'PyTorch': _zip('archive/data.pkl'),
    'pickle': b'\x80\x02}q\0.',
    'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(40),
}
IMAGES = {'JPEG': b'\xff\xd8\xff\xe0' + bytes(40), 'PNG': b'\x89PNG\r\n\x1a\n' + bytes(40)}
VIDEOS = {
    'MP4': b'\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41' + bytes(40),
    'MOV': b'\0\0\0\x14ftypqt  \0\0\2\0qt  ' + bytes(40),
    'AVI': b'RIFF\0\0\0\0AVI LIST' + bytes(40),
    'Matroska': b'\x1aE\xdf\xa3' + bytes(40),
}
ARCHIVES = {'zip': _zip('annotations/instances_val2017.json'), 'gzip': b'\x1f\x8b\x08\0' + bytes(40)}
WEB_PAGE = b'\n<!DOCTYPE html>\n<html><body>404</body></html>'
POINTERS = {
    'LFS': b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 178062352\n',
    'annex': b'/annex/objects/SHA256E-s178062352--4d7a.pkl\n',
    'annex link': b'../../.git/annex/objects/mV/2x/SHA256E-s5--4d7a.pkl/SHA256E-s5--4d7a.pkl',
}
REFUSALS = {
    'raw.githubusercontent.com': b'404: Not Found',
    'github.com': b'Not Found',
    'huggingface.co': b'Entry not found',
    'huggingface.co, 401': b'Invalid username or password.',
    'api.github.com': b'{"message":"Not Found","documentation_url":"https://docs.github.com/rest"}',
    'S3': b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
}
