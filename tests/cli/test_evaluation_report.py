"""``mask-rcnn evaluate --report``: checks before the work, the file, and evaluations without it."""

import json
import os
import sys

import pytest

from mask_rcnn.cli import dataset_options, evaluate
from mask_rcnn.cli.evaluation_report import EvaluationReport
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from tests.support.models import VERY_NARROW, small_model


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Evaluate a random model on two images; the command takes more arguments."""
    model = small_model(
        'mobilenet_v1_fpn', class_names=ShapesDataset.class_names, norm='affine', width=0.25, **VERY_NARROW
    )
    monkeypatch.setattr(evaluate.mask_rcnn, 'load', lambda *args, **options: model)
    monkeypatch.setitem(dataset_options.N_GENERATED, 'shapes', {'train': 2, 'val': 2})
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'm.npz').write_bytes(b'weights')
    words = ['--dataset', 'shapes', '--modelfile', 'm.npz', '--gpu', '-1', '--out', 'out']
    return lambda *more: evaluate.main([*words, *more])


def test_the_report_has_the_metrics_that_are_printed_and_stored(command, tmp_path, capsys):
    """Its folder is the output folder, which does not exist before the command."""
    assert command() == 0
    plain, metrics = capsys.readouterr().out, (tmp_path / 'out' / 'metrics.json').read_bytes()
    assert command('--report', 'out/report.html') == 0
    assert capsys.readouterr().out == plain + 'wrote out/report.html\n'
    assert (tmp_path / 'out' / 'metrics.json').read_bytes() == metrics
    document = (tmp_path / 'out' / 'report.html').read_text(encoding='utf-8')
    for name, value in json.loads(metrics).items():
        if name.startswith(('bbox/', 'segm/')):
            assert f'<td class="number">{100 * value:.1f}</td>' in document, name
    for text in ('Evaluation of m.npz', 'shapes (val)', 'Kinds of errors', 'Worst images'):
        assert text in document
    assert sorted(os.listdir('out')) == ['metrics.json', 'report.html', 'results.bbox.json', 'results.segm.json']


def test_without_a_report_nothing_of_it_is_imported(command, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'matplotlib' or 'evaluation.analysis' in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)  # an import fails
    monkeypatch.setitem(sys.modules, 'mask_rcnn.evaluation.analysis', None)
    assert command() == 0
    with pytest.raises(ModuleNotFoundError, match=r'mask_rcnn\.evaluation\.analysis'):
        command('--report', 'report.html')


def test_reports_are_checked_before_the_model_is_loaded(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluate.mask_rcnn, 'load', pytest.fail)
    (tmp_path / 'folder.html').mkdir()
    (tmp_path / 'm.html').symlink_to('m.npz')
    for path, status, message in (
        ('report.pdf', 2, '--report report.pdf does not end with .html'),
        ('out', 2, '--report out does not end with .html'),
        ('m.html', 2, '--report m.html is the file of --modelfile'),
        ('folder.html', 1, 'folder.html: is a folder, not a file'),
        ('no/report.html', 1, 'no/report.html: cannot be written: No such file or directory'),
    ):
        assert command('--report', path) == status
        assert capsys.readouterr().err == f'error: {message}\n'.replace(
            'error: folder.html', f'error: {tmp_path}/folder.html'
        )
    assert (tmp_path / 'm.npz').read_bytes() == b'weights' and not (tmp_path / 'out').exists()


def test_a_report_that_cannot_be_written_does_not_lose_the_metrics(command, monkeypatch, tmp_path, capsys):
    """The folder disappears during the evaluation."""
    (tmp_path / 'reports').mkdir()
    write = EvaluationReport.write

    def fail(self, dataset):
        (tmp_path / 'reports').rmdir()
        write(self, dataset)

    monkeypatch.setattr(EvaluationReport, 'write', fail)
    assert command('--report', 'reports/report.html') == 1
    output, error = capsys.readouterr()
    assert 'boxes' in output and 'square' in output and 'wrote reports' not in output
    assert error.splitlines()[-1] == 'error: reports/report.html: cannot be written: No such file or directory'
    assert (tmp_path / 'out' / 'metrics.json').exists()
