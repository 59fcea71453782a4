"""Items that several processes share, with threads as processes."""

import sys
import time
from types import SimpleNamespace

import pytest

from mask_rcnn.training import distributed, sharing
from mask_rcnn.training.distributed import Communicator, ProcessError, run_together
from tests.support.process_threads import Processes


def share(communicator, n, block=1, *, compute=lambda i: i * i, consume=lambda result: None):
    """Return the results that a process gets, and the items that it has computed."""
    computed, results = [], []

    def compute_items(indices):
        for i in indices:
            computed.append(i)
            yield compute(i)

    with communicator.map_in_order(compute_items, n, block=block) as merged:
        for result in merged:
            consume(result)
            results.append(result)
    return results, computed


def squares(n):
    return [i * i for i in range(n)]


@pytest.mark.parametrize(('size', 'n', 'block'), [(2, 5, 1), (3, 0, 1), (3, 1, 1), (3, 10, 1), (3, 10, 4), (2, 300, 1)])
def test_process_0_gets_all_results_in_order(size, n, block):
    outputs = Processes(size).run(lambda communicator: share(communicator, n, block if communicator.rank == 0 else 99))
    assert outputs[0][0] == squares(n) and all(results == [] for results, _ in outputs[1:])
    for rank, (_, computed) in enumerate(outputs):
        assert computed == [i for i in range(n) if i // block % size == rank]


def test_a_single_process_computes_everything():
    assert share(Communicator(), 4) == (squares(4), [0, 1, 2, 3])


def test_a_process_computes_a_limited_number_of_results_ahead(monkeypatch):
    """Process 0 is slower and then faster; both wait for each other."""
    monkeypatch.setattr(sharing, '_MAX_AHEAD', 5)
    for slow in (0, 1):
        n_computed = [0, 0]

        def compute(i, slow=slow, n_computed=n_computed):
            if i % 2 == slow:
                time.sleep(0.002)
            n_computed[i % 2] += 1
            assert slow == 1 or n_computed[1] <= n_computed[0] + 5 + 3 + 2  # 3 messages are on their way
            assert slow == 0 or n_computed[0] <= n_computed[1] + 5 + 2
            return i

        outputs = Processes(2).run(lambda communicator, compute=compute: share(communicator, 100, compute=compute))
        assert outputs[0][0] == list(range(100))


def fail_at(*items):
    def compute(i):
        if i in items:
            raise OSError(2, 'No such file or directory', f'{i}.jpg')
        return i * i

    return compute


@pytest.mark.parametrize(('items', 'rank'), [((4,), 1), ((3,), 0), ((4, 3), 0), ((8, 6, 4), 1), ((9,), 0)])
def test_the_first_item_that_fails_ends_the_work_of_all(items, rank):
    seen = []

    def act(communicator):
        consume = seen.append if communicator.rank == 0 else None
        with pytest.raises(ProcessError) as error:
            run_together(communicator, lambda comm: share(comm, 10, compute=fail_at(*items), consume=consume))
        return str(error.value), run_together(communicator, lambda comm: share(comm, 7)[0])  # still in step

    line = f'process {rank}: {min(items)}.jpg: No such file or directory'
    assert Processes(3).run(act) == [(line, squares(7)), (line, []), (line, [])]
    assert seen == squares(min(items))


@pytest.mark.parametrize('others_fail', [False, True])
def test_an_error_of_process_0_about_a_result_ends_the_work_of_all(others_fail):
    def consume(result):
        if result == 9:
            raise ValueError('image 3 has been added before')

    def act(communicator):
        compute = fail_at(4, 5) if others_fail else fail_at()
        with pytest.raises(ProcessError) as error:
            run_together(communicator, lambda comm: share(comm, 1000, compute=compute, consume=consume))
        return str(error.value).split(' (at')[0], run_together(communicator, lambda comm: share(comm, 7)[0])

    line = 'process 0: ValueError: image 3 has been added before'
    outputs = Processes(3).run(act)
    assert outputs[0] == (line, squares(7))
    assert all(results == [] for _, results in outputs[1:])
    assert others_fail or {error for error, _ in outputs} == {line}


def test_process_0_prints_the_lines_about_an_item_before_its_result():
    events, pending = [], {0: [], 1: []}

    def act(communicator):
        lines = pending[communicator.rank]

        def take():
            text = ''.join(lines)
            lines.clear()
            return text

        communicator.notes = SimpleNamespace(take=take, print=lambda text: text and events.append(text))
        lines.append('about the preparation')

        def compute(i):
            lines.append(f'about {i}')
            return i

        share(communicator, 4, compute=compute, consume=events.append)

    assert Processes(2).run(act) == [None, None]
    assert events == [0, 'about 1', 1, 2, 'about 3', 3]


def test_cpus_are_divided_among_the_processes_that_may_use_them(monkeypatch):
    """Eight CPUs: two processes are bound to the same four, one has the other four."""
    monkeypatch.setitem(sys.modules, 'mpi4py', SimpleNamespace(MPI=SimpleNamespace(COMM_TYPE_SHARED=0)))
    bound = [frozenset(range(4)), frozenset(range(4)), frozenset(range(4, 8))]
    communicator = object.__new__(distributed._MPICommunicator)
    for cpus, expected in ((bound[0], 2), (bound[2], 4)):
        monkeypatch.setattr(distributed, 'available_cpus', lambda cpus=cpus: cpus)
        communicator._mpi = SimpleNamespace(Split_type=lambda kind: SimpleNamespace(allgather=lambda cpus: bound))
        assert communicator.n_cpus() == expected
    everywhere = [frozenset({0, 1})] * 3
    communicator._mpi = SimpleNamespace(Split_type=lambda kind: SimpleNamespace(allgather=lambda cpus: everywhere))
    monkeypatch.setattr(distributed, 'available_cpus', lambda: everywhere[0])
    assert communicator.n_cpus() == 1
