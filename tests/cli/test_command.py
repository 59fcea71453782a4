"""The parts that all commands share."""

import importlib

from mask_rcnn import cli
from mask_rcnn.cli import command


def test_an_interrupt_during_the_imports_is_one_line(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, 'import_module', interrupt)
    assert cli.main(['info', 'model.npz']) == 130
    assert capsys.readouterr() == ('', 'error: interrupted\n')


def test_a_command_announces_the_compilation_of_kernels_once(monkeypatch, capsys):
    callbacks = []
    monkeypatch.setattr(command, 'on_first_compilation', callbacks.append)
    command.announce_compilation.cache_clear()
    for _ in range(2):
        assert command.run_and_report_errors(lambda: 0, ()) == 0
    assert capsys.readouterr() == ('', '')
    (announce,) = callbacks
    announce()
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('compiling CPU kernels') and err.count('\n') == 1
