"""The published image transform from decoded frames to the input of CLIP, bit-exact with PIL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the red, green and blue channel that OpenAI's CLIP was trained with (its released code)."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the channels, from the same source."""


_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class FrameTransform:
    """How decoded frames become squares of one size.

    size: height and width of the result in pixels.
    resize: `crop` scales the short side and keeps the proportions, as CLIP; `stretch` makes a square, as SigLIP.
    resample: the filter, always antialiased.
    scale_to: pixels that the short side or the square is scaled to before the middle is cropped; None means `size`.
    """

    size: int
    resize: Literal["crop", "stretch"] = "crop"
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    scale_to: int | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """Transform uint8 (frames, 3, height, width) to uint8 (frames, 3, size, size)."""
        height, width = frames.shape[-2:]
        short = min(height, width)
        scaled = self.scale_to or self.size
        sides = (height, width) if self.resize == "crop" else (short, short)
        new_height, new_width = (int(scaled * side / short) for side in sides)
        return _resize(frames, new_height, new_width, self.size, _RESAMPLING[self.resample])

    def describe(self) -> str:
        """Describe the transform for the provenance of stored frames, where the size is an entry of its own."""
        scaled = f" to {self.scale_to}" if self.scale_to not in (None, self.size) else ""
        if self.resize == "crop":
            return f"short side{scaled} by PIL {self.resample}, centre crop"
        return f"stretched{scaled} by PIL {self.resample}" + (", centre crop" if scaled else "")


def resize_and_crop(frames: Tensor, size: int) -> Tensor:
    """Resize the short side to `size` (bicubic, antialiased) and crop the square in the middle.

    `frames`: uint8 (frames, 3, height, width). Returns uint8 (frames, 3, size, size).
    """
    return FrameTransform(size)(frames)


def _resize(frames: Tensor, new_height: int, new_width: int, size: int, resample: Image.Resampling) -> Tensor:
    """Resize, then crop the middle.

    PIL resizes, as for the published features. `torch.nn.functional.interpolate` on uint8 takes 2 ms for 12 frames of
    320 x 240, PIL 20 ms, decoding more than either; but 4 in 1000 values differ, by up to 2 of 255. PIL's arithmetic
    on a batch in torch (22-bit weights, as products of float64 matrices or as sums over taps in int32) is bit-exact
    and takes 3 to 8 times as long as PIL, 20 to 40 times for 1280 x 720. The rounding of the long side and of the
    crop is torchvision's.
    """
    count = len(frames)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    box = (left, top, left + size, top + size)
    result = np.empty((count, size, size, 3), dtype=np.uint8)
    for number, frame in enumerate(frames.permute(0, 2, 3, 1).contiguous().numpy()):
        image = Image.fromarray(frame).resize((new_width, new_height), resample)
        result[number] = np.asarray(image.crop(box))
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


def normalize(
    frames: Tensor, mean: Sequence[float] | Tensor = CLIP_MEAN, std: Sequence[float] | Tensor = CLIP_STD
) -> Tensor:
    """Scale uint8 frames to [0, 1], subtract `mean` and divide by `std`, per channel.

    `frames`: uint8 (..., 3, height, width) on any device. Returns float32 of the same shape. Padded frames must be
    set to zero afterwards (multiply by the frame mask): the published code pads with zeros after this step.
    """
    shape = (3, 1, 1)
    pixels = frames.to(torch.float32).div_(255)
    center = torch.as_tensor(mean, dtype=torch.float32, device=frames.device).view(shape)
    scale = torch.as_tensor(std, dtype=torch.float32, device=frames.device).view(shape)
    return pixels.sub_(center).div_(scale)
