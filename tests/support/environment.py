"""The environment of subprocesses."""

import os
from pathlib import Path


def subprocess_environment(root: Path, **changes: str) -> dict[str, str]:
    """Return this process's environment in which Python also imports modules from a folder.

    Args:
        root: The folder; it precedes the folders of ``PYTHONPATH``.
        changes: More variables.
    """
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path, **changes}
