"""How many anchors and RoIs learn, and from which overlaps on."""

from __future__ import annotations

from dataclasses import dataclass

#: Label of what is not looked at.
IGNORED = -1


@dataclass(frozen=True)
class Sampling:
    """The numbers of Detectron's ``TRAIN`` section (``detectron/core/config.py``).

    Args:
        rpn_batch: Anchors per image that learn what they are.
        rpn_positive_fraction: At most so many of them are positive.
        rpn_positive_iou: Anchors with this overlap are positive (as are each object's best ones).
        rpn_negative_iou: Anchors whose best overlap is below it are negative.
        rpn_straddle: Only anchors learn that reach at most so many pixels over the image's border; with a
            negative number all do.
        roi_batch: RoIs per image that learn.
        roi_foreground_fraction: At most so many of them are foreground.
        roi_foreground_iou: RoIs with this overlap are foreground.
        roi_background_iou: RoIs whose best overlap is in ``[low, high)`` are background.
        train_pre_nms: Best anchors that enter the proposals' NMS in training.
        train_post_nms: Proposals that leave it.
    """

    rpn_batch: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_straddle: float = 0
    roi_batch: int = 512
    roi_foreground_fraction: float = 0.25
    roi_foreground_iou: float = 0.5
    roi_background_iou: tuple[float, float] = (0.0, 0.5)
    train_pre_nms: int = 12000
    train_post_nms: int = 2000

    def __post_init__(self):
        for name in ('rpn_batch', 'roi_batch', 'train_pre_nms', 'train_post_nms'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, not {getattr(self, name)!r}')
        for name in (
            'rpn_positive_fraction',
            'rpn_positive_iou',
            'rpn_negative_iou',
            'roi_foreground_fraction',
            'roi_foreground_iou',
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be from 0 to 1, not {getattr(self, name)!r}')
        low, high = self.roi_background_iou
        if not 0 <= low < high <= self.roi_foreground_iou:
            raise ValueError(
                'roi_background_iou must be two rising numbers from 0 to roi_foreground_iou, '
                f'not {self.roi_background_iou!r}'
            )
