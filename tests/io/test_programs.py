"""Other programs on POSIX systems and on Windows."""

import subprocess
import sys

import pytest

from mask_rcnn.io import programs


@pytest.mark.parametrize(
    ('platform', 'text'),
    [
        ('linux', "mask-rcnn train --out 'my runs/1'"),
        ('darwin', "mask-rcnn train --out 'my runs/1'"),
        ('win32', 'mask-rcnn train --out "my runs/1"'),
    ],
)
def test_a_command_as_text(monkeypatch, platform, text):
    monkeypatch.setattr(sys, 'platform', platform)
    assert programs.command_text(['mask-rcnn', 'train', '--out', 'my runs/1']) == text


def test_a_program_gets_no_ctrl_c(monkeypatch):
    assert programs.own_group() == {'start_new_session': True}
    monkeypatch.setattr(sys, 'platform', 'win32')
    monkeypatch.setattr(subprocess, 'CREATE_NEW_PROCESS_GROUP', 0x200, raising=False)
    assert programs.own_group() == {'creationflags': 0x200}
