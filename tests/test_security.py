"""The claims of ``docs/security.md`` about the source and its limits."""

import ast
import re

import pytest

from mask_rcnn.config import network
from mask_rcnn.datasets import segmentations
from mask_rcnn.datasets.importers import source_files
from mask_rcnn.io import console
from mask_rcnn.media import mask_files, video_source
from mask_rcnn.preprocessing import xmp
from mask_rcnn.weights import files
from mask_rcnn.weights.converters import detectron2_cfg, detectron_cfg, matterport
from mask_rcnn.weights.readers import inert_pickle, npz, protobuf, safe_pickle, safetensors_file, torch_file

#: The modules that may import pickle: the cache of kernels, and the processes of one training.
UNPICKLING = {'ops/runtime/kernel_cache.py', 'training/worker_pool.py'}

#: The packages that read files of others.
READING = ('weights', 'datasets', 'preprocessing', 'serving', 'config', 'inference')

#: Modules whose import would let a reader execute code or start a program.
EXECUTING = {'pickle', 'cPickle', 'marshal', 'shelve', 'dill', 'joblib', 'torch', 'runpy', 'code', 'subprocess', 'pty'}

MIB = 1 << 20


#: What a file contains that the tests below could object to; parsing the others would take seconds.
SUSPICIOUS = re.compile(
    r'(?:import|from)[^\n]*\b(?:pickle|marshal|shelve|dill|joblib|torch|runpy|subprocess|pty|code)\b|from multiprocess'
    r'|\b(?:eval|exec|compile|__import__)\(|np\.load|numpy\.load|os\.(?:system|popen|exec)|yaml\.|read_array|Image\.open'
)


@pytest.fixture(scope='module')
def trees(root):
    """Path below the package -> syntax tree, of the files that contain a suspicious word."""
    package = root / 'mask_rcnn'
    texts = {path: path.read_text(encoding='utf-8') for path in sorted(package.rglob('*.py'))}
    return {
        path.relative_to(package).as_posix(): ast.parse(text) for path, text in texts.items() if SUSPICIOUS.search(text)
    }


def imported_modules(tree):
    """Return the names of all modules that a syntax tree imports, without their submodules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or '').partition('.')[0])
    return found


def calls(tree):
    """Return the dotted names of all functions that a syntax tree calls, with the calls."""
    return [(dotted_name(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dotted_name(node):
    """Return ``'a.b'`` for such an expression, and an empty first part for other ones."""
    if isinstance(node, ast.Attribute):
        return f'{dotted_name(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


@pytest.fixture(scope='module')
def all_calls(trees):
    """The path, the name and the call of every call in the package."""
    return [(path, name, call) for path, tree in trees.items() for name, call in calls(tree)]


def test_only_two_modules_import_pickle(trees):
    assert {path for path, tree in trees.items() if imported_modules(tree) & {'pickle', 'marshal'}} == UNPICKLING


def test_readers_start_no_programs(trees, all_calls):
    readers = {path: tree for path, tree in trees.items() if path.split('/')[0] in READING}
    assert 'weights/readers/safe_pickle.py' in readers
    found = {path: sorted(imported_modules(tree) & EXECUTING) for path, tree in readers.items()}
    assert {path: modules for path, modules in found.items() if modules} == {}
    assert [(path, name) for path, name, _ in all_calls if name in ('os.system', 'os.popen', 'os.execv')] == []


def test_nothing_evaluates_text(all_calls):
    forbidden = {'eval', 'exec', 'compile', '__import__', 'np.load', 'numpy.load', 'yaml.unsafe_load'}
    assert [(path, name) for path, name, _ in all_calls if name in forbidden] == []


def test_yaml_makes_no_objects(all_calls):
    reads = [call for _, name, call in all_calls if name in ('yaml.load', 'yaml.compose', 'yaml.load_all')]
    loaders = {dotted_name(keyword.value) for call in reads for keyword in call.keywords if keyword.arg == 'Loader'}
    assert loaders == {'yaml.BaseLoader', 'yaml.SafeLoader'}


def test_arrays_are_read_without_pickle(all_calls):
    reads = [call for _, name, call in all_calls if name.endswith('format.read_array')]
    assert reads and all(ast.unparse(call).endswith('allow_pickle=False)') for call in reads)


def test_images_are_opened_by_named_readers(all_calls):
    opened = [ast.unparse(call) for _, name, call in all_calls if name == 'Image.open']
    assert all("formats=('PNG',)" in call for call in opened)


def test_a_source_that_executes_is_found():
    tree = ast.parse('import os.path\nfrom pickle import loads\nnp.load(f, allow_pickle=True)\neval(x)')
    assert imported_modules(tree) == {'os', 'pickle'}
    assert [name for name, _ in calls(tree)] == ['np.load', 'eval']


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (safe_pickle.MAX_OPERATIONS, '500,000 opcodes'),
        (inert_pickle.InertUnpickler.max_operations, '2,000,000 opcodes'),
        (inert_pickle.InertUnpickler.max_objects, '400,000 objects'),
        (npz._MAX_GROWTH, 'unpacked at most 1.5 times the file'),
        (torch_file._MAX_GROWTH, 'unpacked at most 4 times the file'),
        (files._MAX_DIRECTORY / MIB, 'the directory of the archive is at most 4 MiB'),
        (files._MAX_TEXT_SIZE / MIB, 'JSON of settings and files of class names: at most 4 MiB'),
        (safetensors_file.MAX_HEADER / MIB, 'header of at most 4 MiB'),
        (safetensors_file._MAX_TENSORS, '100,000 tensors'),
        (protobuf._MAX_FIELDS, '1,000,000 fields'),
        (matterport._MAX_OBJECTS, '20,000 objects'),
        (matterport._MAX_DEPTH, '16 levels'),
        (matterport._MAX_GROWTH, 'at most 1.5 times the file'),
        (detectron_cfg._MAX_TEXT, '262,144 characters'),
        (detectron_cfg._MAX_NODES, '20,000 nodes'),
        (detectron_cfg._MAX_DEPTH, '40 levels'),
        (detectron2_cfg._MAX_BASES, 'further files: up to 8'),
        (detectron2_cfg._MAX_LITERAL, 'at most 1000 characters'),
        (source_files._MAX_XML_SIZE / MIB, '64 MiB and 32 levels'),
        (source_files._MAX_XML_DEPTH, '32 levels'),
        (segmentations._MAX_IMAGE_PIXELS.bit_length() - 1, '2^31 pixels'),
        (xmp.MAX_XMP_SIZE / MIB, 'its first MiB'),
        (network._MAX_CHANNELS, '16,384 channels'),
        (network._MAX_CLASSES, '65,536 classes'),
        (network._MAX_SIDE, '65,536 pixels per side'),
        (mask_files._MAX_CLASS_LENGTH, '40 characters at most'),
        (video_source.TIMEOUT, 'fails after 10 seconds'),
    ],
)
def test_limits_on_the_page_are_those_of_the_code(root, value, text):
    page = ' '.join((root / 'docs' / 'security.md').read_text(encoding='utf-8').split())
    assert text in page
    numbers = [float(number) for number in re.findall(r'\d[\d.]*', text.replace(',', ''))]
    assert value in numbers or (value == 1 and not numbers)


def test_texts_from_files_cannot_control_the_terminal():
    assert console.escape('a\x1b[31m\nb\u202e') == r'a\x1b[31m\nb\u202e'
