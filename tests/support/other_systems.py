"""Windows, as far as Linux can act it: what is missing there, and what its files do not allow."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

#: Modules of Python that Windows does not have.
MISSING_MODULES = ('fcntl', 'grp', 'posix_ipc', 'pwd', 'resource', 'syslog', 'termios', 'tty')
#: Attributes that Windows does not have, by module.
MISSING_ATTRIBUTES = {
    os: (
        *('fork', 'forkpty', 'register_at_fork', 'sched_getaffinity', 'sched_setaffinity', 'sysconf', 'statvfs'),
        *('fchmod', 'fchown', 'chown', 'getuid', 'geteuid', 'getgid', 'getloadavg', 'getpgid', 'getpgrp', 'setsid'),
        *('killpg', 'mkfifo', 'nice', 'uname', 'sync', 'posix_fallocate', 'sendfile', 'O_NOFOLLOW', 'O_DIRECTORY'),
    ),
    signal: (
        *('SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU', 'SIGPWR', 'SIGALRM', 'SIGCHLD'),
        *('pthread_sigmask', 'pthread_kill', 'alarm', 'setitimer', 'SIG_BLOCK', 'SIG_SETMASK'),
    ),
}


def remove_what_windows_lacks() -> None:
    """Remove modules and attributes from this process, which is to end afterwards.

    The standard library must have been imported before, because that of Linux uses some of them while it is imported.
    """
    sys.modules.update(dict.fromkeys(MISSING_MODULES))
    for module, names in MISSING_ATTRIBUTES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def forbid_default_encodings() -> None:
    """Let this package raise an error where a text file is opened in the encoding of the system.

    Python must run with ``-X warn_default_encoding``.
    """
    warnings.filterwarnings('error', category=EncodingWarning, module='mask_rcnn')


def import_all_modules() -> list[str]:
    """Import every module of the package and return their names."""
    package = importlib.import_module('mask_rcnn')
    names = [module.name for module in pkgutil.walk_packages(package.__path__, 'mask_rcnn.')]
    for name in names:
        if not name.endswith('__main__'):
            importlib.import_module(name)
    return names


def refuse_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that this process has open be neither renamed, replaced nor removed, as on Windows.

    Files that are mapped into the memory count as open.
    """
    for name in ('replace', 'rename', 'unlink', 'remove'):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, _refusing(function))
    for name in ('mask_rcnn.io.atomic_file.HAS_LOCKS', 'mask_rcnn.io.temporary_file.HAS_LOCKS'):
        monkeypatch.setattr(name, False)


def _refusing(function: Callable) -> Callable:
    def call(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if _is_open(path):
                raise PermissionError(errno.EACCES, 'another process is using this file', os.fspath(path))
        return function(*paths, **options)

    return call


def _is_open(path: Any) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    for descriptor in os.listdir('/proc/self/fd'):
        try:
            if os.path.samestat(os.fstat(int(descriptor)), status):
                return True
        except OSError:  # the descriptor of the list
            continue
    return os.path.realpath(path) in pathlib.Path('/proc/self/maps').read_text(encoding='utf-8', errors='replace')
