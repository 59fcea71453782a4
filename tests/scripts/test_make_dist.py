"""``make dist`` with tools that only write files; tests/packaging runs the true ones."""

import subprocess
from pathlib import Path

import pytest

from scripts import make_dist


@pytest.fixture
def tools(monkeypatch):
    """The calls of the tools; ``build`` and ``chainer_wheels.py`` write their archives."""
    calls = []

    def run(*arguments):
        calls.append(arguments)
        if 'build' in arguments:
            folder = Path(arguments[arguments.index('--outdir') + 1])
            for name in ('mask_rcnn_chainer-1-py3-none-any.whl', 'mask_rcnn_chainer-1.tar.gz'):
                (folder / name).write_text(name)
        elif 'chainer_wheels.py' in str(arguments[0]):
            (arguments[1] / 'chainer-7.8.1-py3-none-any.whl').write_text('chainer')

    monkeypatch.setattr(make_dist, '_run_python', run)
    return calls


def test_a_release_replaces_the_one_before(tools, tmp_path, capsys):
    (tmp_path / 'mask_rcnn_chainer-0-py3-none-any.whl').write_text('old')
    assert make_dist.main(['--out', str(tmp_path)]) == 0
    names = ['chainer-7.8.1-py3-none-any.whl', 'mask_rcnn_chainer-1-py3-none-any.whl', 'mask_rcnn_chainer-1.tar.gz']
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    assert ['portable=true' in call for call in tools] == [True, False, False, False]


def test_other_files_in_the_folder_are_kept(tools, tmp_path, capsys):
    (tmp_path / 'thesis.tex').write_text('years')
    with pytest.raises(SystemExit):
        make_dist.main(['--out', str(tmp_path)])
    assert 'other files than archives' in capsys.readouterr().err and (tmp_path / 'thesis.tex').exists()
    assert tools == []


def test_a_file_is_no_folder(tools, tmp_path, capsys):
    file = tmp_path / 'dist'
    file.write_text('years')
    with pytest.raises(SystemExit) as stop:
        make_dist.main(['--out', str(file)])
    assert stop.value.code == 2
    assert f'error: --out {file}: is a file; ' in capsys.readouterr().err.splitlines()[-1]
    assert make_dist.main(['--out', str(file / 'below')]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'make_dist: {file / "below"}: ')
    assert tools == [] and file.read_text() == 'years'


def test_a_failed_check_keeps_the_release_before(monkeypatch, tmp_path, capsys):
    def fail(*arguments):
        raise subprocess.CalledProcessError(1, ['python', *arguments])

    monkeypatch.setattr(make_dist, '_run_python', fail)
    (tmp_path / 'mask_rcnn_chainer-0-py3-none-any.whl').write_text('old')
    assert make_dist.main(['--out', str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['mask_rcnn_chainer-0-py3-none-any.whl']
    assert capsys.readouterr().err.startswith('make_dist: python -m build ')
