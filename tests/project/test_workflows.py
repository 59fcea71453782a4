"""The workflows of GitHub Actions run what the project has, on the versions of Python that it supports."""

import re
import shlex

import pytest
import yaml

from tests.compat.test_matrix import VERSIONS

WORKFLOWS = ('ci.yml', 'release.yml')
#: Actions and their major versions; all are of GitHub and run on Node 24.
ACTIONS = {
    'actions/checkout@v6',
    'actions/setup-python@v6',
    'actions/upload-artifact@v6',
    'actions/download-artifact@v7',
}
#: The newest Python, for which a package still lacks a wheel.
EXPERIMENTAL = '3.15'


@pytest.fixture(scope='module')
def workflows(root):
    folder = root / '.github' / 'workflows'
    assert {path.name for path in folder.iterdir()} == set(WORKFLOWS)
    return {name: yaml.safe_load((folder / name).read_text(encoding='utf-8')) for name in WORKFLOWS}


def jobs(workflows):
    return [
        (f'{name}: {job}', content) for name, workflow in workflows.items() for job, content in workflow['jobs'].items()
    ]


def steps(workflows):
    """Yield the job's name, the job and the step of every step."""
    for name, job in jobs(workflows):
        for step in job['steps']:
            yield name, job, step


def commands(workflows):
    """Yield the job's name and each line that a step runs, also those in a matrix."""
    for name, job, step in steps(workflows):
        if step.get('run') == '${{ matrix.command }}':
            for row in job['strategy']['matrix']['include']:
                yield name, row['command']
        elif 'run' in step:
            yield from ((name, line) for line in step['run'].splitlines())


def test_the_token_can_only_read_but_for_the_release(workflows):
    for name, workflow in workflows.items():
        assert workflow['permissions'] == {'contents': 'read'}, name
    assert [(name, job['permissions']) for name, job in jobs(workflows) if 'permissions' in job] == [
        ('release.yml: publish', {'contents': 'write'})
    ]
    publish = workflows['release.yml']['jobs']['publish']
    assert [step.get('uses') for step in publish['steps']] == ['actions/download-artifact@v7', None]
    checkouts = [step for _, _, step in steps(workflows) if 'checkout' in step.get('uses', '')]
    assert checkouts and all(step['with'] == {'persist-credentials': False} for step in checkouts)


def test_jobs_end_and_older_runs_are_cancelled(workflows):
    for name, job in jobs(workflows):
        assert 0 < job['timeout-minutes'] <= 180, name
    assert all('concurrency' in workflow for workflow in workflows.values())


def test_actions_have_known_versions(workflows):
    assert {step['uses'] for _, _, step in steps(workflows) if 'uses' in step} == ACTIONS


def test_jobs_that_others_need_exist(workflows):
    for workflow in workflows.values():
        for job in workflow['jobs'].values():
            assert job.get('needs') is None or job['needs'] in workflow['jobs']


def test_make_targets_and_scripts_exist(root, workflows):
    targets = set(re.findall(r'^([\w-]+):', (root / 'Makefile').read_text(), re.MULTILINE))
    found = set()
    for name, line in commands(workflows):
        words = shlex.split(line, comments=True)
        for previous, word in zip(['', *words], words, strict=False):
            if previous == 'make':
                assert word in targets, f'{name}: {line}'
                found.add(word)
            elif re.fullmatch(r'(scripts|tests|docs|modelfiles)/[\w/.-]+', word):
                assert (root / word).exists(), f'{name}: {line}'
                found.add(word)
    assert {'lint', 'test', 'test-slow', 'docs', 'dist', 'scripts/fetch_golden.py', 'scripts/release_notes.py'} <= found


def python_versions(job):
    return job['strategy']['matrix']['python']


def test_all_supported_versions_of_python_are_tested(root, workflows):
    """The list of the matrix is that of the slow tests, of the classifiers and of requires-python."""
    checks = workflows['ci.yml']['jobs']
    stable = [version for version in VERSIONS if version != EXPERIMENTAL]
    assert python_versions(checks['tests']) == python_versions(checks['oldest']) == stable
    (extra,) = checks['tests']['strategy']['matrix']['include']
    assert extra == {'python': EXPERIMENTAL, 'experimental': True}
    project = (root / 'pyproject.toml').read_text(encoding='utf-8')
    oldest, limit = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', project, re.MULTILINE).groups()
    supported = {f'3.{minor}' for minor in range(int(oldest), int(limit))}
    assert {*stable, EXPERIMENTAL} >= supported >= set(stable)
    classifiers = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project))
    assert classifiers <= {*stable, EXPERIMENTAL} and (not classifiers or classifiers >= set(stable))


def test_versions_of_python_are_texts(workflows):
    """YAML reads 3.10 without quotes as the number 3.1."""
    versions = [step['with']['python-version'] for _, _, step in steps(workflows) if 'python' in step.get('uses', '')]
    for _, job in jobs(workflows):
        versions += job.get('strategy', {}).get('matrix', {}).get('python', [])
    assert len(versions) > 10 and all(isinstance(version, str) for version in versions)


def test_the_oldest_environment_is_a_test_of_its_name(workflows):
    """The words of ``-k`` select ``test_package_on[3.12-oldest]``."""
    (command,) = [line for name, line in commands(workflows) if name == 'ci.yml: oldest' and 'pytest' in line]
    assert command.endswith('tests/compat/test_matrix.py -k "oldest and $VERSION"')


def test_systems_without_a_maintainer_do_not_block(workflows):
    checks = workflows['ci.yml']['jobs']
    assert checks['systems']['continue-on-error'] is True
    assert checks['systems']['strategy']['matrix']['system'] == ['macos-latest', 'windows-latest']
    assert {name for name, job in checks.items() if 'continue-on-error' in job} == {'systems', 'tests'}


def test_slow_tests_run_on_a_schedule_only(workflows):
    checks = workflows['ci.yml']
    assert 'schedule' in checks[True] and 'pull_request' in checks[True]  # YAML reads the key "on" as true
    assert "github.event_name == 'schedule'" in checks['jobs']['slow']['if']
    assert workflows['release.yml'][True] == {'push': {'tags': ['v*']}}
