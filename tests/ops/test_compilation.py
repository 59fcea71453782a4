"""The notice of a compilation."""

import signal

import numba
import pytest
from numba.core import event

from mask_rcnn.ops.runtime.compilation import on_first_compilation
from mask_rcnn.ops.runtime.parallel import jit


def test_callback_runs_once_at_the_first_compilation():
    calls = []
    on_first_compilation(lambda: calls.append('compiled'))
    assert calls == []
    first, second = numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)
    assert first(1) == 2 and calls == ['compiled']
    assert second(1) == 3 and first(2.0) == 3.0 and calls == ['compiled']


def test_callback_does_not_run_for_cached_kernels(tmp_path):
    """Loading from the cache triggers no pass of the compiler."""
    import subprocess
    import sys

    (tmp_path / 'kernels.py').write_text(
        'from numba import njit\n\n\n@njit(cache=True)\ndef add(x):\n    return x + 1\n'
    )
    program = (
        'from mask_rcnn.ops.runtime.compilation import on_first_compilation\n'
        'on_first_compilation(lambda: print("compiled"))\n'
        'from kernels import add\nadd(1)'
    )
    outputs = []
    for _ in range(2):
        run = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, check=True, capture_output=True, text=True)
        outputs.append(run.stdout)
    assert outputs == ['compiled\n', '']


class SignalSender(event.Listener):
    """Sends Ctrl-C from within the compiler, once."""

    sent = False

    def on_start(self, event_):
        if not self.sent:
            self.sent = True
            signal.raise_signal(signal.SIGINT)

    def on_end(self, event_):
        pass


def test_ctrl_c_during_a_compilation_is_raised_after_it(tmp_path, monkeypatch):
    """Numba's compiler calls Python from LLVM, which drops exceptions."""
    numba.config.reload_config()  # the next compilation would otherwise do so if a test has changed the environment
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path))
    kernel, sender = jit(lambda x: x + 3), SignalSender()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    event.register('numba:run_pass', sender)
    try:
        with pytest.raises(KeyboardInterrupt):
            kernel(1)
        assert len(kernel.signatures) == 1 and kernel(1) == 4
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        event.unregister('numba:run_pass', sender)
        signal.signal(signal.SIGINT, previous)
