"""Errors and summaries that name files: one printable line, whatever the names contain."""

import errno
import logging
import os
import pickle
import traceback

import pytest

import mask_rcnn
from mask_rcnn.cli.command import UsageError
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.io.atomic_file import FileError, open_for_reading, open_for_writing
from mask_rcnn.io.folder_lock import FolderInUseError
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_io import ImageFileError, load_image
from mask_rcnn.preprocessing.image_listing import list_images
from mask_rcnn.training.failures import describe_error
from mask_rcnn.training.updater import NonFiniteLossError
from mask_rcnn.training.worker_pool import ExampleError
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.download import DownloadError

#: A line break, a sequence that colours a terminal's text, and a byte that is not UTF-8.
NAME = 'a\nb\x1b[31m' + os.fsdecode(b'\xe9')
LINE = r'a\nb\x1b[31m\udce9'


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (FileError(errno.ENOENT, 'is missing', NAME), f'{LINE}: is missing'),
        (ImageFileError(NAME, f'leads to {NAME}'), f'{LINE}: leads to {LINE}'),
        (AnnotationFileError(NAME, 'is empty'), f'{LINE}: is empty'),
        (WeightFileError(NAME, 'is empty'), f'{LINE}: is empty'),
        (UsageError(f'--out {NAME} is the input'), f'--out {LINE} is the input'),
        (FolderInUseError(f'{NAME} is in use'), f'{LINE} is in use'),
        (DownloadError(f'{NAME}: is no address'), f'{LINE}: is no address'),
        (ExampleError(f'{NAME}: is damaged', 'the\ntraceback'), f'{LINE}: is damaged'),
        (NonFiniteLossError(2, 'loss is nan', [NAME]), f'iteration 2: loss is nan; images: {LINE}'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else '',
)
def test_the_message_of_an_error_is_one_printable_line(error, message):
    """Also after the way from a worker process, and in a traceback that Python prints."""
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == message
    assert ''.join(traceback.format_exception_only(error)).endswith(f'{type(error).__name__}: {message}\n')
    assert message in describe_error(error)
    if isinstance(error, FileError):
        assert error.filename == NAME
    if isinstance(error, (ImageFileError, AnnotationFileError, WeightFileError)):
        assert os.fspath(error.path) == NAME


def test_a_summary_of_omissions_is_one_printable_line():
    omissions = Omissions('files')
    omissions.add('without a reader', NAME)
    assert str(omissions) == f'left out 1 file: 1 without a reader ({LINE})'


@pytest.mark.parametrize('function', [mask_rcnn.load, load_image, lambda path: list_images([path])])
def test_reading_a_file_with_an_odd_name(tmp_path, function):
    with pytest.raises((WeightFileError, ImageFileError)) as caught:
        function(tmp_path / NAME)
    assert str(caught.value).startswith(f'{tmp_path}/{LINE}: ') and str(caught.value).isprintable()


@pytest.mark.parametrize('open_file', [open_for_reading, open_for_writing])
def test_opening_a_file_in_a_missing_folder_with_an_odd_name(tmp_path, open_file):
    with pytest.raises(FileError) as caught, open_file(tmp_path / NAME / 'file'):
        pass
    assert str(caught.value).startswith(f'{tmp_path}/{LINE}/file: ')


def test_the_log_names_a_folder_on_one_line(tmp_path, caplog):
    folder = tmp_path / NAME
    folder.mkdir()
    for suffix in ('.heic', '.png'):
        (folder / f'{NAME}{suffix}').touch()
    with caplog.at_level(logging.WARNING):
        list_images([folder])
    (record,) = caplog.records
    assert record.getMessage().startswith(f'{tmp_path}/{LINE}: left out 1 file: ') and f'{LINE}.heic' in record.message
    assert record.getMessage().isprintable()


def test_an_error_of_the_system_is_one_printable_line():
    error = FileNotFoundError(errno.ENOENT, 'No such file or directory', NAME)
    assert describe_error(error) == f'{LINE}: No such file or directory'
