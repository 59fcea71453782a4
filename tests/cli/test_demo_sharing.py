"""``mask-rcnn demo`` in several processes."""

import os
import signal
import sys
from functools import partial

import cv2
import numpy as np
import pytest

from mask_rcnn import cli
from mask_rcnn.cli import demo
from mask_rcnn.cli.command import UsageError, parse_command_line
from mask_rcnn.cli.demo_options import configure
from mask_rcnn.inference.save import save
from mask_rcnn.training.distributed import Communicator, fail_together
from tests.support.models import VERY_NARROW, small_model
from tests.support.mpi import lines_of_program, process_of, run_processes, wait_until
from tests.support.process_threads import Processes

FILES = ['--json', 'r.json', '--jsonl', 'r.jsonl', '--csv', 'r.csv', '--masks', 'm', '--instance-masks', 'im']
FILES += ['--annotations', 'a.json', '--output', 'out/', '--score-thresh', '0.02']
#: Images that cannot be read; they belong to two of three processes.
BROKEN = (3, 4)


@pytest.fixture(scope='module')
def modelfile(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'model.npz'
    save(path, small_model('mobilenet_v1_fpn', class_names=('cat', 'dog', 'cow'), width=0.25, **VERY_NARROW))
    return str(path)


def write_images(folder, n_images=10, broken=BROKEN):
    rng = np.random.RandomState(0)
    folder.mkdir()
    for i in range(n_images):
        pixels = rng.randint(0, 256, (64 + 8 * (i % 3), 72, 3), np.uint8)
        data = cv2.imencode('.png', pixels)[1].tobytes()
        (folder / f'{i}.png').write_bytes(data[:99] if i in broken else data)


def read_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def run_demo(modelfile, tmp_path, monkeypatch, capsys):
    """Run the command with a communicator in a folder; return the status, the files and the printed lines."""
    write_images(tmp_path / 'images')

    def run(folder, run_action):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        words = ['--image', '../images', '--modelfile', modelfile, '--gpu', '-1', *FILES]
        args = parse_command_line(configure, words)
        status = run_action(partial(demo.run, args))
        output, errors = capsys.readouterr()
        lines = [line.replace(str(tmp_path / folder), '.') for line in errors.splitlines() if 'error' in line]
        return status, read_files(tmp_path / folder), output, lines

    return run


@pytest.mark.parametrize('n_passes', [pytest.param(1, marks=pytest.mark.slow), 2])
def test_three_processes_write_what_one_writes(run_demo, monkeypatch, n_passes):
    """The processes are threads.  A model can have one threshold of NMS for pictures and one for JSON."""
    if n_passes == 2:
        passes = [demo._Pass(0.5, 0.02, False, True), demo._Pass(0.1, None, True, True)]
        monkeypatch.setattr(demo, '_passes', lambda model, args: passes)
    alone = run_demo('alone', lambda action: action(Communicator()))
    processes = Processes(3)
    together = run_demo('together', lambda action: processes.run(lambda comm: fail_together(comm, action))[0])
    status, files, output, errors = alone
    assert status == 1 and len(errors) == 2 and output.count('-> out') == 8
    assert {f'out/{i}.png' for i in range(10) if i not in BROKEN} | {'r.json', 'r.csv', 'a.json'} <= files.keys()
    assert together == alone


@pytest.mark.slow
@pytest.mark.parametrize('stream', [[], ['--json', '/dev/stdout']])
def test_three_started_processes_write_what_one_writes(modelfile, root, tmp_path, monkeypatch, capfd, stream):
    write_images(tmp_path / 'images')
    words = ['--image', '../images', '--modelfile', modelfile, '--gpu', '-1', *FILES, *stream]
    for name in ('alone', 'together'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / 'alone')
    assert cli.main(['demo', *words]) == 1
    output, errors = capfd.readouterr()
    done = run_processes(['-m', 'mask_rcnn.cli', 'demo', *words], root, 3, cwd=tmp_path / 'together')
    assert done.returncode == 1 and done.stdout == output
    assert [line for line in lines_of_program(done.stderr) if 'error' in line] == [
        line for line in errors.replace('\r', '\n').splitlines() if 'error' in line
    ]
    assert read_files(tmp_path / 'together') == read_files(tmp_path / 'alone')


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='finds the processes in /proc')
@pytest.mark.parametrize('rank', [0, 1, None])
def test_a_killed_process_ends_the_demo(modelfile, root, tmp_path, rank):
    """Or an interrupt of the launcher (``None``).  Finished pictures stay; no file is half-written."""
    write_images(tmp_path / 'images', 400, broken=())
    folder = tmp_path / 'run'
    folder.mkdir()

    def kill(launcher):
        wait_until(lambda: (folder / 'out').exists() and len(os.listdir(folder / 'out')) > 20)
        if rank is None:
            launcher.send_signal(signal.SIGINT)
        else:
            os.kill(process_of(launcher, rank), signal.SIGKILL)

    files = ['--json', 'r.json', '--annotations', 'a.json', '--jsonl', 'r.jsonl', '--output', 'out/']
    words = ['demo', '--image', '../images', '--modelfile', modelfile, '--gpu', '-1', *files]
    done = run_processes(['-m', 'mask_rcnn.cli', *words], root, 3, cwd=folder, meanwhile=kill)
    assert done.returncode != 0
    lines = [line for line in lines_of_program(done.stderr) if 'error' in line]
    if rank is not None:
        assert lines == ['error: the processes were ended: one of them was killed, or mpiexec was interrupted']
    wait_until(lambda: not list(folder.rglob('.*')))
    left = read_files(folder)
    pictures = [name for name in left if name.startswith('out/') and name.endswith('.png')]
    assert 20 < len(pictures) < 400 and all(cv2.imread(str(folder / name)) is not None for name in pictures)
    assert left.keys() - pictures <= {'r.jsonl'} and left.get('r.jsonl', b'\n').endswith(b'\n')


def test_a_picture_that_cannot_be_written_is_reported_once(run_demo, monkeypatch):
    """As in one process: its results are complete, and the other pictures are written."""
    real = demo.created_folders

    def create_folders(folders):
        os.makedirs('out/5.png/x')  # after the checks
        return real(folders)

    monkeypatch.setattr(demo, 'created_folders', create_folders)
    alone = run_demo('alone', lambda action: action(Communicator()))
    processes = Processes(3)
    together = run_demo('together', lambda action: processes.run(lambda comm: fail_together(comm, action))[0])
    status, _, output, errors = alone
    assert status == 1 and len(errors) == 3 and 'out/5.png' in errors[2] and output.count('-> out') == 7
    assert together == alone


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--image', '-'], '--image: the standard input cannot be shared by processes; start mask-rcnn demo without'),
        (['--camera', '0'], '--camera: a camera cannot be shared by processes'),
        (['--image', 'images', '--show'], '--show: a window shows the pictures of one process'),
        (['--image', 'images', '--track'], '--track: objects are followed from each image to the next one'),
        (['--image', 'a.mp4'], r'a\.mp4: a video cannot be shared by processes'),
    ],
)
def test_work_that_cannot_be_shared_is_refused(tmp_path, monkeypatch, words, message):
    write_images(tmp_path / 'images', 1, broken=())
    monkeypatch.chdir(tmp_path)
    writer = cv2.VideoWriter('a.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    args = parse_command_line(configure, [*words, '--output', 'out/', '--modelfile', 'gone.npz'])
    results = Processes(2).run(lambda comm: fail_together(comm, partial(demo.run, args)))
    assert isinstance(results[0], UsageError)
    with pytest.raises(UsageError, match=f'^{message}'):
        raise results[0]
    assert sorted(os.listdir(tmp_path)) == ['a.mp4', 'images']
