"""pycocotools' evaluation, which prints to the log instead of stdout.

Redirecting ``sys.stdout`` would swallow the lines of other threads, and two evaluations that overlap would leave it
redirected.  Therefore this module executes its own copies of the two modules, with a ``print`` that writes to the log;
the modules that other code imports stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

_logger = logging.getLogger(__name__)


def _log(*values: object) -> None:
    _logger.debug('%s', ' '.join(map(str, values)))


def _load_with_log(name: str) -> Any:
    """Return a new copy of a module whose ``print`` is :func:`_log`."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    module: Any = importlib.util.module_from_spec(spec)
    module.print = _log
    spec.loader.exec_module(module)
    return module


#: The index of annotations and the evaluation of pycocotools.
COCO: Any = _load_with_log('pycocotools.coco').COCO
COCOeval: Any = _load_with_log('pycocotools.cocoeval').COCOeval
