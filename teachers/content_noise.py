"""Noise that belongs to a video: drawn at once for a whole batch, on its device, from what a video shows.

A number of the noise is a function of the video's seed and of its own place alone. The generator is SplitMix64
(Steele et al., OOPSLA 2014): the mixed sum of a seed and a multiple of a constant, in integers that wrap around at 64
bits and are equal on every device. torch's own generators are not: that of a CPU (Mersenne Twister) and that of a GPU
(Philox) give other numbers for the same seed, and each gives one stream, so that every video would need a generator
and a call of its own. What `torch.func` draws is of one of them too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_VERSION = 2
"""Raised when a seed gives other noise. 1 was torch's generator on the CPU."""

_SEED_GRID = 32
_SEED_SCALE = 20
"""Pixels are rounded to 1/20 before they seed noise. No 8-bit value normalised by CLIP's, SigLIP's or ImageNet's mean
and deviation is then nearer than 1e-3 to where rounding turns, so that other last bits give the same seed."""


def _signed(value: int) -> int:
    """Return the lower 64 bits of a number as torch holds them."""
    return ((value + (1 << 63)) % (1 << 64)) - (1 << 63)


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIXES = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _mixed(numbers: Tensor) -> Tensor:
    """Mix the bits of 64-bit integers, in place: the finaliser of SplitMix64."""
    for shift, factor in _MIXES:
        numbers ^= (numbers >> shift) & ((1 << (64 - shift)) - 1)  # torch shifts the sign in
        numbers *= factor
    return numbers


def _places(count: int, device: torch.device) -> Tensor:
    """Return 1 to `count`, each times SplitMix64's constant: (count,) int64."""
    return torch.arange(1, count + 1, device=device) * _GAMMA


def content_seeds(pixel_values: Tensor, seed: int) -> Tensor:
    """Return a seed for every video, from `seed` and what it shows: (videos,) int64, on the device of the pixels.

    `pixel_values`: (videos, frames, 3, height, width). The seed is a 64-bit hash of about 32 x 32 pixels of every
    frame, rounded to 1/20: the same on every device and in every batch, also under autocast. Pixels given in float16
    or bfloat16 are other numbers, and have other seeds.

    It is the sum of each pixel times an odd 64-bit number of its place (multilinear hashing), mixed with `seed`.
    """
    step = max(1, pixel_values.shape[-1] // _SEED_GRID)
    pixels = pixel_values[..., ::step, ::step].float().mul(_SEED_SCALE).round().long().flatten(1)
    factors = _mixed(_places(pixels.shape[1], pixels.device)) | 1
    own = torch.full((), _signed(seed), device=pixels.device) * _GAMMA  # `torch.tensor` would wait for its copy
    return _mixed((pixels * factors).sum(dim=1) ^ _mixed(own))


def content_noise(seeds: Tensor, count: int) -> Tensor:
    """Return `count` standard normal numbers for each of `seeds` (videos,): (videos, count) float32.

    A video has the same numbers in every batch; other devices round their last bits otherwise (Box-Muller).
    """
    pairs = -(-count // 2)
    bits = _mixed(seeds[:, None] + _places(pairs, seeds.device))
    angle = (bits & 0xFFFFFFFF).float().mul_(2 * math.pi / 2**32)
    radius = ((bits >> 32) & 0xFFFFFFFF).add_(1).float().mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
