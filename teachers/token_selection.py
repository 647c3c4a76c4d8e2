"""TS2-Net's token selection: which patch tokens of a frame stand for it (Liu et al., ECCV 2022, section 3.3).

The selection in training and, as published, afterwards too is a perturbed top-k (Cordonnier et al., CVPR 2021,
section 3.2; Berthet et al., NeurIPS 2020): the mean of the top-k choices under Gaussian noise on the scores. It has a
gradient, and it selects soft mixtures of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from teachclip.errors import RecipeError
from teachclip.registry import closest
from teachers.content_noise import NOISE_VERSION, content_noise, content_seeds

SELECTIONS = ("perturbed", "hard")

NUMBERS_AT_ONCE = 1 << 22
"""Numbers of noise that are in memory at a time, or those of one video if it has more."""


def hard_top_k(scores: Tensor, k: int) -> Tensor:
    """Return where the k highest scores (..., patches) are, in ascending order (..., k)."""
    return scores.topk(k, dim=-1).indices.sort(dim=-1).values


class PerturbedTopK(torch.autograd.Function):
    """Mean over noise of which patches are the top k: y[j, p] = mean_s [p is the j-th of the top k of x + sigma n_s].

    Its gradient is mean_s y_s n_s / sigma (Berthet et al., 2020, section 3.1). The noise is drawn again for it.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, draw: Callable[[], Tensor], k: int, sigma: float) -> Tensor:
        """Select from `scores` (frames, patches); `draw` returns noise (frames, samples, patches), always the same.

        Returns (frames, k, patches), rows sum to 1, slots ordered by place.
        """
        chosen = hard_top_k(scores.unsqueeze(1) + sigma * draw(), k).transpose(1, 2)
        ctx.save_for_backward(chosen)
        ctx.draw, ctx.sigma = draw, sigma
        counts = scores.new_zeros(len(scores), k, scores.shape[-1])
        counts.scatter_add_(2, chosen, torch.ones_like(chosen, dtype=counts.dtype))
        return counts / chosen.shape[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the scores."""
        (chosen,) = ctx.saved_tensors
        weights = gradients[0].gather(2, chosen).sum(dim=1)
        gradient = torch.einsum("fs,fsp->fp", weights, ctx.draw()) / (chosen.shape[-1] * ctx.sigma)
        return gradient, None, None, None


class ScorePredictor(nn.Module):
    """How much every token says: from the token itself and the frame's first token, which stands for the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, half, bias=False), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(2 * half, half, bias=False), nn.GELU(), nn.Linear(half, 1, bias=False), nn.Tanh()
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Score tokens (..., tokens, width), the first of which is the class token: (..., tokens), -1 to 1."""
        local = self.in_conv(tokens)
        whole = local[..., :1, :].expand_as(local)
        return self.out_conv(torch.cat([local, whole], dim=-1)).squeeze(-1)


class TokenSelector(nn.Module):
    """Select `topk` patch tokens of every frame; options as of `TS2Net`."""

    def __init__(
        self, width: int, *, selection: str, topk: int, samples: int, sigma: float, seed: int, source: str
    ) -> None:
        super().__init__()
        if selection not in SELECTIONS:
            known = ", ".join(SELECTIONS)
            raise RecipeError(
                f"{source}: selection is {selection!r}; allowed: {known}{closest(selection, SELECTIONS)}"
            )
        for name, value in (("topk", topk), ("samples", samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RecipeError(f"{source}: {name} is {value!r}, expected an integer of at least 1")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise RecipeError(f"{source}: seed is {seed!r}, expected an integer")
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < float("inf"):
            raise RecipeError(
                f"{source}: sigma is {sigma!r}, expected a number above 0; without noise: selection hard"
            )
        self.score_predictor = ScorePredictor(width)
        self.selection, self.topk, self.samples, self.sigma, self.seed = selection, topk, samples, sigma, seed
        if selection == "perturbed":
            self.noise_version = NOISE_VERSION  # a plain setting: relevance of other noise is refused

    def forward(self, tokens: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the class token and the selected patch tokens (videos, frames, 1 + topk, width), float32.

        `tokens`: (videos, frames, 1 + patches, width); `pixel_values` of the videos, which seed the noise.
        """
        patches = tokens[:, :, 1:].float()
        scores = self.score_predictor(tokens)[:, :, 1:].float()
        if self.selection == "hard":
            places = hard_top_k(scores, self.topk).unsqueeze(-1)
            selected = patches.gather(2, places.expand(-1, -1, -1, patches.shape[-1]))
        else:
            with torch.autocast(tokens.device.type, enabled=False):
                selected = self.perturbed(scores, pixel_values) @ patches
        return torch.cat([tokens[:, :, :1].float(), selected], dim=2)

    def perturbed(self, scores: Tensor, pixel_values: Tensor) -> Tensor:
        """Return the perturbed top-k of scores (videos, frames, patches): (videos, frames, topk, patches).

        The noise belongs to the video: see `content_noise`. It is drawn on the device of the scores for as many
        videos at once as `NUMBERS_AT_ONCE` allows, and never waits for the device. In training it is fresh in every
        call, from one draw of torch's global generator and the video, so that it does not depend on which process has
        the video.
        """
        frames, patches = scores.shape[1:]
        step = self.seed
        if self.training:
            step = int(torch.randint(2**62, ()))  # on the CPU; processes that train together draw the same one
        seeds, numbers = content_seeds(pixel_values, step), frames * self.samples * patches

        def selected(some: Tensor, seeds: Tensor) -> Tensor:
            def noise() -> Tensor:
                return content_noise(seeds, numbers).reshape(-1, self.samples, patches)

            return PerturbedTopK.apply(some.flatten(0, 1), noise, self.topk, self.sigma).unflatten(0, some.shape[:2])

        at_once = max(1, NUMBERS_AT_ONCE // numbers)
        parts = zip(scores.split(at_once), seeds.split(at_once), strict=True)
        return torch.cat([selected(*part) for part in parts])
