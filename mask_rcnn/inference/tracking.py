"""Tracking of instances over the frames of a video by the overlap of their boxes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.ops.boxes.boxes import box_iou, outer_corners

#: Number of positions from which the velocity of an object is computed; more react late, fewer amplify noise.
_VELOCITY_POSITIONS = 5


@dataclass
class _Track:
    """An object that is followed.

    Args:
        track_id: Its number.
        label: Its class.
        positions: The frames in which it was detected with its boxes ``(4,)``, the last ones only.
    """

    track_id: int
    label: int
    positions: deque[tuple[int, np.ndarray]] = field(default_factory=deque)

    @property
    def last_frame(self) -> int:
        """The frame of the last detection."""
        return self.positions[-1][0]

    @property
    def last_box(self) -> np.ndarray:
        """The box of the last detection."""
        return self.positions[-1][1]

    def predict_box(self, frame: int) -> np.ndarray:
        """Return the last box, shifted by the velocity of its centre since its last detection."""
        first_frame, first_box = self.positions[max(0, len(self.positions) - _VELOCITY_POSITIONS)]
        n_frames = max(self.last_frame - first_frame, 1)
        velocity = (_centre(self.last_box) - _centre(first_box)) / n_frames
        return self.last_box + np.tile(velocity, 2) * (frame - self.last_frame)


class Tracker:
    """A tracker that gives the detections of an object the same id in all frames of a video.

    Pairs of a track and a detection of the same class are matched in descending order of the IoU of their boxes.  A
    track's box is first shifted by its mean velocity over the last five detections, and then, for the tracks and
    detections that are left, used as it was last detected.  Detections without a track begin a new one.  Boxes are
    compared, not masks: in consecutive frames they distinguish objects as well, and cost far less.  An object whose
    class changes gets a new id.

    The ids are 1, 2, 3, ... in the order in which tracks begin; none is used twice.  The same detections always get the
    same ids.  The memory does not depend on the number of frames.  A tracker is for one video and one thread.

    Args:
        min_iou: Boxes with a lower IoU do not match.
        max_age: Maximum number of consecutive frames without a detection after which an object gets its id again; its
            track ends after one more.
        trace_length: Number of frames that :meth:`traces` covers.

    Raises:
        ValueError: ``min_iou`` is not above 0 and at most 1, ``max_age`` is negative, or ``trace_length`` is below 1.
    """

    def __init__(self, *, min_iou: float = 0.3, max_age: int = 30, trace_length: int = 30):
        if not 0 < min_iou <= 1:
            raise ValueError(f'min_iou must be above 0 and at most 1, not {min_iou}')
        if max_age < 0:
            raise ValueError(f'max_age must be 0 or more frames, not {max_age}')
        if trace_length < 1:
            raise ValueError(f'trace_length must be 1 or more frames, not {trace_length}')
        self._min_iou = min_iou
        self._max_age = max_age
        self._trace_length = trace_length
        self._frame = 0
        self._n_tracks = 0
        self._tracks: dict[int, _Track] = {}  # in ascending order of ids

    def update(self, detections: Detections) -> np.ndarray:
        """Return the ids of the detections of the next frame.

        Args:
            detections: The detections, also of a frame without any.

        Returns:
            ``(R,)`` int64.
        """
        self._frame += 1
        self._tracks = {i: track for i, track in self._tracks.items() if self._n_missed(track) <= self._max_age}
        boxes = outer_corners(detections.boxes.astype(np.float64), detections.dialect.boxes.offset)
        ids = np.zeros(len(boxes), np.int64)
        for use_velocity in (True, False):
            free, taken = np.flatnonzero(ids == 0), set(ids.tolist())
            tracks = [track for track_id, track in self._tracks.items() if track_id not in taken]
            expected = [track.predict_box(self._frame) if use_velocity else track.last_box for track in tracks]
            for i, k in self._match(tracks, expected, boxes[free], detections.labels[free]):
                ids[free[k]] = tracks[i].track_id
        for k in np.flatnonzero(ids == 0).tolist():
            self._n_tracks += 1
            ids[k] = self._n_tracks
            self._tracks[self._n_tracks] = _Track(self._n_tracks, int(detections.labels[k]))
        for track_id, box in zip(ids.tolist(), boxes, strict=True):
            self._extend(self._tracks[track_id], box)
        return ids

    def traces(self, ids: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Return the centres of the boxes of objects in the last ``trace_length`` frames.

        Args:
            ids: Ids that :meth:`update` has returned for the current frame.

        Returns:
            For each id, ``(N, 2)`` float64 ``(y, x)`` in pixels, the newest last; frames without a detection of the
            object have no row.

        Raises:
            KeyError: The track of an id has ended.
        """
        first = self._frame - self._trace_length
        positions = [self._tracks[int(track_id)].positions for track_id in ids]
        return [np.array([_centre(box) for frame, box in boxes if frame > first]).reshape(-1, 2) for boxes in positions]

    def _n_missed(self, track: _Track) -> int:
        """Return the number of frames between the last detection of a track and the current frame."""
        return self._frame - track.last_frame - 1

    def _match(
        self, tracks: Sequence[_Track], expected: Sequence[np.ndarray], boxes: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, int]]:
        """Yield the indices of matching tracks and detections; of equal IoUs, the older track comes first."""
        if not tracks or not len(boxes):
            return
        iou = box_iou(np.array(expected), boxes, offset=0.0)
        iou[np.array([track.label for track in tracks])[:, None] != labels] = 0
        pairs = np.argwhere(iou >= self._min_iou)
        free_tracks, free_boxes = set(range(len(tracks))), set(range(len(boxes)))
        for i, k in pairs[np.argsort(-iou[tuple(pairs.T)], kind='stable')].tolist():
            if i in free_tracks and k in free_boxes:
                free_tracks.remove(i)
                free_boxes.remove(k)
                yield i, k

    def _extend(self, track: _Track, box: np.ndarray) -> None:
        track.positions.append((self._frame, box))
        if len(track.positions) > max(self._trace_length, _VELOCITY_POSITIONS):
            track.positions.popleft()


def _centre(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2
