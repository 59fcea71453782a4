"""The 17 keypoints of persons in COCO."""

#: Names in the order of COCO's files; ``left_`` and ``right_`` are the person's left and right.
COCO_KEYPOINT_NAMES = (
    'nose',
    'left_eye',
    'right_eye',
    'left_ear',
    'right_ear',
    'left_shoulder',
    'right_shoulder',
    'left_elbow',
    'right_elbow',
    'left_wrist',
    'right_wrist',
    'left_hip',
    'right_hip',
    'left_knee',
    'right_knee',
    'left_ankle',
    'right_ankle',
)

#: Pairs of keypoints that are connected in a drawing: ``skeleton`` of COCO's files, with indices from 0.
COCO_SKELETON = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)

#: Index of the keypoint that each keypoint becomes in a horizontally flipped image.
COCO_MIRRORED_KEYPOINTS = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)

#: Detected keypoints with a lower logit count as invisible (``kp_thresh`` in ``detectron/utils/vis.py``).
MIN_KEYPOINT_LOGIT = 2.0
