"""The plot of what a prediction costs, on networks that cost little."""

import json

import pytest

import mask_rcnn

NARROW = {'width': 0.25, 'fpn_channels': 8, 'head_channels': 8, 'mask_channels': 8}


@pytest.fixture
def plot_costs(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'benchmarks'))
    import plot_costs

    monkeypatch.setattr(plot_costs, '_SIDE', 40)
    monkeypatch.setattr(
        plot_costs,
        'SWEEPS',
        tuple(
            plot_costs.Sweep(sweep.title, sweep.label, values)
            for sweep, values in zip(plot_costs.SWEEPS, ((5, 10), (48, 64), (1, 2)), strict=True)
        ),
    )
    build = mask_rcnn.build
    monkeypatch.setattr(
        mask_rcnn,
        'build',
        lambda preset, **changes: build(preset, **{'min_size': 64, 'max_size': 96, **NARROW, **changes}),
    )
    return plot_costs


def test_measures_and_draws_every_sweep(plot_costs, tmp_path, capsys):
    out, figures = tmp_path / 'costs.png', tmp_path / 'costs.json'
    assert (
        plot_costs.main(['--out', str(out), '--json', str(figures), '--runs', '1', '--extractors', 'mobilenet_v1_fpn'])
        == 0
    )
    assert out.read_bytes().startswith(b'\x89PNG') and len(capsys.readouterr().out.splitlines()) == 6
    result = json.loads(figures.read_text())
    sweeps = result['figures']['mobilenet_v1_fpn']
    assert {title: list(values) for title, values in sweeps.items()} == {
        'proposals': ['5', '10'],
        'image': ['48', '64'],
        'batch': ['1', '2'],
    }
    assert all(
        min(stages.values()) >= 0 and sum(stages.values()) > 0
        for values in sweeps.values()
        for stages in values.values()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['costs.json', 'costs.png']


def test_draws_what_was_measured(plot_costs):
    """A stack as high as the sum of its stages over the work, and a straight line."""
    stages = {stage: float(i) for i, stage in enumerate(plot_costs.STAGES)}
    double = {stage: 2 * seconds for stage, seconds in stages.items()}
    figures = {
        'proposals': {'5': stages, '10': double},
        'image': {'48': stages, '64': double},
        'batch': {'1': stages, '2': stages},
    }
    result = {
        'figures': {'resnet50': figures},
        'unit': 'CPU s',
        'machine': {'processor': 'a processor', 'cpus': 2, 'date': '2020-01-01'},
    }
    axes = plot_costs.draw(result).axes
    assert len(axes) == 3 and axes[0].get_ylabel() == 'CPU s'
    total, straight = axes[0].lines
    assert total.get_xdata().tolist() == [5, 10] and total.get_ydata().tolist() == [15, 30]
    assert straight.get_ydata().tolist() == [15, 30]
    assert axes[1].lines[0].get_xdata() == pytest.approx([48 * 80 / 1e6, 64 * 107 / 1e6])
