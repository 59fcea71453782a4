"""Models and cases of the reference outputs; each weight file is written once per run."""

from pathlib import Path

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from tests.support import common_files
from tests.support.dena import FILE_NAMES, build_arrays
from tests.support.golden import Case, rebuild_pickle
from tests.support.golden_torch import PROGRAMS
from tests.support.matterport import rebuild_h5


@pytest.fixture(scope='session', params=[pytest.param(-1, id='cpu'), pytest.param(0, id='cuda', marks=pytest.mark.gpu)])
def gpu(request):
    """The CUDA device id of the tested device; -1 is the CPU.  Both compute in true float32."""
    assert chainer.config.precision == 'fp32'
    return request.param


@pytest.fixture(scope='session')
def common_folder(tmp_path_factory):
    """The folder of the weight files, which the test processes share."""
    return common_files.find_folder(tmp_path_factory) / 'golden'


@pytest.fixture(scope='session')
def weight_file(golden, common_folder):
    """A function from the name of a recipe to an .npz file, converted from Detectron's pickle by the command."""

    def get(recipe):
        def write(path):
            pickle = rebuild_pickle(golden, recipe, path.parent, momentum=False)
            assert convert.main(['--input', str(pickle), '--output', str(path)]) == 0

        return common_files.write_once(common_folder / 'detectron' / Path(recipe).with_suffix('.npz').name, write)

    return get


@pytest.fixture(scope='session')
def dena_file(dena_golden, common_folder):
    """A function from the kind, the recipe and the seed of a weight file of DeNA's program to the file."""

    def get(kind, recipe, seed):
        def write(path):
            np.savez(path, **build_arrays(dena_golden, kind, recipe, seed))

        return common_files.write_once(common_folder / 'dena' / f'{Path(recipe).stem}_{seed}' / FILE_NAMES[kind], write)

    return get


@pytest.fixture(scope='session')
def load_model(golden, weight_file, gpu):
    """A function from the name of a case to the model with the case's settings on the device, and the case."""

    def load(name, **changes):
        case = Case(golden, name)
        path = weight_file(case.settings['recipe'])
        return mask_rcnn.load(path, gpu=gpu, **{**case.config_changes, **changes}), case

    return load


@pytest.fixture(scope='session')
def program_file(golden, common_folder):
    """A function from a program and a recipe to an .npz file, converted from the program's file by the command."""

    def get(program, recipe):
        def write(path):
            source = PROGRAMS[program].rebuild(golden, recipe, path.parent)
            assert convert.main(['--input', str(source), '--output', str(path)]) == 0

        return common_files.write_once(common_folder / program / Path(recipe).with_suffix('.npz').name, write)

    return get


@pytest.fixture(scope='session')
def h5_file(matterport_golden, common_folder):
    """A function from the name of a recipe to Keras's ``.h5`` file."""

    def get(recipe):
        def write(path):
            rebuild_h5(matterport_golden, recipe, path.parent)

        return common_files.write_once(common_folder / 'matterport' / Path(recipe).with_suffix('.h5').name, write)

    return get
