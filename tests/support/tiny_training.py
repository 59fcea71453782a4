"""A model of a few parameters and its trainer, for tests of the code around the model."""

from collections import namedtuple

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer import training

from mask_rcnn.config import Config
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.updater import SubdivisionUpdater
from mask_rcnn.weights import ModelMeta

Row = namedtuple('Row', 'x t name')

META = ModelMeta(kind='model', config=Config(n_fg_class=2), class_names=('a', 'b'), category_ids=(1, 2))


class TinyModel(chainer.Chain):
    """Two linear layers, with the attributes of a detector that snapshots read."""

    config, class_names, category_ids = META.config, META.class_names, META.category_ids

    def __init__(self, dtype=np.float32):
        super().__init__()
        rng = np.random.RandomState(0)
        with self.init_scope():
            self.hidden = L.Linear(4, 6, initialW=rng.randn(6, 4), initial_bias=rng.randn(6))
            self.out = L.Linear(6, 2, initialW=rng.randn(2, 6))
        for param in self.params():
            param.array = param.array.astype(dtype)

    def forward(self, x):
        return self.out(F.tanh(self.hidden(x)))


class TinyTrainChain(chainer.Chain):
    """The mean squared error over the rows of a batch; records the sizes of the batches."""

    def __init__(self, dtype=np.float32):
        super().__init__()
        self.dtype = dtype
        self.sizes = []
        with self.init_scope():
            self.model = TinyModel(dtype)

    def forward(self, rows):
        self.sizes.append(len(rows))
        x, t = (np.stack([getattr(row, name) for row in rows]).astype(self.dtype) for name in 'xt')
        loss = F.mean(F.sum(F.cast((self.model(x) - t) ** 2, np.float32), axis=1))
        chainer.report({'loss': loss, 'twice': 2 * loss}, self)
        return loss


def rows(n=12, seed=1):
    """Return ``n`` random inputs with targets and names."""
    rng = np.random.RandomState(seed)
    return [Row(rng.randn(4), rng.randn(2), f'row{i}.jpg') for i in range(n)]


def make_trainer(
    out, *, data=None, batch_size=4, rate=0.1, chain=None, optimizer=None, stop=(5, 'iteration'), **updater
):
    """Return a trainer of a tiny chain with a constant learning rate."""
    iterator = chainer.iterators.SerialIterator(data or rows(), batch_size, shuffle=False)
    optimizer = optimizer or make_optimizer(chain or TinyTrainChain())
    set_learning_rate(optimizer, rate)
    return training.Trainer(SubdivisionUpdater(iterator, optimizer, **updater), stop, out=str(out))


def arrays(link):
    """Return copies of all parameters by path."""
    return {name: param.array.copy() for name, param in link.namedparams()}
