"""Other programs: their start, and commands as text for the user's shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any


def own_group() -> dict[str, Any]:
    """Return the options of ``Popen`` that keep the terminal's Ctrl-C from a program, which is to finish its work."""
    if sys.platform == 'win32':
        return {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP}
    return {'start_new_session': True}


def command_text(words: Iterable[str]) -> str:
    """Return a command as text that can be pasted into a shell: for POSIX shells, or those of Windows."""
    return subprocess.list2cmdline([*words]) if sys.platform == 'win32' else shlex.join([*words])
