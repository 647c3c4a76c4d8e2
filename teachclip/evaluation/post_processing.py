"""Retrieval after a correction for videos that are close to every text: dual softmax and QB-Norm.

Both change nothing of a model. Dual softmax looks at all queries of the test at once, which a search cannot; QB-Norm
needs a bank of other queries alone. Their numbers stand in rows of their own, never among those of the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachclip.errors import DataError
from teachclip.evaluation.metrics import rank_metrics
from teachclip.evaluation.retrieval import ranks_from_matrix
from teachclip.scorer import Scorer, Tokens, encoding_in, in_float32, select_tokens, tokens_to
from teachclip.scoring.inputs import Inputs, encode_text_batch, to_device

DUAL_SOFTMAX, QB_NORM = "dual_softmax", "qb_norm"
KINDS = {DUAL_SOFTMAX: "dual softmax", QB_NORM: "QB-Norm"}
"""By name, as tables call them."""

INVERSE_TEMPERATURE, NEAREST = 20.0, 1
"""QB-Norm's beta on cosines, and how many videos of a bank's query are made active, as its authors set them."""


@dataclass(frozen=True)
class PostProcessing:
    """What is measured besides: `kinds` of `KINDS`, and `bank`, whose texts are QB-Norm's queries.

    `scale`, `bias`: the logits of the scorer are `scale` times cosines plus `bias`.
    """

    kinds: Sequence[str]
    bank: Inputs | None = None
    scale: float = 1.0
    bias: float = 0.0


@torch.no_grad()
def post_processed(
    scorer: Scorer,
    texts: Tokens,
    videos: Tokens,
    caption_videos: np.ndarray,
    wanted: PostProcessing,
    *,
    block: int,
    device: torch.device | str,
    precision: str = "float32",
) -> list[dict[str, Any]]:
    """Return the metrics `t2v`, for dual softmax `v2t` too, after each kind of post-processing, with its `name`.

    `texts`, `videos`: tokens of the scorer on `device`; `block`: texts that are scored at a time; `precision`: in
    which they were encoded, for the bank. QB-Norm also has `bank`, its number of queries, and `normalised`, the share
    of the queries that it changed, in percent.
    """

    def cosines(some: Tokens) -> Tensor:
        return (scorer.score(some, videos).float() - wanted.bias) / wanted.scale

    count = len(next(iter(texts.values())))
    blocks = [select_tokens(texts, slice(start, start + block)) for start in range(0, count, block)]
    scores = torch.cat([cosines(some).cpu() for some in blocks])
    found: list[dict[str, Any]] = []
    for kind in wanted.kinds:
        if kind == DUAL_SOFTMAX:
            t2v, v2t = (dual_softmax(scores, wanted.scale, dim) for dim in (0, 1))
            metrics: dict[str, Any] = {
                "t2v": rank_metrics(ranks_from_matrix(t2v, caption_videos).t2v),
                "v2t": rank_metrics(ranks_from_matrix(v2t, caption_videos).v2t),
            }
        else:
            bank = _bank(scorer, cosines, wanted.bank, block, device, precision)
            changed = bank.changes(scores)
            ranks = ranks_from_matrix(bank.normalise(scores), caption_videos)
            metrics = {"t2v": rank_metrics(ranks.t2v)}
            metrics |= {"bank": bank.queries, "normalised": 100 * float(changed.float().mean())}
        found.append({"name": KINDS[kind], **metrics})
    return found


def dual_softmax(cosines: Tensor, scale: float, dim: int) -> Tensor:
    """Return scores (texts, videos), each times its share among those that compete for the same answer.

    `s_tv softmax_t(scale s_tv)` for text to video, `dim` 0: a text that is only one of many which are close to a
    video loses it; over v, `dim` 1, for video to text (Cheng et al. 2021, CAMoE, dual softmax in inference). `scale`:
    the model's own. The product would turn the order of negative cosines, so the lowest is taken from all if it is
    below 0.
    """
    above = cosines - cosines.min().clamp(max=0)
    return above * (scale * cosines).softmax(dim=dim)


@dataclass(frozen=True)
class Querybank:
    """What a bank of queries says of each video.

    `log_sums` (videos,): `log sum_b exp(beta s_bv)` over its queries b; `active` (videos,) bool: whether the video is
    among the `NEAREST` of a query.
    """

    log_sums: Tensor
    active: Tensor
    queries: int

    @classmethod
    def of(cls, blocks: Sequence[Tensor]) -> Querybank:
        """Return the bank of queries whose cosines with all videos come in blocks (queries, videos).

        Raises DataError for a bank without queries.
        """
        if not blocks:
            raise DataError("QB-Norm needs a bank of queries: the training split has no captions")
        sums = [torch.logsumexp(INVERSE_TEMPERATURE * block, dim=0) for block in blocks]
        nearest = torch.cat([block.topk(NEAREST, dim=1).indices.flatten() for block in blocks]).unique()
        active = torch.zeros(blocks[0].shape[1], dtype=torch.bool)
        active[nearest] = True
        return cls(torch.logsumexp(torch.stack(sums), dim=0), active, sum(map(len, blocks)))

    def changes(self, cosines: Tensor) -> Tensor:
        """Return which texts have an active video as their first: (texts,) bool."""
        return self.active[cosines.argmax(dim=1)]

    def normalise(self, cosines: Tensor) -> Tensor:
        """Return scores (texts, videos) by the dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3.2).

        `exp(beta s_tv) / sum_b exp(beta s_bv)`, here as its logarithm, for texts whose first video is active; others
        keep their cosines. Only the order within a text counts.
        """
        normalised = INVERSE_TEMPERATURE * cosines - self.log_sums
        return torch.where(self.changes(cosines)[:, None], normalised, cosines)


def _bank(
    scorer: Scorer,
    cosines: Callable[[Tokens], Tensor],
    inputs: Inputs | None,
    block: int,
    device: torch.device | str,
    precision: str,
) -> Querybank:
    """Encode the texts of a bank and score them with the videos."""
    if inputs is None:
        raise ValueError("QB-Norm needs a bank of queries")
    blocks = []
    for start in range(0, inputs.text_count, block):
        rows = np.arange(start, min(start + block, inputs.text_count))
        with encoding_in(precision, device):
            some = encode_text_batch(scorer, to_device(inputs.texts(rows), device))
        blocks.append(cosines(tokens_to(in_float32(some), device)).cpu())
    return Querybank.of(blocks)
