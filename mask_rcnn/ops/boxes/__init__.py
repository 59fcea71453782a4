"""Operations on boxes: anchors, IoU, NMS, proposals."""
