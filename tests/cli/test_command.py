"""The main function that the commands share."""

import pytest

from mask_rcnn.cli import command


def test_a_command_announces_the_compilation_of_kernels(monkeypatch, capsys):
    callbacks = []
    monkeypatch.setattr(command, 'on_first_compilation', callbacks.append)
    assert command.run_command(lambda parser: None, lambda args: 0, []) == 0
    assert capsys.readouterr() == ('', '')
    (announce,) = callbacks
    announce()
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('compiling CPU kernels') and err.count('\n') == 1


def test_help_does_not_wait_for_a_compilation(monkeypatch, capsys):
    monkeypatch.setattr(command, 'on_first_compilation', lambda callback: pytest.fail('not reached by --help'))
    with pytest.raises(SystemExit) as error:
        command.run_command(lambda parser: None, lambda args: 0, ['--help'], prog='program')
    assert error.value.code == 0 and 'program' in capsys.readouterr().out
