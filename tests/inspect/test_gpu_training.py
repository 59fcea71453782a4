"""The training pass of a model on a GPU: the losses of one on the CPU."""

import pytest

from mask_rcnn.inspect import trace_training
from mask_rcnn.ops import cudnn_frontend
from tests.support.gpu_networks import SAMPLING, make_example, make_network


def losses(name, device):
    """Return the losses of an image by their names; the model stays on its device."""
    model = make_network(name)
    model.to_device(device)
    (trace,) = trace_training(model, [make_example(seed=1)], sampling=SAMPLING)
    assert next(model.params()).device == model.device
    return trace.losses


@pytest.mark.gpu
@pytest.mark.parametrize('name', ['matterport', 'keypoints_torchvision'])
def test_losses_on_a_gpu_equal_those_on_the_cpu(name):
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    assert losses(name, '@cupy:0') == pytest.approx(losses(name, '@numpy'), rel=1e-4, abs=1e-6)
