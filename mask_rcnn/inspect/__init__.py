"""Inspection of networks, of their training data and of weight files: every intermediate result as plain arrays.

- One detection: :func:`trace` returns the tables of all steps, which ``help(mask_rcnn.inspect.tables)`` describes;
  :func:`why` and :func:`why_not` explain a detection and a missing one, :mod:`mask_rcnn.inspect.figures` draws the
  steps, and :func:`make_report` writes them as HTML.  :func:`activations` returns the outputs of single layers.
- Training: :func:`trace_training` returns the targets, the sampled boxes and their losses.
- Weights: :func:`weight_table`, :func:`dead_channels` and :func:`compare_weights` describe a file or a model.

The names of this module are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mask_rcnn.inspect import figures as figures
    from mask_rcnn.inspect import tables as tables
    from mask_rcnn.inspect.layers import activations, layer_names
    from mask_rcnn.inspect.network_input import viewable_input
    from mask_rcnn.inspect.reasons import Origin, Rejection, Step, why, why_not
    from mask_rcnn.inspect.report import make_report
    from mask_rcnn.inspect.tables import Fate, Trace
    from mask_rcnn.inspect.tracing import trace
    from mask_rcnn.inspect.training.trace import TrainingTrace, input_annotations, trace_training
    from mask_rcnn.inspect.weights.changes import compare_weights
    from mask_rcnn.inspect.weights.dead_channels import dead_channels
    from mask_rcnn.inspect.weights.statistics import weight_table

__all__ = [
    'Fate',
    'Origin',
    'Rejection',
    'Step',
    'Trace',
    'TrainingTrace',
    'activations',
    'compare_weights',
    'dead_channels',
    'input_annotations',
    'layer_names',
    'make_report',
    'trace',
    'trace_training',
    'viewable_input',
    'weight_table',
    'why',
    'why_not',
]

#: Public name -> the module that defines it.
_SOURCES = {
    **dict.fromkeys(('activations', 'layer_names'), 'layers'),
    **dict.fromkeys(('Origin', 'Rejection', 'Step', 'why', 'why_not'), 'reasons'),
    **dict.fromkeys(('Fate', 'Trace'), 'tables'),
    **dict.fromkeys(('TrainingTrace', 'input_annotations', 'trace_training'), 'training.trace'),
    'compare_weights': 'weights.changes',
    'dead_channels': 'weights.dead_channels',
    'make_report': 'report',
    'trace': 'tracing',
    'viewable_input': 'network_input',
    'weight_table': 'weights.statistics',
}
#: Public modules.
_MODULES = ('figures', 'tables')


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f'{__name__}.{name}')
    if name not in _SOURCES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_SOURCES[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, including those that have not been imported yet."""
    return sorted({*globals(), *__all__, *_MODULES})
