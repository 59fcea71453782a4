"""What the backbones have in common: stages, some of which are frozen, some of whose outputs are seen."""

from __future__ import annotations

import chainer


class Backbone(chainer.Chain):
    """A chain of stages.

    A subclass has the attributes below and the links that :attr:`stages` returns.

    Calling it takes ``(N, 3, H, W)`` floats and returns a tuple of maps ``(N, C, ceil(H / s), ceil(W / s))``,
    ``C`` and ``s`` as in ``out_channels`` and ``strides``.

    Attributes:
        outputs (tuple of int): The stages, counted from 1, whose outputs are returned.
        strides (tuple of int): Input pixels per location of each output.
        out_channels (tuple of int): Channels of each output.
        frozen_stages (int): The first so many stages do not learn, and nothing of them is kept for a backward
            pass; see :func:`mask_rcnn.training.freezing.freeze`.
    """

    outputs: tuple[int, ...]
    strides: tuple[int, ...]
    out_channels: tuple[int, ...]
    frozen_stages = 0

    @property
    def stages(self) -> tuple[chainer.Link, ...]:
        """The links that :meth:`run_stage` takes, in the order in which they work."""
        return tuple(self.children())

    def run_stage(self, stage: chainer.Link, x):
        """Return a stage's output."""
        return stage(x)

    def forward(self, x):
        features = []
        for number, stage in enumerate(self.stages, start=1):
            if number <= self.frozen_stages:
                with chainer.no_backprop_mode():
                    x = self.run_stage(stage, x)
                x = chainer.as_variable(x.array)  # an input like any other: nobody derives by it
            else:
                x = self.run_stage(stage, x)
            if number in self.outputs:
                features.append(x)
        return tuple(features)
