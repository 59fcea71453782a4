"""Makes the scripts importable, as they are for each other when Python runs one of them."""

import pytest


@pytest.fixture(autouse=True)
def _script_folders(root, monkeypatch):
    for folder in ('scripts', 'scripts/benchmarks', 'scripts/docs'):
        monkeypatch.syspath_prepend(str(root / folder))
