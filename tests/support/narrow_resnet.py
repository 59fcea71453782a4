"""A ResNet of few blocks and channels, for tests that train whole networks."""

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import Res5BoxHead


def use_narrow_resnet(patch):
    """Give ResNet-50 one block per stage and a quarter of its channels.

    Args:
        patch: pytest's ``monkeypatch``; its end restores the architecture.
    """
    patch.setitem(RESNET_BLOCKS, 'resnet50', (1, 1, 1, 1))
    patch.setattr(ResNet, 'stem_channels', 16)
    patch.setattr(Res5BoxHead, 'out_channels', 512)
