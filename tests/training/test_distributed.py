"""Several processes: gradients and values are averaged, and a failing process ends the others."""

import json
import sys

import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.ops.runtime.device import cuda_device_count
from mask_rcnn.training.distributed import Communicator, DistributedError, _MPICommunicator, create_communicator
from tests.support import distributed_cases
from tests.support.mpi import run_processes


def launch(cases, folder, root, n_processes=2):
    """Run cases of distributed_cases.py in several processes; return the completed launcher."""
    return run_processes([distributed_cases.__file__, ','.join(cases), str(folder)], root, n_processes)


@pytest.fixture
def run(tmp_path, root):
    """Run a case in several processes; return the completed launcher."""

    def run_case(case, n_processes=2):
        return launch([case], tmp_path, root, n_processes)

    return run_case


@pytest.fixture(scope='module')
def output(tmp_path_factory, root):
    """The folder to which two processes write the results of all cases that need not end them."""
    folder = tmp_path_factory.mktemp('output')
    no_gpu = [] if cuda_device_count() > 0 else ['no_gpu']
    done = launch(['no_name', *no_gpu, 'gradients', 'odd_gradients', 'collectives'], folder, root)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def results(output):
    """Return the result of each process in a case."""

    def read_results(case):
        return [json.loads((output / f'{case}_{rank}.json').read_text()) for rank in (0, 1)]

    return read_results


@pytest.fixture
def creation_errors(output):
    """Return the different errors of the processes in a case that cannot create a communicator."""

    def read_errors(case):
        return {path.read_text() for path in output.glob(f'{case}_*.txt')}

    return read_errors


def test_two_processes_train_like_one(results):
    alone, losses = distributed_cases.train(
        distributed_cases.Network(0), create_communicator(None), distributed_cases.batches()
    )
    start = {path: param.array for path, param in distributed_cases.Network(0).namedparams()}
    for result in results('gradients'):
        np.testing.assert_allclose(result['losses'], losses, rtol=1e-6)
        for path, values in alone.items():
            np.testing.assert_allclose(result['params'][path], values, rtol=1e-5, atol=1e-7, err_msg=path)
        # Both processes have the frozen layer and the statistics of process 0.
        np.testing.assert_array_equal(np.float32(result['params']['/frozen/W']), start['/frozen/W'])
        np.testing.assert_array_equal(np.float32(result['avg_mean']), distributed_cases.Network(0).norm.avg_mean)
        assert result['N'] == 0
    assert not np.allclose(alone['/linear/W'], start['/linear/W'], rtol=1e-3)


def test_gradients_that_are_not_contiguous_or_exist_in_one_process_only(results):
    first, second = results('odd_gradients')
    expected = np.arange(80).reshape(5, 16) + 1
    for result in (first, second):
        np.testing.assert_array_equal(result['linear'], expected)
        np.testing.assert_allclose(result['rare'], np.array(second['rare_before']) / 2, rtol=1e-6)
    assert first['rare_before'] is None
    assert (first['frozen'], second['frozen']) == (0, 1)  # unchanged


def test_values_and_objects_are_exchanged(results):
    first, second = results('collectives')
    assert first['identity'] == [0, 2, 0, True] and second['identity'] == [1, 2, 1, False]
    assert first['mean'] == second['mean'] == {'a': 0.5, 'b': 2.0, 'c': 5.0}
    assert first['any'] == second['any'] == [True, False]
    assert first['gather'] == [{'rank': 0, 'scores': []}, {'rank': 1, 'scores': [0.5]}]
    assert second['gather'] is None
    assert first['broadcast'] == second['broadcast'] == ['from 0', None]
    assert first['avg_var'] == second['avg_var'] == [1.5] * 4
    assert (first['N'], second['N']) == (0, 1) and first['unchanged'] and second['unchanged']


@pytest.mark.parametrize(
    ('case', 'status', 'message'),
    [
        ('raises', 1, 'the disk is on fire'),
        pytest.param('exits', 3, 'process 1 of 2 failed', marks=pytest.mark.slow),
        pytest.param('killed', None, '', marks=pytest.mark.slow),
        pytest.param('different_models', 1, 'the processes have different models', marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails_ends_the_others(run, case, status, message):
    done = run(case)
    assert done.returncode == status if status else done.returncode != 0
    assert message in done.stderr


class Aborted(BaseException):
    """Raised in place of the end of the process."""


class MPI:
    """MPI's communicator of a process that fails."""

    def Abort(self, status):
        raise Aborted(status)


@pytest.fixture
def failing():
    """The communicator of process 1 of 2, which raises instead of ending all processes."""
    communicator = object.__new__(_MPICommunicator)
    communicator.rank, communicator.size, communicator._mpi = 1, 2, MPI()
    return communicator


@pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
        (OSError('the disk is on fire'), 1, 'OSError: the disk is on fire'),
        (SystemExit(3), 3, ''),
        (SystemExit('wrong option'), 1, 'wrong option'),
    ],
)
def test_the_error_of_a_process_is_written_and_is_the_status_of_all(failing, capsys, error, status, message):
    with pytest.raises(Aborted) as aborted, failing.guard():
        raise error
    assert aborted.value.args == (status,)
    errors = capsys.readouterr().err
    assert message in errors and errors.endswith('process 1 of 2 failed; ending all of them\n')
    assert ('Traceback' in errors) == isinstance(error, OSError)


@pytest.mark.parametrize('status', [None, 0])
def test_a_process_that_exits_without_an_error_does_not_end_the_others(failing, status):
    with pytest.raises(SystemExit), failing.guard():
        raise SystemExit(status)


def test_different_models_are_rejected(failing, monkeypatch):
    arrays = collect_arrays(distributed_cases.Network(0))
    monkeypatch.setattr(failing, 'broadcast_object', lambda obj: arrays)
    failing.broadcast(distributed_cases.Network(1))
    with pytest.raises(DistributedError, match='the processes have different models: the model of process 0'):
        failing.broadcast(L.Linear(2, 2))


@pytest.mark.skipif(cuda_device_count() > 0, reason='needs a machine without CUDA')
def test_nccl_needs_gpus(creation_errors):
    (message,) = creation_errors('no_gpu')
    assert message.startswith('communicator pure_nccl needs CUDA, CuPy and NCCL, which do not work on ')


@pytest.mark.gpu
def test_nccl_on_one_gpu(run, tmp_path):
    done = run('one_gpu', n_processes=1)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'one_gpu_0.json').read_text())
    np.testing.assert_allclose(result['linear'], result['before'], rtol=1e-6)
    assert not np.any(result['rare'])


def test_several_processes_need_a_name(creation_errors):
    assert creation_errors('no_name') == {
        '2 processes were started, but no communicator is named: add --communicator naive (CPUs) or pure_nccl (GPUs)'
    }


def test_a_launcher_of_another_mpi_is_detected(run, tmp_path):
    done = run('other_mpi', n_processes=1)
    assert done.returncode == 0, done.stderr
    (message,) = [path.read_text() for path in tmp_path.glob('*.txt')]
    assert message.startswith('2 processes were started, but MPI sees 1: the launcher and the library')


def test_models_on_the_wrong_device_are_rejected():
    communicator = object.__new__(_MPICommunicator)
    link = L.Linear(2, 2)
    communicator._name = 'pure_nccl'
    with pytest.raises(DistributedError, match='pure_nccl does not support models on CPUs; use naive'):
        communicator.mean_gradients(link)


# One process


def test_a_single_process_communicates_with_itself():
    communicator = create_communicator(None)
    assert type(communicator) is Communicator and communicator.is_main
    assert (communicator.rank, communicator.size, communicator.intra_rank) == (0, 1, 0)
    link = L.Linear(2, 2)
    link.W.grad = np.ones((2, 2), np.float32)
    communicator.broadcast(link)
    communicator.mean_gradients(link)
    communicator.mean_persistents(link)
    communicator.barrier()
    np.testing.assert_array_equal(link.W.grad, 1)
    assert communicator.mean({'a': np.float32(2), 'b': link.b[0]}) == {'a': 2.0, 'b': 0.0}
    assert communicator.any(True) is True and communicator.any(False) is False
    assert communicator.gather('x') == ['x'] and communicator.broadcast_object('x') == 'x'
    with pytest.raises(OSError, match='passes'), communicator.guard():
        raise OSError('passes')


def test_an_unknown_name_is_rejected():
    with pytest.raises(ValueError, match="naive, pure_nccl, not 'mpi'"):
        create_communicator('mpi')


def test_missing_mpi4py_is_reported(monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'chainermn']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mpi4py', None)
    with pytest.raises(DistributedError, match='need mpi4py and MPI.*mask-rcnn doctor') as caught:
        create_communicator('naive')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('variable', ['OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'MV2_COMM_WORLD_SIZE'])
def test_launchers_are_detected(monkeypatch, variable):
    monkeypatch.setenv(variable, '3')
    with pytest.raises(DistributedError, match='3 processes were started'):
        create_communicator(None)
