"""The reliability checks at small size: what they find, and that the program passes them."""

import faulthandler
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='the checks read /proc')


@pytest.fixture(autouse=True)
def _scripts(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'scripts' / 'reliability'))


@pytest.fixture
def load():
    return importlib.import_module


def _kill(path):
    faulthandler.disable()  # pytest's would write the stack
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(path):
    time.sleep(600)


def _write_line(path):
    os.write(2, b'libpng error: IDAT: CRC error\n')


def _write_file(path):
    open(path.with_name('canary'), 'w').close()


def _start_process(path):
    os.system('true')


def _two_lines(path):
    raise ValueError('one\ntwo')


def _escape(path):
    raise ValueError('a\x1b[31m')


def _unexpected(path):
    raise KeyError('x')


def _occupy(path):
    np.ones(16_000_000)


def _refuse(path):
    raise ValueError(f'{path}: is damaged')


def _accept(path):
    pass


#: A reader -> the outcome's kind and the beginning of its text.
READERS = [
    (_accept, 'accepted', ''),
    (_refuse, 'refused', ''),
    (_kill, 'finding', 'the process ended with SIGSEGV'),
    (_write_line, 'finding', 'writes to the console: libpng'),
    (_write_file, 'finding', 'runs open'),
    (_start_process, 'finding', 'runs os.system'),
    (_two_lines, 'finding', 'an error of several lines'),
    (_escape, 'finding', 'an error with control characters'),
    (_unexpected, 'finding', 'KeyError'),
    (_occupy, 'finding', 'occupies'),
    (_accept, 'accepted', ''),
]


def test_every_kind_of_finding_is_found(load, tmp_path):
    def task(number):
        return tmp_path / 'file', READERS[number][0], (ValueError,)

    outcomes = dict(
        load('workers').run_cases(
            task, range(len(READERS)), warm_up=lambda: None, jobs=2, seconds=120, max_memory=100 << 20
        )
    )
    assert len(outcomes) == len(READERS)
    for number, (_, kind, text) in enumerate(READERS):
        assert outcomes[number].kind == kind and outcomes[number].text.startswith(text), READERS[number]


def test_hanging_readers_are_replaced(load, tmp_path):
    outcomes = dict(
        load('workers').run_cases(
            lambda number: (tmp_path / 'file', _hang, ()),
            range(3),
            warm_up=lambda: None,
            jobs=2,
            seconds=0.5,
            max_memory=100 << 20,
        )
    )
    assert {number: outcome.text for number, outcome in outcomes.items()} == dict.fromkeys(
        range(3), 'not finished after 0.5 s'
    )


def _collect_and_occupy(path):
    gc.collect()
    np.ones(16_000_000)


def test_memory_of_the_parent_hides_no_finding(load, tmp_path):
    """Neither garbage, which is released while a file is read, nor free blocks of the heap, which are used again."""
    garbage = [np.ones(24_000_000)]
    garbage.append(garbage)
    blocks = [np.ones(1000) for _ in range(40_000)]
    end_of_the_heap = np.ones(1000)
    gc.disable()
    try:
        del garbage, blocks
        results = load('workers').run_cases(
            lambda number: (tmp_path / 'file', _collect_and_occupy, ()),
            range(1),
            warm_up=lambda: None,
            jobs=1,
            seconds=120,
            max_memory=100 << 20,
        )
        assert [outcome.text[:8] for _, outcome in results] == ['occupies']
    finally:
        gc.enable()
    assert end_of_the_heap.all()


def test_mutations_depend_on_the_seed_only(load):
    mutations = load('mutations')
    data = json.dumps({'a': [1, {'b': 'text'}], 'c': 0.5}).encode()
    for mutation in (*mutations.BYTE_MUTATIONS, mutations.mutate_json, mutations.mutate_tiff, mutations.mutate_jpeg):
        results = [[mutation(data, random.Random(seed)) for seed in range(20)] for _ in range(2)]
        assert results[0] == results[1]
        assert len(set(results[0])) > 1, mutation


def test_intact_files_are_read(load, tmp_path):
    readers, samples = load('readers'), load('data_samples')
    samples.write_images(tmp_path)
    refused = {}
    for kind, make in samples.MAKERS.items():
        for name, (data, _) in make().items():
            if name.endswith('.set'):  # each runs a network
                continue
            (tmp_path / f'intact-{name}').write_bytes(data)
            try:
                readers.READERS[kind](tmp_path / f'intact-{name}')
            except readers.EXPECTED_ERRORS[kind] as error:
                refused[name] = str(error)
    # Read with keypoints, which it does not have.
    assert list(refused) == ['instances.json'] and "no category has 'keypoints'" in refused['instances.json']


def test_memory_that_grows_is_found(load, monkeypatch):
    soak = load('soak')
    monkeypatch.setattr(soak, 'gc', types.SimpleNamespace(collect=lambda: None))  # the memory is not real
    for step in (0, 5):
        memory = soak.Memory(20)
        for i in range(1, 21):
            monkeypatch.setattr(soak, 'resident_megabytes', lambda i=i, step=step: 100 + step * i + i % 2)
            memory.step(i)
        assert memory.growth() == pytest.approx(14 * step, abs=1)


@pytest.mark.usefixtures('one_blas_thread')
def test_predictions_in_threads_equal_the_serial_ones(load):
    n, findings = load('soak').predict_in_threads(4, 0.3)
    assert n > 0 and findings == []


def test_the_table_replaces_that_of_the_page(load, tmp_path):
    run_all = load('run_all')
    report = {'check': 'a', 'done': '3 | 4', 'outcome': 'x', 'findings': ['y'], 'skipped': ['z'], 'seconds': 90}
    table = run_all.make_table([report])
    assert table.splitlines()[2] == '| a | 3 / 4 | x; skipped: z | 1 | 1.5 |'
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{run_all.BEGIN}\nold\n{run_all.END}\nafter\n')
    run_all.write_page(page, table)
    text = page.read_text()
    assert 'old' not in text and table in text and text.startswith('before') and text.endswith('after\n')


def test_the_page_has_a_place_for_the_table(load, root):
    run_all = load('run_all')
    text = (root / 'docs' / 'reliability.md').read_text()
    assert text.count(run_all.BEGIN) == text.count(run_all.END) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'words',
    [
        ['mutate.py', '--n', '600', '--jobs', '2'],
        ['kill.py', '--kills', '6'],
        ['soak.py', '--predictions', '300', '--updates', '100'],
        ['disk.py'],
        ['clock.py'],
    ],
    ids=lambda words: words[0],
)
def test_the_program_passes(words, root, tmp_path):
    script = root / 'scripts' / 'reliability' / words[0]
    done = subprocess.run([sys.executable, script, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
