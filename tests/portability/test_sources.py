"""The package's sources use nothing that only one system has, without a way for the others."""

import ast
import re
import subprocess
import sys

import pytest

#: Modules that Windows lacks; they are imported within ``try``.
POSIX_MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'}
#: Modules that only Windows has.
WINDOWS_MODULES = {'msvcrt', 'winreg', '_winapi'}
#: Functions that start, kill or measure processes in ways of which Windows has none.
POSIX_CALLS = {
    *('os.fork', 'os.forkpty', 'os.killpg', 'os.setsid', 'os.mkfifo', 'os.uname', 'os.getuid', 'os.geteuid'),
    *('os.getloadavg', 'os.symlink', 'os.link', 'os.chmod', 'os.umask', 'os.nice', 'signal.alarm', 'signal.pause'),
}
#: Folders of POSIX systems, and the modules that may name files in them: they do without, where there are none.
SYSTEM_FOLDERS = re.compile(r'/(?:dev|proc|sys|tmp|etc|usr|var|home)/')
SYSTEM_FILES = {
    'cli/doctor/findings.py',  # graphics cards on the PCI bus
    'datasets/inspection/machine.py',  # the memory limit of a container
    'io/atomic_file.py',  # /dev/stdout and open files
    'media/video_source.py',  # files whose name is not UTF-8
}
#: Uses of attributes that Windows lacks (mypy with ``--platform win32``), each behind a condition.
GUARDED = {
    'cli/doctor/children.py': {'SIGKILL', 'killpg'},
    'datasets/inspection/machine.py': {'sysconf'},
    'io/atomic_file.py': {'fchmod', 'fchown'},
    'io/cleaner.py': {'LOCK_EX', 'LOCK_NB', 'flock'},
    'io/temporary_file.py': {'LOCK_EX', 'LOCK_NB', 'flock'},
    'training/worker_pool.py': {'SIG_BLOCK', 'SIG_SETMASK'},
}


#: What a construct that is found contains; parsing the other files would take seconds.
SUSPICIOUS = re.compile(
    rf'\b(?:{"|".join(sorted(POSIX_MODULES | WINDOWS_MODULES))})\b|{"|".join(map(re.escape, sorted(POSIX_CALLS)))}'
    rf'|\bopen\(|(?:read|write)_text\(|text=|universal_newlines|os\.path\.join|multiprocessing'
    rf'|{SYSTEM_FOLDERS.pattern}'
)


def find_system_dependent(source):
    """Return ``line: construct`` for what works on one system only."""
    if not SUSPICIOUS.search(source):
        return []
    tree = ast.parse(source)
    guarded = {id(node) for block in ast.walk(tree) if is_guard(block) for node in ast.walk(block)}
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or '']
            found += [(node, name) for name in names if name in POSIX_MODULES | WINDOWS_MODULES]
        elif isinstance(node, ast.Call):
            reasons = describe_call(node)
            found += [(node, reason) for reason in reasons if reason not in POSIX_CALLS or id(node) not in guarded]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            found += [(node, node.value)] if SYSTEM_FOLDERS.match(node.value) else []
    return [f'{node.lineno}: {reason}' for node, reason in found]


def is_guard(node):
    """Return whether a block has another way for systems that lack something."""
    if isinstance(node, ast.If):
        return re.search(r'\bos\.name\b|\bsys\.platform\b|\bhasattr\(', ast.unparse(node.test)) is not None
    return isinstance(node, ast.Try)


def describe_call(call):
    """Yield what is wrong with a call."""
    name, keywords = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
    if name in POSIX_CALLS:
        yield name
    if name == 'open' and 'encoding' not in keywords and 'b' not in mode_of(call):
        yield 'open without encoding'
    if name.endswith(('.read_text', '.write_text')) and 'encoding' not in keywords and not call.args[1:]:
        yield f'{name} without encoding'
    is_text = {'text', 'universal_newlines'} & keywords and 'encoding' not in keywords
    if name in ('subprocess.run', 'subprocess.Popen') and is_text:
        yield 'the output of a program as text without encoding'
    if name == 'os.path.join' and any(isinstance(a, ast.Constant) and '/' in str(a.value) for a in call.args):
        yield 'os.path.join with a slash'
    if name in ('multiprocessing.get_context', 'multiprocessing.set_start_method') and ast.unparse(call).count('fork'):
        yield 'a process that is forked'


def mode_of(call):
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == 'mode')]
    return next((ast.literal_eval(mode) if isinstance(mode, ast.Constant) else 'b' for mode in modes), 'r')


@pytest.mark.parametrize(
    ('source', 'found'),
    [
        ('import fcntl', ['1: fcntl']),
        ('from resource import getrusage', ['1: resource']),
        ('try:\n    import fcntl\nexcept ImportError:\n    pass', []),
        ('open(path)', ['1: open without encoding']),
        ("open(path, 'w', newline='')", ['1: open without encoding']),
        ("open(path, 'rb')\nopen(path, mode='wb')\nopen(path, encoding='utf-8')", []),
        ('path.read_text()', ['1: path.read_text without encoding']),
        ("Path(x).write_text(text, 'utf-8')\nread_text(path)", []),
        ('subprocess.run(x, text=True)', ['1: the output of a program as text without encoding']),
        ('os.fork()', ['1: os.fork']),
        ("if os.name == 'posix':\n    os.killpg(1, 9)\nif x:\n    os.killpg(1, 9)", ['4: os.killpg']),
        ("os.path.join(folder, 'a/b')", ['1: os.path.join with a slash']),
        ("folder = '/tmp/x'", ['1: /tmp/x']),
        ('"""/tmp is a folder."""', []),
        ("multiprocessing.get_context('fork')", ['1: a process that is forked']),
    ],
)
def test_system_dependent_constructs_are_found(source, found):
    assert find_system_dependent(source) == found


def test_the_package_and_the_programs_contain_none(root):
    paths = [*root.glob('mask_rcnn/**/*.py'), *root.glob('utils/*.py'), *root.glob('*.py')]
    paths += [root / 'scripts' / name for name in ('compile_kernels.py', 'fetch_weights.py', 'run_demo.py')]
    found = []
    for path in sorted(paths):
        name = path.relative_to(root).as_posix().removeprefix('mask_rcnn/')
        lines = find_system_dependent(path.read_text(encoding='utf-8'))
        found += [f'{name}:{line}' for line in lines if name not in SYSTEM_FILES or not SYSTEM_FOLDERS.search(line)]
    assert len(paths) > 400 and found == []


@pytest.mark.slow
@pytest.mark.parametrize(('platform', 'allowed'), [('win32', GUARDED), ('darwin', {})])
def test_the_package_uses_attributes_of_all_systems(root, tmp_path, platform, allowed):
    """Python's type stubs state the systems that have a function."""
    command = [sys.executable, '-m', 'mypy', '--platform', platform, '--cache-dir', str(tmp_path), 'mask_rcnn']
    done = subprocess.run(command, cwd=root, capture_output=True, encoding='utf-8', check=False)
    found = {}
    for line in done.stdout.splitlines():
        if match := re.fullmatch(r'mask_rcnn/(.*):\d+: error: Module has no attribute "(\w+)".*', line):
            found.setdefault(match[1], set()).add(match[2])
    assert found == allowed, done.stdout
    assert 'errors in' in done.stdout or 'Success' in done.stdout, done.stderr
