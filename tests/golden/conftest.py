"""Models and cases of the reference outputs, each made once for the whole run."""

import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from tests.support.golden import Case, rebuild_pickle


@pytest.fixture(scope='session')
def golden(shared):
    return shared / 'golden'


@pytest.fixture(scope='session')
def weight_file(golden, tmp_path_factory):
    """Recipe name -> our .npz, by way of Detectron's pickle and the parser's command line."""
    folder = tmp_path_factory.mktemp('weights')
    made = {}

    def get(recipe):
        if recipe not in made:
            pickle = rebuild_pickle(golden, recipe, folder)
            made[recipe] = pickle.with_suffix('.npz')
            assert convert.main(['--input', str(pickle), '--output', str(made[recipe])]) == 0
            pickle.unlink()
        return made[recipe]

    return get


@pytest.fixture(scope='session')
def load_model(golden, weight_file):
    """Case name -> the model with the case's settings, and the case."""

    def load(name, **changes):
        case = Case(golden, name)
        path = weight_file(case.settings['recipe'])
        return mask_rcnn.load(path, **{**case.config_changes, **changes}), case

    return load
