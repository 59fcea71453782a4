"""Makes the modules of ``scripts/docs`` importable, as they are for each other when Python runs one of them."""

import pytest


@pytest.fixture(autouse=True)
def _script_folder(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'docs'))
