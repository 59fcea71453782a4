"""Snapshots: the complete state of a run in one file, so that it can be resumed exactly.

A snapshot is an uncompressed ``.npz`` file.  It contains plain arrays under the names of Chainer's serializers, and a
JSON text (member ``snapshot``) that describes the network and the options of the run.  Reading never unpickles.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from chainer import serializers, training

from mask_rcnn.inference.save import save
from mask_rcnn.training.failures import describe_error
from mask_rcnn.weights import ModelMeta, WeightFileError, formats
from mask_rcnn.weights.errors import UnregisteredNameError, corruption_error
from mask_rcnn.weights.files import (
    CORRUPT_FILE_ERRORS,
    create_weight_file,
    open_stored_zip,
    open_weight_file,
    read_npy_member,
    zip_member_names,
)

FORMAT_VERSION = 1

_HEADER = 'snapshot'
_NAME = re.compile(r'snapshot_iter_(\d+)\.npz')

#: Name of the newest model: the file that Chainer_Mask_R-CNN, DeNA's Chainer port, wrote.
NEWEST_MODEL = 'snapshot_model.npz'

#: Name of the model with the best evaluation so far.
BEST_MODEL = 'model_best.npz'


@dataclass(frozen=True)
class Snapshot:
    """The content of a snapshot.

    Args:
        path: The file.
        model: Description of the network.
        options: The options of the run that wrote it.
        arrays: The trainer's state by name; ``None`` where a value was ``None``.
    """

    path: Path
    model: ModelMeta
    options: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def iteration(self) -> int:
        """The number of completed updates."""
        return int(self.arrays['updater/iteration'])

    def restore(self, trainer: training.Trainer) -> None:
        """Restore the state of a trainer, its model, optimizer, iterator and extensions.

        Raises:
            WeightFileError: The snapshot belongs to another network or program, or is not complete.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('error', UserWarning)  # Chainer warns if the state of an extension is missing
                serializers.NpzDeserializer(self.arrays).load(trainer)
        except UserWarning as error:
            raise WeightFileError(self.path, f'is not a complete snapshot: {" ".join(str(error).split())}') from error
        except KeyError as error:
            raise WeightFileError(
                self.path, f'lacks {error.args[0]}: not a snapshot of this network or of this version'
            ) from error
        except (ValueError, TypeError) as error:
            reason = ' '.join(str(error).split())
            raise WeightFileError(self.path, f'does not fit this run: {reason}') from error


def write_snapshot(
    path: str | os.PathLike, trainer: training.Trainer, model: ModelMeta, options: Mapping[str, Any]
) -> None:
    """Write a trainer's state to a file that appears under its name only when it is complete.

    Args:
        path: The file, ``*.npz``.
        trainer: The trainer.
        model: Description of the network.
        options: Options of the run, serialisable as JSON.

    Raises:
        WeightFileError: The file cannot be written; an older file is not changed.
    """
    serializer = serializers.DictionarySerializer()
    serializer.save(trainer)
    # NumPy stores None only in pickled arrays.
    nones = [name for name, array in serializer.target.items() if np.asarray(array).dtype == object]
    header = {
        'format_version': FORMAT_VERSION,
        'model': json.loads(model.to_json()),
        'options': dict(options),
        'nones': nones,
    }
    members = {_HEADER: np.frombuffer(json.dumps(header, allow_nan=False).encode(), np.uint8)}
    members.update((name, array) for name, array in serializer.target.items() if name not in nones)
    with create_weight_file(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in members.items():
            with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        archive.close()  # writes the directory
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave an empty file where older snapshots are removed


def is_snapshot(path: str | os.PathLike) -> bool:
    """Return whether a file is a snapshot, as opposed to a model or any other file."""
    try:
        with open_weight_file(path) as (file, size):
            return f'{_HEADER}.npy' in zip_member_names(file, size)
    except CORRUPT_FILE_ERRORS:  # WeightFileError is one of them
        return False


def read_snapshot(path: str | os.PathLike) -> Snapshot:
    """Read a file that :func:`write_snapshot` wrote.

    Raises:
        WeightFileError: The file cannot be read, is damaged or is not a snapshot.
    """
    with open_weight_file(path) as (file, size):
        try:
            archive, members = open_stored_zip(file, size)
            header = _parse_header(read_npy_member(archive, members.pop(f'{_HEADER}.npy')))
            arrays = {name.removesuffix('.npy'): read_npy_member(archive, member) for name, member in members.items()}
            arrays.update((name, np.asarray(None)) for name in header.nones)
            int(arrays['updater/iteration'])  # a file without it is not a snapshot
            return Snapshot(Path(path), header.model, header.options, arrays)
        except CORRUPT_FILE_ERRORS as error:
            raise _damaged(path, error) from None


def read_options(path: str | os.PathLike) -> Mapping[str, Any]:
    """Return the options of the run that wrote a snapshot, without reading its arrays.

    Raises:
        WeightFileError: The file cannot be read, is damaged or is not a snapshot.
    """
    return _read_header(path).options


def read_model_meta(path: str | os.PathLike) -> ModelMeta:
    """Return the description of a snapshot's network, without reading its arrays.

    Raises:
        WeightFileError: The file cannot be read, is damaged or is not a snapshot.
    """
    return _read_header(path).model


@dataclass(frozen=True)
class _Header:
    """The content of the JSON text; ``nones`` are the names of the values that are ``None``."""

    model: ModelMeta
    options: dict[str, Any]
    nones: list[str]


def _read_header(path: str | os.PathLike) -> _Header:
    with open_weight_file(path) as (file, size):
        try:
            archive, members = open_stored_zip(file, size)
            return _parse_header(read_npy_member(archive, members[f'{_HEADER}.npy']))
        except CORRUPT_FILE_ERRORS as error:
            raise _damaged(path, error) from None


def _parse_header(array: np.ndarray) -> _Header:
    header = json.loads(array.tobytes())
    if header['format_version'] > FORMAT_VERSION:
        raise ValueError('it was written by a newer version')
    model = ModelMeta.from_json(json.dumps(header['model']))
    return _Header(model, dict(header['options']), list(header['nones']))


def _damaged(path: str | os.PathLike, error: Exception) -> WeightFileError:
    return corruption_error(path, 'is not a snapshot of this program, or is damaged', error)


def list_snapshots(folder: str | os.PathLike) -> list[tuple[int, Path]]:
    """Return the snapshots in a folder with their iterations, oldest first."""
    snapshots = [
        (int(match[1]), path)
        for path in Path(folder).glob('snapshot_iter_*.npz')
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(snapshots)


def find_newest_snapshot(
    folder: str | os.PathLike, *, report_damaged: Callable[[str], None] = lambda line: None
) -> Path | None:
    """Return the snapshot of the highest iteration that can be read, or ``None``.

    The order is that of the iterations: clocks and the times of files do not matter.

    Args:
        folder: The folder.
        report_damaged: Called with one line for each later snapshot that is damaged.
    """
    for _, path in reversed(list_snapshots(folder)):
        try:
            read_snapshot(path)
        except WeightFileError as error:
            report_damaged(str(error))
        else:
            return path
    return None


def check_snapshot(path: Path) -> None:
    """Check a file with the name of a snapshot, and name another one if it is damaged.

    Raises:
        WeightFileError: The file is damaged.
    """
    if not _NAME.fullmatch(path.name) or not path.is_file():
        return
    try:
        read_snapshot(path)
    except WeightFileError as error:
        if isinstance(error.__context__, UnregisteredNameError):  # the file is whole
            raise
        whole = find_newest_snapshot(path.parent)
        hint = f'the newest whole snapshot is {whole}' if whole else f'{path.parent} has no whole snapshot'
        raise WeightFileError(path, f'{error.reason}; {hint}') from None


class Snapshots(training.Extension):
    """Trainer extension: writes snapshots and models, and removes old ones.

    ``snapshot_iter_N.npz`` contains the complete state after ``N`` updates, ``model_iter_N.npz`` the model alone,
    ``snapshot_model.npz`` the newest model, and ``model_best.npz`` the model with the best evaluation so far.  If a
    file cannot be written, the run continues with a warning; older files are removed only after a new one is complete.
    A folder that was deleted is created again.  A model with values that are not finite is not saved.  The last state
    of a run whose folder cannot be written is saved in a temporary folder.

    A ``snapshot_model.npz`` that is not a model of this program is renamed, not replaced: the old Chainer port wrote
    its only result under this name.

    Args:
        meta: Description of the network.
        options: Options of the run that are stored in snapshots.
        keep: Number of snapshots, with their models, to keep.
        warn: Called with one line if a file cannot be written.
        print_line: Called with one line if a file is renamed.

    Attributes:
        last_model (Path or None): The last model of this run.
        has_failed (bool): True if the last attempt to write a snapshot has failed.
    """

    name = 'snapshots'  # type: ignore[assignment]  # Chainer declares None
    priority = -100  # after every extension that changes the state of an iteration

    def __init__(
        self,
        meta: ModelMeta,
        options: Mapping[str, Any],
        *,
        keep: int,
        warn: Callable[[str], None],
        print_line: Callable[[str], None],
    ):
        self._meta, self._options, self._keep, self._warn, self._print_line = meta, options, keep, warn, print_line
        self._best = -np.inf
        self._last: Path | None = None
        self.last_model: Path | None = None
        self.has_failed = False

    @property
    def last(self) -> Path | None:
        """The last snapshot of this run; ``None`` if there is none or it has been deleted."""
        return self._last if self._last is not None and os.path.exists(self._last) else None

    def __call__(self, trainer: training.Trainer) -> None:
        self.write(trainer)

    def write(self, trainer: training.Trainer, *, keep_old: bool = False) -> bool:
        """Write the snapshot and the models of the current iteration.

        Args:
            trainer: The trainer.
            keep_old: Remove no older snapshot.

        Returns:
            True if the snapshot and its model are complete.
        """
        folder, iteration = Path(trainer.out), trainer.updater.iteration
        path = folder / f'snapshot_iter_{iteration}.npz'
        if path == self.last:
            return True
        self.has_failed = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_model(folder / f'model_iter_{iteration}.npz', _model(trainer))
            write_snapshot(path, trainer, self._meta, self._options)
            self._last = path
            if not keep_old:
                self._remove_old(folder, iteration)
        except Exception as error:  # also of CUDA and of a lack of memory: the run may still go on
            self._warn(f'no snapshot of iteration {iteration}: {describe_error(error)}')
            return False
        self.has_failed = False
        self._write_newest_model(folder / NEWEST_MODEL, trainer)
        return True

    def rescue(self, trainer: training.Trainer) -> None:
        """Write the snapshot of the last state of a run to a temporary folder if the last attempt has failed.

        The disk of the output folder can be full or gone.  A model with values that are not finite is not saved.
        """
        if not self.has_failed or _find_non_finite(_model(trainer)):
            return
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix='mask_rcnn_'))
            path = folder / f'snapshot_iter_{trainer.updater.iteration}.npz'
            write_snapshot(path, trainer, self._meta, self._options)
        except Exception as error:
            self._warn(f'no snapshot in a temporary folder: {describe_error(error)}')
            if folder is not None:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        else:
            self._last, self.has_failed = path, False

    def _write_model(self, path: Path, model: Any) -> None:
        """Write a model; the last one is removed first if its snapshot could not be written, to make room."""
        name = _find_non_finite(model)
        if name:
            raise WeightFileError(path, f'is not written, because values of {name} are not finite')
        if self.last_model is not None and self.last_model != path and not _snapshot_of(self.last_model).is_file():
            self.last_model.unlink(missing_ok=True)
        save(path, model)
        self.last_model = path

    def _write_newest_model(self, path: Path, trainer: training.Trainer) -> None:
        try:
            # Not before the first write: the run may have read the file (--resume).
            with formats.keep_source_file(path) as kept:
                save(path, _model(trainer))
            if kept is not None:
                self._print_line(f'{path} was not a model of this program and is kept as {kept}')
        except Exception as error:
            self._warn(f'the newest model is not saved: {describe_error(error)}')

    def save_if_best(self, trainer: training.Trainer, score: float) -> None:
        """Write ``model_best.npz`` if the score is higher than all earlier ones."""
        if not score > self._best:
            return
        try:
            save(
                Path(trainer.out) / BEST_MODEL,
                _model(trainer),
                notes=[f'iteration {trainer.updater.iteration}, AP {score:.4f}'],
            )
            self._best = score
        except Exception as error:
            self._warn(f'the best model is not saved: {describe_error(error)}')

    def serialize(self, serializer: chainer.Serializer | chainer.Deserializer) -> None:
        self._best = float(serializer('best', self._best))

    def _remove_old(self, folder: Path, iteration: int) -> None:
        """Remove all but the newest ``keep`` snapshots up to this iteration; later ones belong to another run."""
        past = [(saved, path) for saved, path in list_snapshots(folder) if saved <= iteration]
        for saved, path in past[: -self._keep]:
            path.unlink(missing_ok=True)
            (folder / f'model_iter_{saved}.npz').unlink(missing_ok=True)


def _snapshot_of(model_path: Path) -> Path:
    """Return the path of the snapshot that belongs to a model."""
    return model_path.with_name(model_path.name.replace('model_iter_', 'snapshot_iter_'))


def _find_non_finite(model: Any) -> str:
    """Return the name of the first parameter with values that are not finite; empty if there is none."""
    for name, param in sorted(model.namedparams()):
        if param.array is not None and not bool(param.xp.isfinite(param.array).all()):
            return name
    return ''


def _model(trainer: training.Trainer) -> Any:
    """Return the model of a trainer."""
    return trainer.updater.get_optimizer('main').target.model
