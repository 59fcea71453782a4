"""The Dockerfile, as far as it can be read without a daemon that builds it."""

import fnmatch
import re
import shlex

import pytest

BUILD, FINAL = 'build', ''


@pytest.fixture(scope='module')
def instructions(root):
    """The stage, the name and the arguments of each instruction."""
    text = re.sub(r'^\s*#.*\n', '', (root / 'Dockerfile').read_text(encoding='utf-8'), flags=re.MULTILINE)
    found, stage = [], None
    for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
        if line.strip():
            name, _, arguments = line.partition(' ')
            if name == 'FROM':
                stage = arguments.partition(' AS ')[2]
            found.append((stage, name, arguments))
    return found


@pytest.fixture(scope='module')
def ignored(root):
    lines = (root / '.dockerignore').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def arguments(instructions, stage, name):
    return [arguments for found, instruction, arguments in instructions if (found, instruction) == (stage, name)]


def is_ignored(path, patterns):
    """Return whether Docker leaves a path of the checkout, or a folder that contains it, out of the build."""
    parts = path.split('/')
    return any(
        fnmatch.fnmatch(parts[-1], pattern[3:])
        if pattern.startswith('**/')
        else any(fnmatch.fnmatch('/'.join(parts[: n + 1]), pattern) for n in range(len(parts)))
        for pattern in patterns
    )


def test_the_image_runs_the_command_as_an_ordinary_user(instructions):
    assert arguments(instructions, FINAL, 'ENTRYPOINT') == ['["mask-rcnn"]']
    (user,) = arguments(instructions, FINAL, 'USER')
    assert re.fullmatch(r'[1-9]\d*:[1-9]\d*', user)  # numbers: Kubernetes checks that it is not root
    added = next(line for line in arguments(instructions, FINAL, 'RUN') if 'useradd' in line)
    assert f'--uid {user.partition(":")[0]} ' in added
    assert [name for stage, name, _ in instructions if stage == FINAL].index('USER') > 0


def test_the_last_stage_installs_nothing(instructions):
    """So pip, its cache and the source stay out of the image."""
    assert not [line for line in arguments(instructions, FINAL, 'RUN') if re.search(r'\b(pip|apt|apt-get)\b', line)]
    copies = arguments(instructions, FINAL, 'COPY')
    assert copies and all(line.startswith(f'--from={BUILD} ') for line in copies)
    made = ' '.join(arguments(instructions, BUILD, 'RUN'))
    for line in copies:
        source, target = line.split()[-2:]
        assert source == target and f'{source}' in made  # environments and kernels contain their paths


def test_both_stages_have_the_same_python(root, instructions):
    bases = [line.partition(' AS ')[0] for _, name, line in instructions if name == 'FROM']
    assert set(bases) == {'python:${PYTHON}-slim'} and len(bases) == 2
    (version,) = [line.partition('=')[2] for stage, name, line in instructions if (stage, name) == (None, 'ARG')]
    requires = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', (root / 'pyproject.toml').read_text(), re.M)
    assert int(requires[1]) <= int(version.partition('.')[2]) < int(requires[2])


def test_the_extras_exist(root, instructions):
    text = (root / 'pyproject.toml').read_text(encoding='utf-8')
    section = re.search(r'^\[project\.optional-dependencies\]\n(.*?)^\[', text, re.MULTILINE | re.DOTALL)[1]
    extras = set(re.findall(r'^([\w-]+) = \[', section, re.MULTILINE))
    default = next(line for line in arguments(instructions, BUILD, 'ARG') if line.startswith('EXTRAS='))
    shown = re.findall(r'--build-arg EXTRAS=([\w,]+)', (root / 'Dockerfile').read_text())
    assert shown
    for names in (default.partition('=')[2], *shown):
        assert set(names.split(',')) <= extras


def test_the_files_of_the_build_are_in_the_context(root, instructions, ignored):
    assert arguments(instructions, BUILD, 'COPY') == ['. .']
    words = shlex.split(' '.join(arguments(instructions, BUILD, 'RUN')))
    used = {word for word in words if re.fullmatch(r'[\w/]+\.(txt|py)', word)}
    assert {'constraints.txt', 'scripts/compile_kernels.py'} <= used
    built_from = ('pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'build_backend/backend.py')
    for path in (*used, *built_from, 'build_backend/dependencies.txt', 'mask_rcnn/cli/__init__.py'):
        assert (root / path).is_file() and not is_ignored(path, ignored), path


def test_what_the_image_does_not_need_is_left_out(ignored):
    left_out = ['.git/config', '.venv/bin/python', '.golden/README.md', 'tests/conftest.py', 'docs/index.md']
    left_out += [
        'modelfiles/x.npz',
        'COCO/x.jpg',
        'mask_rcnn/cli/__pycache__',
        'mask_rcnn/x.pyc',
        'output_scenes/x.png',
    ]
    assert [path for path in left_out if not is_ignored(path, ignored)] == []


def test_caches_are_in_the_folder_that_any_user_may_write(instructions):
    (environment,) = arguments(instructions, FINAL, 'ENV')
    variables = dict(word.split('=', 1) for word in environment.split())
    assert {variables[name] for name in ('NUMBA_CACHE_DIR', 'CUPY_CACHE_DIR', 'MPLCONFIGDIR')} == {
        *('/cache/numba', '/cache/cupy', '/cache/matplotlib')
    }
    assert arguments(instructions, BUILD, 'ENV') == [f'NUMBA_CACHE_DIR={variables["NUMBA_CACHE_DIR"]}']
    assert any('chmod -R a+rwX /cache' in line for line in arguments(instructions, BUILD, 'RUN'))
