"""Cases of test_distributed.py, run in each process: ``distributed_cases.py CASES OUTPUT_FOLDER``.

Several cases are separated by commas; starting the processes takes longer than a case.
"""

import json
import os
import pathlib
import signal
import sys

import mask_rcnn  # noqa: F401  (makes Chainer importable, so it comes first)

# isort: split
import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mask_rcnn.training.distributed import DistributedError, create_communicator


class Network(chainer.Chain):
    """A network of a frozen, a normalisation, a trained and a rarely used layer."""

    def __init__(self, seed):
        super().__init__()
        rng = np.random.RandomState(seed)

        def init(array):
            array[...] = rng.normal(size=array.shape)

        with self.init_scope():
            self.frozen = L.Convolution2D(3, 4, 3, initialW=init)
            self.norm = L.BatchNormalization(4)
            self.linear = L.Linear(16, 5, initialW=init)
            self.rare = L.Linear(5, 1, initialW=init)
        self.norm.avg_mean[...] = rng.normal(size=4)
        self.norm.N = seed

    def forward(self, images, use_rare=False):
        with chainer.using_config('train', False):
            y = self.linear(self.norm(self.frozen(images)))
        return F.mean(F.sum(y**2, axis=1)) + (F.mean(self.rare(y)) if use_rare else 0)


def make_optimizer(network):
    optimizer = chainer.optimizers.MomentumSGD(lr=1e-4).setup(network)
    network.frozen.disable_update()
    return optimizer


def train(network, communicator, batches):
    """Update with each process's part of every batch; return the parameters and losses."""
    optimizer = make_optimizer(network)
    losses = []
    for batch in batches:
        part = len(batch) // communicator.size
        images = batch[communicator.rank * part : (communicator.rank + 1) * part]
        loss = network(images)
        network.cleargrads()
        loss.backward()
        communicator.mean_gradients(network)
        optimizer.update()
        losses.append(communicator.mean({'loss': loss})['loss'])
    return {path: param.array.tolist() for path, param in network.namedparams()}, losses


def batches():
    return np.random.RandomState(7).normal(size=(3, 4, 3, 4, 4)).astype(np.float32)


def gradients(communicator):
    network = Network(communicator.rank)  # different parameters until process 0 broadcasts its own
    communicator.broadcast(network)
    params, losses = train(network, communicator, batches())
    return {'params': params, 'losses': losses, 'N': network.norm.N, 'avg_mean': network.norm.avg_mean.tolist()}


def odd_gradients(communicator):
    """Average a gradient that is not C-contiguous, and one that only process 1 has."""
    network = Network(0)
    make_optimizer(network)
    network.cleargrads()
    network(batches()[0], use_rare=communicator.rank == 1).backward()
    network.frozen.W.grad = np.full_like(network.frozen.W.array, communicator.rank)
    W = network.linear.W
    W.grad = np.asfortranarray(np.arange(W.size, dtype=np.float32).reshape(W.shape) + 2 * communicator.rank)
    rare = network.rare.W.grad if network.rare.W.grad is None else network.rare.W.grad.copy()
    communicator.mean_gradients(network)
    return {
        'linear': W.grad.tolist(),
        'rare': network.rare.W.grad.tolist(),
        'frozen': network.frozen.W.grad.mean().item(),
        'rare_before': None if rare is None else rare.tolist(),
    }


def collectives(communicator):
    rank = communicator.rank
    network = Network(rank)
    network.norm.avg_var[...] = rank + 1
    before = network.linear.W.array.copy()
    communicator.mean_persistents(network)
    communicator.barrier()
    return {
        'identity': [rank, communicator.size, communicator.intra_rank, communicator.is_main],
        'mean': communicator.mean(
            {'a': np.float32(rank), 'b': chainer.Variable(np.array(4.0 * rank)), **({'c': 5} if rank else {})}
        ),
        'any': [communicator.any(rank == 1), communicator.any(False)],
        'gather': communicator.gather({'rank': rank, 'scores': [0.5] * rank}),
        'broadcast': [communicator.broadcast_object(f'from {rank}'), communicator.broadcast_object(None)],
        'avg_var': network.norm.avg_var.tolist(),
        'N': network.norm.N,
        'unchanged': bool((network.linear.W.array == before).all()),
    }


def different_models(communicator):
    network = Network(0) if communicator.is_main else L.Linear(2, 2)
    communicator.broadcast(network)


def raises(communicator):
    if communicator.rank == 1:
        raise OSError('the disk is on fire')
    communicator.barrier()


def exits(communicator):
    if communicator.rank == 1:
        raise SystemExit(3)
    communicator.barrier()


def killed(communicator):
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    communicator.barrier()


def one_gpu(communicator):
    """Average over a single process with NCCL."""
    network = Network(0)
    network.to_device(chainer.get_device('@cupy:0'))
    network.device.use()
    make_optimizer(network)
    network.cleargrads()
    network(network.xp.asarray(batches()[0])).backward()
    before = network.linear.W.grad.copy()
    communicator.broadcast(network)
    communicator.mean_gradients(network)
    return {'linear': network.linear.W.grad.tolist(), 'before': before.tolist(), 'rare': network.rare.W.grad.tolist()}


def write_creation_error(folder, case, name):
    """Write the error of create_communicator() to a file."""
    try:
        create_communicator(name)
    except DistributedError as error:
        (pathlib.Path(folder) / f'{case}_{os.getpid()}.txt').write_text(str(error))


#: Communicators that cannot be created, by case.
_WRONG_NAMES = {'no_name': None, 'no_gpu': 'pure_nccl', 'other_mpi': 'naive'}


def main(cases, folder):
    cases = cases.split(',')
    for case in cases:
        if case == 'other_mpi':
            os.environ['PMI_SIZE'] = '2'  # set by MPICH's launcher, ignored by Open MPI
        if case in _WRONG_NAMES:
            write_creation_error(folder, case, _WRONG_NAMES[case])
    cases = [case for case in cases if case not in _WRONG_NAMES]
    if not cases:
        return
    communicator = create_communicator('pure_nccl' if cases == ['one_gpu'] else 'naive')
    for case in cases:
        with communicator.guard():
            result = globals()[case](communicator)
        (pathlib.Path(folder) / f'{case}_{communicator.rank}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
