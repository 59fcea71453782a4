"""Models and cases of the reference outputs; each weight file is written once per session."""

import pytest

import mask_rcnn
from mask_rcnn.cli import convert
from tests.support.golden import Case, rebuild_pickle


@pytest.fixture(scope='session')
def weight_file(golden, tmp_path_factory):
    """A function from the name of a recipe to an .npz file, converted from Detectron's pickle by the command."""
    folder = tmp_path_factory.mktemp('weights')
    written = {}

    def get(recipe):
        if recipe not in written:
            pickle = rebuild_pickle(golden, recipe, folder)
            written[recipe] = pickle.with_suffix('.npz')
            assert convert.main(['--input', str(pickle), '--output', str(written[recipe])]) == 0
            pickle.unlink()
        return written[recipe]

    return get


@pytest.fixture(scope='session')
def load_model(golden, weight_file):
    """A function from the name of a case to the model with the case's settings, and the case."""

    def load(name, **changes):
        case = Case(golden, name)
        path = weight_file(case.settings['recipe'])
        return mask_rcnn.load(path, **{**case.config_changes, **changes}), case

    return load
