"""The files that initialise training by name: ``imagenet`` and ``coco``."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

import chainer

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.weights.download import DETECTRON_R50_C4_MASK
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import open_weight_file

#: Names of ``--pretrained`` that stand for a file: the weights of an ImageNet classifier, and those of a whole network
#: trained on COCO.
IMAGENET, COCO = 'imagenet', 'coco'

#: The folder of the converters, in which the files are also searched.
MODEL_FOLDER = pathlib.Path('modelfiles')

#: Names of ResNet weights in order of preference; ``{depth}`` is 50, 101 or 152.
_IMAGENET_FILES = (
    'ResNet-{depth}-model.caffemodel',
    'R-{depth}.pkl',
    'R-{depth}_d2c.npz',
    'resnet{depth}_imagenet.npz',
    'ResNet-{depth}-model.npz',
)

_MOBILENET_FILES = ('mobilenet_v1_imagenet.npz',)

_MOBILENET_SOURCE = 'https://github.com/tensorflow/models/blob/master/research/slim/nets/mobilenet_v1.md'
_CAFFE_SOURCE = 'https://github.com/KaimingHe/deep-residual-networks'
_DETECTRON_SOURCE = 'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-{depth}.pkl'

#: Detectron's ImageNet files of other backbones, and their addresses.
_OTHER_IMAGENET_FILES = {
    name: f'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/{folder}/{name}.pkl'
    for name, folder in (
        ('X-101-32x8d', '20171220'),
        ('X-101-64x4d', 'FBResNeXt'),
        ('R-50-GN', '47261647'),
        ('R-101-GN', '47592356'),
    )
}

#: A model of Detectron's zoo (``MODEL_ZOO.md``, end-to-end Mask and Keypoint R-CNN): run, and prefix of the datasets.
_ZOO_URL = (
    'https://dl.fbaipublicfiles.com/detectron/{run}/output/train/'
    '{prefix}coco_2014_train%3A{prefix}coco_2014_valminusminival/generalized_rcnn/model_final.pkl'
)
_MINDSPORE_URL = (
    'https://download.mindspore.cn/models/r1.5/'
    'maskrcnnmobilenetv1_ascend_v150_coco2017_official_cv_bbox24.00_segm21.5.ckpt'
)
_MATTERPORT_FILE = 'mask_rcnn_coco.h5'

_Path = str | os.PathLike


@dataclass(frozen=True)
class _CocoModel:
    """The weights of a network trained on COCO.

    Args:
        names: Names of its files in order of preference; the first one is that of the converted file.
        url: Address of the source file; empty if there is none.
        save_as: Name of the source file in the folder of the converters.
    """

    names: tuple[str, ...]
    url: str = ''
    save_as: str = 'model_final.pkl'


def _zoo_model(kind: str, backbone: str, run: str, *more_names: str) -> _CocoModel:
    """Return a model of Detectron's zoo, which :mod:`mask_rcnn.cli.convert` stores under its name there."""
    name = f'e2e_{kind}_rcnn_{backbone}_1x'
    number, suffix = run.split('/')
    prefix = 'keypoints_' if kind == 'keypoint' else ''
    url = _ZOO_URL.format(run=f'{number}/12_2017_baselines/{name}.yaml.{suffix}', prefix=prefix)
    return _CocoModel((f'{name}_d2c.npz', *more_names), url)


#: The address of ``e2e_mask_rcnn_R-50-FPN_2x_gn``, which has another form than those of December 2017.
_GN_URL = (
    'https://dl.fbaipublicfiles.com/detectron/GN/48616381/04_2018_gn_baselines/'
    'e2e_mask_rcnn_R-50-FPN_2x_gn_0416.13_23_38.bTlTI97Q/output/train/'
    'coco_2014_train%3Acoco_2014_valminusminival/generalized_rcnn/model_final.pkl'
)

#: ResNeXt backbones, and their names in the zoo.
_RESNEXTS = {
    'resnext50_32x4d': 'X-50-32x4d',
    'resnext101_32x8d': 'X-101-32x8d',
    'resnext101_64x4d': 'X-101-64x4d',
    'resnext152_32x8d': 'X-152-32x8d',
}

#: Extractor (or the name of a preset with group normalisation) and whether the network predicts keypoints -> its
#: weights.
_COCO_MODELS = {
    ('resnet50', False): _CocoModel(('e2e_mask_rcnn_R-50-C4_1x_d2c.npz', 'model_final.pkl'), DETECTRON_R50_C4_MASK),
    ('resnet101', False): _CocoModel(('e2e_mask_rcnn_R-101-C4_1x_d2c.npz',)),  # the zoo has no such model
    ('resnet50_fpn', False): _zoo_model('mask', 'R-50-FPN', '35858933/01_48_14.DzEQe4wC'),
    ('resnet101_fpn', False): _zoo_model(
        'mask', 'R-101-FPN', '35861795/02_31_37.KqyEK4tT', 'mask_rcnn_R-101-FPN_m2c.npz', _MATTERPORT_FILE
    ),
    ('resnet152', False): _CocoModel(('e2e_mask_rcnn_R-152-C4_1x_d2c.npz',)),
    ('resnet152_fpn', False): _CocoModel(('e2e_mask_rcnn_R-152-FPN_1x_d2c.npz',)),
    **{
        (f'{extractor}{suffix}', False): _CocoModel((f'e2e_mask_rcnn_{backbone}-{neck}_1x_d2c.npz',))
        for extractor, backbone in _RESNEXTS.items()
        for suffix, neck in (('', 'C4'), ('_fpn', 'FPN'))
    },
    ('resnext101_32x8d_fpn', False): _zoo_model('mask', 'X-101-32x8d-FPN', '36761843/06_35_59.RZotkLKI'),
    ('resnext101_64x4d_fpn', False): _zoo_model('mask', 'X-101-64x4d-FPN', '36494496/07_50_11.fkwVtEvg'),
    ('resnet50_fpn_gn', False): _CocoModel(('e2e_mask_rcnn_R-50-FPN-GN_1x_d2c.npz',), _GN_URL),
    ('resnet101_fpn_gn', False): _CocoModel(('e2e_mask_rcnn_R-101-FPN-GN_1x_d2c.npz',)),
    ('resnet50_fpn', True): _zoo_model('keypoint', 'R-50-FPN', '37697547/08_42_54.kdzV35ao'),
    ('resnet101_fpn', True): _zoo_model('keypoint', 'R-101-FPN', '37697946/08_45_06.Y14KqbST'),
    ('mobilenet_v1_fpn', False): _CocoModel(
        ('mask_rcnn_MobileNetV1-FPN_ms2c.npz', _MINDSPORE_URL.rpartition('/')[2]),
        _MINDSPORE_URL,
        _MINDSPORE_URL.rpartition('/')[2],
    ),
}


def search_folders(model_folder: _Path = MODEL_FOLDER) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the folders in which named weights are searched: that of Chainer's models, and that of the converters.

    Args:
        model_folder: The folder of the converters.
    """
    return pathlib.Path(chainer.dataset.get_dataset_root(), 'pfnet', 'chainer', 'models'), pathlib.Path(model_folder)


def find_pretrained(
    name_or_path: _Path,
    extractor: str = 'resnet50',
    *,
    keypoints: bool = False,
    model_folder: _Path = MODEL_FOLDER,
) -> pathlib.Path:
    """Return the file that ``--pretrained`` names.

    Args:
        name_or_path: ``'imagenet'`` for the ImageNet weights of the extractor, ``'coco'`` for the weights of the whole
            network trained on COCO, or a path.  The named weights are searched in
            ``~/.chainer/dataset/pfnet/chainer/models/``, where Chainer keeps its models (``$CHAINER_DATASET_ROOT``
            replaces ``~/.chainer/dataset`` if it is set), and in ``model_folder``.
        extractor: One of :data:`mask_rcnn.config.EXTRACTORS`, or such a name with ``_gn``.
        keypoints: Whether the network predicts keypoints; for ``'coco'``.
        model_folder: The folder of the converters.

    Raises:
        WeightFileError: The file does not exist; for a name, the message states the file to download, its source and
            the folder to put it in.
    """
    name = os.fspath(name_or_path)
    if name not in (IMAGENET, COCO):
        with open_weight_file(name_or_path):
            return pathlib.Path(name_or_path)
    chainer_folder, model_folder = search_folders(model_folder)
    folders = [chainer_folder, model_folder] if name == IMAGENET else [model_folder, chainer_folder]
    file_names, advice = (
        _imagenet_files(extractor) if name == IMAGENET else _coco_files(extractor, keypoints, model_folder)
    )
    for file_name in file_names:
        for folder in folders:
            if (folder / file_name).is_file():
                return folder / file_name
    title, network = ('ImageNet', extractor) if name == IMAGENET else ('COCO', _network(extractor, keypoints))
    raise WeightFileError(
        folders[0],
        f'has no {title} weights for {network}, and neither has {folders[1]}: {advice}, name a file '
        'with --pretrained FILE, or train from scratch with --pretrained none',
    )


def _network(extractor: str, keypoints: bool) -> str:
    return f'{extractor} with keypoints' if keypoints else extractor


def _imagenet_files(extractor: str) -> tuple[list[str], str]:
    """Return the names of an extractor's ImageNet weights in order of preference, and how to get the best."""
    if extractor.startswith('mobilenet'):
        return list(_MOBILENET_FILES), (
            f'put {_MOBILENET_FILES[0]} (the arrays of the checkpoint from {_MOBILENET_SOURCE}) there'
        )
    name = extractor.removesuffix('_gn').removesuffix('_fpn')
    if name in _RESNEXTS or extractor.endswith('_gn'):
        source = f'R-{name.removeprefix("resnet")}-GN' if extractor.endswith('_gn') else _RESNEXTS[name]
        url = _OTHER_IMAGENET_FILES.get(source)
        advice = f'put {source}.pkl (from {url}) there' if url else 'no such weights are published'
        return [f'{source}.pkl', f'{source}_d2c.npz'], advice
    if name not in RESNET_BLOCKS:  # a registered backbone
        return [], 'no such weights are published'
    depth = name.removeprefix('resnet')
    names = [name.format(depth=depth) for name in _IMAGENET_FILES]
    detectron = _DETECTRON_SOURCE.format(depth=depth)
    return names, f'put {names[0]} (from {_CAFFE_SOURCE}) or {names[1]} (from {detectron}) there'


def _coco_files(extractor: str, keypoints: bool, folder: pathlib.Path) -> tuple[tuple[str, ...], str]:
    """Return the names of a network's COCO weights in order of preference, and how to get them."""
    model = _COCO_MODELS.get((extractor, keypoints))
    if model is None:
        return (), 'no such weights are published'
    if not model.url:
        return model.names, f'{model.names[0]} would be right, but its source program publishes no such model'
    path = folder / model.save_as
    return model.names, f'save {model.url} as {path}, and mask-rcnn convert {path} writes {model.names[0]}'


def default_model_advice(folder: pathlib.Path = MODEL_FOLDER) -> str:
    """Return the steps to the COCO weights of the default network, which need no checkout of this project."""
    return _coco_files('resnet50', False, folder)[1]
