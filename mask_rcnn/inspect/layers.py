"""The outputs of the layers of a network by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import chainer
import numpy as np

from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.models import MaskRCNN, build
from mask_rcnn.models.initializers import no_initial_weights
from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.weights import load_arrays


class LayerRecorder(chainer.LinkHook):
    """A context that records the outputs of the links of a network.

    The network computes exactly what it computes without the context.  A link may be called several times: the RPN's
    layers once per feature map, and the heads once per chunk of RoIs.

    Args:
        network: The network.
        names: Paths of the links whose outputs are copied, such as ``'extractor/body/res4'``; see
            :func:`layer_names`.

    Attributes:
        shapes: Path of each called link -> the shape of each array that its calls return.
        outputs: Path of each link of ``names`` that is called -> for each call, a list of arrays.

    Raises:
        ValueError: A name is not the path of a link; the message names similar ones.
    """

    name = 'MaskRCNNLayerRecorder'

    def __enter__(self) -> LayerRecorder:
        super().__enter__()
        return self

    def __init__(self, network: chainer.Link, names: Collection[str] = ()):
        self._paths = {id(link): path.lstrip('/') for path, link in network.namedlinks(skipself=True)}
        self._names = frozenset(names)
        for name in names:
            _check_name(name, self._paths.values())
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.outputs: dict[str, list[list[np.ndarray]]] = {}

    def forward_postprocess(self, args: Any) -> None:
        """Copy the output of a link; it may be overwritten by a later layer."""
        path = self._paths.get(id(args.link))
        if path is None:
            return
        arrays = list(_arrays_in(args.out))
        self.shapes.setdefault(path, []).extend(array.shape for array in arrays)
        if path in self._names:
            self.outputs.setdefault(path, []).append([array.copy() for array in arrays])

    def output(self, name: str) -> tuple[np.ndarray, ...]:
        """Return the arrays that the calls of a link returned, in their order.

        Raises:
            ValueError: The link was not called: its parent computes it together with other layers.
        """
        if name not in self.outputs:
            parent = next((p for p in _parents(name) if p in self.shapes), '')
            advice = f'; {parent} computes it together with other layers' if parent else ''
            raise ValueError(f'layer {name!r} is not computed by itself{advice}')
        return tuple(array for call in self.outputs[name] for array in call)


def activations(
    model: MaskRCNN, image: str | os.PathLike | np.ndarray, layers: Iterable[str]
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return the outputs of layers for one image.

    Args:
        model: The network; it runs on the CPU (:func:`on_cpu`).
        image: File name or array; see :meth:`mask_rcnn.MaskRCNN.detect`.
        layers: Names of layers; see :func:`layer_names`.

    Returns:
        dict: Name -> the arrays that the layer returns, float32: ``(1, C, h, w)`` of the backbone and of the FPN, one
        for each level; ``(R, ...)`` of the heads, one for each chunk of RoIs.

    Raises:
        ValueError: A layer does not exist, is not called for this image, or is computed together with others.
        TypeError: The layers are not a list of names, or the model is not a network.
        mask_rcnn.preprocessing.image_io.ImageFileError: The image file cannot be read.
    """
    names = check_layers(layers)
    network = on_cpu(model)
    with LayerRecorder(network, names) as recorder:
        network.detect([image])
    return {name: recorder.output(name) for name in names}


def layer_names(model: MaskRCNN) -> tuple[str, ...]:
    """Return the names of the layers of a network, sorted.

    The convolution and the normalisation of one layer are computed together and have one name.  The box head of a C4
    network also computes some of its first convolutions together with RoIAlign; :func:`activations` refuses these.
    ``Trace.layer_shapes`` lists the layers in the order of the computation.
    """
    check_model(model)
    paths = [path.lstrip('/') for path, _ in model.namedlinks(skipself=True)]
    fused = {path for path, link in model.namedlinks() if hasattr(link, 'has_fixed_norm')}
    return tuple(sorted(path for path in paths if not any(f'/{parent}' in fused for parent in _parents(path))))


def check_model(model: MaskRCNN) -> None:
    """Refuse what is not a network.

    Raises:
        TypeError: The model is something else, such as the name of its file.
    """
    if not isinstance(model, MaskRCNN):
        raise TypeError(f'the model must be a MaskRCNN, as mask_rcnn.load returns it, not {type(model).__name__}')


def check_layers(layers: Iterable[str]) -> list[str]:
    """Return the names of layers as a list.

    Raises:
        TypeError: It is one text, whose letters would be names, or contains something that is not a text.
    """
    is_list = isinstance(layers, Iterable) and not isinstance(layers, str)
    names = list(layers) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(f'layers must be a list of names, such as ["rpn"], not {layers!r}')
    return names


def on_cpu(model: MaskRCNN) -> MaskRCNN:
    """Return a model itself if it is on the CPU, otherwise a copy on the CPU.

    Raises:
        TypeError: It is not a network, such as the name of its file.
    """
    check_model(model)
    if get_array_module(next(model.params()).array) is np:
        return model
    with no_initial_weights():
        copy = build(model.config, class_names=model.class_names, category_ids=model.category_ids)
    load_arrays(copy, collect_arrays(model), source='the model')
    return copy


def _arrays_in(output: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of a link's output: of a variable, an array, or nested tuples and lists of them."""
    if isinstance(output, (tuple, list)):
        for item in output:
            yield from _arrays_in(item)
    elif isinstance(output, chainer.Variable):
        yield np.asarray(output.array)
    elif isinstance(output, np.ndarray):
        yield output


def _parents(path: str) -> list[str]:
    """Return the paths of the links that contain a link, the innermost first."""
    parts = path.split('/')
    return ['/'.join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _check_name(name: str, paths: Collection[str]) -> None:
    if name not in paths:
        similar = difflib.get_close_matches(name, paths, 3, 0.5)
        advice = f'; did you mean {" or ".join(similar)}?' if similar else ''
        raise ValueError(f'the network has no layer {name!r}{advice}')
