"""Read hostile files in a process that records its own actions."""

import json
import subprocess
import sys

from tests.support.environment import subprocess_environment

#: Loads every file of a folder and prints the outcome of each, the audit events in between, and the memory used.
WATCHED = """
import importlib, json, pathlib, sys
from mask_rcnn.weights.errors import WeightFileError
load = importlib.import_module('mask_rcnn.weights.READER').LOAD
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob('good*')):      # loads the codecs and lazy imports of the reader itself
    load(path)
def peak():
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))
ALLOWED = {'open', 'builtins.id', 'object.__getattr__', 'object.__setattr__', 'object.__delattr__'}
bad = sorted(folder.glob('bad*'))
events, outcomes, watching = [], {}, True
def hook(event, arguments):
    if watching and (event not in ALLOWED or event == 'open' and arguments[1] not in ('r', 'rb')):
        events.append(event)
sys.addaudithook(hook)
before = peak()
for path in bad:
    try:
        value = load(path)
        outcomes[path.name] = 'loaded ' + type(value).__name__
    except WeightFileError as error:
        outcomes[path.name] = str(error)
watching = False
print(json.dumps([events, outcomes, peak() - before]))
"""


def run_script(script, folder, root):
    """Run Python code in a process of its own in a folder."""
    return subprocess.run(
        [sys.executable, '-c', script, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=subprocess_environment(root),
        check=False,
    )


def watch(folder, root, reader='readers.safe_pickle.load'):
    """Load the files of a folder with a function of a module of weights, and return ``(outcomes, kilobytes)``.

    Fails if the process does anything except opening files for reading.
    """
    module, _, function = reader.rpartition('.')
    done = run_script(WATCHED.replace('READER', module).replace('LOAD', function), folder, root)
    assert done.returncode == 0 and not done.stderr, done.stderr
    events, outcomes, kilobytes = json.loads(done.stdout)
    assert events == []
    assert all(outcome.isprintable() for outcome in outcomes.values())
    return outcomes, kilobytes


def write_numbered(folder, good, bad):
    """Write files under the numbered names that :func:`watch` expects."""
    for kind, files in (('good', good), ('bad', bad)):
        for i, data in enumerate(files):
            (folder / f'{kind}{i:05}.pkl').write_bytes(data)
