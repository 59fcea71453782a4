"""The names and values that users and stored files rely on, computed from the code.

``tests/data/contracts`` holds them as they were frozen, and ``tests/test_contracts.py`` compares. After a deliberate
change of a contract, this command writes the files again::

    python -m tests.support.contracts [NAME ...]

The names are the keys of :data:`CONTRACTS`; without one, all files are written.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import mask_rcnn

# Chainer is importable only after mask_rcnn.
# isort: split
import chainer
import cv2
import numpy as np

from mask_rcnn import cli
from mask_rcnn.cli.dataset_options import N_GENERATED
from mask_rcnn.config import DIALECTS
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.targets import Sampling

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'tests' / 'data' / 'contracts'

#: The command whose second snapshot is frozen: the smallest network with every kind of layer, two iterations.
SNAPSHOT_COMMAND = (
    'train --dataset shapes --pretrained none --extractor mobilenet_v1_fpn'
    ' --set width=0.25 fpn_channels=16 head_channels=32 mask_channels=16 --min-size 64 --max-size 64'
    ' --iteration 2 --snapshot 1 --validation 2 --batchsize 2 --gpu -1'
)


def public() -> list[str]:
    """Return the names that ``from mask_rcnn import *`` imports."""
    return sorted(mask_rcnn.__all__)


def config() -> dict[str, Any]:
    """Return the fields of the presets and of ``Config()``."""
    presets = {name: preset.to_dict() for name, preset in mask_rcnn.PRESETS.items()}
    return presets | {'Config()': mask_rcnn.Config().to_dict()}


def dialects() -> list[str]:
    """Return the names of the dialects."""
    return sorted(DIALECTS)


def sampling() -> dict[str, Any]:
    """Return the fields of ``Sampling()``."""
    return dataclasses.asdict(Sampling())


def parameters() -> dict[str, dict]:
    """Return the paths and shapes of all arrays of every preset, as :func:`fold` abbreviates them."""
    pairs = itertools.product(mask_rcnn.PRESETS, ('affine', 'bn'))
    networks = {f'{preset} {norm}': (preset, {'norm': norm}) for preset, norm in pairs}
    networks['resnet50_fpn affine keypoints'] = 'resnet50_fpn', {'masks': False, 'n_keypoint': 17, 'n_fg_class': 1}
    with mock.patch.object(chainer.initializers, 'generate_array', _zeros):
        return {name: fold(_shapes(mask_rcnn.build(preset, **kw))) for name, (preset, kw) in networks.items()}


def _zeros(initializer, shape, xp, dtype=None, device=None) -> np.ndarray:
    """Do what ``chainer.initializers.generate_array`` does, without the random values, which take long."""
    return np.zeros(shape, dtype or np.float32)


def _shapes(model: chainer.Link) -> dict[str, list[int]]:
    """Return path -> shape of what a weight file contains."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return {path: list(array.shape) for path, array in sorted(serializer.target.items())}


def fold(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Abbreviate path -> shape: a tree in which neighbours with equal contents share an entry, ``block1,block2``."""
    tree: dict[str, Any] = {}
    for path, shape in shapes.items():
        *folders, name = path.split('/')
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = 'x'.join(map(str, shape))
    return _share(tree)


def _share(node: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, list[str]] = {}
    for name, content in node.items():
        content = _share(content) if isinstance(content, dict) else content
        names.setdefault(json.dumps(content), []).append(name)
    return {','.join(shared): json.loads(content) for content, shared in names.items()}


def unfold(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, str]]:
    """Yield the paths and shapes (``64x3x7x7``) of what :func:`fold` returned."""
    for names, content in tree.items():
        for name in names.split(','):
            if isinstance(content, str):
                yield prefix + name, content
            else:
                yield from unfold(content, f'{prefix}{name}/')


def commands() -> dict[str, list[dict[str, Any]]]:
    """Return the options of every subcommand, those of their parsers."""
    return {name: [_describe(action) for action in parser_of(name)._actions] for name in cli.COMMANDS}


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser that prints the help of a command, such as ``'data import'``."""
    parsers: list[argparse.ArgumentParser] = []
    recorded = mock.patch.object(argparse.ArgumentParser, 'print_help', lambda self, file=None: parsers.append(self))
    with recorded, contextlib.suppress(SystemExit):
        cli.main([*command.split(), '--help'])
    (parser,) = parsers
    return parser


def accepts(command: str, flag: str) -> bool:
    """Return whether a subcommand knows a flag, also if its parser rewrites the spelling."""
    parser = parser_of(command)
    for action in parser._actions:
        action.required = False
    messages: list[str] = []

    def record(self: argparse.ArgumentParser, message: str) -> None:
        messages.append(message)
        raise SystemExit

    unknown: list[str] = []
    with mock.patch.object(argparse.ArgumentParser, 'error', record), contextlib.suppress(SystemExit):
        unknown = parser.parse_known_args([flag])[1]
    return not unknown and all(message.startswith('argument ') for message in messages)


def _describe(action: argparse.Action) -> dict[str, Any]:
    default = action.default
    return {
        'flags': list(action.option_strings),
        'dest': action.dest,
        'nargs': action.nargs,
        'default': default if isinstance(default, (int, float, str, list, type(None))) else str(default),
        'choices': None if action.choices is None else [str(choice) for choice in action.choices],
        'required': action.required,
    }


def snapshot_members() -> dict[str, Any]:
    """Run :data:`SNAPSHOT_COMMAND` and return the members of its last snapshot, as :func:`fold` abbreviates them."""
    few_images = mock.patch.dict(N_GENERATED['shapes'], val=2)
    with tempfile.TemporaryDirectory() as folder, few_images:
        _run([*SNAPSHOT_COMMAND.split(), '--out', folder, '--workers', '0'])
        with zipfile.ZipFile(Path(folder) / 'snapshot_iter_2.npz') as archive:
            return fold({name.removesuffix('.npy'): [] for name in sorted(archive.namelist())})


def _run(words: list[str]) -> None:
    """Run a command that must succeed.

    A training handles SIGTERM, as ``timeout`` sends it: a signal that has stopped the command is raised again, so that
    it ends the tests.
    """
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = cli.main(words)
    if status > 128:
        signal.raise_signal(status - 128)
    if status:
        raise RuntimeError(f'mask-rcnn {words[0]} ended with status {status}: {errors.getvalue()}')


def demo_results() -> list[dict[str, Any]]:
    """Return the COCO results of the bundled model on the six scenes of ``make demo``."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes = folder / 'scenes'
        scenes.mkdir()
        for number, example in enumerate(RichShapesDataset(6, size=512, seed=2_000_016), start=1):
            pixels = example.image.transpose(1, 2, 0)[:, :, ::-1].astype(np.uint8)
            cv2.imwrite(str(scenes / f'scene_{number}.png'), pixels)
        model, results = ROOT / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz', folder / 'o.json'
        options = (
            '--bn2affine',
            '--modelfile',
            model,
            '--image',
            scenes,
            '--output',
            folder / 'o.png',
            '--json',
            results,
        )
        _run(['demo', *map(str, options)])
        return [_rounded(result) for result in json.loads(results.read_text())]


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    """Leave out the digits that differ between processors."""
    return result | {'bbox': [round(value, 4) for value in result['bbox']], 'score': round(result['score'], 6)}


#: File name -> the function that computes its contents.
CONTRACTS: dict[str, Callable[[], Any]] = {
    'public': public,
    'config': config,
    'dialects': dialects,
    'sampling': sampling,
    'parameters': parameters,
    'commands': commands,
    'snapshot_members': snapshot_members,
    'demo_results': demo_results,
}


def frozen(name: str) -> Any:
    """Return a contract as it was frozen."""
    return json.loads((FOLDER / f'{name}.json').read_text())


def write(name: str, value: Any) -> None:
    """Write a contract's file: an entry of a list, or of a dict of dicts, per line."""
    (FOLDER / f'{name}.json').write_text(_layout(value) + '\n')


def _layout(value: Any, levels: int = 2) -> str:
    text = json.dumps(value, separators=(',', ':'))
    if len(text) < 100 or not levels:
        return text
    if isinstance(value, list):
        return '[\n' + ',\n'.join(_layout(item, levels - 1) for item in value) + '\n]'
    if isinstance(value, dict):
        return '{\n' + ',\n'.join(f'"{key}": {_layout(item, levels - 1)}' for key, item in value.items()) + '\n}'
    return text


def main(names: list[str]) -> None:
    """Write the files of some contracts, or of all."""
    for name in names or CONTRACTS:
        write(name, CONTRACTS[name]())


if __name__ == '__main__':
    main(sys.argv[1:])
