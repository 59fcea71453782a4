"""Models and cases of the reference outputs; each weight file is written once per session."""

import chainer
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from tests.support.dena import FILE_NAMES, build_arrays
from tests.support.golden import Case, rebuild_pickle
from tests.support.golden_torch import PROGRAMS


@pytest.fixture(scope='session', params=[pytest.param(-1, id='cpu'), pytest.param(0, id='cuda', marks=pytest.mark.gpu)])
def gpu(request):
    """The CUDA device id of the tested device; -1 is the CPU.  Both compute in true float32."""
    assert chainer.config.precision == 'fp32'
    return request.param


@pytest.fixture(scope='session')
def weight_file(golden, tmp_path_factory):
    """A function from the name of a recipe to an .npz file, converted from Detectron's pickle by the command."""
    folder = tmp_path_factory.mktemp('weights')
    written = {}

    def get(recipe):
        if recipe not in written:
            pickle = rebuild_pickle(golden, recipe, folder, momentum=False)
            written[recipe] = pickle.with_suffix('.npz')
            assert convert.main(['--input', str(pickle), '--output', str(written[recipe])]) == 0
            pickle.unlink()
        return written[recipe]

    return get


@pytest.fixture(scope='session')
def dena_file(dena_golden, tmp_path_factory):
    """A function from the kind, the recipe and the seed of a weight file of DeNA's program to the file."""
    folder = tmp_path_factory.mktemp('dena')
    written = {}

    def get(kind, recipe, seed):
        if (kind, recipe, seed) not in written:
            path = written[kind, recipe, seed] = folder / f'{len(written)}_{FILE_NAMES[kind]}'
            np.savez(path, **build_arrays(dena_golden, kind, recipe, seed))
        return written[kind, recipe, seed]

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
def program_file(golden, tmp_path_factory):
    """A function from a program and a recipe to an .npz file, converted from the program's file by the command."""
    folder = tmp_path_factory.mktemp('programs')
    written = {}

    def get(program, recipe):
        if (program, recipe) not in written:
            source = PROGRAMS[program].rebuild(golden, recipe, folder)
            written[program, recipe] = source.with_suffix('.npz')
            assert convert.main(['--input', str(source), '--output', str(written[program, recipe])]) == 0
            source.unlink()
        return written[program, recipe]

    return get
