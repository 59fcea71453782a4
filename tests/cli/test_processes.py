"""Commands in several processes."""

import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from mask_rcnn import cli
from mask_rcnn.cli import processes
from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.processes import choose_shared_device, quiet_unless_main
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.inference.save import save
from tests.support.models import VERY_NARROW, small_model
from tests.support.mpi import lines_of_program, process_of, run_processes, wait_until
from tests.support.small_dataset import annotation, write_dataset

EVALUATE = ['-m', 'mask_rcnn.cli', 'evaluate', '--gpu', '-1', '--modelfile']


@pytest.fixture(scope='module')
def modelfile(tmp_path_factory):
    """A model of three classes with random weights."""
    path = tmp_path_factory.mktemp('model') / 'model.npz'
    names = ShapesDataset.class_names
    save(path, small_model('mobilenet_v1_fpn', class_names=names, norm='affine', width=0.25, **VERY_NARROW))
    return path


def dataset_options(folder, n_images=7, edit=None):
    """Write a dataset of images of several sizes; return the options that select it."""
    sizes = [(64 + 8 * (i % 3), 72) for i in range(n_images)]
    objects = [annotation(i + 1, i, (8, 8, 24, 20), i % 3 + 1) for i in range(n_images)]
    path = write_dataset(folder, sizes, objects, names=ShapesDataset.class_names, edit=edit)
    return ['--val-annotations', str(path), '--val-images', str(folder)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_three_processes_evaluate_like_one(modelfile, root, tmp_path, monkeypatch, capfd):
    arguments = [*EVALUATE, str(modelfile), *dataset_options(tmp_path / 'data'), '--out', 'out']
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments[2:]) == 0
    alone, output = contents(tmp_path / 'out'), capfd.readouterr().out
    assert len(json.loads(alone['results.segm.json'])) > 7 and '7 images; wrote results.bbox.json' in output
    for path in (tmp_path / 'out').iterdir():
        path.unlink()
    done = run_processes(arguments, root, 3, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, output), done.stderr
    assert contents(tmp_path / 'out') == alone
    lines = done.stderr.split('\n')
    assert all(line.startswith('evaluating') for line in lines if line) and ' 7/7 ' in lines[-2]  # one progress bar


@pytest.mark.slow
@pytest.mark.parametrize('option', [['--max-detections', '3'], ['--report', 'report.html']])
def test_options_of_an_evaluation_in_three_processes(modelfile, root, tmp_path, monkeypatch, capfd, option):
    arguments = [*EVALUATE, str(modelfile), *dataset_options(tmp_path / 'data'), '--out', 'out', *option]
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments[2:]) == 0
    files, output = [tmp_path / 'out' / 'results.bbox.json', *tmp_path.glob('*.html')], capfd.readouterr().out
    alone = [path.read_bytes() for path in files]
    done = run_processes(arguments, root, 3, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, output), done.stderr
    assert [path.read_bytes() for path in files] == alone


@pytest.mark.slow
def test_the_first_broken_image_ends_an_evaluation_with_its_line(modelfile, root, tmp_path, monkeypatch, capfd):
    """Images 3 and 4 belong to two processes."""
    arguments = [*EVALUATE, str(modelfile), *dataset_options(tmp_path / 'data'), '--out', 'out']
    monkeypatch.chdir(tmp_path)
    for i in (4, 3):
        path = tmp_path / 'data' / f'{i}.png'
        path.write_bytes(path.read_bytes()[:60])
    assert cli.main(arguments[2:]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert '3.png' in line
    done = run_processes(arguments, root, 3, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ''
    assert [text for text in lines_of_program(done.stderr) if 'error' in text] == [line]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('words', 'status', 'line'),
    [
        (['--nonsense'], 2, 'mask-rcnn evaluate: error: the following arguments are required: --modelfile'),
        pytest.param(
            ['--modelfile', 'gone.npz'],
            1,
            'error: gone.npz: No such file or directory',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ['--modelfile', 'gone.npz', '--out', 'file'],
            1,
            'error: file: cannot be written: is a file, not a folder',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ['--modelfile', 'gone.npz', '--report', 'gone.npz'],
            2,
            'error: --report gone.npz does not end with .html',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_of_all_processes_is_one_line(root, tmp_path, words, status, line):
    """Also if process 0 is the last one: Open MPI ends all processes when the first one fails."""
    (tmp_path / 'file').touch()
    program = (
        "import os, sys, time; time.sleep(2 * (os.environ['OMPI_COMM_WORLD_RANK'] == '0')); "
        'from mask_rcnn import cli; sys.exit(cli.main(sys.argv[1:]))'
    )
    done = run_processes(['-c', program, 'evaluate', '--gpu', '-1', *words], root, 3, cwd=tmp_path)
    assert done.returncode == status and done.stdout == ''
    lines = lines_of_program(done.stderr)
    assert lines[-1] == line and sum('error' in text for text in lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='finds the processes in /proc')
@pytest.mark.parametrize('rank', [0, 1, None])
def test_a_killed_process_ends_an_evaluation(modelfile, root, tmp_path, rank):
    """Or an interrupt of the launcher (``None``)."""
    out = tmp_path / 'out'

    def kill(launcher):
        wait_until((out / '.evaluation.lock').exists)
        time.sleep(1.5)  # the evaluation takes longer
        if rank is None:
            launcher.send_signal(signal.SIGINT)
        else:
            os.kill(process_of(launcher, rank), signal.SIGKILL)

    options = ['--dataset', 'shapes', '--out', str(out)]
    done = run_processes([*EVALUATE, str(modelfile), *options], root, 3, meanwhile=kill)
    assert done.returncode != 0 and done.stdout == ''
    lines = [line for line in lines_of_program(done.stderr) if 'error' in line]
    if rank is not None:
        assert lines == ['error: the processes were ended: one of them was killed, or mpiexec was interrupted']
    wait_until(lambda: not out.exists())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='finds the processes in /proc')
def test_no_process_outlives_a_killed_launcher(modelfile, root, tmp_path):
    out, ranks = tmp_path / 'out', []

    def kill(launcher):
        wait_until((out / '.evaluation.lock').exists)
        ranks.extend(process_of(launcher, rank) for rank in range(3))
        launcher.kill()

    options = ['--dataset', 'shapes', '--out', str(out)]
    run_processes([*EVALUATE, str(modelfile), *options], root, 3, meanwhile=kill)
    wait_until(lambda: not any(os.path.exists(f'/proc/{rank}') for rank in ranks))
    assert not (out / 'metrics.json').exists()
    wait_until(lambda: not out.exists())


@pytest.mark.slow
def test_evaluations_during_distributed_training_are_shared(root, tmp_path):
    """Each process detects in its images; the results are those of an evaluation of the model by one process."""
    data = dataset_options(tmp_path / 'data')
    annotations, images = data[1], data[3]
    train = [
        *('-m', 'mask_rcnn.cli', 'train', '--communicator', 'naive', '--train-annotations', annotations),
        *('--train-images', images, *data, '--min-size', '64', '--max-size', '64', '--roi-batch', '16'),
        *('--batchsize', '1', '--workers', '0', '--extractor', 'mobilenet_v1_fpn', '--pretrained', 'none'),
        *('--set', 'width=0.25', 'fpn_channels=16', 'head_channels=32', 'mask_channels=16'),
        *('--iteration', '1', '--validation', '1', '--snapshot', '1', '--out', str(tmp_path / 'run')),
    ]
    done = run_processes(train, root, 2)
    assert done.returncode == 0, done.stderr
    done = run_processes(
        [*EVALUATE, str(tmp_path / 'run' / 'model_iter_1.npz'), *data, '--out', 'out'], root, 1, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for kind in ('bbox', 'segm'):
        shared = tmp_path / 'run' / f'results_iter_1.{kind}.json'
        assert shared.read_bytes() == (tmp_path / 'out' / f'results.{kind}.json').read_bytes()


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '3')
    for rank in ('0', '2'):
        monkeypatch.setenv('OMPI_COMM_WORLD_RANK', rank)
        with quiet_unless_main():
            print('line', rank)
            print('note', rank, file=sys.stderr)
    assert capsys.readouterr() == ('line 0\n', 'note 0\n')


def test_a_rank_without_a_number_of_processes_is_ignored(monkeypatch, capsys):
    """As in a program that a process of the launcher has started with a part of its environment."""
    monkeypatch.setenv('PMI_RANK', '2')
    monkeypatch.setenv('SLURM_NTASKS', '4')
    monkeypatch.setenv('SLURM_PROCID', '2')
    with quiet_unless_main():
        print('line')
    assert capsys.readouterr().out == 'line\n'


def test_bad_arguments_of_one_process_are_reported_after_a_while(monkeypatch, capfd):
    """Process 0 has then reported the same error, after which the launcher has ended this process."""
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '3')
    monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '1')
    printed = []
    monkeypatch.setattr(processes.time, 'sleep', lambda seconds: printed.append((seconds, capfd.readouterr())))
    monkeypatch.setattr(sys, '__stderr__', sys.stderr)
    with pytest.raises(SystemExit, match='^2$'):
        cli.main(['evaluate', '--nonsense'])
    assert printed == [(30, ('', ''))]
    assert 'evaluate: error: the following arguments are required: --modelfile' in capfd.readouterr().err


def test_without_mpi_the_error_of_another_process_follows_that_of_process_0(monkeypatch, capfd):
    monkeypatch.setenv('PMI_SIZE', '3')
    monkeypatch.setenv('PMI_RANK', '2')
    monkeypatch.setitem(sys.modules, 'mpi4py.MPI', None)
    pauses = []
    monkeypatch.setattr(processes.time, 'sleep', pauses.append)
    monkeypatch.setattr(sys, '__stderr__', sys.stderr)
    assert cli.main(['evaluate', '--modelfile', 'gone.npz']) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith('error: several processes need mpi4py and MPI, which do not work here') and pauses == [30]


@pytest.mark.parametrize(
    ('gpu', 'n_gpus', 'devices'),
    [
        (None, 4, [0, 1, 2]),
        (None, 2, [0, 1, 0]),
        (1, 4, [1, 2, 3]),
        (-1, 4, [-1, -1, -1]),
        (None, 0, [-1, -1, -1]),
    ],
)
def test_processes_of_a_machine_use_its_gpus(monkeypatch, capsys, gpu, n_gpus, devices):
    monkeypatch.setattr(processes, 'cuda_device_count', lambda: n_gpus)
    for module in (processes, sys.modules['mask_rcnn.cli.options']):
        monkeypatch.setattr(module, 'gpu_error', lambda number: None if number < n_gpus else 'there is no such device')
    communicators = [SimpleNamespace(size=6, rank=3 + i, intra_rank=i) for i in range(3)]
    assert [choose_shared_device(gpu, communicator) for communicator in communicators] == devices


def test_a_process_without_a_gpu_of_its_own_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, 'gpu_error', lambda number: 'there are only 2 CUDA devices' if number > 1 else None)
    with pytest.raises(UsageError, match=r'^--gpu 1: process 5 needs GPU 2: there are only 2 CUDA devices$'):
        choose_shared_device(1, SimpleNamespace(size=6, rank=5, intra_rank=1))
