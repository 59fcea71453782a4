"""The selection of the frames of a video: every Nth frame, a span of time, and a maximum rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

#: Largest denominator of a frame rate: that of the rates of NTSC, such as 30000 / 1001.
_MAX_DENOMINATOR = 1001
#: Rounding of the times of frames in files, seconds.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FrameSelection:
    """The frames of a video that are processed.

    Args:
        every: Every how many frames one is selected, starting at the first of the span.
        start: Start of the span in seconds.
        end: End of the span in seconds, whose frame is excluded; ``None`` for the end of the video.
        max_rate: Maximum rate in frames per second; ``None`` for no maximum.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None
    max_rate: Fraction | None = None

    def rate(self, video_rate: Fraction) -> Fraction:
        """Return the rate of the selected frames, at which they have the speed of the video."""
        rate = video_rate / self.every
        return rate if self.max_rate is None else min(rate, self.max_rate)

    def is_before(self, seconds: float) -> bool:
        """Return whether a frame's time is before the span."""
        return seconds < self.start - _TOLERANCE

    def is_after(self, seconds: float) -> bool:
        """Return whether a frame's time is after the span."""
        return self.end is not None and seconds >= self.end - _TOLERANCE

    def describe_absence(self) -> str:
        """Return the error of a video without a frame in the span."""
        span = f'at or after {self.start:g} s' + ('' if self.end is None else f' and before {self.end:g} s')
        return f'the video has no frame {span}'

    def selects(self, index: int, video_rate: Fraction) -> bool:
        """Return whether the frame with an index, 0 for the first frame of the span, is selected."""
        if index % self.every:
            return False
        ratio = self.rate(video_rate) / (video_rate / self.every)  # of selected frames, at most 1
        number = index // self.every
        return math.floor(number * ratio) > math.floor((number - 1) * ratio)

    def count(self, n_frames: int, video_rate: Fraction) -> int:
        """Return the number of frames that are selected of a video with a constant rate."""
        first = math.ceil((self.start - _TOLERANCE) * video_rate) if self.start else 0
        last = n_frames if self.end is None else min(n_frames, math.ceil((self.end - _TOLERANCE) * video_rate))
        if last <= first:
            return 0
        last_number = (last - first - 1) // self.every
        return math.floor(last_number * self.rate(video_rate) / (video_rate / self.every)) + 1


def to_rate(value: float) -> Fraction | None:
    """Return a frame rate, such as 29.97, as the fraction that it abbreviates; ``None`` if it is not a rate."""
    if not math.isfinite(value) or not 0.01 <= value <= 1000:
        return None
    return Fraction(value).limit_denominator(_MAX_DENOMINATOR)


def parse_time(text: str) -> float:
    """Return the seconds of a time: ``'75.5'``, ``'1:15.5'`` or ``'0:01:15.5'``.

    Raises:
        ValueError: The text is not a time, or the time is negative.
    """
    parts = text.split(':')
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() for part in parts[:-1]):
        raise ValueError(f'{text!r} is not a time')
    seconds = float(parts[-1])
    if not 0 <= seconds < (60 if len(parts) > 1 else math.inf):
        raise ValueError(f'{text!r} is not a time')
    for weight, part in zip((60, 3600), reversed(parts[:-1]), strict=False):
        seconds += weight * int(part)
    return seconds
