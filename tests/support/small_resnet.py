"""ResNets of few blocks and channels, for tests that run whole networks."""

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import Res5BoxHead


def use_shallow_resnet(patch):
    """Give the ResNets about one block per stage.

    Args:
        patch: pytest's ``monkeypatch``; its end restores the architecture.
    """
    patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
    patch.setitem(RESNET_BLOCKS, 'resnet101', (1, 1, 2, 1))


def use_narrow_resnet(patch):
    """Give the ResNets a quarter of their channels as well; see :func:`use_shallow_resnet`."""
    use_shallow_resnet(patch)
    patch.setattr(ResNet, 'stem_channels', 16)
    patch.setattr(Res5BoxHead, 'out_channels', 512)
