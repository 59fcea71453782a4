"""Files that are not weights of a supported program: each is named, with what to do instead."""

import io
import json
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.inference.save import collect_arrays, model_meta
from mask_rcnn.weights import WeightFileError, formats
from tests.support import torch_bytes as tb
from tests.support import wrong_files


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as opened:
        for name in names:
            opened.writestr(name, b'x')
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as opened:
        opened.addfile(tarfile.TarInfo('model.pkl'))
    return file.getvalue()


def state_dict(*names):
    return tb.state_dict({name: np.ones(1, np.float32) for name in names})


#: The content of files that users mistake for weights -> the part of the error that names it or the way on.
FILES = {
    'web page': (b'\n<!DOCTYPE html>\n<html><head>', r'web page \(HTML\), not weights; .*download it again'),
    'TFLite': (b'\x1c\0\0\0TFL3' + bytes(20), 'TensorFlow Lite'),
    'ONNX': (b'\x08\x07\x12\x07pytorch\x1a\x032.0', 'is an ONNX model.*checkpoint that it was exported from'),
    'SavedModel': (b'\x08\x01\x12\xe8\x07', 'TensorFlow SavedModel'),
    'frozen graph': (b'\n\x2f\n\x05image\x12\x0bPlaceholder*', r'TensorFlow graph \(.pb\)'),
    'TorchScript': (archive('m/data.pkl', 'm/constants.pkl', 'm/code/a.py'), 'TorchScript.*state_dict'),
    'Keras 3': (archive('config.json', 'metadata.json', 'model.weights.h5'), 'Keras 3 model'),
    'Chainer': (archive('updater/iteration.npy', 'updater/model:main/a/W.npy'), 'save the model alone.*save_npz'),
    '7z': (b"7z\xbc\xaf'\x1c" + bytes(20), 'an archive; unpack it'),
    'tar': (tar(), 'an archive; unpack it'),
    'tar.gz': (b'\x1f\x8b\x08' + bytes(20), 'gzip-compressed; unpack it'),
    'zip': (
        archive('models/model_final.pkl', 'README'),
        "name the weight file in it, such as 'models/mod",
    ),
    'npz': (archive('arr_0.npy'), "the arrays of another program, such as 'arr_0.npy'"),
    'zip of macOS': (archive('__MACOSX/._a.pth', 'a.pth'), "such as 'a.pth'"),
    'truncated zip': (archive('arr_0.npy')[:-30], 'damaged zip archive: its end is missing.*download it again'),
    'refusal': (b'Entry not found', 'the refusal of a server, not weights; check the address'),
    'short text': (b'weights', 'it is text, not weights'),
    'MXNet': (struct.pack('<QQQ', 0x112, 0, 3), 'an MXNet file'),
    'OpenVINO': (b'<?xml version="1.0"?>\n<net name="m">', 'OpenVINO'),
    'JPEG': (b'\xff\xd8\xff\xe0' + bytes(20), 'an image, not weights'),
    'PNG': (b'\x89PNG\r\n\x1a\n' + bytes(20), 'an image, not weights'),
    'video': (wrong_files.VIDEOS['MP4'], 'it is a video'),
    'results': (b'[{"image_id": 1, "category_id": 1}]', 'detections'),
    'annotations': (
        b'{"info": {}, "images": [], "annotations": []}',
        'is a JSON file of annotations, not weights',
    ),
    'JSON': (b'{"IMAGE_MAX_DIM": 512}', 'it is JSON text'),
    'YAML': (b'# a comment\nMODEL:\n  TYPE: x\n', 'YAML configuration.*give the weight file'),
    'prototxt': (b'name: "ResNet-50"\ninput: "data"\n', r'prototxt.*\.caffemodel'),
    'TensorFlow 1': (b'model_checkpoint_path: "model.ckpt-1"\n', 'TensorFlow checkpoint'),
    'LFS': (b'version https://git-lfs.github.com/spec/v1\n', 'pointer of Git LFS.*git lfs pull'),
    'text': (b'this is a text about weights\n', 'it is text, not weights'),
    'empty': (b'', 'is empty'),
    'detectron2 pickle': (pickle.dumps({'model': {'a': np.ones(1)}, '__author__': 'Detectron2'}, 2), 'detectron2'),
    'detectron2': (state_dict('backbone.bottom_up.res2.0.conv1.weight'), 'detectron2'),
    'torchvision': (state_dict('backbone.body.conv1.weight'), 'torchvision'),
    'MMDetection': (state_dict('backbone.layer4.0.conv1.weight', 'roi_head.a'), 'MMDetection'),
    'YOLO': (state_dict('model.0.conv.weight', 'model.1.conv.weight'), 'YOLO'),
    'optimizer': (tb.state_dict({'exp_avg': np.ones(2, 'f4'), 'exp_avg_sq': np.ones(2, 'f4')}), 'of an optimizer'),
}


@pytest.mark.parametrize('name', FILES)
def test_each_file_is_named_in_one_line(tmp_path, name):
    data, message = FILES[name]
    path = tmp_path / 'weights.bin'
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match=message) as caught:
        formats.read(path)
    assert str(caught.value).isprintable() and str(caught.value).startswith(f'{path}: ')


@pytest.mark.parametrize('name', ['model.ckpt-9.index', 'model.ckpt-9.data-00000-of-00001', 'model.ckpt.meta'])
def test_the_parts_of_a_tensorflow_checkpoint_are_recognised_by_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(100)))
    with pytest.raises(WeightFileError, match='part of a TensorFlow checkpoint'):
        formats.read(tmp_path / name)


def test_a_folder_names_the_files_in_it(tmp_path):
    with pytest.raises(WeightFileError, match='is a folder, not a file$'):
        formats.read(tmp_path)
    for name in ('model_iter_2.npz', 'log', 'a.PKL'):
        (tmp_path / name).touch()
    with pytest.raises(WeightFileError, match=r'name a file in it: \S+/a.PKL, \S+/model_iter_2.npz$'):
        formats.read(tmp_path)
    (tmp_path / 'saved_model.pb').touch()
    with pytest.raises(WeightFileError, match='TensorFlow SavedModel'):
        formats.read(tmp_path)


def snapshot(path, n_fg_class=2, **changes):
    """Write the parts of a training snapshot that describe its model; returns the model."""
    small = {'width': 0.125, 'fpn_channels': 8, 'rpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}
    model = mask_rcnn.build('mobilenet_v1_fpn', n_fg_class=n_fg_class, class_names=['cat', 'dog'], **small)
    header = {'format_version': 1, 'model': json.loads(model_meta(model).to_json()), 'options': {}, 'nones': []}
    arrays = {f'updater/model:main/model/{name}': array for name, array in collect_arrays(model).items()}
    text = np.frombuffer(json.dumps(header | changes).encode(), np.uint8)
    np.savez(path, **{'snapshot': text, 'updater/iteration': np.array(3), **arrays})
    return model


def test_a_snapshot_is_used_like_its_model(tmp_path):
    path = tmp_path / 'snapshot_iter_3.npz'
    model = snapshot(path)
    loaded = mask_rcnn.load(path)
    assert loaded.config == model.config and loaded.class_names == ('cat', 'dog')
    for name, array in collect_arrays(model).items():
        np.testing.assert_array_equal(collect_arrays(loaded)[name], array)
    file = formats.read(path)
    assert file.format == 'mask-rcnn-snapshot' and file.report.skipped['training state']


def test_a_damaged_snapshot_is_named(tmp_path):
    path = tmp_path / 'snapshot_iter_3.npz'
    snapshot(path, model={'kind': 'model'})
    with pytest.raises(WeightFileError, match='is a damaged training snapshot: '):
        mask_rcnn.load(path)
