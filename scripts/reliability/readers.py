"""The program's readers, as the mutation check calls them: one function per kind of file.

A function reads a file and works with what it read, as the commands do.  It returns quietly or raises one of the errors
that the readers document (:data:`EXPECTED_ERRORS`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data_samples import SIZE, small_config

import mask_rcnn
from mask_rcnn.cli.train_options import config_field
from mask_rcnn.cli.weight_report import classes_of, describe_file, format_description
from mask_rcnn.config import DETECTRON2, MATTERPORT, PRESETS, TORCHVISION, Config
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.transforms import TrainingTransform, rasterize
from mask_rcnn.evaluation.coco import COCOEvaluator
from mask_rcnn.inference.detections import Detections
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image, read_image_size
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training.schedule import step_schedule
from mask_rcnn.training.snapshot import read_model_meta, read_options, read_snapshot
from mask_rcnn.training.trainer import TrainingOptions, build_training_run
from mask_rcnn.weights import WeightFileError, formats
from mask_rcnn.weights.converters import detectron2_cfg, detectron_cfg, matterport_cfg, torchvision_cfg
from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from mask_rcnn.weights.converters.settings import read_json
from mask_rcnn.weights.pretrained import load_pretrained

#: Largest values with which an accepted configuration is run.
_MAX_RUN = {
    'min_size': 256,
    'max_size': 256,
    'width': 1,
    'fpn_channels': 64,
    'rpn_channels': 64,
    'head_channels': 64,
    'mask_channels': 64,
    'mask_convs': 8,
    'roi_size': 14,
    'mask_roi_size': 28,
    'sampling_ratio': 8,
    'n_fg_class': 100,
    'n_keypoint': 50,
    'rpn_pre_nms': 5000,
    'rpn_post_nms': 5000,
    'max_detections': 5000,
}


class Mismatch(Exception):
    """Two functions of the program contradict each other on a file."""


def read_weights(path: Path) -> None:
    """Read and describe a weight file, load its network if it is complete, and detect once."""
    format = formats.detect_format(path)
    options = format.settings.options if format.settings is not None else {}
    settings = {options[name]: 128 for name in ('min_size', 'max_size') if name in options}
    file = formats.read(path, settings)
    names, _ = classes_of(file)
    format_description(describe_file(path, file, names))
    if format.name == formats.NATIVE and file.kind == 'model':
        model = mask_rcnn.load(path)
        if _is_small(file.config):
            detect(model)
    elif file.config.backbone == 'mobilenet_v1':
        load_pretrained(mask_rcnn.build(Config.from_dict(small_config())), path, file)


def read_training_snapshot(path: Path) -> None:
    """Read a snapshot and restore a training run from it."""
    read_options(path)
    read_model_meta(path)
    snapshot = read_snapshot(path)
    config = snapshot.model.config
    if not _is_small(config):
        return
    names, ids = snapshot.model.class_names, snapshot.model.category_ids
    model = mask_rcnn.build(config, class_names=names, category_ids=ids)
    schedule = step_schedule(0.01, warmup=0, first_decay=100, second_decay=200)
    options = TrainingOptions(
        out='.', iterations=10, schedule=schedule, batch_size=2, sampling=Sampling(roi_batch=16, train_post_nms=50)
    )
    run = build_training_run(model, _training_images(), options)
    snapshot.restore(run.trainer)


def read_picture(path: Path) -> None:
    """Read an image and its size, with and without its orientation."""
    for orientation in (True, False):
        shape = size = None
        with contextlib.suppress(ImageFileError):
            size = read_image_size(path, apply_orientation=orientation)
        with contextlib.suppress(ImageFileError):
            shape = read_image(path, apply_orientation=orientation).shape[1:]
        if shape and size and tuple(shape) != tuple(size):
            raise Mismatch(f'the size is {size}, but the image is {shape}')


def read_annotations(path: Path) -> None:
    """Read annotations for training and for evaluation, make training examples, and evaluate detections."""
    error = None
    for keypoints in (False, True):
        for skip_broken in (False, True):
            try:
                _use_annotations(path, keypoints=keypoints, skip_broken=skip_broken)
            except (AnnotationFileError, ImageFileError) as caught:
                error = caught
    if error is not None:
        raise error


def _use_annotations(path: Path, *, keypoints: bool, skip_broken: bool) -> None:
    read = functools.partial(
        COCODataset, path, path.parent, keypoints=keypoints, skip_broken=skip_broken, log_warnings=False
    )
    train = read()
    transform = TrainingTransform(Config.from_dict(small_config()))
    for i in range(len(train)):
        example = train[i]
        transform(example, i)
        rasterize(example)
    data = read(only_annotated=False)
    evaluator = COCOEvaluator(
        data.ground_truth(),
        class_names=data.class_names,
        category_ids=data.category_ids,
        masks=not keypoints,
        keypoints=keypoints,
    )
    for i in range(len(data)):
        evaluator.add(data.image_ids[i], _detections(data.image_size(i), len(data.class_names), keypoints))
    evaluator.evaluate().table()


def _detections(size: tuple[int, int], n_classes: int, keypoints: bool) -> Detections:
    """Return two detections of an image."""
    height, width = size
    boxes = np.array([[4, 4, height / 2, width / 2], [0, 0, height, width]], np.float32)
    masks = np.zeros((2, height, width), bool)
    masks[0, 4 : height // 2, 4 : width // 2] = masks[1] = True
    return Detections(
        boxes=boxes,
        labels=(np.arange(2) % n_classes).astype(np.int32),
        scores=np.array([0.9, 0.5], np.float32),
        size=size,
        masks=None if keypoints else masks,
        keypoints=np.full((2, 17, 4), 5, np.float32) if keypoints else None,
    )


def read_settings(path: Path) -> None:
    """Read settings of the kind that the suffix names, and run the small network with those that are accepted."""
    {
        '.matterport': _read_matterport,
        '.config': _read_config,
        '.torchvision': _read_torchvision,
        '.detectron2': _read_detectron2,
        '.yaml': _read_yaml,
        '.names': _read_names,
        '.set': _read_option,
    }[path.suffix](path)


def _read_matterport(path: Path) -> None:
    config = PRESETS['resnet50_fpn'].replace(dialect=MATTERPORT, norm='bn', max_size=1024)
    settings = read_json(path)
    config, _ = matterport_cfg.apply(settings, config)
    matterport_cfg.check(path, settings, config)


def _read_torchvision(path: Path) -> None:
    torchvision_cfg.apply(read_json(path), PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, norm='bn'))


def _read_detectron2(path: Path) -> None:
    config = PRESETS['resnet50_fpn'].replace(dialect=DETECTRON2, norm='bn', n_fg_class=3)
    detectron2_cfg.apply(detectron2_cfg.read_settings(path), config)


def _read_config(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:  # of this script, not of the program
        return
    if isinstance(content, dict):
        _run_config(Config.from_dict(content))


def _read_yaml(path: Path) -> None:
    detectron_cfg.apply(detectron_cfg.parse(path.read_text(errors='replace')), PRESETS['resnet50'])


def _read_names(path: Path) -> None:
    config = Config.from_dict(small_config())
    classes_of(ConvertedWeights('model', formats.NATIVE, config, {}, ConversionReport((), {}), ''), path)


def _read_option(path: Path) -> None:
    name, value = config_field(path.read_text(errors='replace'))
    _run_config(Config.from_dict(small_config()).replace(**{name: value}))


def _run_config(config: Config) -> None:
    config.to_dict()
    for preset in ('evaluate', 'visualize'):
        config.for_preset(preset)
    if _is_small(config):
        detect(mask_rcnn.build(config))


def _is_small(config: Config) -> bool:
    """Return whether a network is small enough to be run a thousand times."""
    sizes = (*config.anchor_sizes, *config.anchor_ratios)
    limits = all(getattr(config, name) <= limit for name, limit in _MAX_RUN.items())
    return config.backbone == 'mobilenet_v1' and limits and len(sizes) < 20


def detect(model: MaskRCNN) -> None:
    """Detect objects in a generated image."""
    for detections in model.detect([_image()]):
        detections.to_coco(1)


@functools.cache
def _image() -> np.ndarray:
    return ShapesDataset(1, size=SIZE, seed=1)[0].image


@functools.cache
def _training_images() -> ShapesDataset:
    return ShapesDataset(1000, size=SIZE, seed=0)  # as many as in the run that wrote the snapshots


#: Kind -> the function that reads a file of it.
READERS: dict[str, Callable[[Path], None]] = {
    'weights': read_weights,
    'snapshots': read_training_snapshot,
    'images': read_picture,
    'annotations': read_annotations,
    'settings': read_settings,
}

#: Kind -> the documented errors.  A ``ValueError`` names a setting whose value is not allowed.
EXPECTED_ERRORS: dict[str, tuple[type[Exception], ...]] = {
    'weights': (WeightFileError,),
    'snapshots': (WeightFileError,),
    'images': (ImageFileError,),
    'annotations': (AnnotationFileError, ImageFileError),
    'settings': (WeightFileError, ValueError, argparse.ArgumentTypeError),
}
