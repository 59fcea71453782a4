"""Errors for files that are not weights of a supported program: what the file is, and what to do instead.

:func:`describe_unsupported` recognises files that would be mistaken for a supported format, and
:func:`describe_content` adds a hint to the general error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mask_rcnn.io.file_kinds import ARCHIVE, DOWNLOAD_HINTS, IMAGE, POINTER, REFUSAL, WEB_PAGE, describe_kind

#: Suffixes of weight files, for the hint at a file in a folder.
_WEIGHT_SUFFIXES = ('.npz', '.pkl', '.pth', '.pt', '.h5', '.ckpt', '.caffemodel', '.safetensors')

#: Names of files in a folder that are listed, at most.
_MAX_LISTED = 3

#: A node of a TensorFlow graph: its name and the name of its operation, which are both text.
_GRAPH_NODE = re.compile(
    rb'\n[\x01-\xff]{1,2}\n[\x01-\x7f][\w./:-]+\x12[\x01-\x7f]'
    rb'(?:Placeholder|Const|Variable|VarHandleOp|NoOp|Iterator|Identity)'
)

#: Beginnings of files of other programs, which would be mistaken for another format, and their descriptions.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(regex, re.DOTALL | re.IGNORECASE), description)
    for regex, description in (
        (rb'.{4}TFL3', 'is a TensorFlow Lite model, which cannot be converted; use the weights that it was made from'),
        (rb'\x12\x01\0{6}', 'is an MXNet file (.params), which is not supported'),
        (rb'\x08\x01\x12', 'is a TensorFlow SavedModel, which is not supported; save the weights of Keras as .h5'),
        (
            rb'\x08[\x02-\x20](?:\x12|\x1a|\x3a)[\x01-\xff]',
            'is an ONNX model, which cannot be converted; use the checkpoint that it was exported from',
        ),
        (
            rb'\s*(?:<\?xml[^>]*>\s*)?<net ',
            'is an OpenVINO network (.xml), which cannot be converted; use the weights that it was made from',
        ),
    )
)

#: The continuation of the description of each kind.
_HINTS = {
    ARCHIVE: '; unpack it first and name the weight file in it',
    IMAGE: ', not weights',
    'a PDF document': '',
}

#: Beginnings of files that contain no weights at all.
_CONTENTS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(regex, re.DOTALL), description)
    for regex, description in (
        (rb'\s*\[\s*\{[^}]*"image_id"', 'a JSON file of detections (COCO results), not weights'),
        (
            rb'\s*\{.*"(?:images|annotations|categories|licenses)"\s*:',
            'a JSON file of annotations, not weights',
        ),
        (rb'\s*[{\[]\s*["{\[\]}]', 'JSON text, not weights'),
        (rb'model_checkpoint_path:', 'the index of a TensorFlow checkpoint, which is not supported'),
        (
            rb'\s*(?:#[^\n]*\n\s*)*(?:name\s*:\s*"[^"]*"|input\s*:\s*"|layers?\s*\{)',
            'a Caffe prototxt (the architecture without weights); give the .caffemodel that belongs to it',
        ),
        (
            rb'(?:#[^\n]*\n|\s)*(?:_BASE_|MODEL|[A-Za-z_]\w*)\s*:(?:\s|$)',
            'a YAML configuration, not weights; give the weight file that belongs to it',
        ),
        (rb'\x7fELF|MZ', 'a program'),
        (rb'[\x09\x0a\x0d\x20-\x7e]{16}|[\x09\x0a\x0d\x20-\x7e]+\Z', 'text, not weights'),
    )
)

_TENSORFLOW_CHECKPOINT = re.compile(r'\.(?:index|meta|data-\d{5}-of-\d{5})$')

_Path = str | os.PathLike


def describe_folder(path: _Path) -> str:
    """Return the error for a folder, which names the weight files in it."""
    folder = Path(path)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []
    if 'saved_model.pb' in names:
        return (
            'is a folder with a TensorFlow SavedModel, which is not supported; save the weights of Keras as .h5, with '
            'model.save_weights(FILE)'
        )
    files = [name for name in names if name.lower().endswith(_WEIGHT_SUFFIXES)]
    if not files:
        return 'is a folder, not a file'
    listed = ', '.join(str(folder / name) for name in files[:_MAX_LISTED])
    return f'is a folder, not a file; name a file in it: {listed}{" ..." if len(files) > _MAX_LISTED else ""}'


def describe_unsupported(path: _Path, start: bytes, members: frozenset[str]) -> str | None:
    """Return the error for a file of an unsupported program, or ``None`` for any other file.

    Args:
        path: The file; TensorFlow's checkpoints are recognised by their names.
        start: The first bytes of the file.
        members: The names of its members if it is a zip archive.
    """
    if members:
        return _describe_archive(members)
    if _TENSORFLOW_CHECKPOINT.search(os.fspath(path)) and not start.startswith(b'\x89HDF'):
        return 'is a part of a TensorFlow checkpoint, which is not supported; save the weights of Keras as .h5'
    if _GRAPH_NODE.match(start):
        return (
            'is a TensorFlow graph (.pb), which cannot be converted; use the weights that it was made from (the .h5 of '
            "Matterport's program)"
        )
    if (kind := describe_kind(start)) in (WEB_PAGE, POINTER, REFUSAL):
        return f'is {kind}, not weights{DOWNLOAD_HINTS[kind]}'
    return next((description for signature, description in _SIGNATURES if signature.match(start)), None)


def _describe_archive(members: frozenset[str]) -> str | None:
    """Return the error for an archive of an unsupported program, or ``None``."""
    if any(name.endswith('/constants.pkl') for name in members):
        return (
            'is a TorchScript program, which contains code; in PyTorch, write its weights with '
            'torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)'
        )
    if 'model.weights.h5' in members and 'config.json' in members:
        return "is a Keras 3 model (.keras), which is not supported; save its weights as Matterport's .h5"
    if 'snapshot.npy' not in members and any(name.startswith('updater/') for name in members):
        return (
            "is a snapshot of another Chainer program's trainer, not a model; save the model alone with "
            'chainer.serializers.save_npz'
        )
    return None


def describe_content(start: bytes, members: frozenset[str]) -> str:
    """Return a description of a file that no format matches, to append to an error; empty if it is unknown.

    Args:
        start: The first bytes of the file.
        members: The names of its members if it is a zip archive.
    """
    if members:
        files = (name for name in members if not name.startswith('__MACOSX/'))  # with the attributes of macOS
        weights = sorted(name for name in files if name.lower().endswith(_WEIGHT_SUFFIXES))
        if weights:
            return f'an archive of files; unpack it and name the weight file in it, such as {weights[0][:80]!a}'
        if all(name.endswith('.npy') for name in members):
            return f'the arrays of another program, such as {min(members)[:80]!a}'
        return ''
    kind = describe_kind(start)
    if kind in _HINTS:
        return kind + _HINTS[kind]
    return next((description for signature, description in _CONTENTS if signature.match(start)), kind)
