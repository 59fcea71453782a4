"""What the operations take, on sizes that take little; and what a GPU is asked, of one that NumPy plays."""

import json
import types

import numpy as np
import pytest

from mask_rcnn.ops import cudnn_frontend


@pytest.fixture
def kernels(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'benchmarks'))
    import kernels
    import machine_ceiling

    monkeypatch.setattr(machine_ceiling, '_COPIED', 1 << 20)
    monkeypatch.setattr(machine_ceiling, '_CPU_SIDE', 16)
    monkeypatch.setattr(machine_ceiling, '_GPU_SIDE', 16)
    return kernels


@pytest.fixture
def sizes(kernels):
    return kernels.Sizes(image=(128, 192), rois=5, channels=32, boxes=40, kept=10, best=7, masks=3)


def test_every_operation_is_timed_and_written(kernels, sizes, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    assert kernels.main(['--runs', '2', '--json', str(path)], sizes) == 0
    result, text = json.loads(path.read_text()), capsys.readouterr().out
    names = [row['name'] for row in result['operations']]
    assert names == [
        'RoIAlign forward, C4, float32',
        'RoIAlign backward, C4, float32',
        'RoIAlign forward, FPN, float32',
        'RoIAlign backward, FPN, float32',
        'NMS, 40 boxes',
        'top 7 of 6138',
        'paste 3 masks',
        '3 masks to host',
        'network input, float32',
    ]
    for row in result['operations']:
        assert row['seconds'] > 0 and row['rate'] == pytest.approx(row['bytes'] / row['seconds'])
        assert row['of_copy'] == pytest.approx(row['rate'] / result['copy']) and row['name'] in text
    assert [entry.name for entry in tmp_path.iterdir()] == ['figures.json']


def test_bytes_are_those_of_inputs_and_outputs(kernels, sizes):
    roi = 5 * (16 + 4)
    pooled = {'C4': 4 * 5 * 32 * 7 * 7, 'FPN': 4 * 5 * 8 * 7 * 7}
    maps = {'C4': 4 * 32 * 8 * 12, 'FPN': 4 * 8 * 32 * 48}
    by_name = {case.name: case.n_bytes for case in kernels.cases(np, sizes)}
    for network in ('C4', 'FPN'):
        for way in ('forward', 'backward'):
            assert by_name[f'RoIAlign {way}, {network}, float32'] == maps[network] + pooled[network] + roi
    assert by_name['NMS, 40 boxes'] == 40 * (16 + 4) + 10 * 4
    assert by_name['paste 3 masks'] == by_name['3 masks to host'] == 3 * (28 * 28 * 4 + 16 + 128 * 192)
    assert by_name['network input, float32'] == 2 * 3 * 128 * 192 * 4


def test_calls_take_turns_among_sets_of_inputs(kernels, sizes):
    forward, backward = list(kernels.cases(np, sizes))[:2]
    y, gx = forward.calls[0](), backward.calls[0]()
    assert len(forward.calls) == len(backward.calls) == 4
    assert y.shape == (5, 32, 7, 7) and gx.shape == (1, 32, 8, 12) and gx.any()
    assert not np.array_equal(forward.calls[1](), y) and not np.array_equal(backward.calls[1](), gx)


class FakeCuPy:
    """NumPy under the name of CuPy, with a clock for its events."""

    __version__ = '13.6.0'

    def __init__(self):
        self.types = []
        self.cuda = types.SimpleNamespace(
            Event=lambda: types.SimpleNamespace(record=lambda: None, synchronize=lambda: None),
            get_elapsed_time=lambda first, last: 250.0,
        )
        blas = types.SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7, in_use=0)
        blas.get_compute_type = lambda dtype: blas.in_use
        blas.set_compute_type = lambda dtype, kind: setattr(blas, 'in_use', kind)
        self._core = types.SimpleNamespace(_routines_linalg=blas)

    def matmul(self, *matrices):
        self.types.append((*(matrix.dtype for matrix in matrices), self._core._routines_linalg.in_use))
        return np.matmul(*matrices)

    def __getattr__(self, name):
        return getattr(np, name)


def test_a_gpu_is_timed_by_its_events(kernels):
    xp, calls = FakeCuPy(), []
    case = kernels.Case('a', [lambda: calls.append(0), lambda: calls.append(1)], 1000)
    row = kernels.measure(case, xp, 1e6, runs=3)
    assert row['seconds'] == 0.25 / 8 and row['rate'] == 32000 and row['of_copy'] == 0.032
    assert calls == [0, 1] * 16  # four calls of each in a run, and one run before


@pytest.mark.parametrize(
    ('precision', 'expected'),
    [
        ('fp32', (np.float32, np.float32, 1)),
        ('tf32', (np.float32, np.float32, 7)),
        ('fp16', (np.float16, np.float16, 1)),
    ],
)
def test_the_ceiling_multiplies_in_the_precision_itself(kernels, precision, expected):
    """No conversion is timed, and CuPy multiplies as before afterwards."""
    from machine_ceiling import matmul_flops

    xp = FakeCuPy()
    with cudnn_frontend.using_precision(precision):
        assert matmul_flops(xp) == 2 * 16**3 / 0.25
    first, second, compute_type = expected
    assert set(xp.types) == {(np.dtype(first), np.dtype(second), compute_type)}
    assert xp._core._routines_linalg.in_use == 0


def test_bfloat16_has_a_ceiling_where_cupy_knows_it(kernels, monkeypatch):
    import machine_ceiling

    xp = FakeCuPy()
    with cudnn_frontend.using_precision('bf16'):
        assert machine_ceiling.matmul_flops(xp) is None
        xp.__version__ = '14.2.0'
        monkeypatch.setattr(machine_ceiling.importlib.util, 'find_spec', lambda name: None)
        assert machine_ceiling.matmul_flops(xp) is None
        monkeypatch.setattr(machine_ceiling.importlib.util, 'find_spec', lambda name: name == 'ml_dtypes')
        monkeypatch.setattr(
            machine_ceiling.importlib, 'import_module', lambda name: types.SimpleNamespace(bfloat16=np.float16)
        )
        assert machine_ceiling.matmul_flops(xp) == 2 * 16**3 / 0.25
    assert {dtypes[:2] for dtypes in xp.types} == {(np.dtype('f2'), np.dtype('f2'))}


def test_a_copy_counts_what_is_read_and_written(kernels):
    from machine_ceiling import copy_bandwidth

    assert copy_bandwidth(FakeCuPy()) == 2 * (1 << 20) / 0.25
    assert copy_bandwidth(np) > 0


def test_gpus_that_are_not_there(kernels, capsys):
    assert kernels.main(['--gpu', '99']) == 1
    assert 'GPU 99 does not exist' in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        kernels.main(['--runs', '0'])
    assert error.value.code == 2
