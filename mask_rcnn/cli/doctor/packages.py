"""The sections on the installation: this program, the packages that it needs, and its optional parts."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata

import mask_rcnn
from mask_rcnn.cli.doctor.findings import DISTRIBUTION, Findings
from mask_rcnn.cli.doctor.report import Advice, Section, shorten

#: Module -> the name of its package in sentences.
NAMES = {
    'numpy': 'NumPy',
    'numba': 'Numba',
    'chainer': 'Chainer',
    'chainercv': 'ChainerCV',
    'cv2': 'OpenCV',
    'PIL': 'Pillow',
    'h5py': 'h5py',
    'matplotlib': 'Matplotlib',
    'pycocotools': 'pycocotools',
    'yaml': 'PyYAML',
    'filelock': 'filelock',
    'packaging': 'packaging',
}
_SHOWN = ('numpy', 'numba', 'chainer', 'chainercv', 'cv2', 'PIL', 'h5py')
#: Module -> the name of its distribution, where it differs.
_DISTRIBUTIONS = {'cv2': 'opencv-python-headless', 'PIL': 'pillow', 'yaml': 'pyyaml'}
#: Module -> the modules that it imports: if one of them is broken, it alone is reported.
_NEEDS = {
    **dict.fromkeys(('numba', 'chainer', 'cv2', 'h5py', 'matplotlib', 'pycocotools'), ('numpy',)),
    'chainercv': ('numpy', 'chainer', 'PIL'),
}
#: Packages without which most commands work.
_OPTIONAL = ('chainercv', 'h5py')
#: Packages whose source archives need this project's installation.
_INSTALLED_BY_US = ('chainer', 'chainercv')
#: A system library that opencv-python needs and opencv-python-headless does not.
_GUI_LIBRARY = re.compile(r'lib(?:GL|gthread|X11|xcb|SM|Xext|Xrender)\b')

#: Extra -> the modules that its packages contain, and what needs them.
EXTRAS = {
    'onnx': (('onnx',), 'mask-rcnn export'),
    'serve': (('starlette', 'uvicorn', 'python_multipart', 'prometheus_client'), 'mask-rcnn serve'),
    'tensorboard': (('tensorboardX',), 'mask-rcnn train --tensorboard'),
}


def describe_program(findings: Findings) -> Section:
    """Return the section on this program, Python and the system."""
    text = f'{mask_rcnn.__version__} in {mask_rcnn.__path__[0]}, Python {platform.python_version()}, '
    text += f'{platform.system()} {platform.machine()}'
    facts = {
        'version': mask_rcnn.__version__,
        'folder': str(mask_rcnn.__path__[0]),
        'installed': findings.distributions.get(DISTRIBUTION),
        'python': sys.version,
        'executable': sys.executable,
        'platform': platform.platform(),
    }
    advice = []
    try:
        os.getcwd()
    except OSError as error:  # libraries then fail in many ways
        fault = f'the current folder cannot be used ({error.strerror})'
        advice.append(Advice('error', f'{fault}: change to another one, and run this again'))
    return Section('mask-rcnn', text, advice, facts)


def describe_packages(findings: Findings) -> Section:
    """Return the section on the necessary packages."""
    advice = [item for name in NAMES if (item := _advice_on(name, findings)) is not None]
    broken = {name for name in NAMES if findings.error(name) is not None}
    advice += _wrong_versions(findings, {_DISTRIBUTIONS.get(name, name) for name in broken})
    text = ', '.join(f'{NAMES[name]} {findings.version(name)}' for name in _SHOWN)
    facts = {_DISTRIBUTIONS.get(name, name): findings.version(name) for name in NAMES}
    return Section('packages', text, advice, {'versions': facts})


def _advice_on(name: str, findings: Findings) -> Advice | None:
    """Return the advice on a package that cannot be imported; ``None`` if another one is the cause."""
    reason = findings.error(name)
    if reason is None or any(findings.error(needed) for needed in _NEEDS.get(name, ())):
        return None
    distribution = _DISTRIBUTIONS.get(name, name)
    if name == 'h5py' and findings.is_missing(name):
        fault = "h5py, which reads Matterport's .h5 files, is not installed"
        return Advice('note', f'{fault}: {findings.pip} install h5py')
    fault = f'{NAMES[name]} is not installed' if findings.is_missing(name) else f'{NAMES[name]} fails ({reason})'
    return Advice(
        'warning' if name in _OPTIONAL else 'error', f'{fault}: {_remedy(name, distribution, reason, findings)}'
    )


def has_broken_package(findings: Findings) -> bool:
    """Return whether a package cannot be imported, which has an advice of its own."""
    return any(findings.error(name) is not None for name in NAMES)


def _remedy(name: str, distribution: str, reason: str, findings: Findings) -> str:
    pip = findings.pip
    if name in _INSTALLED_BY_US:
        removal = '' if findings.is_missing(name) else f'{pip} uninstall -y {distribution}; '
        return f'{removal}{pip} install . (in the checkout of mask-rcnn)'
    if findings.is_missing(name):
        return f'{pip} install "{distribution}{_required_versions().get(distribution, "")}"'
    if name == 'cv2' and (_GUI_LIBRARY.search(reason) or len(_opencv_packages(findings)) > 1):
        packages = ' '.join(_opencv_packages(findings)) or 'opencv-python'
        return f'{pip} uninstall -y {packages}; {pip} install opencv-python-headless'
    missing = findings.facts(name).get('missing')
    if missing and missing.partition('.')[0] != name and reason.startswith('No module named'):
        return f'{pip} install {missing.partition(".")[0]}'
    if name == 'numba' and 'NumPy' in reason:
        return f'{pip} install --upgrade numba'
    return f'{pip} install --force-reinstall --no-deps {distribution}'


def _opencv_packages(findings: Findings) -> list[str]:
    return sorted(name for name in findings.distributions if name.startswith('opencv-'))


def _required_versions() -> dict[str, str]:
    """Return name -> versions, such as ``'>=2.0,<2.6'``, of the required packages; none without an installation."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    # Not the requirements of extras, which are judged elsewhere, and addresses of files.
    parts = [re.match(r'([\w.-]+)\s*([<>=!~][^;]*)', line) for line in requirements if 'extra ==' not in line]
    return {match[1].lower(): match[2].strip() for match in parts if match}


def _wrong_versions(findings: Findings, broken: set[str]) -> list[Advice]:
    """Return advice on packages whose versions do not fit the requirements of this distribution."""
    try:
        from packaging.specifiers import SpecifierSet
    except Exception:  # reported as a missing package
        return []
    advice = []
    for name, versions in _required_versions().items():
        installed = findings.distributions.get(name)
        if installed and versions and name not in broken and not SpecifierSet(versions).contains(installed, True):
            fault = f'{name} {installed} is installed, and {versions} is required'
            advice.append(Advice('warning', f'{fault}: {findings.pip} install "{name}{versions}"'))
    return advice


def describe_extras(findings: Findings) -> Section:
    """Return the section on the optional parts that are independent of GPUs and MPI."""
    present, absent, advice = [], [], []
    for extra, (modules, command) in EXTRAS.items():
        failed = next((name for name in modules if findings.error(name) is not None), None)
        if failed is None:
            present.append(extra)
            continue
        absent.append(extra)
        if findings.is_missing(failed):
            advice.append(Advice('note', f'{failed}, for {command}, is not installed: {findings.install(extra)}'))
        else:
            remedy = f'{findings.pip} install --force-reinstall --no-deps {failed.replace("_", "-")}'
            advice.append(Advice('warning', f'{failed}, for {command}, fails ({findings.error(failed)}): {remedy}'))
    for part, reason in (('ffmpeg', _ffmpeg_fault(findings)), ('windows', _window_fault(findings))):
        (present if reason is None else absent).append(part)
        if reason is not None:
            advice.append(reason)
    text = ', '.join(present) + (f' (without {", ".join(absent)})' if absent else '')
    return Section('extras', text.strip(), advice, {'present': present, 'absent': absent})


def _ffmpeg_fault(findings: Findings) -> Advice | None:
    if findings.ffmpeg is None:
        commands = {'Darwin': 'brew install ffmpeg', 'Windows': 'winget install ffmpeg'}
        command = commands.get(findings.system, 'sudo apt install ffmpeg')
        return Advice('note', f'ffmpeg, which writes smaller videos with sound, is not installed: {command}')
    if findings.ffmpeg.status != 0:
        path, reason = findings.paths.get('ffmpeg', 'ffmpeg'), shorten(findings.ffmpeg.text.split('\n')[-1])
        return Advice('warning', f'{path} fails ({reason}): install ffmpeg again')
    return None


def _window_fault(findings: Findings) -> Advice | None:
    """Return the reason why ``--show`` opens no window; see :class:`mask_rcnn.media.window.Window`."""
    if findings.error('cv2') is not None:
        return None
    environment = findings.environment
    if findings.system == 'Linux' and not (environment.get('DISPLAY') or environment.get('WAYLAND_DISPLAY')):
        return Advice('note', 'mask-rcnn demo --show has no screen: set DISPLAY, or log in with ssh -X')
    if findings.facts('cv2').get('gui') == 'NONE':
        pip, packages = findings.pip, ' '.join(_opencv_packages(findings)) or 'opencv-python-headless'
        return Advice(
            'note',
            f'mask-rcnn demo --show needs an OpenCV with windows: {pip} uninstall -y {packages}; '
            f'{pip} install opencv-python',
        )
    return None


def describe_weights(findings: Findings) -> Section:
    """Return the section on the folders of weights and the files in them."""
    reason = findings.error('weights')
    if reason is not None:
        broken = has_broken_package(findings) or findings.error('kernels')
        advice = [] if broken else [Advice('error', f'mask_rcnn fails ({reason}): install it again')]
        return Section('weights', 'not checked', advice)
    facts = findings.facts('weights')
    parts = [f'{folder} ({_list_files(names)})' for folder, names in facts['folders'].items()]
    advice = []
    if not facts['has_default']:
        remedy = f'--modelfile FILE names another one; or {facts["advice"]}'
        advice.append(Advice('note', f'{facts["default"]}, the default of --modelfile, does not exist: {remedy}'))
    return Section('weights', ', '.join(parts), advice, facts)


def _list_files(names: list[str] | None) -> str:
    if names is None:
        return 'does not exist'
    if not names:
        return 'no weights'
    shown = ', '.join(names[:2])
    return shown if len(names) <= 2 else f'{shown} and {len(names) - 2} more'
