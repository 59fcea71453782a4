"""``--precision``: its effect on training, and the devices on which it is refused."""

import shutil

import chainer
import pytest

from mask_rcnn.cli import demo, evaluate, options, train
from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import check_precision
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from tests.support.small_train import NETWORK, RUN


@pytest.mark.parametrize(
    ('main', 'arguments'),
    [
        (demo.main, ['--image', 'photo.png']),
        (train.main, ['--dataset', 'shapes', '--pretrained', 'none', '--out', 'run']),
        (train.main, ['--dataset', 'shapes', '--resume', 'model.npz', '--lr', '0', '--out', 'run']),
        (evaluate.main, ['--dataset', 'shapes', '--modelfile', 'model.npz']),
    ],
)
def test_the_cpu_supports_fp32_only(tmp_path, monkeypatch, capsys, root, main, arguments):
    monkeypatch.chdir(tmp_path)
    import cv2
    import numpy as np

    cv2.imwrite('photo.png', np.zeros((8, 8, 3), np.uint8))
    shutil.copyfile(root / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz', 'model.npz')
    if main is demo.main:
        arguments = [*arguments, '--modelfile', 'model.npz']
    assert main([*arguments, '--gpu', '-1', '--precision', 'fp16']) == 2
    error = capsys.readouterr().err
    assert error == 'error: --precision fp16: fp16 needs a GPU; the CPU supports only fp32\n'


def test_unknown_precisions_are_refused(capsys):
    with pytest.raises(SystemExit):
        demo.main(['--image', 'photo.png', '--precision', 'fp8'])
    assert 'fp8' in capsys.readouterr().err


def test_requirements_of_the_gpu(monkeypatch):
    monkeypatch.setattr(options, 'capability', lambda gpu: 75)
    monkeypatch.setattr(options, 'is_available', lambda: False)
    check_precision('fp32', 0)
    with pytest.raises(UsageError, match='--precision bf16: bf16 needs a GPU of compute capability 8.0'):
        check_precision('bf16', 0)
    with pytest.raises(UsageError, match='--precision fp16: it needs cuDNN 9 and .* nvidia-cudnn-frontend'):
        check_precision('fp16', 0)
    monkeypatch.setattr(options, 'is_available', lambda: True)
    check_precision('fp16', 0)


def test_the_precision_of_a_missing_gpu_is_one_line():
    with pytest.raises(ValueError, match='GPU 1000 does not exist'):
        check_precision('fp16', 1000)


@pytest.mark.parametrize(('precision', 'scaled'), [('fp32', False), ('fp16', True), ('bf16', False)])
def test_training_uses_the_precision_and_scales_the_loss_of_fp16(tmp_path, monkeypatch, precision, scaled):
    """Every forward pass uses the precision; with float16, loss scaling keeps small gradients from underflow."""
    monkeypatch.setattr(train, 'check_precision', lambda *_: None)
    seen = []
    forward = MaskRCNNTrainChain.forward

    def watched(self, *arguments):
        seen.append(chainer.config.precision)
        return forward(self, *arguments)

    monkeypatch.setattr(MaskRCNNTrainChain, 'forward', watched)
    build_training_run, runs = train.build_training_run, []
    monkeypatch.setattr(
        train, 'build_training_run', lambda *a, **k: runs.append(build_training_run(*a, **k)) or runs[-1]
    )
    options = ['--iteration', '1', '--snapshot', '0', '--precision', precision, '--out', str(tmp_path / 'run')]
    words = [*RUN, *NETWORK, *options]
    assert train.main(words) == 0
    assert seen == [precision] and chainer.config.precision == 'fp32'
    optimizer = runs[0].trainer.updater.get_optimizer('main')
    assert optimizer._loss_scaling_is_dynamic == scaled
