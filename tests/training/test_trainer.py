"""Whole runs of a small network on generated shapes, some of which are killed and resumed."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import demo, initial_model, train
from mask_rcnn.cli.dataset_options import N_GENERATED
from mask_rcnn.config import Config
from mask_rcnn.training import plots
from mask_rcnn.training.earlier_run import set_aside_run
from mask_rcnn.training.snapshot import read_options, read_snapshot
from mask_rcnn.training.trainer import averages_statistics
from tests.support.mpi import mpiexec_command
from tests.support.small_resnet import use_narrow_resnet
from tests.support.small_train import NETWORK, RUN

TRAIN = Path(__file__).resolve().parents[2] / 'train.py'

N_ITERATIONS = 3

#: Normalisation is frozen, because batch statistics depend on the division into parts and processes.
FROZEN = ('--norm', 'affine', '--lr', '1e-7')


def arguments(out, *more, iteration=N_ITERATIONS, workers=0, network=NETWORK):
    return [
        *RUN,
        *network,
        '--out',
        str(out),
        '--iteration',
        str(iteration),
        '--workers',
        str(workers),
        '--snapshot',
        '2',
        *map(str, more),
    ]


def losses(out):
    """Return the entries of a log without the elapsed time."""
    return [
        {name: value for name, value in entry.items() if name != 'elapsed_time'}
        for entry in json.loads((out / 'log').read_text())
    ]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp('uninterrupted')
    assert train.main(arguments(out)) == 0
    return out


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    """Do not plot the losses, which takes as long as three iterations; the uninterrupted run starts before and does."""
    monkeypatch.setattr(plots, 'plot_losses', lambda path, log: None)


def test_the_files_and_losses_of_a_run(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        'log',
        'loss.png',
        'snapshot_iter_2.npz',
        'snapshot_iter_3.npz',
        'model_iter_2.npz',
        'model_iter_3.npz',
        'snapshot_model.npz',
    }
    entries = losses(uninterrupted)
    assert [entry['iteration'] for entry in entries] == [1, 2, 3]
    assert {
        'main/loss',
        'main/rpn_cls_loss',
        'main/rpn_loc_loss',
        'main/roi_cls_loss',
        'main/roi_loc_loss',
        'main/roi_mask_loss',
        'main/n_positive_anchor',
        'main/n_foreground_roi',
        'main/roi_accuracy',
        'lr',
        'grad_norm',
    } <= set(entries[0])
    for entry in entries:
        names = 'rpn_cls', 'rpn_loc', 'roi_cls', 'roi_loc', 'roi_mask'
        parts = [entry[f'main/{name}_loss'] for name in names]
        assert entry['main/loss'] == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(tmp_path, uninterrupted, number):
    """The killed run is a separate process with a worker process."""
    # All snapshots are kept: the run may go on for some iterations before the signal.
    options = ['--keep', '999']
    command = [sys.executable, str(TRAIN), *arguments(tmp_path, *options, iteration=399, workers=1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / 'snapshot_iter_2.npz', process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert process.returncode == -number, errors
        snapshot = tmp_path / 'snapshot_iter_2.npz'
    else:
        assert process.returncode == 128 + number, errors
        first, last = errors.splitlines()
        assert first.startswith('SIGTERM: the run stops after this iteration; ')
        snapshot = Path(last.rsplit(' ', 1)[1])
        assert last.startswith('error: stopped by SIGTERM after iteration ') and snapshot.exists()
    done = read_snapshot(snapshot).iteration
    iterations = max(done + 1, N_ITERATIONS)
    assert train.main(arguments(tmp_path / 'more', '--resume', snapshot, iteration=iterations)) == 0
    resumed = losses(tmp_path / 'more')
    expected = losses(uninterrupted)
    assert resumed[:N_ITERATIONS] == expected[: len(resumed)] and len(resumed) == iterations
    if iterations == N_ITERATIONS:
        found, expected = (
            read_snapshot(out / f'snapshot_iter_{N_ITERATIONS}.npz').arrays
            for out in (tmp_path / 'more', uninterrupted)
        )
        assert found.keys() == expected.keys()
        for name in found:
            if name.startswith('updater/'):
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def wait_for(path, process, seconds=300):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_subdivisions_do_not_change_the_losses(tmp_path):
    """Normalisation is frozen, so that its statistics do not depend on the parts."""
    logs = []
    for k in (1, 2):
        out = tmp_path / str(k)
        assert train.main(arguments(out, '--subdivisions', k, *FROZEN, '--snapshot', '0', iteration=2)) == 0
        logs.append(losses(out))
    for whole, divided in zip(*logs, strict=True):
        assert divided == pytest.approx(whole, rel=1e-5)


def test_training_from_a_model_starts_at_the_first_iteration(tmp_path, uninterrupted, capsys):
    model = uninterrupted / 'model_iter_3.npz'
    assert train.main(arguments(tmp_path, '--resume', model, iteration=1, network=[])) == 0
    assert [entry['iteration'] for entry in losses(tmp_path)] == [1]


@pytest.mark.parametrize(
    'network',
    [
        NETWORK,
        pytest.param(
            ['--pretrained', 'none', '--norm', 'affine', '--set', 'rpn_channels=8', 'mask_channels=8'],
            marks=pytest.mark.slow,
        ),
        ['--pretrained', 'none', '--norm', 'bn', '--set', 'rpn_channels=8', 'mask_channels=8'],
    ],
    ids=['fpn', 'affine', 'bn'],
)
def test_the_old_programs_commands_run_after_a_training(tmp_path, monkeypatch, network):
    """As its users write them, but for the dataset and the device."""
    monkeypatch.chdir(tmp_path)
    use_narrow_resnet(monkeypatch)
    monkeypatch.setitem(N_GENERATED['shapes'], 'val', 2)
    cv2.imwrite('photo.jpg', np.full((60, 80, 3), 90, np.uint8))
    assert train.main([*RUN, *network, '--iteration', '1']) == 0
    model = Path('result', 'snapshot_model.npz').read_bytes()
    command = '--image photo.jpg --modelfile result/snapshot_model.npz --contour --gpu -1'
    assert demo.main(command.split()) == 0
    assert Path('output.png').exists()
    command = '--lr 0 --iteration 1 --validation 1 --resume result/snapshot_model.npz --dataset shapes --gpu -1'
    assert train.main(command.split()) == 0
    assert Path('result', 'results.segm.json').exists()
    assert Path('result', 'snapshot_model.npz').read_bytes() == model


def test_a_model_of_the_old_program_is_kept_when_a_run_starts_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('result').mkdir()
    np.savez('result/snapshot_model.npz', **{'extractor/conv1/W': np.ones((2, 2), np.float32)})
    old = Path('result', 'snapshot_model.npz').read_bytes()
    assert train.main([*RUN, *NETWORK, '--iteration', '1']) == 0
    assert Path('result', 'snapshot_model.old.npz').read_bytes() == old
    assert mask_rcnn.load('result/snapshot_model.npz').class_names == ('square', 'circle', 'triangle')
    assert 'is kept as result/snapshot_model.old.npz' in capsys.readouterr().out


def test_a_changed_option_that_affects_the_losses_is_reported(tmp_path, uninterrupted, capsys):
    resume = '--resume', uninterrupted / 'snapshot_iter_2.npz'
    assert train.main(arguments(tmp_path / 'same', *resume)) == 0
    assert capsys.readouterr().err == ''
    assert train.main(arguments(tmp_path / 'other', *resume, '--gamma', '2')) == 0
    assert capsys.readouterr().err == 'warning: gamma was 1.0, and is 2.0 from now on\n'
    assert train.main(arguments(tmp_path / 'crop', *resume, '--crop', '48', '--no-flip')) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'warning: augmentation.flip was True, and is False from now on',
        'warning: augmentation.crop was None, and is 48 from now on',
    ]


def test_a_snapshot_without_the_augmentation_has_the_default(tmp_path, uninterrupted, monkeypatch, capsys):
    """Earlier versions flipped images and stored nothing about it."""
    read = initial_model.read_snapshot

    def read_earlier(path):
        snapshot = read(path)
        options = {name: value for name, value in snapshot.options.items() if name != 'augmentation'}
        return dataclasses.replace(snapshot, options=options)

    monkeypatch.setattr(initial_model, 'read_snapshot', read_earlier)
    resume = '--resume', uninterrupted / 'snapshot_iter_2.npz'
    assert train.main(arguments(tmp_path / 'same', *resume)) == 0
    assert capsys.readouterr().err == ''
    assert train.main(arguments(tmp_path / 'other', *resume, '--color-jitter', '0.5')) == 0
    assert capsys.readouterr().err == 'warning: augmentation.color_jitter was 0.0, and is 0.5 from now on\n'


def test_a_snapshot_must_match_the_options(tmp_path, uninterrupted, capsys):
    def resume_error(*more, resume='snapshot_iter_3.npz', **options):
        status = train.main(arguments(tmp_path, '--resume', uninterrupted / resume, *more, network=[], **options))
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith('error: ')
        return status, error

    status, error = resume_error()
    assert status == 2 and 'written after 3 iterations' in error
    status, error = resume_error('--roi_size', '14', iteration=9)
    assert status == 2 and 'its roi_size is 7, not 14' in error
    status, error = resume_error('--seed', '1', iteration=9)
    assert status == 2 and '--seed 1' in error and 'has the seed 0' in error
    status, error = resume_error('--norm', 'affine', iteration=9)
    assert status == 2 and "its norm is 'bn', not 'affine'" in error
    broken = uninterrupted / 'broken.npz'
    broken.write_bytes((uninterrupted / 'snapshot_iter_3.npz').read_bytes()[:100000])
    status, error = resume_error(resume='broken.npz', iteration=9)
    assert status == 1 and str(broken) in error
    broken.unlink()


def test_a_new_run_sets_an_earlier_one_aside(uninterrupted, tmp_path, capsys):
    """Also if it starts from a model of the earlier run; files that no run writes stay."""
    out = tmp_path / 'result'
    shutil.copytree(uninterrupted, out)
    (out / 'notes.txt').write_text('mine')
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.name != 'notes.txt'}
    assert train.main(arguments(out, iteration=1)) == 0
    assert f'the earlier run in {out} is moved to {out / "run_1"}' in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (out / 'run_1').iterdir()} == first
    assert read_snapshot(out / 'snapshot_iter_1.npz').iteration == 1 and (out / 'notes.txt').exists()

    assert train.main(arguments(out, '--resume', out / 'snapshot_model.npz', iteration=1, network=())) == 0
    assert (out / 'run_2' / 'snapshot_iter_1.npz').exists() and (out / 'snapshot_iter_1.npz').exists()

    # A snapshot of another folder begins a run in this one.
    assert train.main(arguments(out, '--resume', out / 'run_1' / 'snapshot_iter_2.npz', network=())) == 0
    assert (out / 'run_3' / 'snapshot_iter_1.npz').exists() and read_snapshot(out / 'snapshot_iter_3.npz')
    # A snapshot of this folder continues it.
    assert train.main(arguments(out, '--resume', out / 'snapshot_iter_3.npz', iteration=4, network=())) == 0
    assert not (out / 'run_4').exists()


def test_the_log_of_the_old_program_is_set_aside_and_its_model_stays(tmp_path):
    (tmp_path / 'log').write_text('[]')
    (tmp_path / 'snapshot_model.npz').write_bytes(b'old')
    assert set_aside_run(tmp_path) == tmp_path / 'run_1'
    assert (tmp_path / 'run_1' / 'log').read_text() == '[]'
    assert (tmp_path / 'snapshot_model.npz').read_bytes() == b'old'
    assert set_aside_run(tmp_path) is None and set_aside_run(tmp_path / 'none') is None


def test_a_diverging_run_names_the_images_and_the_last_snapshot(tmp_path, capfd):
    assert (
        train.main(arguments(tmp_path, '--lr', '1e30', '--lr_initialchange', '0', '--snapshot', '1', iteration=9)) == 1
    )
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1 and 'images: ' in error[0] and 'shapes image' in error[0]
    assert 'is nan' in error[0] or 'is inf' in error[0]
    last = Path(error[0].rsplit(' ', 1)[1])
    assert read_snapshot(last).iteration == int(error[0].split()[2].rstrip(':')) - 1


def run_in_two_processes(*more):
    """Train in two processes with one image each; return the exit status and stderr."""
    # Open MPI's sockets need short paths.
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'TMPDIR': '/tmp'}
    with subprocess.Popen(
        [
            *mpiexec_command(),
            '-n',
            '2',
            sys.executable,
            str(TRAIN),
            *more,
            '--communicator',
            'naive',
            '--batchsize',
            '1',
        ],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail('the processes hang')
    return process.returncode, errors


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_resume_from_one_snapshot(tmp_path):
    assert train.main(arguments(tmp_path / 'one', *FROZEN)) == 0
    status, errors = run_in_two_processes(*arguments(tmp_path / 'two', *FROZEN, iteration=2))
    assert status == 0, errors
    status, errors = run_in_two_processes(
        *arguments(tmp_path / 'more', *FROZEN, '--resume', tmp_path / 'two' / 'snapshot_iter_2.npz')
    )
    assert status == 0, errors
    one, two = losses(tmp_path / 'one'), losses(tmp_path / 'more')
    assert [entry['iteration'] for entry in two] == [1, 2, 3]
    for entry, expected in zip(two, one, strict=True):
        assert entry == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert not any(name.startswith('.') for name in os.listdir(tmp_path / 'more'))


@pytest.mark.slow
def test_a_bad_argument_ends_both_processes(tmp_path):
    status, errors = run_in_two_processes(*arguments(tmp_path, '--min-size', '64', '--max-size', '32'))
    assert status == 2 and 'min_size' in errors and 'Traceback' not in errors


def test_a_randomly_initialised_network_has_no_frozen_stages(tmp_path):
    """All stages are trained, and a resumed run reads that from the snapshot."""
    assert train.main(arguments(tmp_path, iteration=1)) == 0
    snapshot = tmp_path / 'snapshot_iter_1.npz'
    assert read_options(snapshot)['frozen_stages'] == 0
    assert train.main(arguments(tmp_path, '--resume', snapshot, iteration=2, network=[])) == 0
    before, after = (mask_rcnn.load(tmp_path / f'model_iter_{i}.npz') for i in (1, 2))
    assert (before.extractor.body.conv0.conv.W.array != after.extractor.body.conv0.conv.W.array).any()


@pytest.mark.parametrize(
    ('norms', 'expected'),
    [(('bn', 'none'), True), (('affine', 'bn'), True), (('gn', 'bn'), True), (('gn', 'gn'), False)],
)
def test_running_statistics_are_averaged(norms, expected):
    """Over several processes, if the backbone or the heads have batch normalisations that are not fixed."""
    config = Config(extractor='resnet50_fpn', norm=norms[0], head_norm=norms[1])
    model = SimpleNamespace(config=config)
    for size, freeze_bn in ((2, False), (1, False), (2, True)):
        options = SimpleNamespace(freeze_bn=freeze_bn)
        found = averages_statistics(model, options, SimpleNamespace(size=size))
        assert found == (expected and size == 2 and not freeze_bn)


@pytest.mark.slow
def test_a_resumed_run_with_group_normalisation_has_the_losses_of_an_uninterrupted_one(tmp_path):
    network = ['--extractor', 'mobilenet_v1_fpn', '--pretrained', 'none', '--norm', 'gn', '--set']
    network += ['fpn_channels=32', 'head_channels=32', 'mask_channels=32']
    assert train.main(arguments(tmp_path / 'a', iteration=3, network=network)) == 0
    snapshot = tmp_path / 'a' / 'snapshot_iter_2.npz'
    assert train.main(arguments(tmp_path / 'b', '--resume', snapshot, iteration=3, network=[])) == 0
    assert losses(tmp_path / 'b') == losses(tmp_path / 'a')
    config = mask_rcnn.load(tmp_path / 'b' / 'model_iter_3.npz').config
    assert (config.norm, config.head_norm, config.box_convs, config.box_fcs) == ('gn', 'gn', 4, 1)
