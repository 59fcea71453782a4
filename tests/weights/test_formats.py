"""The table of formats: the content of a file determines its format, whatever its name is."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mask_rcnn.config import MATTERPORT, PRESETS, Config
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, formats, write_weights
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from tests.support import torch_bytes


def archive(*names, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as opened:
        for name in names:
            opened.writestr(name, b'x')
    return file.getvalue()


#: Name of the format -> the beginning of a file, or a whole small one.
FILES = {
    'mask-rcnn-npz': archive('meta.npy', 'extractor/conv1/conv/W.npy'),
    'caffe-npz': archive('conv1/W.npy', 'res2a_branch2a/W.npy', compression=zipfile.ZIP_DEFLATED),
    'chainer-npz': archive('res2/a/conv1/W.npy'),
    'mobilenet-npz': archive('Conv2d_0/weights.npy'),
    'dena-npz': archive('extractor/conv1/W.npy', 'head/convm2/b.npy', compression=zipfile.ZIP_DEFLATED),
    'pytorch': torch_bytes.state_dict({'a': np.ones(2, np.float32)}),
    'pytorch, legacy': torch_bytes.state_dict({'a': np.ones(2, np.float32)}, True),
    'pytorch, safetensors': struct.pack('<Q', 2) + b'{}',
    'matterport-h5': b'\x89HDF\r\n\x1a\n' + bytes(88),
    'mindspore': b'\n\x19\n\x0bbackbone.bn\x12\x0a\x08\x01\x12\x07Float32',
    'caffemodel': b'\n\x09ResNet-50\xa2\x06\x10',
    'caffemodel, without a name': b'\xa2\x06\x10',
    'caffemodel, before 2015': b'\x12\xe3\x01',
    **{f'detectron-pickle, {protocol}': pickle.dumps({'blobs': {}}, protocol) for protocol in range(6)},
    'detectron-pickle, runs': b'cposix\nsystem\n(S"true"\ntR.',
}


@pytest.mark.parametrize('name', FILES)
def test_the_content_determines_the_format(tmp_path, name):
    path = tmp_path / 'weights.txt'
    path.write_bytes(FILES[name])
    assert formats.detect_format(path).name == name.split(',')[0]


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'is empty$'),
        (b'\x1f\x8b\x08', 'gzip-compressed'),
        (b'<html>', 'web page'),
        (b'\x93NUMPY', r'is a single NumPy array \(.npy\), not the weights of a network$'),
        (b'version https://git-lfs', 'pointer of Git LFS'),
        (b'\xff\xd8\xff\xe0', "is not a file of weights in a supported format: it is an image.*PyTorch's .pth"),
        (b'PK\x03\x04' + bytes(50), 'is a damaged zip archive'),
        (archive('a.txt'), 'is not a zip archive of weights in a supported format'),
        (b'{"IMAGE_MAX_DIM": 512}', 'is not a file of weights'),
        (bytes(100), 'is not a file of weights'),
    ],
)
def test_other_files_raise_a_one_line_error(tmp_path, data, reason):
    path = tmp_path / 'weights.pkl'
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match=reason) as caught:
        formats.detect_format(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('name', FILES)
def test_truncated_files_raise_a_one_line_error(tmp_path, name):
    """The file begins like one of its format, but is not complete."""
    path = tmp_path / 'weights.npz'
    path.write_bytes(FILES[name])
    with pytest.raises(WeightFileError) as caught:
        formats.read(path)
    assert str(caught.value).isprintable()


def test_hdf5_without_h5py(tmp_path):
    """Python 3.15 has no h5py: the other formats are read, and an HDF5 file ends in one line."""
    (tmp_path / 'model.h5').write_bytes(FILES['matterport-h5'])
    write_weights(tmp_path / 'model.npz', {}, ModelMeta('backbone', Config(), (), (), Source('x.pkl', '0' * 64, 'a')))
    code = 'import sys; sys.modules["h5py"] = None; from mask_rcnn.cli import main; sys.exit(main(sys.argv[1:]))'
    native, hdf5 = (
        subprocess.run([sys.executable, '-c', code, 'info', name], cwd=tmp_path, capture_output=True, text=True)
        for name in ('model.npz', 'model.h5')
    )
    assert native.returncode == 0 and 'x.pkl' in native.stdout, native.stderr
    assert hdf5.returncode == 1 and hdf5.stdout == ''
    assert hdf5.stderr == (
        'error: model.h5: is an HDF5 file, and h5py cannot be imported: pip install h5py, or convert '
        'the file with a Python of which h5py has a build (mask-rcnn convert)\n'
    )


def test_folders_and_missing_files(tmp_path):
    for path, reason in ((tmp_path, 'is a folder'), (tmp_path / 'missing', 'No such file')):
        with pytest.raises(WeightFileError, match=reason):
            formats.detect_format(path)


def test_native_files(tmp_path):
    path = tmp_path / 'model.npz'
    meta = ModelMeta(
        'model',
        Config(n_fg_class=2),
        ('cat', 'dog'),
        (17, 18),
        Source('x.pkl', '0' * 64, 'detectron-pickle'),
        notes=('a note',),
    )
    write_weights(path, {'a/W': np.ones((2, 3), np.float32)}, meta)
    file = formats.read(path)
    assert (file.kind, file.format, file.config) == ('model', 'mask-rcnn-npz', Config(n_fg_class=2))
    assert (file.class_names, file.category_ids) == (('cat', 'dog'), (17, 18))
    assert file.report.notes == ('converted from x.pkl (detectron-pickle)', 'a note')
    assert file.report.taken == ('a/W',) and file.arrays['a/W'].shape == (2, 3)
    with pytest.raises(WeightFileError, match=r'takes no settings \(X\): it is this program'):
        formats.read(path, {'X': 1})


def test_imagenet_backbones(shared):
    for name, format, extractor in (
        ('resnet50_imagenet', 'caffe-npz', 'resnet50'),
        ('mobilenet_v1_imagenet', 'mobilenet-npz', 'mobilenet_v1_fpn'),
    ):
        file = formats.read(shared / 'weights' / f'{name}.npz')
        assert (file.kind, file.format, file.config.extractor) == ('backbone', format, extractor)
        assert sum(array.size for array in file.arrays.values()) > 3e6


@pytest.mark.parametrize(
    ('format', 'kind', 'config', 'name'),
    [
        ('detectron-pickle', 'model', PRESETS['resnet50'], 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'),
        ('detectron-pickle', 'model', PRESETS['keypoint_resnet101_fpn'], 'e2e_keypoint_rcnn_R-101-FPN_1x_d2c.npz'),
        (
            'detectron-pickle',
            'model',
            PRESETS['keypoint_resnet50_fpn'].replace(masks=True),
            'e2e_mask_and_keypoint_rcnn_R-50-FPN_1x_d2c.npz',
        ),
        ('detectron-pickle', 'backbone', PRESETS['resnet101'], 'R-101_d2c.npz'),
        (
            'matterport-h5',
            'model',
            PRESETS['resnet101_fpn'].replace(dialect=MATTERPORT, max_size=1024),
            'mask_rcnn_R-101-FPN_m2c.npz',
        ),
        ('pytorch', 'model', PRESETS['resnet50_fpn'], 'mask_rcnn_R-50-FPN_p2c.npz'),
        ('mindspore', 'model', PRESETS['mobilenet_v1_fpn'], 'mask_rcnn_MobileNetV1-FPN_ms2c.npz'),
    ],
)
def test_default_names_of_converted_files(format, kind, config, name):
    assert formats.default_name(ConvertedWeights(kind, format, config, {}, ConversionReport((), {}), '')) == name
