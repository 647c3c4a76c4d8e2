"""Frame attention in closed form."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from teachclip.models.frame_attention import FrameAttention, masked_softmax


def with_scores(scores: torch.Tensor, *, temperature: float = 0.1) -> tuple[FrameAttention, torch.Tensor]:
    """An aggregation whose score is a frame's first coordinate, and frames with these scores (videos, frames)."""
    aggregation = FrameAttention(3, temperature=temperature)
    with torch.no_grad():
        for parameter in aggregation.parameters():
            parameter.zero_()
        aggregation.hidden.weight[0, 0] = aggregation.score.weight[0, 0] = 1
    frames = torch.randn(*scores.shape, 3, generator=torch.Generator().manual_seed(0))
    frames[..., 0] = scores
    return aggregation, frames


def test_equal_scores_give_the_mean_of_the_normalised_frames() -> None:
    aggregation, frames = with_scores(torch.full((2, 4), 1.5))
    found = aggregation(frames)
    assert_close(found.attention_scores, torch.full((2, 4), 1.5))
    assert_close(found.attention_weights, torch.full((2, 4), 0.25))
    assert_close(found.pooled, normalize(frames, dim=-1).mean(dim=1))


def test_pooling_is_sharper_than_the_weights_by_the_temperature() -> None:
    scores = torch.tensor([[0.0, 0.1, 0.3]])
    aggregation, frames = with_scores(scores)
    found = aggregation(frames)
    assert_close(found.attention_weights, scores.softmax(dim=-1))
    pooling_weights = (10 * scores).softmax(dim=-1)
    assert_close(found.pooled, (pooling_weights.unsqueeze(-1) * normalize(frames, dim=-1)).sum(dim=1))


def test_a_masked_frame_takes_no_weight_however_high_its_score() -> None:
    aggregation, frames = with_scores(torch.tensor([[1.0, 2.0, 90.0]]))
    mask = torch.tensor([[True, True, False]])
    found, short = aggregation(frames, mask), aggregation(frames[:, :2])
    assert found.attention_weights[0, 2] == 0
    assert_close(found.attention_weights[:, :2], short.attention_weights)
    assert_close(found.pooled, short.pooled)


def test_masked_softmax_of_a_row_without_valid_places_is_that_of_the_whole_row() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    mask = torch.tensor([[False, False], [True, False]])
    assert_close(masked_softmax(scores, mask), torch.stack([scores[0].softmax(dim=-1), torch.tensor([1.0, 0.0])]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_is_taken_in_float32(dtype: torch.dtype) -> None:
    assert masked_softmax(torch.zeros(2, 3, dtype=dtype)).dtype == torch.float32
