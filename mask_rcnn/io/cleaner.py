"""A program that removes the unfinished files of another one if that is killed: ``cleaner.py MESSAGE``.

A launcher of several processes kills all of them if one is killed, so that none can remove its files.  This program is
in a session of its own, which the launcher does not know.  Its standard input is a pipe from the other program: texts
that end with a zero byte, ``+PATH`` for a file or an empty folder to remove, ``-PATH`` for one that is finished, and
``.`` before a regular end.  At the end of the input without it, it writes MESSAGE to the standard error, if there is
one, and removes the paths.  It imports nothing of the package, so that it starts at once.
"""

import contextlib
import os
import sys
import time

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows
    _HAS_LOCKS = False

#: Attempts to lock a file, which the killed program may hold for some milliseconds, and the seconds between them.
_N_ATTEMPTS, _INTERVAL = 25, 0.02


def main() -> None:
    """Read the standard input to its end, and remove what is unfinished."""
    paths: dict[bytes, None] = {}
    rest = b''
    while data := os.read(0, 65536):
        *texts, rest = (rest + data).split(b'\0')
        for text in texts:
            if text == b'.':
                return
            if text[:1] == b'+':
                paths[text[1:]] = None
            else:
                paths.pop(text[1:], None)
    if len(sys.argv) > 1:  # before the files: the launcher ends soon, and forwards nothing afterwards
        with contextlib.suppress(OSError):
            os.write(2, f'\n{sys.argv[1]}\n'.encode())
    for path in reversed(paths):  # a folder was declared before its files
        with contextlib.suppress(OSError):
            os.rmdir(path) if os.path.isdir(path) else _remove(path)


def _remove(path: bytes) -> None:
    """Remove a file unless another program has locked it."""
    if not _HAS_LOCKS:  # Windows does not remove open files
        os.unlink(path)
        return
    with open(path, 'rb') as file:
        for attempt in range(_N_ATTEMPTS):
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if attempt == _N_ATTEMPTS - 1:
                    raise
                time.sleep(_INTERVAL)
        os.unlink(path)


if __name__ == '__main__':
    main()
