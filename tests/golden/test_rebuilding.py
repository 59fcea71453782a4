"""Scripts that rebuild the weights of the original programs are imported without traces."""

import sys

from tests.support.python_files import import_file


def test_an_imported_script_leaves_the_search_path_as_it_was(tmp_path):
    """A folder of reference outputs named torchvision would make a package of that name importable."""
    (tmp_path / 'neighbour.py').write_text('VALUE = 1\n')
    script = tmp_path / 'script.py'
    script.write_text(f'import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom neighbour import VALUE\n')
    search_path = list(sys.path)
    try:
        assert import_file(script).VALUE == 1
    finally:
        sys.modules.pop('neighbour', None)
    assert sys.path == search_path
