"""Intact images of every format and mode, annotation files and settings."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from harness import FIELDS
from mutations import mutate_jpeg, mutate_json, mutate_png, mutate_tiff, replace_number_in_text
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from weight_samples import CFG, Samples

from mask_rcnn.config import PRESETS
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES

#: Side of the images in pixels, and the number of images of an annotation file.
SIZE, N_IMAGES = 64, 3

_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><tiff:Orientation>6</tiff:Orientation>'
    b'</rdf:Description></rdf:RDF></x:xmpmeta>'
)


# Images


def _scene() -> np.ndarray:
    return ShapesDataset(1, size=SIZE, seed=0)[0].image.transpose(1, 2, 0).astype(np.uint8)[:48]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _xmp_images(image: Image.Image) -> Samples:
    """Return images whose orientation is in XMP data only."""
    text = PngInfo()
    text.add_itxt('XML:com.adobe.xmp', _XMP.decode(), zip=True)
    return {
        'xmp.png': (_saved(image, 'PNG', pnginfo=text), (mutate_png,)),
        'xmp.jpg': (_saved(image, 'JPEG', xmp=_XMP), (mutate_jpeg,)),  # with Pillow 11 or later
        'xmp.tif': (_saved(image, 'TIFF', tiffinfo={700: _XMP}), (mutate_tiff,)),
        'xmp.webp': (_saved(image, 'WEBP', xmp=_XMP), ()),
    }


def images() -> Samples:
    """Return images of every accepted format, with the modes and options that have code of their own."""
    rgb = Image.fromarray(_scene())
    modes = {mode: rgb.convert(mode) for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK')}
    deep = Image.fromarray((np.arange(48 * 64, dtype=np.uint16) * 21).reshape(48, 64))
    samples = _xmp_images(rgb)
    for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1'):
        samples[f'{mode}.png'] = (_saved(modes[mode], 'PNG', exif=_exif(6)), (mutate_png,))
    samples['16.png'] = (_saved(deep, 'PNG'), (mutate_png,))
    samples['animated.png'] = (
        _saved(rgb, 'PNG', save_all=True, append_images=[rgb.rotate(180)], duration=100),
        (mutate_png,),
    )
    for mode in ('RGB', 'L', 'CMYK'):
        samples[f'{mode}.jpg'] = (_saved(modes[mode], 'JPEG', exif=_exif(6)), (mutate_jpeg,))
    samples['progressive.jpg'] = (_saved(rgb, 'JPEG', progressive=True, exif=_exif(3)), (mutate_jpeg,))
    samples['camera.mpo'] = (_saved(rgb, 'MPO', save_all=True, append_images=[rgb]), (mutate_jpeg,))
    for mode in ('RGB', 'RGBA', 'L', 'P', '1', 'CMYK'):
        samples[f'{mode}.tif'] = (_saved(modes[mode], 'TIFF'), (mutate_tiff,))
    for compression in ('tiff_lzw', 'tiff_deflate', 'packbits', 'jpeg'):
        samples[f'{compression}.tif'] = (_saved(rgb, 'TIFF', compression=compression), (mutate_tiff,))
    samples['group4.tif'] = (_saved(modes['1'], 'TIFF', compression='group4'), (mutate_tiff,))
    samples['16.tif'] = (_saved(deep, 'TIFF'), (mutate_tiff,))
    samples['float.tif'] = (_saved(rgb.convert('F'), 'TIFF'), (mutate_tiff,))
    for mode in ('RGB', 'L', 'P', '1'):
        samples[f'{mode}.bmp'] = (_saved(modes[mode], 'BMP'), ())
    samples['lossy.webp'] = (_saved(rgb, 'WEBP', exif=_exif(8)), ())
    samples['lossless.webp'] = (_saved(modes['RGBA'], 'WEBP', lossless=True), ())
    samples['animated.webp'] = (_saved(rgb, 'WEBP', save_all=True, append_images=[rgb.rotate(180)]), ())
    samples['still.gif'] = (_saved(modes['P'], 'GIF'), ())
    samples['animated.gif'] = (_saved(modes['P'], 'GIF', save_all=True, append_images=[modes['P'].rotate(90)]), ())
    for mode, suffix in (('RGB', 'ppm'), ('L', 'pgm'), ('1', 'pbm')):
        samples[f'binary.{suffix}'] = (_saved(modes[mode], 'PPM'), (replace_number_in_text,))
    samples['text.ppm'] = (b'P3 2 2 255\n' + b'1 20 255 ' * 4, (replace_number_in_text,))
    samples['grey.jp2'] = (cv2.imencode('.jp2', np.asarray(modes['L']))[1].tobytes(), ())
    samples['colour.jp2'] = (cv2.imencode('.jp2', np.asarray(rgb))[1].tobytes(), ())
    return samples


# Annotations


def write_images(folder: Path) -> None:
    """Write the images of the annotation files: ``0.png``, ``1.png``, ..."""
    dataset = ShapesDataset(N_IMAGES, size=SIZE, seed=0)
    for i in range(N_IMAGES):
        Image.fromarray(dataset[i].image.transpose(1, 2, 0).astype(np.uint8)).save(folder / f'{i}.png')


def _annotation_content(*, keypoints: bool) -> dict:
    truth = ShapesDataset(N_IMAGES, size=SIZE, seed=0).ground_truth()
    ids = {image['id']: i for i, image in enumerate(truth['images'])}
    images = [
        {'id': i, 'file_name': f'{i}.png', 'height': image['height'], 'width': image['width'], 'license': 1}
        for i, image in enumerate(truth['images'])
    ]
    annotations = [{**entry, 'image_id': ids[entry['image_id']]} for entry in truth['annotations']]
    runs = {'size': [SIZE, SIZE], 'counts': [SIZE * 8, SIZE * 8, SIZE * (SIZE - 16)]}
    crowd = {'id': 900, 'image_id': 0, 'category_id': annotations[0]['category_id'], 'iscrowd': 1}
    annotations.append({**crowd, 'bbox': [8, 0, 8, SIZE], 'area': 8 * SIZE, 'segmentation': runs})
    categories = truth['categories']
    if keypoints:
        categories = [{**category, 'keypoints': list(COCO_KEYPOINT_NAMES)} for category in categories]
        annotations = [{**entry, 'keypoints': [10, 12, 2] * 17, 'num_keypoints': 17} for entry in annotations]
    return {'info': {'year': 2017}, 'images': images, 'annotations': annotations, 'categories': categories}


def annotation_files() -> Samples:
    """Return annotation files of shapes, with polygons, run lengths and keypoints."""
    return {
        f'{name}.json': (
            json.dumps(_jsonable(_annotation_content(keypoints=name == 'keypoints'))).encode(),
            (mutate_json,),
        )
        for name in ('instances', 'keypoints')
    }


def _jsonable(value: Any) -> Any:
    """Return nested values with bytes as text and NumPy numbers as Python's."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.decode('ascii')
    return value.item() if isinstance(value, np.generic) else value.tolist() if isinstance(value, np.ndarray) else value


# Settings

#: Fields of ``Config`` that ``--set`` refuses, because other options set them.
_FIELDS_WITH_OPTIONS = (
    *('extractor', 'n_fg_class', 'n_keypoint', 'dialect', 'norm', 'roi_size', 'roi_align', 'anchor_sizes'),
    *('min_size', 'max_size'),
)

_MATTERPORT = {
    'IMAGE_MIN_DIM': 128,
    'IMAGE_MAX_DIM': 128,
    'RPN_ANCHOR_SCALES': [8, 16, 32, 64, 128],
    'RPN_ANCHOR_RATIOS': [0.5, 1, 2],
    'DETECTION_MIN_CONFIDENCE': 0.5,
    'DETECTION_NMS_THRESHOLD': 0.3,
    'DETECTION_MAX_INSTANCES': 100,
    'POST_NMS_ROIS_INFERENCE': 1000,
    'RPN_BBOX_STD_DEV': [0.1, 0.1, 0.2, 0.2],
    'BBOX_STD_DEV': [0.1, 0.1, 0.2, 0.2],
    'MEAN_PIXEL': [123.7, 116.8, 103.9],
    'MASK_POOL_SIZE': 14,
    'NUM_CLASSES': 81,
    'BACKBONE': 'resnet50',
}


_TORCHVISION = {
    'min_size': 128,
    'max_size': 128,
    'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225],
    'anchor_sizes': [[8], [16], [32], [64], [128]],
    'aspect_ratios': [[0.5, 1.0, 2.0]] * 5,
    'rpn_pre_nms_top_n_test': 1000,
    'rpn_post_nms_top_n_test': 1000,
    'rpn_nms_thresh': 0.7,
    'rpn_score_thresh': 0.0,
    'box_score_thresh': 0.05,
    'box_nms_thresh': 0.5,
    'box_detections_per_img': 100,
    'bbox_reg_weights': [10.0, 10.0, 5.0, 5.0],
    'bn_eps': 1e-05,
    'trainable_backbone_layers': 3,
}

_DETECTRON2 = """\
_BASE_: "Base-RCNN-FPN.yaml"
INPUT: {MIN_SIZE_TEST: 128, MAX_SIZE_TEST: 128, FORMAT: BGR, MIN_SIZE_TRAIN: (640, 672)}
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  PIXEL_MEAN: &mean [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  RESNETS: {DEPTH: 50, STRIDE_IN_1X1: true, DEFORM_ON_PER_STAGE: [false, false, false, false]}
  ANCHOR_GENERATOR:
    SIZES: [[8], [16], [32], [64], [128]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN: {PRE_NMS_TOPK_TEST: 1000, POST_NMS_TOPK_TEST: 1000, NMS_THRESH: 0.7, SMOOTH_L1_BETA: 0.0}
  ROI_HEADS: {NUM_CLASSES: 3, SCORE_THRESH_TEST: 0.05, NMS_THRESH_TEST: 0.5}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 7, BBOX_REG_WEIGHTS: "(10.0, 10.0, 5.0, 5.0)", POOLER_SAMPLING_RATIO: 0}
OTHER: *mean
TEST: {DETECTIONS_PER_IMAGE: 100, AUG: {ENABLED: false}}
"""


#: Words that replace those of a YAML text.
_WORDS = (
    *(b'*mean', b'&a', b'&mean', b'!!python/object/apply:os.system', b'!!python/name:os.system', b'!!binary', b'!x'),
    *(b'(1, 2)', b'"(1,"', b"'\x5cx00'", b'.nan', b'-.inf', b'1e999', b'0x7f', b'190:20:30', b'2001-01-01', b'|'),
    *(b'_BASE_', b'../../etc/passwd', b'/dev/zero', b'detectron2://x', b'\xff\xfe', b'<<', b'?', b'---', b'%', b'null'),
    *(b'"' + b'-' * 900 + b'1"', b'"' + b'(' * 900 + b')' * 900 + b'"', b'"' + b'9' * 900 + b'"', b'"1+1j"', b'"{1}"'),
)


def small_config() -> dict:
    """Return the small network's configuration as JSON values."""
    sizes = {'n_fg_class': 3, 'min_size': 64, 'max_size': 64, 'anchor_sizes': (8, 16, 32, 64, 128), 'rpn_post_nms': 30}
    return PRESETS['mobilenet_v1_fpn'].replace(**FIELDS, **sizes).to_dict()


def settings() -> Samples:
    """Return settings: those of other programs, the fields of ``Config``, ``--set`` options and class names."""
    samples: Samples = {
        'settings.matterport': (json.dumps(_MATTERPORT).encode(), (mutate_json,)),
        'fields.config': (json.dumps(small_config()).encode(), (mutate_json,)),
        'settings.torchvision': (json.dumps(_TORCHVISION).encode(), (mutate_json,)),
        'cfg.yaml': (CFG.encode(), (replace_number_in_text,)),
        'settings.detectron2': (_DETECTRON2.encode(), (replace_number_in_text, _replace_word)),
        'classes.names': (b'square\ncircle\ntriangle\n', ()),
    }
    for name, value in small_config().items():
        if name in _FIELDS_WITH_OPTIONS:
            continue
        samples[f'{name}.set'] = (f'{name}={json.dumps(value)}'.encode(), (_mutate_option,))
    return samples


def _replace_word(data: bytes, rng: random.Random) -> bytes:
    """Replace a word of a YAML text by a tag, an alias, an anchor or an odd value."""
    words = list(re.finditer(rb'[^\s,:{}\[\]]+', data))
    match = rng.choice(words) if words else None
    if match is None:
        return data
    return data[: match.start()] + rng.choice(_WORDS) + data[match.end() :]


def _mutate_option(data: bytes, rng) -> bytes:
    """Replace the value of ``FIELD=VALUE``."""
    name, _, value = data.partition(b'=')
    return name + b'=' + mutate_json(value, rng)


#: Kind -> the function that returns the intact files of it.
MAKERS: dict[str, Callable[[], Samples]] = {'images': images, 'annotations': annotation_files, 'settings': settings}
