"""How a player turns and mirrors the stored pictures of a video: its display matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import SideDataContainer


class Orientation(NamedTuple):
    """What becomes of a stored picture: rows and columns swapped, then flipped top to bottom, then left to right."""

    swapped: bool = False
    upside_down: bool = False
    reversed: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether writing in the picture is reversed."""
        return (self.swapped + self.upside_down + self.reversed) % 2 == 1

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which the picture is rotated; then, if `mirrored`, left and right change."""
        quarter = 90 if self.upside_down else 270
        return quarter if self.swapped else 180 * self.upside_down

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return the picture that a player shows, a view of `pixels` (height, width, channels)."""
        shown = pixels.swapaxes(0, 1) if self.swapped else pixels
        return shown[:: -1 if self.upside_down else 1, :: -1 if self.reversed else 1]


def orientation_of(frame: Any) -> Orientation:
    """Return the orientation of a decoded frame, as FFmpeg's autorotation takes it: right angles and mirrors.

    The matrix (a b u, c d v, x y w) moves a stored pixel (x, y) to (a x + c y, b x + d y). Angles in between, which
    no camera writes, are taken as the nearest of the eight.
    """
    # Not frame.side_data, which makes a cycle with the frame: its memory would be free for other pictures only when
    # Python collects garbage, and which old one shows through the holes of a damaged one would be left to chance.
    side_data = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if side_data is None or len(bytes(side_data)) < 36:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data), dtype=np.int32).tolist()
    if abs(a) >= abs(b):
        return Orientation(False, d < 0, a < 0)
    return Orientation(True, b < 0, c < 0)
