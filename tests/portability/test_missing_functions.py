"""The package without the modules, functions and signals that Windows lacks."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support.environment import subprocess_environment
from tests.support.python_files import import_file
from tests.support.small_train import NETWORK, RUN

#: Removes what Windows lacks before the package is imported, but after the libraries, which are built for Linux.
START = """
import asyncio, concurrent.futures, json, multiprocessing.popen_spawn_posix, subprocess, sys, tempfile
import cv2, filelock, h5py, matplotlib.font_manager, numba, numpy as np, PIL.Image, pycocotools.mask, tqdm
from tests.support import other_systems
other_systems.remove_what_windows_lacks()
other_systems.forbid_default_encodings()
folder = sys.argv[1]
"""
TRAIN = """
from mask_rcnn.cli import train
print(train.main(sys.argv[2:]))
"""
DEMO = """
import mask_rcnn
from mask_rcnn.cli import main
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
PIL.Image.fromarray(RichShapesDataset(1, size=160, seed=3)[0].image.transpose(1, 2, 0).astype('uint8')).save('café.png')
model = 'modelfiles/shapes_mobilenet_v1_fpn.npz'
mask_rcnn.save('copy.npz', mask_rcnn.load(sys.argv[2] + '/' + model))
outputs = ['--json', 'all.json', '--jsonl', 'all.jsonl', '--csv', '-', '--masks', 'masks', '--annotations', 'coco.json']
files = ['--image', 'café.png', '--modelfile', 'copy.npz', '--output', 'out.png']
print(main(['demo', *files, '--gpu', '-1', *outputs]))
"""


def run_without(root, code, folder, *arguments):
    """Run code in a process that lacks what Windows lacks; returns the lines that it prints."""
    command = [sys.executable, '-X', 'warn_default_encoding', '-c', START + code, str(folder), *map(str, arguments)]
    environment = subprocess_environment(root, PYTHONWARNINGS='ignore::EncodingWarning', PYTHONIOENCODING='cp1252')
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr.decode('cp1252')
    return done.stdout.decode('utf-8-sig').splitlines()


def test_every_module_can_be_imported(root, tmp_path):
    (line,) = run_without(root, 'print(len(other_systems.import_all_modules()))', tmp_path)
    assert int(line) > 400


@pytest.mark.slow
def test_training_with_worker_processes(root, tmp_path):
    """Processes are started with ``spawn``, as on Windows and macOS."""
    out = tmp_path / 'run'
    options = [*RUN, *NETWORK, '--workers', '1', '--iteration', '2', '--snapshot', '1', '--out', str(out)]
    assert run_without(root, TRAIN, tmp_path, *options)[-1] == '0'
    assert {'snapshot_iter_2.npz', 'model_iter_2.npz', 'log'} <= {path.name for path in out.iterdir()}
    resumed = [*RUN, *NETWORK, '--iteration', '3', '--out', str(out), '--resume', str(out / 'snapshot_iter_2.npz')]
    assert run_without(root, TRAIN, tmp_path, *resumed)[-1] == '0'
    assert (out / 'snapshot_iter_3.npz').exists() and not list(out.glob('.*'))


@pytest.mark.slow
def test_results_of_the_demo(root, tmp_path):
    """The table is UTF-8, whatever the encoding of the console."""
    lines = run_without(root, DEMO, tmp_path, root)
    assert lines[0].startswith('image,') and any(line.startswith('café.png,') for line in lines) and lines[-1] == '0'
    assert {path.name for path in tmp_path.iterdir()} == {
        *('café.png', 'copy.npz', 'out.png', 'all.json', 'all.jsonl', 'masks', 'coco.json')
    }
    (image,) = json.loads((tmp_path / 'coco.json').read_text(encoding='utf-8'))['images']
    assert image['file_name'] == 'café.png'


def test_ctrl_break_stops_the_server_and_a_training(root, monkeypatch):
    """Windows alone has this signal."""
    monkeypatch.setattr(signal, 'SIGBREAK', signal.SIGURG, raising=False)
    for name in ('serving/server.py', 'training/signals.py'):
        module = import_file(root / 'mask_rcnn' / name)
        signals = getattr(module, 'STOP_SIGNALS', None) or module._STOP_SIGNALS
        assert {signal.SIGINT, signal.SIGURG} <= set(signals), name
